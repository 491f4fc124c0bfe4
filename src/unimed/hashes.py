"""Hashes that name data and code: DVC's own for data, so that every tool shows the same one."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import yaml


def recorded(kinds: tuple[str, ...], root: Path = Path()) -> dict[str, str]:
    """Path to hash, as dvc.lock holds it of the `kinds` "deps" and "outs"; empty before the first run."""
    lock = root / "dvc.lock"
    if not lock.exists():
        return {}
    entries = yaml.safe_load(lock.read_text())["stages"].values()
    return {item["path"]: item["md5"] for kind in kinds for entry in entries for item in entry.get(kind, [])}


def code_hash(path: Path) -> str:
    """A hash of the names and bytes of a source file or folder, compiled files left out."""
    files = _files(path) if path.is_dir() else iter([path])
    names = [[file.relative_to(path).as_posix(), file.read_bytes().hex()] for file in files if "__pycache__" not in file.parts]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def dvc_hash(path: Path) -> str:
    """The hash DVC would record: md5 of a file, or of the sorted list of a folder's files (then ending in `.dir`, 36 characters)."""
    if not path.is_dir():
        return _md5(path)
    entries = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in _files(path)]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
