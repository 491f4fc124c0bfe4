"""A download becomes shards and tables in one pass; what is faulty is left out with a reason, and too much of it is an error."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from unimed.config import Ingest
from unimed.data import pool, shards, splits, tables
from unimed.data import raw as download
from unimed.data.links import Links
from unimed.data.pack import Packed, jobs, pack
from unimed.data.raw import Fault, Raw
from unimed.data.records import Record
from unimed.data.shards import Place
from unimed.data.tables import Tables
from unimed.errors import InputError
from unimed.progress import track

log = logging.getLogger(__name__)
_SHOWN = 3
"""Faults quoted in a message."""


def write(raw: Path, shards_folder: Path, tables_folder: Path, seed: int, ingest: Ingest) -> None:
    """Write the shards and tables of the download at `raw`; the same input gives the same bytes.

    Packs the images that annotations name, nothing else. Raises InputError when a file of the layout is missing or malformed, when
    more than `ingest.max_bad_fraction` of the images, masks or conversations are faulty, or when no conversation is left.
    """
    found = download.read(raw)
    todo, faults = jobs(found)
    faults += found.faults
    opened = track(pool.ordered(partial(pack, root=raw, max_pixels=ingest.max_pixels), todo), len(todo), "images packed")
    placed = list(_places(shards.write(shards_folder, _usable(opened, faults), ingest.shard_size_mb * 2**20)))
    links = Links((item for item, _ in placed), faults)
    conversations = list(_linked(found.records, links, faults))
    made = _tables(placed, links, conversations, _licences(found, ingest), _splits(placed, ingest, seed))
    _refuse_too_many(faults, made, ingest.max_bad_fraction, raw)
    made.write(tables_folder)
    quarantine = tables.frame((asdict(fault) for fault in faults), tables.QUARANTINE)
    tables.write(quarantine, tables.QUARANTINE, tables_folder / "quarantine.parquet", by=("kind", "name", "file", "reason"))
    tables.write_json(tables_folder / "manifest.json", _manifest(found, made, faults, seed, ingest))
    log.info("ingest: %s; %d left out", _summary(made), len(faults))


def _usable(opened: Iterable[Packed], faults: list[Fault]) -> Iterator[Packed]:
    """The images that decode; what is wrong with them and the others is added to `faults`."""
    for item in opened:
        faults.extend(item.faults)
        if item.sample:
            yield item


def _places(written: Iterable[tuple[Packed, Place]]) -> Iterator[tuple[Packed, Place]]:
    """The images without their bytes, which are on disk by now."""
    for item, place in written:
        yield replace(item, content=b""), place


def _linked(records: Iterable[Record], links: Links, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    for record in records:
        try:
            yield links.conversation(record)
        except InputError as error:
            faults.append(Fault(kind="conversation", name=record.conversation_id, file=record.file, reason=str(error)))


def _splits(placed: Iterable[tuple[Packed, Place]], ingest: Ingest, seed: int) -> dict[splits.Case, str]:
    """The split of every case that has a usable image."""
    return splits.assign(((item.name.dataset, item.name.case) for item, _ in placed), ingest.split.model_dump(), seed)


def _licences(found: Raw, ingest: Ingest) -> dict[str, str]:
    said = found.provenance.get("licences", {})
    if not isinstance(said, dict) or not all(isinstance(licence, str) for licence in said.values()):
        raise InputError(f"{found.root / download.PROVENANCE}: expected licences by data set, found {said!r:.80}")
    return {**said, **ingest.licences}


def _tables(
    placed: list[tuple[Packed, Place]],
    links: Links,
    conversations: list[dict[str, Any]],
    licences: dict[str, str],
    split: dict[splits.Case, str],
) -> Tables:
    def sample(item: Packed, place: Place) -> dict[str, Any]:
        name = item.name
        return {**item.sample, **asdict(place), "split": split[name.dataset, name.case], "licence": licences.get(name.dataset, "unknown")}

    return Tables(
        samples=tables.frame((sample(item, place) for item, place in placed), tables.SAMPLES),
        masks=tables.frame([*links.masks.values(), *links.unions.values()], tables.MASKS),
        conversations=tables.frame(conversations, tables.CONVERSATIONS),
    )


def _refuse_too_many(faults: list[Fault], made: Tables, limit: float, raw: Path) -> None:
    good = {
        "image": len(made.samples),
        "mask": sum(instance >= 0 for instance in made.masks["instance"]),
        "conversation": len(made.conversations),
    }
    told = []
    for kind, kept in good.items():
        bad = [fault.reason for fault in faults if fault.kind == kind]
        if len(bad) > limit * (len(bad) + kept):
            told.append(f"{len(bad)} of {len(bad) + kept} {kind}s ({'; '.join(bad[:_SHOWN])})")
    if told:
        raise InputError(f"{raw}: expected at most {limit:.1%} faulty items of a kind, found {' and '.join(told)}")
    if not good["conversation"]:
        raise InputError(f"{raw}: expected at least one usable conversation, found none")


def _manifest(found: Raw, made: Tables, faults: list[Fault], seed: int, ingest: Ingest) -> dict[str, Any]:
    return {
        "counts": made.counts(),
        "quarantined": tables.tally(fault.kind for fault in faults),
        "parameters": {"seed": seed, "ingest": ingest.model_dump()},
        "provenance": found.provenance,
        "index_sha256": hashlib.sha256((found.root / download.INDEX).read_bytes()).hexdigest(),
    }


def _summary(made: Tables) -> str:
    return f"{len(made.samples)} images, {len(made.masks)} masks, {len(made.conversations)} conversations"
