"""What one optimizer step is: the rate it is made at, the gradient it sees, and that nothing else pulls at a weight."""

import math

import pytest
import tiny
import torch
from failing import fit, model, sample, steps_watched
from test_samples_at_once import Mute
from torch import nn

from unimed.config import MaskLoss, Optimisation
from unimed.train import loop
from unimed.train.optimise import minimise

STEPS = {"batch_size": 1, "max_steps": 4, "learning_rate": 1e-3, "warmup_steps": 2}


def minimised(scales: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A vector and a matrix after steps down gradients that are as many times longer than the same ones."""
    vector, matrix = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4, 4))
    draw = torch.Generator().manual_seed(0)
    down = [(torch.randn(3, generator=draw), torch.randn(4, 4, generator=draw)) for _ in scales]

    def loss(step: int) -> torch.Tensor:
        one, other = down[step]
        return scales[step] * ((vector * one).sum() + (matrix * other).sum())

    minimise([vector], loss, Optimisation(**STEPS | {"max_steps": len(scales)}), "tiny", [matrix])
    return vector.detach(), matrix.detach()


def test_the_rate_rises_in_equal_steps_to_the_whole_one_and_falls_as_a_cosine():
    weight = nn.Parameter(torch.zeros(1))
    losses = minimise([weight], lambda step: 2 * weight.sum(), Optimisation(**STEPS), "tiny")
    # AdamW's step along a gradient that stays is the rate: a half, a whole, a whole, a half, less 0.00001 of the weight itself.
    assert losses == pytest.approx([0.0, -0.001, -0.003, -0.005], rel=1e-4)
    assert weight.item() == pytest.approx(-0.003, rel=1e-4)


def test_vectors_and_matrices_are_clipped_together_so_that_no_step_counts_by_its_length():
    torch.testing.assert_close(minimised([100.0, 1.0, 1.0, 10.0]), minimised([1.0, 1.0, 1.0, 1.0]), atol=1e-7, rtol=1e-5)


def test_muon_moves_matrices_at_twice_the_rate():
    _, matrix = minimised([1.0])
    # An orthogonal matrix, nearly, of norm 2, times 0.2 and the root of its larger side; the first of two steps of warm-up.
    assert matrix.norm().item() == pytest.approx(2 * 0.0005 * 0.2 * math.sqrt(4) * 2, rel=0.3)


def trained(folder, **changes):
    """Each step of a training whose gradients are long, and its log."""
    made = model("grounding.text_hidden_fcs")
    with steps_watched(made) as steps:
        history = fit(made, [sample(folder, 1)], mask_loss=MaskLoss(pixel_weight=1e5, dice_weight=0.5), **STEPS | changes)
    return steps, history


def test_a_stage_warms_up_decays_as_a_cosine_and_clips_gradients_to_norm_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps, history = trained(tmp_path, max_steps=5)
    assert [entry["learning_rate"] for entry in history] == pytest.approx([0.0, 0.0005, 0.001, 0.00075, 0.00025])
    assert all(entry["grad_norm"] > 10 for entry in history)
    for (_, gradients, _), _ in steps:
        assert math.hypot(*(value.norm().item() for value in gradients.values())) == pytest.approx(1, abs=1e-3)


def test_the_first_step_is_the_rate_against_the_gradient_and_no_weight_is_pulled_to_zero(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [[(before, gradients, _), (after, _, _)]], _ = trained(tmp_path, max_steps=1, warmup_steps=0)
    for name, gradient in gradients.items():
        # AdamW divides by the gradient's size and 1e-8.
        torch.testing.assert_close(after[name], before[name] - 0.001 * gradient / (gradient.abs() + 1e-8), atol=2e-7, rtol=0)


def test_a_step_whose_loss_is_no_number_is_none_though_its_gradient_is_one(tmp_path, monkeypatch):
    """Of a batch without a labelled word."""
    monkeypatch.chdir(tmp_path)
    made, chosen = model(), Optimisation(**STEPS | {"max_steps": 1}, failures={"not_finite": "skip", "most_skipped": 1})
    with steps_watched(made) as steps:
        [line] = loop.fit(made, tiny.samples(sample(tmp_path, 2)), Mute(tiny.processor()), chosen, 0, "tiny")
    [((_, gradients, _), (_, _, state))] = steps
    assert all(value.isfinite().all() for value in gradients.values())
    assert line["not_finite"] == 1 and not any(value.any() for value in state.values())
