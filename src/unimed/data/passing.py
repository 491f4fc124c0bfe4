"""What is passed on of a subset: the rows that break no promise that costs a row, and that depend on none that does."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unimed.data import facts, sql
from unimed.data.promises import Promise


def leave_out(connection: duckdb.DuckDBPyConnection, promises: Sequence[Promise]) -> None:
    """Make the tables `dropped_<table>` of the numbers of all rows that are left out, from those that `judging.judge` left."""
    for table in facts.SCHEMAS:
        tests = [f"broken_{promise.name}" for promise in promises if promise.table == table and promise.severity == "quarantine"]
        connection.execute(f"CREATE TABLE quarantined_{table} AS SELECT row FROM faulty_{table} WHERE {' OR '.join(tests) or 'false'}")
    for statement in _DROPPED:
        connection.execute(statement)


def write(connection: duckdb.DuckDBPyConnection, subset: Path, folder: Path) -> dict[str, int]:
    """Write the tables without the rows that are left out, in the same order, and give the number of rows of each."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {}
    for table, schema in facts.SCHEMAS.items():
        dropped = connection.sql(f"SELECT row FROM dropped_{table} ORDER BY row").fetchnumpy()["row"]
        rows = sql.even(_without(subset / f"{table}.parquet", dropped), schema)
        kept[table] = sql.write(folder / f"{table}.parquet", rows, schema)
    return kept


def _without(path: Path, dropped: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file but for those with these numbers, which are in order. Not in SQL: it would sort what is in order."""
    first = 0
    for batch in pq.ParquetFile(path).iter_batches(sql.ROWS):
        low, high = np.searchsorted(dropped, [first, first + len(batch)])
        keep = np.ones(len(batch), dtype=bool)
        keep[dropped[low:high] - first] = False
        first += len(batch)
        yield batch.filter(pa.array(keep))


_DROPPED = (
    "CREATE VIEW dropped_samples AS FROM quarantined_samples",
    """
CREATE TABLE lost_samples AS
SELECT sample_id FROM numbered_samples SEMI JOIN quarantined_samples USING (row)
EXCEPT SELECT sample_id FROM numbered_samples ANTI JOIN quarantined_samples USING (row)
""",
    """
CREATE TABLE dropped_masks AS
FROM quarantined_masks UNION SELECT row FROM faulty_masks WHERE NOT sample_exists
UNION SELECT row FROM measured_masks SEMI JOIN lost_samples USING (sample_id)
""",
    """
CREATE TABLE dropped_conversations AS
FROM quarantined_conversations UNION SELECT row FROM faulty_conversations WHERE NOT sample_exists
UNION SELECT row FROM numbered_conversations SEMI JOIN lost_samples USING (sample_id)
UNION SELECT row FROM named WHERE mask_id NOT IN (SELECT mask_id FROM named_masks ANTI JOIN dropped_masks USING (row))
""",
)
