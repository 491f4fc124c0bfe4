"""A batch in portions, of which each goes through the model on its own, and how much each counts in the whole."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from unimed.train.batch import IGNORED, Batch
from unimed.train.readable import Item

PORTIONS = "portions"
"""The key, and the only one, of a batch that does not go through the model at once."""


@dataclass(frozen=True)
class Portions:
    """The batches of a batch's portions. No mapping and no sequence: loaders would move those to the GPU whole."""

    batches: tuple[Batch, ...]

    def pin_memory(self) -> "Portions":
        """The same in memory that a GPU reads without waiting."""
        return Portions(tuple(pin_memory(batch) for batch in self.batches))


@dataclass(frozen=True)
class InPortions:
    """A collator that gives no more than `most` items as one batch; of more, the batches of as many each and of what is left."""

    collator: Callable[[Sequence[Item]], Batch]
    most: int

    def __call__(self, items: Sequence[Item]) -> Batch:
        """One batch, or one that holds its portions' under `PORTIONS`."""
        if len(items) <= self.most:
            return self.collator(items)
        starts = range(0, len(items), self.most)
        return {PORTIONS: Portions(tuple(self.collator(items[first : first + self.most]) for first in starts))}


def taken(batch: Batch) -> Sequence[Batch]:
    """The batches that go through the model one after the other."""
    return batch[PORTIONS].batches if PORTIONS in batch else [batch]


def placed(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device, with all that its packing holds; trainers move only what they know, tensors and lists of them."""
    return {name: send_to_device(value, device, non_blocking=device.type == "cuda") for name, value in batch.items()}


def counts(batch: Batch, level: str) -> dict[str, int]:
    """What each term of a batch's loss is a mean over; `level` is the routers', which decide by token or by sequence."""
    packing, masks = batch.get("packing"), len(batch.get("masks", ()))
    if packing is not None:
        words, sequences, positions = len(packing.wanted), packing.samples, packing.tokens
    else:
        words = int((batch["labels"][:, 1:] != IGNORED).sum())
        sequences, positions = len(batch["labels"]), int(batch["attention_mask"].sum())
    decisions = positions if level == "token" else sequences
    return {"words": words, "pixel": masks, "dice": masks, "balance": decisions, "z": decisions}


def shares(batches: Sequence[Batch], level: str) -> list[dict[str, float]]:
    """For each batch how much each of its terms counts in the mean over all; a mean over nothing at all is no number."""
    counted = [counts(batch, level) for batch in batches]
    totals = {name: sum(own[name] for own in counted) for name in counted[0]}
    return [{name: count / totals[name] if totals[name] else math.nan for name, count in own.items()} for own in counted]
