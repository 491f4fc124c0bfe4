"""Adapters folded into the products they stand beside: y = [x, A x] [W, B] instead of two products and a sum.

The weights of a linear and of its adapter lie in one matrix [[W, B], [A, 0]], of which all of them are parts. Its upper rows serve the
forward product, its left columns the gradient with respect to the input; what was written and read for a second result falls away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from unimed.model.experts import RoutedLinear


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Folds every single adapter and all stacked experts while the block runs; their parameters stay the same objects."""
    folds = [found for module in model.modules() if (found := _parts(module))]
    for module, base, inner, outer, scale in folds:
        both = _joined(base, inner, outer)
        module.forward = partial(_routed if isinstance(module, RoutedLinear) else _adapted, module, both, inner, outer, scale)
    try:
        yield
    finally:
        for module, base, inner, outer, _ in folds:
            del module.forward
            for part in (base.weight, inner, outer):
                part.data = part.data.contiguous()


def _parts(module: nn.Module) -> tuple[nn.Module, nn.Linear, nn.Parameter, nn.Parameter, float] | None:
    if isinstance(module, RoutedLinear):
        return module, module, module.expert_in, module.expert_out, 1.0
    if isinstance(module, LoraLayer) and len(module.active_adapters) == 1 and type(module.get_base_layer()) is nn.Linear:
        [name] = module.active_adapters
        return module, module.get_base_layer(), module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    return None


@torch.no_grad()
def _joined(base: nn.Linear, inner: nn.Parameter, outer: nn.Parameter) -> Tensor:
    """One matrix of which the weights become parts."""
    (out, width), rank = base.weight.shape, inner.shape[0]
    both = base.weight.new_zeros(out + rank, width + rank)
    for part, place in ((base.weight, both[:out, :width]), (inner, both[out:, :width]), (outer, both[:out, width:])):
        part.data = place.copy_(part)
    return both


def _adapted(module: LoraLayer, both: Tensor, inner: Tensor, outer: Tensor, scale: float, x: Tensor) -> Tensor:
    made = _Folded.apply(x, None, both, inner, outer, scale)
    return made if module.base_layer.bias is None else made + module.base_layer.bias


def _routed(module: RoutedLinear, both: Tensor, inner: Tensor, outer: Tensor, scale: float, x: Tensor) -> Tensor:
    made = _Folded.apply(x, module.gates.to(x.dtype), both, inner, outer, scale)
    return made if module.bias is None else made + module.bias


class _Folded(torch.autograd.Function):
    """W x + B (gates * scale * A x)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch seq width"],
        gates: Float[Tensor, "batch seq rank"] | None,
        both: Float[Tensor, "out_and_rank width_and_rank"],
        inner: Float[Tensor, "rank width"],
        outer: Float[Tensor, "out rank"],
        scale: float,
    ) -> Float[Tensor, "batch seq out"]:
        seen = x @ inner.T
        weighed = seen * scale if gates is None else seen * gates * scale
        ctx.save_for_backward(x, gates, both, inner, outer, seen)
        ctx.scale = scale
        return torch.cat([x, weighed], -1) @ both[: len(outer)].T

    @staticmethod
    def backward(ctx: Any, dy: Float[Tensor, "batch seq out"]) -> tuple[Tensor | None, ...]:
        x, gates, both, inner, outer, seen = ctx.saved_tensors
        back = (dy @ outer) * ctx.scale
        dz = back if gates is None else back * gates
        dx = torch.cat([dy, dz], -1) @ both[:, : x.shape[-1]] if ctx.needs_input_grad[0] else None
        dgates = back * seen if ctx.needs_input_grad[1] else None
        dinner = dz.flatten(0, 1).T @ x.flatten(0, 1) if ctx.needs_input_grad[3] else None
        douter = None
        if ctx.needs_input_grad[4]:
            weighed = seen * ctx.scale if gates is None else seen * gates * ctx.scale
            douter = dy.flatten(0, 1).T @ weighed.flatten(0, 1)
        return dx, dgates, None, dinner, douter, None
