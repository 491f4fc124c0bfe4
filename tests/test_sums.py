"""Gradients of many passes come to what they are together, however small each is, and reach none that no pass reached."""

import torch
from torch import nn

from unimed.train.sums import Sums


def passed(kind, gradients):
    """A parameter whose gradient is the sum of these, taken pass by pass, and one that no pass reaches."""
    reached, other = (nn.Parameter(torch.zeros(2, dtype=kind)) for _ in range(2))
    sums = Sums([reached, other, nn.Parameter(torch.zeros(2), requires_grad=False)])
    for gradient in gradients:
        (reached * torch.tensor(gradient, dtype=kind)).sum().backward()
        sums.take()
        assert reached.grad is None
    sums.give()
    assert other.grad is None
    return reached.grad


def test_small_gradients_after_a_large_one_count_in_bfloat16_too():
    """A bfloat16 at 1 has steps of 1/128: each of 128 gradients of 1/512 would be rounded away."""
    found = passed(torch.bfloat16, [[1.0, -2.0], *[[1 / 512, 1 / 512]] * 128])
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [1.25, -1.75]
    direct = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    for gradient in [[1.0, -2.0], *[[1 / 512, 1 / 512]] * 128]:
        (direct * torch.tensor(gradient, dtype=torch.bfloat16)).sum().backward()
    assert direct.grad.tolist() == [1.0, -2.0]


def test_in_float32_the_sum_is_that_of_backward_passes():
    gradients = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).tolist()
    direct = nn.Parameter(torch.zeros(2))
    for gradient in gradients:
        (direct * torch.tensor(gradient)).sum().backward()
    assert torch.equal(passed(torch.float32, gradients), direct.grad)
