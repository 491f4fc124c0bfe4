"""`unimed sync`: what MLflow missed while it was down is there afterwards, all of it, once, however often the sending was interrupted."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import NOWHERE
from unimed import outbox, sync, tracking
from unimed.errors import InputError
from unimed.job import Job
from unimed.settings import Tracking

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef"
LOSS = {0: 1.0, 1: math.nan, 2: 0.25}
METRICS = [(step, value) for step, value in LOSS.items() if value == value]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An empty database of MLflow's, made once: that takes longer than a test."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}", f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def back(empty, tmp_path, monkeypatch):
    """A folder of its own to work in, and an MLflow there that answers again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    shutil.copy(empty, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def client():
    from mlflow import MlflowClient

    uri = os.environ["MLFLOW_TRACKING_URI"]
    return MlflowClient(uri, uri)


def train(monkeypatch, *, key: str = KEY, weights: str = "w", stage: str = "grpo", mishap: Callable[[], None] | None = None) -> None:
    """A run as components make one, with MLflow down."""
    data, made = Path("data/valid/vqa"), Path("models/reasoner")
    for folder in (data, made):
        folder.mkdir(parents=True, exist_ok=True)
    (data / "verdict.json").write_text('{"passed": true, "expectations": []}')
    (made / "weights.bin").unlink(missing_ok=True)
    (made / "weights.bin").write_text(weights)
    (made / "report.html").write_text(f"<p>{weights}</p>")
    (made / "manifest.json").write_text(json.dumps({"files": {}, "parents": {"foundation": {"sha256": "f" * 64}}}))
    job = Job(stage, key, {str(data): "d" * 32 + ".dir"}, {"rate": 0.5, "gate.floors.vqa / accuracy (%)": 0.8})
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        patch.setenv("UNIMED_IMAGE", "registry.example/train@sha256:1")
        with tracking.follow(job, Tracking()):
            for step, value in LOSS.items():
                tracking.log({"loss": value}, step)
            if mishap:
                mishap()
            tracking.keep_reports({"made": made})
            tracking.register("unimed-reasoner", made)


def children(stage: str = "grpo"):
    found = client().search_runs([client().get_experiment_by_name("uni-medvlm").experiment_id], f"tags.stage = '{stage}'")
    return [run for run in found if "mlflow.parentRunId" in run.data.tags]


def losses(run) -> list[tuple[int, float]]:
    history = client().get_metric_history(run.info.run_id, "loss")
    assert len(history) == len(LOSS), "one of them is no number, and each is there once"
    return sorted((metric.step, metric.value) for metric in history if not math.isnan(metric.value))


def left() -> list[str]:
    return [str(path) for path in Path("runs").rglob("*") if path.is_file() and path.name != "metrics.jsonl"]


def check_all_is_there_once(status: str = "FINISHED") -> None:
    [run] = children()
    parent = client().get_run(run.data.tags["mlflow.parentRunId"])
    assert (run.info.status, parent.info.status) == (status, status)
    assert losses(run) == METRICS
    assert run.data.params == {"rate": "0.5", "gate.floors.vqa / accuracy ___": "0.8"}
    assert [(given.dataset.name, given.dataset.digest) for given in run.inputs.dataset_inputs] == [("data/valid/vqa", "d" * 32 + ".dir")]
    assert [file.path for file in client().list_artifacts(run.info.run_id, "made")] == ["made/manifest.json", "made/report.html"]
    [version] = client().search_model_versions("name = 'unimed-reasoner'")
    assert (version.run_id, (Path(version.source.removeprefix("file://")) / "weights.bin").read_text()) == (run.info.run_id, "w")
    assert len(client().search_runs([run.info.experiment_id])) == 2
    assert not left()


def test_what_mlflow_missed_is_there_afterwards_once(monkeypatch, capsys):
    train(monkeypatch)
    sync.sync()
    check_all_is_there_once()
    sync.sync()
    check_all_is_there_once()
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["sent", "1", "runs"], ["nothing", "to", "send"]]


def test_a_version_says_how_it_came_about(monkeypatch):
    train(monkeypatch)
    sync.sync()
    [version] = client().search_model_versions("name = 'unimed-reasoner'")
    tags = version.tags
    assert (tags["stage"], tags["recipe_key"], tags["image"]) == ("grpo", KEY, "registry.example/train@sha256:1")
    assert json.loads(tags["inputs"]) == {"data/valid/vqa": "d" * 32 + ".dir"}
    # sha256sum of the verdict's text
    assert json.loads(tags["contract"])["data/valid/vqa"].startswith("passed sha256:") and len(tags["manifest_sha256"]) == 64
    assert (tags["base_model_sha256"], tags["research_use_only"]) == ("f" * 64, "true")


def test_times_are_those_of_the_run_and_not_of_the_sending(monkeypatch):
    train(monkeypatch)
    [line, *_] = next(Path("runs").glob("*/outbox/*/messages.jsonl")).read_text().splitlines()
    sync.sync()
    [run] = children()
    times = [metric.timestamp for metric in client().get_metric_history(run.info.run_id, "loss")]
    assert run.info.start_time == json.loads(line)["milliseconds"] <= min(times) <= max(times) <= run.info.end_time


def test_a_sync_that_is_killed_anywhere_and_called_again_sends_all_once(monkeypatch):
    train(monkeypatch)
    kills = 0
    while _killed_at_commit(kills + 1):
        kills += 1
    check_all_is_there_once()
    assert kills > 12, "each of what is sent was the last thing a sync did"


def _killed_at_commit(number: int) -> bool:
    """Run a sync in a process that dies as it is about to write to MLflow's database for the nth time; whether it got that far."""
    import mlflow  # noqa: F401  once, here

    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    seen = 0

    def commit(_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os._exit(9)

    event.listen(Engine, "commit", commit)
    try:
        sync.send(Path("runs"))
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_what_a_killed_discard_left_over_is_removed(monkeypatch):
    train(monkeypatch)
    next(Path("runs").glob("*/outbox/*/messages.jsonl")).unlink()
    assert sync.send(Path("runs")) == ([], [])
    assert not left()


def test_a_run_that_is_going_on_is_left_alone(monkeypatch):
    seen = []
    train(monkeypatch, mishap=lambda: seen.append(sync.send(Path("runs"))))
    [(sent, waiting)] = seen
    assert (sent, len(waiting)) == ([], 1)
    sync.sync()
    check_all_is_there_once()


def test_a_run_that_was_killed_shows_as_killed_without_its_half_written_line(monkeypatch):
    train(monkeypatch)
    file = next(Path("runs").glob("*/outbox/*/messages.jsonl"))
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:10])
    sync.sync()
    [run] = children()
    assert (run.info.status, losses(run)) == ("KILLED", METRICS)


def test_a_failed_run_is_sent_as_failed(monkeypatch):
    def mishap() -> None:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        train(monkeypatch, mishap=mishap)
    sync.sync()
    [run] = children()
    parent = client().get_run(run.data.tags["mlflow.parentRunId"])
    assert (run.info.status, parent.info.status, parent.data.tags["failed_stage"]) == ("FAILED", "FAILED", "grpo")


def test_a_recipe_tried_twice_is_two_runs_and_one_version_of_the_first_files(monkeypatch):
    train(monkeypatch, weights="first")
    train(monkeypatch, weights="second")
    sync.sync()
    assert len(children()) == 2
    [version] = client().search_model_versions("name = 'unimed-reasoner'")
    assert (Path(version.source.removeprefix("file://")) / "weights.bin").read_text() == "first"


def test_runs_are_sent_in_the_order_in_which_they_began(monkeypatch):
    train(monkeypatch, key="f" * 16, weights="first", stage="z")
    train(monkeypatch, key="a" * 16, weights="second", stage="a")
    sync.sync()
    versions = client().search_model_versions("name = 'unimed-reasoner'")
    assert {int(version.version): version.tags["stage"] for version in versions} == {1: "z", 2: "a"}


def test_while_mlflow_is_down_a_sync_is_one_sentence_and_loses_nothing(monkeypatch):
    train(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        with pytest.raises(InputError, match=r"expected it to take what runs/grpo-.* holds, found: 127.0.0.1:9 does not"):
            sync.sync()
    sync.sync()
    check_all_is_there_once()


def test_in_a_pod_the_warning_says_what_is_lost(monkeypatch, caplog):
    monkeypatch.setenv("UNIMED_RUN", "run-1")
    train(monkeypatch)
    assert "what MLflow would have got goes with this pod" in caplog.text and "unimed sync" not in caplog.text


def test_on_another_disk_files_are_copied(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "file").write_text("x")
    kept = outbox.Outbox.make(tmp_path)
    assert (kept.folder / kept.hold(tmp_path / "file")).read_text() == "x"
