"""Attention within the samples of a packed sequence: a kernel for variable lengths on a GPU, a block mask elsewhere."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from unimed.model import flash_attention_4
from unimed.model.packing import Packing

NAME, BY_PACKAGE = "packed", "packed_by_package"
"""What transformers' attention interface calls it with torch's kernel, and with that of flash-attn-4."""


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 head position size"],
    key: Float[Tensor, "1 group position size"],
    value: Float[Tensor, "1 group position size"],
    attention_mask: None,
    packing: Packing,
    scaling: float,
    package: bool = False,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 position head size"], None]:
    """Causal attention in which every sample sees itself alone; `package`: on a GPU flash-attn-4 computes it."""
    if query.is_cuda:
        rows = (side[0].transpose(0, 1) for side in (query, key, value))
        return varlen(*rows, packing.bounds, packing.extent, scaling, package)[0].unsqueeze(0), None
    mask = block_mask(packing.segment)
    states = scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    return states.transpose(1, 2), None


AttentionInterface.register(NAME, attend)
AttentionInterface.register(BY_PACKAGE, partial(attend, package=True))


def block_mask(segment: Int[Tensor, " position"]) -> Bool[Tensor, "position position"]:
    """Which position sees which: the earlier ones of its own segment and itself."""
    return (segment.unsqueeze(1) == segment).tril()


def packed(language_model: PreTrainedModel, package: bool = False) -> AbstractContextManager[None]:
    """Has the language model read packed sequences, and nothing else, while the block runs."""
    return attending(language_model, BY_PACKAGE if package else NAME)


@contextmanager
def attending(language_model: PreTrainedModel, name: str) -> Iterator[None]:
    """Has the language model attend as is registered under a name while the block runs."""
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation(name)
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)


# torch.nn.attention.varlen takes number and length of the segments as Python numbers, so that a compiled layer would be compiled anew for
# each. Here they are read inside the operator, from a tensor on the CPU. The kernel is the same.
@torch.library.custom_op("unimed::varlen", mutates_args=())
def varlen(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, extent: Tensor, scaling: float, package: bool
) -> tuple[Tensor, Tensor]:
    """FlashAttention over segments: states, position by head by size, and the log-sum-exp that the gradient needs."""
    ends, longest = _ends(bounds, extent)
    if package:
        return flash_attention_4.forward(query, key, value, ends, longest, scaling)
    found = torch.ops.aten._flash_attention_forward(query, key, value, ends, ends, longest, longest, 0.0, True, False, scale=scaling)
    return found[0], found[1]


@varlen.register_fake
def _(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[1::-1], dtype=torch.float32)


@torch.library.custom_op("unimed::varlen_backward", mutates_args=())
def varlen_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    states: Tensor,
    lse: Tensor,
    bounds: Tensor,
    extent: Tensor,
    scaling: float,
    package: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to query, key and value."""
    ends, longest = _ends(bounds, extent)
    if package:
        return flash_attention_4.backward(gradient.contiguous(), query, key, value, states, lse, ends, longest, scaling)
    unused = torch.zeros(2, dtype=torch.uint64, device=query.device)  # the state of a dropout that is not there
    places = (ends, ends, longest, longest, 0.0, True, unused, unused)
    return torch.ops.aten._flash_attention_backward(gradient.contiguous(), query, key, value, states, lse, *places, scale=scaling)


@varlen_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _ends(bounds: Int[Tensor, " bound"], extent: Int[Tensor, "2"]) -> tuple[Int[Tensor, " end"], int]:
    count, longest = extent.tolist()
    return bounds[: count + 1], longest


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bounds, extent, ctx.scaling, ctx.package = inputs
    ctx.save_for_backward(query, key, value, *output, bounds, extent)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *varlen_backward(gradient, *ctx.saved_tensors, ctx.scaling, ctx.package), None, None, None, None


varlen.register_autograd(_backward, setup_context=_keep)
