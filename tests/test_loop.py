"""The training loop: it learns what it is told to and nothing else."""

import copy

import pytest
import tiny
import torch

from unimed.config import MaskLoss, Optimisation, RouterLoss
from unimed.errors import InputError
from unimed.model import assemble
from unimed.train import loop, losses
from unimed.train.batch import Collator

SETTINGS = {"batch_size": 4, "max_steps": 3, "learning_rate": 0.01, "warmup_steps": 0}
WEIGHTS = MaskLoss(pixel_weight=2.0, dice_weight=0.5)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The trainer names a folder relative to where it runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def samples(tmp_path):
    """Eight images, each with a question, a marked region and, every other one, a target."""
    made = []
    for seed in range(8):
        mask = tiny.box(4 * (seed % 4), 8 * (seed // 4), 12, 12)
        turns = [tiny.turn("Is there a nodule?", ("yes", "no")[seed % 2])]
        turns += [tiny.turn("Which structure is marked? <region>", "the liver", regions=[mask])]
        turns += [tiny.turn("Segment it.", "It is <SEG>.", targets=[mask])] if seed % 2 else []
        made.append(tiny.sample(tmp_path, *turns, seed=seed))
    return tiny.samples(*made)


def fit(model, samples, **more):
    changes = {name: more.pop(name) for name in SETTINGS if name in more}
    return loop.fit(model, samples, Collator(tiny.processor()), Optimisation(**(SETTINGS | changes)), 0, "tiny", **more)


def test_a_wrong_name_cannot_be_trained():
    with pytest.raises(ValueError, match=r"cannot train \['model.project'\]"):
        loop.train_only(tiny.fresh(), ["model.projector", "model.project"])


def test_a_name_is_no_part_of_another_name():
    part = torch.nn.Linear(1, 1, bias=False)
    model = torch.nn.ModuleDict({"a": part, "ab": copy.deepcopy(part), "c": torch.nn.ModuleDict({"a": copy.deepcopy(part)})})
    assert loop.train_only(model, ["a"]) == ["a.weight"]


def test_what_trains_is_the_named_modules_and_parameters_alone():
    model = tiny.fresh()
    trained = loop.train_only(model, ["model.projector", "grounding.seg_input"])
    assert trained == [
        "model.projector.fc1.weight", "model.projector.fc1.bias", "model.projector.fc2.weight", "model.projector.fc2.bias",
        "grounding.seg_input",
    ]  # fmt: skip
    assert trained == [name for name, value in model.named_parameters() if value.requires_grad]


@pytest.mark.slow
@pytest.mark.parametrize("names", [assemble.ALIGNED, assemble.GROUNDING], ids=["aligned", "grounding"])
def test_frozen_tensors_are_the_same_bits_after_training_and_all_others_moved(samples, names):
    model = tiny.stirred()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = loop.train_only(model, names)
    fit(model, samples, mask_loss=WEIGHTS)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(trained)
    assert not model.training


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_only_routers_move_when_routers_train_and_their_terms_are_logged(samples, level):
    model = tiny.stirred(**tiny.EXPERTS, router_level=level, router_choice="top1")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = loop.train_only(model, [f"model.language_model.layers.{number}.router" for number in range(2)])
    history = fit(model, samples, router_loss=RouterLoss(balance_weight=0.1, z_weight=0.01), mask_loss=WEIGHTS)
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} == set(trained)
    assert {"loss_words", "loss_pixel", "loss_dice", "loss_balance", "loss_z"} <= history[0].keys()


@pytest.mark.slow
def test_one_step_counted_is_one_optimizer_step_and_the_loss_is_the_sum_of_its_parts(samples):
    model = tiny.stirred()
    loop.train_only(model, assemble.ALIGNED)
    history = fit(model, samples, mask_loss=WEIGHTS)
    assert [entry["step"] for entry in history] == [1, 2, 3]
    for entry in history:
        assert entry["loss"] == pytest.approx(entry["loss_words"] + entry["loss_pixel"] + entry["loss_dice"], abs=2e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(samples):
    ends = []
    for _ in range(2):
        model = tiny.stirred()
        loop.train_only(model, assemble.ALIGNED)
        fit(model, samples)
        ends.append(model.state_dict())
    torch.testing.assert_close(*ends, atol=0, rtol=0)


def test_a_loss_that_is_no_number_stops_the_run_with_its_step(samples):
    model = tiny.stirred()
    loop.train_only(model, ["model.projector"])
    with torch.no_grad():
        model.model.projector.fc1.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="expected a finite loss at step 0"):
        fit(model, samples)


def test_a_parameter_that_should_train_but_has_no_gradient_stops_the_run(samples):
    model = tiny.stirred()
    loop.train_only(model, ["model.projector", "grounding.text_hidden_fcs"])
    with pytest.raises(RuntimeError, match="grounding.text_hidden_fcs.0.weight"):
        fit(model, samples)


def test_no_samples_are_an_error():
    with pytest.raises(InputError, match="expected at least one training sample, found none"):
        loop.Draws(tiny.samples(), 4, seed=0)


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own(samples):
    draws = loop.Draws(samples, 24, seed=0)
    names = [draws[number].sample_id for number in range(len(draws))]
    epochs = [names[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = loop.Draws(samples, 24, seed=0)
    assert names == [again[number].sample_id for number in range(24)]
    other = loop.Draws(samples, 24, seed=1)
    assert names != [other[number].sample_id for number in range(24)]


def test_mask_terms_compare_at_the_size_of_the_target():
    target = torch.zeros(2, 8, 8)
    target[0, :4] = 1
    low = 60 * target[:, ::2, ::2] - 30
    grown = torch.nn.functional.interpolate(low[:, None], 8, mode="bilinear")[:, 0]
    found = loop.mask_terms(low, target, WEIGHTS)
    torch.testing.assert_close(found["pixel"], 2.0 * losses.pixel(grown, target).mean())
    torch.testing.assert_close(found["dice"], 0.5 * losses.dice(grown, target).mean())
    assert found["dice"] < 0.02


@pytest.mark.slow
def test_eight_samples_are_learned_by_heart(samples):
    model = tiny.fresh()
    loop.train_only(model, ["model.language_model", "lm_head", *assemble.ALIGNED, *assemble.GROUNDING])
    history = fit(model, samples, batch_size=8, max_steps=30, learning_rate=0.02, mask_loss=WEIGHTS)
    first, last = history[0], history[-1]
    assert last["loss"] < first["loss"] / 3
    assert last["loss_words"] < first["loss_words"] / 3
    assert last["loss_pixel"] + last["loss_dice"] < first["loss_pixel"] + first["loss_dice"]
