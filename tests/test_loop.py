"""The training loop: it learns what it is told to and nothing else."""

import copy

import pytest
import tiny
import torch
from transformers import TrainerControl, TrainerState

from unimed.config import MaskLoss, Optimisation, RouterLoss
from unimed.model import assemble
from unimed.train import loop, losses, stage_trainer
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
    return several(tmp_path, 8)


def several(folder, count):
    made = []
    for seed in range(count):
        mask = tiny.box(4 * (seed % 4), 8 * (seed // 4 % 3), 12, 12)
        turns = [tiny.turn("Is there a nodule?", ("yes", "no")[seed % 2])]
        turns += [tiny.turn("Which structure is marked? <region>", "the liver", regions=[mask])]
        turns += [tiny.turn("Segment it.", "It is <SEG>.", targets=[mask])] if seed % 2 else []
        made.append(tiny.sample(folder, *turns, seed=seed))
    return tiny.samples(*made)


def fit(model, samples, **more):
    changes = {name: more.pop(name) for name in [*SETTINGS, "dtype"] if name in more}
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
    with pytest.raises(FloatingPointError, match="expected a finite loss and gradient at step 0, found .*nan.* for the samples image"):
        fit(model, samples)


def test_a_parameter_that_should_train_but_has_no_gradient_stops_the_run(samples):
    model = tiny.stirred()
    loop.train_only(model, ["model.projector", "grounding.text_hidden_fcs"])
    with pytest.raises(RuntimeError, match="grounding.text_hidden_fcs.0.weight"):
        fit(model, samples)


def test_a_frozen_parameter_with_a_gradient_stops_the_run():
    model = torch.nn.ModuleDict({"trained": torch.nn.Linear(1, 1, bias=False), "frozen": torch.nn.Linear(1, 1, bias=False)})
    model["trained"](model["frozen"](torch.ones(1, 1))).backward()
    loop.train_only(model, ["trained"])
    about = loop.arguments(Optimisation(**SETTINGS), 0), TrainerState(), TrainerControl()
    with pytest.raises(RuntimeError, match=r"found otherwise for \['frozen.weight'\] and 1 in all"):
        loop.Progress("tiny", 1).on_pre_optimizer_step(*about, model=model)


def absent(folder, seed):
    """A sample that asks for a mask of what is not there."""
    return tiny.sample(folder, tiny.turn("Segment the nodule.", "There is no nodule."), seed=seed)


class Late:
    """Epochs of two samples; only the later ones have masks."""

    def __init__(self, folder, samples):
        self.first, self.later = [absent(folder, seed) for seed in (20, 21)], [samples[1], samples[3]]

    def __len__(self):
        return 2

    def at_epoch(self, epoch):
        return self.later if epoch else self.first


def test_what_only_masks_teach_waits_for_the_first_batch_that_has_one(samples, tmp_path):
    model = tiny.stirred()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = loop.train_only(model, assemble.GROUNDING)
    fit(model, Late(tmp_path, samples), batch_size=2, max_steps=2, mask_loss=WEIGHTS)
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} == set(trained)


def test_what_has_no_gradient_although_there_were_masks_stops_the_run_at_the_first_of_them(samples, tmp_path):
    model = tiny.stirred()
    loop.train_only(model, ["model.projector", "grounding.text_hidden_fcs", "grounding.sam.mask_decoder.iou_prediction_head"])
    with pytest.raises(RuntimeError, match="expected a gradient for exactly what trains, found otherwise for .*iou_prediction_head"):
        fit(model, Late(tmp_path, samples), batch_size=2, max_steps=2, mask_loss=WEIGHTS)


def test_a_run_without_a_single_mask_ends_with_a_warning_that_names_what_it_did_not_train(tmp_path, caplog):
    model = tiny.stirred()
    loop.train_only(model, ["model.projector", "grounding.text_hidden_fcs"])
    with caplog.at_level("WARNING", logger="train"):
        fit(model, tiny.samples(absent(tmp_path, 20)), batch_size=1, max_steps=2, mask_loss=WEIGHTS)
    [said] = [record.getMessage() for record in caplog.records if record.name == "train"]
    names = [name for name, value in model.named_parameters() if value.requires_grad and name.startswith("grounding.")]
    expected = f"{', '.join(sorted(names))} and {len(names)} in all"
    assert said == f"tiny: no sample had a target mask, so these parameters stayed as they were: {expected}"


def test_mask_terms_compare_at_the_size_of_the_target():
    target = torch.zeros(2, 8, 8)
    target[0, :4] = 1
    low = 60 * target[:, ::2, ::2] - 30
    grown = torch.nn.functional.interpolate(low[:, None], 8, mode="bilinear")[:, 0]
    found = stage_trainer.mask_terms(low, target, WEIGHTS)
    torch.testing.assert_close(found["pixel"], 2.0 * losses.pixel(grown, target).mean())
    torch.testing.assert_close(found["dice"], 0.5 * losses.dice(grown, target).mean())
    assert found["dice"] < 0.02
    coarse = stage_trainer.mask_terms(low.bfloat16(), target, WEIGHTS)
    torch.testing.assert_close(coarse, found, atol=1e-6, rtol=1e-5, msg="bfloat16 holds 30 exactly; what is made of it is float32")


@pytest.mark.slow
def test_the_loss_falls_on_32_samples_shown_again_and_again(tmp_path):
    model = tiny.fresh()
    loop.train_only(model, ["model.language_model", "lm_head", *assemble.ALIGNED, *assemble.GROUNDING])
    history = fit(model, several(tmp_path, 32), batch_size=32, max_steps=40, learning_rate=0.02, mask_loss=WEIGHTS)
    first, last = history[0], history[-1]
    assert last["loss"] < first["loss"] / 3
    assert last["loss_words"] < first["loss_words"] / 3
    assert last["loss_pixel"] + last["loss_dice"] < first["loss_pixel"] + first["loss_dice"]
