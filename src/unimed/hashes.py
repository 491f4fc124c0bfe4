"""Hashes that name data and code: DVC's own for data, so that every tool shows the same one."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from unimed.errors import InputError

LARGE = 2**26
"""Bytes of a file from which on a thread of its own pays; of such there are tens in a folder, of others millions."""

FOLDER = ".dir"
"""How the hash of a folder ends."""


def recorded(kinds: tuple[str, ...], root: Path = Path()) -> dict[str, str]:
    """Path to hash, as dvc.lock holds it of the `kinds` "deps" and "outs"; empty before the first run."""
    lock = root / "dvc.lock"
    if not lock.exists():
        return {}
    entries = yaml.safe_load(lock.read_text())["stages"].values()
    return {item["path"]: item["md5"] for kind in kinds for entry in entries for item in entry.get(kind, [])}


def code_hash(path: Path) -> str:
    """A hash of the names and bytes of a source file or folder, compiled files left out. Raises InputError when it is not there."""
    if not path.exists():
        raise InputError(f"{path}: expected a file or folder that stages depend on, found nothing; restore it, for instance from git")
    names = [[file.relative_to(path).as_posix(), file.read_bytes().hex()] for file in files(path)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def dvc_hash(path: Path) -> str:
    """The hash DVC would record: md5 of a file, or of a folder's listing (then ending in `.dir`, 36 characters)."""
    return listing_hash(listing(path)) if path.is_dir() else _md5(path)


def dvc_hashes(places: Mapping[str, Path]) -> dict[str, str]:
    """The hash DVC would record of each place, by name."""
    return {name: dvc_hash(place) for name, place in places.items()}


def listing(folder: Path) -> list[dict[str, str]]:
    """DVC's listing of a folder: `md5` and `relpath` of each file, by relpath."""
    found = files(folder)
    entries = [{"md5": md5, "relpath": file.relative_to(folder).as_posix()} for file, md5 in zip(found, each(_md5, found), strict=True)]
    return sorted(entries, key=lambda entry: entry["relpath"])


def listing_text(entries: list[dict[str, str]]) -> bytes:
    """The bytes of a listing as DVC stores them."""
    return json.dumps(entries, sort_keys=True).encode()


def listing_hash(entries: list[dict[str, str]]) -> str:
    """The hash of the folder that a listing describes."""
    return hashlib.md5(listing_text(entries), usedforsecurity=False).hexdigest() + FOLDER


def read_listing(text: bytes) -> list[dict[str, str]]:
    """The entries of a listing from its bytes. Raises ValueError for anything else."""
    entries = json.loads(text)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry.keys() == {"md5", "relpath"} for entry in entries):
        raise ValueError("expected a list of entries with md5 and relpath, found other JSON")
    return entries


def files(path: Path) -> list[Path]:
    """The file itself, or every file below a folder in order, without what .dvcignore leaves out: compiled Python."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in files(path))


def each(digest: Callable[[Path], str], found: Sequence[Path]) -> list[str]:
    """The digest of every file, in their order; large ones are read side by side, since hashing leaves the interpreter free."""
    large = [file for file in found if file.stat().st_size >= LARGE]
    with ThreadPoolExecutor() as pool:
        known = dict(zip(large, pool.map(digest, large), strict=True))
    return [known[file] if file in known else digest(file) for file in found]


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
