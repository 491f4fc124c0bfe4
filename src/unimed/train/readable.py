"""Batches of the samples that can be read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unimed.data.samples import Sample
from unimed.errors import InputError
from unimed.train.batch import Batch, Piece, picture

UNREADABLE = "unreadable"
"""The key of a batch under which each sample that it goes without is named, with the reason."""

Item = Sample | Sequence[Piece]
"""What a loader takes from its data set: a sample, or the pieces of a packed row."""


@dataclass(frozen=True)
class ReadableOnly:
    """A collator that leaves out what cannot be read; a batch without a single readable sample holds nothing else.

    It says so in the batch, because a loader may run in processes of its own and read ahead of the steps.
    """

    collator: Callable[[Sequence[Item]], Batch]

    def __call__(self, items: Sequence[Item]) -> Batch:
        """One batch. Raises InputError for a fault that no sample has on its own."""
        try:
            return self.collator(items)
        except InputError:
            reasons = [reason for item in items for sample in samples(item) if (reason := fault(sample))]
            if not reasons:
                raise
        kept = [left for item in items if (left := _readable(item))]
        return (self.collator(kept) if kept else {}) | {UNREADABLE: reasons}


def samples(item: Item) -> list[Sample]:
    """The samples in what a loader takes at a time."""
    return [item] if isinstance(item, Sample) else [piece.sample for piece in item]


def fault(sample: Sample) -> str:
    """Why a sample cannot be read, with its id and shard; empty for one that can."""
    try:
        picture(sample)
        for turn in sample.turns:
            _ = turn.targets
    except InputError as error:
        return f"{sample.sample_id} of {sample.place.shard} ({error})"
    return ""


def _readable(item: Item) -> Item | None:
    """The sample, or what is left of a row; None when nothing is."""
    if isinstance(item, Sample):
        return None if fault(item) else item
    return [piece for piece in item if not fault(piece.sample)] or None
