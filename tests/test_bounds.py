"""Bounds of the gate: which end of an interval they are held against, and that those shipped are about rows there are."""

from dataclasses import replace

import pandas as pd
import pytest
import yaml
from answered import CLOSED, GATE, ROWS

from conftest import ROOT
from unimed.eval.rows import Scores, rungs
from unimed.release import checks
from unimed.settings import Gate


@pytest.mark.parametrize(
    ("bounds", "numbers", "passes"),
    [
        ({"floors": {CLOSED: 0.8}}, {"low": 0.8}, True),
        ({"floors": {CLOSED: 0.8}}, {"low": 0.7999}, False),
        ({"gaps": {CLOSED: 0.3}}, {"low": 0.7, "baseline": 0.4}, True),  # although 0.7 - 0.4 < 0.3 in floating point
        ({"gaps": {CLOSED: 0.3}}, {"low": 0.6999, "baseline": 0.4}, False),
        ({"gaps": {CLOSED: -0.1}}, {"low": 0.7, "baseline": 0.8}, True),
        ({"gaps": {CLOSED: -0.1}}, {"low": 0.6999, "baseline": 0.8}, False),
        ({"gaps": {CLOSED: 0.0}}, {"baseline": None}, False),
        ({"ceilings": {CLOSED: 0.95}}, {"high": 0.95}, True),
        ({"ceilings": {CLOSED: 0.95}}, {"high": 0.9501}, False),
        ({"floors": {CLOSED: 0.0}}, {"value": None, "low": None, "high": None, "n": 0}, False),
        ({"floors": {CLOSED: 0.0}}, {"low": float("inf")}, False),
        ({}, {"n": 200}, True),
        ({}, {"n": 199}, False),
    ],
)
def test_bounds_are_held_against_the_worse_end_of_the_interval(bounds, numbers, passes):
    bounds = GATE.model_copy(update={"floors": {}, "ceilings": {}, "gaps": {}} | (bounds or {"floors": {CLOSED: 0.8}}))
    (check,) = checks.quality([replace(ROWS[0], **numbers)], bounds)
    assert check.passed is passes


@pytest.mark.parametrize(
    "values", [{"floors": {}}, {"floors": {CLOSED: float("nan")}}, {"least_items": 0}, {"licences": ()}, {"margins": {}}]
)
def test_a_gate_that_lets_everything_through_is_refused(values):
    with pytest.raises(ValueError, match="1 validation error"):
        Gate.model_validate(GATE.model_dump() | values)


def test_the_bounds_as_shipped_are_about_rows_that_evaluate_writes():
    bounds = Gate.model_validate(yaml.safe_load((ROOT / "params.yaml").read_text())["gate"])
    columns = "stage task variant question_type answer_type conversation_id case truth_rle prediction score"
    nothing = pd.DataFrame(columns=columns.split(), dtype=str).astype({"score": float})
    found = rungs(Scores(nothing))
    assert {*bounds.floors, *bounds.ceilings, *bounds.gaps} <= {rung.name for rung in found} | {
        "align / caption loss (baseline: image blanked)"
    }
    assert {*bounds.margins, *bounds.modality_floors} <= {rung.name for rung in found if rung.whole is None}
