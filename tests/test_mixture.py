"""Several tasks in one run: each has its share of every epoch, and no sample of the main task is left out."""

import dataclasses
from collections import Counter

import pytest
import tiny

from unimed.data.samples import Samples
from unimed.train.mixture import Mixture


def named(name, count):
    """Samples of a task that differ in name alone; nothing here looks at their pixels."""
    plain = tiny.turn("?", "yes")
    return [
        tiny.Sample(f"{name}{i}", "Made/up", "ct", "Made", 8, 8, (dataclasses.replace(plain, task=name),), None, None) for i in range(count)
    ]


def tasks(samples):
    return Counter(sample.turns[0].task for sample in samples)


def test_every_epoch_holds_all_of_the_main_task_and_the_shares_of_the_others():
    main, small, large = named("main", 50), named("small", 3), named("large", 400)
    mixture = Mixture(main, [(small, 0.2), (large, 0.3)], seed=0)
    assert len(mixture) == 100
    for epoch in range(3):
        drawn = mixture.at_epoch(epoch)
        assert tasks(drawn) == {"main": 50, "small": 20, "large": 30}
        assert {sample.sample_id for sample in drawn} >= {sample.sample_id for sample in main}


def test_epochs_differ_and_the_same_seed_gives_the_same_epoch():
    def order(seed, epoch):
        return [sample.sample_id for sample in Mixture(named("main", 20), [(named("other", 9), 0.5)], seed).at_epoch(epoch)]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4


@pytest.mark.parametrize("others", [[], [([], 0.5)]])
def test_a_task_without_samples_takes_no_share(others):
    assert tasks(Mixture(named("main", 7), others, seed=0).at_epoch(0)) == {"main": 7}


def test_turns_about_an_image_are_joined_anew_in_every_epoch(tmp_path):
    asked = [tiny.sample(tmp_path, tiny.turn(question, "no")) for question in "abcdef"]
    joined = Samples((tuple(asked),), (), joined_turns=2, seed=0).at_epoch(0)
    mixture = Mixture(joined, [], seed=0)
    epochs = [[frozenset(turn.question for turn in sample.turns) for sample in mixture.at_epoch(epoch)] for epoch in range(8)]
    assert all(sorted(question for pair in epoch for question in pair) == list("abcdef") for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1
    beside = Mixture(named("main", 3), [(joined, 0.5)], seed=0)
    drawn = [frozenset(turn.question for turn in sample.turns) for epoch in range(8) for sample in beside.at_epoch(epoch)]
    assert len(set(drawn) - {frozenset("?")}) > 3, "pairs of the first epoch alone would be three"
