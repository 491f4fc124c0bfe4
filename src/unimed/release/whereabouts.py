"""Where a part of a release lies that no registry hands out, such as the foundation, which is pinned by hash and not copied."""

import configparser
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from unimed import outputs
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.store import Store

MODELS = Path("models")
"""Where the project keeps its models; paths of dvc.yaml."""

STORE = "UNIMED_STORE"
"""Environment variable with the address of the DVC store, for machines without the project; it wins over .dvc/config."""

log = logging.getLogger("release")


def bring(name: str, record: Mapping[str, str], beside: Sequence[Path], place: Path) -> None:
    """Make `place` the part of that name and hash: from a folder beside, from the project's models, else from the DVC store.

    Raises InputError when it is nowhere. The caller verifies what the store gives.
    """
    digest = record["manifest_sha256"]
    for folder in (*(parent / name for parent in beside), MODELS / name):
        if _is(folder, digest):
            shutil.copytree(folder, place, copy_function=outputs.link)
            return
    if not (url := store_address()):
        raise InputError(
            f"{name}: expected its folder with manifest sha256 {digest} in {MODELS / name} or a DVC store to fetch it from, found neither; "
            f"`dvc pull {MODELS / name}` in the project, or set {STORE} to the address of its store, s3://BUCKET/PREFIX"
        )
    Store(url).pull(record["dvc"], place)


def _is(folder: Path, digest: str) -> bool:
    """Whether a folder is the model with that manifest, all its files unchanged."""
    if not (folder / artifacts.MANIFEST).is_file() or artifacts.sha256(folder / artifacts.MANIFEST) != digest:
        return False
    try:
        artifacts.verify(folder)
    except InputError as error:
        log.warning("%s is passed over: %s", folder, error)
        return False
    return True


def store_address() -> str:
    """The address of the DVC store: UNIMED_STORE, else the default remote of the project in the working folder; empty without one.

    Reads DVC's configuration itself: where models are only used, DVC is not installed.
    """
    if given := os.environ.get(STORE):
        return given.rstrip("/")
    config = configparser.ConfigParser(interpolation=None)
    config.read([".dvc/config", ".dvc/config.local"])
    remote = config.get("core", "remote", fallback="")
    url = config.get(f"'remote \"{remote}\"'", "url", fallback="").rstrip("/")
    return url if url.startswith("s3://") else ""
