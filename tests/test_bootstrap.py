"""How sure a mean is."""

import math
import time

import numpy as np
import pytest

from unimed.errors import InputError
from unimed.eval.bootstrap import interval, paired_interval, ratio_interval


def test_independent_values_get_the_textbook_interval():
    values = np.random.default_rng(0).random(2000) < 0.8
    found = interval(values, range(2000), seed=1)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found.mean == values.mean()
    assert found.n == 2000
    assert found.low == pytest.approx(values.mean() - half, abs=0.003)
    assert found.high == pytest.approx(values.mean() + half, abs=0.003)


def test_answers_that_agree_within_patients_make_the_interval_wider():
    patients = np.random.default_rng(0).random(100) < 0.5
    values, groups = np.repeat(patients, 20).astype(float), np.repeat(np.arange(100), 20).tolist()
    by_patient, by_answer = interval(values, groups, seed=0), interval(values, range(2000), seed=0)
    assert (by_patient.high - by_patient.low) / (by_answer.high - by_answer.low) == pytest.approx(math.sqrt(20), rel=0.15)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(200):
        effects = rng.normal(0, 1, 60)
        values = (np.repeat(effects, 3) + rng.normal(0, 1, 180)).tolist()
        found = interval(values, np.repeat(np.arange(60), 3).tolist(), seed=trial, samples=300)
        covered += found.low <= 0 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval_in_any_order_of_items():
    values, groups = [0.0, 1.0, 1.0, 0.0, 1.0, 0.5], [("a", "1"), ("a", "2"), ("a", "2"), ("b", "1"), ("b", "2"), ("c", "9")]
    assert interval(values, groups, seed=3) == interval(values[::-1], groups[::-1], seed=3)
    assert interval(values, groups, seed=3) != interval(values, groups, seed=4)


def test_one_patient_leaves_nothing_to_resample():
    found = interval([0.0, 1.0], ["p", "p"], seed=0)
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 2)


def test_no_values_have_no_mean():
    found = interval([], [], seed=0)
    assert found.n == 0
    assert all(math.isnan(number) for number in (found.mean, found.low, found.high))


def test_pairing_sees_a_small_but_steady_difference_that_two_intervals_hide():
    rng = np.random.default_rng(0)
    before = rng.random(300)
    after = before + 0.02 + 0.01 * rng.standard_normal(300)
    one, other = interval(before, range(300), seed=0), interval(after, range(300), seed=0)
    paired = paired_interval(after, before, range(300), seed=0)
    assert one.high > other.low
    assert paired.low > 0
    assert paired.mean == pytest.approx(0.02, abs=0.002)


def test_the_share_kept_is_a_ratio_of_totals():
    found = ratio_interval([0.9, 0.5, 0.0, 1.0], [1.0, 0.5, 0.5, 1.0], "abcd", seed=0)
    assert found.mean == pytest.approx(0.8)
    assert found.low < 0.8 <= found.high <= 1
    assert math.isnan(ratio_interval([1.0, 1.0], [0.0, 0.0], "ab", seed=0).mean)


def test_a_higher_level_holds_a_lower_one():
    values, groups = np.random.default_rng(0).random(50), range(50)
    wide, narrow = (interval(values, groups, seed=0, level=level) for level in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(("values", "groups"), [([1.0, math.nan], "ab"), ([1.0, 2.0], "a")])
def test_unusable_values_are_an_error(values, groups):
    with pytest.raises(InputError, match="expected, found"):
        interval(values, groups, seed=0)


def test_a_thousand_samples_of_two_thousand_patients_take_under_a_second():
    start = time.process_time()
    interval(np.ones(2000), range(2000), seed=0)
    assert time.process_time() - start < 1


def test_more_groups_than_fit_one_block_are_all_drawn():
    values = np.random.default_rng(0).random(5000)
    found = interval(values, range(5000), seed=0, samples=2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(5000), rel=0.1)
