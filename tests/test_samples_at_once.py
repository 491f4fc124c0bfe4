"""A batch in portions makes the step of the whole one, and never are more samples in the model than were asked for."""

import dataclasses
import math
import os
import resource
import tempfile
from pathlib import Path

import pytest
import tiny
import torch
from accelerate.utils import send_to_device
from failing import PACKED, cut_short, fit, model, refuse_more_than, same, sample, steps_watched
from problems import settings
from pydantic import ValidationError
from test_fast_path import apart
from test_loop import SETTINGS, several

from unimed.config import MaskLoss, Optimisation, RouterLoss
from unimed.origins import StandIn
from unimed.train import loop, portions
from unimed.train.batch import IGNORED, Collator
from unimed.train.portions import InPortions
from unimed.train.rows import RowCollator

MASKS = MaskLoss(pixel_weight=2.0, dice_weight=0.5)
POINTING = ("grounding.text_hidden_fcs", "lm_head")
READ_ON = {"unreadable": "skip", "most_skipped": 9}
STILL = {"learning_rate": 1e-12}
"""At which every step sees the first one's weights."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The trainer names a folder relative to where it runs."""
    monkeypatch.chdir(tmp_path)


def two_steps(samples, at_once, most=1000, when="forward", collator=None, failures=None, **changes):
    """Gradients and weights of each of two steps, the log, and how many images the model was asked for at a time."""
    made = model(*POINTING)
    asked = refuse_more_than(made, most, when)
    chosen = Optimisation(
        **(SETTINGS | {"max_steps": 2, "learning_rate": 1e-3, "samples_at_once": at_once} | changes), failures=failures or {}
    )
    with steps_watched(made) as steps:
        log = loop.fit(made, tiny.samples(*samples), collator or Collator(tiny.processor()), chosen, 0, "tiny", MASKS)
    return [(begun[1], ended[0]) for begun, ended in steps], log, asked


def assert_equal(found, whole):
    """The same steps but for the order of sums: gradients to a millionth of the largest, weights to a tenth of Adam's step."""
    assert len(found[0]) == len(whole[0]) == 2
    for (gradients, weights), (expected, moved) in zip(found[0], whole[0], strict=True):
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-5 * float(gradient.abs().max()) + 1e-7, rtol=1e-3, msg=name)
        torch.testing.assert_close(weights, moved, atol=1e-4, rtol=0)
    for line, expected_line in zip(found[1], whole[1], strict=True):
        assert line == pytest.approx(expected_line, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "size", "way"), [((0, 2, 4, 6, 8), 5, {}), (range(5), 5, {}), (range(5), 3, PACKED)], ids=["words", "masks", "packed"]
)
def test_a_batch_in_portions_makes_the_step_of_the_whole_one(tmp_path, seeds, size, way):
    """Samples differ in words, and some or all have no mask, so that no mean over portions is the mean over all."""
    samples = [sample(tmp_path, seed) for seed in seeds]
    whole = two_steps(samples, None, batch_size=size, **way)
    assert {"loss_words", "loss_pixel"} <= whole[1][0].keys() or set(seeds) == {0, 2, 4, 6, 8}
    assert len(whole[2]) == 2
    for at_once in (1, 2, 3):
        found = two_steps(samples, at_once, batch_size=size, **way)
        assert_equal(found, whole)
        assert sum(found[2]) == sum(whole[2])
        assert len(found[2]) == 2 * math.ceil(size / at_once)
        if not way:
            assert found[2] == 2 * [min(at_once, size - first) for first in range(0, size, at_once)]


class Mute(Collator):
    """Leaves the answers about two images unlabelled, one of them with a mask."""

    def __call__(self, samples):
        batch = super().__call__(samples)
        for number, one in enumerate(samples):
            if one.sample_id in ("image1", "image2"):
                batch["labels"][number] = IGNORED
        return batch

    def piece(self, sample):
        made = super().piece(sample)
        muted = made.labels * 0 + IGNORED
        return dataclasses.replace(made, labels=muted) if sample.sample_id in ("image1", "image2") else made


@pytest.mark.slow
@pytest.mark.parametrize("way", [{"batch_size": 4}, {"batch_size": 4, "row_tokens": 130}], ids=["plain", "packed"])
def test_a_portion_without_a_labelled_word_adds_nothing_to_the_words(tmp_path, way):
    samples, collator = [sample(tmp_path, seed) for seed in range(4)], Mute(tiny.processor())
    assert_equal(two_steps(samples, 1, collator=collator, **way), two_steps(samples, None, collator=collator, **way))


@pytest.mark.slow
def test_a_batch_without_a_labelled_word_is_no_number_in_portions_either(tmp_path):
    samples = [sample(tmp_path, seed) for seed in (1, 2)]
    for at_once in (None, 1):
        with pytest.raises(FloatingPointError, match="'words': nan"):
            two_steps(samples, at_once, collator=Mute(tiny.processor()), batch_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_portions_go_on_without_what_cannot_be_read_even_where_that_is_all_of_one(tmp_path, at_once):
    samples = [*(sample(tmp_path, seed) for seed in range(4)), cut_short(sample(tmp_path, 5))]
    whole = two_steps(samples, None, failures=READ_ON, batch_size=5)
    found = two_steps(samples, at_once, failures=READ_ON, batch_size=5)
    assert_equal(found, whole)
    assert [line["unreadable"] for line in found[1]] == [1, 2]
    assert sum(found[2]) == 8


@pytest.mark.slow
def test_a_batch_of_nothing_readable_makes_no_step(tmp_path):
    made, samples = model(), [cut_short(sample(tmp_path, seed)) for seed in range(2)]
    with steps_watched(made) as steps:
        log = fit(made, samples, READ_ON, batch_size=2, samples_at_once=1, max_steps=2)
    assert len(steps) == 2
    assert all(same(before[0], after[0]) and not after[2] for before, after in steps)
    assert [line["unreadable"] for line in log] == [2, 4]


@pytest.mark.slow
def test_portions_that_do_not_fit_are_halved_and_the_next_batch_begins_with_what_was_asked(tmp_path):
    """In the backward pass, when the words have left gradients that would count twice."""
    samples = [sample(tmp_path, seed) for seed in range(5)]
    whole = two_steps(samples, None, batch_size=5)
    gradients, log, asked = two_steps(samples, 4, most=1, when="backward", failures={"out_of_memory": "halve"}, batch_size=5)
    assert asked == 2 * [4, 2, 1, 1, 1, 1, 1]
    assert [line.pop("out_of_memory") for line in log] == [1, 2]
    assert_equal((gradients, log), whole)


@pytest.mark.slow
def test_a_process_that_reads_ahead_gives_the_same_steps(tmp_path):
    samples = [sample(tmp_path, seed) for seed in range(3)]
    here, ahead = (two_steps(samples, 2, batch_size=3, workers=workers) for workers in (0, 1))
    assert same(here[0][1][1], ahead[0][1][1])
    assert here[1:] == ahead[1:]


def routed(samples, level, **changes):
    """The log of routers trained on samples in a given order."""
    made = tiny.stirred(**tiny.EXPERTS, router_level=level)
    loop.train_only(made, [f"model.language_model.layers.{number}.router" for number in range(2)])
    chosen, terms = Optimisation(**(SETTINGS | STILL | changes)), RouterLoss(balance_weight=0.3, z_weight=0.2)
    return loop.fit(made, samples, Collator(tiny.processor()), chosen, 0, "tiny", MASKS, terms)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_routers_are_pulled_by_the_mean_over_all_decisions_and_by_the_portions_own_balances(tmp_path, level):
    """Batches of one and two alone, at weights that stay, tell the balance of each portion and how many decisions it has."""
    samples = several(tmp_path, 3)
    [whole] = routed(samples, level, batch_size=3, max_steps=1)
    [found] = routed(samples, level, batch_size=3, max_steps=1, samples_at_once=2)
    for name in ("loss_words", "loss_pixel", "loss_dice", "loss_z"):
        assert found[name] == pytest.approx(whole[name], rel=1e-4), name
    first, last = routed(samples, level, batch_size=2, max_steps=1)[0], routed(samples, level, batch_size=1, max_steps=3)[2]
    # The share of the last follows from the means of z over two, one and all three.
    share = (whole["loss_z"] - first["loss_z"]) / (last["loss_z"] - first["loss_z"])
    if level == "sequence":
        assert share == pytest.approx(1 / 3, abs=0.01)
    expected = share * last["loss_balance"] + (1 - share) * first["loss_balance"]
    assert found["loss_balance"] == pytest.approx(expected, rel=1e-3)
    assert found["loss_balance"] > whole["loss_balance"]


def test_each_portion_counts_by_what_its_terms_are_means_over():
    def batch(labels, seen, masks=0):
        made = {"labels": torch.tensor(labels), "attention_mask": torch.tensor(seen)}
        return made | ({"masks": torch.zeros(masks, 4, 4)} if masks else {})

    # The first label of a row is nobody's next word.
    one = batch([[7, 7, 7, IGNORED], [IGNORED, 7, IGNORED, IGNORED]], [[1, 1, 1, 1], [1, 1, 1, 0]], masks=3)
    two = batch([[IGNORED, IGNORED, 7]], [[1, 1, 1]])
    by_token, by_sequence = (portions.shares([one, two], level) for level in ("token", "sequence"))
    words = {"words": 3 / 4, "pixel": 1, "dice": 1}
    assert by_token == [words | {"balance": 7 / 10, "z": 7 / 10}, {"words": 1 / 4, "pixel": 0, "dice": 0, "balance": 3 / 10, "z": 3 / 10}]
    assert [own["z"] for own in by_sequence] == [own["balance"] for own in by_sequence] == [2 / 3, 1 / 3]
    assert all(math.isnan(own["pixel"]) for own in portions.shares([two, two], "token"))


def test_portions_stay_on_the_cpu_when_a_loader_moves_what_it_has_read(tmp_path):
    samples, collator = [sample(tmp_path, seed) for seed in range(3)], Collator(tiny.processor())
    apart, together = (InPortions(collator, most)(samples) for most in (2, 3))
    assert {value.device.type for batch in portions.taken(send_to_device(apart, "meta")) for value in batch.values()} == {"cpu"}
    assert [len(batch["labels"]) for batch in portions.taken(apart)] == [2, 1]
    assert {value.device.type for batch in portions.taken(send_to_device(together, "meta")) for value in batch.values()} == {"meta"}
    assert [len(batch["labels"]) for batch in portions.taken(together)] == [3]


STAND_IN = {"cases": 1, "vocabulary": 300, "questions_per_sequence": 1} | dict.fromkeys(("vision", "masks", "language"), SETTINGS)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: Optimisation(**SETTINGS, samples_at_once=0), "greater than 0"),
        (lambda: Optimisation(**SETTINGS, samples_at_once=1, deepspeed="zero.json"), "samples_at_once must be left out under deepspeed"),
        (lambda: Optimisation(**SETTINGS, samples_at_once=1, failures={"out_of_memory": "halve"}), "stop where samples_at_once is 1"),
        (lambda: settings(samples_at_once=1), "samples_at_once must be left out here, where groups_at_once takes its place"),
        (lambda: StandIn(**STAND_IN | {"masks": SETTINGS | {"samples_at_once": 1}}), "samples_at_once must be left out: the stand-in"),
    ],
)
def test_what_cannot_go_in_portions_is_refused(made, sentence):
    with pytest.raises(ValidationError, match=sentence):
        made()


def test_a_cold_start_may_go_in_portions():
    assert settings(cold_start=SETTINGS | {"samples_at_once": 2}).cold_start.samples_at_once == 2


def losses_with_few_files(rows: str) -> list[float]:
    """The losses of a step of many portions that a worker reads, where a process may hold few files open at first."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory() as aside:
        os.chdir(aside)
        samples = [sample(Path(aside), seed) for seed in range(4)]
        log = fit(model(), samples, batch_size=int(rows), samples_at_once=1, workers=1, max_steps=1, row_tokens=130)
    return [line["loss"] for line in log]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_batch_of_many_portions_comes_from_a_worker_whatever_files_a_shell_allows():
    assert all(map(math.isfinite, apart("test_samples_at_once", "losses_with_few_files", "24")))


def test_a_portion_goes_to_the_device_with_all_that_its_packing_holds(tmp_path):
    collator = Collator(tiny.processor())
    batch = RowCollator(collator, 400)([[collator.piece(sample(tmp_path, seed)) for seed in (1, 2)]])
    moved = portions.placed(batch, torch.device("meta"))
    assert all(moved[name].is_meta for name in ("input_ids", "position_ids", "pixel_values", "masks"))
    kept = {name for name, value in vars(moved["packing"]).items() if isinstance(value, torch.Tensor) and not value.is_meta}
    assert kept == {"extent"}
