"""The content-addressed store, which is the DVC remote: folders and files by hash in DVC's layout, and beside them records of stages."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from unimed import hashes, outputs
from unimed.errors import InputError
from unimed.hashes import FOLDER
from unimed.objects import Moved, Objects
from unimed.progress import Ticker
from unimed.s3_client import THREADS

T = TypeVar("T")


class Store:
    """What `s3://bucket/prefix` holds; `dvc` with a remote at that address pulls what this pushed, and the reverse.

    Opening it asks S3 once. Every method raises `InputError` for what a user can mend.
    """

    def __init__(self, url: str):
        self.objects = Objects(url)

    def push(self, path: Path) -> str:
        """Put a file or folder, of which only what the store lacks is sent; its hash.

        A folder's listing goes last: where there is one, there are its bytes.
        """
        if not path.exists():
            raise InputError(f"{path}: expected a file or folder to push, found nothing")
        if not path.is_dir():
            digest = hashes.dvc_hash(path)
            self._send(path.name, {digest: path})
            return digest
        text = hashes.listing_text(hashes.listing(path))
        entries = _entries(str(path), text)
        digest = hashes.listing_hash(entries)
        self._send(path.name, {entry["md5"]: path / entry["relpath"] for entry in entries})
        if self.objects.size(_name(digest)) != len(text):
            self.objects.write(_name(digest), text)
        return digest

    def pull(self, digest: str, path: Path) -> None:
        """Make `path` the file or folder of that hash, every byte checked; it is complete, or as it was before.

        What an interrupted pull left under `<path>.partial` is not fetched again.
        """
        _check_digest(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        with outputs.alone(path):
            if not path.exists() or hashes.dvc_hash(path) != digest:
                self._pull(digest, path, outputs.beside(path, ".partial"))

    def _pull(self, digest: str, path: Path, partial: Path) -> None:
        if digest.endswith(FOLDER):
            wanted = {partial / entry["relpath"]: entry["md5"] for entry in self.listing(digest)}
            _clear(partial, wanted)
        else:
            wanted = {partial: digest}
            if not partial.is_file() or partial.is_symlink():
                outputs.remove(partial)
        _each(f"pull {path.name}", lambda item, moved: self._fetch(*item, moved), list(wanted.items()))
        outputs.place(partial, path)

    def has(self, digest: str) -> bool:
        """Whether the store holds the file or folder of that hash."""
        _check_digest(digest)
        return self.objects.size(_name(digest)) is not None

    def listing(self, digest: str) -> list[dict[str, str]]:
        """The entries of a folder by its hash: `md5` and `relpath` of every file, none of which leads out of the folder."""
        _check_digest(digest)
        where = self.objects.url(_name(digest))
        if not digest.endswith(FOLDER):
            raise InputError(f"{where}: expected the hash of a folder, which ends in {FOLDER}, found {digest}")
        text = self.objects.read(_name(digest))
        if text is None:
            raise InputError(f"{where}: expected the listing of a folder, found none; push it, or check the address of the store")
        found = hashlib.md5(text, usedforsecurity=False).hexdigest() + FOLDER
        if found != digest:
            raise InputError(f"{where}: expected a listing with hash {digest}, found {found}; delete this object and push it again")
        return _entries(where, text)

    def put_record(self, stage: str, key: str, record: dict[str, Any]) -> None:
        """Keep the record of a stage under a recipe key, both of letters, digits, `_` and `-`, in place of an earlier one."""
        self.objects.write(_record(stage, key), json.dumps(record, sort_keys=True).encode())

    def record(self, stage: str, key: str) -> dict[str, Any] | None:
        """The record of a stage under a recipe key; None when there is none."""
        name = _record(stage, key)
        text = self.objects.read(name)
        try:
            return None if text is None else dict(json.loads(text))
        except (TypeError, ValueError):
            raise InputError(f"{self.objects.url(name)}: expected a record in JSON, found something else; delete it") from None

    def _send(self, label: str, files: dict[str, Path]) -> None:
        def send(item: tuple[str, Path], moved: Moved) -> None:
            digest, path = item
            if self.objects.size(_name(digest)) != path.stat().st_size:
                self.objects.send(_name(digest), path, digest, moved)

        _each(f"push {label}", send, list(files.items()))

    def _fetch(self, path: Path, md5: str, moved: Moved) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.objects.fetch(_name(md5), path, md5, moved)


class _Meter:
    """Counts bytes of several threads for one ticker; once stopped, it ends every transfer that counts on it."""

    def __init__(self, ticker: Ticker):
        self.ticker, self.lock, self.bytes, self.is_stopped = ticker, threading.Lock(), 0, False

    def moved(self, count: int) -> None:
        """Count bytes; raises `InterruptedError` once stopped."""
        if self.is_stopped:
            raise InterruptedError("another transfer failed or the program is to end")
        with self.lock:
            self.bytes += count
            self.ticker.advance(0, GB=self.bytes / 1e9)

    def done(self) -> None:
        """Count a file."""
        with self.lock:
            self.ticker.advance()


def _each(label: str, work: Callable[[T, Moved], None], items: list[T]) -> None:
    """Do the work for every item, in a few threads; the first fault ends the others and is raised."""
    with Ticker(len(items), label) as ticker, ThreadPoolExecutor(THREADS) as pool:
        meter = _Meter(ticker)
        try:
            for future in as_completed([pool.submit(work, item, meter.moved) for item in items]):
                future.result()
                meter.done()
        finally:
            meter.is_stopped = True
            pool.shutdown(wait=False, cancel_futures=True)


def _name(digest: str) -> str:
    return f"files/md5/{digest[:2]}/{digest[2:]}"


def _record(stage: str, key: str) -> str:
    name = f"{stage}-{key}"
    if not re.fullmatch(r"[A-Za-z0-9_]+-[A-Za-z0-9_-]+", name):
        raise InputError(f"record {name!r}: expected a name of letters, digits, _ and -, found others")
    return f"recipes/{name}.json"


def _check_digest(digest: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", digest):
        raise InputError(f"hash {digest!r}: expected 32 hex digits, and {FOLDER} after those of a folder, as dvc.lock has them")


def _entries(where: str, text: bytes) -> list[dict[str, str]]:
    """A listing from its bytes; raises `InputError` for anything but files of a folder, each at a place of its own inside it."""
    try:
        entries = hashes.read_listing(text)
    except ValueError:
        raise InputError(f"{where}: expected a list of entries with md5 and relpath, found something else; push the folder again") from None
    if wrong := next((entry for entry in entries if not _is_file_inside(entry)), None):
        raise InputError(f"{where}: expected an md5 and a path inside the folder, found {wrong}; rename the file and push the folder again")
    paths = {PurePosixPath(entry["relpath"]) for entry in entries}
    if len(paths) < len(entries) or paths & {parent for path in paths for parent in path.parents}:
        raise InputError(f"{where}: expected each file at a place of its own, found two at one; push the folder again")
    return entries


def _is_file_inside(entry: dict[Any, Any]) -> bool:
    md5, relpath = entry["md5"], entry["relpath"]
    if not (isinstance(md5, str) and isinstance(relpath, str) and re.fullmatch(r"[0-9a-f]{32}", md5)):
        return False
    return not ({"\\", "\0"} & set(relpath) or {"", ".", ".."} & set(relpath.split("/")))


def _clear(folder: Path, wanted: dict[Path, str]) -> None:
    """Make `folder` a folder with nothing in it but wanted files and what leads to them; a link could lead a write elsewhere."""
    if folder.is_symlink() or not folder.is_dir():
        outputs.remove(folder)
        folder.mkdir()
    parents = {parent for path in wanted for parent in path.parents}
    for found in sorted(folder.rglob("*"), reverse=True):
        if found.is_symlink() or found not in (parents if found.is_dir() else wanted):
            outputs.remove(found)
