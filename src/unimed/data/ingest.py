"""A download becomes shards and tables in one pass; what is faulty is left out with a reason, and too much of it is an error.

Memory does not grow with the download: annotations are read entry by entry, images packed one by one, tables joined and sorted on disk.
"""

import errno
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from unimed import hashes, job, outputs
from unimed.config import Ingest
from unimed.data import duplicates, kept, plan, pool, raw, sources, splits, sql, tables
from unimed.data.counts import counts
from unimed.data.kept import Kept
from unimed.data.pack import Job, Packed, Packer
from unimed.data.plan import Plan
from unimed.data.sources import Download
from unimed.data.splits import Case
from unimed.data.tables import CONVERSATIONS, MASKS, QUARANTINE, SAMPLES
from unimed.errors import InputError
from unimed.progress import Ticker

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
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(
    source: Path, shards_folder: Path, tables_folder: Path, seed: int, ingest: Ingest, excluded: Mapping[Case, str] | None = None
) -> None:
    """Write the shards and tables of the download at `source`; the same input gives the same bytes.

    Packs the images that annotations name, nothing else, and none of an `excluded` case. Within a job it goes on after the shards that an
    interrupted run of the same job finished. Raises InputError when a file of the layout is missing or malformed, when more than
    `ingest.max_bad_fraction` of the images, masks or conversations are faulty, when no conversation is left, or when the disk is full.
    """
    with _room(tables_folder), _work(tables_folder) as folder:
        scratch = folder / "plan"
        outputs.remove(scratch)
        scratch.mkdir(parents=True)
        found = sources.opened(source, scratch)
        provenance = raw.provenance(found.root / raw.PROVENANCE)
        planned = plan.write(found, excluded or {}, scratch)
        done = _packed(folder, found, planned, ingest)
        with sql.opened(planned=planned.faults, **{name: done.rows(name) for name in kept.ROWS}) as rows:
            rows.execute(_LEFT_OUT)
            _refuse_too_many(rows, ingest.max_bad_fraction, source)
            licences = {**provenance.get("licences", {}), **ingest.licences}
            cases = rows.sql(_CASES_OF).fetchall()
            split = splits.assign(cases, ingest.split.model_dump(), seed, duplicates.groups(rows), planned.held_out)
            write_tables(rows, split, licences, tables_folder)
        asked = {"seed": seed, "ingest": ingest.model_dump()}
        _write_manifest(
            tables_folder, planned.told | {"parameters": asked, "provenance": provenance, "index_sha256": kept.digest(found.index)}
        )
        shards_folder.mkdir(parents=True)
        for shard in done.shards:
            outputs.link(shard, shards_folder / shard.name)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Say in one sentence that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InputError(f"{folder}: expected room on the disk, found none ({error}); make some and start again") from error
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        found = str(error).partition("\n")[0]
        raise InputError(
            f"{folder}: expected room on the disk for temporary files, found none ({found}); make some and start again"
        ) from error


@contextmanager
def _work(tables_folder: Path) -> Iterator[Path]:
    """Where finished shards are kept: with the running job until its outputs are in place, without one for the block."""
    if place := job.next_checkpoints():
        place.mkdir(parents=True, exist_ok=True)
        yield place
        return
    tables_folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ingest-", dir=tables_folder.parent) as folder:
        yield Path(folder)


def _packed(folder: Path, found: Download, planned: Plan, ingest: Ingest) -> Kept:
    """All shards and rows, those that are there from an interrupted run and the others."""
    packer = Packer(found.pixels, raw.classes(found.mapping), ingest.max_pixels)
    shard_bytes = ingest.shard_size_mb * 2**20
    decides = [hashes.code_hash(Path(__file__).parent), sorted(packer.classes.items()), ingest.max_pixels, shard_bytes]
    done = Kept(folder, hashlib.sha256(repr(decides).encode()).hexdigest())
    first, count, work = done.resumed(planned.jobs())
    opened = pool.batched(partial(_pack, packer), islice(planned.jobs(), count, None))
    with Ticker(planned.images, "images packed") as ticker:
        ticker.advance(count)
        done.fill(_counted(opened, ticker), first, work, shard_bytes)
    return done


def _pack(packer: Packer, jobs: list[Job]) -> list[tuple[Packed, str]]:
    return list(zip(packer.pack(jobs), map(kept.job_hash, jobs), strict=True))


def _counted(opened: Iterator[tuple[Packed, str]], ticker: Ticker) -> Iterator[tuple[Packed, str]]:
    for item in opened:
        yield item
        ticker.advance()


def _refuse_too_many(rows: duckdb.DuckDBPyConnection, limit: float, source: Path) -> None:
    told = []
    for kind, query in _GOOD.items():
        good = rows.sql(query).fetchall()[0][0]
        bad = rows.execute(_BAD, [kind]).fetchall()[0][0]
        if bad > limit * (bad + good):
            first = rows.execute(_REASONS, [kind, _SHOWN]).fetchall()
            told.append(f"{bad} of {bad + good} {kind}s ({'; '.join(reason for (reason,) in first)})")
    if told:
        raise InputError(f"{source}: expected at most {limit:.1%} faulty items of a kind, found {' and '.join(told)}")
    if not good:
        raise InputError(f"{source}: expected at least one usable conversation, found none")


def write_tables(rows: duckdb.DuckDBPyConnection, split: Mapping[Case, str], licences: Mapping[str, str], folder: Path) -> None:
    """Write the four tables from the rows of all shards: joined with what the whole collection decides, and sorted."""
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
    summary = ", ".join(
        f"{made[name]} {noun}" for name, noun in (("samples", "images"), ("masks", "masks"), ("conversations", "conversations"))
    )
    log.info("ingest: %s; %d left out", summary, sum(quarantined.values()))
