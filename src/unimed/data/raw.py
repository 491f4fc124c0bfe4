"""The layout a user downloads: SA-Med2D-20M's folders and index, MeCoVQA, captions and multiple choice, read entry by entry."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from unimed.data import origins, records, streamed
from unimed.data.origins import UNSAID, Origin
from unimed.data.records import Record
from unimed.data.streamed import load
from unimed.errors import InputError

PIXELS = "SAMed2Dv1"
INDEX = f"{PIXELS}/SAMed2D_v1.json"
MAPPING = f"{PIXELS}/SAMed2D_v1_class_mapping_id.json"
PROVENANCE = "provenance.json"


@dataclass(frozen=True, slots=True)
class Annotations:
    """Files of one task: `pattern` is relative to the root; what `held_out` files speak of must never train and may be absent."""

    task: str
    pattern: str
    held_out: bool = False

    @property
    def folder(self) -> str:
        """Where the files lie, relative to the root."""
        return self.pattern.rpartition("/")[0]


ANNOTATIONS = (
    Annotations("alignment", "alignment/*.json"),
    Annotations("vqa", "MeCoVQA/train/MeCoVQA-Complex.json"),
    Annotations("region", "MeCoVQA/train/MeCoVQA-Region.json"),
    Annotations("grounding", "MeCoVQA/train/MeCoVQA-Grounding.json"),
    Annotations("reasoning", "reasoning/*.json"),
    Annotations("vqa", "MeCoVQA/test/MeCoVQA_Complex_VQA_test.json", held_out=True),
    Annotations("region", "MeCoVQA/test/MeCoVQA_Region_VQA_test.json", held_out=True),
    Annotations("grounding", "MeCoVQA/test/MeCoVQA_Grounding_test.json", held_out=True),
    Annotations("grounding", "MeCoVQA/zeroshot4grounding/*.json", held_out=True),
)
"""Where the records of each task lie, in the order in which they are read."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An item that was left out, with one sentence on what was expected and what was found."""

    kind: str
    name: str
    file: str
    reason: str


def place(task: str, source: str) -> str:
    """Where a file of this name and task lies in the layout. Raises InputError when the layout has no such place."""
    for annotations in ANNOTATIONS:
        if annotations.task == task and fnmatch(source, annotations.pattern.rpartition("/")[2]):
            return f"{annotations.folder}/{source}"
    raise InputError(f"{source}: expected the name of a file with annotations for {task!r}, found another")


def annotated(root: Path) -> Iterator[tuple[Record | Fault, bool]]:
    """Each record of each file, or the fault it has, and whether it is held out.

    Raises InputError when a file is missing or malformed, or provenance.json speaks of the images of a file that is none of these.
    """
    place = root / PROVENANCE
    declared = origins.declared(provenance(place), place)
    for file in sorted(declared):
        if not any(fnmatch(file, one.pattern) and (root / file).is_file() for one in ANNOTATIONS):
            raise InputError(f"{place}: expected files with annotations under 'images', found {file!r}")
    for annotations in ANNOTATIONS:
        files = sorted(root.glob(annotations.pattern))
        if not files and not annotations.held_out:
            raise InputError(f"{root / annotations.pattern}: expected annotations for {annotations.task!r}, found no such file")
        for file in files:
            name = file.relative_to(root).as_posix()
            for position, row in enumerate(streamed.items(file)):
                yield _record(row, annotations.task, name, position, declared.get(name, UNSAID)), annotations.held_out


def _record(row: Any, task: str, file: str, position: int, declared: Origin) -> Record | Fault:
    try:
        record = records.parse(row, task=task, file=file, position=position)
        said = record.origin
        return replace(record, origin=Origin(said.dataset or declared.dataset, said.modality or declared.modality))
    except InputError as error:
        name = row.get("id") if isinstance(row, dict) else None
        return Fault("conversation", _printable(str(name or f"record {position}")), file, _printable(str(error)))


def _printable(text: str) -> str:
    """The text with `?` for halves of characters, which no table can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def index(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each image of the index with its mask paths. Raises InputError when the file is missing, malformed or built otherwise."""
    for image, masks in streamed.pairs(path):
        if not isinstance(masks, list) or not all(isinstance(mask, str) for mask in masks):
            raise InputError(f"{path}: expected a list of mask paths under {image!r}, found {masks!r:.80}")
        yield _printable(image), [_printable(mask) for mask in masks]


def classes(path: Path) -> dict[str, dict[int, str]]:
    """Class names by data set and id; ids mean something within their data set only."""
    mapping = _object(path)
    for dataset, named in mapping.items():
        if not isinstance(named, dict) or not all(isinstance(number, int) for number in named.values()):
            raise InputError(f"{path}: expected class names with whole numbers under {dataset!r}, found {named!r:.80}")
    return {dataset: {number: name for name, number in named.items()} for dataset, named in mapping.items()}


def provenance(path: Path) -> dict[str, Any]:
    """What the download says of itself, empty when it says nothing; `licences` in it are by data set."""
    said = _object(path) if path.exists() else {}
    licences = said.get("licences", {})
    if not isinstance(licences, dict) or not all(isinstance(licence, str) for licence in licences.values()):
        raise InputError(f"{path}: expected licences by data set, found {licences!r:.80}")
    return said


def _object(path: Path) -> dict[str, Any]:
    value = load(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, found {type(value).__name__}")
    records.check_texts(value, str(path))
    return value
