"""Several tasks in one run, each with its share."""

import random
from collections.abc import Sequence

from unimed.data.samples import Sample, Samples


class Mixture:
    """Epochs of one task with others mixed in: all of `main`, and of each other task what makes its share of the whole.

    Every epoch is drawn anew from the seed, and turns about the same image are joined anew. A task without samples takes no share.
    """

    def __init__(self, main: Sequence[Sample], others: Sequence[tuple[Sequence[Sample], float]], seed: int):
        self.main, self.seed = main, seed
        present = [(samples, share) for samples, share in others if len(samples)]
        rest = 1 - sum(share for _, share in present)
        self.others = [(samples, round(len(main) * share / rest)) for samples, share in present]
        self.drawn: tuple[int, list[Sample]] = (-1, [])

    def __len__(self) -> int:
        return len(self.main) + sum(count for _, count in self.others)

    def at_epoch(self, epoch: int) -> list[Sample]:
        """The samples of an epoch in the order they are seen."""
        if self.drawn[0] != epoch:
            rng = random.Random(f"{self.seed}/{epoch}")
            chosen = [sample for samples, count in self.others for sample in rng.choices(_joined(samples, epoch), k=count)]
            order = [*_joined(self.main, epoch), *chosen]
            rng.shuffle(order)
            self.drawn = (epoch, order)
        return self.drawn[1]


def _joined(samples: Sequence[Sample], epoch: int) -> Sequence[Sample]:
    return samples.at_epoch(epoch) if isinstance(samples, Samples) else samples
