"""The directory of a ZIP archive in parts (.z01, .z02, ..., .zip): found, read through in pieces, and its entries taken apart.

PKWARE, APPNOTE.TXT 6.3.10, sections 4.3 and 4.5: in an archive that was split, places count from the start of a part.
"""

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unimed.errors import InputError

_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_CHUNK = 2**22
_LONGEST_ENTRY = _ENTRY.size + 3 * 2**16
_LONGEST_COMMENT = 2**16
_WIDE = (("size", 8, 2**32 - 1), ("packed", 8, 2**32 - 1), ("offset", 8, 2**32 - 1), ("part", 4, 2**16 - 1))
"""What a ZIP64 field holds, in this order: each number whose own field is full, with its width."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Files read as one; `starts` is where each begins, with the end of the last behind them."""

    files: tuple[Path, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, last: Path) -> "Parts":
        """The parts of the archive that ends in this file."""
        files = (*sorted(last.parent.glob(f"{last.stem}.z[0-9]*"), key=lambda part: int(part.suffix[2:])), last)
        starts = [0]
        for file in files:
            starts.append(starts[-1] + file.stat().st_size)
        return cls(files, tuple(starts))

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return self.starts[-1]

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at a place, across parts; fewer at the end."""
        pieces = []
        while size > 0 and offset < self.size:
            number = bisect_right(self.starts, offset) - 1
            piece = _read(self.files[number], offset - self.starts[number], min(size, self.starts[number + 1] - offset))
            if not piece:
                break
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return b"".join(pieces)


def _read(file: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


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
    begin: int
    size: int
    count: int
    is_split: bool

    def entry(self, place: int) -> Entry | None:
        """The entry at a place; None when there is none."""
        return self._entry(self.parts.read(place, _LONGEST_ENTRY), 0)

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Each entry with its place. Raises InputError when the directory ends early or holds something else."""
        held, at, read = b"", 0, 0
        for number in range(self.count):
            if len(held) - at < _LONGEST_ENTRY and read < self.size:
                more = self.parts.read(self.begin + read, min(_CHUNK, self.size - read))
                held, at, read = held[at:] + more, 0, read + (len(more) or self.size)
            entry = self._entry(held, at)
            if entry is None:
                raise InputError(f"{self.parts.files[-1]}: expected a directory of {self.count} entries, found it broken after {number}")
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


def find(last: Path) -> Directory:
    """The directory of the archive that ends in this file. Raises InputError when it has none or parts are missing."""
    parts = Parts.of(last)
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
    return Directory(parts, begin=start + offset, size=size, count=count, is_split=disk > 0)


def _check_parts(parts: Parts, disk: int) -> None:
    """Raise InputError when an archive that was split does not have all its parts; one cut without a mark may have any number."""
    if disk and [part.suffix for part in parts.files[:-1]] != [f".z{number:02d}" for number in range(1, disk + 1)]:
        found = ", ".join(part.suffix for part in parts.files)
        raise InputError(f"{parts.files[-1]}: expected {disk + 1} parts, .z01 to .z{disk:02d} and .zip, found {found}")
