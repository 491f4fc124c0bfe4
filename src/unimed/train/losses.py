"""Losses on masks: per pixel and per overlap."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def pixel(logits: Float[Tensor, "mask height width"], target: Float[Tensor, "mask height width"]) -> Float[Tensor, " mask"]:
    """Mean binary cross-entropy over each mask's pixels, in nats."""
    return binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").mean((1, 2))


def dice(logits: Float[Tensor, "mask height width"], target: Float[Tensor, "mask height width"]) -> Float[Tensor, " mask"]:
    """One minus the overlap of each predicted mask with its target, in [0, 1].

    The 1 added above and below makes an empty prediction of an empty target score 0.
    DETR, Carion et al. 2020, arXiv:2005.12872, DICE/F-1 loss.
    """
    predicted, target = logits.sigmoid().flatten(1), target.flatten(1).to(logits.dtype)
    overlap = (predicted * target).sum(1)
    return 1 - (2 * overlap + 1) / (predicted.sum(1) + target.sum(1) + 1)
