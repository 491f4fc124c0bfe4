"""The cache of releases and of their parts: each under the hash of its manifest, complete or absent, verified whenever it is used."""

import functools
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from unimed import outputs
from unimed.data.streamed import load
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release.manifest import MANIFEST, UNNAMED
from unimed.release.parts import PARENTS

Make = Callable[[Path], None]
"""Makes the folder at a path at which nothing is."""

log = logging.getLogger("release")


def _kept(place: Path, check: Callable[[Path], None], make: Make) -> Path:
    """What the cache holds at `place`, checked; made when it is absent or spoilt, by one process at a time, complete or not at all."""
    if _passes(place, check):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with outputs.alone(place):
        if not _passes(place, check):
            partial = outputs.beside(place, ".partial")
            outputs.remove(partial)
            make(partial)
            check(partial)
            outputs.place(partial, place)
    return place


def _passes(place: Path, check: Callable[[Path], None]) -> bool:
    if not place.exists():
        return False
    try:
        check(place)
    except InputError as error:
        log.warning("the cache is mended: %s", error)
        return False
    return True


def release(cache: Path, digest: str, make: Make) -> Path:
    """The folder of the release with that manifest in the cache; made when it is not there as it was."""
    return _kept(cache / "releases" / _sha256(digest), lambda folder: check(folder, digest), make)


def check(folder: Path, digest: str) -> None:
    """Raise InputError unless a folder is that release: its manifest, the files it names and no others, and its parts."""
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: expected a release with {MANIFEST}, found none")
    if (found := artifacts.sha256(folder / MANIFEST)) != digest:
        raise InputError(f"{folder / MANIFEST}: expected sha256 {digest}, found {found}; it was changed after it was registered")
    manifest = load(folder / MANIFEST)
    files, parts = manifest.get("files", {}), manifest.get("parts", {})
    if parts.keys() != PARENTS.keys():
        raise InputError(f"{folder / MANIFEST}: expected the parts {sorted(PARENTS)}, found {sorted(parts)}")
    there = {path.name for path in folder.iterdir() if path.is_dir() == (path.name in parts)}
    if missing := sorted((files.keys() | parts.keys()) - there):
        raise InputError(f"{folder}: expected {missing[0]}, which its manifest names, found none")
    if unknown := sorted({path.name for path in folder.iterdir()} - files.keys() - parts.keys() - UNNAMED):
        raise InputError(f"{folder}: expected only what its manifest names, found {unknown[0]} too")
    for name, expected in files.items():
        if (found := artifacts.sha256(folder / name)) != expected:
            raise InputError(f"{folder / name}: expected sha256 {expected}, found {found}; it was changed after it was registered")
    for name, record in parts.items():
        _check_part(folder / name, record["manifest_sha256"], name)


def _sha256(digest: str) -> str:
    """The digest, which names a folder; raises InputError when it is none."""
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise InputError(f"release: expected the sha256 of a manifest, found {digest!r}; it was not registered by `unimed release`")
    return digest


def _check_part(folder: Path, digest: str, who: str) -> None:
    try:
        artifacts.verify(folder)
    except InputError as error:
        raise InputError(f"{who}: {error}") from error
    if (found := artifacts.sha256(folder / artifacts.MANIFEST)) != digest:
        raise InputError(f"{who}: expected a model with manifest sha256 {digest}, found {found}; it was changed after it was released")


def fill(partial: Path, cache: Path, source: Callable[[str, Mapping[str, str]], tuple[str, Make]]) -> None:
    """Put all parts into the folder of a release, by way of the cache of parts.

    `source` says of a part, by its name and entry in the manifest, what to call it and how to make its folder.
    """
    for name, record in load(partial / MANIFEST)["parts"].items():
        if name not in PARENTS:
            raise InputError(f"{partial / MANIFEST}: expected the parts {sorted(PARENTS)}, found {name}")
        digest, (who, make) = _sha256(record["manifest_sha256"]), source(name, record)
        part = _kept(cache / "parts" / digest, functools.partial(_check_part, digest=digest, who=who), make)
        shutil.copytree(part, partial / name, copy_function=outputs.link)
