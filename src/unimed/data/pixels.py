"""What gives the bytes of images and masks, whatever a download lies in; worker processes get a copy of it."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from unimed.data import paths
from unimed.errors import InputError


class Pixels(Protocol):
    """Bytes by path under `SAMed2Dv1`."""

    def read(self, wanted: Sequence[str]) -> list[bytes | InputError]:
        """The bytes of each path, or why it has none; raises InputError for what is not the fault of one file."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """Pixels that lie as files."""

    base: Path

    def read(self, wanted: Sequence[str]) -> list[bytes | InputError]:
        """The bytes of each file, or why it has none."""
        return [self._content(path) for path in wanted]

    def _content(self, path: str) -> bytes | InputError:
        try:
            return self._plain(path) or paths.content(self.base, path)
        except InputError as error:
            return error

    def _plain(self, path: str) -> bytes:
        """The bytes of what is a file and no link, without asking for each folder again; none for anything else."""
        folder, _, name = path.rpartition("/")
        if name in ("", ".", "..") or "\0" in path:
            return b""
        try:
            descriptor = os.open(_real(self.base, folder) / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return b""
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""


@lru_cache(maxsize=16)
def _real(base: Path, folder: str) -> Path:
    return paths.inside(base, folder)
