"""Where the things that a release was made of are kept: MLflow's registry, the working folder, and dvc.lock, which says what made them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from unimed import mlflow_server, recorder
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.params import flat
from unimed.release import fetch
from unimed.release.parts import REGISTERED
from unimed.settings import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

SCHEME = "models:/"
"""How addresses of registered models begin."""

MODELS, DATA = Path("models"), Path("data")
"""Folders of the working folder that stages write to."""


@dataclass(frozen=True)
class Kept:
    """One thing in one place: a folder with at least its manifest, None when it is not here, and what was recorded of its making."""

    place: str
    folder: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    params: Mapping[str, str] = field(default_factory=dict)


class Lock:
    """What dvc.lock says: which stage made a path with just this hash, from what."""

    def __init__(self, root: Path):
        path = root / "dvc.lock"
        self.stages: dict[str, Any] = (yaml.safe_load(path.read_text()) or {}).get("stages", {}) if path.is_file() else {}

    def maker(self, path: Path, digest: str) -> tuple[str, dict[str, Any]]:
        """Name and entry of the stage that made the path with this hash; empty when the lock is about another, or about none."""
        for name, entry in self.stages.items():
            if any(out["path"] == path.as_posix() and out["md5"] == digest for out in entry.get("outs", [])):
                return name, entry
        return "", {}

    def source(self, path: Path, digest: str, among: Path) -> str:
        """The hash of the input `among` that the path with this hash was made from, at whatever remove; empty when unknown."""
        _, entry = self.maker(path, digest)
        known = {dep["path"]: dep["md5"] for dep in entry.get("deps", []) if "md5" in dep}
        if among.as_posix() in known:
            return known[among.as_posix()]
        further = (self.source(Path(dep), known[dep], among) for dep in known)
        return next((found for found in further if found), "")

    def params(self, path: Path, digest: str) -> dict[str, str]:
        """The params that the path with this hash was made under."""
        _, entry = self.maker(path, digest)
        return {key: str(value) for numbers in entry.get("params", {}).values() for key, value in flat(numbers).items()}


class WorkingFolder:
    """The working folder, as stages leave it."""

    def __init__(self, root: Path):
        self.root, self.lock = root, Lock(root)

    def part(self, name: str, record: Mapping[str, str], is_whole: bool) -> Kept:
        """The folder of a part, whichever model lies in it; `is_whole` changes nothing here."""
        place = MODELS / name
        folder = self.root / place if (self.root / place / artifacts.MANIFEST).is_file() else None
        return Kept(place.as_posix(), folder, params=self.lock.params(place, record.get("dvc", "")))


class Registry:
    """MLflow's registry: versions, their files, and the runs that made them. What is registered nowhere lies in the working folder."""

    def __init__(self, client: "MlflowClient", cache: Path, working: WorkingFolder, numbers: Mapping[str, str]):
        self.client, self.cache, self.working, self.numbers = client, cache, working, numbers

    def part(self, name: str, record: Mapping[str, str], is_whole: bool) -> Kept:
        """The registered version of a part: the one that the release names, else the first with its hash; whole or only its manifest."""
        if name not in REGISTERED:
            return self.working.part(name, record, is_whole)
        version = self._version(REGISTERED[name], record["manifest_sha256"])
        if version is None:
            return Kept(f"{REGISTERED[name]} version {self.numbers.get(REGISTERED[name], 'unknown')}")
        run = self.client.get_run(version.run_id) if version.run_id else None
        folder = download(self.client, version, self.cache / name, "" if is_whole else artifacts.MANIFEST)
        tags = {**(run.data.tags if run else {}), **version.tags}
        return Kept(f"{version.name} version {version.version}", folder, tags, version.run_id or "", dict(run.data.params) if run else {})

    def _version(self, model: str, digest: str) -> "ModelVersion | None":
        if number := self.numbers.get(model):
            found = list(self.client.search_model_versions(f"name = '{model}'"))
            return next((version for version in found if str(version.version) == number), None)
        found = self.client.search_model_versions(f"name = '{model}' and tags.{recorder.SEALED} = '{digest}'")
        return min(found, key=lambda version: int(version.version), default=None)


@contextmanager
def opened(settings: Tracking, doing: str) -> Iterator[tuple["MlflowClient", Path]]:
    """A client of MLflow and a folder for what it fetches, for the block. Raises InputError when MLflow cannot be asked."""
    if reason := mlflow_server.absence(settings):
        raise InputError(reason)
    with mlflow_server.reach(settings, doing) as client, TemporaryDirectory() as cache:
        yield client, Path(cache)


def resolve(client: "MlflowClient", address: str) -> "ModelVersion":
    """The version that models:/NAME/NUMBER or models:/NAME@ALIAS names. Raises InputError for another form."""
    name, alias, number = fetch.split(address)
    return client.get_model_version(name, number) if number else client.get_model_version_by_alias(name, alias)


def download(client: "MlflowClient", version: "ModelVersion", folder: Path, file: str = "") -> Path | None:
    """The folder of a version's files, or of one of them; None when it is gone from where the registry says it lies."""
    try:
        found = mlflow_server.download(client, version, folder, file)
    except mlflow_server.failures():
        return None
    return found.parent if file else found


def handed(client: "MlflowClient", address: str, folder: Path) -> tuple["ModelVersion", Path]:
    """The version that an address names and the folder of its files. Raises InputError when they are gone."""
    version = resolve(client, address)
    if (found := download(client, version, folder)) is None:
        raise InputError(f"{address}: expected the files of version {version.version} at {version.source}, found none")
    return version, found
