"""The whole graph with the smallest numbers, by DVC and by Kubeflow's runner: raw data to a release, on phantoms and on a real sample."""

import json
import re
import shutil
from pathlib import Path

import kubeflow
import mlflow_server
import pytest
import s3
import yaml
from mlflow import MlflowClient

from conftest import ROOT, Project
from pipelines import stages

SAMPLE = ROOT.parent / "shared/data/sa-med2d-sample"
MODELS = {"unimed-align", "unimed-vqa-expert", "unimed-grounding-expert", "unimed-router", "unimed-reasoner"}
LOSS = "align / caption loss (baseline: unaligned)"
FEW = {"batch_size": 2, "max_steps": 2, "warmup_steps": 0}
STAGES = [stage.name for stage in stages.read((ROOT / "dvc.yaml").read_text())]
pytestmark = pytest.mark.slow


def run(project: Project, *command: str, **environ: str) -> str:
    """What a command prints; it must succeed."""
    done = project.run(*command, **environ)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def change(project: Project, **sections: dict) -> None:
    """Change numbers in params.yaml, each section's given ones."""
    file = project.root / "params.yaml"
    params = yaml.safe_load(file.read_text())
    for name, numbers in sections.items():
        params[name] |= numbers
    file.write_text(yaml.safe_dump(params))


def ran(output: str) -> list[str]:
    """The stages that `dvc repro` ran, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The project copied as an unpacked archive."""
    root = tmp_path_factory.mktemp("archive")
    for name in ("src", "components", "pipelines"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in (".dvc/config", ".dvcignore", "dvc.yaml", "params.yaml", "exclusions.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    copy = Project(root)
    change(
        copy,
        cluster={"by_reference_above_mb": 1},
        foundation={
            "cases": 4,
            "vision": FEW | {"learning_rate": 1e-3},
            "masks": FEW | {"learning_rate": 1e-3},
            "language": FEW | {"learning_rate": 1e-3},
        },
        **dict.fromkeys(("align", "vqa_expert", "grounding_expert", "moe_router"), FEW),
        grpo=FEW | {"cold_start": FEW | {"learning_rate": 1e-3}, "group_size": 2, "max_completion_length": 4},
        evaluate={"max_items": 3, "max_new_tokens": 4, "bootstrap_samples": 20},
    )
    return copy


@pytest.fixture(scope="module")
def demo(project) -> str:
    """What the demo prints on two dozen made-up patients."""
    return run(project, "unimed", "demo", "--cases", "24", "--slices", "2")


def test_one_command_runs_every_stage_once_and_says_where_report_and_models_are(project, demo):
    assert sorted(ran(demo)) == sorted(STAGES)
    assert str(project.root / "reports/evaluation/report.html") in demo
    assert set(re.findall(r"model +(\S+) version 1\n", demo)) == MODELS


def test_the_ladder_has_rows_of_every_training_stage_in_the_promised_form(project, demo):
    rows = json.loads((project.root / "reports/evaluation/ladder.json").read_text())
    assert all(row.keys() == {"stage", "metric", "value", "low", "high", "n", "baseline"} for row in rows)
    assert {row["stage"] for row in rows} == {"align", "vqa_expert", "grounding_expert", "moe_router", "grpo"}
    for row in rows:
        assert row["value"] is None or row["low"] <= row["value"] <= row["high"]


def test_every_stage_is_a_child_of_one_run_that_names_its_data_by_dvc_s_hash(project, demo):
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'uni-medvlm'")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(parents) == 1
    assert set(children) == set(STAGES)
    recorded = {
        out["path"]: out["md5"]
        for entry in yaml.safe_load((project.root / "dvc.lock").read_text())["stages"].values()
        for out in entry["outs"]
    }
    used = {entry.dataset.digest for entry in children["align"].inputs.dataset_inputs}
    assert recorded["data/valid/alignment"] in used
    assert children["align"].data.params["align.max_steps"] == "2"
    assert any(name.endswith("loss") for name in children["align"].data.metrics)


def test_a_second_run_does_nothing(project, demo):
    assert ran(run(project, "dvc", "repro")) == []


@pytest.fixture(scope="module")
def store():
    """An S3 service with an empty store."""
    with s3.moto() as address, s3.empty(address) as found:
        yield found


@pytest.fixture(scope="module")
def compiled(project, demo, store) -> Path:
    """The project compiled for a cluster with a store that has the raw data."""
    (project.root / "images.json").write_text(json.dumps({name: f"localhost/unimed-{name}:1" for name in ("ops", "train")}))
    for command in (
        ("dvc", "remote", "add", "--default", "store", store.url),
        ("dvc", "add", "data/raw"),
        ("dvc", "push", "data/raw.dvc"),
        ("unimed", "compile", "--raw", str(project.root / "data/raw")),
    ):
        run(project, *command, **store.environ)
    return project.root / "build/uni-medvlm.yaml"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A tracking server."""
    with mlflow_server.serving(tmp_path_factory.mktemp("mlflow")) as uri:
        yield MlflowClient(uri, uri)


@pytest.fixture(scope="module")
def on_kubeflow(project, compiled, store, server, tmp_path_factory) -> Path:
    """Where Kubeflow's runner left artifacts and logs of the compiled pipeline."""
    root = tmp_path_factory.mktemp("kubeflow")
    kubeflow.run(compiled, root, project.root, store.environ | {"MLFLOW_TRACKING_URI": server.tracking_uri})
    return root


def test_a_plan_finds_everything_here_and_nothing_in_the_store(project, compiled, store):
    said = run(project, "unimed", "plan", **store.environ)
    assert said.count("up to date") == len(STAGES)
    assert f"here 0 of {len(STAGES)} stages would run, on the cluster {len(STAGES)}" in said


def test_kubeflow_makes_the_bytes_that_dvc_makes_and_records_them_as_dvc_does(project, on_kubeflow, store):
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]
    assert set(lock) == set(STAGES)
    names = [name for name in store.names() if "/recipes/" in name]
    records = [json.loads(store.client.get_object(Bucket=s3.BUCKET, Key=name)["Body"].read()) for name in names]
    assert {record["stage"]: record["lock"] for record in records} == lock


def test_the_pods_of_a_run_are_children_of_one_parent_and_what_they_register_is_there_once(on_kubeflow, server):
    [experiment] = server.search_experiments(filter_string="name = 'uni-medvlm'")
    runs = server.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if run.info.run_name == "kubeflow run"]
    stages_run = {run.info.run_name for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(STAGES) < stages_run
    assert sorted(version.name for version in server.search_model_versions()) == sorted(MODELS)


def test_a_rejected_model_is_not_released(on_kubeflow):
    said = (on_kubeflow / "log.txt").read_text()
    assert "Task 'last-report' finished with status SUCCESS" in said
    assert "Executing task 'release'" not in said


def test_a_second_run_takes_the_stages_from_the_cache_judges_anew_and_releases_what_passes(project, on_kubeflow, compiled, store, server):
    change(project, gate={"floors": {LOSS: 0}, "ceilings": {}, "gaps": {}, "modality_floors": {}, "least_items": 1, "least_patients": 2})
    run(project, "unimed", "compile", "--raw", str(project.root / "data/raw"), **store.environ)
    said = kubeflow.run(compiled, on_kubeflow, project.root, store.environ | {"MLFLOW_TRACKING_URI": server.tracking_uri})
    assert set(re.findall(r"Executing task '([a-z-]+)'", said)) == {"importer", "gate", "release", "last-report"}
    release = server.get_model_version_by_alias("unimed-medvlm", "challenger")
    assert release.version == "1"
    assert sorted(version.name for version in server.search_model_versions()) == sorted({*MODELS, "unimed-medvlm"})


def test_a_run_on_kubeflow_is_adopted_and_pulled_into_a_fresh_copy_that_has_nothing_left_to_do(project, on_kubeflow, store, tmp_path):
    fresh = Project(tmp_path / "fresh")
    for name in ("src", "components", "pipelines"):
        shutil.copytree(project.root / name, fresh.root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvc/config", ".dvcignore", "dvc.yaml", "params.yaml", "exclusions.csv", "data/raw.dvc", "build/uni-medvlm.yaml"):
        (fresh.root / name).parent.mkdir(exist_ok=True)
        shutil.copy(project.root / name, fresh.root / name)
    assert "17 stages" in run(fresh, "unimed", "adopt", "build/uni-medvlm.yaml", **store.environ)
    run(fresh, "dvc", "pull", **store.environ)
    assert ran(run(fresh, "dvc", "repro")) == []


def test_a_changed_number_of_stage_5_runs_stage_5_and_the_evaluation_alone(project, demo):
    change(project, grpo={"temperature": 0.9})
    assert ran(run(project, "dvc", "repro")) == ["grpo", "evaluate"]


def test_an_edit_in_the_code_of_stage_5_makes_stage_5_alone_out_of_date(project, demo):
    file = project.root / "src/unimed/rl/rewards.py"
    before = file.read_text()
    file.write_text(before + "\n# edited\n")
    assert set(json.loads(run(project, "dvc", "status", "--json"))) == {"grpo"}
    file.write_text(before)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real sample is not beside the project")
def test_a_real_download_goes_through_the_same_graph_to_registered_models(project, demo):
    said = run(project, "unimed", "demo", "--raw", str(SAMPLE))
    assert set(ran(said)) == set(STAGES) - {"foundation"}
    assert set(re.findall(r"model +(\S+) version \d+\n", said)) == MODELS
    assert "mean nothing" in (project.root / "reports/evaluation/report.html").read_text()
    image = next((SAMPLE / "SAMed2Dv1/images").glob("*.png"))
    question = ("--question", "Please segment the liver in this image.", "--json")
    answer = json.loads(run(project, "unimed", "predict", "--model", "models/reasoner", "--image", str(image), *question))
    assert {use["expert"] for use in answer["router"]} == {"vqa", "grounding"}
