"""Sound subsets of any size, made up: tables of images, masks and conversations, and the facts that their pixels would give."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unimed.data import image_facts, mask_facts, masks, runs, sql, tables

MASKS_PER_IMAGE, MASKS_PER_CONVERSATION = 4, 64
"""As in SA-Med2D-20M with MeCoVQA: 4.6 M images, 20 M masks, 310 k conversations."""

SIDE, SHAPES, CLASSES = 512, 997, 30
SEED = 0


def shapes() -> tuple[list[str], list[int]]:
    """Run lengths and areas of discs of many sizes and places."""
    draw = np.random.default_rng(SEED)
    y, x = np.mgrid[:SIDE, :SIDE]
    made = [(y - draw.integers(SIDE)) ** 2 + (x - draw.integers(SIDE)) ** 2 < draw.integers(4, 90) ** 2 for _ in range(SHAPES)]
    made = [pixels if pixels.sum() > 50 else y + x < 100 for pixels in made]
    return [masks.encode(pixels) for pixels in made], [int(pixels.sum()) for pixels in made]


def names(first: int, count: int) -> list[str]:
    """Names of images, twenty slices of a case, in the order of their tables."""
    return [f"ct_00--Set{number // 200_000:03d}--case_{number // 20:07d}--z_{number % 20:04d}" for number in range(first, first + count)]


def write_tables(folder: Path, count: int) -> None:
    """Write a sound subset of `count` masks, as far as tables go."""
    images = count // MASKS_PER_IMAGE
    rles, areas = shapes()
    sql.write(folder / "samples.parquet", map(_samples, *_chunks(images)), tables.SAMPLES)
    sql.write(
        folder / "masks.parquet", (_masks(first, rows, rles, areas) for first, rows in zip(*_chunks(count), strict=True)), tables.MASKS
    )
    spoken = count // MASKS_PER_CONVERSATION
    sql.write(folder / "conversations.parquet", map(_conversations, *_chunks(spoken)), tables.CONVERSATIONS)
    write_manifest(folder)


def write_manifest(folder: Path) -> None:
    """Write what a validation reads of a manifest."""
    nothing = dict.fromkeys(("asked", "available", "taken"), 0)
    tables.write_json(folder / "manifest.json", {"task": "grounding", "splits": dict.fromkeys(tables.SPLITS, nothing)})


def _chunks(count: int) -> tuple[list[int], list[int]]:
    firsts = list(range(0, count, sql.ROWS))
    return firsts, [min(sql.ROWS, count - first) for first in firsts]


def _table(schema: pa.Schema, count: int, **columns: object) -> pa.Table:
    """Columns of a schema; a single value stands for all rows."""
    filled = {name: [value] * count if isinstance(value, str | int) else value for name, value in columns.items()}
    return pa.Table.from_pydict({name: filled[name] for name in schema.names}, schema=schema)


def _samples(first: int, count: int) -> pa.Table:
    stems = names(first, count)
    parts = [stem.split("--") for stem in stems]
    known = {
        "sample_id": stems,
        "dataset": [one[1] for one in parts],
        "case": [one[2] for one in parts],
        "slice": [one[3] for one in parts],
        "fingerprint": [hashlib.sha256(stem.encode()).hexdigest() for stem in stems],
    }
    split = [("train", "train", "train", "val", "test")[number // 20 % 5] for number in range(first, first + count)]
    place = {"shard": [f"shard-{number // 5000:06d}.tar" for number in range(first, first + count)], "size": 1}
    place["offset"] = list(range(first, first + count))
    about = {"modality": "ct", "licence": "CC0-1.0", "sha256": "0" * 64, "height": SIDE, "width": SIDE}
    return _table(tables.SAMPLES, count, split=split, **known, **place, **about)


def _masks(first: int, count: int, rles: list[str], areas: list[int]) -> pa.Table:
    numbers = range(first, first + count)
    stems = np.repeat(names(first // MASKS_PER_IMAGE, count // MASKS_PER_IMAGE + 2), MASKS_PER_IMAGE)[first % MASKS_PER_IMAGE :][
        :count
    ].tolist()
    classes = [
        number % MASKS_PER_IMAGE + MASKS_PER_IMAGE * (number // MASKS_PER_IMAGE % (CLASSES // MASKS_PER_IMAGE)) for number in numbers
    ]
    return _table(
        tables.MASKS,
        count,
        mask_id=[f"{stem}--{one:04d}_000" for stem, one in zip(stems, classes, strict=True)],
        sample_id=stems,
        class_name=[f"structure_{one}" for one in classes],
        class_id=classes,
        rle=[rles[number % SHAPES] for number in numbers],
        area=[areas[number % SHAPES] for number in numbers],
        instance=0,
        height=SIDE,
        width=SIDE,
    )


def _conversations(first: int, count: int) -> pa.Table:
    step = MASKS_PER_CONVERSATION // MASKS_PER_IMAGE
    stems = [names(number * step, 1)[0] for number in range(first, first + count)]
    classes = [MASKS_PER_IMAGE * (number * step % (CLASSES // MASKS_PER_IMAGE)) for number in range(first, first + count)]
    turns = [
        f'[{{"question": "Please segment the structure {one} in this image.", "answer": "It is <SEG>.", "regions": [], '
        f'"targets": [["{stem}--{one:04d}_000"]]}}]'
        for stem, one in zip(stems, classes, strict=True)
    ]
    ids = {"conversation_id": [f"{stem}--g" for stem in stems], "sample_id": stems, "turns": turns, "task": "grounding"}
    empty = dict.fromkeys(("question_type", "answer_type", "source", "options", "solution", "rationale"), "")
    return _table(tables.CONVERSATIONS, count, **ids, **empty)


def write_image_facts(subset: Path, folder: Path) -> None:
    """Write facts of images that nobody made, as if shards had been measured: this part is about tables."""
    for number, group in enumerate(pq.ParquetFile(subset / "samples.parquet").iter_batches(sql.ROWS)):
        known = {name: group.column(name) for name in ("shard", "offset", "size", "sha256", "height", "width")}
        schema = image_facts.FACTS.append(pa.field("shard", pa.string()))
        found = {
            **known,
            "decodes": [True] * len(group),
            "bands": ["L"] * len(group),
            "levels": [3] * len(group),
            "glyphs": [0] * len(group),
        }
        pq.write_table(pa.table({name: found[name] for name in schema.names}, schema=schema), folder / f"images-{number:06d}.parquet")


def write_mask_facts(subset: Path, folder: Path) -> None:
    """Write facts of masks that were measured once for each shape: this part is about tables."""
    rles, _ = shapes()
    measured = runs.measure(pa.array(rles), np.full(SHAPES, SIDE), np.full(SHAPES, SIDE))
    for group in mask_facts.groups(subset / "masks.parquet", folder, "masks"):
        rows = mask_facts.read(group)
        pq.write_table(mask_facts.facts(rows, measured.take(rows["row"].to_numpy() % SHAPES)), group.path, compression="zstd")
