"""Losses on masks, by hand."""

import math

import pytest
import torch

from unimed.train import losses

SURE = 30.0
"""A logit that is a probability of one in single precision."""


def logits(rows: list[list[int]]) -> torch.Tensor:
    return (torch.tensor([rows]) * 2.0 - 1) * SURE


def test_a_perfect_mask_costs_nothing():
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert losses.dice(logits([[1, 0], [0, 1]]), target).item() == pytest.approx(0, abs=1e-6)
    assert losses.pixel(logits([[1, 0], [0, 1]]), target).item() == pytest.approx(0, abs=1e-6)


def test_an_empty_mask_of_an_empty_target_costs_nothing():
    empty = torch.zeros(1, 2, 2)
    assert losses.dice(logits([[0, 0], [0, 0]]), empty).item() == pytest.approx(0, abs=1e-6)
    assert losses.pixel(logits([[0, 0], [0, 0]]), empty).item() == pytest.approx(0, abs=1e-6)


def test_half_an_overlap_by_hand():
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert losses.dice(logits([[1, 0], [1, 0]]), target).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))
    assert losses.pixel(logits([[1, 0], [1, 0]]), target).item() == pytest.approx(SURE / 2)


def test_a_mask_that_misses_its_target_costs_nearly_all():
    target = torch.zeros(1, 8, 8)
    target[:, :4] = 1
    assert losses.dice(SURE * (1 - 2 * target), target).item() == pytest.approx(1 - 1 / 65)


def test_an_undecided_mask_costs_a_bit_per_pixel():
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert losses.pixel(torch.zeros(1, 2, 2), target).item() == pytest.approx(math.log(2))
    assert losses.dice(torch.zeros(1, 2, 2), target).item() == pytest.approx(1 - (2 * 0.5 + 1) / (2 + 1 + 1))


def test_every_mask_is_counted_alone():
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    both = torch.cat([logits([[1, 0], [0, 1]]), logits([[1, 1], [1, 1]])])
    assert losses.dice(both, target).tolist() == pytest.approx([0, 1 - 1 / 5], abs=1e-6)
    assert losses.pixel(both, target).tolist() == pytest.approx([0, SURE], abs=1e-6)


def test_a_partly_covered_pixel_counts_by_its_share():
    target = torch.full((1, 2, 2), 0.25)
    assert losses.pixel(torch.full((1, 2, 2), math.log(1 / 3)), target).item() == pytest.approx(
        -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    )
