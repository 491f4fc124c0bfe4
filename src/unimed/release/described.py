"""Tables as cards tell of them: sources, licences, classes, counts and splits, asked in SQL, whatever their size."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unimed import hashes
from unimed.data import sql, tables
from unimed.data.counts import counts
from unimed.data.streamed import load
from unimed.errors import InputError

if TYPE_CHECKING:
    import duckdb

SCHEMAS = {"samples": tables.SAMPLES, "masks": tables.MASKS, "conversations": tables.CONVERSATIONS}

_SOURCES = """
    SELECT dataset, string_agg(DISTINCT licence, ', ' ORDER BY licence), string_agg(DISTINCT modality, ', ' ORDER BY modality),
        count(DISTINCT sample_id), count(DISTINCT "case")
    FROM samples GROUP BY dataset ORDER BY dataset
"""
_CLASSES = "SELECT class_name, count(DISTINCT mask_id) FROM masks GROUP BY class_name ORDER BY class_name"
_PATIENTS = 'SELECT count(DISTINCT (dataset, "case")) FROM samples WHERE split = $split'
_PARTED = 'SELECT count(*) FROM (SELECT 1 FROM samples GROUP BY dataset, "case" HAVING count(DISTINCT split) > 1)'


class Source(NamedTuple):
    """A source data set: its licences and modalities, and how many images and patients of it are used."""

    name: str
    licences: str
    modalities: str
    images: int
    patients: int


@dataclass(frozen=True)
class Described:
    """A folder of tables: what stages say of it, and its hash as DVC writes it; `verdict` is empty where no contract was asked for."""

    folder: Path
    manifest: dict[str, Any]
    verdict: dict[str, Any]
    digest: str

    def counts(self) -> dict[str, Any]:
        """Rows of each table and how they fall, as in a manifest."""
        with _opened([self]) as connection:
            return counts(connection)

    def patients(self, split: str) -> int:
        """How many cases have images in a split."""
        with _opened([self]) as connection:
            [(found,)] = connection.execute(_PATIENTS, {"split": split}).fetchall()
        return found


def described(folder: Path) -> Described:
    """The tables in a folder, with what stages say of them. Raises InputError when a table is missing or another."""
    for name, schema in SCHEMAS.items():
        tables.opened(folder / f"{name}.parquet", schema)
    return Described(folder, _said(folder / "manifest.json"), _said(folder / "verdict.json"), hashes.dvc_hash(folder))


def _said(path: Path) -> dict[str, Any]:
    content = load(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, found {type(content).__name__}")
    return content


@contextmanager
def _opened(found: Iterable[Described]) -> "Iterator[duckdb.DuckDBPyConnection]":
    """The tables of all folders, one below the other."""
    found = list(found)
    with sql.opened(**{name: [one.folder / f"{name}.parquet" for one in found] for name in SCHEMAS}) as connection:
        yield connection


def sources(found: Mapping[str, Described]) -> list[Source]:
    """Each source data set, with what any of the tables uses of it."""
    with _opened(found.values()) as connection:
        return [Source(*row) for row in connection.sql(_SOURCES).fetchall()]


def licences(found: Mapping[str, Described]) -> list[str]:
    """The licences of all images, by name."""
    return _distinct(found, "SELECT DISTINCT licence FROM samples ORDER BY 1")


def modalities(found: Mapping[str, Described]) -> list[str]:
    """The modalities of all images, by name."""
    return _distinct(found, "SELECT DISTINCT modality FROM samples ORDER BY 1")


def _distinct(found: Mapping[str, Described], query: str) -> list[str]:
    with _opened(found.values()) as connection:
        return [row[0] for row in connection.sql(query).fetchall()]


def classes(found: Mapping[str, Described]) -> dict[str, int]:
    """How many masks of each class any of the tables uses."""
    with _opened(found.values()) as connection:
        return dict(connection.sql(_CLASSES).fetchall())


def parted(found: Mapping[str, Described]) -> int:
    """How many cases have images in more than one split."""
    with _opened(found.values()) as connection:
        [(count,)] = connection.sql(_PARTED).fetchall()
    return count
