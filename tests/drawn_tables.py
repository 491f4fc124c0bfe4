"""Random tables as ingest writes them: cases of several data sets, some of them near-duplicates of others, masks and conversations."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from unimed.data import duplicates, splits, sql, tables
from unimed.data.tables import Tables

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}
MODALITIES = ("ct", "mr", "pet")
DATASETS = {"SetA": "CC-BY-4.0", "SetB": "CC0-1.0", "SetC": "unknown"}
CLASSES = ("heart", "kidney", "liver", "nodule")
SOURCES = ("one.json", "two.json", "three.json")
KINDS = ("detail", "other", "side")


def write(folder: Path, seed: int, cases: int = 30) -> Tables:
    """Write tables into a folder, with the splits that ingest would give, and give them back."""
    rng = np.random.default_rng(seed)
    samples = [row for number in range(cases) for row in _samples(rng, number)]
    masks = [row for sample in samples for row in _masks(rng, sample)]
    of: dict[str, list[str]] = {sample["sample_id"]: [] for sample in samples}
    for row in masks:
        of[row["sample_id"]].append(row["mask_id"])
    said = [row for sample in samples for row in _conversations(rng, sample["sample_id"], of[sample["sample_id"]])]
    split = _splits(folder, samples, seed)
    for sample in samples:
        sample["split"] = split[sample["dataset"], sample["case"]]
    whole = Tables(tables.frame(samples, tables.SAMPLES), tables.frame(masks, tables.MASKS), tables.frame(said, tables.CONVERSATIONS))
    whole.write(folder)
    tables.write_json(folder / "manifest.json", {"provenance": {"url": "https://example.org"}, "quarantined": {"mask": 1}})
    return Tables.read(folder)


def _samples(rng: np.random.Generator, number: int) -> list[dict[str, Any]]:
    """The images of a case; one case in five is a copy of the one before it in another data set."""
    drawn = np.random.default_rng([number - (number % 5 == 1), 7])
    dataset = list(DATASETS)[int(rng.integers(3))]
    modality = MODALITIES[int(rng.integers(3))]
    rows = []
    for position in range(int(rng.integers(1, 4))):
        stem = f"{modality}_00--{dataset}--case_{number:03d}--z_{position:04d}"
        rows.append({
            "sample_id": stem, "modality": modality, "dataset": dataset, "case": f"case_{number:03d}", "slice": f"z_{position:04d}",
            "split": "", "licence": DATASETS[dataset], "fingerprint": drawn.bytes(32).hex(), "shard": "shard-000000.tar",
            "sha256": f"{number:032x}{position:032x}", "height": 8, "width": 8, "offset": 512, "size": 64,
        })  # fmt: skip
    return rows


def _masks(rng: np.random.Generator, sample: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for class_id, name in enumerate(CLASSES):
        instances = int(rng.integers(0, 3))
        for instance in [*range(instances), *([-1] if instances == 2 else [])]:
            ending = "merged" if instance < 0 else f"{instance:03d}"
            rows.append({
                "mask_id": f"{sample['sample_id']}--{class_id:04d}_{ending}", "sample_id": sample["sample_id"], "class_name": name,
                "rle": "0", "class_id": class_id, "instance": instance, "height": 8, "width": 8, "area": 1,
            })  # fmt: skip
    return rows


def _conversations(rng: np.random.Generator, sample_id: str, mask_ids: list[str]) -> list[dict[str, Any]]:
    rows = []
    for number in range(int(rng.integers(0, 6))):
        task = ("alignment", "vqa", "region", "grounding", "reasoning")[int(rng.integers(5))]
        named = [str(name) for name in rng.choice(mask_ids, int(rng.integers(0, 3)))] if mask_ids else []
        turns = [{
            "question": "Ä “question”?", "answer": "An answer.", "regions": named if task == "region" else [],
            "targets": [[name] for name in named] if task == "grounding" else [],
        }]  # fmt: skip
        rows.append({
            "conversation_id": f"{sample_id}--{number}", "sample_id": sample_id, "task": task, "answer_type": "",
            "question_type": KINDS[int(rng.integers(3))], "source": SOURCES[int(rng.integers(3))],
            "turns": json.dumps(turns, ensure_ascii=False), "options": "", "solution": "", "rationale": "",
        })  # fmt: skip
    return rows


def _splits(folder: Path, samples: list[dict[str, Any]], seed: int) -> dict[splits.Case, str]:
    folder.mkdir(parents=True, exist_ok=True)
    tables.write(tables.frame(samples, tables.SAMPLES), tables.SAMPLES, folder / "samples.parquet", by=("sample_id",))
    with sql.opened(samples=folder / "samples.parquet") as connection:
        groups = duplicates.groups(connection)
    return splits.assign(((row["dataset"], row["case"]) for row in samples), SHARES, seed, groups)
