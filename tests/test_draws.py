"""Which sample comes when: every epoch is whole, in an order of its own, the same for the same seed."""

import dataclasses
import itertools

import pytest
import tiny

from unimed.data.samples import Samples
from unimed.errors import InputError
from unimed.train import draws


@pytest.fixture
def samples(tmp_path):
    """Eight images with a question each."""
    return tiny.samples(*(tiny.sample(tmp_path, tiny.turn("Is there a nodule?", "yes"), seed=seed) for seed in range(8)))


def test_no_samples_are_an_error():
    with pytest.raises(InputError, match="expected at least one training sample, found none"):
        draws.Draws(tiny.samples(), 4, seed=0)


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own(samples):
    drawn = draws.Draws(samples, 24, seed=0)
    names = [drawn[number].sample_id for number in range(len(drawn))]
    epochs = [names[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = draws.Draws(samples, 24, seed=0)
    assert names == [again[number].sample_id for number in range(24)]
    other = draws.Draws(samples, 24, seed=1)
    assert names != [other[number].sample_id for number in range(24)]


def test_every_epoch_is_whole_when_joined_turns_make_epochs_of_different_length(tmp_path):
    turns = [[tiny.turn(question, "no") for question in asked] for asked in ("ab", "c", "de", "f")]
    same = tiny.sample(tmp_path, *turns[0])
    joined = Samples((tuple(dataclasses.replace(same, turns=tuple(said)) for said in turns),), (), joined_turns=3, seed=0)
    lengths = [len(joined.at_epoch(epoch)) for epoch in range(8)]
    assert len(set(lengths)) > 1
    drawn = draws.Draws(joined.at_epoch(0), sum(lengths), seed=0)
    found = [drawn[number] for number in range(len(drawn))]
    assert [drawn[number] for number in reversed(range(len(drawn)))] == found[::-1]
    for start, length in zip(itertools.accumulate(lengths, initial=0), lengths, strict=False):
        questions = [turn.question for sample in found[start : start + length] for turn in sample.turns]
        assert sorted(questions) == [turn.question for said in turns for turn in said]
