"""Image bytes in plain WebDataset tar shards: written in order, read one member at a time by offset, without an index."""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from unimed.data import paths
from unimed.errors import InputError

_TOGETHER = 2**24
"""Bytes of a member that are copied at once; tarfile's own 16 KB cost more than writing them."""


class Packable(Protocol):
    """What a shard takes: a name unique in all shards, and bytes."""

    @property
    def sample_id(self) -> str:
        """Name of the member, without its ending."""
        ...

    @property
    def content(self) -> bytes:
        """Bytes of the member, kept as they are."""
        ...


Item = TypeVar("Item", bound=Packable)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one image's bytes lie: file name of the shard, and offset and size in bytes."""

    shard: str
    offset: int
    size: int


def write(folder: Path, items: Iterable[Item], shard_bytes: int, first: int = 0) -> Iterator[tuple[Item, Place]]:
    """Write items into shards of about `shard_bytes`, numbered from `first`, and give each back with its place.

    The same items give the same bytes. An item without bytes takes no room; its place says which shard was being written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items = iter(items)
    pending, number = next(items, None), first
    while pending is not None:
        name = f"shard-{number:06d}.tar"
        with tarfile.TarFile(folder / name, "w", format=tarfile.GNU_FORMAT, copybufsize=_TOGETHER) as shard:
            while pending is not None and (shard.offset == 0 or shard.offset + len(pending.content) <= shard_bytes):
                yield pending, _add(shard, name, pending) if pending.content else Place(name, shard.offset, 0)
                pending = next(items, None)
        number += 1


def _add(shard: tarfile.TarFile, name: str, item: Packable) -> Place:
    member = tarfile.TarInfo(item.sample_id + ending(item.content))
    member.size = len(item.content)
    shard.addfile(member, io.BytesIO(item.content))
    blocks = -(-member.size // tarfile.BLOCKSIZE)
    return Place(shard=name, offset=shard.offset - blocks * tarfile.BLOCKSIZE, size=member.size)


def ending(content: bytes) -> str:
    """The file name ending that fits an image's bytes."""
    return ".jpg" if content.startswith(b"\xff\xd8") else ".png"


def read(root: Path, place: Place) -> bytes:
    """The bytes at a place. Raises InputError when the shard is missing, outside `root`, or ends too early."""
    try:
        handle = os.open(paths.inside(root, place.shard), os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{place.shard}: expected a shard in {root}, found {error.strerror}") from error
    try:
        content = os.pread(handle, place.size, place.offset)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{place.shard}: expected {place.size} bytes at {place.offset}, found {error}") from error
    finally:
        os.close(handle)
    if len(content) != place.size:
        raise InputError(f"{place.shard}: expected {place.size} bytes at {place.offset}, found {len(content)}")
    return content
