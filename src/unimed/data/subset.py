"""A subset for one task: conversations drawn evenly over modality, question type and class, with a manifest that says why."""

import json
import logging
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from unimed.config import Subset, Subsets
from unimed.data import splits, tables
from unimed.data.raw import load
from unimed.data.tables import SPLITS, Tables
from unimed.errors import InputError

log = logging.getLogger(__name__)
TASKS = {"alignment": ("alignment",), "vqa": ("vqa", "region"), "grounding": ("grounding",), "reasoning": ("reasoning",)}
"""Tasks of the conversations that each trained task uses."""


def size_of(subsets: Subsets, task: str) -> Subset:
    """How many conversations of a task to take. Raises InputError for an unknown task."""
    if task not in TASKS:
        raise InputError(f"--task: expected one of {', '.join(TASKS)}, found {task!r}")
    return getattr(subsets, task)


def write(source: Path, folder: Path, task: str, size: Subset, seed: int) -> None:
    """Write the subset of the tables in `source` for a task, with its manifest; the same input gives the same bytes.

    Raises InputError when nothing is left to train on.
    """
    made, manifest = select(Tables.read(source), task=task, size=size, seed=seed)
    whole = load(source / "manifest.json")
    manifest |= {"provenance": whole.get("provenance", {}), "quarantined_at_ingest": whole.get("quarantined", {})}
    if not manifest["splits"]["train"]["taken"]:
        available = ", ".join(f"{split} {manifest['splits'][split]['available']}" for split in SPLITS)
        raise InputError(f"{source}: expected at least one train conversation of task {task!r}, found none ({available})")
    made.write(folder)
    tables.write_json(folder / "manifest.json", manifest)
    log.info("subset %s: %d of %d conversations", task, len(made.conversations), manifest["available"])


def select(whole: Tables, task: str, size: Subset, seed: int) -> tuple[Tables, dict[str, Any]]:
    """The rows chosen for a task, and what was asked, taken and left out in each split."""
    about = whole.conversations.merge(whole.samples[["sample_id", "modality", "split"]], on="sample_id")
    fitting = tables.matching(about, "task", TASKS[task])
    classes = dict(zip(whole.masks["mask_id"], whole.masks["class_name"], strict=True))
    chosen, told = [], {}
    for split in SPLITS:
        rows = tables.matching(fitting, "split", (split,))
        asked = getattr(size, split)
        taken = _draw(rows, classes, len(rows) if asked is None else asked, seed)
        chosen += taken
        left_out = {"beyond the number asked for": len(rows) - len(taken)} if len(taken) < len(rows) else {}
        told[split] = {"asked": asked, "available": len(rows), "taken": len(taken), "left_out": left_out}
    made = _only(whole, set(chosen))
    manifest = {
        "task": task,
        "seed": seed,
        "available": len(fitting),
        "of_other_tasks": len(about) - len(fitting),
        "splits": told,
        "counts": made.counts(),
    }
    return made, manifest


def _draw(rows: pd.DataFrame, classes: dict[str, str], count: int, seed: int) -> list[str]:
    """Ids of up to `count` conversations: one of each stratum in turn, strata and rows in the order of a hash."""
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for modality, kind, turns, key in rows[["modality", "question_type", "turns", "conversation_id"]].itertuples(index=False):
        strata[modality, kind, _class(turns, classes)].append(key)
    ordered = [
        sorted(strata[stratum], key=lambda key: splits.rank(seed, key))
        for stratum in sorted(strata, key=lambda stratum: splits.rank(seed, *stratum))
    ]
    in_turn = [key for round_ in zip_longest(*ordered) for key in round_ if key is not None]
    return in_turn[:count]


def _class(turns: str, classes: dict[str, str]) -> str:
    """The class of the first mask that a conversation names; empty when it names none."""
    return next((classes.get(mask_id, "") for mask_id in mask_ids(turns)), "")


def mask_ids(turns: str) -> list[str]:
    """Ids of all masks that the turns of a conversation name, targets before regions."""
    said = json.loads(turns)
    targets = [mask_id for turn in said for target in turn["targets"] for mask_id in target]
    return targets + [mask_id for turn in said for mask_id in turn["regions"]]


def _only(whole: Tables, chosen: set[str]) -> Tables:
    """The chosen conversations with the images and masks that they name; a union comes with the instances it is made of."""
    conversations = tables.matching(whole.conversations, "conversation_id", chosen)
    named = {mask_id for turns in conversations["turns"] for mask_id in mask_ids(turns)}
    rows = whole.masks.to_dict("records")
    unions = {(row["sample_id"], row["class_id"]) for row in rows if row["mask_id"] in named and row["instance"] < 0}
    parts = {row["mask_id"] for row in rows if (row["sample_id"], row["class_id"]) in unions}
    return Tables(
        samples=tables.matching(whole.samples, "sample_id", set(conversations["sample_id"])),
        masks=tables.matching(whole.masks, "mask_id", named | parts),
        conversations=conversations,
    )
