"""Linears with the same input as one product, their adapters included, while answers are written: there a product costs its start."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

from unimed.model import together
from unimed.model.together import Member


class Joined(together.Joined):
    """Several linears as two products: their outputs and the first halves of all their adapters, then the second halves.

    Holds copies in the linears' type and learns nothing.
    """

    gates: Float[Tensor, "batch seq_or_one rank"] | None = None

    @torch.no_grad()
    def __init__(self, members: Sequence[Member]):
        super().__init__()
        bases, adapters = [together.base(member) for member in members], [together.beside(member) for member in members]
        every = [*chain(*adapters)]
        kind = bases[0].weight
        self.sizes = [len(base.weight) for base in bases]
        self.weight = nn.Buffer(torch.cat([*(base.weight for base in bases), *(part.inner.to(kind.dtype) for part in every)]))
        self.bias = None if bases[0].bias is None else nn.Buffer(torch.cat([base.bias for base in bases]))
        seconds = (
            torch.cat([base.weight[:, :0], *(part.outer * part.scaling for part in parts)], 1)
            for base, parts in zip(bases, adapters, strict=True)
        )
        self.second = nn.Buffer(torch.block_diag(*seconds).to(kind.dtype))
        # Of each rank which gate weighs it, counted from one, or 0.
        gates = (torch.arange(len(part.inner)) + 1 if part.gated else torch.zeros(len(part.inner), dtype=torch.long) for part in every)
        self.gate = nn.Buffer(torch.cat([torch.zeros(0, dtype=torch.long), *gates]).to(kind.device))

    def forward(self, input: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq out_width"]:
        """The output of the first; the others' can be had in their places, once."""
        made, inner = linear(input, self.weight).split([sum(self.sizes), len(self.gate)], -1)
        if self.gates is not None:
            inner = inner * pad(self.gates, (1, 0), value=1.0)[..., self.gate].to(input.dtype)
        if self.bias is not None:
            made = made + self.bias
        first, *self.later = (made + linear(inner, self.second)).split(self.sizes, -1)
        return first


def joined(language_model: PreTrainedModel) -> AbstractContextManager[None]:
    """Within the block the linears of every decoder layer are joined; where a layer has none of their names they are left alone."""
    return together.replaced(language_model, Joined)
