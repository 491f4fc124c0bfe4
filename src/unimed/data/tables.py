"""The tables beside the shards: fixed schemas, sorted rows, the same bytes for the same content."""

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from unimed.data import counts, sql
from unimed.errors import InputError

SPLITS = ("train", "val", "test")
_TOGETHER = 2**14
"""Rows that are turned into columns at once."""


def _schema(text: str, int32: str = "", int64: str = "") -> pa.Schema:
    kinds = ((text, pa.string()), (int32, pa.int32()), (int64, pa.int64()))
    return pa.schema([pa.field(name, kind, nullable=False) for names, kind in kinds for name in names.split()])


SAMPLES = _schema("sample_id modality dataset case slice split licence fingerprint shard sha256", "height width", "offset size")
MASKS = _schema("mask_id sample_id class_name rle", "class_id instance height width", "area")
CONVERSATIONS = _schema(
    "conversation_id sample_id task question_type answer_type source turns options solution rationale",
)
QUARANTINE = _schema("kind name file reason")


@dataclass(frozen=True)
class Tables:
    """Three frames that belong together: samples (one row an image), their masks, and conversations about them.

    `masks.instance` is -1 for a region that unites all instances of a class. `conversations.turns` is JSON text:
    [{"question", "answer", "regions": [mask_id], "targets": [[mask_id]]}], one region per `<region>` of the question and one
    target per `<SEG>` of the answer; `options` is a JSON list, and like `solution` and `rationale` empty where a task has none.
    """

    samples: pd.DataFrame
    masks: pd.DataFrame
    conversations: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> "Tables":
        """The tables of a folder. Raises InputError when a file is missing or has other columns."""
        return cls(
            samples=read(folder / "samples.parquet", SAMPLES),
            masks=read(folder / "masks.parquet", MASKS),
            conversations=read(folder / "conversations.parquet", CONVERSATIONS),
        )

    def write(self, folder: Path) -> None:
        """Write samples.parquet, masks.parquet and conversations.parquet into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        write(self.samples, SAMPLES, folder / "samples.parquet", by=("dataset", "case", "sample_id"))
        write(self.masks, MASKS, folder / "masks.parquet", by=("mask_id",))
        write(self.conversations, CONVERSATIONS, folder / "conversations.parquet", by=("sample_id", "conversation_id"))

    def counts(self) -> dict[str, Any]:
        """How many rows of each table, and how they fall by modality, class, source and split."""
        with sql.opened() as connection:
            for name, rows in vars(self).items():
                connection.register(name, rows)
            return counts.counts(connection)


def rows(found: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table with exactly the schema's columns and kinds. Raises KeyError when a row lacks one."""
    found = list(found)
    return pa.Table.from_arrays([pa.array([row[field.name] for row in found], type=field.type) for field in schema], schema=schema)


def columns(found: Iterable[Sequence[Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows with their values in the schema's order, as tables of some thousand rows each; one without rows when there are none."""
    found = iter(found)
    chunk = list(islice(found, _TOGETHER))
    while True:
        values = zip(*chunk, strict=True) if chunk else [() for _ in schema]
        yield pa.Table.from_arrays([pa.array(column, type=field.type) for column, field in zip(values, schema, strict=True)], schema=schema)
        if not (chunk := list(islice(found, _TOGETHER))):
            return


def frame(found: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pd.DataFrame:
    """Rows as a frame with exactly the schema's columns and kinds. Raises KeyError when a row lacks one."""
    return rows(found, schema).to_pandas()


def matching(rows: pd.DataFrame, column: str, values: Container[Any]) -> pd.DataFrame:
    """The rows whose value in a column is one of `values`, in order."""
    return rows.iloc[[place for place, value in enumerate(rows[column]) if value in values]]


def write(rows: pd.DataFrame, schema: pa.Schema, path: Path, by: tuple[str, ...]) -> None:
    """Write a frame as Parquet, sorted; nothing of this machine or moment goes into the file."""
    ordered = rows.sort_values(list(by), kind="stable")
    sql.write(path, [pa.Table.from_pandas(ordered[schema.names], schema=schema, preserve_index=False)], schema)


def read(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """A Parquet file as a frame. Raises InputError when it is missing, broken or has other columns."""
    try:
        return opened(path, schema).read().to_pandas()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: expected a Parquet table, found {_first_line(error)}") from error


def opened(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    """A Parquet file to be read in parts. Raises InputError when it is missing, broken or has other columns."""
    try:
        found = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: expected a Parquet table, found {_first_line(error)}") from error
    if not found.schema_arrow.equals(schema):
        raise InputError(f"{path}: expected columns {_columns(schema)}, found {_columns(found.schema_arrow)}")
    return found


def _first_line(error: Exception) -> str:
    return "none" if isinstance(error, FileNotFoundError) else str(error).partition("\n")[0]


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, one entry a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def tally(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, by value."""
    return dict(sorted(Counter(values).items()))


def digest(folder: Path) -> str:
    """One sha256 over the names and bytes of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()
