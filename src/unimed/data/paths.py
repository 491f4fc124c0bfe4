"""Paths that come from data stay in their root."""

import os
from pathlib import Path

from unimed.errors import InputError


def inside(root: Path, relative: str) -> Path:
    """The resolved path of `relative` under `root`.

    Raises InputError when it leaves `root`, also through `..`, an absolute path or a symbolic link.
    """
    if "\0" in relative:
        raise InputError(f"{relative!r}: expected a file name, found a NUL byte in it")
    top, path = os.path.realpath(root), os.path.realpath(root / relative)
    if os.path.commonpath([top, path]) != top:
        raise InputError(f"{relative}: expected a path inside {root.name}, found one that leads outside")
    return Path(path)


def content(root: Path, relative: str) -> bytes:
    """The bytes of a file under `root`. Raises InputError when the path leaves `root` or is no file."""
    path = inside(root, relative)
    try:
        if not path.is_file():
            raise InputError(f"{relative}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{relative}: expected a file that can be read, found {error.strerror}") from error
