"""The loss on words, a few rows of the vocabulary-wide product at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

CHUNK = 1024
"""Rows whose logits are in memory at once: with 128,000 words, half a gigabyte in float32."""

Head = Callable[[Float[Tensor, "row width"]], Float[Tensor, "row word"]]


def loss(
    head: Head, states: Float[Tensor, "row width"], wanted: Int[Tensor, " row"], trained: Sequence[Tensor], chunk: int = CHUNK
) -> Float[Tensor, ""]:
    """Mean cross-entropy of `head(states)`; `trained` are the head's parameters that want a gradient."""
    return _Words.apply(head, chunk, wanted, states, *trained)


class _Words(torch.autograd.Function):
    """Takes the gradient while the logits are there, so that none are kept. Chunked cross-entropy of Liger (arXiv:2410.10989), 3.2."""

    @staticmethod
    def forward(ctx: Any, head: Head, chunk: int, wanted: Tensor, *differentiated: Tensor) -> Tensor:
        states, *trained = differentiated
        total = torch.zeros((), device=states.device)
        gradients = [torch.zeros_like(side) for side in (states, *trained)]
        pieces = zip(states.split(chunk), wanted.split(chunk), gradients[0].split(chunk), strict=True)
        for rows, words, into in pieces:
            with torch.enable_grad():
                rows = rows.detach().requires_grad_()
                part = cross_entropy(head(rows).float(), words, reduction="sum") / len(wanted)
            found = torch.autograd.grad(part, [rows, *trained])
            for place, gradient in zip([into, *gradients[1:]], found, strict=True):
                place += gradient
            total += part.detach()
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *((gradient * scale[0]).to(gradient.dtype) for gradient in ctx.saved_tensors)
