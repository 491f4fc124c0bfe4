"""Where what can be made again is kept between runs: in the user's cache, never in the project."""

import os
from pathlib import Path


def folder() -> Path:
    """The folder `unimed` in the user's cache: of XDG_CACHE_HOME, else of ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "unimed"
