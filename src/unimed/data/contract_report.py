"""report.html of a validated subset: one file to open anywhere, with the contract, the counts and pictures of what broke it."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from PIL import Image, ImageDraw

from unimed import NOTICE, pages
from unimed.data import conversation_facts, facts, images, masks, shards
from unimed.data.checks import Value, literal
from unimed.data.judging import Outcome
from unimed.data.shards import Place
from unimed.errors import InputError

Row = Mapping[str, Any]
_TEMPLATE = Path(__file__).with_name("contract_report.html.j2")
_PICTURED = 4
"""Offenders shown for each promise."""
_SIDE_PX = 160
_LONGEST_TEXT = 240
_MAX_PIXELS = 2**28


def write(
    path: Path,
    verdict: Mapping[str, Any],
    manifest: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
) -> None:
    """Write the report, which refers to no other file and no address.

    The connection is that of facts.py, the folder that of the shards.
    """
    told = [outcome for outcome in outcomes if outcome.failed]
    cases = {table: _cases(connection, table, told, folder) for table in facts.SCHEMAS}
    broken = [
        {**one.summary(), "cases": [cases[one.promise.table][row] for row in _pictured(one)] if one.promise.table in cases else []}
        for one in told
    ]
    page = pages.render(_TEMPLATE, verdict=verdict, manifest=manifest, broken=broken, notice=NOTICE, counts=manifest["counts"])
    path.write_text(page, encoding="utf-8")


def _pictured(outcome: Outcome) -> tuple[int, ...]:
    return outcome.rows[:_PICTURED]


def _cases(connection: duckdb.DuckDBPyConnection, table: str, told: Sequence[Outcome], folder: Path) -> dict[int, dict[str, str]]:
    """Id, picture and words of every offender of a table that is shown, by row."""
    rows = {row for outcome in told if outcome.promise.table == table for row in _pictured(outcome)}
    if not rows:
        return {}
    records = _records(connection, f"SELECT * FROM numbered_{table} WHERE row IN ({_listed(rows)})")
    about = {record["sample_id"]: record for record in _samples(connection, {record["sample_id"] for record in records})}
    rles = _named_rles(connection, rows) if table == "conversations" else {}
    shown = {}
    for record in records:
        drawn = rles.get(record["row"], []) if table == "conversations" else [record["rle"]] if table == "masks" else []
        picture = _picture(about.get(record["sample_id"]), drawn, folder)
        shown[record["row"]] = {"id": record[facts.KEYS[table]], "uri": picture, "text": _text(table, record)}
    return shown


def _records(connection: duckdb.DuckDBPyConnection, query: str) -> list[Row]:
    return connection.sql(query).to_arrow_table().to_pylist()


def _listed(values: Iterable[Value]) -> str:
    return ", ".join(literal(value) for value in values)


def _samples(connection: duckdb.DuckDBPyConnection, ids: Iterable[str]) -> list[Row]:
    return _records(connection, f"SELECT * FROM known_samples WHERE sample_id IN ({_listed(ids)})")


def _named_rles(connection: duckdb.DuckDBPyConnection, rows: Iterable[int]) -> dict[int, list[str]]:
    """Run lengths of the masks that conversations name, by the row of the conversation."""
    named = f"SELECT named.row, mask.row AS mask FROM named JOIN named_masks AS mask USING (mask_id) WHERE named.row IN ({_listed(rows)})"
    query = f"SELECT one.row, list(rle) FROM ({named}) AS one JOIN numbered_masks AS other ON other.row = one.mask GROUP BY one.row"
    return dict(connection.sql(query).fetchall())


def _text(table: str, record: Row) -> str:
    """What is said in the first turn of a conversation; the class of a mask; the modality and the data set of an image."""
    if table == "masks":
        return record["class_name"]
    if table == "samples":
        return f"{record['modality']}, {record['dataset']}"
    said = conversation_facts.turns(record["turns"])
    return _short(f"{said[0]['question']} — {said[0]['answer']}" if said else record["turns"])


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _picture(sample: Row | None, rles: Sequence[str], folder: Path) -> str:
    """A data URI of an image with its masks in red and a box around each; empty when the image cannot be opened."""
    if sample is None:
        return ""
    place = Place(shard=sample["shard"], offset=sample["offset"], size=sample["size"])
    try:
        image = images.rgb(images.decode(shards.read(folder, place), sample["sample_id"], _MAX_PIXELS))
    except InputError:
        return ""
    for rle in rles:
        image = _tinted(image, rle)
    return data_uri(image)


def _tinted(image: Image.Image, rle: str) -> Image.Image:
    """The image with a mask in red and a yellow box around it, so that a mask of a pixel can be found."""
    try:
        covered = masks.decode(rle, image.height, image.width)
    except InputError:
        return image
    pixels = np.asarray(image).copy()
    pixels[covered] = (pixels[covered] // 2) + np.array([127, 0, 0], dtype=np.uint8)
    tinted = Image.fromarray(pixels)
    if covered.any():
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        box = (int(columns[0]) - 2, int(rows[0]) - 2, int(columns[-1]) + 2, int(rows[-1]) + 2)
        ImageDraw.Draw(tinted).rectangle(box, outline="yellow", width=max(1, max(image.size) // _SIDE_PX))
    return tinted


def data_uri(image: Image.Image) -> str:
    """A small PNG of the image, as text that a page can hold."""
    small = image.copy()
    small.thumbnail((_SIDE_PX, _SIDE_PX))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
