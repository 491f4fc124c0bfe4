"""Members of a ZIP archive read where they lie: nothing is unpacked, and no name in it becomes a path.

SA-Med2D-20M's has twenty million entries, so of each only a hash of its name and its place are kept, in two sorted arrays on disk
that all processes share.
"""

import hashlib
import stat
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from unimed.data import zip_directory
from unimed.data.zip_directory import Directory, Entry, Parts
from unimed.errors import InputError

Read = TypeVar("Read")
MOST_BYTES = 2**28
"""Bytes of a member that is read into memory: more than any image that is let in takes."""

_CHUNK = 2**20
_USUAL_EXTRA = 64
"""Bytes that are read for what stands between name and content: 28 with times and owner, and 20 more in ZIP64."""

_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_PLACES, _HASHES, _COPY = "places.npy", "hashes.npy", "directory"


class MemberError(InputError):
    """What is wrong with one member; of the others it says nothing."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive whose directory has been noted in the folder `noted`; the members that are asked for lie under `root`."""

    directory: Directory
    noted: Path
    root: str

    def read(self, wanted: Sequence[str]) -> list[bytes | InputError]:
        """The bytes of each member, or why it has none that can be used; raises InputError when a part cannot be read."""
        with ThreadPoolExecutor(self.directory.parts.at_once) as threads:
            return list(threads.map(self._content, wanted))

    def _content(self, path: str) -> bytes | InputError:
        try:
            entry = self.entry(f"{self.root}/{path}")
            if entry is None:
                return MemberError(f"{path}: expected a file, found none in the archive")
            if entry.size > MOST_BYTES:
                return MemberError(f"{path}: expected at most {MOST_BYTES} bytes, found an entry that says {entry.size}")
            return _tried_twice(lambda: b"".join(self.chunks(path, entry)))
        except MemberError as error:
            return error

    def copy(self, name: str, target: Path) -> bool:
        """Write a member of any size to a file; False when there is none. Raises InputError when it has faults."""
        entry = self.entry(name)
        if entry is None:
            return False

        def write() -> None:
            with target.open("wb") as stream:
                stream.writelines(self.chunks(name, entry))

        _tried_twice(write)
        return True

    def entry(self, name: str) -> Entry | None:
        """The entry of a member; None when there is none. Raises MemberError when there are several."""
        named = name.encode("utf-8", "replace")
        hashes, places = _noted(self.noted, (self.noted / _PLACES).stat().st_mtime_ns)
        first, last = (int(np.searchsorted(hashes, np.uint64(_hash(named)), side)) for side in ("left", "right"))
        entries = [self.directory.entry(int(place)) for place in places[first:last]]
        found = [entry for entry in entries if entry and entry.name == named]
        if len(found) > 1:
            raise MemberError(f"{name}: expected one entry in the archive, found {len(found)}")
        return found[0] if found else None

    def chunks(self, path: str, entry: Entry) -> Iterator[bytes]:
        """The bytes of a member, held against size and checksum of its entry; never more than the entry says.

        Raises MemberError for what is no plain file or is not what its entry says.
        """
        if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
            raise MemberError(f"{path}: expected a file, found a link or another entry that is none")
        if entry.flags & 1 or entry.method not in (_STORED, _DEFLATED):
            found = "an encrypted one" if entry.flags & 1 else f"one of method {entry.method}"
            raise MemberError(f"{path}: expected a stored or deflated member, found {found}")
        size = crc = 0
        for chunk in self._packed(path, entry) if entry.method == _STORED else _inflated(path, self._packed(path, entry)):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            if size > entry.size:
                raise MemberError(f"{path}: expected {entry.size} bytes as its entry says, found more")
            yield chunk
        if (size, crc) != (entry.size, entry.crc):
            raise MemberError(f"{path}: expected {entry.size} bytes with checksum {entry.crc:08x}, found {size} with {crc:08x}")

    def _packed(self, path: str, entry: Entry) -> Iterator[bytes]:
        """Its bytes as they are packed; those of a small member with what stands before them in one read."""
        parts = self.directory.parts
        held = parts.read(entry.offset, _LOCAL.size + len(entry.name) + _USUAL_EXTRA + min(entry.packed, _CHUNK))
        *_, named, extra = _LOCAL.unpack_from(held) if len(held) >= _LOCAL.size else (0, 0)
        behind_name = _LOCAL.size + named
        if held[:4] != b"PK\3\4" or held[_LOCAL.size : behind_name] != entry.name:
            raise MemberError(f"{path}: expected its bytes at {entry.offset} of the archive, found something else")
        first = held[behind_name + extra :][: entry.packed]
        yield first
        start = entry.offset + behind_name + extra
        for place in range(start + len(first), start + entry.packed, _CHUNK):
            yield parts.read(place, min(_CHUNK, start + entry.packed - place))


def _tried_twice(read: Callable[[], Read]) -> Read:
    """What is read, the second time when the first shows a fault of the member: the wire from a bucket may be at fault."""
    try:
        return read()
    except MemberError:
        return read()


def _inflated(path: str, packed: Iterator[bytes]) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in packed:
            waiting = piece
            while waiting and not inflate.eof:
                yield inflate.decompress(waiting, _CHUNK)
                waiting = inflate.unconsumed_tail
            if inflate.eof:  # whatever the entry says
                break
        yield inflate.flush()
    except zlib.error as error:
        raise MemberError(f"{path}: expected a deflated member, found a broken one ({error})") from error


def opened(parts: Parts, noted: Path, root: str) -> Archive:
    """The archive in these parts; its directory is read through once and noted in the folder `noted`.

    Raises InputError when parts are missing or the directory is broken.
    """
    directory = zip_directory.find(parts)
    noted.mkdir(parents=True, exist_ok=True)
    if parts.at_once > 1:
        directory = directory.copied(noted / _COPY)
    hashes, places = array("Q"), array("Q")
    for place, entry in directory.entries():
        hashes.append(_hash(entry.name))
        places.append(place)
    order = np.argsort(np.array(hashes, dtype=np.uint64), kind="stable")
    for name, values in ((_HASHES, hashes), (_PLACES, places)):
        np.save(noted / name, np.array(values, dtype=np.uint64)[order], allow_pickle=False)
    return Archive(directory, noted, root)


@lru_cache(maxsize=1)
def _noted(folder: Path, written: int) -> tuple[np.ndarray, np.ndarray]:
    """The arrays as they were `written`, which a later archive may replace."""
    hashes, places = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (_HASHES, _PLACES))
    return hashes, places


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
