"""The prompts of stage 5 as the data set that TRL wants."""

from typing import Any

from datasets import Dataset

from unimed.rl import prompts
from unimed.train.batch import picture
from unimed.train.draws import Draws


class Prompts:
    """What TRL reads of samples, by their places in the order drawn."""

    def __init__(self, draws: Draws):
        self.draws = draws

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        """Prompts, images and samples of a batch; an image is read once for all siblings."""
        drawn = {place: self.draws[place] for place in dict.fromkeys(batch["place"])}
        seen = {place: [picture(sample)] for place, sample in drawn.items()}
        return {
            "prompt": [prompts.reasoning_messages(drawn[place], think=True) for place in batch["place"]],
            "images": [seen[place] for place in batch["place"]],
            "sample": [drawn[place] for place in batch["place"]],
        }

    def __getstate__(self) -> dict[str, int]:
        # `datasets` pickles this for a fingerprint that nobody asks for: every sample of the subset otherwise.
        return {"length": len(self.draws), "seed": self.draws.seed}


def dataset(draws: Draws) -> Dataset:
    """Prompts for TRL in the order drawn; images are read when a batch asks for them."""
    return Dataset.from_dict({"place": list(range(len(draws)))}).with_transform(Prompts(draws))
