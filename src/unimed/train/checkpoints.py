"""Checkpoints of a training on disk: complete or absent, verified before use, in safetensors and JSON.

Each process writes a file of tensors: what is the same in all stands in the first one's, what ZeRO spreads over them in each. Of several
machines each has a checkpoint of its own, whole but for the others' files: they share no disk, or do and do not know it.
"""

import json
import logging
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from unimed import job
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.train.together import Together

NUMBERS = "numbers.json"
log = logging.getLogger("resuming")


def newest(folder: Path, together: Together) -> Path | None:
    """The newest checkpoint that is on every machine and verifies there; those that do not are named in a warning and left out."""
    own = [place.name for place in job.complete_checkpoints(folder)]
    there = set.intersection(*(set(json.loads(each)) for each in together.gathered(json.dumps(own).encode())))
    for name in sorted(there, reverse=True):
        is_torn = together.is_first and not _verifies(folder / name)
        if not any(together.greatest(is_torn)):
            return folder / name
    return None


def _verifies(place: Path) -> bool:
    try:
        artifacts.verify(place)
    except InputError as error:
        log.warning("checkpoint left out: %s", error)
        return False
    return True


def agreed(folder: Path, together: Together, told: dict[str, Any] | None = None) -> Path | None:
    """The checkpoint that all processes go on from, if any. Raises InputError where they are not as those that wrote it."""
    found = newest(folder, together)
    if found is None:
        return None
    numbers = numbers_of(str(found))
    if (count := len(numbers["random"])) != together.count:
        remedy = "start as many, or delete it to start anew"
        raise InputError(f"{found}: expected a checkpoint of {together.count} processes, found one of {count}; {remedy}")
    if numbers["deepspeed"] != told:
        remedy = "put that back, or delete it to start anew"
        raise InputError(f"{found}: expected a checkpoint made under DeepSpeed's present configuration, found another's; {remedy}")
    return found


def file_of(checkpoint: Path, rank: int) -> Path:
    """Where a checkpoint holds the tensors of a process."""
    return checkpoint / f"process-{rank:05d}.safetensors"


def tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names begin so, by the rest of their names; no others are read."""
    with safe_open(path, framework="pt") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def numbers_of(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint holds besides tensors."""
    return json.loads((Path(checkpoint) / NUMBERS).read_text())
