"""The rows of all shards become the tables: joined with what only the whole collection decides, sorted on disk, counted in SQL."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from unimed.config import Ingest
from unimed.data import duplicates, kept, splits, sql, tables
from unimed.data.counts import counts
from unimed.data.kept import Kept
from unimed.data.plan import Plan
from unimed.data.splits import Case
from unimed.data.tables import CONVERSATIONS, MASKS, QUARANTINE, SAMPLES
from unimed.errors import InputError

log = logging.getLogger(__name__)
_SHOWN = 3
"""Faults quoted in a message."""

_CASES = pa.schema([pa.field(name, pa.string()) for name in ("dataset", "case", "split", "licence")])
_CASES_OF = 'SELECT DISTINCT dataset, "case" FROM samples'
_LEFT_OUT = "CREATE VIEW left_out AS SELECT * FROM planned UNION ALL BY NAME SELECT * FROM faults"
_REASONS = "SELECT reason FROM left_out WHERE kind = ? LIMIT ?"
"""The first in the order in which they were found, which DuckDB keeps."""

_BAD = "SELECT count(*) FROM left_out WHERE kind = ?"
_GOOD = {
    "image": "SELECT count(*) FROM samples",
    "mask": "SELECT count(*) FROM masks WHERE instance >= 0",
    "conversation": "SELECT count(*) FROM conversations",
}
_TABLES = {
    "samples": ("""SELECT * FROM samples JOIN cases USING (dataset, "case") ORDER BY dataset, "case", sample_id""", SAMPLES),
    "masks": ("SELECT * FROM masks ORDER BY mask_id", MASKS),
    "conversations": ("SELECT * FROM conversations ORDER BY sample_id, conversation_id", CONVERSATIONS),
    "quarantine": ("SELECT * FROM left_out ORDER BY kind, name, file, reason", QUARANTINE),
}


def write(done: Kept, planned: Plan, folder: Path, seed: int, ingest: Ingest, about: Mapping[str, Any], source: Path) -> None:
    """Write the four tables and their manifest, which also says what `about` the download is known.

    Raises InputError when more than `ingest.max_bad_fraction` of the images, masks or conversations are faulty, or no conversation is left.
    """
    with sql.opened(planned=planned.faults, **{name: done.rows(name) for name in kept.ROWS}) as rows:
        rows.execute(_LEFT_OUT)
        _refuse_too_many(rows, ingest.max_bad_fraction, source)
        cases = rows.sql(_CASES_OF).fetchall()
        split = splits.assign(cases, ingest.split.model_dump(), seed, duplicates.groups(rows), planned.held_out)
        _write_tables(rows, split, {**about["provenance"].get("licences", {}), **ingest.licences}, folder)
    _write_manifest(folder, {**planned.told, **about, "parameters": {"seed": seed, "ingest": ingest.model_dump()}})


def _refuse_too_many(rows: duckdb.DuckDBPyConnection, limit: float, source: Path) -> None:
    told = []
    good = {kind: rows.sql(query).fetchall()[0][0] for kind, query in _GOOD.items()}
    for kind, usable in good.items():
        bad = rows.execute(_BAD, [kind]).fetchall()[0][0]
        if bad > limit * (bad + usable):
            first = rows.execute(_REASONS, [kind, _SHOWN]).fetchall()
            told.append(f"{bad} of {bad + usable} {kind}s ({'; '.join(reason for (reason,) in first)})")
    if told:
        raise InputError(f"{source}: expected at most {limit:.1%} faulty items of a kind, found {' and '.join(told)}")
    if not good["conversation"]:
        raise InputError(f"{source}: expected at least one usable conversation, found none")


def _write_tables(rows: duckdb.DuckDBPyConnection, split: Mapping[Case, str], licences: Mapping[str, str], folder: Path) -> None:
    folder.mkdir(parents=True)
    columns = list(zip(*((*case, name, licences.get(case[0], "unknown")) for case, name in split.items()), strict=True))
    rows.register("cases", pa.table(columns, schema=_CASES))
    for name, (query, schema) in _TABLES.items():
        sql.write(folder / f"{name}.parquet", sql.batches(rows, query, schema), schema)


def _write_manifest(folder: Path, told: Mapping[str, Any]) -> None:
    with sql.opened(**{name: folder / f"{name}.parquet" for name in _TABLES}) as connection:
        made = counts(connection)
        quarantined = dict(connection.sql("SELECT kind, count(*) FROM quarantine GROUP BY 1 ORDER BY 1").fetchall())
    tables.write_json(folder / "manifest.json", {"counts": made, "quarantined": quarantined, **told})
    summary = f"{made['samples']} images, {made['masks']} masks, {made['conversations']} conversations"
    log.info("ingest: %s; %d left out", summary, sum(quarantined.values()))
