"""Runs and registered models: what MLflow holds after `dvc repro`, and what is kept without it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from conftest import Project, make_project
from unimed import hashes


def _client(project: Project):
    from mlflow import MlflowClient

    uri = f"sqlite:///{project.root}/mlflow.db"
    return MlflowClient(uri, uri)


def _runs(project: Project):
    """Parents and children, each oldest first."""
    client = _client(project)
    experiment = client.get_experiment_by_name("uni-medvlm").experiment_id
    runs = list(reversed(client.search_runs([experiment])))
    return [run for run in runs if "unimed.repro" in run.data.tags], [run for run in runs if "unimed.repro" not in run.data.tags]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after one `dvc repro` with tracking on."""
    project = make_project(tmp_path_factory.mktemp("tracked"))
    done = project.run("dvc", "repro")
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def second(tracked: Project, tmp_path: Path) -> Project:
    """A copy of that project to run again; making its database anew would take longer than the test."""
    shutil.copytree(tracked.root, tmp_path / "copy")
    return Project(tmp_path / "copy")


@pytest.mark.slow
def test_one_repro_is_one_parent_with_a_child_per_stage(tracked: Project):
    parents, children = _runs(tracked)
    assert [run.data.tags["stage"] for run in children] == ["first", "second"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.status for run in (*parents, *children)} == {"FINISHED"}


@pytest.mark.slow
def test_a_child_holds_params_tags_metrics_and_the_report(tracked: Project):
    child = _runs(tracked)[1][0]
    assert child.data.params == {"seed": "3", "first.rate": "0.5", "first.steps": "3"}
    assert re.fullmatch("[0-9a-f]{16}", child.data.tags["recipe_key"])
    assert child.data.tags["research_use_only"] == "true"
    history = _client(tracked).get_metric_history(child.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [file.path for file in _client(tracked).list_artifacts(child.info.run_id, "made")] == ["made/report.html"]


@pytest.mark.slow
def test_the_digest_of_an_input_is_the_hash_dvc_records(tracked: Project):
    recorded = hashes.recorded(("deps", "outs"), tracked.root)
    for run, path in zip(_runs(tracked)[1], ("data/raw", "models/first"), strict=True):
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == (path, recorded[path])
        assert len(given.dataset.digest) == 36


@pytest.mark.slow
def test_a_registered_version_holds_the_whole_output(tracked: Project):
    (version,) = _client(tracked).search_model_versions("name = 'toy-first'")
    child = _runs(tracked)[1][0]
    assert (version.run_id, version.tags["recipe_key"]) == (child.info.run_id, child.data.tags["recipe_key"])
    folder = Path(version.source.removeprefix("file://"))
    assert (folder / "weights.bin").read_text() == (tracked.root / "models/first/weights.bin").read_text()


@pytest.mark.slow
def test_the_local_file_holds_the_metrics_too(tracked: Project):
    child = _runs(tracked)[1][0]
    lines = (tracked.root / "runs" / f"first-{child.data.tags['recipe_key']}" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0, 0.5, 1 / 3]


@pytest.mark.slow
def test_a_recipe_is_registered_once_and_another_number_makes_a_second_version(second: Project):
    again = second.run("dvc", "repro", "--force", "--single-item", "first")
    assert "toy-first version 1 already comes from recipe" in again.stderr
    second.set("first: {rate: 0.5", "first: {rate: 0.25")
    second.run("dvc", "repro", "first")
    assert sorted(version.version for version in _client(second).search_model_versions("name = 'toy-first'")) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("mishap", "status"), [("defect", "FAILED"), ("term", "KILLED"), ("kill", "KILLED")])
def test_a_stage_that_does_not_finish_says_so_in_mlflow(second: Project, mishap: str, status: str):
    second.set("rate: 0.5", "rate: 0.25")
    assert second.run("dvc", "repro", MISHAP=mishap).returncode != 0
    parents, children = _runs(second)
    assert (parents[-1].info.status, children[-1].info.status) == ("FAILED", status)
    assert parents[-1].data.tags["failed_stage"] == "first"
    assert len(_client(second).search_model_versions("name = 'toy-first'")) == 1
    kept = [file.path for file in _client(second).list_artifacts(children[-1].info.run_id, "made")]
    assert kept == ([] if mishap == "kill" else ["made/report.html"])


@pytest.mark.slow
def test_a_run_that_someone_started_is_filled_and_left_open(second: Project):
    client = _client(second)
    given = client.create_run(client.create_experiment("cluster", f"file://{second.root}/cluster")).info.run_id
    done = second.run("dvc", "repro", "--force", "--single-item", "first", MLFLOW_RUN_ID=given)
    assert done.returncode == 0, done.stderr
    run = client.get_run(given)
    assert (run.info.status, run.data.params["first.rate"], run.data.metrics["loss"]) == ("RUNNING", "0.5", 1 / 3)
    assert len(_runs(second)[1]) == 2


def test_without_a_server_the_run_goes_on_with_one_warning(project: Project):
    done = project.first()
    assert done.returncode == 0
    (warning,) = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert "MLflow is not used (127.0.0.1:9 does not answer" in warning
    (metrics,) = (project.root / "runs").glob("first-*/metrics.jsonl")
    assert len(metrics.read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_broken_database_does_not_stop_the_run(project: Project):
    (project.root / "mlflow.db").write_text("this is no database " * 100)
    done = project.run("dvc", "repro", "first")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("MLflow is not used") == 1
    assert (project.root / "models/first").is_dir()
