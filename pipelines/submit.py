"""Hands a compiled pipeline to a Kubeflow Pipelines server, starts a run of it and follows the run to its true outcome.

Talks through the generated client that kfp.Client wraps, not through kfp.Client: that one asks a server that refuses it for 25 seconds,
with a stack trace each time, prints, and sends the cookie it finds in a file in the home folder. Reads from the environment: KFP_TOKEN,
a bearer token; without it KF_PIPELINES_SA_TOKEN_PATH, a file with one that may be renewed meanwhile, as pods have; SSL_CERT_FILE, the
certificates to trust; KF_PIPELINES_UI_ENDPOINT, where the UI is if not at the API's address.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import kfp_server_api as kfp
import yaml

from pipelines.kfp_server import RefusalError, Server
from unimed.errors import InputError

POLL_SECONDS = 5.0
MOST_MISSED = 30
"""Failed attempts in a row to read a run before the wait is given up: a few minutes, such as an upgrade of the server takes."""

FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
ATTEMPT = re.compile(r"\(\d+\)$")
"""How Argo names one attempt of several at a task; whether the task failed stands at the task."""

T = TypeVar("T")

logger = logging.getLogger("submit")


@dataclass(frozen=True)
class Run:
    """A started run: its id, its page in the UI, and the name of the pipeline version it runs."""

    id: str
    url: str
    version: str


@dataclass(frozen=True)
class FailedTask:
    """A task that failed, with the reason where the server gives one."""

    name: str
    error: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended, by the rule that a run with a failed task in it has failed.

    `failed` is in the order in which the tasks failed, so that the first is the cause of the others; `cached` counts tasks.
    """

    state: str
    error: str
    failed: tuple[FailedTask, ...]
    cached: int
    url: str

    @property
    def code(self) -> int:
        """The exit code: 0 for a run that succeeded with every task in it, else 1."""
        return 0 if self.state == "SUCCEEDED" else 1

    @property
    def text(self) -> str:
        """What to tell the user: the state, what failed first and why, and where to look."""
        lines = [f"run {self.state.lower()}" + (f", {self.cached} of its tasks from the cache" if self.cached else "")]
        lines += [f"error    {self.error}"] * bool(self.error)
        lines += [
            f"failed   {task.name}: {task.error or 'the server gives no reason; it stands in the log of the task'}" for task in self.failed
        ]
        return "\n".join([*lines, f"see      {self.url}"])


def submit(ir: Path, host: str, experiment: str, revision: str, namespace: str | None = None, account: str = "") -> Run:
    """Start a run of the pipeline in `ir`, uploading it first unless the server has this version of it already.

    `namespace` is needed where Kubeflow serves several users, and means nothing elsewhere; the run goes under the service account
    `account`, Kubeflow's own when left out. Raises `InputError` with the remedy.
    """
    name, version = _pipeline_name(ir), version_name(ir, revision)
    server = Server(host)
    namespace = _namespace(server, namespace)
    pipeline_id = _found_or_made(lambda: server.pipeline_id(name, namespace), lambda: server.make_pipeline(name, namespace))
    version_id = _found_or_made(
        lambda: server.version_id(pipeline_id, version),
        lambda: server.upload(pipeline_id, version, ir, f"git revision {revision or 'unknown'}"),
    )
    experiment_id = _found_or_made(
        lambda: server.experiment_id(experiment, namespace), lambda: server.make_experiment(experiment, namespace)
    )
    title = f"{name} {version} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    run_id = server.start(title, pipeline_id, version_id, experiment_id, account)
    logger.info("run of version %s: %s", version, server.url(run_id))
    return Run(run_id, server.url(run_id), version)


def version_name(ir: Path, revision: str) -> str:
    """The name of a pipeline version, from the git revision and the bytes of the pipeline: the same pipeline has the same name."""
    return f"{(revision or 'unversioned')[:12]}-{hashlib.sha256(ir.read_bytes()).hexdigest()[:8]}"


def wait(host: str, run_id: str) -> Outcome:
    """Follow a run until it has ended, with a line in the log for every change of a task's state. Ctrl-C leaves the run running."""
    server = Server(host)
    shown: dict[str, str] = {}
    try:
        run = _patiently(server, run_id, lambda: server.run(run_id))
        names = task_names(_patiently(server, run_id, lambda: server.spec(run)))
        while True:
            _tell(run, names, shown)
            if run.state in FINAL:
                return _outcome(run, names, server.url(run_id))
            time.sleep(POLL_SECONDS)
            run = _patiently(server, run_id, lambda: server.run(run_id))
    except KeyboardInterrupt:
        logger.warning("no longer waiting; the run goes on: %s", server.url(run_id))
        raise


def fetch(host: str, run_id: str) -> dict[str, Any]:
    """The pipeline of a run as `spec`, parsed IR, and as `state` how it stands, by the same rule as in `wait`."""
    server = Server(host)
    server.check()
    run = server.run(run_id)
    spec = server.spec(run)
    return {"spec": spec, "state": _outcome(run, task_names(spec), server.url(run_id)).state}


def task_names(spec: dict[str, Any]) -> set[str]:
    """The tasks of a pipeline that run something themselves, in whatever group they stand."""
    components = spec.get("components", {})
    graphs = [holder["dag"] for holder in (spec["root"], *components.values()) if "dag" in holder]
    tasks = [(name, task["componentRef"]["name"]) for graph in graphs for name, task in graph.get("tasks", {}).items()]
    return {name for name, component in tasks if "dag" not in components[component]}


def _pipeline_name(ir: Path) -> str:
    if not ir.is_file():
        raise InputError(f"{ir}: expected a compiled pipeline, found no file; run `make compile`")
    try:
        return next(iter(yaml.safe_load_all(ir.read_text())))["pipelineInfo"]["name"]
    except (yaml.YAMLError, UnicodeDecodeError, StopIteration, KeyError, TypeError):
        raise InputError(f"{ir}: expected a compiled pipeline with pipelineInfo.name, found something else; run `make compile`") from None


def _namespace(server: Server, namespace: str | None) -> str | None:
    if not server.check():
        return None  # a server for one user refuses requests that name a namespace
    if namespace is None:
        raise InputError(
            f"{server.host}: expected a namespace, as this server keeps pipelines by namespace, found none; give yours with --namespace"
        )
    return namespace


def _found_or_made(find: Callable[[], str | None], make: Callable[[], str]) -> str:
    """The id of something by its name; made where it is missing, and looked up again where somebody else has made it meanwhile."""
    if found := find():
        return found
    try:
        return make()
    except RefusalError as refused:
        if refused.status == 409 and (found := find()):
            return found
        raise


def _patiently(server: Server, run_id: str, read: Callable[[], T]) -> T:
    """What `read` returns; passing troubles are waited out, up to MOST_MISSED in a row."""
    for missed in range(1, MOST_MISSED + 1):
        try:
            return read()
        except RefusalError as refused:
            if not refused.is_passing or missed == MOST_MISSED:
                raise InputError(f"{refused}, and see how the run goes on at {server.url(run_id)}") from None
            if missed == 2:  # once is a connection that was closed while nobody used it
                logger.warning("%s (trying again)", refused)
        time.sleep(POLL_SECONDS)
    raise AssertionError


def _details(run: kfp.V2beta1Run) -> list[kfp.V2beta1PipelineTaskDetail]:
    return (run.run_details and run.run_details.task_details) or []


def _tell(run: kfp.V2beta1Run, names: set[str], shown: dict[str, str]) -> None:
    """Log what has changed since the last time; what Kubeflow adds around the tasks stays out."""
    for task in sorted(_details(run), key=_began):
        state, key = str(task.state), str(task.task_id)
        if task.display_name in names and state in (*FINAL, "RUNNING", "PENDING") and shown.get(key) != state:
            shown[key] = state
            logger.info("%-24s %s", task.display_name, state)


def _outcome(run: kfp.V2beta1Run, names: set[str], url: str) -> Outcome:
    """What a run came to. One with a failed task has failed even if it says otherwise, as runs with an exit handler once did."""
    failed = _failed(run, names)
    state, error = run.state or "PENDING", _reason(run)
    if failed and state == "SUCCEEDED":
        state, error = "FAILED", error or "the run says SUCCEEDED though a task failed"
    # The pod of a cached task is the one thing that is skipped inside of it: so backend/src/v2/compiler/argocompiler of KFP 2.17.
    cached = sum(task.display_name == "executor" and task.state == "SKIPPED" for task in _details(run))
    return Outcome(state, error, tuple(FailedTask(str(task.display_name), _reason(task)) for task in failed), cached, url)


def _failed(run: kfp.V2beta1Run, names: set[str]) -> list[kfp.V2beta1PipelineTaskDetail]:
    """Failed tasks by the time at which they failed; what surrounds them, failed because they have, only when there is no other."""
    every = [task for task in _details(run) if task.state == "FAILED" and not ATTEMPT.search(task.display_name or "")]
    every.sort(key=lambda task: (task.end_time or datetime.max.replace(tzinfo=UTC), -_began(task).timestamp()))
    return [task for task in every if (task.display_name or "").removesuffix("-driver") in names] or every


def _began(task: kfp.V2beta1PipelineTaskDetail) -> datetime:
    return task.start_time or task.create_time or datetime.fromtimestamp(0, UTC)


def _reason(thing: kfp.V2beta1Run | kfp.V2beta1PipelineTaskDetail) -> str:
    """The error of a run or task, wherever the server put it."""
    errors = [thing.error, *(status.error for status in reversed(thing.state_history or []))]
    return next((" ".join(error.message.split()) for error in errors if error and error.message), "")
