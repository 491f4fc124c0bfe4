"""A release on this machine: every part from the registry or the store, verified by hash before use; no code of it is run.

A second time it comes from the cache (cache.py), by version without network.
"""

import functools
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unimed import mlflow_server, outputs, recorder, user_cache
from unimed.data.streamed import load
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release import cache as caches
from unimed.release import whereabouts
from unimed.release.manifest import MANIFEST
from unimed.release.parts import PARENTS
from unimed.settings import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PAUSES_S = (1, 2, 4)
"""Pauses between tries to download while the server or the store behind it fails."""

_ADDRESS = re.compile(r"models:/(?P<name>[\w.-]+)(@(?P<alias>[\w.-]+)|/(?P<number>\d+))")

log = logging.getLogger("release")


@dataclass(frozen=True)
class Fetched:
    """A release in a folder: release.json with its files, and a folder for each part; `version` is empty for one of no registry."""

    folder: Path
    version: str
    manifest: dict[str, Any]


def fetch(uri: str, settings: Tracking, cache: Path | None = None) -> Fetched:
    """The release at `models:/NAME@ALIAS`, at `models:/NAME/VERSION` or in a folder, with all its parts, verified.

    By version it needs no network once it is in the cache. Raises InputError naming the part that is missing or not what it was.
    """
    cache = cache or user_cache.folder()
    if not uri.startswith("models:"):
        return _from_folder(Path(uri), cache)
    name, _, number = split(uri)
    notes = cache / "versions" / _server(settings) / name
    if number and (note := notes / number).is_file() and (reason := mlflow_server.refusal(mlflow_server.address(settings))):
        log.warning("%s is taken from the cache: %s", uri, reason)
        return _read(caches.release(cache, note.read_text(), _absent), number)
    number = number or resolve(uri, settings)
    with mlflow_server.reach(settings, f"hand out {name} version {number}") as client:
        version = _version(client, name, number)
        if not (digest := version.tags.get(recorder.SEALED)):
            raise InputError(f"{uri}: expected a release, which has the tag {recorder.SEALED}, found a version without; name another")
        place = caches.release(cache, digest, lambda partial: _fill(partial, cache, client, version))
    notes.mkdir(parents=True, exist_ok=True)
    aside = notes / f"{number}.{os.getpid()}"
    aside.write_text(digest)
    aside.replace(notes / number)
    return _read(place, number)


def resolve(uri: str, settings: Tracking) -> str:
    """The number of the version that an address means now. Raises InputError when there is none."""
    name, alias, number = split(uri)
    if number:
        return number
    with mlflow_server.reach(settings, f"say what {uri} is") as client:
        try:
            return str(client.get_model_version_by_alias(name, alias).version)
        except mlflow_server.failures() as error:
            if not _says(error, "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise InputError(f"{uri}: expected a version of that alias, found none ({mlflow_server.told(error)}); promote one") from error


def registered(manifest: Path, name: str, settings: Tracking) -> str:
    """The address of the version whose release.json this is. Raises InputError when the registry knows no such one."""
    digest = artifacts.sha256(manifest)
    with mlflow_server.reach(settings, f"know {manifest}") as client:
        if known := mlflow_server.tagged(client, name, recorder.SEALED, digest):
            return f"models:/{name}/{known[0].version}"
    raise InputError(f"{manifest}: expected the manifest of a version of {name}, found none with sha256 {digest}; it was changed")


def split(uri: str) -> tuple[str, str, str]:
    """Name, alias and number of an address; one of the last two is empty."""
    if not (found := _ADDRESS.fullmatch(uri)):
        raise InputError(f"{uri}: expected models:/NAME@ALIAS, models:/NAME/VERSION or a folder, found neither")
    return found["name"], found["alias"] or "", found["number"] or ""


def _server(settings: Tracking) -> str:
    """A name for the registry in the cache, without the password that its address may hold."""
    parts = urlsplit(mlflow_server.address(settings))
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def _says(error: Exception, *codes: str) -> bool:
    return getattr(error, "error_code", "") in codes


def _version(client: "MlflowClient", name: str, number: str, needed: str = "") -> "ModelVersion":
    try:
        return client.get_model_version(name, number)
    except mlflow_server.failures() as error:
        if not _says(error, "RESOURCE_DOES_NOT_EXIST"):
            raise
        wanted = f", which {needed} needs" if needed else ""
        raise InputError(f"{name} version {number}: expected it in the registry{wanted}, found none; choose another release") from error


def _read(folder: Path, version: str) -> Fetched:
    return Fetched(folder, version, load(folder / MANIFEST))


def _absent(partial: Path) -> None:
    raise InputError(f"{partial.stem}: expected this release in the cache, found it incomplete or spoilt; it takes the server to mend it")


def _fill(partial: Path, cache: Path, client: "MlflowClient", version: "ModelVersion") -> None:
    """Download a version and the versions of its parts that its tags name."""
    who = f"{version.name} version {version.version}"
    _download(client, version, partial)
    if not (partial / MANIFEST).is_file() or artifacts.sha256(partial / MANIFEST) != version.tags[recorder.SEALED]:
        raise InputError(f"{who}: expected {MANIFEST} as it was registered, found another or none; choose another release")

    def source(name: str, record: Mapping[str, str]) -> tuple[str, caches.Make]:
        number = version.tags.get(model := record.get("model", ""))
        if number is None:
            return name, functools.partial(whereabouts.bring, name, record, [])
        return f"{model} version {number}", lambda place: _download(client, _version(client, model, number, who), place)

    caches.fill(partial, cache, source)


def _from_folder(folder: Path, cache: Path) -> Fetched:
    """The release of a folder: itself when it holds all parts, else one in the cache with parts found by hash."""
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: expected a release with {MANIFEST}, found none; give models:/NAME@ALIAS or the folder of a release")
    digest = artifacts.sha256(folder / MANIFEST)
    if all((folder / name).is_dir() for name in PARENTS):
        caches.check(folder, digest)
        return _read(folder, "")

    def make(partial: Path) -> None:
        shutil.copytree(folder, partial, ignore=lambda _, names: [name for name in names if name in PARENTS])
        caches.fill(partial, cache, lambda name, record: (name, functools.partial(whereabouts.bring, name, record, [folder])))

    return _read(caches.release(cache, digest, make), "")


def _download(client: "MlflowClient", version: "ModelVersion", place: Path) -> None:
    """Make `place` what a version holds; tried again while the server or the store behind it fails."""
    aside = outputs.beside(place, ".download")

    def download() -> Path:
        outputs.remove(aside)
        return mlflow_server.download(client, version, aside)

    _patiently(download, f"{version.name} version {version.version}").rename(place)
    outputs.remove(aside)


def _patiently(download: Callable[[], Path], who: str) -> Path:
    for pause in PAUSES_S:
        try:
            return download()
        except mlflow_server.failures() as error:
            log.warning("%s does not arrive (%s); trying again in %d s", who, mlflow_server.told(error), pause)
            time.sleep(pause)
    return download()
