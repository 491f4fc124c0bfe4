"""What must hold of every compiled pipeline, as functions that list what is wrong, so that tests can plant mistakes and see them listed."""

import importlib
import re
from collections.abc import Iterator
from typing import Any

from pipelines import artifacts, resources
from pipelines.plan import CONTROL, Plan
from pipelines.stages import Stage
from unimed import step

LAST = "last-report"
SIDE_EFFECTS = {"gate", "release", LAST}
FILLED = re.compile(r"\{\{\$(\.(inputs|outputs)\.(artifacts|parameters)\['[A-Za-z_]+'\](\.path|\.output_file)?)?\}\}")
"""The placeholders that the launcher on a cluster fills in; it leaves others as they are."""

PINNED = re.compile(r"@sha256:[0-9a-f]{64}$|^localhost/[^:]+:(?!latest$)")


def task_name(stage: str) -> str:
    """The name of a stage's task."""
    return stage.replace("_", "-")


def tasks(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task of the graph by name, from the groups too."""
    for component in (spec["root"], *spec["components"].values()):
        yield from component.get("dag", {}).get("tasks", {}).items()


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The container of each task by name."""
    executors = spec["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items() if "container" in executor}


def signatures(stage: Stage, spec: dict[str, Any]) -> list[str]:
    """Where the component's program, dvc.yaml and the compiled component differ in what they take and make."""
    run = importlib.import_module(f"components.{stage.component}").run
    ports = step.paths(run)
    takes = {name for name, port in ports.items() if port == step.Input}
    makes = {name for name, port in ports.items() if port == step.Output}
    compiled = spec["components"].get(f"comp-{task_name(stage.name)}", {})
    ins = set(compiled.get("inputDefinitions", {}).get("artifacts", {}))
    outs = set(compiled.get("outputDefinitions", {}).get("artifacts", {})) - {artifacts.port(file) for file in stage.meta.shows}
    pairs = {
        "the program takes": (takes, stage.inputs.keys()),
        "the program makes": (makes, stage.outputs.keys()),
        "the component takes": (ins, stage.inputs.keys()),
        "the component makes": (outs, stage.outputs.keys()),
        "the program's words are": (set(step.words(run)), stage.words.keys()),
        "the program's sections are": (set(step.sections(run)), {key.split(".")[0] for key in stage.params}),
    }
    return [
        f"{stage.name}: {what} {sorted(found)}, dvc.yaml has {sorted(declared)}"
        for what, (found, declared) in pairs.items()
        if found != declared
    ]


def edges(plan: Plan, spec: dict[str, Any]) -> list[str]:
    """Arrows of dvc.yaml that the graph lacks, and arrows of the graph that dvc.yaml lacks, between the stages."""
    names = {task_name(stage.name) for stage in plan.stages}
    maker = {path: task_name(stage.name) for stage in plan.stages for path in stage.outputs.values()}
    declared = {(maker[path], task_name(stage.name), port) for stage in plan.stages for port, path in stage.inputs.items() if path in maker}
    found = {
        (source["taskOutputArtifact"]["producerTask"], name, port)
        for name, task in tasks(spec)
        for port, source in task.get("inputs", {}).get("artifacts", {}).items()
        if name in names and source.get("taskOutputArtifact", {}).get("producerTask") in names
    }
    return [f"missing {edge}" for edge in declared - found] + [f"unknown {edge}" for edge in found - declared]


def caching(plan: Plan, spec: dict[str, Any]) -> list[str]:
    """Side effects that could be answered from a cache, and stages that are not cached under their recipe key."""
    options = {name: task.get("cachingOptions", {}) for name, task in tasks(spec)}
    wrong = [f"{name} is cached" for name in SIDE_EFFECTS if options.get(name) != {}]
    wanted = {task_name(name): {"enableCache": True, "cacheKey": key} for name, key in plan.keys.items()}
    return wrong + [f"{name} has {options.get(name)}, expected {found}" for name, found in wanted.items() if options.get(name) != found]


def pods(plan: Plan, spec: dict[str, Any], platform: dict[str, Any]) -> list[str]:
    """Pods without a pinned image, a memory limit, the GPUs of their stage or a place to write, or that may run as root."""
    wrong = []
    asked = {task_name(stage.name): stage for stage in [*plan.stages, *CONTROL]}
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, container in containers(spec).items():
        stage = asked.get(name, CONTROL[-1])
        limits, pod = container.get("resources", {}), kubernetes.get(f"exec-{name}", {})
        alone = resources.train_job(stage, plan.cluster, "") is None
        wanted = resources.memory(stage, plan.cluster) if alone else "2Gi"
        gpus = str(resources.gpus(stage, plan.cluster)) if alone else "0"
        size = resources.shared_memory(stage, plan.cluster) if alone else ""
        volumes = {volume["mountPath"]: volume.get("sizeLimit") for volume in pod.get("emptyDirMounts", [])}
        wrong += [f"{name}: image {container['image']}"] * (not PINNED.search(container["image"]))
        wrong += [f"{name}: memory {limits.get('resourceMemoryLimit')}"] * (limits.get("resourceMemoryLimit") != wanted)
        wrong += [f"{name}: GPUs {limits.get('accelerator')}"] * (limits.get("accelerator", {}).get("resourceCount", "0") != gpus)
        wrong += [f"{name}: volumes {volumes}"] * (volumes != {"/tmp": None} | ({"/dev/shm": size} if size else {}))
        wrong += [f"{name}: may run as root"] * (pod.get("securityContext") != {"runAsNonRoot": True})
        strange = [word for word in container["command"] if "{{$" in word and not FILLED.fullmatch(word)]
        wrong += [f"{name}: {word} is filled in by KFP's local runner alone" for word in strange]
    deadline = platform["platforms"]["kubernetes"].get("pipelineConfig", {}).get("activeDeadlineSeconds")
    return wrong + ["the run has no deadline"] * (not deadline)
