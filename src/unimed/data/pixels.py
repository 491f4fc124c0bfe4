"""What gives the bytes of images and masks, whatever a download lies in; worker processes get a copy of it."""

from collections.abc import Sequence
from dataclasses import dataclass
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
            return paths.content(self.base, path)
        except InputError as error:
            return error
