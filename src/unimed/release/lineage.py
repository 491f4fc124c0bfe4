"""The data that a release was trained on: validated tables, the subsets, shards and download they were made from, sources and licences."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unimed import hashes
from unimed.data import tables
from unimed.data.streamed import load
from unimed.data.tables import Tables
from unimed.errors import InputError
from unimed.release.closure import DATA, WorkingFolder
from unimed.release.tree import Node, hashed, missing

SHARED = ("tables", "shards", "raw")
"""Folders under data/ that all tasks come from: the tables of ingest, the images, the download."""


def data(digests: Mapping[str, str], licences: Mapping[str, Mapping[str, int]], working: WorkingFolder, verify: bool) -> Node:
    """The data with these hashes by task; `licences` counts images by licence for each, as far as that is recorded."""
    tasks = [_task(task, digest, licences.get(task, {}), working, verify) for task, digest in sorted(digests.items())]
    shared = [_shared(name, digests, working, verify) for name in SHARED]
    return Node("data", children=(*tasks, *shared))


def _task(task: str, digest: str, licences: Mapping[str, int], working: WorkingFolder, verify: bool) -> Node:
    place = DATA / "valid" / task
    folder, facts = working.root / place, {"kept as": place.as_posix(), "hash": digest}
    used = {"licences": ", ".join(f"{name} {count}" for name, count in sorted(licences.items()))} if licences else {}
    subset = _subset(task, folder, working.lock.source(place, digest, DATA / "subsets" / task), working, verify)
    if not folder.is_dir():
        children = (subset, missing("sources", used))
        return Node(task, facts, missing(task, {}).state, children=children)
    found = hashes.dvc_hash(folder) if verify else digest
    fault = f"{place}: expected data with the hash {digest}, found {found}" if found != digest else ""
    return hashed(task, facts | _counts(folder), fault, verify, (subset, *_sources(folder)))


def _counts(folder: Path) -> dict[str, str]:
    """What manifest and verdict say; nothing where they say nothing."""
    manifest, verdict = (_object(folder / f"{name}.json") for name in ("manifest", "verdict"))
    counts = manifest.get("counts", {})
    told = {name: f"{counts[name]:,}" for name in ("samples", "masks", "conversations") if name in counts}
    return {**told, "contract": "passed" if verdict.get("passed") is True else "not known to have passed"}


def _object(path: Path) -> dict[str, Any]:
    try:
        content = load(path)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def _subset(task: str, valid: Path, digest: str, working: WorkingFolder, verify: bool) -> Node:
    """The subset that was validated: by its hash in dvc.lock, and by the one in the verdict."""
    place = DATA / "subsets" / task
    folder, sealed = working.root / place, str(_object(valid / "verdict.json").get("subset_sha256", ""))
    facts = {"kept as": place.as_posix(), **({"hash": digest} if digest else {}), **({"sha256": sealed} if sealed else {})}
    if not folder.is_dir():
        return missing("subset", facts)
    asked = _object(folder / "manifest.json")
    facts |= {"seed": str(asked["seed"])} if "seed" in asked else {}
    pairs = ((digest, hashes.dvc_hash), (sealed, tables.digest)) if verify else ()
    wrong = [(expected, found) for expected, take in pairs if expected and (found := take(folder)) != expected]
    fault = f"{place}: expected a subset with the hash {wrong[0][0]}, found {wrong[0][1]}" if wrong else ""
    return hashed("subset", facts, fault, verify and bool(digest or sealed))


def _sources(folder: Path) -> Iterator[Node]:
    """The data sets that the images come from, with licences, images, patients and splits."""
    try:
        samples = Tables.read(folder).samples
    except InputError as error:
        yield missing("sources", {}, str(error))
        return
    for name, rows in samples.groupby("dataset", sort=True):
        splits = ", ".join(f"{split} {count}" for split, count in tables.tally(rows["split"]).items())
        about = {"licence": ", ".join(sorted(set(rows["licence"]))), "images": f"{len(rows):,}", "patients": f"{rows['case'].nunique():,}"}
        yield Node(f"source {name}", about | {"splits": splits})


def _shared(name: str, digests: Mapping[str, str], working: WorkingFolder, verify: bool) -> Node:
    """A folder that all tasks come from, with the hash that dvc.lock has for it: one, unless the lock mixes two downloads."""
    place = DATA / name
    found = {working.lock.source(DATA / "valid" / task, digest, place) for task, digest in digests.items()} - {""}
    expected, folder = ", ".join(sorted(found)), working.root / place
    facts = {"kept as": place.as_posix(), **({"hash": expected} if expected else {})}
    if not expected or not folder.is_dir():
        return missing(name, facts)
    actual = hashes.dvc_hash(folder) if verify else expected
    fault = f"{place}: expected data with the hash {expected}, found {actual}" if actual != expected else ""
    return hashed(name, facts, fault, verify)
