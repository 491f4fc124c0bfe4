"""What a TrainJob is doing until it ends: queued, pending and why, running and how far, restarting, and what made it fail."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.trainjobs import Cluster
from unimed.errors import BAD_INPUT, STOPPED

ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"
"""The label in which JobSet counts restarts."""

log = logging.getLogger("launch")


class TrainingError(RuntimeError):
    """Training on several nodes did not complete; the message says why, `code` is the exit code that says the same."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class State:
    """What a TrainJob is doing, in a line; within a phase, one line is told for each `key`."""

    phase: str
    line: str
    key: str


@dataclass(frozen=True)
class Cause:
    """Why a pod ended; `end` tells this end from others of the same pod."""

    pod: str
    end: tuple[str, int]
    text: str
    code: int


def wait(cluster: Cluster, job: dict[str, Any]) -> None:
    """Return when a TrainJob is complete, telling meanwhile what it does; raises `TrainingError` for every other end."""
    name, nodes = job["metadata"]["name"], job["spec"]["trainer"]["numNodes"]
    story = _Story(cluster, name)
    for now in cluster.follow(job):
        if now is None:
            raise TrainingError(f"TrainJob {name}: expected it to complete, found it deleted by someone else; run the stage again")
        if condition(now, "Complete"):
            log.info("%s: complete", name)
            return
        pods = cluster.pods(name)
        story.look(pods)
        if failed := condition(now, "Failed"):
            raise story.end(failed)
        story.tell(state(now, pods, cluster.complaint(now) if len(pods) < nodes else ""))


class _Story:
    """What has been told of a TrainJob: each state once, each end of a pod with the last lines it wrote."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.phase, self.told = "", set[str]()
        self.cause: Cause | None = None
        self.restarts = 0

    def tell(self, state: State) -> None:
        if state.phase != self.phase:
            self.phase, self.told = state.phase, set()
        if state.key not in self.told:
            self.told.add(state.key)
            log.info("%s: %s", self.name, state.line)

    def look(self, pods: list[Any]) -> None:
        found = cause(pods)
        if found and (self.cause is None or found.end != self.cause.end):
            self.cause = found
            log.warning("%s: %s; the last lines of %s:\n%s", self.name, found.text, found.pod, self.cluster.tail(found.pod))
        if (again := restarts(pods)) > self.restarts:
            self.restarts = again
            log.warning("%s: restarting, %d so far", self.name, again)

    def end(self, failed: dict[str, Any]) -> TrainingError:
        """The failure of a TrainJob by the pod that caused it; without one, or after its deadline, as the cluster puts it."""
        if self.cause is None or failed["reason"] == "DeadlineExceeded":
            return TrainingError(f"TrainJob {self.name} failed: {failed['reason']}: {failed['message']}")
        return TrainingError(f"TrainJob {self.name} failed: {self.cause.text}", self.cause.code)


def condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """A condition of a TrainJob that holds: Suspended, Complete or Failed."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def state(job: dict[str, Any], pods: list[Any], complaint: str) -> State:
    """Queued, pending for the reasons of its pods or the complaint about those it lacks, or running as far as it reports itself."""
    if job["spec"].get("suspend"):
        return State("queued", "queued: suspended until the cluster has room for it", "")
    nodes = job["spec"]["trainer"]["numNodes"]
    running = sum(pod.status.phase in ("Running", "Succeeded") for pod in pods)
    if running >= nodes:
        return _progress(nodes, job.get("status", {}).get("trainerStatus") or {})
    reasons = {*map(_why, pods), complaint} - {""}
    line = ": ".join([f"pending, {running} of {nodes} nodes are running", *filter(None, ["; ".join(sorted(reasons))])])
    return State("pending", line, line)


def _progress(nodes: int, reported: dict[str, Any]) -> State:
    percent, left = reported.get("progressPercentage"), reported.get("estimatedRemainingSeconds")
    parts = [
        f"running on {nodes} nodes",
        *([f"{percent} %"] if percent is not None else []),
        *([f"{left / 60:.0f} min left"] if left is not None else []),
        *(f"{metric['name']} {metric['value']}" for metric in reported.get("metrics") or []),
    ]
    return State("running", ", ".join(parts), str(percent))


def _why(pod: Any) -> str:
    """Why a pod does not run; empty when it does, or is about to."""
    for each in pod.status.conditions or []:
        if each.type == "PodScheduled" and each.status == "False":
            return f"{each.reason}: {each.message}"
    for container in pod.status.container_statuses or []:
        if (waiting := container.state.waiting) and waiting.reason not in ("ContainerCreating", "PodInitializing"):
            return f"{waiting.reason}: {waiting.message}"
    return ""


def restarts(pods: list[Any]) -> int:
    """How often pods were started again: all together by JobSet, or one in place."""
    in_place = sum(container.restart_count for pod in pods for container in pod.status.container_statuses or [])
    return max(map(_attempt, pods), default=0) + in_place


def _attempt(pod: Any) -> int:
    return int(pod.metadata.labels.get(ATTEMPT, 0))


def cause(pods: list[Any]) -> Cause | None:
    """What made the latest attempt fail: a pod that was taken away, else the first that ended; the others end for lack of it."""
    found = [(-_attempt(pod), rank, cause) for pod in pods for rank, cause in _ends(pod)]
    return min(found, key=lambda each: each[:2])[2] if found else None


def _ends(pod: Any) -> Iterator[tuple[tuple[bool, str], Cause]]:
    """Each end of a pod, with its place among the ends of one attempt."""
    name = pod.metadata.name
    for each in pod.status.conditions or []:
        if each.type == "DisruptionTarget" and each.status == "True":
            how = "preempted" if each.reason == "PreemptionByScheduler" else "evicted"
            yield (False, ""), Cause(name, (name, -1), f"{name} was {how}: {each.reason}: {each.message}", STOPPED)
            return
    for container in pod.status.container_statuses or []:
        for number, ended in enumerate((container.state.terminated, container.last_state.terminated)):
            if ended and ended.exit_code:
                end = (name, container.restart_count - number)
                yield (True, str(ended.finished_at)), Cause(name, end, _exit(pod, ended), _code(ended.exit_code))


def _exit(pod: Any, ended: Any) -> str:
    if ended.reason == "OOMKilled":
        limit = (pod.spec.containers[0].resources.limits or {}).get("memory")
        return f"{pod.metadata.name} took more than {limit} of memory (OOMKilled): raise meta.memory of the stage and cluster.most_memory"
    return f"{pod.metadata.name} ended with exit code {ended.exit_code}"


def _code(code: int) -> int:
    """The code, if its meaning is kept on the way from a node to the launcher."""
    return code if code in (STOPPED, BAD_INPUT) else 1
