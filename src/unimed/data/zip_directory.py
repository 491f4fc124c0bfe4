"""The directory of a ZIP archive in parts (.z01, .z02, ..., .zip): found, read through in pieces, and its entries taken apart.

PKWARE, APPNOTE.TXT 6.3.10, sections 4.3 and 4.5: in an archive that was split, places count from the start of a part.
"""

import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from unimed.errors import InputError

_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_CHUNK = 2**22
_LONGEST_ENTRY = _ENTRY.size + 3 * 2**16
_LONGEST_COMMENT = 2**16
_WIDE = (("size", 8, 2**32 - 1), ("packed", 8, 2**32 - 1), ("offset", 8, 2**32 - 1), ("part", 4, 2**16 - 1))
"""What a ZIP64 field holds, in this order: each number whose own field is full, with its width."""


class Part(Protocol):
    """A file of an archive, wherever it lies; worker processes get a copy of this."""

    @property
    def name(self) -> str:
        """Its address, for people."""
        ...

    @property
    def size(self) -> int:
        """How many bytes it has."""
        ...

    @property
    def tag(self) -> str:
        """What tells its bytes from others that may take their place, empty where the recipe key does."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes that lie within it. Raises InputError when they cannot be had."""
        ...


@dataclass(frozen=True, slots=True)
class File:
    """A part that lies on disk."""

    path: Path
    size: int
    tag: str = ""

    @classmethod
    def at(cls, path: Path) -> "File":
        """The file as it is now."""
        return cls(path, path.stat().st_size)

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def read(self, offset: int, size: int) -> bytes:
        """Some of its bytes."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Parts:
    """Files read as one; `starts` is where each begins, with the end of the last behind them."""

    files: tuple[Part, ...]
    starts: tuple[int, ...]
    at_once: int
    """Reads that are worth making at the same time: more than one where each waits for a network."""

    @classmethod
    def of(cls, files: Iterable[Part], at_once: int = 1) -> "Parts":
        """These files in this order."""
        files = tuple(files)
        return cls(files, tuple(accumulate((file.size for file in files), initial=0)), at_once)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return self.starts[-1]

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at a place, across parts; fewer at the end."""
        pieces = []
        while size > 0 and offset < self.size:
            number = bisect_right(self.starts, offset) - 1
            piece = self.files[number].read(offset - self.starts[number], min(size, self.starts[number + 1] - offset))
            if not piece:
                break
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class Entry:
    """A member as the directory has it; `offset` is in all parts joined, `length` are the bytes of the entry itself."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the entries of an archive lie in its parts joined."""

    parts: Parts
    own: Parts
    """What holds the directory itself: the parts, or a copy of its bytes."""

    begin: int
    """Where the directory begins in `own`."""

    size: int
    count: int
    is_split: bool

    def copied(self, file: Path) -> "Directory":
        """The same, read from a copy of its bytes, so that to look for an entry asks no network."""
        end = min(self.begin + self.size, self.own.size)
        with file.open("wb") as stream:
            for place in range(self.begin, end, _CHUNK):
                stream.write(self.own.read(place, min(_CHUNK, end - place)))
        return replace(self, own=Parts.of([File.at(file)]), begin=0)

    def entry(self, place: int) -> Entry | None:
        """The entry at a place; None when there is none."""
        return self._entry(self.own.read(place, _LONGEST_ENTRY), 0)

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Each entry with its place. Raises InputError when the directory ends early or holds something else."""
        held, at, read = b"", 0, 0
        for number in range(self.count):
            if len(held) - at < _LONGEST_ENTRY and read < self.size:
                more = self.own.read(self.begin + read, min(_CHUNK, self.size - read))
                held, at, read = held[at:] + more, 0, read + (len(more) or self.size)
            entry = self._entry(held, at)
            if entry is None:
                raise InputError(
                    f"{self.parts.files[-1].name}: expected a directory of {self.count} entries, found it broken after {number}"
                )
            yield self.begin + read - len(held) + at, entry
            at += entry.length

    def _entry(self, data: bytes, at: int) -> Entry | None:
        if len(data) - at < _ENTRY.size or data[at : at + 4] != b"PK\1\2":
            return None
        fields = _ENTRY.unpack_from(data, at)
        flags, method, crc, mode = fields[3], fields[4], fields[7], fields[15] >> 16
        named, extra, comment = fields[10:13]
        start, length = at + _ENTRY.size, _ENTRY.size + named + extra + comment
        if len(data) - at < length:
            return None
        numbers = {"packed": fields[8], "size": fields[9], "part": fields[13], "offset": fields[16]}
        if extra:
            numbers = _widened(numbers, data[start + named : start + named + extra])
        offset = numbers["offset"] + self._start(numbers["part"])
        return Entry(data[start : start + named], flags, method, crc, numbers["packed"], numbers["size"], mode, offset, length)

    def _start(self, part: int) -> int:
        """Where places of a part count from; one past the last byte for a part that is not there."""
        return self.parts.starts[min(part, len(self.parts.files))] if self.is_split else 0


def _widened(numbers: dict[str, int], extra: bytes) -> dict[str, int]:
    """The numbers of an entry, from its ZIP64 field where they did not fit."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        for name, width, full in _WIDE if kind == 1 else ():
            if numbers[name] == full and len(field) >= width:
                numbers, field = {**numbers, name: int.from_bytes(field[:width], "little")}, field[width:]
        at += 4 + length
    return numbers


def last_part(names: Iterable[str], where: str) -> str | None:
    """The one of some file names that ends an archive; None when none does. Raises InputError for two archives `where` they lie."""
    archives = sorted(name for name in names if name.endswith(".zip"))
    if len(archives) > 1:
        raise InputError(f"{where}: expected one archive, found {', '.join(archives)}")
    return archives[0] if archives else None


def in_order(names: Iterable[str], last: str) -> list[str]:
    """Those of some file names that are parts of the archive that ends in the file `last`, in order."""
    part = re.compile(re.escape(last.removesuffix(".zip")) + r"\.z(\d+)")
    numbers = {name: int(found[1]) for name in names if (found := part.fullmatch(name))}
    return [*sorted(numbers, key=lambda name: numbers[name]), last]


def find(parts: Parts) -> Directory:
    """The directory at the end of an archive. Raises InputError when it has none or parts are missing."""
    last = parts.files[-1].name
    begin = max(0, parts.size - _LONGEST_COMMENT - _END.size)
    tail = parts.read(begin, parts.size)
    place = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + 4)
    if place < 0:
        raise InputError(f"{last}: expected the last part of a ZIP archive, found no directory at its end")
    _, disk, part, _, count, size, offset, _ = _END.unpack_from(tail, place)
    at = place - _LOCATOR.size
    if at >= 0 and tail.startswith(b"PK\6\7", at):
        _, part, place64, disks = _LOCATOR.unpack_from(tail, at)
        disk = max(1, disks) - 1
        _check_parts(parts, disk)
        record = parts.read(place64 + (parts.starts[min(part, disk)] if disk else 0), _END64.size)
        if len(record) < _END64.size or record[:4] != b"PK\6\6":
            raise InputError(f"{last}: expected the end of a ZIP64 directory at {place64}, found something else")
        *_, part, _, count, size, offset = _END64.unpack(record)
    _check_parts(parts, disk)
    start = parts.starts[min(part, disk)] if disk else 0
    return Directory(parts, own=parts, begin=start + offset, size=size, count=count, is_split=disk > 0)


def _check_parts(parts: Parts, disk: int) -> None:
    """Raise InputError when an archive that was split does not have all its parts; one cut without a mark may have any number."""
    suffixes = [part.name[part.name.rindex(".") :] for part in parts.files]
    if disk and suffixes[:-1] != [f".z{number:02d}" for number in range(1, disk + 1)]:
        found = ", ".join(suffixes)
        raise InputError(f"{parts.files[-1].name}: expected {disk + 1} parts, .z01 to .z{disk:02d} and .zip, found {found}")
