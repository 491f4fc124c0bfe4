"""A stage in a pod: its inputs at the paths of dvc.yaml, its own command, its outputs handed on. Run by Kubeflow, never by hand.

Everything before `--` is for this program, everything after it is the stage's command with artifacts in place of its paths.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines import artifacts, launch, lock, stages
from pipelines.kept import Kept
from pipelines.order import Order, TrainJob
from pipelines.stages import Stage
from pipelines.watch import TrainingError
from unimed import environment, hashes, job, params, step
from unimed.errors import BAD_INPUT, STOPPED, InputError
from unimed.store import Store

ROOT = Path(__file__).parent.parent
"""Where the image keeps the project."""

KILLED, TERMINATED = 128 + signal.SIGKILL, 128 + signal.SIGTERM

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--shutdown-timeout=600")
"""What starts several processes; told to stop, it gives them the time to save. Who told it kills all sooner where he will not wait."""

log = logging.getLogger("pod")


@dataclass(frozen=True)
class Pod:
    """One run of a stage: what was ordered, in which run of the pipeline, with which params, and the store if there is one."""

    order: Order
    run: str
    text: str
    stage: Stage
    store: Store | None

    @cached_property
    def params(self) -> dict[str, Any]:
        """The params as sections."""
        return params.load(self.text)

    def prepare(self, folder: Path, digests: dict[str, str]) -> None:
        """Make `folder`, where the inputs lie, look like the project: declaration, params, and what the inputs are."""
        self.order.check(self.stage, self.params, digests, ROOT)
        files = (path for path in self.stage.code if "/" not in path)  # folders of code are on the path of Python
        for name in ("dvc.yaml", *files):
            (folder / name).write_bytes((ROOT / name).read_bytes())
        (folder / "params.yaml").write_text(self.text)
        lock.write(folder / "dvc.lock", {self.stage.name: lock.entry(self.stage, self.params, digests, folder, ROOT)})

    def checkpoints(self, folder: Path, place: int = 0) -> Kept | None:
        """What the store keeps of the stage's checkpoints, of several machines those of one; none without a store or a key."""
        if self.store is None or not self.order.recipe:
            return None
        own = folder / job.Job(self.stage.name, self.order.recipe).folder / job.CHECKPOINTS
        machines = self.order.train_job
        share = f"{machines.nodes}x{machines.processes}-{place}" if machines else f"{self.order.processes}"
        # Of several machines one may have got more through than another, by one checkpoint, as each waits for all.
        return Kept(self.store, self.stage.name, self.order.recipe, share, own, count=2 if machines else 1)

    def execute_kept(self, folder: Path, place: int = 0) -> None:
        """Run the stage from the checkpoints that an earlier pod left, its own kept meanwhile."""
        kept = self.checkpoints(folder, place)
        if kept is None:
            self.execute(folder)
            return
        kept.fetch()
        with kept.following():
            self.execute(folder)
        kept.tidy()

    def let_go(self, folder: Path) -> None:
        """Delete the checkpoints that are kept of the stage, of several machines those of all."""
        machines = self.order.train_job
        for kept in filter(None, (self.checkpoints(folder, place) for place in range(machines.nodes if machines else 1))):
            kept.drop()

    def execute(self, folder: Path) -> None:
        """Run the stage's command in `folder`; ends this program with the command's exit code when that is not 0."""
        ends = folder / "ends"
        ends.mkdir()
        order = {job.RECIPE: self.order.recipe, job.REVISION: self.order.revision, job.IMAGE: self.order.image}
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        environ = os.environ | order | {job.ENDS: str(ends), job.RUN: self.run, "PYTHONPATH": path}
        child = subprocess.Popen(self._command(), cwd=folder, env=environ)
        try:
            code = child.wait()
        except SystemExit:  # this pod is told to stop, and so is the stage, whose own word counts
            code = TERMINATED
        finally:
            child.terminate()
            child.wait()
        if code:
            code = job.noted_end(ends) or (code if code > 0 else 128 - code)
            self._explain(code)
            sys.exit(code)

    def _explain(self, code: int) -> None:
        if code in (STOPPED, TERMINATED):
            log.warning("stage %s was told to stop, and ended with exit code %d", self.stage.name, code)
            return
        cause = "; it was killed, mostly for want of memory" if code == KILLED else ""
        log.error("stage %s failed with exit code %d%s", self.stage.name, code, cause)

    def _command(self) -> list[str]:
        """The command of dvc.yaml on this Python, through torchrun when several processes share the work."""
        _, *words = self.stage.command
        if self.order.train_job:
            return [*TORCHRUN, *words]
        if self.order.processes == 1:
            return [sys.executable, *words]
        return [*TORCHRUN, "--standalone", f"--nproc-per-node={self.order.processes}", *words]

    def keep(self, folder: Path, digests: dict[str, str]) -> dict[str, str]:
        """Put the outputs into the store, with the record of how they were made; returns their hashes by path."""
        paths = self.stage.outputs.values()
        made = {path: self.store.push(folder / path) if self.store else hashes.dvc_hash(folder / path) for path in paths}
        if self.store and self.order.recipe:
            entry = lock.entry(self.stage, self.params, {**digests, **made}, folder, ROOT)
            about = {"stage": self.stage.name, "key": self.order.recipe, "run": self.run, "lock": entry}
            self.store.put_record(self.stage.name, self.order.recipe, about)
        return made


def task(pod: Pod, ports: dict[str, Path], shown: dict[str, Path], outcome: Path | None, executor_input: dict[str, Any]) -> None:
    """Run a stage between KFP artifacts: `ports` and `shown` say where each lies or is to be put."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digests = {path: artifacts.take(ports[port], folder / path, pod.store) for port, path in pod.stage.inputs.items()}
        pod.prepare(folder, digests)
        pod.execute_kept(folder)
        made = pod.keep(folder, digests)
        about = {}
        for port, path in pod.stage.outputs.items():
            artifacts.hand_on(folder / path, ports[port], made[path], pod.store, pod.order.most_bytes)
            about[port] = artifacts.metadata(folder / path, made[path], digests)
        about |= {artifacts.port(file): artifacts.show(pod.stage, folder, file, place) for file, place in shown.items()}
        artifacts.report(executor_input, about, artifacts.decide(pod.stage, folder, outcome))
        pod.let_go(folder)


def train(pod: Pod, machines: TrainJob, ports: dict[str, Path], executor_input: dict[str, Any]) -> None:
    """Run the stage as a TrainJob. No bytes come through here: its pods take inputs from the store and leave outputs there."""
    if pod.store is None:
        raise InputError(f"stage {pod.stage.name}: expected a store that several machines can reach, found none; set a DVC remote on S3")
    digests = {path: artifacts.digest(ports[port]) for port, path in pod.stage.inputs.items()}
    pod.order.check(pod.stage, pod.params, digests, ROOT)
    words = {"--order": pod.order.model_dump_json(), "--run": pod.run, "--params": pod.text, "--inputs": json.dumps(digests)}
    command = ("python", "-m", "pipelines.pod", *(word for pair in words.items() for word in pair), "--", *pod.stage.command)
    launch.train(launch.Order(pod.stage.name, pod.order.recipe, pod.run, command, machines))
    made = {item["path"]: item["md5"] for item in recorded(pod.store, pod.stage.name, pod.order.recipe)["outs"]}
    for port, path in pod.stage.outputs.items():
        artifacts.refer(made[path], ports[port], pod.store)
    facts = {port: artifacts.identity(made[path], digests) for port, path in pod.stage.outputs.items()}
    artifacts.report(executor_input, facts, {})


def recorded(store: Store, stage: str, key: str) -> dict[str, Any]:
    """The dvc.lock entry that the store keeps of a stage under a recipe key; raises `InputError` when there is none."""
    record = store.record(stage, key)
    if record is None:
        raise InputError(f"stage {stage}: expected a record of recipe {key} in the store, found none; delete its TrainJob if complete")
    return lock.check(record.get("lock"), stage)


def worker(pod: Pod, digests: dict[str, str]) -> None:
    """Run a stage on one of several machines; the first of them keeps the outputs, and then lets go of the checkpoints of all."""
    if pod.store is None:
        raise InputError(f"stage {pod.stage.name}: expected a store, found none")
    place = int(os.environ.get("PET_NODE_RANK", "0"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, digest in digests.items():
            pod.store.pull(digest, folder / path)
        pod.prepare(folder, digests)
        pod.execute_kept(folder, place)
        if place == 0:
            pod.keep(folder, digests)
            pod.let_go(folder)


def find(name: str) -> Stage:
    """The stage of that name in dvc.yaml or among those that follow; raises `InputError` for any other."""
    known = [*stages.read((ROOT / "dvc.yaml").read_text()), *stages.read((ROOT / "pipelines/control.yaml").read_text())]
    for stage in known:
        if stage.name == name:
            return stage
    raise InputError(f"stage {name}: expected one of {', '.join(stage.name for stage in known)}, found none of that name")


def _arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--order", type=Order.model_validate_json, required=True, help="what the compiler says, as JSON")
    parser.add_argument("--run", help="the pipeline run, for a pod that Kubeflow did not start itself")
    parser.add_argument("--params", required=True, help="params.yaml, as far as the stage takes it")
    parser.add_argument("--executor-input", type=json.loads, help="KFP's word on inputs and outputs, as JSON")
    parser.add_argument("--inputs", type=json.loads, help="hash of each input in the store, as JSON, instead of artifacts")
    parser.add_argument("--show", nargs=2, action="append", default=[], metavar=("FILE", "ARTIFACT"), help="a file that the UI shows")
    parser.add_argument("--outcome", type=Path, help="where to write whether the verdict is `passed` or `rejected`")
    split = words.index("--")
    return parser.parse_args(words[:split]), words[split + 1 :]


def run(words: list[str]) -> None:
    """Run the stage that the words order."""
    given, command = _arguments(words)
    stage = find(given.order.stage)
    run_id = given.run or artifacts.run_id(given.executor_input)
    pod = Pod(given.order, run_id, given.params, stage, Store(given.order.store) if given.order.store else None)
    if given.inputs is not None:
        worker(pod, given.inputs)
        return
    place = dict(zip(command[stages.PROGRAM :: 2], command[stages.PROGRAM + 1 :: 2], strict=True))
    ports = {port: Path(place[f"--{port.replace('_', '-')}"]) for port in (*stage.inputs, *stage.outputs)}
    if machines := given.order.train_job:
        train(pod, machines, ports, given.executor_input)
    else:
        task(pod, ports, {file: Path(where) for file, where in given.show}, given.outcome, given.executor_input)


def main() -> None:
    """Run a stage in a pod; exits with the stage's code, 78 for input that a user can mend."""
    environment.settle()
    environment.start_logging()
    signal.signal(signal.SIGTERM, step.stop)
    try:
        run(sys.argv[1:])
    except InputError as error:
        log.error("%s", error)
        sys.exit(BAD_INPUT)
    except TrainingError as error:
        log.error("%s", error)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
