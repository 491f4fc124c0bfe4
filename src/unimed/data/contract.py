"""A subset is held against the data contract: facts are measured, Great Expectations judges, and only what passed goes on."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unimed.config import Validate
from unimed.data import contract_report, facts, tables
from unimed.data.promises import Promise, contract
from unimed.data.raw import load
from unimed.data.subset import mask_ids
from unimed.data.tables import Tables
from unimed.errors import InputError

log = logging.getLogger(__name__)
KEYS = {"samples": "sample_id", "masks": "mask_id", "conversations": "conversation_id"}
_SHOWN = 5
"""Offenders named in a verdict."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Which rows of a table break a promise: their positions and ids."""

    promise: Promise
    of: int
    broken: tuple[int, ...]
    ids: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """The outcome as an entry of verdict.json."""
        promise = self.promise
        about = {"name": promise.name, "table": promise.table, "severity": promise.severity, "says": promise.says}
        return {**about, "failed": len(self.broken), "of": self.of, "examples": list(self.ids[:_SHOWN])}


def write(subset: Path, shards: Path, folder: Path, bounds: Validate) -> None:
    """Write the rows of a subset that keep the contract, with verdict.json and report.html; the same input gives the same bytes.

    Raises InputError naming promise, counts and first offenders when a promise of severity stop is broken, when more than
    `bounds.max_bad_fraction` of a table breaks one of severity quarantine, or when nothing is left to train on.
    """
    whole = Tables.read(subset)
    outcomes = judge(facts.measure(whole, shards), contract(bounds))
    _refuse(outcomes, bounds, subset)
    passed = _passing(whole, outcomes)
    if not passed.counts()["conversations_by_split"].get("train"):
        raise InputError(f"{subset}: expected at least one train conversation that keeps the contract, found none")
    verdict = {
        "passed": True,
        "checked": {table: len(getattr(whole, table)) for table in KEYS},
        "kept": {table: len(getattr(passed, table)) for table in KEYS},
        "expectations": [outcome.summary() for outcome in outcomes],
        "bounds": bounds.model_dump(),
        "subset_sha256": tables.digest(subset),
    }
    manifest = load(subset / "manifest.json") | {"counts": passed.counts()}
    passed.write(folder)
    tables.write_json(folder / "manifest.json", manifest)
    tables.write_json(folder / "verdict.json", verdict)
    contract_report.write(folder / "report.html", verdict, manifest, outcomes, whole, shards)
    log.info("validate %s: %d of %d conversations kept", subset.name, len(passed.conversations), len(whole.conversations))


def judge(measured: Mapping[str, pd.DataFrame], promises: Sequence[Promise]) -> list[Outcome]:
    """The outcome of every promise, in order, as Great Expectations finds it on the facts of each table."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    os.environ["DO_NOT_TRACK"] = "1"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # Great Expectations sets this logger to INFO on import and tells of a folder that nothing here uses.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("facts")
    found = {}
    for table, rows in measured.items():
        whole = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("all")
        suite = gx.ExpectationSuite(table, [_expectation(promise) for promise in promises if promise.table == table])
        how = {"result_format": "COMPLETE", "return_unexpected_index_query": False}
        result: Any = whole.get_batch({"dataframe": rows}).validate(suite, result_format=how)
        found |= {
            one.expectation_config.meta["name"]: one for one in result.results if one.expectation_config and one.expectation_config.meta
        }
    return [_outcome(promise, found[promise.name], measured[promise.table]) for promise in promises]


def _expectation(promise: Promise) -> Any:
    from great_expectations import expectations

    kind, arguments = promise.check
    return getattr(expectations, kind)(**arguments, meta={"name": promise.name})


def _outcome(promise: Promise, found: Any, rows: pd.DataFrame) -> Outcome:
    """One result of Great Expectations, whose result classes have no useful types."""
    if found.exception_info.get("raised_exception"):
        raise RuntimeError(f"{promise.name}: {found.exception_info['exception_message']}")
    broken = tuple(sorted(found.result["unexpected_index_list"]))
    return Outcome(promise, len(rows), broken, tuple(rows[KEYS[promise.table]].iloc[np.array(broken, dtype=int)]))


def _refuse(outcomes: Sequence[Outcome], bounds: Validate, subset: Path) -> None:
    told = [_sentence(outcome) for outcome in outcomes if outcome.promise.severity == "stop" and outcome.broken]
    for table in KEYS:
        quarantining = list(_quarantining(outcomes, table))
        rows = {row for outcome in quarantining for row in outcome.broken}
        if len(rows) > bounds.max_bad_fraction * max(outcome.of for outcome in quarantining):
            told += [_sentence(outcome) for outcome in quarantining if outcome.broken]
    if told:
        limit = f"at most {bounds.max_bad_fraction:.1%} of a table"
        found = "; ".join(told)
        raise InputError(f"{subset}: expected the data contract to be kept, or broken by {limit} where it allows that, found {found}")


def _sentence(outcome: Outcome) -> str:
    promise = outcome.promise
    found = f"{len(outcome.broken)} of {outcome.of} {promise.table}, such as {', '.join(outcome.ids[:_SHOWN])}"
    return f"{promise.name} ({promise.says}) broken by {found}"


def _passing(whole: Tables, outcomes: Sequence[Outcome]) -> Tables:
    """The rows that break no promise of severity quarantine and depend on no row that does."""
    dropped = {table: {row for one in _quarantining(outcomes, table) for row in one.broken} for table in KEYS}
    samples = _without(whole.samples, dropped["samples"])
    kept = set(samples["sample_id"])
    masks = _without(whole.masks, dropped["masks"])
    masks = tables.matching(masks, "sample_id", kept)
    conversations = _without(whole.conversations, dropped["conversations"])
    conversations = tables.matching(conversations, "sample_id", kept)
    known = set(masks["mask_id"])
    unresolved = {row for row, turns in enumerate(conversations["turns"]) if not known.issuperset(mask_ids(turns))}
    return Tables(samples=samples, masks=masks, conversations=_without(conversations, unresolved))


def _quarantining(outcomes: Sequence[Outcome], table: str) -> Iterator[Outcome]:
    return (outcome for outcome in outcomes if outcome.promise.table == table and outcome.promise.severity == "quarantine")


def _without(rows: pd.DataFrame, positions: set[int]) -> pd.DataFrame:
    return rows.iloc[[position for position in range(len(rows)) if position not in positions]]
