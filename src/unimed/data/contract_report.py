"""report.html of a validated subset: one file to open anywhere, with the contract, the counts and pictures of what broke it."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unimed import NOTICE, pages
from unimed.data import images, masks, shards
from unimed.data.shards import Place
from unimed.data.tables import Tables
from unimed.errors import InputError

if TYPE_CHECKING:
    from unimed.data.contract import Outcome

_TEMPLATE = Path(__file__).with_name("contract_report.html.j2")
_PICTURED = 4
"""Offenders shown for each promise."""
_SIDE_PX = 128
_MAX_PIXELS = 2**28


def write(
    path: Path, verdict: dict[str, Any], manifest: dict[str, Any], outcomes: "Sequence[Outcome]", whole: Tables, folder: Path
) -> None:
    """Write the report; it refers to no other file and no address."""
    broken = [{**outcome.summary(), "pictures": _pictures(outcome, whole, folder)} for outcome in outcomes if outcome.broken]
    page = pages.render(_TEMPLATE, verdict=verdict, manifest=manifest, broken=broken, notice=NOTICE, counts=manifest["counts"])
    path.write_text(page, encoding="utf-8")


def _pictures(outcome: "Outcome", whole: Tables, folder: Path) -> list[dict[str, str]]:
    rows = list(zip(outcome.ids, outcome.broken, strict=True))[:_PICTURED]
    return [{"id": key, "uri": _picture(outcome.promise.table, row, whole, folder)} for key, row in rows]


def _picture(table: str, row: int, whole: Tables, folder: Path) -> str:
    """A data URI of the image a row is about, with its mask in red; empty when the image cannot be opened."""
    record = getattr(whole, table).iloc[row]
    about = whole.samples[whole.samples["sample_id"] == record["sample_id"]]
    if about.empty:
        return ""
    sample = about.iloc[0]
    place = Place(shard=sample["shard"], offset=int(sample["offset"]), size=int(sample["size"]))
    try:
        image = images.rgb(images.decode(shards.read(folder, place), sample["sample_id"], _MAX_PIXELS))
    except InputError:
        return ""
    return data_uri(_tinted(image, record["rle"]) if table == "masks" else image)


def _tinted(image: Image.Image, rle: str) -> Image.Image:
    try:
        covered = masks.decode(rle, image.height, image.width)
    except InputError:
        return image
    pixels = np.asarray(image).copy()
    pixels[covered] = (pixels[covered] // 2) + np.array([127, 0, 0], dtype=np.uint8)
    return Image.fromarray(pixels)


def data_uri(image: Image.Image) -> str:
    """A small PNG of the image, as text that a page can hold."""
    small = image.copy()
    small.thumbnail((_SIDE_PX, _SIDE_PX))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
