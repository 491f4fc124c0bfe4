"""What runs leave behind when a real MLflow server dies under them, comes back, or is told the same by two at once."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import postgres
import pytest
from mlflow_server import LOGIN, serving

from conftest import NOWHERE, wait_until
from unimed import mlflow_server, outbox, recorder, sync, tracking
from unimed.errors import InputError
from unimed.job import Job
from unimed.settings import Tracking

pytestmark = pytest.mark.slow

STEPS = 600
"""With two numbers each, more than fit into one message to MLflow."""


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """A folder of its own, and no run or server but what a test names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    Path("made").mkdir()
    Path("made/weights.bin").write_text("w")


def client(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def runs(uri: str):
    """The runs of stages."""
    experiment = client(uri).get_experiment_by_name("uni-medvlm")
    found = client(uri).search_runs([experiment.experiment_id]) if experiment else []
    return [run for run in found if "mlflow.parentRunId" in run.data.tags]


def wait_for_metrics(uri: str) -> str:
    """The id of the one run, as soon as MLflow has some of its metrics."""
    wait_until(lambda: any(run.data.metrics for run in runs(uri)), 120)
    return runs(uri)[0].info.run_id


def log(steps: range) -> None:
    for step in steps:
        tracking.log({"loss": 1 / (step + 1), "rate": 0.5}, step)


def missed(key: str = "0123456789abcdef") -> None:
    """A run that MLflow hears nothing of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        with tracking.follow(Job("grpo", key, {"data": "d" * 32}, {"rate": 0.5}), Tracking()):
            log(range(STEPS))
            tracking.log({"loss": float("nan"), "rate": float("inf")}, STEPS)
            tracking.register("unimed-reasoner", Path("made"))


def check_history(uri: str, run: str, steps: int) -> None:
    for name in ("loss", "rate"):
        history = client(uri).get_metric_history(run, name)
        assert sorted(metric.step for metric in history) == list(range(steps))


def test_a_server_that_dies_in_the_middle_of_a_run_has_all_of_it_afterwards_in_the_same_run(tmp_path, monkeypatch):
    with ExitStack() as up:
        uri = up.enter_context(serving(tmp_path))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with tracking.follow(Job("grpo", "0123456789abcdef", {}, {"rate": 0.5}), Tracking()):
            log(range(STEPS))
            begun = wait_for_metrics(uri)
            up.close()
            log(range(STEPS, 2 * STEPS))
            tracking.register("unimed-reasoner", Path("made"))
    assert len(outbox.waiting(Path("runs"))) == 1
    with serving(tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        sync.sync()
        [run] = runs(uri)
        assert (run.info.run_id, run.info.status) == (begun, "FINISHED")
        check_history(uri, begun, 2 * STEPS)
        [version] = client(uri).search_model_versions("name = 'unimed-reasoner'")
        assert version.run_id == begun
        assert sync.send(Path("runs")) == ([], [])


def test_a_run_that_mlflow_has_leaves_nothing_in_its_outbox(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.follow(Job("grpo", "0123456789abcdef"), Tracking()):
        log(range(3))
    assert not list(Path("runs").glob("*/outbox/*"))
    assert len(Path("runs/grpo-0123456789abcdef/metrics.jsonl").read_text().splitlines()) == 3


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def server(request, tmp_path_factory) -> Iterator[str]:
    """A server with a login; its password is known to this process."""
    with ExitStack() as up, pytest.MonkeyPatch.context() as patch:
        database = up.enter_context(postgres.serving()) if request.param == "postgresql" else ""
        for name, value in LOGIN.items():
            patch.setenv(name, value)
        yield up.enter_context(serving(tmp_path_factory.mktemp("server"), login=True, database=database))


def test_what_is_told_twice_is_there_once_on_either_database(server, monkeypatch):
    key = f"{abs(hash(server)):016x}"[:16]
    missed(key)
    [waiting] = outbox.waiting(Path("runs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)

    def breaking_off() -> Iterator[dict]:
        yield from itertools.islice(waiting.messages(), STEPS)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            recorder.deliver(client(server), waiting, breaking_off())
    sync.sync()
    [run] = [run for run in runs(server) if run.data.tags["recipe_key"] == key]
    assert run.info.status == "FINISHED"
    check_history(server, run.info.run_id, STEPS + 1)


def test_of_two_that_register_one_recipe_at_once_one_takes_its_version_back(server, monkeypatch):
    for _ in range(2):
        missed("f" * 16)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    both, make = threading.Barrier(2, timeout=120), mlflow_server.model

    def model(*arguments) -> None:
        both.wait()  # neither has seen a version of the other's
        make(*arguments)

    monkeypatch.setattr(mlflow_server, "model", model)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(sync._send, outbox.waiting(Path("runs"))))
    assert len(mlflow_server.tagged(client(server), "unimed-reasoner", "recipe_key", "f" * 16)) == 1
    assert len([run for run in runs(server) if run.data.tags["recipe_key"] == "f" * 16]) == 2


def test_a_wrong_password_is_one_sentence_that_holds_no_password(server, monkeypatch):
    missed()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-that-is-wrong")
    with pytest.raises(InputError) as caught:
        sync.sync()
    said = str(caught.value)
    assert "401" in said and "MLFLOW_TRACKING_PASSWORD" in said and "canary" not in said and len(said.splitlines()) == 1
    assert outbox.waiting(Path("runs"))
