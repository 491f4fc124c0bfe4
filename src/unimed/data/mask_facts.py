"""What the run lengths of masks.parquet unpack to, row group by row group."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy

from unimed.data import fact_cache, runs

_COPIED = ("mask_id", "sample_id", "class_id", "class_name", "instance", "height", "width", "area")


@dataclass(frozen=True, slots=True)
class Group:
    """A row group of a table, the number of its first row in the table, and where its facts are to be written.

    `key` is the name under which they are to be kept, once it was looked for.
    """

    source: Path
    number: int
    first: int
    path: Path
    key: str = ""


def groups(source: Path, folder: Path, name: str) -> Iterator[Group]:
    """Every row group of a Parquet file, in order; facts go to `folder`/`name`-*.parquet. One without rows where there is none."""
    about, first = pq.ParquetFile(source).metadata, 0
    for number in range(max(about.num_row_groups, 1)):
        yield Group(source, number, first, folder / f"{name}-{number:06d}.parquet")
        first += about.row_group(number).num_rows if about.num_row_groups else 0


def read(group: Group, columns: list[str] | None = None) -> pa.Table:
    """The rows of a row group, with their numbers in the table as the column `row`."""
    source = pq.ParquetFile(group.source)
    rows = source.read_row_group(group.number, columns) if source.num_row_groups else source.read(columns)
    numbers = np.arange(group.first, group.first + len(rows))
    return rows.combine_chunks().append_column("row", pa.array(numbers, pa.int64()))


def looked_up(group: Group, cache: Path | None) -> Group | None:
    """None where the cache has what `write` would, which is written; else the group with its key.

    In threads, since hashing lets others run.
    """
    rows = read(group)
    key = _key(rows)
    measured = fact_cache.find(cache, key, runs.MEASURES)
    if measured is None or len(measured) != len(rows):
        return replace(group, key=key)
    pq.write_table(facts(rows, measured), group.path, compression="zstd")
    return None


def write(group: Group, cache: Path | None) -> int:
    """Measure and write the rows of a row group without their run lengths, with what those measure; gives the number of rows."""
    rows = read(group)
    rles = pa.concat_arrays([pa.array([], pa.string()), *rows["rle"].chunks])
    measured = runs.measure(rles, rows["height"].to_numpy(), rows["width"].to_numpy())
    fact_cache.keep(cache, group.key, measured)
    pq.write_table(facts(rows, measured), group.path, compression="zstd")
    return len(rows)


def _key(rows: pa.Table) -> str:
    content = fact_cache.digest(rows.select(["rle", "height", "width"]))
    return fact_cache.key(content, (sys.modules[__name__], runs), np.__version__, scipy.__version__)


def facts(rows: pa.Table, measured: pa.Table) -> pa.Table:
    """Rows of masks.parquet without their run lengths, with what those measure."""
    kept = rows.select(["row", *_COPIED])
    for column in runs.MEASURES.names:
        kept = kept.append_column(column, measured[column])
    return kept
