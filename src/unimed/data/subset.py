"""A subset for one task: conversations drawn evenly over modality, question type and class, with a manifest that says why."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unimed.config import Subset, Subsets
from unimed.data import choice, sql, tables
from unimed.data.counts import counts
from unimed.data.streamed import load
from unimed.data.tables import CONVERSATIONS, MASKS, SAMPLES, SPLITS
from unimed.errors import InputError

log = logging.getLogger(__name__)
TASKS = {"alignment": ("alignment",), "vqa": ("vqa", "region"), "grounding": ("grounding",), "reasoning": ("reasoning",)}
"""Tasks of the conversations that each trained task uses."""

_KEPT = """
    CREATE OR REPLACE TEMP TABLE kept AS
    WITH wanted AS (SELECT DISTINCT mask_id FROM named SEMI JOIN chosen USING (conversation_id)),
        unions AS (SELECT DISTINCT sample_id, class_id FROM masks SEMI JOIN wanted USING (mask_id) WHERE instance < 0)
    SELECT mask_id FROM masks SEMI JOIN wanted USING (mask_id)
    UNION SELECT mask_id FROM masks SEMI JOIN unions USING (sample_id, class_id)
"""
"""Masks that chosen conversations name; a union comes with the instances it is made of."""

_ROWS = {
    "samples": (SAMPLES, 'SELECT * FROM samples SEMI JOIN chosen USING (sample_id) ORDER BY dataset, "case", sample_id'),
    "masks": (MASKS, "SELECT * FROM masks SEMI JOIN kept USING (mask_id) ORDER BY mask_id"),
    "conversations": (
        CONVERSATIONS,
        "SELECT * FROM conversations SEMI JOIN chosen USING (conversation_id) ORDER BY sample_id, conversation_id",
    ),
}


def asked_of(subsets: Subsets, task: str) -> Subset:
    """What to take of a task. Raises InputError for an unknown task."""
    if task not in TASKS:
        raise InputError(f"--task: expected one of {', '.join(TASKS)}, found {task!r}")
    return getattr(subsets, task)


def write(source: Path, folder: Path, task: str, asked: Subset, seed: int) -> None:
    """Write the subset of the tables in `source` for a task, with its manifest; the same input gives the same bytes.

    Raises InputError when a filter names what the tables do not have and when nothing is left to train on.
    """
    whole = load(source / "manifest.json")
    for name, (schema, _) in _ROWS.items():
        tables.opened(source / f"{name}.parquet", schema)
    with sql.opened(**{name: source / f"{name}.parquet" for name in _ROWS}) as connection:
        try:
            choice.choose(connection, TASKS[task], asked, seed)
        except InputError as error:
            raise InputError(f"subsets.{task}.{error}") from error
        told = choice.told(connection, asked)
        _refuse_nothing(told["splits"], source, task)
        folder.mkdir(parents=True, exist_ok=True)
        connection.execute(_KEPT)
        for name, (schema, query) in _ROWS.items():
            sql.write(folder / f"{name}.parquet", sql.batches(connection, query, schema), schema)
    with sql.opened(**{name: folder / f"{name}.parquet" for name in _ROWS}) as connection:
        made = counts(connection)
    about = {"provenance": whole.get("provenance", {})}
    about |= {f"{key}_at_ingest": whole.get(key, {}) for key in ("quarantined", "excluded")}
    tables.write_json(folder / "manifest.json", {"task": task, "seed": seed, **told, "counts": made, **about})
    log.info("subset %s: %d of %d conversations", task, made["conversations"], told["available"])


def _refuse_nothing(told: Mapping[str, Any], source: Path, task: str) -> None:
    if told["train"]["taken"]:
        return
    available = ", ".join(f"{split} {told[split]['available']}" for split in SPLITS)
    reasons = [f"{count} {reason}" for reason, count in told["train"]["left_out"].items()]
    left_out = f"; left out: {', '.join(reasons)}" if reasons else ""
    raise InputError(f"{source}: expected at least one train conversation of task {task!r}, found none ({available}{left_out})")


def mask_ids(turns: str) -> list[str]:
    """Ids of all masks that the turns of a conversation name, targets before regions."""
    said = json.loads(turns)
    targets = [mask_id for turn in said for target in turn["targets"] for mask_id in target]
    return targets + [mask_id for turn in said for mask_id in turn["regions"]]
