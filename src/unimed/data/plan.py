"""What an ingest has to do, in the order of the shards: each image that annotations name, with its masks and all that is said about it.

Annotations and index are read entry by entry into tables and joined there, so that memory does not grow with the download.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from unimed.data import origins, raw, records, sql, tables
from unimed.data.names import ImageName
from unimed.data.pack import Job
from unimed.data.raw import Fault
from unimed.data.records import Record
from unimed.data.sources import Download
from unimed.data.splits import Case
from unimed.data.tables import QUARANTINE
from unimed.errors import InputError

_BATCH = 1024
_RECORDS = pa.schema(
    [pa.field(name, pa.string()) for name in ("conversation_id", "image", "dataset", "case", "stem", "file", "place", "record")]
    + [pa.field("number", pa.int64()), pa.field("is_held_out", pa.bool_())]
)
_LISTED = pa.schema([pa.field("image", pa.string()), pa.field("masks", pa.list_(pa.string()))])
_WORK = pa.schema([pa.field(name, pa.string()) for name in ("image", "stem", "record")] + [pa.field("masks", pa.list_(pa.string()))])
_EXCLUDED = pa.schema([pa.field(name, pa.string()) for name in ("dataset", "case", "reason")])

_KEPT = """CREATE VIEW kept AS SELECT * FROM records ANTI JOIN excluded USING (dataset, "case");
CREATE VIEW firsts AS SELECT conversation_id, min(number) AS number FROM kept GROUP BY conversation_id"""
_REPEATED = """SELECT kept.conversation_id, kept.file, kept.place, earlier.place FROM kept
JOIN firsts USING (conversation_id) JOIN kept AS earlier ON earlier.number = firsts.number
WHERE kept.number > firsts.number ORDER BY kept.number"""
_TWICE = "SELECT image FROM listed SEMI JOIN kept USING (image) GROUP BY image HAVING count(*) > 1 ORDER BY image LIMIT 1"
_ORDERED = """SELECT image, stem, record, coalesce(masks, []) AS masks FROM kept
JOIN firsts USING (conversation_id, number) LEFT JOIN listed USING (image) ORDER BY dataset, "case", stem, image, number"""
_LEFT_OUT = """SELECT reason, count(DISTINCT image), count(*) FROM records JOIN excluded USING (dataset, "case") GROUP BY reason"""
_HELD_OUT = """SELECT DISTINCT dataset, "case" FROM kept WHERE is_held_out AND stem <> '' ORDER BY ALL"""
_HELD_BACK = """SELECT count(*) FILTER (is_held_out), count(*) FILTER (NOT is_held_out) FROM kept
SEMI JOIN (SELECT DISTINCT dataset, "case" FROM kept WHERE is_held_out AND stem <> '') USING (dataset, "case")"""


@dataclass(frozen=True)
class Plan:
    """Where the work is written down, how many images it is about, and what was left out of it before anything was opened."""

    work: Path
    faults: Path
    images: int
    held_out: frozenset[Case]
    """Cases that a test file speaks of."""

    told: dict[str, Any]
    """What the manifest says of exclusions and of held-out cases."""

    def jobs(self) -> Iterator[Job]:
        """A job for each image, in the order of the shards."""
        stem = path = ""
        for (_, image), rows in groupby(_rows(self.work), key=lambda row: (row["stem"], row["image"])):
            said = list(rows)
            twin = path if said[0]["stem"] and said[0]["stem"] == stem else ""
            if not twin:
                stem, path = said[0]["stem"], image
            yield Job(image, tuple(said[0]["masks"]), tuple(records.from_text(row["record"]) for row in said), twin)


def _rows(work: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(work) as file:
        for batch in file.iter_batches(_BATCH):
            yield from batch.to_pylist()


def write(found: Download, excluded: Mapping[Case, str], folder: Path) -> Plan:
    """The plan for a download, written into `folder`.

    Raises InputError when a file of the layout is missing, malformed or built otherwise. Records that are faulty on their own are noted.
    """
    faults: list[Fault] = []
    place = {name: folder / f"{name}.parquet" for name in ("records", "listed", "excluded", "work", "faults")}
    sql.write(place["records"], tables.columns(_read(found.root, faults), _RECORDS), _RECORDS)
    sql.write(place["listed"], tables.columns(raw.index(found.index), _LISTED), _LISTED)
    sql.write(place["excluded"], tables.columns(((*case, reason) for case, reason in excluded.items()), _EXCLUDED), _EXCLUDED)
    with sql.opened(records=place["records"], listed=place["listed"], excluded=place["excluded"]) as connection:
        connection.execute(_KEPT)
        _refuse_repeated(connection, found.index)
        repeated = (_repeated(*row) for row in _fetched(connection, _REPEATED))
        sql.write(place["faults"], tables.columns(map(astuple, (*faults, *repeated)), QUARANTINE), QUARANTINE)
        sql.write(place["work"], sql.batches(connection, _ORDERED, _WORK), _WORK)
        held_out = frozenset(_fetched(connection, _HELD_OUT))
        told = _told(connection, len(held_out))
        images = connection.sql("SELECT count(DISTINCT image) FROM kept").fetchall()[0][0]
    return Plan(place["work"], place["faults"], images, held_out, told)


def _read(root: Path, faults: list[Fault]) -> Iterator[tuple[Any, ...]]:
    """A row for each record; the faults of those that cannot be read are added to `faults`."""
    for number, (record, is_held_out) in enumerate(raw.annotated(root)):
        if isinstance(record, Fault):
            faults.append(record)
            continue
        name = _image_name(record)
        about = (name.dataset, name.case, name.stem) if name else ("", "", "")
        yield record.conversation_id, record.image, *about, record.file, record.where, records.as_text(record), number, is_held_out


def _image_name(record: Record) -> ImageName | None:
    """What is known of a record's image; None when that is too little, which is said where the image is packed."""
    try:
        return origins.image_name(record.image, record.origin, record.file)
    except InputError:
        return None


def _fetched(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[tuple[Any, ...]]:
    result = connection.execute(query)
    while rows := result.fetchmany(_BATCH):
        yield from rows


def _refuse_repeated(connection: duckdb.DuckDBPyConnection, index: Path) -> None:
    for (image,) in connection.execute(_TWICE).fetchall():
        raise InputError(f"{index}: expected every image once, found {image!r} more often")


def _repeated(conversation_id: str, file: str, place: str, earlier: str) -> Fault:
    reason = f"{place}: expected an id of its own, found {conversation_id!r} as in {earlier}"
    return Fault("conversation", conversation_id, file, reason)


def _told(connection: duckdb.DuckDBPyConnection, cases: int) -> dict[str, Any]:
    left_out: Iterable[tuple[str, int, int]] = connection.execute(_LEFT_OUT).fetchall()
    held_out, held_back = connection.execute(_HELD_BACK).fetchall()[0]
    return {
        "excluded": {reason: {"images": images, "conversations": said} for reason, images, said in left_out},
        "held_out": {"cases": cases, "conversations": held_out, "conversations_of_training_files": held_back},
    }
