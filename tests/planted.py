"""Good data with one fault put into it: a subset of phantoms as files, and ways to spoil one row of it."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from PIL import Image

from unimed.config import Validate
from unimed.data import facts, images, judging, masks, shards, tables
from unimed.data.promises import contract
from unimed.data.shards import Place
from unimed.data.tables import Tables


@dataclass
class Subset:
    """A subset that may be spoilt: its tables, manifest and shards, and the bounds it is held to."""

    tables: Tables
    manifest: dict[str, Any]
    shards: Path
    bounds: Validate

    def alarms(self, folder: Path) -> dict[str, tuple[str, ...]]:
        """The promises that are broken once the subset is written, with the first offenders of each."""
        with self.opened(folder) as connection:
            outcomes = judging.judge(connection, contract(self.bounds))
        return {outcome.promise.name: outcome.ids for outcome in outcomes if outcome.failed}

    def facts(self, folder: Path, table: str, column: str) -> dict[str, Any]:
        """A fact of every row of a table, by its id, once the subset is written."""
        with self.opened(folder) as connection:
            return dict(connection.sql(f"SELECT {facts.KEYS[table]}, {column} FROM facts_of_{table}").fetchall())

    @contextmanager
    def opened(self, folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
        """The facts about the subset once it is written."""
        self.tables.write(folder)
        tables.write_json(folder / "manifest.json", self.manifest)
        with facts.opened(folder, self.shards, for_text=self.bounds.most_glyphs is not None) as connection:
            yield connection

    def rows(self, table: str) -> pd.DataFrame:
        """A table in its order."""
        return getattr(self.tables, table)

    def put(self, table: str, key: str, **values: Any) -> str:
        """Put values into the row of this id; gives the id."""
        rows = self.rows(table).copy()
        place = rows[facts.KEYS[table]] == key
        assert place.sum() == 1
        for column, value in values.items():
            rows.loc[place, column] = value
        self.tables = replace(self.tables, **{table: rows})
        return key

    def double(self, table: str, place: int = 0) -> str:
        """List a row twice; gives its id."""
        rows = self.rows(table)
        self.tables = replace(self.tables, **{table: rows.iloc[[*range(len(rows)), place]]})
        return rows[facts.KEYS[table]].iloc[place]

    def turn(self, fits: Callable[[dict[str, Any]], bool]) -> tuple[str, dict[str, Any]]:
        """The first conversation of one turn that fits, and its turn."""
        for key, text in self.tables.conversations[["conversation_id", "turns"]].itertuples(index=False):
            said = json.loads(text)
            if len(said) == 1 and fits(said[0]):
                return key, said[0]
        raise LookupError("no conversation fits")

    def say(self, key: str, turn: dict[str, Any], **values: Any) -> str:
        """Replace the only turn of a conversation; gives the conversation's id."""
        return self.put("conversations", key, turns=json.dumps([turn | values]))

    def image(self, key: str) -> Image.Image:
        """The image of a sample."""
        row = self.tables.samples.set_index("sample_id").loc[key]
        place = Place(str(row["shard"]), int(row["offset"]), int(row["size"]))
        return images.decode(shards.read(self.shards, place), key, 2**20)

    def pack(self, key: str, image: Image.Image | bytes, form: str = "PNG") -> str:
        """Put another image into the shards for a sample, as if ingest had packed it; gives the sample's id."""
        content = image if isinstance(image, bytes) else encoded(image, form)
        row = self.tables.samples.set_index("sample_id").loc[key]
        place = self.shards / str(row["shard"])
        offset = place.stat().st_size
        with place.open("ab") as shard:
            shard.write(content)
        return self.put("samples", key, offset=offset, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    def mask(self, key: str) -> np.ndarray:
        """The pixels of a mask."""
        row = self.tables.masks.set_index("mask_id").loc[key]
        return masks.decode(str(row["rle"]), int(row["height"]), int(row["width"]))

    def draw(self, key: str, pixels: np.ndarray) -> str:
        """Replace the pixels of a mask, noting its area; gives the mask's id."""
        return self.put("masks", key, rle=masks.encode(pixels), area=int(pixels.sum()))


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def copied(source: Path, shards: Path, folder: Path, bounds: Validate) -> Subset:
    """A subset as it lies on disk, with shards of its own that may be spoilt."""
    shutil.copytree(shards, folder / "shards")
    manifest = json.loads((source / "manifest.json").read_text())
    return Subset(Tables.read(source), manifest, folder / "shards", bounds)


def altered(module: ModuleType, folder: Path) -> str:
    """The path of a file with the code of a module and one line more."""
    file = folder / "altered.py"
    file.write_bytes(Path(str(module.__file__)).read_bytes() + b"# another")
    return str(file)
