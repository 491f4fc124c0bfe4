"""What the routers of a model choose, told to those who ask."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unimed.model.assemble import Assembled
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
def watched(made: Assembled) -> Iterator[RouterUse]:
    """Adds up what a model's routers choose for questions and their answers while it writes them within the block.

    Padding does not count, nor what stands behind an answer that has ended, nor a second reading for masks.
    """
    use, tokenizer = RouterUse(tuple(made.model.config.experts)), made.processor.tokenizer
    ends = torch.tensor([tokenizer.eos_token_id, tokenizer.pad_token_id])

    def note(model: nn.Module, args: tuple, inputs: dict[str, Any], outputs: Any) -> None:
        shares, mask = taken_shares(model), inputs.get("attention_mask")
        if inputs.get("past_key_values") is None:
            return
        if mask is None:  # generate leaves out one that hides nothing
            mask = torch.ones_like(inputs["input_ids"])
        if inputs["input_ids"].shape[1] == 1:
            mask = mask * ~torch.isin(inputs["input_ids"], ends.to(mask.device))
        for layer, share in shares.items():
            use.add(layer, of_texts(share, mask).sum(0))

    handle = made.model.register_forward_hook(note, with_kwargs=True)
    try:
        yield use
    finally:
        handle.remove()


def of_texts(shares: Float[Tensor, "batch seq_or_one expert"], mask: Int[Tensor, "batch seen"]) -> Float[Tensor, "batch expert"]:
    """What was chosen for each text in all, padding aside; `mask` may begin with what earlier passes have read."""
    return (shares * mask[:, -shares.shape[1] :, None]).sum(1)


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
