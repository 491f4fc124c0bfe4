"""Promises judged: DuckDB finds and counts the rows that break one, and Great Expectations judges a share of them and of the others."""

import hashlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa

from unimed.data import fact_cache
from unimed.data.checks import Unique
from unimed.data.facts import KEYS, SCHEMAS
from unimed.data.promises import Promise

SHOWN = 5
"""Offenders named in a verdict."""

_SHARE = 500
"""Rows of each promise that Great Expectations judges at most, and rows at the head of a table."""


_BROKEN = pa.schema([("promise", pa.string()), ("position", pa.int64())])
"""Rows that Great Expectations finds to break a promise, by their position in the frame of its table."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rows of a table break a promise, and the first of them: their ids and their numbers in the table."""

    promise: Promise
    of: int
    failed: int
    ids: tuple[str, ...]
    rows: tuple[int, ...]

    def summary(self) -> dict[str, Any]:
        """The outcome as an entry of verdict.json."""
        promise = self.promise
        about = {"name": promise.name, "table": promise.table, "severity": promise.severity, "says": promise.says}
        return {**about, "failed": self.failed, "of": self.of, "examples": list(self.ids)}


def judge(connection: duckdb.DuckDBPyConnection, promises: Sequence[Promise]) -> list[Outcome]:
    """The outcome of every promise, in order, on the facts of facts.py; leaves the offenders of each table in `faulty_<table>`.

    Raises RuntimeError where Great Expectations judges a row otherwise than the SQL of its promise.
    """
    outcomes, evidence = find(connection, promises)
    agree(evidence, promises)
    return outcomes


def find(connection: duckdb.DuckDBPyConnection, promises: Sequence[Promise]) -> tuple[list[Outcome], dict[str, pd.DataFrame]]:
    """The outcome of every promise by its SQL, and for each table the rows that Great Expectations is to judge."""
    frames, outcomes = {}, {}
    for table in KEYS:
        asked = [promise for promise in promises if promise.table == table]
        _find(connection, table, asked)
        [[of]] = connection.sql(f"SELECT count(*) FROM {table if table in SCHEMAS else f'facts_of_{table}'}").fetchall()
        found = [
            _outcome(connection, promise, of, failed) for promise, failed in zip(asked, _counted(connection, table, asked), strict=True)
        ]
        outcomes |= {outcome.promise.name: outcome for outcome in found}
        frames[table] = _evidence(connection, table, found)
    return [outcomes[promise.name] for promise in promises], frames


def _find(connection: duckdb.DuckDBPyConnection, table: str, promises: Sequence[Promise]) -> None:
    tests = ", ".join(f"({promise.check.broken(table)}) AS broken_{promise.name}" for promise in promises)
    any_broken = " OR ".join(f"broken_{promise.name}" for promise in promises)
    connection.execute(f"CREATE TABLE faulty_{table} AS SELECT * FROM (SELECT *, {tests} FROM facts_of_{table}) WHERE {any_broken}")


def _counted(connection: duckdb.DuckDBPyConnection, table: str, promises: Sequence[Promise]) -> Sequence[int]:
    """How many rows break each promise."""
    counts = ", ".join(f"count(*) FILTER (WHERE broken_{promise.name})" for promise in promises)
    [failed] = connection.sql(f"SELECT {counts} FROM faulty_{table}").fetchall()
    return failed


def _outcome(connection: duckdb.DuckDBPyConnection, promise: Promise, of: int, failed: int) -> Outcome:
    source = f"faulty_{promise.table} WHERE broken_{promise.name}"
    query = f"SELECT row, {KEYS[promise.table]} FROM {source} ORDER BY row LIMIT {SHOWN}"
    first = connection.sql(query).fetchall() if failed else []
    return Outcome(promise, of, failed, tuple(key for _, key in first), tuple(row for row, _ in first))


def _evidence(connection: duckdb.DuckDBPyConnection, table: str, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Facts of the first offenders of each promise, two of each name where names are to be unique, and of the first rows without fault."""
    offenders = [_offenders(outcome.promise) for outcome in outcomes if outcome.failed]
    tests = ", ".join(f"false AS broken_{outcome.promise.name}" for outcome in outcomes)
    head = (
        f"SELECT *, {tests} FROM facts_of_{table} WHERE row < {_SHARE} AND row NOT IN (SELECT row FROM faulty_{table} WHERE row < {_SHARE})"
    )
    return connection.sql(f"{' UNION '.join([*offenders, f'({head})'])} ORDER BY row").df()


def _offenders(promise: Promise) -> str:
    source = f"SELECT * FROM faulty_{promise.table} WHERE broken_{promise.name}"
    if isinstance(promise.check, Unique):
        key = promise.check.column
        source += f" QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY row) < 3 ORDER BY {key}, row"
    else:
        source += " ORDER BY row"
    return f"({source} LIMIT {_SHARE})"


def agree(frames: Mapping[str, pd.DataFrame], promises: Sequence[Promise]) -> None:
    """Raise RuntimeError where Great Expectations judges a row otherwise than the SQL of its promise."""
    found = _expected(frames, promises)
    for promise in promises:
        sql = {row for row, broken in enumerate(frames[promise.table][f"broken_{promise.name}"]) if broken}
        judged = found[promise.name]
        # A name may be there once only, its twin being beyond the share: then only SQL can know.
        if judged - sql or (sql - judged and not isinstance(promise.check, Unique)):
            raise RuntimeError(
                f"{promise.name}: expected Great Expectations to judge as its SQL does, found {len(judged ^ sql)} rows otherwise"
            )


def _expected(frames: Mapping[str, pd.DataFrame], promises: Sequence[Promise]) -> dict[str, set[int]]:
    """What `expect` gives; from the cache where it was asked the same before, since to import Great Expectations takes seconds."""
    cache, key = fact_cache.folder(), _key(frames, promises)
    kept = fact_cache.find(cache, key, _BROKEN)
    if kept is None:
        rows = [(name, row) for name, positions in expect(frames, promises).items() for row in sorted(positions)]
        kept = pa.Table.from_pylist([dict(zip(_BROKEN.names, row, strict=True)) for row in rows], schema=_BROKEN)
        fact_cache.keep(cache, key, kept)
    found: dict[str, set[int]] = {promise.name: set() for promise in promises}
    for row in kept.to_pylist():
        found[row["promise"]].add(row["position"])
    return found


def _key(frames: Mapping[str, pd.DataFrame], promises: Sequence[Promise]) -> str:
    asked = [(promise.name, promise.table, promise.check.expectation()) for promise in promises]
    rows = [(table, fact_cache.digest(pa.Table.from_pandas(frame, preserve_index=False))) for table, frame in frames.items()]
    content = hashlib.sha256(repr((asked, rows)).encode()).hexdigest()
    return fact_cache.key(content, (sys.modules[__name__],), metadata.version("great_expectations"), pd.__version__)


def expect(frames: Mapping[str, pd.DataFrame], promises: Sequence[Promise]) -> dict[str, set[int]]:
    """The positions in each promise's frame of the rows that break it, as Great Expectations finds them."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    os.environ["DO_NOT_TRACK"] = "1"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # Great Expectations sets this logger to INFO on import and tells of a folder that nothing here uses.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    whole = context.data_sources.add_pandas("facts").add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
    found = {}
    for table, rows in frames.items():
        suite = gx.ExpectationSuite(table, [_expectation(promise) for promise in promises if promise.table == table])
        how = {"result_format": "COMPLETE", "return_unexpected_index_query": False}
        result: Any = whole.get_batch({"dataframe": rows}).validate(suite, result_format=how)
        found |= dict(map(_positions, result.results))
    return found


def _expectation(promise: Promise) -> Any:
    from great_expectations import expectations

    kind, arguments = promise.check.expectation()
    return getattr(expectations, kind)(**arguments, meta={"name": promise.name})


def _positions(found: Any) -> tuple[str, set[int]]:
    """One result of Great Expectations, whose result classes have no useful types."""
    name = found.expectation_config.meta["name"]
    if found.exception_info.get("raised_exception"):
        raise RuntimeError(f"{name}: {found.exception_info['exception_message']}")
    return name, set(found.result["unexpected_index_list"])
