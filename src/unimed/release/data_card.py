"""The data card: what the models of a release were trained and judged on, where it comes from, and under which licences."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from unimed import NOTICE
from unimed.data import tables
from unimed.data.tables import SPLITS, tally
from unimed.errors import InputError
from unimed.release.checks import Validated
from unimed.release.gate import validated
from unimed.release.markdown import page, plain, table

DATA_CARD = "DATA.md"

SCHEMAS = {"samples": tables.SAMPLES, "masks": tables.MASKS, "conversations": tables.CONVERSATIONS}


class Source(NamedTuple):
    """A source data set: its licences and modalities, and how many images and patients of it are used."""

    name: str
    licences: str
    modalities: str
    images: int
    patients: int


def describe(data: Mapping[str, Path], judged: Mapping[str, str]) -> dict[str, Validated]:
    """The validated data of each task. Raises InputError for data that are not those with the hashes `judged`."""
    found = {task: validated(folder) for task, folder in data.items()}
    for task, valid in found.items():
        if valid.digest != judged.get(task):
            expected = f"the data that the gate judged, {judged.get(task)}"
            raise InputError(f"{data[task]}: expected {expected}, found {valid.digest}; run the gate again")
    return found


def sources(found: Mapping[str, Validated]) -> list[Source]:
    """Each source data set, with what any task uses of it."""
    columns = ["dataset", "sample_id", "case", "licence", "modality"]
    whole = pd.concat([valid.tables.samples[columns] for valid in found.values()]).drop_duplicates()
    return [
        Source(str(name), _listed(rows["licence"]), _listed(rows["modality"]), rows["sample_id"].nunique(), rows["case"].nunique())
        for name, rows in whole.groupby("dataset", sort=True)
    ]


def _listed(values: pd.Series) -> str:
    return ", ".join(sorted(set(values)))


def licences(found: Mapping[str, Validated]) -> list[str]:
    """The licences of all images, by name."""
    return sorted({licence for valid in found.values() for licence in valid.licences})


def text(found: Mapping[str, Validated]) -> str:
    """DATA.md."""
    return page(
        "# Data of this release",
        f"**{NOTICE}** Images, masks and conversations that passed the data contract, one set for each trained task. "
        "`croissant.json` describes the same files for programs.",
        "## Sources and licences",
        table(("data set", "licence", "modalities", "images", "patients"), sources(found)),
        "The licence is the one that travelled with the download; the terms of the sources apply to the models as well.",
        "## Tasks",
        table(("task", "images", "masks", "conversations", *SPLITS, "held-out patients"), [_task(*item) for item in found.items()]),
        "Splits are by patient: no patient of a test split is in a train or val split of any task.",
        "## What was left out",
        table(("task", "table", "checked", "kept"), [row for task, valid in found.items() for row in _kept(task, valid)]),
        *_promises(found),
        "## Classes",
        table(("class", "masks"), list(_classes(found).items())),
        "## Where the data come from",
        *_provenance(found),
        table(("task", "hash (DVC)"), [(task, valid.digest) for task, valid in found.items()]),
        "## Limits",
        "No scan for text burned into images was made. How patients differ by age, sex, origin or site is not recorded in these data, "
        "so nothing here says how well a model does for any such group.",
    )


def _task(task: str, valid: Validated) -> tuple[object, ...]:
    counts = valid.tables.counts()
    splits = [counts["conversations_by_split"].get(split, 0) for split in SPLITS]
    return task, *(counts[name] for name in SCHEMAS), *splits, len(valid.patients("test"))


def _kept(task: str, valid: Validated) -> Iterator[tuple[object, ...]]:
    return ((task, name, valid.verdict["checked"][name], valid.verdict["kept"][name]) for name in SCHEMAS)


def _promises(found: Mapping[str, Validated]) -> Iterator[str]:
    broken = [
        f"- {plain(task)}: {plain(one['says'])}: {one['failed']:,} of {one['of']:,} {plain(one['table'])}"
        for task, valid in found.items()
        for one in valid.verdict["expectations"]
        if one["failed"]
    ]
    yield "\n".join(["Broken promises of the contract:", "", *broken]) if broken else "No row breaks a promise of the contract."


def _classes(found: Mapping[str, Validated]) -> dict[str, int]:
    masks = {row for valid in found.values() for row in valid.tables.masks[["mask_id", "class_name"]].itertuples(index=False, name=None)}
    return tally(name for _, name in masks)


def _provenance(found: Mapping[str, Validated]) -> Iterator[str]:
    told = {str(key): value for valid in found.values() for key, value in valid.manifest.get("provenance", {}).items() if key != "licences"}
    yield table(("said of the download", ""), sorted(told.items())) if told else "The download says nothing of where it comes from."
