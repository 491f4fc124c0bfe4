"""The Kubeflow graph: every stage of dvc.yaml as a container component, wired by paths; after them gate, release and a last report.

Only this file and pods.py import kfp. Nothing made here is kept: the graph is compiled anew from dvc.yaml, params and the project.
"""

import inspect
import json
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from pipelines import artifacts, pods
from pipelines.artifacts import OUTCOME, PASSED
from pipelines.order import Order
from pipelines.plan import GATE, RELEASE, Plan
from pipelines.stages import Stage
from unimed.errors import InputError

NAME = "uni-medvlm"
EXECUTOR_INPUT = dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER
"""What the launcher puts in its place says where each artifact lies, and where to report on it, on a cluster and locally alike."""


def component(stage: Stage, order: Order, image: str) -> Any:
    """The stage as a KFP component: the pod's program, then the stage's own command with artifacts in place of its paths."""
    types = ports(stage)

    def container(*given: Any) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image=image, command=command(stage, order, dict(zip(types, given, strict=True))))

    # KFP reads a component from a function: its name, its signature, and the sentences of outputs from its docstring.
    told = "\n".join(f"    {port}: {stage.desc}" for port in stage.outputs)
    container.__name__, container.__doc__ = stage.name, f"{stage.desc}\n\nReturns:\n{told}"
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in types.items()]
    container.__signature__ = inspect.Signature(parameters, return_annotation=dsl.ContainerSpec)  # type: ignore[attr-defined]
    return dsl.container_component(container)


def ports(stage: Stage) -> dict[str, Any]:
    """What a component takes and makes, each with its KFP type: artifacts, its params, what the UI shows, the word of a gate."""
    kinds: dict[str, Any] = {"Dataset": dsl.Dataset, "Model": dsl.Model, "Metrics": dsl.Metrics, "HTML": dsl.HTML, "Artifact": dsl.Artifact}
    types: dict[str, Any] = {port: dsl.Input[kinds[artifacts.kind(path)]] for port, path in stage.inputs.items()}
    types["params"] = str
    types |= {port: dsl.Output[kinds[artifacts.kind(path)]] for port, path in stage.outputs.items()}
    types |= {artifacts.port(file): dsl.Output[kinds[artifacts.kind(file)]] for file in stage.meta.shows}
    return types | ({OUTCOME: dsl.OutputPath(str)} if stage.name == GATE.name else {})


def command(stage: Stage, order: Order, place: dict[str, Any]) -> list[Any]:
    """The command of a container, with KFP's word for each port in `place`."""
    at = {path: place[port].path for port, path in (stage.inputs | stage.outputs).items()}
    shown = [word for file in stage.meta.shows for word in ("--show", file, place[artifacts.port(file)].path)]
    outcome = ["--outcome", place[OUTCOME]] if OUTCOME in place else []
    told = ["--order", order.model_dump_json(exclude_defaults=True), "--executor-input", EXECUTOR_INPUT, "--params", place["params"]]
    return ["python", "-m", "pipelines.pod", *told, *shown, *outcome, "--", *(at.get(word, word) for word in stage.command)]


def report(plan: Plan) -> Any:
    """The task that ends every run, however it went: a page that says so."""
    orders = json.dumps({"store": plan.store, "keys": plan.keys, "revision": plan.revision})

    @dsl.container_component
    def last_report(status: dsl.PipelineTaskFinalStatus, page: dsl.Output[dsl.HTML]) -> dsl.ContainerSpec:
        told = ["--orders", orders, "--executor-input", EXECUTOR_INPUT]
        command: list[Any] = ["python", "-m", "pipelines.last_report", *told, "--status", status, "--page", page.path]
        return dsl.ContainerSpec(image=plan.image(RELEASE), command=command)

    return pods.settle(last_report(), RELEASE, plan.cluster).set_caching_options(False)


def add(plan: Plan, chosen: list[Stage], at: dict[str, Any]) -> dict[str, Any]:
    """Add stages as tasks that read what lies `at` each path; returns the tasks by name, and writes what they make into `at`.

    Stages with a recipe key are cached under it and tried again; training only where a store keeps the checkpoints that it goes on from.
    """
    tasks = {}
    for stage in chosen:
        make = component(stage, plan.order(stage), plan.image(stage))
        task = make(params=plan.taken(stage), **{port: at[path] for port, path in stage.inputs.items()})
        pods.settle(task, stage, plan.cluster)
        key = plan.keys.get(stage.name, "")
        task.set_caching_options(bool(key), cache_key=key or None)
        if key and (plan.store or stage.meta.image == "ops"):
            task.set_retry(plan.cluster.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="300s")
        at |= {path: task.outputs[port] for port, path in stage.outputs.items()}
        tasks[stage.name] = task
    return tasks


def pipeline(plan: Plan) -> Any:
    """The graph of a plan as a KFP pipeline; its one parameter says where raw data lie, which were hashed when it was compiled."""
    seconds = int(plan.cluster.deadline_hours * 3600)
    [(raw, digest)] = plan.roots.items()

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
            verdict = add(plan, [GATE], at)[GATE.name].outputs[OUTCOME]
            with dsl.If(verdict == PASSED, name="passed the gate"):
                add(plan, [RELEASE], at)

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
