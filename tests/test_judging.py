"""SQL and Great Expectations judge alike, row by row, on facts of every kind."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
import raw_tree

from unimed.data import judging, sql, tables
from unimed.data.checks import Between, FreeOf, NoneOf, OneOf, Unique
from unimed.data.facts import KEYS
from unimed.data.promises import Promise, contract

PROMISES = contract(
    raw_tree.BOUNDS.model_copy(update={"licences": ("CC0-1.0", "it's"), "least_masks_of_class": 3, "least_images_of_modality": 3})
)
FRAGMENTS = (
    *(
        "The liver",
        " is ",
        "<SEG>",
        "<image>",
        "</mask>",
        "{organ}",
        "{}",
        "{a_b}",
        "SUV_{max}",
        "[ORGAN]",
        "[1, 2]",
        "TODO",
        "todo",
        "NaN",
        "banana",
    ),
    *(
        "masks/",
        "images/a--b",
        ".png",
        ".pngx",
        "x.jpeg",
        "C:\\",
        "/data/x/",
        "mg/kg/day",
        "a--b--z_0001",
        "a -- b",
        "%s",
        "50%",
        "é",
        "\n",
        "'",
        " ",
    ),
)


def values(check: Any, rng: np.random.Generator, count: int) -> Sequence[Any]:
    """Values for a column of which some break a check."""
    if isinstance(check, Between):
        bounds = [bound for bound in (check.low, check.high) if bound is not None]
        return [float(rng.choice(bounds)) + float(rng.integers(-2, 3)) / 2 for _ in range(count)]
    if isinstance(check, FreeOf):
        return ["".join(rng.choice(FRAGMENTS, rng.integers(0, 4))) for _ in range(count)]
    if isinstance(check, Unique):
        return [f"id {number}" for number in rng.integers(0, 3 * count, count)]
    first = check.values[0]
    others = [True, False] if isinstance(first, bool) else [0, 1, 2, 3] if isinstance(first, int) else ["", "unknown", "it's", "sonar"]
    return [(*check.values, *others)[int(rng.integers(len(check.values) + len(others)))] for _ in range(count)]


def facts_of(table: str, promises: Sequence[Promise], rng: np.random.Generator, count: int) -> pd.DataFrame:
    drawn: dict[str, list[Sequence[Any]]] = {}
    for promise in promises:
        if promise.table == table:
            drawn.setdefault(promise.check.column, []).append(values(promise.check, rng, count))
    columns = {name: [some[int(rng.integers(len(some)))] for some in zip(*kinds, strict=True)] for name, kinds in drawn.items()}
    return pd.DataFrame({"row": range(count), KEYS[table]: [f"id {number}" for number in range(count)], **columns})


def without_rows() -> dict[str, pd.DataFrame]:
    """Facts of no row of any table, in columns of the right kinds."""
    return {table: facts_of(table, PROMISES, np.random.default_rng(0), 9).head(0) for table in KEYS}


@contextmanager
def holding(frames: dict[str, pd.DataFrame]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB as facts.py leaves it, with these facts."""
    with sql.opened() as connection:
        for table, rows in frames.items():
            connection.register(f"given_{table}", rows)
            connection.execute(f"CREATE TABLE facts_of_{table} AS FROM given_{table}")
            connection.execute(f"CREATE VIEW {table} AS FROM given_{table}")
            key = KEYS[table]
            connection.execute(f"CREATE TABLE duplicate_{table} AS SELECT {key} FROM given_{table} GROUP BY {key} HAVING count(*) > 1")
        yield connection


@pytest.mark.parametrize("seed", range(4))
def test_both_find_the_same_rows_on_random_facts(seed):
    rng = np.random.default_rng(seed)
    frames = {table: facts_of(table, PROMISES, rng, 300) for table in KEYS}
    with holding(frames) as connection:
        outcomes, evidence = judging.find(connection, PROMISES)
    assert all(len(rows) == 300 for rows in evidence.values()), "offenders and others, the whole of a table this small"
    found = judging.expect(evidence, PROMISES)
    broken = 0
    for outcome in outcomes:
        rows = evidence[outcome.promise.table]
        assert set(np.flatnonzero(rows[f"broken_{outcome.promise.name}"])) == found[outcome.promise.name], outcome.promise.name
        assert outcome.failed == len(found[outcome.promise.name]) and outcome.of == 300
        broken += outcome.failed > 0
    assert broken == len(PROMISES), "every promise is broken somewhere, so that none agrees for want of offenders"


@dataclass(frozen=True)
class Careless(Between):
    """A check whose SQL finds nothing, or all."""

    predicate: str = "false"

    def broken(self, table: str) -> str:
        return self.predicate


@pytest.mark.parametrize(("predicate", "rows"), [("false", 1), ("true", 2)])
def test_sql_that_judges_otherwise_is_an_error(predicate, rows):
    frames = without_rows()
    frames["masks"] = facts_of("masks", PROMISES, np.random.default_rng(0), 3).assign(area_px=[0, 9, 9])
    promises = [
        replace(promise, check=Careless("area_px", low=1, predicate=predicate)) if promise.name == "mask_not_empty" else promise
        for promise in PROMISES
    ]
    for _ in ("asked", "known from before"):
        with holding(frames) as connection, pytest.raises(RuntimeError, match=f"mask_not_empty: expected .* found {rows} rows otherwise"):
            judging.judge(connection, promises)


ASKED_AGAIN = """
import sys
from pathlib import Path
import raw_tree
from unimed.data import contract
subset, shards, out, tiny = sys.argv[1:]
contract.write(Path(subset), Path(shards), Path(out), raw_tree.BOUNDS.model_copy(update={"min_area_px": int(tiny)}))
print("great_expectations" in sys.modules)
"""


@pytest.mark.slow
def test_great_expectations_is_imported_only_where_rows_or_promises_are_others(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    made = raw_tree.ingested(raw_tree.write(tmp_path / "raw"), tmp_path)
    whole, fewer = raw_tree.chosen(made, "grounding"), raw_tree.chosen(made, "vqa")

    def asked(subset: Path, out: str, tiny: int) -> str:
        command = [sys.executable, "-c", ASKED_AGAIN, subset, made / "shards", tmp_path / out, str(tiny)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert asked(whole, "first", 4) == "True"
    assert asked(whole, "second", 4) == "False"
    assert tables.digest(tmp_path / "first") == tables.digest(tmp_path / "second")
    assert asked(whole, "another bound", 5) == asked(fewer, "other rows", 4) == "True"


def test_offenders_beyond_the_share_are_counted_all_the_same_and_the_first_are_named():
    frames = without_rows()
    rows = facts_of("samples", PROMISES, np.random.default_rng(0), 4000).assign(
        sample_id=[f"id {number // 3 % 900}" for number in range(4000)]
    )
    frames["samples"] = rows.assign(modality=["ct" if number % 2 else "sonar" for number in range(4000)])
    with holding(frames) as connection:
        outcomes = {outcome.promise.name: outcome for outcome in judging.judge(connection, PROMISES)}
    assert outcomes["modality_known"].failed == 2000 and outcomes["modality_known"].rows == (0, 2, 4, 6, 8)
    assert outcomes["image_ids_unique"].failed == 4000 and outcomes["image_ids_unique"].ids == ("id 0", "id 0", "id 0", "id 1", "id 1")


def test_a_value_with_a_quote_is_a_value():
    assert OneOf("licence", ("it's",)).broken("samples") == "licence NOT IN ('it''s')"
    assert NoneOf("levels", (1, 2)).broken("samples") == "levels IN (1, 2)"
