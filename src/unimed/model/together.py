"""Linears of a decoder layer that have the same input, and what may stand in their places for a while."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from jaxtyping import Float
from peft.tuners.lora import Linear as AdaptedLinear
from torch import Tensor, nn
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
    """An adapter beside a linear, the factor on its second half, and whether the layer's gates weigh what lies between the halves."""

    inner: Float[Tensor, "rank width"]
    outer: Float[Tensor, "out_width rank"]
    scaling: float
    gated: bool


class Joined(Routed):
    """Several linears in the place of the first; `Later` stands in the others'."""

    later: Sequence[Tensor] = ()
    """What the others made of the input that the first was given last."""


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
def replaced(language_model: PreTrainedModel, join: Callable[[Sequence[Member]], Joined | None]) -> Iterator[None]:
    """Within the block what `join` makes stands for the linears of every layer; those without these names, or a None, are left alone."""
    before = []
    try:
        for layer in language_model.layers:
            for parent, names in TOGETHER:
                part = getattr(layer, parent, None)
                members = [getattr(part, name, None) for name in names]
                if all(isinstance(member, Member) for member in members) and (first := join(members)) is not None:
                    before += [(part, name, member) for name, member in zip(names, members, strict=True)]
                    for name, place in zip(names, [first, *(Later(first) for _ in names[1:])], strict=True):
                        setattr(part, name, place)
        yield
    finally:
        for part, name, member in before:
            setattr(part, name, member)


def base(member: Member) -> nn.Linear:
    """The linear itself. Raises TypeError for an adapter beside something else."""
    found = member.base_layer if isinstance(member, AdaptedLinear) else member
    if not isinstance(found, nn.Linear):
        raise TypeError(f"expected an adapter beside a linear, found it beside {type(found).__name__}")
    return found


def beside(member: Member) -> list[Beside]:
    """The stacked experts of a linear and the adapters that peft has switched on, in that order."""
    own = base(member)
    experts = [Beside(own.expert_in, own.expert_out, 1.0, gated=True)] if isinstance(own, RoutedLinear) else []
    names = member.active_adapters if isinstance(member, AdaptedLinear) else ()
    return experts + [Beside(member.lora_A[name].weight, member.lora_B[name].weight, member.scaling[name], gated=False) for name in names]
