"""The Kubeflow graph: every stage of dvc.yaml as a container component, wired by paths; after them gate, release and a last report.

Only this file and pods.py import kfp. Nothing made here is kept: the graph is compiled anew from dvc.yaml, params and the project.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, components, dsl

from pipelines import artifacts, pods
from pipelines.artifacts import PASSED
from pipelines.order import Order
from pipelines.plan import CONTROL, Plan
from pipelines.stages import Stage
from unimed.errors import InputError

NAME = "uni-medvlm"
EXECUTOR_INPUT = dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER
"""What the launcher puts in its place says where each artifact lies, and where to report on it, on a cluster and locally alike."""


def component(stage: Stage, order: Order, image: str) -> Any:
    """The stage as a KFP component: the pod's program, then the stage's own command with artifacts in place of its paths."""
    place: dict[str, Any] = {path: {"inputPath": port} for port, path in stage.inputs.items()}
    place |= {path: {"outputPath": port} for port, path in stage.outputs.items()}
    shown = [word for file in stage.meta.shows for word in ("--show", file, {"outputPath": artifacts.port(file)})]
    outcome = ["--outcome", {"outputPath": "outcome"}] if stage.name == "gate" else []
    told = ["--order", order.model_dump_json(exclude_defaults=True), "--executor-input", EXECUTOR_INPUT]
    command = ["python", "-m", "pipelines.pod", *told, "--params", {"inputValue": "params"}, *shown, *outcome, "--"]
    made = [{"name": port, "type": artifacts.kind(path)} for port, path in stage.outputs.items()]
    made += [{"name": artifacts.port(file), "type": artifacts.kind(file)} for file in stage.meta.shows]
    made += [{"name": "outcome", "type": "String"}] if outcome else []
    taken = [{"name": port, "type": artifacts.kind(path)} for port, path in stage.inputs.items()]
    spec = {
        "name": stage.name.replace("_", "-"),
        "inputs": [*taken, {"name": "params", "type": "String"}],
        "outputs": made,
        "implementation": {"container": {"image": image, "command": command + [place.get(word, word) for word in stage.command]}},
    }
    loaded = components.load_component_from_text(yaml.safe_dump(spec))
    # The sentence of a component gets lost on its way into the IR, and that of an output on its way out of YAML: it is set here.
    for port, output in (loaded.component_spec.outputs or {}).items():
        output.description = stage.desc if port in stage.outputs else None
    return loaded


def report(plan: Plan) -> Any:
    """The task that ends every run, however it went: a page that says so."""
    orders = json.dumps({"store": plan.store, "keys": plan.keys, "revision": plan.revision})

    @dsl.container_component
    def last_report(status: dsl.PipelineTaskFinalStatus, page: dsl.Output[dsl.HTML]) -> dsl.ContainerSpec:
        told = ["--orders", orders, "--executor-input", EXECUTOR_INPUT]
        command: list[Any] = ["python", "-m", "pipelines.last_report", *told, "--status", status, "--page", page.path]
        return dsl.ContainerSpec(image=plan.image(CONTROL[-1]), command=command)

    return pods.settle(last_report(), CONTROL[-1], plan.cluster).set_caching_options(False)


def add(plan: Plan, chosen: list[Stage], at: dict[str, Any]) -> dict[str, Any]:
    """Add stages as tasks that read what lies `at` each path; returns the tasks by name, and writes what they make into `at`.

    Stages with a recipe key are cached under it. Of those, data stages are tried again; training is not, since it would start all over.
    """
    tasks = {}
    for stage in chosen:
        make = component(stage, plan.order(stage), plan.image(stage))
        task = make(params=plan.taken(stage), **{port: at[path] for port, path in stage.inputs.items()})
        pods.settle(task, stage, plan.cluster)
        key = plan.keys.get(stage.name, "")
        task.set_caching_options(bool(key), cache_key=key or None)
        if key and stage.meta.image == "ops":
            task.set_retry(plan.cluster.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="300s")
        at |= {path: task.outputs[port] for port, path in stage.outputs.items()}
        tasks[stage.name] = task
    return tasks


def pipeline(plan: Plan) -> Any:
    """The graph of a plan as a KFP pipeline; its one parameter says where raw data lie, which were hashed when it was compiled."""
    seconds = int(plan.cluster.deadline_hours * 3600)
    [(raw, digest)] = plan.roots.items()
    gate, release = CONTROL

    @dsl.pipeline(
        name=NAME,
        description="Downloaded data to a released model in five training stages. For research only: not a medical device.",
        pipeline_config=dsl.PipelineConfig(active_deadline_seconds=seconds),
    )
    def uni_medvlm(raw_uri: str = address(plan)) -> None:
        with dsl.ExitHandler(report(plan), name="stages"):
            data = dsl.importer(artifact_uri=raw_uri, artifact_class=dsl.Dataset, metadata={"md5": digest})
            at = {raw: data.output}
            add(plan, plan.stages, at)
            verdict = add(plan, [gate], at)[gate.name].outputs["outcome"]
            with dsl.If(verdict == PASSED, name="passed the gate"):
                add(plan, [release], at)

    return uni_medvlm


def address(plan: Plan) -> str:
    """Where pods find the raw data: as the plan says, else the listing in the store; raises `InputError` when there is neither."""
    if plan.raw:
        return plan.raw
    if not plan.store:
        raise InputError("raw data: expected a DVC remote on S3 that holds them, or --raw, found neither; pods could not reach them")
    [digest] = plan.roots.values()
    return f"{plan.store}/files/md5/{digest[:2]}/{digest[2:]}"


def write(plan: Plan, file: Path) -> None:
    """Compile a plan to one YAML file: the pipeline's IR and, as a second document, what it asks of Kubernetes."""
    compiler.Compiler().compile(pipeline(plan), str(file))
