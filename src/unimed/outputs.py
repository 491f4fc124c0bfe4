"""Outputs that are complete or absent: written beside their place, flushed to disk, then renamed."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from unimed.errors import InputError

log = logging.getLogger(__name__)


def is_leader() -> bool:
    """Whether this process, of all that run the component together, is the one that touches outputs and tracking."""
    return os.environ.get("RANK", "0") == "0"


def beside(path: Path, ending: str) -> Path:
    """The sibling of `path` with `ending` after its name."""
    return path.with_name(path.name + ending)


@contextmanager
def complete(targets: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Temporary siblings of `targets`, moved into place when the block ends well.

    Leftovers of an earlier interruption are removed first. When the block raises, what it wrote stays under `<path>.partial` and the
    targets are as they were. Raises `FileNotFoundError` when the block did not write one of them, and `InputError` when another program is
    writing one. Processes beside the leader write into a folder that is thrown away.
    """
    if not is_leader():
        with tempfile.TemporaryDirectory() as aside:
            yield {name: Path(aside) / name for name in targets}
        return
    partial = {name: beside(path, ".partial") for name, path in targets.items()}
    with ExitStack() as claims:
        for path in targets.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            claims.enter_context(_claimed(path))
            for ending in (".partial", ".replaced"):
                remove(beside(path, ending))
        yield partial
        if missing := [name for name, path in partial.items() if not path.exists()]:
            raise FileNotFoundError(f"the component returned without writing {missing}")
        for name, path in targets.items():
            place(partial[name], path)


def place(partial: Path, path: Path) -> None:
    """Move a finished file or folder to `path`; what was there goes only once the new one is in place."""
    replaced = beside(path, ".replaced")
    flush(partial)
    if path.exists() or path.is_symlink():
        path.replace(replaced)
    partial.replace(path)
    _sync(path.parent)
    remove(replaced)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until nobody else works on `path`: two that write what lies beside it would spoil it."""
    with _locked(path, lambda lock: fcntl.flock(lock, fcntl.LOCK_EX)):
        yield


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Be the one program that writes `path`; the claim ends with the process, however it ends, and is not handed to its children."""

    def take(lock: int) -> None:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{path}: expected no other program that writes it, found one; wait until it has ended") from error

    with _locked(path, take):
        yield


@contextmanager
def _locked(path: Path, take: Callable[[int], None]) -> Iterator[None]:
    """Hold the file beside `path` that stands for it, as `take` takes a lock on it."""
    lock = beside(path, ".lock")
    while True:
        with lock.open("w") as stream:
            take(stream.fileno())
            if _is_at(lock, stream.fileno()):  # else the one before has just removed it
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def written(targets: dict[str, Path]) -> dict[str, Path]:
    """Where the outputs lie now: in place, or beside it after a failure; what is nowhere is left out."""
    places = {name: (beside(path, ".partial"), path) for name, path in targets.items()}
    return {name: next(path for path in pair if path.exists()) for name, pair in places.items() if any(map(Path.exists, pair))}


def link(source: Path | str, place: Path | str) -> None:
    """Have the file `source` at `place` too, as a hard link, which takes no room, or as a copy on another disk."""
    try:
        os.link(Path(source).resolve(), place)
    except OSError:
        shutil.copyfile(source, place)


def remove(path: Path) -> None:
    """Delete a file, a folder or a link; nothing happens when there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have a file or a folder with all its files on the disk, not only in memory, when this returns."""
    for folder, _, files in os.walk(path):
        for file in files:
            _sync(Path(folder, file))
        _sync(Path(folder))
    if path.is_file():
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
