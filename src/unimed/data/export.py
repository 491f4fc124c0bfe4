"""Tables and shards back into folders that other tools read: images, masks and JSON.

In the layout of the download, which can be ingested again and gives the same conversations; or flat, one clean JSON for each task beside
images/ and masks/, as scripts take it that prepare data for MedPLIB.
"""

import json
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimed.data import masks, names, paths, raw, shards, tables
from unimed.data.records import REGION, SEG, lettered
from unimed.data.shards import Place
from unimed.data.tables import Tables
from unimed.errors import InputError

Row = Mapping[Any, Any]


@dataclass(frozen=True)
class Layout:
    """Where an export keeps pixels, relative to its folder, and the masks that unite a class, relative to those."""

    pixels: str
    merged: str


DOWNLOAD = Layout(raw.PIXELS, "masks_merged")
FLAT = Layout("", "masks")


def write(source: Path, shards_folder: Path, folder: Path, layout: Layout = DOWNLOAD) -> None:
    """Write the tables in `source`, all or a subset, with their pixels; masks have values 0 and 255.

    Raises InputError when `folder` exists, a table or shard cannot be read, or a name would leave `folder`.
    """
    if folder.exists():
        raise InputError(f"{folder}: expected a folder that is not there yet, found one")
    whole = Tables.read(source)
    pixels = folder / layout.pixels
    for part in ("images", "masks", layout.merged):
        (pixels / part).mkdir(parents=True, exist_ok=True)
    images = {row["sample_id"]: _write_image(pixels, shards_folder, row) for row in whole.samples.to_dict("records")}
    listed = _write_masks(pixels, whole, layout)
    unions = _unions(whole, layout)
    if layout == FLAT:
        for task, rows in whole.conversations.groupby("task", sort=True):
            records = [_record(row, images[row["sample_id"]], unions) for row in rows.to_dict("records")]
            tables.write_json(folder / f"{task}.json", records)
        return
    tables.write_json(folder / raw.INDEX, {path: listed.get(sample_id, []) for sample_id, path in images.items()})
    tables.write_json(folder / raw.MAPPING, _mapping(whole))
    licences = dict(zip(whole.samples["dataset"], whole.samples["licence"], strict=True))
    known = {dataset: licence for dataset, licence in licences.items() if licence != "unknown"}
    tables.write_json(folder / raw.PROVENANCE, {"exported_from": "unimed tables", "licences": known})
    for file, records in _annotations(whole, images, unions).items():
        tables.write_json(paths.inside(folder, file), records)


def _write_image(pixels: Path, shards_folder: Path, row: Row) -> str:
    """Write the bytes as they were downloaded; gives their path as annotations name it."""
    content = shards.read(shards_folder, Place(shard=row["shard"], offset=row["offset"], size=row["size"]))
    path = f"images/{row['sample_id']}{shards.ending(content)}"
    paths.inside(pixels, path).write_bytes(content)
    return path


def _write_masks(pixels: Path, whole: Tables, layout: Layout) -> dict[str, list[str]]:
    """Write each mask, and each class's union; gives the paths of every image's instance masks."""
    listed: dict[str, list[str]] = defaultdict(list)
    unions: dict[str, list[Row]] = defaultdict(list)
    for row in whole.masks.to_dict("records"):
        unions[names.merged(row["sample_id"], row["class_id"])].append(row)
        if row["instance"] >= 0:
            listed[row["sample_id"]].append(f"masks/{row['mask_id']}.png")
            _write_mask(pixels, listed[row["sample_id"]][-1], [row])
    for stem, rows in unions.items():
        _write_mask(pixels, f"{layout.merged}/{stem}.png", rows)
    return listed


def _write_mask(pixels: Path, path: str, rows: Iterable[Row]) -> None:
    rows = list(rows)
    covered = masks.union([row["rle"] for row in rows], rows[0]["height"], rows[0]["width"])
    Image.fromarray(covered.astype(np.uint8) * 255).save(paths.inside(pixels, path))


def _mapping(whole: Tables) -> dict[str, dict[str, int]]:
    datasets = dict(zip(whole.samples["sample_id"], whole.samples["dataset"], strict=True))
    mapping: dict[str, dict[str, int]] = {dataset: {} for dataset in sorted(set(datasets.values()))}
    for row in whole.masks.to_dict("records"):
        mapping[datasets[row["sample_id"]]][row["class_name"]] = row["class_id"]
    return mapping


def _unions(whole: Tables, layout: Layout) -> dict[frozenset[str], str]:
    """The file that shows all instances of a class, by their ids and by the id of their union."""
    classes: dict[tuple[str, int], set[str]] = defaultdict(set)
    for row in whole.masks.to_dict("records"):
        if row["instance"] >= 0:
            classes[row["sample_id"], row["class_id"]].add(row["mask_id"])
    files = {names.merged(*key): frozenset(mask_ids) for key, mask_ids in classes.items()}
    return {which: f"{layout.merged}/{stem}.png" for stem, all_ids in files.items() for which in (all_ids, frozenset((stem,)))}


def _annotations(whole: Tables, images: Mapping[str, str], unions: Mapping[frozenset[str], str]) -> dict[str, list[dict[str, Any]]]:
    """Records by file; a task without conversations gets an empty file, so that the layout is whole."""
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in whole.conversations.to_dict("records"):
        record = _record(row, images[row["sample_id"]], unions)
        files[raw.place(row["task"], row["source"])].append(record)
    for needed in (needed for needed in raw.ANNOTATIONS if not needed.held_out):
        if not any(fnmatch(file, needed.pattern) for file in files):
            files[needed.pattern.replace("*", needed.task)] = []
    return files


def _record(row: Row, image: str, unions: Mapping[frozenset[str], str]) -> dict[str, Any]:
    about = {"id": row["conversation_id"], "image": image, "question_type": row["question_type"]}
    optional = {key: row[key] for key in ("answer_type", "rationale") if row[key]}
    turns = json.loads(row["turns"])
    if row["task"] == "reasoning":
        options = json.loads(row["options"])
        problem = turns[0]["question"]
        question = problem.removesuffix(lettered("", options))
        answer = options[string.ascii_uppercase.index(row["solution"])]
        choice = {"question": question, "options": options, "answer": answer, "problem": problem, "solution": row["solution"]}
        return {**about, **optional, **choice, "image": [image]}
    said = [part for number, turn in enumerate(turns) for part in _said(turn, "<image>\n" if number == 0 else "", unions)]
    return {**about, **optional, "conversations": said}


def _said(turn: dict[str, Any], opening: str, unions: Mapping[frozenset[str], str]) -> Iterator[dict[str, str]]:
    """A question with its mask paths between region marks, and an answer with one behind each <SEG>."""
    regions = [f"{REGION}{_path([mask_id], unions)}</region>" for mask_id in turn["regions"]]
    targets = [f"{SEG}<mask>{_path(target, unions)}</mask>" for target in turn["targets"]]
    yield {"from": "human", "value": opening + _filled(turn["question"], REGION, regions)}
    yield {"from": "gpt", "value": _filled(turn["answer"], SEG, targets)}


def _filled(text: str, mark: str, values: list[str]) -> str:
    """The text with its marks replaced one by one. Raises ValueError when there are more or fewer marks than values."""
    pieces = text.split(mark)
    return pieces[0] + "".join(value + piece for value, piece in zip(values, pieces[1:], strict=True))


def _path(mask_ids: list[str], unions: Mapping[frozenset[str], str]) -> str:
    """The one file that shows these masks."""
    known = frozenset(mask_ids)
    if known in unions:
        return unions[known]
    if len(mask_ids) != 1:
        raise InputError(f"{', '.join(mask_ids)}: expected all instances of one class, found some")
    return f"masks/{mask_ids[0]}.png"
