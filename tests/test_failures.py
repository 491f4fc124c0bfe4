"""What goes wrong in a training is named, counted and done with as params say; no step is ever wrong in silence."""

import dataclasses
import math

import pytest
import tiny
import torch
from failing import PACKED, cut_short, fit, model, refuse_more_than, same, sample, steps_watched
from pydantic import ValidationError

from unimed import params
from unimed.config import MaskLoss, MoeRouter, Optimisation
from unimed.errors import InputError
from unimed.origins import Foundation
from unimed.rewarding import Grpo
from unimed.sections import Failures
from unimed.train import readable
from unimed.train.batch import Collator
from unimed.train.draws import Draws
from unimed.train.rows import Rows
from unimed.train.tally import Tally

SKIP = {"not_finite": "skip", "most_skipped": 2}
READ_ON = {"unreadable": "skip", "most_skipped": 2}
HALVE = {"out_of_memory": "halve"}
MASKS = MaskLoss(pixel_weight=2.0, dice_weight=0.5)
WAYS = pytest.mark.parametrize("way", [{}, {"dtype": "bfloat16"}, PACKED | {"dtype": "bfloat16"}], ids=["plain", "masters", "packed"])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The trainer names a folder relative to where it runs."""
    monkeypatch.chdir(tmp_path)


def said(log):
    return [record.getMessage() for record in log.records if record.name == "train" and record.levelname == "WARNING"]


@WAYS
def test_a_step_that_is_no_number_is_skipped_and_leaves_weights_moments_and_count_of_steps_as_they_were(tmp_path, caplog, way):
    samples = [sample(tmp_path, seed, poisoned=seed == 3) for seed in range(4)]
    skipped = [step for step, item in enumerate(taken(samples, 4, way)) if "image3" in item]
    assert skipped
    made = model()
    with steps_watched(made) as steps:
        history = fit(made, samples, SKIP | {"most_skipped": 4}, max_steps=4, **way)
    assert len(steps) == 4
    for number, ((weights, gradients, state), (after, _, state_after)) in enumerate(steps):
        assert gradients
        unmoved = number in skipped
        assert same(weights, after) == unmoved
        assert unmoved == all(value.isnan().any() for value in gradients.values())
        if state:
            assert same(state, state_after) == unmoved
        if not state and unmoved:
            assert not any(value.any() for value in state_after.values())
    assert len(said(caplog)) == len(skipped)
    assert f"expected a finite loss and gradient at step {skipped[0]}, found {{'words': nan, 'gradient': nan}}" in said(caplog)[0]
    assert "image3" in said(caplog)[0]
    assert [entry["not_finite"] for entry in history] == [sum(place <= step for place in skipped) for step in range(4)]
    assert ["loss" in entry for entry in history] == [step not in skipped for step in range(4)]
    assert all(value == value and abs(value) < 1e6 for entry in history for value in entry.values())


def taken(samples, count, way):
    """The ids of the samples of each of the first steps, of one item each."""
    draws = Draws(tiny.samples(*samples), count, 0)
    items = Rows(draws, Collator(tiny.processor()).piece, way["row_tokens"], count) if "row_tokens" in way else draws
    return [[one.sample_id for one in readable.samples(items[number])] for number in range(count)]


def test_skipped_steps_are_in_no_mean_of_the_log(tmp_path):
    """82 steps are logged by two: a line is the mean over both, or the one that counts."""
    samples = [sample(tmp_path, 0), sample(tmp_path, 1, poisoned=True)]
    alone = fit(model(), samples[:1], max_steps=82, learning_rate=1e-12)
    both = fit(model(), samples, SKIP | {"most_skipped": 82}, max_steps=82, learning_rate=1e-12)
    assert both[-1]["not_finite"] == 41
    for entry in both:
        assert entry["loss"] == pytest.approx(alone[0]["loss"], rel=1e-3)
        assert entry["loss_words"] == pytest.approx(alone[0]["loss"], rel=1e-3)


def test_one_step_more_than_may_be_skipped_ends_the_run_in_one_sentence(tmp_path):
    samples = [sample(tmp_path, 0, poisoned=True)]
    fit(model(), samples, SKIP, max_steps=2)
    bound = (
        r"^params.yaml: expected failures.most_skipped of not_finite to be at most 2, found 3: .* at step 2, .*image0; the step is skipped$"
    )
    with pytest.raises(InputError, match=bound):
        fit(model(), samples, SKIP, max_steps=3)


def test_each_kind_of_failure_is_counted_for_itself_and_halves_against_no_bound():
    tally = Tally(Failures(not_finite="skip", unreadable="skip", out_of_memory="halve", most_skipped=2))
    tally.unreadable(0, ["one", "another"])
    for _ in range(3):
        tally.halved()
    for step in range(2):
        tally.not_finite(step, {"words": math.nan}, [])
    assert tally.told() == {"not_finite": 2, "unreadable": 2, "out_of_memory": 3}


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_gradient_that_is_no_number_moves_nothing_though_the_loss_is_one(tmp_path, policy):
    """Squares of the gradient of a loss near 1e30 have no place in float32."""
    made, huge = model("grounding.text_hidden_fcs"), MaskLoss(pixel_weight=1e30, dice_weight=0.0)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    if policy == "stop":
        with pytest.raises(
            FloatingPointError, match=r"at step 0, found \{'words': \d.*, 'pixel': \d.*e\+.*, 'dice': 0.0, 'gradient': inf\}"
        ):
            fit(made, [sample(tmp_path, 1)], mask_loss=huge)
    else:
        with steps_watched(made) as steps:
            fit(made, [sample(tmp_path, 1)], SKIP, huge, max_steps=2)
        # Weights alone would not show it: clipping by an infinite norm leaves a gradient of zeros.
        assert len(steps) == 2 and not any(value.any() for _, (_, _, state) in steps for value in state.values())
    assert same(before, made.state_dict())


def test_a_shard_cut_short_ends_the_run_or_costs_its_sample_alone(tmp_path, caplog):
    samples, whole, part = [sample(tmp_path, seed) for seed in range(3)], model(), model()
    fit(whole, samples, READ_ON, batch_size=3, max_steps=1)
    assert not said(caplog)
    broken, size = [*samples, cut_short(sample(tmp_path, 5))], {"batch_size": 4, "max_steps": 1}
    with pytest.raises(InputError, match=r"shard-000000.tar: expected \d+ bytes at 512, found \d+"):
        fit(model(), broken, **size)
    with steps_watched(part) as steps:
        history = fit(part, broken, READ_ON, **size)
    torch.testing.assert_close(part.state_dict(), whole.state_dict(), atol=1e-5, rtol=1e-5, equal_nan=True)
    assert steps[0][0][1]
    assert history[0]["unreadable"] == 1
    [line] = said(caplog)
    assert line.startswith("step 0 goes on without image5 of shard-000000.tar (shard-000000.tar: expected ")
    assert line.endswith("), 1 so far")


def test_a_row_goes_on_without_a_sample_cut_short(tmp_path, caplog):
    broken, made = [*(sample(tmp_path, seed) for seed in range(3)), cut_short(sample(tmp_path, 5))], model()
    assert [item.count("image5") for item in taken(broken, 4, {"row_tokens": 160})] == [1, 0, 0, 1]
    with steps_watched(made) as steps:
        history = fit(made, broken, READ_ON, max_steps=4, row_tokens=160)
    assert [entry["unreadable"] for entry in history] == [1, 1, 1, 2]
    assert [line.count("without image5") for line in said(caplog)] == [1, 1]
    assert not any(same(before[0], after[0]) for before, after in steps)
    assert all("loss" in entry for entry in history)


def test_a_batch_of_nothing_readable_leaves_weights_and_moments_as_they_were_even_as_the_first(tmp_path):
    made, samples = model(), [cut_short(sample(tmp_path, 0))]
    with steps_watched(made) as steps:
        history = fit(made, samples, READ_ON, max_steps=2)
    assert len(steps) == 2
    assert all(same(before[0], after[0]) and not after[2] for before, after in steps)
    assert [entry["unreadable"] for entry in history] == [1, 2]
    assert all("loss" not in entry and all(map(math.isfinite, entry.values())) for entry in history)
    with pytest.raises(InputError, match=r"failures.most_skipped of unreadable to be at most 2, found 3: step 2 goes on without image0"):
        fit(model(), samples, READ_ON, max_steps=3)


def test_a_mask_that_cannot_be_read_costs_its_sample_alone(tmp_path, caplog):
    torn = sample(tmp_path, 1)
    turns = tuple(dataclasses.replace(turn, target_rles=tuple(("torn",) for _ in turn.target_rles)) for turn in torn.turns)
    [line] = fit(model(), [sample(tmp_path, 0), dataclasses.replace(torn, turns=turns)], READ_ON, MASKS, batch_size=2, max_steps=1)
    assert line["unreadable"] == 1 and "loss_pixel" not in line
    assert said(caplog) == [
        f"step 0 goes on without image1 of {torn.place.shard} (mask 'torn': expected COCO run lengths, found other text), 1 so far"
    ]


def test_a_fault_of_the_text_is_no_fault_of_a_sample(tmp_path):
    with pytest.raises(InputError, match="row_tokens must hold the longest sample"):
        fit(model(), [sample(tmp_path, 0)], READ_ON, row_tokens=20, max_steps=1)


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("way", [{}, PACKED], ids=["plain", "packed"])
def test_a_batch_in_halves_makes_the_step_of_the_whole_one(tmp_path, caplog, when, way):
    """Samples differ in words, and some have no mask, so that no mean over halves is the mean over all."""
    samples, found = [sample(tmp_path, seed) for seed in range(5)], []
    size = {"batch_size": 3 if way else 5, "max_steps": 1}
    names = ("grounding.text_hidden_fcs", "lm_head")
    for most in (1000, 9 if way else 1):  # nine samples share a row, which is in one piece
        made = model(*names)
        asked = refuse_more_than(made, most, when)
        with steps_watched(made) as steps:
            [line] = fit(made, samples, HALVE, MASKS, **size, **way)
        found.append((steps[0][0][1], line, asked))
    (whole, line, asked), (halved, line_of_halves, asked_of_halves) = found
    assert len(asked) == 1
    assert len(asked_of_halves) > 3
    assert whole.keys() == halved.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(halved[name], gradient, atol=1e-6 * float(gradient.abs().max()) + 1e-9, rtol=1e-4)
    for name in ("loss", "loss_words", "loss_pixel", "loss_dice", "grad_norm"):
        assert line_of_halves[name] == pytest.approx(line[name], rel=1e-4), name
    assert (line["out_of_memory"], line_of_halves["out_of_memory"]) == (0, 1)
    [warning] = said(caplog)
    assert warning.startswith("expected step 0 to fit into memory, found CUDA out of memory. Tried to allocate")
    assert "More is said" not in warning
    assert all(name in warning for item in taken(samples, size["batch_size"], way) for name in item)


@pytest.mark.parametrize(("failures", "tries"), [({}, [4]), (HALVE, [4, 2, 1])])
def test_a_run_that_may_not_halve_or_whose_single_sample_does_not_fit_ends_with_the_error(tmp_path, caplog, failures, tries):
    made = model()
    asked = refuse_more_than(made, 0)
    with pytest.raises(torch.OutOfMemoryError):
        fit(made, [sample(tmp_path, seed) for seed in range(4)], failures, batch_size=4)
    assert asked == tries
    assert "expected step 0 to fit into memory" in caplog.text


NUMBERS = {"batch_size": 4, "max_steps": 1, "learning_rate": 0.1}
ROUTER = NUMBERS | {"level": "token", "choice": "soft", "turns": 1, "grounding_share": 0.5, "mask_loss": MASKS.model_dump()}


@pytest.mark.parametrize(
    ("kind", "numbers", "sentence"),
    [
        (Optimisation, NUMBERS | {"failures": {"not_finite": "skip"}}, "most_skipped must be above 0 where something is skipped"),
        (Optimisation, NUMBERS | {"failures": {"most_skipped": 1}}, "most_skipped must be above 0 where something is skipped"),
        (Optimisation, NUMBERS | {"failures": SKIP, "deepspeed": "zero.json"}, "failures must be left out under deepspeed"),
        (Optimisation, NUMBERS | {"failures": HALVE, "batch_size": 1}, "out_of_memory must be stop where batch_size is 1"),
        (MoeRouter, ROUTER | {"failures": HALVE, "balance_weight": 0.1, "z_weight": 0.1}, "out_of_memory must be stop here: how evenly"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(kind, numbers, sentence):
    with pytest.raises(InputError, match=f"^params.yaml: stage.*{sentence}[^\n]*$"):
        params.parse("stage", kind, {"stage": numbers})


@pytest.mark.parametrize("failures", [READ_ON, HALVE])
def test_rewards_may_skip_steps_alone(failures):
    from problems import settings

    with pytest.raises(ValidationError, match="failures must stop at all but not_finite here"):
        settings(failures=failures)
    assert isinstance(settings(failures=SKIP, cold_start=NUMBERS | {"failures": failures}), Grpo)


def test_the_stand_in_stops_at_any_failure():
    made = {"cases": 1, "vocabulary": 300, "questions_per_sequence": 1} | dict.fromkeys(("vision", "masks", "language"), NUMBERS)
    params.parse("foundation", Foundation, {"foundation": made})
    with pytest.raises(InputError, match="^params.yaml: foundation.masks: failures must be left out"):
        params.parse("foundation", Foundation, {"foundation": made | {"masks": NUMBERS | {"failures": SKIP}}})
