"""Splits: whole groups of cases, shares kept as nearly as those allow, and a sentence where they do not."""

import logging
from itertools import pairwise

import numpy as np
import pytest

from unimed.data import splits
from unimed.data.tables import SPLITS, tally

SHARES = {"train": 0.85, "val": 0.05, "test": 0.1}


def cases(count: int) -> list[splits.Case]:
    return [("Set", f"case_{number:03d}") for number in range(count)]


def grouped(seed: int) -> tuple[list[splits.Case], list[list[splits.Case]]]:
    """Some dozens of cases, a third of them in groups of two to six."""
    rng = np.random.default_rng(seed)
    everyone = cases(int(rng.integers(20, 200)))
    shuffled = [everyone[place] for place in rng.permutation(len(everyone))]
    groups, start = [], 0
    while start < len(everyone) // 3:
        groups.append(shuffled[start : start + int(rng.integers(2, 7))])
        start += len(groups[-1])
    return everyone, groups


@pytest.mark.parametrize("seed", range(30))
def test_groups_stay_whole_every_case_has_one_split_and_shares_are_kept(seed):
    everyone, groups = grouped(seed)
    found = splits.assign(everyone, SHARES, seed, groups)
    assert set(found) == set(everyone)
    assert all(len({found[case] for case in group}) == 1 for group in groups)
    counts = tally(found.values())
    for name in SPLITS:
        assert abs(counts.get(name, 0) - SHARES[name] * len(everyone)) < 2, "no group here is larger than what train takes"


def test_shares_are_kept_where_there_are_groups_alone():
    everyone = cases(80)
    found = splits.assign(everyone, SHARES, 0, [everyone[start : start + 2] for start in range(0, 80, 2)])
    assert tally(found.values()) == {"test": 8, "train": 68, "val": 4}


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_cases_and_groups_changes_nothing(seed):
    everyone, groups = grouped(seed)
    turned = [list(reversed(group)) for group in reversed(groups)]
    assert splits.assign(everyone, SHARES, seed, groups) == splits.assign(reversed(everyone), SHARES, seed, turned)


def test_without_groups_it_is_the_order_of_the_hash_alone():
    found = splits.assign(cases(40), SHARES, seed=3)
    ordered = sorted(cases(40), key=lambda case: splits.rank(3, *case))
    assert [found[case] for case in ordered] == ["train"] * 34 + ["val"] * 2 + ["test"] * 4
    assert found == splits.assign(cases(40), SHARES, seed=3, groups=[])


def test_groups_leave_single_cases_a_test_split_even_where_one_takes_nearly_all(caplog):
    everyone = cases(100)
    found = splits.assign(everyone, SHARES, seed=0, groups=[everyone[:95]])
    assert {found[case] for case in everyone[:95]} == {"train"}
    assert tally(found[case] for case in everyone[95:]) == {"test": 3, "val": 2}
    assert "95 cases look alike and stay together, which leaves train 95 of 85, val 2 of 5, test 3 of 10 cases asked for" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "expected"), [((5, 3), {"test": 3, "train": 5}), ((9, 1), {"test": 1, "train": 9}), ((4,), {"train": 4})]
)
def test_with_two_groups_there_is_something_to_train_and_something_to_test(sizes, expected):
    everyone = cases(sum(sizes))
    edges = np.cumsum((0, *sizes))
    groups = [everyone[start:end] for start, end in pairwise(edges) if end - start > 1]
    assert tally(splits.assign(everyone, SHARES, seed=0, groups=groups).values()) == expected


def test_train_has_something_where_nearly_all_is_to_be_held_out():
    shares = {"train": 0.1, "val": 0.0, "test": 0.9}
    everyone = cases(10)
    assert tally(splits.assign(everyone, shares, 0, [everyone[:5], everyone[5:]]).values()) == {"test": 5, "train": 5}
    assert set(splits.assign(everyone, shares, 0, [everyone]).values()) == {"train"}


def test_one_giant_group_is_not_silent(caplog):
    everyone = cases(30)
    assert set(splits.assign(everyone, SHARES, 0, [everyone]).values()) == {"train"}
    assert "all 30 cases look alike, directly or over others; none is left to be held out" in caplog.text


def test_small_groups_that_keep_the_shares_are_not_talked_about(caplog):
    everyone = cases(60)
    with caplog.at_level(logging.DEBUG):
        splits.assign(everyone, SHARES, 0, [everyone[:3], everyone[7:9]])
    assert not caplog.records


@pytest.mark.parametrize("seed", range(5))
def test_what_is_held_out_is_tested_with_all_that_is_tied_to_it_and_the_rest_is_shared_out(seed):
    everyone, groups = grouped(seed)
    away = {groups[0][0], groups[1][-1], next(case for case in everyone if not any(case in group for group in groups))}
    tied = away | {*groups[0], *groups[1]}
    found = splits.assign(everyone, SHARES, seed, groups, away)
    assert all(found[case] == "test" for case in tied)
    rest = splits.assign([case for case in everyone if case not in tied], SHARES, seed, groups[2:])
    assert {case: name for case, name in found.items() if case not in tied} == rest
