"""What a layer remembers while several answers to each prompt are written, the prompt once for all of them, and attention to it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "siblings"
"""What transformers' attention interface calls it."""


@dataclass(eq=False)
class Memory:
    """What one layer has seen: every prompt once, and of every answer its own words, in room that was there before them.

    Stands where transformers' layers expect a cache.
    """

    prompt_keys: Float[Tensor, "group head prompt size"]
    prompt_values: Float[Tensor, "group head prompt size"]
    own_keys: Float[Tensor, "answer head room size"]
    own_values: Float[Tensor, "answer head room size"]
    place: Int[Tensor, "1"]
    """Where the newest word lies in the room; the same tensor in all layers."""

    expert_gates: dict[int, Float[Tensor, "answer 1 rank"]]
    """What a router on the sequence level made of the prompt."""

    keys: Tensor = field(init=False)
    values: Tensor = field(init=False)

    def widen(self, window: int) -> None:
        """Read no further than this from now on."""
        self.keys, self.values = self.own_keys[:, :, :window], self.own_values[:, :, :window]

    def read(self) -> tuple[Tensor, ...]:
        """All that a step reads, each with its positions in dimension 2."""
        return self.prompt_keys, self.prompt_values, self.keys, self.values

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Put the newest word into its place; gives the answers' own keys and values."""
        return self.keys.index_copy_(2, self.place, keys), self.values.index_copy_(2, self.place, values)

    def get_seq_length(self, layer: int) -> int:
        """More than nothing, for routers that ask whether the prompt has been read."""
        return self.prompt_keys.shape[2]


def attend(
    module: nn.Module,
    query: Float[Tensor, "answer head 1 size"],
    key: Float[Tensor, "answer kv_head window size"],
    value: Float[Tensor, "answer kv_head window size"],
    attention_mask: Float[Tensor, "answer 1 1 prompt_and_window"],
    scaling: float,
    siblings: Memory,
    **kwargs: Any,
) -> tuple[Float[Tensor, "answer 1 head size"], None]:
    """Attention of each answer's newest word to its group's prompt and to its own words, under one softmax.

    The prompt part is one product for a group: the queries of all its answers are rows against the same keys. That one softmax over
    both parts' scores is what merging two softmaxes by their log-sum-exp comes to.
    """
    groups, heads, prompt, size = siblings.prompt_keys.shape
    answers, window = len(query), key.shape[2]
    # group, key head, answer of the group, query head of the key head
    rows = query.reshape(groups, answers // groups, heads, -1, size).transpose(1, 2)
    asked = (rows.flatten(2, 3) @ siblings.prompt_keys.mT).view(*rows.shape[:4], prompt).transpose(1, 2)
    said = query.view(answers, heads, -1, size) @ key.mT
    scores = torch.cat([asked.reshape(*said.shape[:3], prompt), said], -1).float() * scaling + attention_mask
    shares = scores.softmax(-1).to(query.dtype)
    to_prompt, to_own = shares.split([prompt, window], -1)
    of_group = to_prompt.view(groups, -1, *to_prompt.shape[1:]).transpose(1, 2)
    found = (of_group.flatten(2, 3) @ siblings.prompt_values).view(*of_group.shape[:4], size).transpose(1, 2)
    return (found.reshape(answers, 1, -1, size) + (to_own @ value).view(answers, 1, -1, size)), None


AttentionInterface.register(NAME, attend)
