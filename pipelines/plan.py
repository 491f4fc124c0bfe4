"""What a run of the pipeline consists of, gathered from the project in the working folder before anything is compiled or started."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pipelines import resources, stages
from pipelines.order import Order
from pipelines.stages import CODE, Stage
from unimed import hashes, job, params
from unimed.errors import InputError
from unimed.settings import Cluster

CONTROL = GATE, RELEASE = stages.read((Path(__file__).parent / "control.yaml").read_text())
"""What comes after the stages."""

IMAGES = Path("images.json")
LOCAL = "localhost/"
"""Images that never leave a machine have no digest."""


@dataclass(frozen=True)
class Plan:
    """All that goes into a pipeline: the stages, a key for each, params as text, images by short name, the store, raw data by path."""

    stages: list[Stage]
    keys: dict[str, str]
    text: str
    images: dict[str, str]
    store: str
    roots: dict[str, str]
    raw: str
    revision: str

    @cached_property
    def params(self) -> dict[str, Any]:
        """The params as sections."""
        return params.load(self.text)

    @cached_property
    def cluster(self) -> Cluster:
        """The section that says how Kubeflow runs the stages."""
        return params.parse("cluster", Cluster, {"cluster": {}} | self.params)

    def image(self, stage: Stage) -> str:
        """The image of a stage; raises `InputError` for one that is missing or could change under its name."""
        name = stage.meta.image
        image = self.images.get(name, "")
        if "@sha256:" in image or (image.startswith(LOCAL) and ":" in image and not image.endswith(":latest")):
            return image
        raise InputError(f"{IMAGES}: expected {name} as NAME@sha256:DIGEST, found {image!r}; `make images REGISTRY=...` writes it")

    def sources(self, stage: Stage) -> dict[str, str]:
        """A word for each input of a stage: the key of the stage that makes it, or the hash of raw data."""
        made = {path: self.keys[other.name] for other in self.stages for path in other.outputs.values()}
        return {path: made.get(path) or self.roots.get(path, "") for path in stage.inputs.values()}

    def taken(self, stage: Stage) -> str:
        """The sections of the params that a stage takes, and where runs are tracked, as text."""
        kept = {key.split(".")[0] for key in stage.params} | {"tracking"}
        return yaml.safe_dump({key: value for key, value in self.params.items() if key in kept}, sort_keys=False)

    def order(self, stage: Stage) -> Order:
        """What the stage's pod is told."""
        cluster = self.cluster
        key = self.keys.get(stage.name, "")
        return Order(
            stage=stage.name,
            revision=self.revision,
            image=self.image(stage),
            recipe=key,
            sources=self.sources(stage) if key else {},
            store=self.store,
            most_bytes=cluster.by_reference_above_mb * 2**20,
            processes=max(1, resources.gpus(stage, cluster)),
            train_job=resources.train_job(stage, cluster, self.image(stage)),
        )


def gather(root: Path, text: str, raw: str = "") -> Plan:
    """The plan of the project in `root` with these params; raises `InputError` when raw data, an image or a key is missing.

    `raw` is where pods find the raw data; left out, that is the store.
    """
    chosen = stages.read((root / "dvc.yaml").read_text())
    everything = params.load(text)
    roots = {path: raw_hash(path, root) for path in stages.roots(chosen)}
    keys = stages.recipes(chosen, everything, lambda path: code_or(roots, path, root))
    return Plan(chosen, keys, text, images(root / IMAGES), store(root), roots, raw, job.revision())


def code_or(roots: dict[str, str], path: str, root: Path) -> str:
    """The hash of code, or the one known of raw data."""
    return hashes.code_hash(root / path) if path.startswith(CODE) else roots[path]


def raw_hash(path: str, root: Path) -> str:
    """The hash of raw data: as `dvc add` wrote it, else as dvc.lock has it, else of the files themselves."""
    added = root / f"{path}.dvc"
    if added.exists():
        return str(yaml.safe_load(added.read_text())["outs"][0]["md5"])
    if known := hashes.recorded(("deps",), root).get(path):
        return known
    if (root / path).exists():
        return hashes.dvc_hash(root / path)
    raise InputError(f"{path}: expected raw data, or {path}.dvc that names them, found neither; put data there and run `dvc add {path}`")


def images(file: Path) -> dict[str, str]:
    """The images that `make images` left a note of, by short name; empty before."""
    return json.loads(file.read_text()) if file.exists() else {}


def store(root: Path) -> str:
    """The address of the DVC remote when it is on S3; empty without a remote. Raises `InputError` for a remote of another kind."""
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    name = config["core"].get("remote")
    if not name:
        return ""
    url = str(config["remote"][name]["url"]).rstrip("/")
    if not url.startswith("s3://"):
        raise InputError(f"DVC remote {name}: expected an address on S3, s3://bucket/prefix, that pods can reach, found {url}")
    return url
