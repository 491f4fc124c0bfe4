"""Facts about a subset, measured by opening every image and every mask once: what the data contract is asked about."""

import hashlib
import json
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from unimed.data import images, masks, pool, shards
from unimed.data.records import REGION, SEG
from unimed.data.shards import Place
from unimed.data.tables import Tables
from unimed.errors import InputError
from unimed.progress import track

Row = Mapping[Any, Any]
_MAX_PIXELS = 2**28
"""Far above any bound that ingest may be given: what is in a shard was let in before."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a shard holds at the place that a row of samples.parquet names."""

    sample_id: str
    modality: str
    licence: str
    bytes_match: bool
    decodes: bool
    size_matches: bool


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What the run lengths of a row of masks.parquet unpack to; the area is 0 when they do not."""

    mask_id: str
    sample_exists: bool
    unpacks: bool
    size_matches: bool
    area_matches: bool
    area_px: int
    area_fraction: float


@dataclass(frozen=True, slots=True)
class ConversationFacts:
    """How a row of conversations.parquet fits the other tables; a surplus is marks without a mask, or below 0 masks without a mark."""

    conversation_id: str
    sample_exists: bool
    readable: bool
    masks_resolve: bool
    seg_surplus: int
    region_surplus: int
    empty_texts: int
    solution_is_option: bool
    text: str


def measure(subset: Tables, folder: Path) -> dict[str, pd.DataFrame]:
    """A frame of facts for each table, row by row in the order of the table; images come from the shards in `folder`."""
    sizes = {row["sample_id"]: (row["height"], row["width"]) for row in subset.samples.to_dict("records")}
    owners = dict(zip(subset.masks["mask_id"], subset.masks["sample_id"], strict=True))
    opened = pool.ordered(partial(image_facts, folder=folder), subset.samples.to_dict("records"))
    samples = _frame(list(track(opened, len(subset.samples), "images checked")), ImageFacts)
    samples["splits_of_case"] = subset.samples.groupby(["dataset", "case"])["split"].transform("nunique").to_numpy()
    conversations = [_conversation_facts(row, sizes, owners) for row in subset.conversations.to_dict("records")]
    return {
        "samples": samples,
        "masks": _frame([_mask_facts(row, sizes) for row in subset.masks.to_dict("records")], MaskFacts),
        "conversations": _frame(conversations, ConversationFacts),
    }


def _frame(rows: list[Any], kind: type) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows], columns=list(kind.__dataclass_fields__))


def image_facts(row: Row, folder: Path) -> ImageFacts:
    """What the shards hold for a row of samples.parquet: the bytes that were packed, and an image of the size that is noted."""
    bytes_match = decodes = size_matches = False
    try:
        content = shards.read(folder, Place(shard=row["shard"], offset=row["offset"], size=row["size"]))
        bytes_match = hashlib.sha256(content).hexdigest() == row["sha256"]
        size = images.decode(content, row["sample_id"], _MAX_PIXELS).size
        decodes, size_matches = True, size == (row["width"], row["height"])
    except InputError:
        pass
    return ImageFacts(row["sample_id"], row["modality"], row["licence"], bytes_match, decodes, size_matches)


def _mask_facts(row: Row, sizes: Mapping[str, tuple[int, int]]) -> MaskFacts:
    size = sizes.get(row["sample_id"])
    try:
        mask = masks.decode(row["rle"], row["height"], row["width"])
    except InputError:
        mask = None
    area = 0 if mask is None else int(mask.sum())
    return MaskFacts(
        mask_id=row["mask_id"],
        sample_exists=size is not None,
        unpacks=mask is not None,
        size_matches=size is None or size == (row["height"], row["width"]),
        area_matches=area == row["area"],
        area_px=area,
        area_fraction=area / max(row["height"] * row["width"], 1),
    )


def _conversation_facts(row: Row, sizes: Mapping[str, Any], owners: Mapping[str, str]) -> ConversationFacts:
    turns = _turns(row["turns"])
    questions, answers = [turn["question"] for turn in turns], [turn["answer"] for turn in turns]
    regions = [mask_id for turn in turns for mask_id in turn["regions"]]
    targets = [target for turn in turns for target in turn["targets"]]
    named = [*regions, *(mask_id for target in targets for mask_id in target)]
    asked, answered = "\n".join(questions), "\n".join(answers)
    return ConversationFacts(
        conversation_id=row["conversation_id"],
        sample_exists=row["sample_id"] in sizes,
        readable=bool(turns),
        masks_resolve=all(targets) and all(owners.get(mask_id) == row["sample_id"] for mask_id in named),
        seg_surplus=answered.count(SEG) - len(targets),
        region_surplus=asked.count(REGION) - len(regions),
        empty_texts=sum(not text.strip() for text in (*questions, *answers)),
        solution_is_option=row["task"] != "reasoning" or _is_option(row, answers),
        text=asked.replace(REGION, "") + "\n" + answered.replace(SEG, ""),
    )


def _turns(text: str) -> list[Any]:
    """The turns of a conversation; none when the text is not what tables.py describes."""
    try:
        turns = json.loads(text)
        fits = all(_is_turn(turn) for turn in turns)
    except (json.JSONDecodeError, TypeError):
        return []
    return turns if fits else []


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and all(isinstance(turn.get(key), str) for key in ("question", "answer"))
        and all(isinstance(turn.get(key), list) for key in ("regions", "targets"))
        and all(isinstance(mask_id, str) for mask_id in turn["regions"])
        and all(isinstance(target, list) for target in turn["targets"])
    )


def _is_option(row: Row, answers: list[str]) -> bool:
    try:
        options = json.loads(row["options"])
    except json.JSONDecodeError:
        return False
    return row["solution"] in tuple(string.ascii_uppercase[: len(options)]) and answers == [row["solution"]]
