"""A subset is held against the data contract: facts are measured, promises judged, and only what passed goes on."""

import logging
from collections.abc import Sequence
from pathlib import Path

import duckdb

from unimed.config import Validate
from unimed.data import audit, audit_files, contract_report, counts, facts, judging, passing, sql, tables
from unimed.data.judging import Outcome
from unimed.data.promises import contract
from unimed.data.streamed import load
from unimed.errors import InputError

log = logging.getLogger(__name__)


def write(subset: Path, shards: Path, folder: Path, bounds: Validate) -> None:
    """Write the rows of a subset that keep the contract, with verdict.json and report.html; the same input gives the same bytes.

    Raises InputError naming promise, counts and first offenders when a promise of severity stop is broken, when more than
    `bounds.max_bad_fraction` of a table breaks one of severity quarantine, or when nothing is left to train on.
    """
    promises = contract(bounds)
    with facts.opened(subset, shards, for_text=bounds.most_glyphs is not None) as connection:
        outcomes = judging.judge(connection, promises)
        passing.leave_out(connection, promises)
        _refuse(connection, outcomes, bounds, subset)
        kept = passing.write(connection, subset, folder)
        with sql.opened(**{table: folder / f"{table}.parquet" for table in facts.SCHEMAS}) as passed:
            found = counts.counts(passed)
        if not found["conversations_by_split"].get("train"):
            raise InputError(f"{subset}: expected at least one train conversation that keeps the contract, found none")
        verdict = {
            "passed": True,
            "checked": {outcome.promise.table: outcome.of for outcome in outcomes if outcome.promise.table in facts.SCHEMAS},
            "kept": kept,
            "expectations": [outcome.summary() for outcome in outcomes],
            "audits": audit.summary(audit_files.subset(connection)),
            "bounds": bounds.model_dump(mode="json"),
            "subset_sha256": tables.digest(subset),
        }
        manifest = load(subset / "manifest.json") | {"counts": found}
        tables.write_json(folder / "manifest.json", manifest)
        tables.write_json(folder / "verdict.json", verdict)
        contract_report.write(folder / "report.html", verdict, manifest, outcomes, connection, shards)
    log.info("validate %s: %d of %d conversations kept", subset.name, kept["conversations"], verdict["checked"]["conversations"])


def _refuse(connection: duckdb.DuckDBPyConnection, outcomes: Sequence[Outcome], bounds: Validate, subset: Path) -> None:
    told = [_sentence(outcome) for outcome in outcomes if outcome.promise.severity == "stop" and outcome.failed]
    for table in facts.SCHEMAS:
        of = next(outcome.of for outcome in outcomes if outcome.promise.table == table)
        [[rows]] = connection.sql(f"SELECT count(*) FROM quarantined_{table}").fetchall()
        if rows > bounds.max_bad_fraction * of:
            broken = (one for one in outcomes if one.promise.table == table and one.promise.severity == "quarantine" and one.failed)
            told += map(_sentence, broken)
    if told:
        limit = f"at most {bounds.max_bad_fraction:.1%} of a table"
        found = "; ".join(told)
        raise InputError(f"{subset}: expected the data contract to be kept, or broken by {limit} where it allows that, found {found}")


def _sentence(outcome: Outcome) -> str:
    promise = outcome.promise
    found = f"{outcome.failed} of {outcome.of} {promise.table}, such as {', '.join(outcome.ids)}"
    return f"{promise.name} ({promise.says}) broken by {found}"
