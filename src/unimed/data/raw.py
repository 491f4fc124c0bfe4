"""The layout a user downloads: SA-Med2D-20M's folders and index, MeCoVQA, captions and multiple choice, read into records."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimed.data import records
from unimed.data.records import Record
from unimed.errors import InputError

PIXELS = "SAMed2Dv1"
INDEX = f"{PIXELS}/SAMed2D_v1.json"
MAPPING = f"{PIXELS}/SAMed2D_v1_class_mapping_id.json"
PROVENANCE = "provenance.json"
ANNOTATIONS = {
    "alignment": "alignment/*.json",
    "vqa": "MeCoVQA/train/MeCoVQA-Complex.json",
    "region": "MeCoVQA/train/MeCoVQA-Region.json",
    "grounding": "MeCoVQA/train/MeCoVQA-Grounding.json",
    "reasoning": "reasoning/*.json",
}
"""Where the records of each task lie, relative to the root."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An item that was left out, with one sentence on what was expected and what was found."""

    kind: str
    name: str
    file: str
    reason: str


@dataclass(frozen=True)
class Raw:
    """What a download says: masks by image path, class names by data set and id, records, and the records that cannot be read."""

    root: Path
    index: dict[str, list[str]]
    classes: dict[str, dict[int, str]]
    provenance: dict[str, Any]
    records: list[Record]
    faults: list[Fault]


def read(root: Path) -> Raw:
    """Everything but the pixels. Raises InputError when a file or folder is missing, is no JSON, or is built otherwise.

    Records that are faulty on their own are given back as faults.
    """
    for folder in (root, root / PIXELS / "images", root / PIXELS / "masks"):
        if not folder.is_dir():
            raise InputError(f"{folder}: expected a folder, found {'a file' if folder.exists() else 'none'}")
    good, faults = _distinct(_records(root))
    return Raw(
        root=root,
        index=_index(root / INDEX),
        classes=_classes(root / MAPPING),
        provenance=_object(root / PROVENANCE) if (root / PROVENANCE).exists() else {},
        records=good,
        faults=faults,
    )


def load(path: Path) -> Any:
    """The value of a JSON file. Raises InputError with file, line and column when it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: expected JSON, found an error in line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected JSON in UTF-8, found byte {error.object[error.start]:#x} at {error.start}") from error
    except RecursionError as error:
        raise InputError(f"{path}: expected JSON with few levels, found too many") from error
    except OSError as error:
        raise InputError(f"{path}: expected a JSON file, found {error.strerror}") from error


def _object(path: Path) -> dict[str, Any]:
    value = load(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def _index(path: Path) -> dict[str, list[str]]:
    index = _object(path)
    for image, masks in index.items():
        if not isinstance(masks, list) or not all(isinstance(mask, str) for mask in masks):
            raise InputError(f"{path}: expected a list of mask paths under {image!r}, found {masks!r:.80}")
    return index


def _classes(path: Path) -> dict[str, dict[int, str]]:
    """Class names by data set and id; ids mean something within their data set only."""
    mapping = _object(path)
    for dataset, classes in mapping.items():
        if not isinstance(classes, dict) or not all(isinstance(number, int) for number in classes.values()):
            raise InputError(f"{path}: expected class names with whole numbers under {dataset!r}, found {classes!r:.80}")
    return {dataset: {number: name for name, number in classes.items()} for dataset, classes in mapping.items()}


def _records(root: Path) -> Iterator[Record | Fault]:
    for task, pattern in ANNOTATIONS.items():
        files = sorted(root.glob(pattern))
        if not files:
            raise InputError(f"{root / pattern}: expected annotations for {task!r}, found no such file")
        for file in files:
            rows = load(file)
            if not isinstance(rows, list):
                raise InputError(f"{file}: expected a list of records, found {type(rows).__name__}")
            name = file.relative_to(root).as_posix()
            for position, row in enumerate(rows):
                yield _record(row, task, name, position)


def _record(row: Any, task: str, file: str, position: int) -> Record | Fault:
    try:
        return records.parse(row, task=task, file=file, position=position)
    except InputError as error:
        name = row.get("id") if isinstance(row, dict) else None
        return Fault(kind="conversation", name=str(name or f"record {position}"), file=file, reason=str(error))


def _distinct(found: Iterator[Record | Fault]) -> tuple[list[Record], list[Fault]]:
    """Records and faults; of records with the same id the first stays."""
    first: dict[str, Record] = {}
    faults: list[Fault] = []
    for item in found:
        if isinstance(item, Fault):
            faults.append(item)
        elif (known := first.setdefault(item.conversation_id, item)) is not item:
            reason = f"{item.where}: expected an id of its own, found {item.conversation_id!r} as in {known.where}"
            faults.append(Fault(kind="conversation", name=item.conversation_id, file=item.file, reason=reason))
    return list(first.values()), faults
