"""The compiled pipeline is dvc.yaml, nothing more and nothing less; what must not be cached is not; nothing secret is in it."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pipeline_checks as checks
import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from conftest import ROOT
from pipelines import plan as plans
from pipelines import stages, uni_medvlm
from pipelines.plan import CONTROL, Plan
from pipelines.stages import Stage
from unimed.errors import InputError

GOLDEN = Path(__file__).parent / "golden/uni-medvlm.yaml"
STAGES = stages.read((ROOT / "dvc.yaml").read_text())
DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGES = {name: f"registry.example/unimed-{name}@{DIGEST}" for name in ("ops", "train")}
CLUSTER = {
    "most_gpus": 8,
    "most_memory": "1Ti",
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "node_selector": {"accelerator": "h200"},
}


def a_plan(chosen: list[Stage] | None = None, **cluster: Any) -> Plan:
    """A plan of the project's own stages whose keys and numbers never change."""
    chosen = STAGES if chosen is None else chosen
    sections = {key.split(".")[0]: "its numbers" for stage in [*chosen, *CONTROL] for key in stage.params}
    text = yaml.safe_dump({**sections, "tracking": {"uri": "sqlite:///mlflow.db"}, "cluster": {**CLUSTER, **cluster}})
    keys = {stage.name: f"key-of-{stage.name}" for stage in chosen}
    return Plan(chosen, keys, text, IMAGES, "s3://bucket/store", {"data/raw": "0" * 32 + ".dir"}, "", "0123456789ab")


def compiled(plan: Plan, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The IR of a plan and what it asks of Kubernetes."""
    uni_medvlm.write(plan, folder / "pipeline.yaml")
    spec, platform = yaml.safe_load_all((folder / "pipeline.yaml").read_text())
    return spec, platform


def parsed(text: str) -> tuple[Any, Any]:
    """IR and platform of a compiled file as protobuf, every field known; the version of the compiler does not count."""
    spec, platform = yaml.safe_load_all(text)
    spec["sdkVersion"] = ""
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    pods = {name: json_format.ParseDict(pod, kubernetes_executor_config_pb2.KubernetesExecutorConfig()) for name, pod in executors.items()}
    return json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec()), pods


@pytest.fixture(scope="module")
def plan() -> Plan:
    """The plan that most tests look at: a cluster large enough for every stage."""
    return a_plan()


@pytest.fixture(scope="module")
def pipeline(plan, tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any]]:
    """That plan compiled."""
    return compiled(plan, tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize("stage", [*STAGES, *CONTROL], ids=lambda stage: stage.name)
def test_program_declaration_and_component_take_and_make_the_same(stage: Stage, pipeline):
    assert checks.signatures(stage, pipeline[0]) == []


def test_the_graph_has_the_arrows_of_dvc_yaml(plan, pipeline):
    assert checks.edges(plan, pipeline[0]) == []


def test_stages_are_cached_under_their_recipe_and_side_effects_never(plan, pipeline):
    assert checks.caching(plan, pipeline[0]) == []


def test_every_pod_has_what_its_stage_asks_for_and_no_more_rights_than_it_needs(plan, pipeline):
    assert checks.pods(plan, *pipeline) == []


@pytest.mark.parametrize("store", ["s3://bucket/store", ""])
def test_stages_are_tried_again_and_training_only_where_a_store_keeps_its_checkpoints(tmp_path, store):
    spec, _ = compiled(replace(a_plan(), store=store, raw="s3://elsewhere/raw"), tmp_path)
    again = {name for name, task in checks.tasks(spec) if "retryPolicy" in task}
    assert again == {checks.task_name(stage.name) for stage in STAGES if store or stage.meta.image == "ops"}


def test_a_release_waits_for_the_gate_s_word_and_a_report_for_the_end_of_everything(pipeline):
    every = dict(checks.tasks(pipeline[0]))
    [condition] = [task for task in every.values() if "condition" in task.get("triggerPolicy", {})]
    assert condition["triggerPolicy"]["condition"].endswith("== 'passed'")
    assert condition["dependentTasks"][0] == "gate" or "gate" in condition["dependentTasks"]
    assert every["last-report"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_the_ui_gets_pages_metrics_datasets_and_models(pipeline):
    kinds = {
        f"{name.removeprefix('comp-')}.{port}": made["artifactType"]["schemaTitle"].removeprefix("system.")
        for name, component in pipeline[0]["components"].items()
        for port, made in component.get("outputDefinitions", {}).get("artifacts", {}).items()
    }
    assert kinds["evaluate.ladder_json"] == "Metrics"
    assert {kinds[name] for name in ("evaluate.report_html", "validate-vqa.report_html", "gate.report_html", "last-report.page")} == {
        "HTML"
    }
    assert kinds["subset-vqa.subset"] == "Dataset"
    assert kinds["grpo.reasoner"] == "Model"


def test_every_component_says_what_it_does_in_a_sentence(pipeline):
    for stage in [*STAGES, *CONTROL]:
        outs = pipeline[0]["components"][f"comp-{checks.task_name(stage.name)}"]["outputDefinitions"]["artifacts"]
        assert all(outs[port]["description"] == stage.desc for port in stage.outputs)
        assert stage.desc.endswith(".")


def planted(plan: Plan, pipeline: tuple[dict, dict], mistake: str) -> list[str]:
    """What the checks above say of a pipeline with a mistake in it."""
    spec, platform = copy.deepcopy(pipeline)
    align = next(stage for stage in STAGES if stage.name == "align")
    match mistake:
        case "renamed flag":
            return checks.signatures(replace(align, inputs={"captions": "data/valid/alignment"}), spec)
        case "dropped dep":
            del spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]["align"]["inputs"]["artifacts"]["foundation"]
            return checks.edges(plan, spec)
        case "cached gate":
            spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]["gate"]["cachingOptions"] = {"enableCache": True}
            return checks.caching(plan, spec)
        case "cached under another key":
            spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]["align"]["cachingOptions"]["cacheKey"] = "another"
            return checks.caching(plan, spec)
        case "missing memory":
            del spec["deploymentSpec"]["executors"]["exec-align"]["container"]["resources"]["resourceMemoryLimit"]
        case "missing gpus":
            del spec["deploymentSpec"]["executors"]["exec-align"]["container"]["resources"]["accelerator"]
        case "unpinned image":
            spec["deploymentSpec"]["executors"]["exec-align"]["container"]["image"] = "registry.example/unimed-train:latest"
        case "root":
            del platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-align"]["securityContext"]
        case "a placeholder of the local runner":
            spec["deploymentSpec"]["executors"]["exec-align"]["container"]["command"].append("{{$.pipeline_job_uuid}}")
        case "no deadline":
            del platform["platforms"]["kubernetes"]["pipelineConfig"]
    return checks.pods(plan, spec, platform)


@pytest.mark.parametrize(
    "mistake",
    ["renamed flag", "dropped dep", "cached gate", "cached under another key", "missing memory", "missing gpus", "unpinned image", "root",
     "a placeholder of the local runner", "no deadline"],
)  # fmt: skip
def test_a_planted_mistake_is_found(plan, pipeline, mistake):
    assert len(planted(plan, pipeline, mistake)) >= 1


def test_the_pipeline_is_the_golden_one(plan, pipeline, tmp_path):
    """After a change that is meant: UPDATE_GOLDEN=1 pytest tests/test_pipeline.py, and read the difference."""
    uni_medvlm.write(plan, tmp_path / "pipeline.yaml")
    text = (tmp_path / "pipeline.yaml").read_text()
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert parsed(text) == parsed(GOLDEN.read_text())


def test_no_secret_of_the_environment_gets_into_the_pipeline(plan, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME", "KFP_TOKEN"):
        monkeypatch.setenv(name, f"canary-{name}")
    uni_medvlm.write(plan, tmp_path / "pipeline.yaml")
    assert "canary" not in (tmp_path / "pipeline.yaml").read_text()


def test_as_shipped_nothing_asks_for_a_gpu(tmp_path):
    plan = a_plan(most_gpus=0, most_memory="8Gi")
    spec, platform = compiled(plan, tmp_path)
    assert checks.pods(plan, spec, platform) == []
    assert "accelerator" not in json.dumps(spec)


def test_a_stage_on_several_nodes_waits_in_a_small_pod_for_a_train_job(tmp_path):
    many = [replace(stage, meta=stage.meta.model_copy(update={"nodes": 2})) if stage.name == "align" else stage for stage in STAGES]
    plan = a_plan(many)
    spec, platform = compiled(plan, tmp_path)
    assert checks.pods(plan, spec, platform) == []
    command = checks.containers(spec)["align"]["command"]
    machines = json.loads(command[command.index("--order") + 1])["train_job"]
    assert (machines["nodes"], machines["gpus"], machines["memory"], machines["image"]) == (2, 4, "128Gi", IMAGES["train"])


@pytest.mark.parametrize("image", ["", "registry.example/unimed-ops", "registry.example/unimed-ops:1.0", "localhost/unimed-ops:latest"])
def test_an_image_that_could_change_under_its_name_is_refused_with_the_remedy(image, tmp_path):
    with pytest.raises(InputError, match=r"expected ops as NAME@sha256:DIGEST, found .*make images REGISTRY"):
        compiled(replace(a_plan(), images={**IMAGES, "ops": image}), tmp_path)


def test_without_a_store_raw_data_must_be_named(tmp_path):
    with pytest.raises(InputError, match="expected a DVC remote on S3 that holds them, or --raw"):
        compiled(replace(a_plan(), store=""), tmp_path)
    spec, _ = compiled(replace(a_plan(), store="", raw="s3://elsewhere/raw"), tmp_path)
    assert spec["root"]["inputDefinitions"]["parameters"]["raw_uri"]["defaultValue"] == "s3://elsewhere/raw"


@pytest.mark.parametrize(("text", "word"), [("", ""), ("[core]\n    remote = r\n['remote \"r\"']\n    url = s3://b/p/\n", "s3://b/p")])
def test_the_store_is_the_default_dvc_remote(text, word, tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(text)
    assert plans.store(tmp_path) == word


def test_a_remote_that_pods_cannot_reach_is_refused(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    remote = r\n['remote \"r\"']\n    url = ../elsewhere\n")
    with pytest.raises(InputError, match="DVC remote r: expected an address on S3"):
        plans.store(tmp_path)
