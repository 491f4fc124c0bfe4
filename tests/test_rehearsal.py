"""The whole graph with the smallest numbers: raw data to registered models, on phantoms and on a real sample where one lies beside it."""

import json
import re
import shutil

import pytest
import yaml

from conftest import ROOT, Project
from pipelines import stages

SAMPLE = ROOT.parent / "shared/data/sa-med2d-sample"
MODELS = {"unimed-align", "unimed-vqa-expert", "unimed-grounding-expert", "unimed-router", "unimed-reasoner"}
FEW = {"batch_size": 2, "max_steps": 2, "warmup_steps": 0}
STAGES = [stage.name for stage in stages.read((ROOT / "dvc.yaml").read_text())]
pytestmark = pytest.mark.slow


def run(project: Project, *command: str) -> str:
    """What a command prints; it must succeed."""
    done = project.run(*command)
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
    for name in (".dvc/config", ".dvcignore", "dvc.yaml", "params.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    copy = Project(root)
    change(
        copy,
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
    """What the demo prints on a dozen made-up patients."""
    return run(project, "unimed", "demo", "--cases", "12", "--slices", "2")


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
    from mlflow import MlflowClient

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
