"""A full change of a linear layer as a LoRA adapter: truncated singular value decomposition, and what it loses."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from unimed.errors import InputError

MORE, POWERS = 16, 6
"""Dimensions beyond the rank and rounds of the randomised decomposition: Halko et al. 2011, arXiv:0909.4061, section 4.5."""


@dataclass
class Fold:
    """How much of an expert's change from the foundation its adapter holds, layer by layer, in squared Frobenius norms."""

    rank: int
    change: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)

    def add(self, layer: int, change: float, lost: float) -> None:
        """Count a linear of a layer."""
        for sums, value in ((self.change, change), (self.lost, lost)):
            sums.extend([0.0] * (layer + 1 - len(sums)))
            sums[layer] += value

    def errors(self) -> list[float]:
        """For every layer the norm of what was lost over the norm of the change; 0 where nothing changed."""
        return [_ratio(lost, change) for lost, change in zip(self.lost, self.change, strict=True)]

    def error(self) -> float:
        """The same over all layers together."""
        return _ratio(sum(self.lost), sum(self.change))

    def facts(self) -> dict[str, object]:
        """What the manifest says."""
        return {"rank": self.rank, "relative_error": self.error(), "relative_error_by_layer": self.errors()}


def _ratio(lost: float, change: float) -> float:
    return round((lost / change) ** 0.5, 6) if change else 0.0


def low_rank(
    change: Float[Tensor, "out_width width"], rank: int, name: str
) -> tuple[Float[Tensor, "rank width"], Float[Tensor, "out_width rank"], float]:
    """A and B of the best B A of that rank, and the squared norm of what it leaves out.

    A's rows are orthonormal, so that an adapter of no change can still be trained. Raises InputError for a rank above the linear's.
    """
    if rank > min(change.shape):
        raise InputError(f"--rank {rank}: expected at most the smaller side of {name}, found {min(change.shape)}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        left, strength, right = torch.svd_lowrank(change, q=min(rank + MORE, *change.shape), niter=POWERS)
    inner, outer = right[:, :rank].T.contiguous(), (left * strength)[:, :rank].contiguous()
    return inner, outer, float((change - outer @ inner).square().sum())
