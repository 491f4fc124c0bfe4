"""Tables larger than memory: DuckDB over Parquet files, and ordered rows written back with the same bytes for the same content."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from unimed.errors import InputError

MEMORY = "2GB"
"""What DuckDB holds before it sorts and joins on disk."""

ROWS = 2**16
"""Rows of a row group: what a reader of a table holds at least."""

_SETTINGS = {"memory_limit": MEMORY, "autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}


@contextmanager
def opened(**tables: Path | Sequence[Path]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB with each Parquet file as a view of its name; what does not fit in MEMORY lies in a temporary folder.

    Several files of one schema are one table; a path may hold `*`. Raises InputError when there is no such file or it is no Parquet table.
    """
    with (
        tempfile.TemporaryDirectory(prefix="unimed-sql-") as scratch,
        duckdb.connect(config={**_SETTINGS, "temp_directory": scratch}) as connection,
    ):
        connection.execute("SET enable_progress_bar = false")  # else it draws on a terminal, beside our own
        for name, path in tables.items():
            _view(connection, name, path)
        yield connection


def _view(connection: duckdb.DuckDBPyConnection, name: str, files: Path | Sequence[Path]) -> None:
    files = [files] if isinstance(files, Path) else files
    try:
        connection.read_parquet([str(file) for file in files]).create_view(name)
    except duckdb.Error as error:
        found = str(error).partition("\n")[0]
        raise InputError(f"{', '.join(map(str, files))}: expected a Parquet table, found {found}") from error


def batches(connection: duckdb.DuckDBPyConnection, query: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a query, ROWS at a time and fewer at the end. Raises pyarrow.ArrowInvalid when a value does not fit the schema."""
    yield from even(connection.sql(query).to_arrow_reader(ROWS), schema)


def even(parts: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of ROWS, however they come: where a row group ends is part of a file's bytes."""
    waiting: list[pa.Table] = []
    held = 0
    for part in parts:
        waiting.append(pa.Table.from_batches([part]).select(schema.names).cast(schema))
        held += part.num_rows
        if held >= ROWS:
            whole = pa.concat_tables(waiting).combine_chunks()
            full = held - held % ROWS
            yield from (whole.slice(start, ROWS) for start in range(0, full, ROWS))
            waiting, held = [whole.slice(full)], held - full
    if held:
        yield pa.concat_tables(waiting).combine_chunks()


def write(path: Path, parts: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write tables one after the other as row groups of a Parquet file, and give the number of rows."""
    total = 0
    with pq.ParquetWriter(path, schema.remove_metadata(), compression="zstd") as writer:
        for part in parts:
            if part.num_rows:  # an empty row group would tell a table without rows from a query without any
                writer.write_table(part.replace_schema_metadata(None), row_group_size=ROWS)
            total += part.num_rows
    return total
