"""What the routers of a model choose, told to those who ask."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unimed.model.experts import Router


class RouterUse:
    """The routers' choices over many passes, summed per layer."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.totals: dict[int, Tensor] = {}

    def add(self, layer: int, share: Float[Tensor, " expert"]) -> None:
        """Count what one router chose."""
        self.totals[layer] = self.totals.get(layer, torch.zeros_like(share)) + share

    def shares(self) -> list[tuple[int, str, float]]:
        """Layer, expert and its share of all that was routed."""
        return [
            (layer, name, round(float(share), 4))
            for layer, total in sorted(self.totals.items())
            for name, share in zip(self.names, total / total.sum(), strict=True)
        ]


@contextmanager
def watched(model: nn.Module) -> Iterator[RouterUse]:
    """Adds up what the model's routers choose while the block runs."""
    use = RouterUse(tuple(model.config.experts))

    def note(router: Router, args: tuple, gates: Tensor) -> None:
        # Passes that reuse a decision made for the prompt leave no new logits.
        if router.logits is not None:
            use.add(router.layer, router.chosen(router.logits).flatten(0, -2).sum(0))
            router.logits = None

    handles = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, Router)]
    try:
        yield use
    finally:
        for handle in handles:
            handle.remove()


def taken_shares(model: nn.Module) -> dict[int, Float[Tensor, "batch seq_or_one expert"]]:
    """The share of each expert in the pass just made, by layer; a router that went by an earlier decision is absent.

    They can be taken once.
    """
    found = {}
    for router in (module for module in model.modules() if isinstance(module, Router)):
        if router.logits is not None:
            found[router.layer] = router.chosen(router.logits)
            router.logits = None
    return found
