"""A run on the cluster becomes this project's own: dvc.lock says what it made, `dvc pull` fetches it, `dvc repro` finds it up to date."""

from pathlib import Path
from typing import Any

import yaml

from pipelines import lock
from pipelines.order import Order
from unimed.errors import InputError
from unimed.store import Store


def orders(spec: dict[str, Any]) -> list[Order]:
    """What a compiled pipeline told the pods of its stages; raises `InputError` for a pipeline of another project."""
    found = []
    for executor in spec.get("deploymentSpec", {}).get("executors", {}).values():
        command = executor.get("container", {}).get("command", [])
        if "pipelines.pod" in command:
            found.append(Order.model_validate_json(command[command.index("--order") + 1]))
    if not found:
        raise InputError("pipeline: expected the stages of this project, found none; pass a run or a file of `unimed compile`")
    return [order for order in found if order.recipe]


def read(file: Path) -> dict[str, Any]:
    """The IR in a file that `unimed compile` wrote."""
    try:
        documents = list(yaml.safe_load_all(file.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{file}: expected a compiled pipeline, found {error}") from None
    if not documents or not isinstance(documents[0], dict):
        raise InputError(f"{file}: expected a compiled pipeline, found another file")
    return documents[0]


def adopt(spec: dict[str, Any], root: Path) -> tuple[list[str], list[str]]:
    """Write what the store records of a pipeline's stages into dvc.lock; returns the stages adopted and those the store lacks."""
    entries, lacking = {}, []
    for order in orders(spec):
        if not order.store:
            raise InputError("pipeline: expected one compiled with a store, found none, so nothing was kept that could be adopted")
        record = Store(order.store).record(order.stage, order.recipe)
        if record is None:
            lacking.append(order.stage)
        else:
            entries[order.stage] = lock.check(record.get("lock"), order.stage)
    if entries:
        lock.write(root / "dvc.lock", entries)
    return list(entries), lacking


def summary(adopted: list[str], lacking: list[str]) -> str:
    """One line for a person."""
    missing = f"; the store has nothing of {', '.join(lacking)}" if lacking else ""
    return f"dvc.lock now has {len(adopted)} stages of the run{missing}. `dvc pull` fetches what they made."
