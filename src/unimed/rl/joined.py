"""Linears with the same input as one product, their adapters included, while answers are written: there a product costs its start."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from peft.tuners.lora import Linear as AdaptedLinear
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

from unimed.model.experts import Routed, RoutedLinear

Member = nn.Linear | AdaptedLinear
"""What can be joined: a linear, routed or not, with or without peft's adapters."""

TOGETHER = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)
"""Where in a decoder layer linears have the same input, in the order in which they are called."""


class Beside(NamedTuple):
    """An adapter beside a linear, its scaling in the second half; of each rank which gate weighs it, counted from one, or 0."""

    inner: Float[Tensor, "rank width"]
    outer: Float[Tensor, "out_width rank"]
    gate: Int[Tensor, " rank"]


class Joined(Routed):
    """Several linears as two products: their outputs and the first halves of all their adapters, then the second halves.

    Holds copies in the linears' type and learns nothing. Stands in the place of the first; `Later` stands in the others'.
    """

    gates: Float[Tensor, "batch seq_or_one rank"] | None = None

    @torch.no_grad()
    def __init__(self, members: Sequence[Member]):
        super().__init__()
        bases, adapters = [_base(member) for member in members], [_beside(member) for member in members]
        every = [*chain(*adapters)]
        kind = bases[0].weight
        self.sizes = [len(base.weight) for base in bases]
        self.weight = nn.Buffer(torch.cat([*(base.weight for base in bases), *(part.inner.to(kind.dtype) for part in every)]))
        self.bias = None if bases[0].bias is None else nn.Buffer(torch.cat([base.bias for base in bases]))
        seconds = (torch.cat([base.weight[:, :0], *(part.outer for part in parts)], 1) for base, parts in zip(bases, adapters, strict=True))
        self.second = nn.Buffer(torch.block_diag(*seconds).to(kind.dtype))
        self.gate = nn.Buffer(torch.cat([torch.zeros(0, dtype=torch.long, device=kind.device), *(part.gate for part in every)]))
        self.later: Sequence[Tensor] = ()

    def forward(self, input: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq out_width"]:
        """The output of the first; the others' can be had in their places, once."""
        made, inner = linear(input, self.weight).split([sum(self.sizes), len(self.gate)], -1)
        if self.gates is not None:
            inner = inner * pad(self.gates, (1, 0), value=1.0)[..., self.gate].to(input.dtype)
        if self.bias is not None:
            made = made + self.bias
        first, *self.later = (made + linear(inner, self.second)).split(self.sizes, -1)
        return first


class Later(nn.Module):
    """Stands for a linear whose output has been made together with an earlier one's."""

    def __init__(self, joined: Joined):
        super().__init__()
        self.joined = joined

    def forward(self, input: Tensor) -> Tensor:
        """What was made of the same input."""
        found, *self.joined.later = self.joined.later
        return found


@contextmanager
def joined(language_model: PreTrainedModel) -> Iterator[None]:
    """Within the block the linears of every decoder layer are joined; where a layer has none of these names they are left alone."""
    before = []
    try:
        for layer in language_model.layers:
            for parent, names in TOGETHER:
                part = getattr(layer, parent, None)
                members = [getattr(part, name, None) for name in names]
                if all(isinstance(member, Member) for member in members):
                    before += [(part, name, member) for name, member in zip(names, members, strict=True)]
                    first = Joined(members)
                    for name, place in zip(names, [first, *(Later(first) for _ in names[1:])], strict=True):
                        setattr(part, name, place)
        yield
    finally:
        for part, name, member in before:
            setattr(part, name, member)


def _base(member: Member) -> nn.Linear:
    base = member.base_layer if isinstance(member, AdaptedLinear) else member
    if not isinstance(base, nn.Linear):
        raise TypeError(f"expected an adapter beside a linear, found it beside {type(base).__name__}")
    return base


def _beside(member: Member) -> list[Beside]:
    base, found = _base(member), []
    if isinstance(base, RoutedLinear):
        found.append(Beside(base.expert_in, base.expert_out, torch.arange(len(base.expert_in), device=base.weight.device) + 1))
    for name in member.active_adapters if isinstance(member, AdaptedLinear) else ():
        inner, outer = member.lora_A[name].weight, member.lora_B[name].weight * member.scaling[name]
        found.append(Beside(inner, outer, torch.zeros(len(inner), dtype=torch.long, device=inner.device)))
    return found
