"""A release beside the champion: the same items only, paired, by patients; what is no comparison is called that."""

import math

import answered
import pandas as pd
import pytest
from answered import CLOSED, DICE, GATE, SEG

from unimed.errors import InputError
from unimed.release import comparison, scores
from unimed.release.comparison import Champion

DATA = {"vqa": "0123.dir"}


def table(tmp_path, **how) -> pd.DataFrame:
    answered.predictions(**how).to_parquet(tmp_path / "predictions.parquet")
    return scores.table(tmp_path)


def frame(*values: float, row: str = CLOSED, modality: str = "CT") -> pd.DataFrame:
    """Scores of one item each of as many patients."""
    about = {"row": row, "task": "vqa", "modality": modality}
    return pd.DataFrame([{**about, "item": f"i{place}", "patient": f"p{place}", "score": value} for place, value in enumerate(values)])


def bounds(**values):
    return GATE.model_copy(update={"least_items": 1, "margins": {CLOSED: 0.05}} | values)


def outcomes(new, champion, gate) -> dict[str, str]:
    return {row.name: row.outcome for row in comparison.compare(new, champion, gate)}


def checked(new, champion: Champion | None, gate=GATE, data=DATA) -> dict[str, bool]:
    return {check.name: check.passed for check in comparison.checks(new, data, champion, gate)}


def test_the_items_of_a_row_are_those_that_its_mean_is_over(tmp_path):
    found = table(tmp_path, closed=0.9, dice=0.8)
    closed = found[found["row"] == CLOSED]
    assert (len(closed), closed["score"].mean(), closed["patient"].nunique()) == (240, pytest.approx(0.9), 24)
    assert set(found[found["row"] == DICE]["score"]) == {0.8}
    assert found[found["row"] == SEG]["score"].sum() == 0
    assert not found["row"].str.contains("share").any()


def test_no_name_of_a_patient_an_image_or_a_conversation_is_in_the_file(tmp_path):
    scores.write(table(tmp_path), tmp_path)
    kept = scores.read(tmp_path / "scores.parquet")
    assert list(kept) == ["row", "stage", "task", "variant", "question_type", "modality", "item", "patient", "score"]
    assert kept["item"].str.fullmatch("[0-9a-f]{64}").all() and kept["patient"].str.fullmatch("[0-9a-f]{64}").all()
    assert not kept.astype(str).apply(lambda column: column.str.contains("case_|slice_|SetA")).to_numpy().any()


def test_the_same_scores_in_another_order_are_the_same_bytes(tmp_path):
    found = table(tmp_path)
    for name, rows in (("a", found), ("b", found.iloc[::-1])):
        (tmp_path / name).mkdir()
        scores.write(rows, tmp_path / name)
    assert (tmp_path / "a/scores.parquet").read_bytes() == (tmp_path / "b/scores.parquet").read_bytes()


@pytest.mark.parametrize("spoil", [lambda file: file.unlink(), lambda file: file.write_bytes(b"PAR1")])
def test_predictions_that_are_missing_or_broken_are_an_error(tmp_path, spoil):
    table(tmp_path)
    spoil(tmp_path / "predictions.parquet")
    with pytest.raises(InputError, match=r"predictions.parquet: expected the predictions of evaluate, found"):
        scores.table(tmp_path)


def test_predictions_without_a_column_are_an_error(tmp_path):
    answered.predictions().drop(columns="image_sha256").to_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(InputError, match="found no column image_sha256"):
        scores.table(tmp_path)


def test_a_difference_is_judged_by_its_low_end(tmp_path):
    """Every patient loses exactly 0.1, so that the interval is a point."""
    new, before = table(tmp_path, closed=0.8), table(tmp_path, closed=0.9)
    for margin, outcome in ((0.1, "holds"), (0.0999, "worse")):
        assert outcomes(new, before, bounds(margins={CLOSED: margin})) == {CLOSED: outcome}
    (row,) = comparison.compare(new, before, bounds(margins={CLOSED: 0.05}))
    assert row.found == "-0.100 (-0.100 to -0.100), n 240"


def test_the_interval_is_over_patients_and_wide_where_they_disagree():
    """One patient of two loses everything: resampled, the mean is 0, -0.5 or -1, a quarter, a half and a quarter of the time."""
    gate = bounds(margins={CLOSED: 0.6})
    (row,) = comparison.compare(frame(1, 0), frame(1, 1), gate)
    assert (row.outcome, row.found) == ("worse", "-0.500 (-1.000 to +0.000), n 2")
    same = pd.concat([frame(1, 0), frame(1, 0).assign(item=["i2", "i3"])])
    assert comparison.compare(same, same.assign(score=[1, 1, 1, 1]), gate)[0].found == "-0.500 (-1.000 to +0.000), n 4"


def test_pairing_finds_a_small_loss_that_two_intervals_would_hide():
    before = frame(*(place % 2 for place in range(100)))
    (row,) = comparison.compare(before.assign(score=before["score"] - 0.06), before, bounds())
    assert row.outcome == "worse" and "(-0.060 to -0.060)" in row.found


def test_where_less_is_better_more_is_worse():
    gate = bounds(margins={SEG: 0.05}, ceilings={SEG: 0.5})
    low, high = frame(0, 0, row=SEG), frame(0.1, 0.1, row=SEG)
    assert (outcomes(high, low, gate), outcomes(low, high, gate)) == ({SEG: "worse"}, {SEG: "holds"})


def test_only_shared_items_count():
    new, before = frame(1, 1, 0), frame(1, 1)
    assert comparison.compare(new, before, bounds())[0].found == "+0.000 (+0.000 to +0.000), n 2"


@pytest.mark.parametrize(("least", "patients", "outcome"), [(3, 2, "holds"), (4, 2, "not comparable"), (3, 4, "not comparable")])
def test_too_few_shared_items_or_patients_are_no_comparison(least, patients, outcome):
    gate = bounds(least_items=least, least_patients=patients)
    assert outcomes(frame(1, 1, 1, 1), frame(1, 1, 1), gate) == {CLOSED: outcome}


@pytest.mark.parametrize("column", ["image_sha256", "question", "truth", "truth_rle", "conversation_id"])
def test_an_item_with_another_image_question_or_truth_is_another_item(tmp_path, column):
    before = table(tmp_path)
    other = answered.predictions()
    other[column] = other[column] + "x"
    other.to_parquet(tmp_path / "predictions.parquet")
    found = comparison.compare(scores.table(tmp_path), before, bounds())
    assert (found[0].outcome, found[0].found) == ("not comparable", "0 shared items of 0 patients")


def test_without_a_champion_there_is_a_check_that_says_so(tmp_path):
    (check,) = comparison.checks(table(tmp_path), DATA, None, GATE)
    assert check.passed and (check.kind, check.found) == ("comparison", "none yet")


def test_a_worse_model_fails_whatever_the_data(tmp_path):
    champion = Champion("1", "", DATA, table(tmp_path, closed=0.9))
    for data in (DATA, {"vqa": "4567.dir"}):
        assert checked(table(tmp_path, closed=0.8), champion, data=data) == {CLOSED: False, DICE: True, SEG: True}


def test_other_items_of_the_same_data_fail_and_of_other_data_are_left_to_promotion(tmp_path):
    champion, new = Champion("1", "", DATA, table(tmp_path)), table(tmp_path, seed=1)
    assert set(checked(new, champion).values()) == {False}
    assert set(checked(new, champion, data={"vqa": "4567.dir"}).values()) == {True}
    (check, *_) = comparison.checks(new, {"vqa": "4567.dir"}, champion, GATE)
    assert "0 shared items of 0 patients; the champion was judged on other data, promotion takes an override" in check.found


def by_modality(scores_of: pd.DataFrame, **values):
    (check,) = comparison.modalities(scores_of, bounds(modality_floors={CLOSED: 0.8}, least_modality_items=2, **values))
    return check


def test_a_modality_that_fails_is_not_hidden_by_the_others():
    both = pd.concat([frame(1, 1, 1, 1, 1, 1), frame(0.7, 0.7, modality="MR")])
    check = by_modality(both)
    assert not check.passed and "CT 1.000 (1.000 to 1.000), n 6; MR 0.700 (0.700 to 0.700), n 2" in check.found
    assert by_modality(pd.concat([frame(1, 1), frame(0.8, 0.8, modality="MR")])).passed


def test_a_modality_with_few_items_or_one_patient_is_listed_and_not_judged():
    few = pd.concat([frame(1, 1), frame(0, modality="MR"), frame(0, 0, modality="PET").assign(patient="one")])
    check = by_modality(few)
    assert check.passed and check.found.endswith("; not judged: MR (1), PET (2)")


@pytest.mark.parametrize("nothing", [frame(0), frame(1, 1, row=DICE)])
def test_where_no_modality_can_be_judged_the_check_fails(nothing):
    assert not by_modality(nothing).passed


def test_the_same_scores_give_the_same_verdict(tmp_path):
    new, before = table(tmp_path, closed=0.8), table(tmp_path, closed=0.9)
    assert comparison.compare(new, before, GATE) == comparison.compare(new.iloc[::-1], before.iloc[::-1], GATE)
    assert not math.isnan(new["score"].sum())
