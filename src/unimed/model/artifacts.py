"""What stages hand on: folders sealed with the hashes of their files and of what they were made from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unimed import hashes
from unimed.errors import InputError

MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"


def sha256(path: Path) -> str:
    """The file's hash as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, parents: Mapping[str, Path], **facts: Any) -> None:
    """Write the manifest: every file's hash, every parent's place and manifest hash, and the facts given. Call it last."""
    names = _files(folder)
    manifest = {
        "files": dict(zip(names, hashes.each(sha256, [folder / name for name in names]), strict=True)),
        "parents": {name: {"path": f"../{path.name}", "sha256": sha256(path / MANIFEST)} for name, path in sorted(parents.items())},
        **facts,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _files(folder: Path) -> list[str]:
    """What a manifest speaks of: every file of a folder and the folders in it, but itself."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def verify(folder: Path) -> dict[str, Any]:
    """The folder's manifest, after every file it names, and no other, was found with its hash. Raises InputError otherwise."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"expected a model folder with a {MANIFEST}, found none in {folder}")
    manifest = _manifest(path)
    files = [(folder / name).resolve() for name in manifest["files"]]
    for name, file in zip(manifest["files"], files, strict=True):
        if not file.is_relative_to(folder.resolve()) or not file.is_file():
            raise InputError(f"{path}: expected the file {name}, found none")
    for file, expected, found in zip(files, manifest["files"].values(), hashes.each(sha256, files), strict=True):
        if found != expected:
            raise InputError(f"{file}: expected sha256 {expected}, found {found}")
    if unknown := [name for name in _files(folder) if name not in manifest["files"]]:
        raise InputError(f"{path}: expected a list of all files of its folder, found nothing about {unknown[0]}")
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: expected a manifest with files and parents, found {error}") from error
    if not (isinstance(manifest, dict) and all(isinstance(manifest.get(key), dict) for key in ("files", "parents"))):
        raise InputError(f"{path}: expected a manifest with files and parents, found other JSON")
    return manifest


def parent(folder: Path, name: str) -> Path:
    """Where the folder's parent of that name lies, beside it; InputError when it is missing or not the one recorded."""
    manifest = verify(folder)
    record = manifest["parents"].get(name)
    if record is None:
        raise InputError(f"{folder / MANIFEST}: expected a parent {name}, found {sorted(manifest['parents'])}")
    place = folder.resolve().parent / Path(record["path"]).name
    if not (place / MANIFEST).is_file() or sha256(place / MANIFEST) != record["sha256"]:
        raise InputError(f"{folder / MANIFEST}: expected {place} with manifest sha256 {record['sha256']}, found another or none")
    return place
