"""Tables asked in SQL come back whole, in order and with the same bytes, however many rows they have."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unimed.data import sql
from unimed.errors import InputError

SCHEMA = pa.schema([pa.field("name", pa.string(), nullable=False), pa.field("number", pa.int32(), nullable=False)])


def shuffled(path: Path, count: int, seed: int) -> Path:
    order = np.random.default_rng(seed).permutation(count)
    pq.write_table(pa.table({"name": [f"row {number:07d}" for number in order], "number": order.astype(np.int32)}, schema=SCHEMA), path)
    return path


def ordered(source: Path, target: Path) -> bytes:
    with sql.opened(rows=source) as connection:
        sql.write(target, sql.batches(connection, "SELECT * FROM rows ORDER BY name", SCHEMA), SCHEMA)
    return target.read_bytes()


@pytest.mark.parametrize("count", [0, 1, sql.ROWS, sql.ROWS + 1, 3 * sql.ROWS + 5])
def test_rows_come_back_in_order_and_fill_their_row_groups(tmp_path, count):
    ordered(shuffled(tmp_path / "in.parquet", count, seed=0), tmp_path / "out.parquet")
    found = pq.ParquetFile(tmp_path / "out.parquet")
    assert found.read().column("number").to_pylist() == list(range(count))
    assert found.schema_arrow.equals(SCHEMA)
    groups = [found.metadata.row_group(group).num_rows for group in range(found.metadata.num_row_groups)]
    assert groups == [min(sql.ROWS, count - start) for start in range(0, count, sql.ROWS)]


def test_the_same_rows_give_the_same_bytes_in_whatever_order_they_lay(tmp_path):
    sources = [shuffled(tmp_path / f"{seed}.parquet", sql.ROWS + 99, seed) for seed in (1, 2)]
    assert ordered(sources[0], tmp_path / "a.parquet") == ordered(sources[1], tmp_path / "b.parquet")


def test_parts_of_any_size_become_the_same_row_groups(tmp_path):
    rows = pa.table({"name": [f"{number}" for number in range(9)], "number": range(9)}, schema=SCHEMA)
    apart, whole = ([*sql.even(rows.to_batches(size), SCHEMA)] for size in (2, 9))
    assert apart == whole == [rows]


def test_a_missing_or_broken_table_is_named(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    for name in ("absent.parquet", "broken.parquet"):
        with pytest.raises(InputError, match=f"{name}: expected a Parquet table, found .*"), sql.opened(rows=tmp_path / name):
            pass
