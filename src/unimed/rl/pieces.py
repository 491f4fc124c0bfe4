"""A batch of answers in pieces of whole groups, which fit into memory one after the other, and the figures of the whole from theirs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

Answers = dict[str, Any]
"""What TRL made of a rollout: tensors and lists with a row for each answer, and numbers about all of them."""

GROUP = "group"
"""The number of each answer's prompt, by which siblings find together again when TRL has shuffled them."""

OF_PROMPTS = ("prompt_ids", "prompt_mask")
OF_WORDS = ("completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps")


def numbered(answers: Answers, siblings: int) -> Answers:
    """The answers, which stand prompt by prompt, with the numbers of their groups."""
    mask = answers["completion_mask"]
    return answers | {GROUP: torch.arange(len(mask), device=mask.device) // siblings}


def cut(answers: Answers, rows: int) -> list[Answers]:
    """The answers, group by group, `rows` of them in each piece and in the last what is left."""
    return [narrowed(_taken(answers, own)) for own in answers[GROUP].argsort(stable=True).split(rows)]


def _taken(answers: Answers, rows: Int[Tensor, " row"]) -> Answers:
    numbers = rows.tolist()
    lists = {name: [value[number] for number in numbers] for name, value in answers.items() if isinstance(value, list)}
    return answers | lists | {name: value[rows] for name, value in answers.items() if isinstance(value, Tensor) and value.ndim}


def narrowed(answers: Answers) -> Answers:
    """The answers without the columns that hold nothing but padding: before all of their prompts and behind all of their words."""
    prompt, words = (int(answers[name].sum(1).max()) for name in ("prompt_mask", "completion_mask"))
    before = {name: answers[name][:, -prompt:] for name in OF_PROMPTS}
    return answers | before | {name: answers[name][:, :words] for name in OF_WORDS if name in answers}


def whole(metrics: Mapping[str, Sequence[float]], words: Int[Tensor, " piece"]) -> dict[str, float]:
    """TRL's figures of a whole batch from those of its pieces, which have so many words: their extremes, or their means per word."""
    shares = (words / words.sum()).tolist()

    def of(name: str, values: Sequence[float]) -> float:
        if name.endswith(("_min", "_max")):
            return min(values) if name.endswith("_min") else max(values)
        return sum(share * value for share, value in zip(shares, values, strict=True))

    return {name: of(name, values) for name, values in metrics.items()}
