"""Tables of any size without a pixel: a download's annotations and index, and the rows of packed shards, made up in SQL."""

import hashlib
import json
from pathlib import Path

from benchmarks import tree
from unimed.config import Ingest
from unimed.data import joined, kept, plan, sql, tables
from unimed.data.kept import Kept
from unimed.data.plan import Plan
from unimed.data.raw import INDEX, MAPPING, PIXELS
from unimed.data.sources import Download, Folder
from unimed.data.tables import QUARANTINE

SHARDS = 20
PER_CASE = 100
"""Images of a case: SA-Med2D's are mostly slices of volumes."""

_SET, _CASE, _SLICE = (
    f"'Set' || (i // {PER_CASE} % 50)",
    f"'case_' || lpad((i // {PER_CASE})::VARCHAR, 7, '0')",
    f"'z_' || lpad((i % {PER_CASE})::VARCHAR, 4, '0')",
)
_ID = f"'ct_00--' || {_SET} || '--' || {_CASE} || '--' || {_SLICE}"
_RANGE = "FROM (SELECT * FROM range({first}, {last}) AS numbers(i))"
_TURNS = """'[{{"question": "' || repeat('word ', 20) || '", "answer": "' || repeat('word ', 20) || '", "regions": [], "targets": []}}]'"""
_ROWS = {
    "samples": f"""SELECT {_ID} AS sample_id, 'ct' AS modality, {_SET} AS dataset, {_CASE} AS "case", {_SLICE} AS slice,
        sha256(i::VARCHAR) AS fingerprint, 'shard-000000.tar' AS shard, sha256(i::VARCHAR) AS sha256,
        512 AS height, 512 AS width, i * 100000 AS "offset", 100000 AS size {_RANGE}""",
    "masks": f"""SELECT {_ID} || '--' || lpad((k + 1)::VARCHAR, 4, '0') || '_000' AS mask_id, {_ID} AS sample_id,
        'class ' || k AS class_name, repeat(md5(i || ' ' || k), 8) AS rle, k + 1 AS class_id, 0 AS instance,
        512 AS height, 512 AS width, 1000 AS area {_RANGE} CROSS JOIN range({{each}}) AS others(k)""",
    "conversations": f"""SELECT i || ' said' AS conversation_id, {_ID} AS sample_id, 'vqa' AS task, 'other' AS question_type,
        '' AS answer_type, 'MeCoVQA-Complex.json' AS source, {_TURNS} AS turns, '' AS options, '' AS solution, '' AS rationale
        {_RANGE} WHERE i % {{every}} = 0""",
    "faults": "SELECT '' AS kind, '' AS name, '' AS file, '' AS reason LIMIT 0",
}


def write_kept(folder: Path, images: int, masks: int, said: int) -> None:
    """Write the rows of `images` packed images, as many shards as SHARDS."""
    done = Kept(folder, "")
    for shard in range(SHARDS):
        first, last = (images * number // SHARDS for number in (shard, shard + 1))
        place = done.rows("samples").parent.parent / f"{shard:06d}"
        place.mkdir(parents=True)
        with sql.opened() as connection:
            for name, query in _ROWS.items():
                asked = query.format(first=first, last=last, each=round(masks / images), every=max(1, images // said))
                sql.write(place / f"{name}.parquet", sql.batches(connection, asked, kept.ROWS[name]), kept.ROWS[name])


def join_kept(folder: Path, settings: Ingest) -> None:
    """Make the tables of what `write_kept` wrote."""
    faults = folder / "planned.parquet"
    sql.write(faults, tables.columns((), QUARANTINE), QUARANTINE)
    planned = Plan(folder / "work.parquet", faults, 0, frozenset(), {})
    joined.write(Kept(folder, ""), planned, folder / "tables", 0, settings, {"provenance": {}}, folder)


def write_download(folder: Path, images: int, masks: int, said: int) -> None:
    """Write the annotations and the index of a download of `images` images, of which `said` are spoken of."""
    each, every = round(masks / images), max(1, images // said)
    (folder / PIXELS).mkdir(parents=True)
    with (folder / INDEX).open("w") as index:
        for number in range(images):
            stem = tree.stem(number)
            listed = [f"masks/{stem}--{class_id:04d}_000.png" for class_id in range(1, each + 1)]
            index.write(f"{',' if number else '{'}{json.dumps(f'images/{stem}.png')}: {json.dumps(listed)}\n")
        index.write("}")
    tree.write_said(folder, range(0, images, every))


def plan_download(folder: Path, settings: Ingest) -> None:
    """Plan the work on what `write_download` wrote, and go through all of it."""
    scratch = folder / "plan"
    scratch.mkdir()
    planned = plan.write(Download(folder, folder / INDEX, folder / MAPPING, Folder(folder)), {}, scratch)
    work = hashlib.sha256(str(settings).encode())
    for job in planned.jobs():
        work.update(kept.job_hash(job).encode())
