"""Which sample comes when: whole epochs, each in an order of its own."""

import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch.utils.data import Dataset

from unimed.data.samples import Sample
from unimed.errors import InputError


@runtime_checkable
class Epochs(Protocol):
    """Samples that can be arranged anew for every epoch."""

    def __len__(self) -> int: ...

    def at_epoch(self, epoch: int) -> Sequence[Sample]:
        """The samples of an epoch."""
        ...


class Draws(Dataset):
    """As many samples as a run takes: one epoch after the other, each whole and shuffled anew from the seed."""

    def __init__(self, epochs: Epochs, length: int, seed: int):
        if not len(epochs):
            raise InputError("expected at least one training sample, found none: the subset's train split is empty")
        self.epochs, self.length, self.seed = epochs, length, seed
        # Where each epoch so far begins, and the next one: epochs may differ in length.
        self.starts = [0]
        self.drawn: tuple[int, list[int], Sequence[Sample]] = (-1, [], ())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        while self.starts[-1] <= index:
            self.starts.append(self.starts[-1] + len(self._epoch(len(self.starts) - 1)[0]))
        epoch = bisect_right(self.starts, index) - 1
        order, samples = self._epoch(epoch)
        return samples[order[index - self.starts[epoch]]]

    def _epoch(self, epoch: int) -> tuple[list[int], Sequence[Sample]]:
        """The order of an epoch and its samples; the last one asked for is kept."""
        if self.drawn[0] != epoch:
            samples = self.epochs.at_epoch(epoch)
            self.drawn = (epoch, random.Random(f"{self.seed}/{epoch}").sample(range(len(samples)), len(samples)), samples)
        return self.drawn[1:]
