"""What a shard holds at the places that samples.parquet names: every image decoded once, whoever asks for it how often."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import scipy

from unimed.data import fact_cache, glyphs, images, paths, shards
from unimed.data.shards import Place
from unimed.errors import InputError

FACTS = pa.schema(
    [
        *(("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string()), ("decodes", pa.bool_())),
        *(("height", pa.int32()), ("width", pa.int32()), ("bands", pa.string()), ("levels", pa.int32()), ("glyphs", pa.int32())),
    ]
)
"""`bands` as Pillow names them, such as L or RGB; `levels` counts grey values up to 3; `glyphs` are those of the longest row that
looks like text, and 0 where nobody asks for text. Empty and 0 where nothing decodes."""

_MAX_PIXELS = 2**28
"""Far above any bound that ingest may be given: what is in a shard was let in before."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A shard, the places in it that a subset needs (offset and size, in order), and where their facts are to be written."""

    shard: str
    places: np.ndarray
    path: Path


def jobs(connection: duckdb.DuckDBPyConnection, folder: Path) -> Iterator[Asked]:
    """A job for each shard that the view `samples` names, in order."""
    found = connection.sql('SELECT DISTINCT shard, "offset", size FROM samples ORDER BY ALL').to_arrow_table()
    places = np.stack([found["offset"].to_numpy(), found["size"].to_numpy()], axis=1)
    shard = found["shard"].combine_chunks().dictionary_encode()
    firsts = np.flatnonzero(np.diff(shard.indices.to_numpy(), prepend=-1))
    for number, (first, last) in enumerate(pairwise([*firsts, len(found)])):
        yield Asked(str(found["shard"][int(first)]), places[first:last], folder / f"images-{number:06d}.parquet")


def write_none(path: Path) -> None:
    """Write the facts of no image, for a subset without any."""
    pq.write_table(FACTS.append(pa.field("shard", pa.string())).empty_table(), path)


def write(asked: Asked, root: Path, cache: Path | None, for_text: bool) -> int:
    """Write the facts of the places that are asked for, with the name of their shard, and give the number of images decoded for it.

    Text is looked for only `for_text`: it costs more than all else.
    """
    known = {}
    name = _name(root, asked.shard, for_text)
    if name and (kept := fact_cache.find(cache, name, FACTS)) is not None:
        known = {(row["offset"], row["size"]): row for row in kept.to_pylist()}
    places = [(int(offset), int(size)) for offset, size in asked.places]
    missing = [place for place in places if place not in known]
    known |= {place: _facts(root, Place(asked.shard, *place), for_text) for place in missing}
    if name and missing:
        fact_cache.keep(cache, name, pa.Table.from_pylist([known[place] for place in sorted(known)], schema=FACTS))
    found = pa.Table.from_pylist([known[place] for place in places], schema=FACTS)
    pq.write_table(found.append_column("shard", pa.array([asked.shard] * len(found), pa.string())), asked.path)
    return len(missing)


def _name(root: Path, shard: str, for_text: bool) -> str | None:
    """The name of the shard's facts in the cache; None when there is no such shard."""
    try:
        with paths.inside(root, shard).open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except (InputError, OSError):
        return None
    if for_text:
        return fact_cache.key(content, (sys.modules[__name__], images, glyphs), PIL.__version__, scipy.__version__)
    return fact_cache.key(content, (sys.modules[__name__], images), PIL.__version__)


def _facts(root: Path, place: Place, for_text: bool) -> dict[str, object]:
    facts: dict[str, object] = {"offset": place.offset, "size": place.size, "sha256": "", "decodes": False}
    facts |= {"height": 0, "width": 0, "bands": "", "levels": 0, "glyphs": 0}
    try:
        content = shards.read(root, place)
        facts["sha256"] = hashlib.sha256(content).hexdigest()
        image = images.decode(content, place.shard, _MAX_PIXELS)
    except InputError:
        return facts
    grey = image if image.mode == "L" else images.rgb(image).convert("L")
    measured = {"levels": len(grey.getcolors(2) or (0, 0, 0)), "glyphs": glyphs.longest_row(np.asarray(grey)) if for_text else 0}
    return facts | {"decodes": True, "height": image.height, "width": image.width, "bands": "".join(image.getbands())} | measured
