"""A TrainJob that is waited for: what is told of it, and what is blamed for its failure."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_api import KubernetesApi, pod, status
from launching import NAME, ends, impatient, run

from pipelines import trainjobs
from pipelines.watch import TrainingError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]
PODS = (f"{NAME}-node-0-0-abcde", f"{NAME}-node-0-1-fghij")
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/6 nodes: 6 Insufficient GPU",
}
PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempting for a more urgent pod"}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """A cluster to launch in."""
    yield from impatient(tmp_path, monkeypatch)


def told(log: pytest.LogCaptureFixture) -> list[str]:
    """What a user read, without the name in front."""
    return [record.getMessage().removeprefix(f"{NAME}: ") for record in log.records]


def pods(api: KubernetesApi, *states: dict[str, Any]) -> Callable[[], None]:
    """Both pods take on states; the TrainJob says nothing of it."""
    return lambda: api.pods.update({name: pod(name, NAME, **state) for name, state in zip(PODS, states, strict=False)})


def ended(code: int, minute: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": f"2026-01-01T00:{minute:02}:00Z"}}


def waiting(reason: str, message: str) -> dict[str, Any]:
    return {"phase": "Pending", "state": {"waiting": {"reason": reason, "message": message}}}


def suspend(api: KubernetesApi, value: bool) -> None:
    job = api.jobs[NAME]
    api.put({**job, "spec": {**job["spec"], "suspend": value}})


def reports(api: KubernetesApi, percent: int, loss: str) -> None:
    metrics = [{"name": "loss", "value": loss}]
    api.update(NAME, trainerStatus={"progressPercentage": percent, "estimatedRemainingSeconds": 600, "metrics": metrics})


def test_a_training_is_told_from_queue_to_end_and_no_state_twice(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    nothing = [lambda: None] * 3
    run(
        api,
        lambda: suspend(api, True),
        *nothing,
        lambda: suspend(api, False),
        pods(api, {}, {"phase": "Pending", "conditions": [UNSCHEDULABLE]}),
        *nothing,
        pods(api, {}, {}),
        *nothing,
        lambda: reports(api, 10, "2.5"),
        lambda: reports(api, 10, "2.4"),
        lambda: reports(api, 20, "1.5"),
        ends(api),
    )
    assert told(caplog) == [
        "made, for 2 machines",
        "pending, 0 of 2 nodes are running",
        "queued: suspended until the cluster has room for it",
        "pending, 0 of 2 nodes are running",
        "pending, 1 of 2 nodes are running: Unschedulable: 0/6 nodes: 6 Insufficient GPU",
        "running on 2 nodes",
        "running on 2 nodes, 10 %, 10 min left, loss 2.5",
        "running on 2 nodes, 20 %, 10 min left, loss 1.5",
        "complete",
    ]


def test_a_long_queue_ends_nothing(api: KubernetesApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(trainjobs, "LOOK_AGAIN_S", 0.01)
    run(api, lambda: suspend(api, True), *[lambda: None] * 60, lambda: suspend(api, False), ends(api))
    assert told(caplog).count("queued: suspended until the cluster has room for it") == 1
    assert "delete" not in api.asked


def test_an_image_that_cannot_be_pulled_is_said_once_however_kubernetes_puts_it(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    tries = [waiting("ErrImagePull", "not found"), waiting("ImagePullBackOff", "Back-off pulling image"), waiting("ContainerCreating", "")]
    run(api, *[pods(api, state) for state in tries * 3], ends(api))
    assert sum("ErrImagePull: not found" in line for line in told(caplog)) == 1
    assert sum("ImagePullBackOff: Back-off pulling image" in line for line in told(caplog)) == 1
    assert "ContainerCreating" not in caplog.text


def test_pods_that_a_quota_keeps_from_being_made_are_explained_and_old_complaints_are_not(
    api: KubernetesApi, caplog: pytest.LogCaptureFixture
):
    def complains(name: str, message: str, when: str) -> None:
        about = {"involvedObject": {"name": name}, "message": message, "lastTimestamp": when, "type": "Warning"}
        api.events.append({"metadata": {}, **about})

    complains(f"{NAME}-node-0", "a failure of last year", "2020-01-01T00:00:00Z")
    complains("another", "not ours", "2099-01-01T00:00:00Z")
    run(
        api,
        lambda: None,
        lambda: complains(f"{NAME}-node-0", "exceeded quota: unimed, requested: pods=1", "2099-01-01T00:00:00Z"),
        ends(api),
    )
    assert "pending, 0 of 2 nodes are running: exceeded quota: unimed, requested: pods=1" in told(caplog)
    assert "last year" not in caplog.text
    assert "not ours" not in caplog.text


FAILURES = {
    "memory": (
        [{"state": ended(137, 1, "OOMKilled")}, {"state": ended(1, 2)}],
        "-0-0-abcde took more than 4Gi of memory .OOMKilled.*raise",
        1,
    ),
    "defect": ([{"state": ended(143, 9)}, {"state": ended(1, 2)}], "-0-1-fghij ended with exit code 1", 1),
    "input": ([{"state": ended(78, 1)}, {"state": ended(143, 2)}], "-0-0-abcde ended with exit code 78", 78),
    "preempted": ([{"state": ended(1, 1)}, {"conditions": [PREEMPTED]}], "-0-1-fghij was preempted: .* more urgent pod", 75),
    "evicted": ([{"conditions": [PREEMPTED | {"reason": "EvictionByEvictionAPI"}]}, {}], "-0-0-abcde was evicted", 75),
    "nothing known": ([], "FailedJobs: jobset failed", 1),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_names_what_came_first(api: KubernetesApi, caplog: pytest.LogCaptureFixture, case: str):
    states, cause, code = FAILURES[case]
    api.logs.update(dict.fromkeys(PODS, "".join(f"line {number}\n" for number in range(100))))
    with pytest.raises(TrainingError, match=f"{NAME} failed: .*{cause}") as error:
        run(api, pods(api, *[{"phase": "Failed", **state} for state in states]), ends(api, type="Failed"))
    assert error.value.code == code
    assert [number for number in (69, 70, 99) if f"line {number}\n" in caplog.text] == ([70, 99] if states else [])
    assert sum("last lines" in line for line in told(caplog)) == bool(states)
    assert NAME in api.jobs, "what failed can be looked at until it is made anew"


def test_a_cause_seen_once_is_kept_when_its_pods_are_gone(api: KubernetesApi):
    failing = pods(api, {"phase": "Failed", "state": ended(137, 1, "OOMKilled")}, {})
    with pytest.raises(TrainingError, match="OOMKilled"):
        run(api, failing, api.pods.clear, ends(api, type="Failed"))


def test_a_log_that_cannot_be_read_hides_no_cause(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    api.fail("log", status(403, "pods/log is forbidden"))
    with pytest.raises(TrainingError, match="exit code 3"):
        run(api, pods(api, {"phase": "Failed", "state": ended(3, 1)}), ends(api, type="Failed"))
    assert "(its log cannot be read: pods/log is forbidden)" in caplog.text


def test_a_deadline_is_not_blamed_on_a_pod(api: KubernetesApi):
    late = ends(api, type="Failed", reason="DeadlineExceeded", message="TrainJob exceeded its deadline")
    with pytest.raises(TrainingError, match="DeadlineExceeded: TrainJob exceeded its deadline"):
        run(api, pods(api, {"state": ended(143, 1)}), late)


def test_restarts_are_counted_and_explained(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    run(
        api,
        pods(api, {"phase": "Failed", "conditions": [PREEMPTED]}, {}),
        pods(api, {"attempt": 1}, {"attempt": 1}),
        pods(api, {"attempt": 1, "again": 1, "lastState": ended(5, 7)}, {"attempt": 1}),
        ends(api),
    )
    assert [line for line in told(caplog) if "restart" in line] == ["restarting, 1 so far", "restarting, 2 so far"]
    assert "was preempted" in caplog.text
    assert "ended with exit code 5" in caplog.text
