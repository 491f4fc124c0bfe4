"""A download becomes shards and tables in one pass; what is faulty is left out with a reason, and too much of it is an error.

Memory does not grow with the download: annotations are read entry by entry, images packed one by one, tables joined and sorted on disk.
"""

import errno
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import duckdb

from unimed import hashes, job, outputs
from unimed.config import Ingest
from unimed.data import joined, kept, plan, pool, raw, sources
from unimed.data.kept import Kept
from unimed.data.pack import Job, Packed, Packer
from unimed.data.plan import Plan
from unimed.data.sources import Download
from unimed.data.splits import Case
from unimed.errors import InputError
from unimed.progress import Ticker

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
        about = {"provenance": provenance, "index_sha256": kept.digest(found.index)}
        joined.write(done, planned, tables_folder, seed, ingest, about, source)
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
    decides = [hashes.code_hash(Path(__file__).parent), sorted(packer.classes.items()), ingest.max_pixels, shard_bytes, found.tags]
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
