"""Members of a ZIP archive read where they lie: nothing is unpacked, and no name in it becomes a path.

SA-Med2D-20M's has twenty million entries, so of each only a hash of its name and its place are kept, in two sorted arrays on disk
that all processes share.
"""

import hashlib
import stat
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from unimed.data import zip_directory
from unimed.data.zip_directory import Directory, Entry
from unimed.errors import InputError

MOST_BYTES = 2**28
"""Bytes of a member that is read into memory: more than any image that is let in takes."""

_CHUNK = 2**20
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_PLACES, _HASHES = "places.npy", "hashes.npy"


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive whose directory has been noted in the folder `noted`; the members that are asked for lie under `root`."""

    directory: Directory
    noted: Path
    root: str

    def read(self, wanted: Sequence[str]) -> list[bytes | InputError]:
        """The bytes of each member, or why it has none that can be used."""
        return [self._content(path) for path in wanted]

    def _content(self, path: str) -> bytes | InputError:
        try:
            entry = self.entry(f"{self.root}/{path}")
            if entry is None:
                raise InputError(f"{path}: expected a file, found none in the archive")
            if entry.size > MOST_BYTES:
                raise InputError(f"{path}: expected at most {MOST_BYTES} bytes, found an entry that says {entry.size}")
            return b"".join(self.chunks(path, entry))
        except InputError as error:
            return error

    def entry(self, name: str) -> Entry | None:
        """The entry of a member; None when there is none. Raises InputError when there are several."""
        named = name.encode("utf-8", "replace")
        hashes, places = _noted(self.noted, (self.noted / _PLACES).stat().st_mtime_ns)
        first, last = (int(np.searchsorted(hashes, np.uint64(_hash(named)), side)) for side in ("left", "right"))
        entries = [self.directory.entry(int(place)) for place in places[first:last]]
        found = [entry for entry in entries if entry and entry.name == named]
        if len(found) > 1:
            raise InputError(f"{name}: expected one entry in the archive, found {len(found)}")
        return found[0] if found else None

    def chunks(self, path: str, entry: Entry) -> Iterator[bytes]:
        """The bytes of a member, held against size and checksum of its entry; never more than the entry says."""
        if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
            raise InputError(f"{path}: expected a file, found a link or another entry that is none")
        if entry.flags & 1 or entry.method not in (_STORED, _DEFLATED):
            found = "an encrypted one" if entry.flags & 1 else f"one of method {entry.method}"
            raise InputError(f"{path}: expected a stored or deflated member, found {found}")
        size = crc = 0
        for chunk in self._packed(path, entry) if entry.method == _STORED else _inflated(path, self._packed(path, entry)):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            if size > entry.size:
                raise InputError(f"{path}: expected {entry.size} bytes as its entry says, found more")
            yield chunk
        if (size, crc) != (entry.size, entry.crc):
            raise InputError(f"{path}: expected {entry.size} bytes with checksum {entry.crc:08x}, found {size} with {crc:08x}")

    def _packed(self, path: str, entry: Entry) -> Iterator[bytes]:
        parts = self.directory.parts
        head = parts.read(entry.offset, _LOCAL.size)
        *_, named, extra = _LOCAL.unpack(head) if len(head) == _LOCAL.size else (0, 0)
        start = entry.offset + _LOCAL.size
        if head[:4] != b"PK\3\4" or parts.read(start, named) != entry.name:
            raise InputError(f"{path}: expected its bytes at {entry.offset} of the archive, found something else")
        start += named + extra
        for place in range(start, start + entry.packed, _CHUNK):
            yield parts.read(place, min(_CHUNK, start + entry.packed - place))


def _inflated(path: str, packed: Iterator[bytes]) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in packed:
            waiting = piece
            while waiting and not inflate.eof:
                yield inflate.decompress(waiting, _CHUNK)
                waiting = inflate.unconsumed_tail
        yield inflate.flush()
    except zlib.error as error:
        raise InputError(f"{path}: expected a deflated member, found a broken one ({error})") from error


def opened(last: Path, noted: Path, root: str) -> Archive:
    """The archive that ends in the file `last`; its directory is read through once and noted in the folder `noted`.

    Raises InputError when parts are missing or the directory is broken.
    """
    directory = zip_directory.find(last)
    hashes, places = array("Q"), array("Q")
    for place, entry in directory.entries():
        hashes.append(_hash(entry.name))
        places.append(place)
    order = np.argsort(np.array(hashes, dtype=np.uint64), kind="stable")
    noted.mkdir(parents=True, exist_ok=True)
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
