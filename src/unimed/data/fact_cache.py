"""Facts that were measured once, kept under the hash of what was measured and of the code that measured it."""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq

from unimed import user_cache

log = logging.getLogger(__name__)
_DIGEST_BYTES = 32
_READ = pa.schema([("sha256", pa.string())])
_SETTLED_NS = 2 * 10**9
"""How long a file must have been left alone before its times are believed: the coarsest clock of a file system ticks every two seconds."""


def folder() -> Path | None:
    """Where facts are kept, which may be emptied at any time; None where the user has no home."""
    try:
        return user_cache.folder() / "facts"
    except RuntimeError:
        return None


def key(content: str, measured_by: Sequence[ModuleType], *versions: str) -> str:
    """A name for the facts about `content`, a sha256: other code, or other versions of what it calls, looks for others."""
    total = hashlib.sha256(content.encode())
    for module in measured_by:
        total.update(Path(str(module.__file__)).read_bytes())
    total.update("\0".join(versions).encode())
    return total.hexdigest()


def sha256(file: Path, cache: Path | None) -> str:
    """The sha256 of a file's bytes; they are read for it unless nothing has touched the file since they were read last.

    That is told, as git and DVC tell it, by inode, size and times; the time of the last change to an inode cannot be set back. What a
    disk loses by itself leaves no such trace. Raises OSError when the file cannot be read.
    """
    with file.open("rb") as stream:
        seen, began = _seen(stream.fileno()), time.time_ns()
        name = key(" ".join(map(str, seen)), ())
        kept = find(cache, name, _READ)
        if kept is not None:
            return str(kept["sha256"][0])
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if _seen(stream.fileno()) == seen and max(seen[-2:]) + _SETTLED_NS < began:
            keep(cache, name, pa.table({"sha256": [found]}, schema=_READ))
    return found


def _seen(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def digest(rows: pa.Table) -> str:
    """A sha256 of what a table holds, with the names and kinds of its columns."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def find(cache: Path | None, name: str, schema: pa.Schema) -> pa.Table | None:
    """The facts kept under a name; None when there are none, or when they are not those that were kept there."""
    if cache is None:
        return None
    try:
        content = _place(cache, name).read_bytes()
    except OSError:
        return None
    if _seal(name, content[_DIGEST_BYTES:]) != content[:_DIGEST_BYTES]:
        log.warning("facts %s: expected what was kept, found other bytes; they are measured again", name)
        return None
    table = pq.read_table(pa.BufferReader(content[_DIGEST_BYTES:]))
    return table if table.schema.equals(schema) else None


def keep(cache: Path | None, name: str, facts: pa.Table) -> None:
    """Keep facts under a name, whole or not at all. Where the cache cannot be written nothing happens: it only saves time."""
    if cache is None:
        return
    place, sink = _place(cache, name), pa.BufferOutputStream()
    pq.write_table(facts, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as stream:
            stream.write(_seal(name, content) + content)
        Path(stream.name).replace(place)
    except OSError as error:
        log.info("facts are not kept: %s", error.strerror)


def _seal(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()


def _place(cache: Path, name: str) -> Path:
    return cache / name[:2] / f"{name}.facts"
