"""What a running program is: which stage of dvc.yaml, under which recipe key, on which data, from which revision, in which `dvc repro`."""

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from unimed import hashes, outputs, params, settings
from unimed.errors import BAD_INPUT, STOPPED

if TYPE_CHECKING:
    from pipelines.stages import Stage


RUN, RECIPE, REVISION, ENDS = "UNIMED_RUN", "UNIMED_RECIPE", "UNIMED_REVISION", "UNIMED_ENDS"
"""Environment variables by which a pod says which pipeline run it belongs to, under which key and from which git revision it was compiled,
and in which folder each process of the stage notes its exit code: torchrun keeps those of its processes to itself."""

IMAGE = "UNIMED_IMAGE"
"""Environment variable with the container image that a pod runs, by digest."""

CHECKPOINTS = "checkpoints"
"""The folder of a job that holds them until its outputs are in place."""


@dataclass(frozen=True)
class Job:
    """One run of a component; `inputs` maps a path to its hash as DVC writes it, `numbers` are the params it takes, dotted."""

    stage: str
    key: str
    inputs: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its metrics and checkpoints lie, by stage and recipe key."""
        return Path("runs") / f"{self.stage}-{self.key}"

    @property
    def tags(self) -> dict[str, str]:
        """What says how its run and versions came about, from code to data contract; what is not known is left out."""
        data = {"inputs": json.dumps(self.inputs, sort_keys=True)} if self.inputs else {}
        held = {path: digest for path in sorted(self.inputs) if (digest := _contract(Path(path) / "verdict.json"))}
        return {"stage": self.stage, "recipe_key": self.key} | source() | data | ({"contract": json.dumps(held)} if held else {})


_places: list[Iterator[Path]] = []


@contextlib.contextmanager
def run(job: Job) -> Iterator[None]:
    """Be the running job for the block; its checkpoints go when the block ends well. Each of several machines has its own."""
    own, others = _machines()
    _places.append(job.folder / CHECKPOINTS / f"{turn}{own}" for turn in itertools.count(1))
    try:
        yield
    finally:
        _places.pop()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for place in (job.folder / CHECKPOINTS).glob("*" if outputs.is_leader() else f"*{own}"):
            if not place.name.endswith(others):  # who are at it themselves, on a common disk
                outputs.remove(place)
        with contextlib.suppress(OSError):  # none was written, or another machine's are still there
            (job.folder / CHECKPOINTS).rmdir()


def _machines() -> tuple[str, tuple[str, ...]]:
    """How names of folders end that are this machine's of several, and those of the others; empty where one does all the work."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    count = processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if count == 1:
        return "", ()
    own = os.environ["GROUP_RANK"]
    return f"-{own}", tuple(f"-{place}" for place in range(count) if str(place) != own)


@contextlib.contextmanager
def noting_end() -> Iterator[None]:
    """Note the exit code that the block ends with, where a pod asked for it; until then, and for any other end, the note is empty."""
    if not (folder := os.environ.get(ENDS)):
        yield
        return
    note = Path(folder) / os.environ.get("RANK", "0")
    note.touch()
    try:
        yield
    except SystemExit as end:
        note.write_text(f"{end.code}")
        raise


def noted_end(folder: Path) -> int | None:
    """What the notes of a stage's processes come to: input at fault if one says so, told to stop if all do; else nothing."""
    codes = {note.read_text() for note in folder.iterdir()}
    if str(BAD_INPUT) in codes:
        return BAD_INPUT
    return STOPPED if codes == {str(STOPPED)} else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Those of one training that lie in a folder, the oldest first; one that is being written has another name."""
    return sorted(folder.glob("step-????????"))


def next_checkpoints() -> Path | None:
    """Where those of the running job's next training lie: by its turn, so that no training takes another's. None outside a job."""
    return next(_places[-1]) if _places else None


def _contract(verdict: Path) -> str:
    """Whether data keep the data contract, and the hash of the verdict that says so; empty for what was not held against it."""
    try:
        said = verdict.read_bytes()
        found = json.loads(said)
    except (OSError, ValueError):
        return ""
    if not isinstance(found, dict) or "expectations" not in found:
        return ""
    return f"{'passed' if found.get('passed') is True else 'failed'} sha256:{hashlib.sha256(said).hexdigest()}"


def source() -> dict[str, str]:
    """The code that runs, as tags: git revision and container image, where there are any."""
    return {name: value for name, value in (("git_revision", revision()), ("image", os.environ.get(IMAGE, ""))) if value}


def find(program: str, flags: dict[str, str], ports: list[str], taken: dict[str, Any], everything: dict[str, Any]) -> Job:
    """The job of a program called with `flags`, of which `ports` are inputs, on the params `taken` out of `everything`.

    It is the stage of ./dvc.yaml with that very command. Called otherwise, it is a job of its own, keyed by command, params and data.
    Raises `InputError` for a key in `everything` that no stage takes.
    """
    stages = _stages()
    if stages:
        params.check_keys(everything, {key.split(".")[0] for stage in stages for key in stage.params} | settings.ASIDE)
    inputs = _hashes([flags[name] for name in ports])
    for stage in stages:
        if stage.component == program and {**stage.inputs, **stage.outputs, **stage.words} == flags:
            from pipelines.stages import param, recipe_key

            numbers = {key: param(everything, key) for key in stage.params}
            key = os.environ.get(RECIPE) or recipe_key(stage.name, everything)
            return Job(stage.name, key, inputs, params.flat(numbers))
    recipe = json.dumps([program, flags, inputs, taken], sort_keys=True)
    return Job(program, hashlib.sha256(recipe.encode()).hexdigest()[:16], inputs, params.flat(taken))


def _stages() -> "list[Stage]":
    if not Path("dvc.yaml").exists():
        return []
    from pipelines import stages

    return stages.read(Path("dvc.yaml").read_text())


def _hashes(inputs: list[str]) -> dict[str, str]:
    """What the runner has just compared: DVC the outputs of stages, a pod all inputs; the rest, and raw data under DVC, is hashed here."""
    known = hashes.recorded(("deps",)) if in_pod() else hashes.recorded(("outs",)) if _dvc() else {}
    return {path: known[path] if path in known else hashes.dvc_hash(Path(path)) for path in inputs}


def in_pod() -> bool:
    """Whether a pod of a pipeline run started this program."""
    return bool(os.environ.get(RUN))


def repro() -> str:
    """What joins the stages of one run: the run of the pipeline, else the `dvc` process above this one, else this process."""
    if in_pod():
        return os.environ[RUN]
    process = _dvc() or psutil.Process()
    return f"{process.pid}-{process.create_time():.0f}"


def _dvc() -> psutil.Process | None:
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):  # a process that ended meanwhile, or another user's
            if any(Path(word).name == "dvc" for word in process.cmdline()[:3]):
                return process
    return None


def revision() -> str:
    """The git commit of the working folder, `-dirty` when it has edits, or that a pod was compiled from; else empty."""
    if in_pod():
        return os.environ.get(REVISION, "")
    if not Path(".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
