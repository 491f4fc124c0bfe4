"""Frozen linears with the same input as one product while adapters beside them learn: fewer passes over the states than one by one."""

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
    """Several linears as three products: their outputs, the first halves of all their adapters, and the second halves.

    The linears' weights become views of one tensor, so that nothing is held twice; the adapters' are the parameters themselves.
    A second half is as wide as all linears together, zeros beside its own, which costs a product of the adapters' rank.
    """

    gates: Float[Tensor, "batch seq_or_one rank"] | None = None

    @torch.no_grad()
    def __init__(self, members: Sequence[Member]):
        super().__init__()
        bases, adapters = [together.base(member) for member in members], [together.beside(member) for member in members]
        self.sizes = [len(base.weight) for base in bases]
        self.weight = nn.Buffer(torch.cat([base.weight for base in bases]), persistent=False)
        for base, rows in zip(bases, self.weight.split(self.sizes), strict=True):
            base.weight.data = rows
        self.bias = None if bases[0].bias is None else nn.Buffer(torch.cat([base.bias for base in bases]), persistent=False)
        every = [*chain(*adapters)]
        # One by one and not as a list, through which a compiler does not see.
        for number, part in enumerate(every):
            self.register_parameter(f"inner{number}", part.inner)
            self.register_parameter(f"outer{number}", part.outer)
        self.gated, self.scalings = [part.gated for part in every], [part.scaling for part in every]
        # How much lies before and behind the rows that each second half adds to.
        starts = [sum(self.sizes[:number]) for number, parts in enumerate(adapters) for _ in parts]
        self.around = [(start, sum(self.sizes) - start - len(part.outer)) for start, part in zip(starts, every, strict=True)]

    def forward(self, input: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq out_width"]:
        """The output of the first; the others' can be had in their places, once."""
        made = linear(input, self.weight, self.bias)
        if self.gated:
            seconds = [
                pad(part * by, (0, 0, *around)) for part, by, around in zip(self._halves("outer"), self.scalings, self.around, strict=True)
            ]
            made = made + linear(self._between(input), torch.cat(seconds, 1))
        first, *self.later = made.split(self.sizes, -1)
        return first

    def _between(self, input: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq ranks"]:
        """What lies between the halves of all adapters, weighed where the layer's gates say so."""
        halves = self._halves("inner")
        inner = linear(input, torch.cat(halves))
        if self.gates is None:
            return inner
        parts = inner.split([len(half) for half in halves], -1)
        return torch.cat([part * self.gates.to(part.dtype) if gated else part for part, gated in zip(parts, self.gated, strict=True)], -1)

    def _halves(self, side: str) -> list[Tensor]:
        return [getattr(self, f"{side}{number}") for number in range(len(self.gated))]


def joined(language_model: PreTrainedModel) -> AbstractContextManager[None]:
    """Within the block frozen linears are joined where they and what stands beside them are of one type; others are left alone."""
    return together.replaced(language_model, _join)


def _join(members: Sequence[Member]) -> Joined | None:
    bases = [together.base(member) for member in members]
    beside = [half for member in members for part in together.beside(member) for half in (part.inner, part.outer)]
    frozen = not any(parameter.requires_grad for base in bases for parameter in (base.weight, base.bias) if parameter is not None)
    alike = len({tensor.dtype for tensor in (*(base.weight for base in bases), *beside)}) == 1
    return Joined(members) if frozen and alike else None
