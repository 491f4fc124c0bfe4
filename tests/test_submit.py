"""A pipeline handed to a Kubeflow Pipelines server: which version it becomes, and what is told of its run."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl
from kfp_api import KfpApi, node, refusal, serving, settle

from pipelines import submit
from unimed.errors import InputError

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpApi]:
    settle(monkeypatch)
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.01)
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="image", command=["true"])

    @dsl.pipeline(name="uni-medvlm")
    def pipeline() -> None:
        with dsl.ExitHandler(work().set_display_name("final")):
            align = work()
            work().after(align)

    file = tmp_path_factory.mktemp("ir") / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(file))
    return file


def _submit(api: KfpApi, ir: Path, namespace: str | None = None) -> submit.Run:
    return submit.submit(ir, api.url, "rehearsals", REVISION, namespace)


def _wait(api: KfpApi, ir: Path, *course: dict) -> submit.Outcome:
    api.course = list(course)
    return submit.wait(api.url, _submit(api, ir).id)


def test_a_first_submit_makes_the_pipeline_and_one_version_of_it_and_starts_a_run(api: KfpApi, ir: Path):
    run = _submit(api, ir)
    assert [one["name"] for one in api.pipelines.values()] == ["uni-medvlm"]
    [version] = api.versions.values()
    assert version["display_name"] == run.version == submit.version_name(ir, REVISION)
    assert run.version.startswith(REVISION[:12] + "-") and REVISION in version["description"]
    assert version["pipeline_spec"] == yaml.safe_load(ir.read_text())
    [started] = api.runs.values()
    assert started["pipeline_version_reference"] == {"pipeline_id": version["pipeline_id"], "pipeline_version_id": version["version_id"]}
    assert api.experiments[started["experiment_id"]]["display_name"] == "rehearsals"
    assert run.url == f"{api.url}/#/runs/details/{run.id}"


def test_a_second_submit_of_the_same_bytes_makes_a_second_run_of_the_same_version(api: KfpApi, ir: Path):
    first, second = _submit(api, ir), _submit(api, ir)
    assert first.version == second.version and first.id != second.id
    assert (len(api.pipelines), len(api.versions), len(api.experiments), len(api.runs)) == (1, 1, 1, 2)


def test_other_bytes_at_the_same_revision_are_another_version(api: KfpApi, ir: Path, tmp_path: Path):
    (tmp_path / "other.yaml").write_text("# edited\n" + ir.read_text())
    assert _submit(api, ir).version != _submit(api, tmp_path / "other.yaml").version
    assert (len(api.pipelines), len(api.versions)) == (1, 2)


def test_two_submits_at_once_share_what_the_faster_one_made(api: KfpApi, ir: Path):
    api.before_write = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: _submit(api, ir), range(2))
    assert first.version == second.version and first.id != second.id
    assert (len(api.pipelines), len(api.versions), len(api.experiments), len(api.runs)) == (1, 1, 1, 2)
    assert api.asked.count("POST /apis/v2beta1/pipelines") == 2, "both must have tried, or this test shows nothing"


def test_a_run_is_followed_to_its_end_with_one_line_for_each_change(api: KfpApi, ir: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "submit")
    around = [node("uni-medvlm-x1", "RUNNING"), node("root", "RUNNING"), node("work-2-driver", "SUCCEEDED")]
    running = {"state": "RUNNING", "tasks": [*around, node("work-2", "RUNNING", 1)]}
    done = [*around, node("work-2", "SUCCEEDED", 1, 2), node("executor", "SKIPPED"), node("work-3", "SUCCEEDED", 3, 4)]
    outcome = _wait(api, ir, {}, {"state": "PENDING"}, running, running, {"state": "SUCCEEDED", "tasks": done})
    assert (outcome.state, outcome.code, outcome.failed, outcome.cached) == ("SUCCEEDED", 0, (), 1)
    lines = [record.getMessage().split() for record in caplog.records if record.getMessage().startswith(("work", "root", "uni"))]
    assert lines == [["work-2", "RUNNING"], ["work-2", "SUCCEEDED"], ["work-3", "SUCCEEDED"]]


def test_the_task_that_failed_first_is_named_first_and_what_surrounds_it_is_not(api: KfpApi, ir: Path):
    tasks = [
        node("uni-medvlm-x1", "FAILED", 0, 8),
        node("exit-handler-1", "FAILED", 1, 7),
        node("work-3", "FAILED", 5, 6),
        node("executor", "FAILED", 2, 4),
        node("work-2", "FAILED", 2, 4, "out of\nmemory"),
    ]
    outcome = _wait(api, ir, {"state": "FAILED", "tasks": tasks})
    assert [task.name for task in outcome.failed] == ["work-2", "work-3"]
    assert outcome.code == 1 and outcome.failed[0].error == "out of memory"
    assert (
        outcome.text.index("work-2: out of memory") < outcome.text.index("work-3: the server gives no reason") < outcome.text.index("http")
    )


def test_a_task_whose_driver_failed_is_named(api: KfpApi, ir: Path):
    tasks = [node("exit-handler-1", "FAILED", 1, 2), node("work-2-driver", "FAILED", 1, 2)]
    assert [task.name for task in _wait(api, ir, {"state": "FAILED", "tasks": tasks}).failed] == ["work-2-driver"]


def test_a_failed_task_fails_a_run_that_says_it_succeeded(api: KfpApi, ir: Path):
    outcome = _wait(api, ir, {"state": "SUCCEEDED", "tasks": [node("work-2", "FAILED", 1, 2), node("work", "SUCCEEDED", 3, 4)]})
    assert (outcome.state, outcome.code) == ("FAILED", 1)
    assert "says SUCCEEDED" in outcome.error


def test_an_attempt_that_failed_before_another_succeeded_fails_nothing(api: KfpApi, ir: Path):
    tasks = [node("executor(0)", "FAILED", 1, 2), node("executor(1)", "SUCCEEDED", 3, 4), node("work-2", "SUCCEEDED", 1, 4)]
    assert _wait(api, ir, {"state": "SUCCEEDED", "tasks": tasks}).code == 0


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_an_end_that_is_no_success_is_never_exit_code_0(api: KfpApi, ir: Path, state: str):
    outcome = _wait(api, ir, {"state": "CANCELING"}, {"state": state, "state_history": [{"state": state, "error": {"message": "why"}}]})
    assert (outcome.state, outcome.code, outcome.error) == (state, 1, "why")


def test_a_server_that_is_away_for_a_while_does_not_end_the_wait(api: KfpApi, ir: Path):
    page = (200, "<html>please log in</html>")
    api.faults["GET /apis/v2beta1/runs/r0"] = [(503, "<html>upstream</html>"), refusal(500, "database"), page, (429, "slow down"), (0, "")]
    api.faults["GET /apis/v2beta1/pipelines/p0/versions/v0"] = [(503, "")]
    assert _wait(api, ir, {"state": "RUNNING"}, {"state": "SUCCEEDED"}).code == 0


def test_a_server_that_stays_away_ends_the_wait_without_an_outcome(api: KfpApi, ir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submit, "MOST_MISSED", 3)
    run = _submit(api, ir)
    api.faults[f"GET /apis/v2beta1/runs/{run.id}"] = [(503, "")] * 3
    with pytest.raises(InputError, match=f"503.*{run.url}"):
        submit.wait(api.url, run.id)


@pytest.mark.parametrize(("fault", "said"), [(refusal(401, "expired"), "KFP_TOKEN"), (refusal(404, "Run r0 not found."), "r0 not found")])
def test_a_refusal_that_will_not_pass_ends_the_wait_at_once(api: KfpApi, ir: Path, fault: tuple, said: str):
    api.faults["GET /apis/v2beta1/runs/r0"] = [fault]
    with pytest.raises(InputError, match=said):
        _wait(api, ir, {"state": "RUNNING"})
    assert api.asked.count("GET /apis/v2beta1/runs/r0") == 1


def test_ctrl_c_leaves_the_run_running_and_says_where_it_is(
    api: KfpApi, ir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(submit, "POLL_SECONDS", 60)
    run = _submit(api, ir)
    api.course = [{"state": "RUNNING"}]
    pressed = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    pressed.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            submit.wait(api.url, run.id)
    finally:
        pressed.cancel()
        signal.signal(signal.SIGINT, before)
    assert run.url in caplog.text and not [line for line in api.asked if "terminate" in line]


@pytest.mark.parametrize("platform", ["", "---\nplatforms: {kubernetes: {}}\n"])
def test_the_pipeline_of_a_run_comes_back_as_it_was_compiled(api: KfpApi, ir: Path, tmp_path: Path, platform: str):
    (tmp_path / "pipeline.yaml").write_text(ir.read_text() + platform)
    run = _submit(api, tmp_path / "pipeline.yaml")
    assert submit.fetch(api.url, run.id) == {"spec": yaml.safe_load(ir.read_text()), "state": "SUCCEEDED"}
    assert submit.task_names(yaml.safe_load(ir.read_text())) == {"work", "work-2", "work-3"}
