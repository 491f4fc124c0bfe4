"""The frozen language model multiplied in eight bits while others train beside it: faster, not exact, and judged before the first step."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Float8e4m3fn
from torch import Tensor, nn

from unimed.errors import InputError
from unimed.model import attention
from unimed.model.assemble import EXPERT_TARGETS
from unimed.model.experts import RoutedLinear
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.train.batch import Batch
from unimed.train.readable import UNREADABLE

KIND = torch.float8_e4m3fn
LARGEST = torch.finfo(KIND).max

MULTIPLE = 16
"""Of which a product in eight bits wants the number of columns."""

WORST = 0.01
"""Share of the loss by which eight bits may change it; a run that is worse than that does not begin."""

logger = logging.getLogger("train")


def rounded(rows: Float[Tensor, "row width"]) -> tuple[Float8e4m3fn[Tensor, "row width"], Float[Tensor, "row 1"]]:
    """Every row in eight bits, and the factor that brings it back: its largest number uses the whole range."""
    scale = (rows.abs().amax(-1, keepdim=True).float() / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows.float() / scale).to(KIND), scale


class Product(torch.autograd.Function):
    """`rows` times a frozen weight: both in eight bits, row by row scaled; so is the gradient, on its way back.

    Numbers are Micikevicius et al. 2022 (arXiv:2209.05433), E4M3 in both directions: with a scale for each row its range is enough.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Float[Tensor, "row width"], weight: Float8e4m3fn[Tensor, "out_width width"], scale: Float[Tensor, "out_width 1"]
    ) -> Float[Tensor, "row out_width"]:
        """The product, in the type of `rows`."""
        ctx.save_for_backward(weight, scale)
        small, own = rounded(rows)
        return (_times(small, weight.t(), rows.dtype) * own * scale.t()).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "row out_width"]) -> tuple[Float[Tensor, "row width"], None, None]:
        """The gradient of `rows`; the weight, which is frozen, has none."""
        [gradient], (weight, scale) = gradients, ctx.saved_tensors
        # The weight's scales lie along what is summed up here: they go into the gradient before it is rounded.
        small, own = rounded(gradient * scale.t())
        # Turned for this product alone: a second copy would stay on the GPU.
        turned = weight.t().contiguous().t()
        return (_times(small, turned, gradient.dtype) * own).to(gradient.dtype), None, None


def _times(
    rows: Float8e4m3fn[Tensor, "row inner"], columns: Float8e4m3fn[Tensor, "inner column"], dtype: torch.dtype
) -> Float[Tensor, "row column"]:
    """Their product, not yet scaled: scaling rows inside is no faster and on no CPU, and compiled neighbours do it in passing."""
    one = torch.ones((), device=rows.device)
    return torch._scaled_mm(rows, columns, scale_a=one, scale_b=one, out_dtype=dtype, use_fast_accum=True)


class Float8Linear(nn.Linear):
    """A frozen linear layer that multiplies by an eight-bit copy of its weight."""

    # No buffers: those are sent from process to process, and stored.
    small: Float8e4m3fn[Tensor, "out_width width"]
    scale: Float[Tensor, "out_width 1"]

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out_width"]:
        """The output as it would be, but for the rounding."""
        made = Product.apply(input.flatten(0, -2), self.small, self.scale).unflatten(0, input.shape[:-1])
        return made if self.bias is None else made + self.bias


class Float8RoutedLinear(RoutedLinear, Float8Linear):
    """The same with stacked experts beside it, which are multiplied as they are."""


KINDS: Mapping[type[nn.Module], type[Float8Linear]] = {nn.Linear: Float8Linear, RoutedLinear: Float8RoutedLinear}


def linears(language_model: nn.Module) -> dict[str, nn.Linear]:
    """The decoder layers' linears that multiply in eight bits: those that are frozen, adapters and experts beside them or not."""
    parts = {name: part for name, part in language_model.layers.named_modules() if type(part) in KINDS}
    own = {name: part for name, part in parts.items() if name.removesuffix(".base_layer").rpartition(".")[2] in EXPERT_TARGETS}
    return {name: part for name, part in own.items() if not part.weight.requires_grad}


@contextmanager
def multiplied(language_model: nn.Module) -> Iterator[None]:
    """The decoder layers' frozen linears multiply in eight bits while the block runs. Raises InputError for widths that cannot."""
    chosen = linears(language_model)
    for name, linear in chosen.items():
        if found := [width for width in linear.weight.shape if width % MULTIPLE]:
            raise InputError(f"params.yaml: float8 needs linears whose widths are multiples of {MULTIPLE}, found {found[0]} in {name}")
    try:
        for linear in chosen.values():
            with torch.no_grad():
                linear.small, linear.scale = rounded(linear.weight)
            linear.__class__ = KINDS[type(linear)]
        yield
    finally:
        back = {own: kind for kind, own in KINDS.items()}
        for linear in chosen.values():
            if type(linear) in back:
                linear.__class__ = back[type(linear)]
                del linear.small, linear.scale


@torch.no_grad()
def judged(model: UniMedForConditionalGeneration, batch: Batch) -> float:
    """By what share of itself eight bits change the loss of a batch's words. Raises InputError where it is more than `WORST`."""
    language = model.model.language_model
    inputs = {name: value for name, value in batch.items() if name not in ("masks", UNREADABLE)}
    with attention.packed(language) if "packing" in batch else nullcontext():
        exact = float(model(**inputs, use_cache=False).loss)
        with multiplied(language):
            found = float(model(**inputs, use_cache=False).loss)
    change = abs(found - exact) / exact
    logger.info("float8: loss of the first rows %.4f, in eight bits %.4f", exact, found)
    if not change <= WORST:
        told = f"found {change:.1%}, {found:.4f} after {exact:.4f}; leave float8 out"
        raise InputError(f"params.yaml: expected float8 to change the first rows' loss by at most {WORST:.0%}, {told}")
    return change
