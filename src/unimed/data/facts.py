"""Facts about a subset, in a DuckDB: what shards and run lengths hold, measured once and kept, joined with what the tables say."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from unimed.data import conversation_facts, duplicates, fact_cache, image_facts, mask_facts, pool, sql, tables
from unimed.data.checks import literal
from unimed.data.mask_facts import Group
from unimed.data.names import MODALITIES
from unimed.data.streamed import load
from unimed.errors import InputError
from unimed.progress import track

log = logging.getLogger(__name__)
SCHEMAS = {"samples": tables.SAMPLES, "masks": tables.MASKS, "conversations": tables.CONVERSATIONS}
KEYS = {"samples": "sample_id", "masks": "mask_id", "conversations": "conversation_id", "classes": "class_name", "modalities": "modality"}
"""The tables that promises are about, each with the column that names its rows; the facts of one are the view `facts_of_<table>`."""

ORIENTATIONS = ("radiological", "image")
_CONVERSATIONS_AT_ONCE = 2**13

_READ_AT_ONCE = 4
"""Row groups that are looked up at a time: more than that wait for the disk or take memory."""


@contextmanager
def opened(subset: Path, shards: Path, for_text: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB with a subset's tables, numbered by `row`, and the facts about them; images come from the folder `shards`.

    Text in images is looked for only `for_text`.
    Raises InputError when a table is missing or has other columns, or the manifest gives an orientation that is none.
    """
    for name, schema in SCHEMAS.items():
        tables.opened(subset / f"{name}.parquet", schema)
    orientation = _orientation(subset)
    with tempfile.TemporaryDirectory(prefix="unimed-facts-") as scratch:
        log.info("%d images measured, the facts of all others were kept", measure_images(subset, shards, Path(scratch), for_text))
        log.info("%d masks measured, the facts of all others were kept", measure_masks(subset, Path(scratch)))
        with joined(subset, Path(scratch), orientation) as connection:
            yield connection


def measure_images(subset: Path, shards: Path, folder: Path, for_text: bool = False) -> int:
    """Write into `folder` what the shards hold for a subset, in parts, and give the number of images that were decoded for it."""
    with sql.opened(samples=subset / "samples.parquet") as connection:
        asked = list(image_facts.jobs(connection, folder, for_text))
    if not asked:
        image_facts.write_none(folder / "images-none.parquet")
    with_cache = {"root": shards, "cache": fact_cache.folder()}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(track(threads.map(partial(image_facts.looked_up, **with_cache), asked), len(asked), "shards read"))
    write, known = partial(image_facts.write, **with_cache), [one for one in found if not one.missing]
    return sum(map(write, known)) + _all(write, [one for one in found if one.missing], "shards checked")


def measure_masks(subset: Path, folder: Path) -> int:
    """Write into `folder` what the masks of a subset measure, in parts, and give the number of masks that were unpacked for it."""
    groups = list(mask_facts.groups(subset / "masks.parquet", folder, "masks"))
    how = {"cache": fact_cache.folder()}
    return _all_new(partial(mask_facts.looked_up, **how), partial(mask_facts.write, **how), groups, "tables of masks")


@contextmanager
def joined(subset: Path, folder: Path, orientation: Mapping[str, str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """The DuckDB of `opened`, from what the two above have written into `folder`."""
    places = {name: subset / f"{name}.parquet" for name in SCHEMAS}
    measured = {f"measured_{name}": folder / f"{name}-*.parquet" for name in ("images", "masks")}
    with sql.opened(**places, **measured) as connection:
        for name, place in places.items():
            source = f"read_parquet({literal(str(place))}, file_row_number = true)"
            connection.execute(f"CREATE VIEW numbered_{name} AS SELECT * RENAME (file_row_number AS row) FROM {source}")
        _find_duplicates(connection)
        duplicates.find(connection, apart="split")
        _read_conversations(connection, places["conversations"], folder, orientation)
        for statement in _VIEWS:
            connection.execute(statement)
        yield connection


def _orientation(subset: Path) -> Mapping[str, str]:
    """What the provenance of a subset says of its data sets' orientation; nothing where it says nothing."""
    manifest = load(subset / "manifest.json")
    found = manifest.get("provenance", {}).get("orientation", {}) if isinstance(manifest, dict) else {}
    if not isinstance(found, dict) or not set(found.values()) <= set(ORIENTATIONS):
        raise InputError(
            f"{subset / 'manifest.json'}: expected 'orientation' by data set ({' or '.join(ORIENTATIONS)}), found {found!r:.80}"
        )
    return found


def _all(function: Any, jobs: list[Any], label: str) -> int:
    """The sum of what a function gives of each job, a few jobs of about a second at a time."""
    return sum(track(pool.ordered(function, jobs, worth=1), len(jobs), label))


def _all_new(looked_up: Callable[[Group], Group | None], write: Callable[[Group], int], groups: list[Group], label: str) -> int:
    """The rows that had to be written since none were kept: only for those are processes started, which takes a second."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        unknown = [group for group in track(threads.map(looked_up, groups), len(groups), f"{label} looked up") if group]
    return _all(write, unknown, f"{label} checked")


def _find_duplicates(connection: duckdb.DuckDBPyConnection) -> None:
    """Names that several rows have, with their first row: by hashes first, which take a tenth of the memory of names."""
    for name, source in (("samples", "numbered_samples"), ("masks", "measured_masks"), ("conversations", "numbered_conversations")):
        key = KEYS[name]
        several = f"SELECT hash({key}) FROM {source} GROUP BY ALL HAVING count(*) > 1"
        connection.execute(
            f"CREATE TABLE duplicate_{name} AS SELECT {key}, min(row) AS first FROM {source} "
            f"WHERE hash({key}) IN ({several}) GROUP BY {key} HAVING count(*) > 1"
        )
        if name != "conversations":
            connection.execute(f"CREATE VIEW known_{name} AS SELECT * FROM {source} AS one {_first_of_each(connection, name)}")


def _first_of_each(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    """The condition that leaves one row `one` of each name: none where all have their own, since it would look up every row."""
    [[several]] = connection.sql(f"SELECT count(*) FROM duplicate_{name}").fetchall()
    key = KEYS[name]
    exists = f"SELECT 1 FROM duplicate_{name} AS other WHERE other.{key} = one.{key} AND other.first <> one.row"
    return f"WHERE NOT EXISTS ({exists})" if several else ""


def _read_conversations(connection: duckdb.DuckDBPyConnection, source: Path, folder: Path, orientation: Mapping[str, str]) -> None:
    named = list(mask_facts.groups(source, folder, "named"))
    _all(conversation_facts.write_named, named, "tables of conversations read")
    connection.read_parquet(str(folder / "named-*.parquet")).create_view("named")
    connection.execute(_CLASSES)
    connection.execute("CREATE TABLE named_masks AS SELECT * FROM known_masks SEMI JOIN named USING (mask_id)")
    joined = folder / "joined.parquet"
    connection.execute(f"COPY ({_JOINED}) TO {literal(str(joined))} (FORMAT parquet, ROW_GROUP_SIZE {_CONVERSATIONS_AT_ONCE})")
    classes = connection.sql("SELECT dataset, list(DISTINCT class_name) FROM class_names GROUP BY dataset").fetchall()
    groups = list(mask_facts.groups(joined, folder, "conversations"))
    how = {"classes": dict(classes), "orientation": orientation, "cache": fact_cache.folder()}
    looked_up, write = partial(conversation_facts.looked_up, **how), partial(conversation_facts.write, **how)
    _all_new(looked_up, write, groups, "tables of conversations")
    connection.read_parquet(str(folder / "conversations-*.parquet")).create_view("facts_of_conversations")


# The data set by the name of the image, which says it: a join of all masks with all images would take as long as all that follows.
_CLASSES = """
CREATE TABLE class_names AS
SELECT split_part(sample_id, '--', 2) AS dataset, class_id, class_name, count(*) AS masks FROM measured_masks GROUP BY ALL
"""

_JOINED = """
WITH found AS (
    SELECT named.row, list(
        struct_pack(turn, role, sample_id := named_masks.sample_id, class_name, height, width, "left", top, "right", bottom)
        ORDER BY turn, role, mask_id) AS named
    FROM named LEFT JOIN named_masks USING (mask_id) GROUP BY named.row
), pointing AS (
    SELECT row, count(DISTINCT turn) AS turns_that_name FROM named GROUP BY row
), pointless AS (
    SELECT DISTINCT sample_id FROM numbered_conversations LEFT JOIN pointing USING (row)
    WHERE task = 'grounding' AND coalesce(turns_that_name, 0) < coalesce(try(json_array_length(turns)), 1)
), seen AS (
    SELECT sample_id, list(DISTINCT class_name ORDER BY class_name) AS present
    FROM measured_masks SEMI JOIN pointless USING (sample_id) GROUP BY sample_id
)
SELECT said.row, conversation_id, said.sample_id, task, turns, options, solution, rationale, about.sample_id IS NOT NULL AS sample_exists,
    coalesce(modality, '') AS modality, coalesce(dataset, '') AS dataset, coalesce(slice, '') AS slice,
    coalesce(named, []) AS named, coalesce(present, []) AS present
FROM numbered_conversations AS said LEFT JOIN known_samples AS about USING (sample_id)
    LEFT JOIN found ON found.row = said.row LEFT JOIN seen ON seen.sample_id = said.sample_id
ORDER BY said.row
"""

_NAMED_LIKE_ITS_MODALITY = " OR ".join(f"modality = '{known}' AND starts_with(lower(prefix) || '_', '{known}_')" for known in MODALITIES)
_VIEWS = (
    f"""
CREATE VIEW facts_of_samples AS
WITH cases AS (
    SELECT dataset, "case", count(DISTINCT split) AS splits_of_case FROM samples GROUP BY ALL
), named_apart AS (
    SELECT *, '--' || dataset || '--' || "case" || '--' || slice AS ending, left(sample_id, length(sample_id) - length(ending)) AS prefix
    FROM numbered_samples
)
SELECT row, sample_id, modality, licence, splits_of_case,
    sample_id IN (SELECT one FROM near_duplicates UNION ALL SELECT other FROM near_duplicates) AS seen_elsewhere,
    coalesce(decodes, false) AS decodes, coalesce(bands, '') AS bands, coalesce(levels, 0) AS levels, coalesce(glyphs, 0) AS glyphs,
    coalesce(found.sha256 = said.sha256, false) AS bytes_match,
    coalesce(found.height = said.height AND found.width = said.width, false) AS size_matches,
    ends_with(sample_id, ending) AND regexp_full_match(slice, '[xyz]_[0-9]+|2d_none')
        AND (modality NOT IN {MODALITIES} OR {_NAMED_LIKE_ITS_MODALITY}) AS name_agrees
FROM named_apart AS said LEFT JOIN measured_images AS found USING (shard, "offset", size) LEFT JOIN cases USING (dataset, "case")
""",
    """
CREATE VIEW facts_of_masks AS
WITH ids AS (
    SELECT dataset, class_id, count(*) AS names_of_class_id FROM class_names GROUP BY ALL
), usual AS (
    SELECT class_id, instance, format('--{:04d}_{:03d}', class_id, instance) AS usual
    FROM (SELECT DISTINCT class_id, instance FROM measured_masks)
), named_apart AS (
    SELECT *, substr(mask_id, length(sample_id) + 3) AS ending FROM measured_masks
)
SELECT mask.row, mask_id, about.sample_id IS NOT NULL AS sample_exists, unpacks, area_px, components,
    coalesce(about.height = mask.height AND about.width = mask.width, true) AS size_matches, area_px = area AS area_matches,
    area_px / greatest(mask.height::BIGINT * mask.width, 1) AS area_fraction, coalesce(names_of_class_id, 1) AS names_of_class_id,
    CASE WHEN mask_id = mask.sample_id || usual THEN true
        WHEN NOT starts_with(mask_id, mask.sample_id || '--') OR NOT regexp_full_match(ending, '[0-9]{4,}_([0-9]{3,}|merged)') THEN false
        ELSE coalesce(try_cast(split_part(ending, '_', 1) AS BIGINT) = mask.class_id, false)
            AND coalesce(try_cast(replace(split_part(ending, '_', 2), 'merged', '-1') AS BIGINT) = mask.instance, false)
        END AS name_agrees
FROM named_apart AS mask LEFT JOIN known_samples AS about USING (sample_id)
    LEFT JOIN ids ON ids.dataset = about.dataset AND ids.class_id = mask.class_id
    LEFT JOIN usual ON usual.class_id = mask.class_id AND usual.instance = mask.instance
""",
    """
CREATE VIEW facts_of_classes AS
SELECT row_number() OVER (ORDER BY class_name) - 1 AS row, class_name, sum(masks)::BIGINT AS masks FROM class_names GROUP BY class_name
""",
    """
CREATE VIEW facts_of_modalities AS
SELECT row_number() OVER (ORDER BY modality) - 1 AS row, modality, count(*) AS images FROM samples GROUP BY modality
""",
)
