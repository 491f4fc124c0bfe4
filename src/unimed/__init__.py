"""Uni-MedVLM: `unimed.load("models:/unimed-medvlm@champion").answer(image, question)`."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimed.release.load import Loaded

NOTICE = "For research only: not a medical device, not for clinical use."


def load(uri: str, cache: Path | None = None) -> "Loaded":
    """The model at `models:/NAME@ALIAS`, at `models:/NAME/VERSION` or in a folder, every file verified by hash before it is used.

    What a registry hands out is kept in `cache`, by default the folder `unimed` of the user's cache. Raises InputError, one sentence, for
    a model that is missing, incomplete or not what was registered.
    """
    from unimed import environment

    environment.settle()
    from unimed.release import load as loading

    return loading.load(uri, cache)
