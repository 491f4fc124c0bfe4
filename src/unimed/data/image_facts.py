"""What a shard holds at the places that samples.parquet names: every image decoded once, whoever asks for it how often."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
    """A shard, the places in it that a subset needs (offset and size, in order), and where their facts are to be written.

    Text is looked for only `for_text`: it costs more than all else. `known` are facts that were kept, by place, under the name `key`,
    which is empty where there is no such shard.
    """

    shard: str
    places: np.ndarray
    path: Path
    for_text: bool = False
    known: Mapping[tuple[int, int], Mapping[str, object]] = field(default_factory=dict)
    key: str = ""

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The places that nothing is known of."""
        return [place for place in map(tuple, self.places.tolist()) if place not in self.known]


def jobs(connection: duckdb.DuckDBPyConnection, folder: Path, for_text: bool) -> Iterator[Asked]:
    """A job for each shard that the view `samples` names, in order."""
    found = connection.sql('SELECT DISTINCT shard, "offset", size FROM samples ORDER BY ALL').to_arrow_table()
    places = np.stack([found["offset"].to_numpy(), found["size"].to_numpy()], axis=1)
    shard = found["shard"].combine_chunks().dictionary_encode()
    firsts = np.flatnonzero(np.diff(shard.indices.to_numpy(), prepend=-1))
    for number, (first, last) in enumerate(pairwise([*firsts, len(found)])):
        yield Asked(str(found["shard"][int(first)]), places[first:last], folder / f"images-{number:06d}.parquet", for_text)


def write_none(path: Path) -> None:
    """Write the facts of no image, for a subset without any."""
    pq.write_table(FACTS.append(pa.field("shard", pa.string())).empty_table(), path)


def looked_up(asked: Asked, root: Path, cache: Path | None) -> Asked:
    """The same with what the cache has of the shard, whose hash is taken for that; in threads, since hashing lets others run."""
    try:
        content = fact_cache.sha256(paths.inside(root, asked.shard), cache)
    except (InputError, OSError):
        return asked
    measured_by, versions = ((glyphs,), (scipy.__version__,)) if asked.for_text else ((), ())
    key = fact_cache.key(content, (sys.modules[__name__], images, *measured_by), PIL.__version__, *versions)
    kept = fact_cache.find(cache, key, FACTS)
    rows = [] if kept is None else kept.to_pylist()
    return replace(asked, key=key, known={(row["offset"], row["size"]): row for row in rows})


def write(asked: Asked, root: Path, cache: Path | None) -> int:
    """Write the facts of the places that are asked for, with the name of their shard, and give the number of images decoded for it."""
    missing = asked.missing
    known = {**asked.known, **{place: _facts(root, Place(asked.shard, *place), asked.for_text) for place in missing}}
    if asked.key and missing:
        fact_cache.keep(cache, asked.key, pa.Table.from_pylist([known[place] for place in sorted(known)], schema=FACTS))
    found = pa.Table.from_pylist([known[place] for place in map(tuple, asked.places.tolist())], schema=FACTS)
    pq.write_table(found.append_column("shard", pa.array([asked.shard] * len(found), pa.string())), asked.path)
    return len(missing)


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
