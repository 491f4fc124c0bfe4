"""dvc.yaml as objects: each stage's command taken apart into ports and words, the stages in order, a recipe key for each.

One rule carries it: a path that stands in a command and in `deps` or `outs` is a port; everything else in `deps` is code.
"""

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from unimed.config import Section
from unimed.errors import InputError
from unimed.hashes import code_hash, dvc_hash, recorded

KEYS = {"desc", "cmd", "deps", "params", "outs", "meta"}
CODE = ("components/", "src/unimed/", "exclusions.csv")
QUANTITY = r"^[1-9]\d*(Mi|Gi|Ti)$"
PROGRAM = 3
"""Words of a command before its flags: python -m components.NAME."""


class Meta(Section):
    """What a cluster needs to know of a stage and DVC does not."""

    image: Literal["ops", "train"]
    """Which of the two images: docker/ops.Dockerfile or docker/train.Dockerfile."""

    memory: str = Field(pattern=QUANTITY)
    """Of a pod, as Kubernetes writes it."""

    gpus: int = Field(default=0, ge=0)
    """Of a node; with more than one, torchrun starts a process for each."""

    nodes: int = Field(default=1, ge=1)
    """That train together; more than one makes the stage a TrainJob."""

    shared_memory: str = Field(default="", pattern=f"^$|{QUANTITY}")
    """Size of /dev/shm; Kubernetes' 64 MiB when left out."""

    shows: tuple[str, ...] = ()
    """Files in the stage's outputs that the Kubeflow UI shows: HTML as a page, JSON as metrics."""


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml; `inputs`, `outputs` and `words` map a flag of its command, as a Python name, to what follows it."""

    name: str
    desc: str
    command: tuple[str, ...]
    inputs: dict[str, str]
    outputs: dict[str, str]
    words: dict[str, str]
    code: tuple[str, ...]
    params: tuple[str, ...]
    meta: Meta

    @property
    def component(self) -> str:
        """The name of its program in components/."""
        return self.command[PROGRAM - 1].removeprefix("components.")

    @classmethod
    def parse(cls, name: str, entry: dict[str, Any]) -> "Stage":
        """The stage of one entry of dvc.yaml; raises `InputError` for anything the rule above does not cover."""
        if entry.keys() != KEYS:
            raise InputError(f"dvc.yaml: stage {name} must have the keys {sorted(KEYS)}, has {sorted(entry)}")
        command = tuple(shlex.split(entry["cmd"]))
        flags = _flags(name, command)
        written = [next(iter(out)) if isinstance(out, dict) else out for out in entry["outs"]]
        read = [path for path in entry["deps"] if path in flags.values()]
        code = tuple(path for path in entry["deps"] if path not in read)
        words = {flag: word for flag, word in flags.items() if word not in read + written}
        _check_paths(name, flags, written, code, words)
        return cls(
            name=name,
            desc=entry["desc"],
            command=command,
            inputs={flag: path for flag, path in flags.items() if path in read},
            outputs={flag: path for flag, path in flags.items() if path in written},
            words=words,
            code=code,
            params=tuple(entry["params"]),
            meta=_meta(name, entry["meta"]),
        )


def _flags(name: str, command: tuple[str, ...]) -> dict[str, str]:
    """The flags of a command with what follows each, `--vqa-expert` as `vqa_expert`."""
    flags, values = command[PROGRAM::2], command[PROGRAM + 1 :: 2]
    program = command[:2] == ("python", "-m") and command[2].startswith("components.")
    if not program or len(flags) != len(values) or not all(flag.startswith("--") for flag in flags):
        raise InputError(f"dvc.yaml: stage {name} must run `python -m components.NAME --flag value ...`, runs `{shlex.join(command)}`")
    if repeated := {word for word in (*flags, *values) if command.count(word) > 1}:
        raise InputError(f"dvc.yaml: stage {name} must name each flag and path once, repeats {sorted(repeated)}")
    return {flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(flags, values, strict=True)}


def _check_paths(name: str, flags: dict[str, str], written: list[str], code: tuple[str, ...], words: dict[str, str]) -> None:
    for path in written:
        if path not in flags.values():
            raise InputError(f"dvc.yaml: stage {name} lists {path} under outs, but its command does not name it")
    for path in code:
        if not path.startswith(CODE):
            raise InputError(f"dvc.yaml: stage {name} lists {path} under deps, but its command does not name it and it is no code")
    for flag, word in words.items():
        if "/" in word:
            raise InputError(f"dvc.yaml: stage {name} has --{flag} {word} in its command, but not under deps or outs")


def _meta(name: str, entry: dict[str, Any]) -> Meta:
    try:
        return Meta.model_validate(entry)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(["meta", *map(str, fault["loc"])])
        raise InputError(f"dvc.yaml: stage {name}: {where}: {fault['msg']}, found {fault['input']!r}") from None


def read(text: str) -> list[Stage]:
    """The stages of a dvc.yaml, each after those whose outputs it reads; raises `InputError` for what cannot run on both runners."""
    if "${" in text:
        raise InputError("dvc.yaml: expected plain text, found ${...}: templates are DVC's own and no other runner reads them")
    stages = {name: Stage.parse(name, entry) for name, entry in yaml.safe_load(text)["stages"].items()}
    maker = {path: stage.name for stage in stages.values() for path in stage.outputs.values()}
    needs = {stage.name: {maker[path] for path in stage.inputs.values() if path in maker} for stage in stages.values()}
    try:
        return [stages[name] for name in TopologicalSorter(needs).static_order()]
    except CycleError as error:
        raise InputError(f"dvc.yaml: expected stages that can be put in order, found the circle {error.args[1]}") from None


def upstream(stages: list[Stage], name: str) -> list[Stage]:
    """The stage called `name` and all that it needs, in order."""
    wanted, paths = {name}, set[str]()
    for stage in reversed(stages):
        if stage.name in wanted or paths & set(stage.outputs.values()):
            wanted.add(stage.name)
            paths |= set(stage.inputs.values())
    return [stage for stage in stages if stage.name in wanted]


def param(params: dict[str, Any], key: str) -> Any:
    """The value under a dotted key such as `subsets.vqa`; raises `InputError` when there is none."""
    value: Any = params
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"params.yaml: expected a key {key}, found none")
        value = value[part]
    return value


def recipe(stage: Stage, params: dict[str, Any], sources: dict[str, str]) -> str:
    """The recipe key of a stage, 16 hex digits: of its command, numbers and image, and of a word for each path it reads or runs."""
    numbers = {key: param(params, key) for key in stage.params}
    text = json.dumps([stage.command, numbers, sources, stage.meta.image], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipes(stages: list[Stage], params: dict[str, Any], digest: Callable[[str], str]) -> dict[str, str]:
    """A key per stage that changes with its command, params or code, with root data, and with anything upstream.

    `digest` gives the hash of a path that no stage makes. Keys are known before anything runs: they hash how inputs are made.
    """
    keys: dict[str, str] = {}
    made: dict[str, str] = {}
    for stage in stages:
        keys[stage.name] = recipe(stage, params, sources(stage, made, digest))
        made |= dict.fromkeys(stage.outputs.values(), keys[stage.name])
    return keys


def sources(stage: Stage, made: dict[str, str], digest: Callable[[str], str]) -> dict[str, str]:
    """A word for each path that a stage reads or runs: the key in `made` of the stage that makes it, else its hash."""
    return {path: made[path] if path in made else digest(path) for path in (*stage.inputs.values(), *stage.code)}


def roots(stages: list[Stage]) -> list[str]:
    """The paths that stages read and none makes: raw data."""
    made = {path for stage in stages for path in stage.outputs.values()}
    return sorted({path for stage in stages for path in stage.inputs.values()} - made)


def recipe_key(name: str, params: dict[str, Any], root: Path = Path()) -> str:
    """The recipe key of one stage of the project in `root`.

    Raw data counts with the hash DVC recorded; a stage that reads raw data itself hashes it, because DVC records afterwards.
    """
    stages = read((root / "dvc.yaml").read_text())
    chain = upstream(stages, name)
    known = {} if set(roots(stages)) & set(chain[-1].inputs.values()) else recorded(("deps",), root)

    def digest(path: str) -> str:
        return code_hash(root / path) if path.startswith(CODE) else known.get(path) or dvc_hash(root / path)

    return recipes(chain, params, digest)[name]
