"""What a layer remembers while several answers to each prompt are written, the prompt once for all of them, and attention to it."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "siblings"
"""What transformers' attention interface calls it."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Where in the memory every prompt lies, and after them every answer; the same tensors in all layers, so that a step moves all.

    Each block is looked at by rows of its own: a prompt by all query heads of a key head of all its answers, an answer by its own.
    """

    first: Int[Tensor, " block_and_one"]
    """The first position of each, and a last one that means nothing."""

    used: Int[Tensor, " block"]
    """How many positions from there on count."""

    asking: Int[Tensor, " block_and_one"]
    """The first row of each, and the number of rows."""

    widest: int
    """Rows of a prompt, which are the most."""

    newest: Int[Tensor, " answer"]
    """The position of each answer's newest word."""


def blocks(mask: Int[Tensor, "prompt position"], siblings: int, room: int, heads: int) -> Blocks:
    """Prompts with padding on the left, `siblings` answers to each with room for so many words, `heads` query heads to a key head."""
    prompts, length = mask.shape
    answers, device = prompts * siblings, mask.device
    first = torch.cat([torch.arange(prompts) * length, prompts * length + torch.arange(answers + 1) * room]).to(device)
    first[:prompts] += length - mask.sum(1)
    rows = [siblings * heads] * prompts + [heads] * answers
    asking = torch.tensor([0, *rows], device=device).cumsum(0)
    used = torch.cat([mask.sum(1), mask.new_zeros(answers)])
    return Blocks(first.int(), used.int(), asking.int(), siblings * heads, first[prompts:-1].clone())


@dataclass(frozen=True, eq=False)
class Memory:
    """What one layer has seen: every prompt once, and of every answer its own words, in room that was there before them.

    Stands where transformers' layers expect a cache.
    """

    keys: Float[Tensor, "position head size"]
    values: Float[Tensor, "position head size"]
    blocks: Blocks
    expert_gates: dict[int, Float[Tensor, "answer 1 rank"]]
    """What a router on the sequence level made of the prompt."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Put the newest words into their places; gives all that is there."""
        places = self.blocks.newest
        return self.keys.index_copy_(0, places, keys.squeeze(2)), self.values.index_copy_(0, places, values.squeeze(2))

    def get_seq_length(self, layer: int) -> int:
        """More than nothing, for routers that ask whether the prompt has been read."""
        return len(self.keys)


def attend(
    module: nn.Module,
    query: Float[Tensor, "answer head 1 size"],
    key: Float[Tensor, "position kv_head size"],
    value: Float[Tensor, "position kv_head size"],
    attention_mask: None,
    scaling: float,
    siblings: Memory,
    **kwargs: Any,
) -> tuple[Float[Tensor, "answer 1 head size"], None]:
    """Attention of each answer's newest word to its group's prompt and to its own words, under one softmax.

    Both are looked at in one go, and joined by what their softmaxes have to be divided by, in float32.
    """
    rows = query.reshape(len(query), key.shape[1], -1, query.shape[-1]).transpose(1, 2).flatten(0, 1)
    at = siblings.blocks
    found, sums = looked_up(torch.cat([rows, rows]), key, value, at.first, at.used, at.asking, at.widest, scaling)
    (shown, said), (shown_sum, said_sum) = found.float().chunk(2), sums.chunk(2, 1)
    joined = torch.lerp(said, shown, (shown_sum - said_sum).sigmoid().T.unsqueeze(-1)).to(query.dtype)
    return joined.unflatten(0, (len(query), -1)).transpose(1, 2).reshape(len(query), 1, -1, query.shape[-1]), None


AttentionInterface.register(NAME, attend)


# An operator of its own, because the kernel wants the number of positions as an integer that layers would be compiled anew for.
@torch.library.custom_op("unimed::looked_up", mutates_args=(), device_types="cuda")
def looked_up(
    query: Tensor, keys: Tensor, values: Tensor, first: Tensor, used: Tensor, asking: Tensor, widest: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """FlashAttention of rows to the blocks they ask: states, row by head by size, and the log of softmax's sum, head by row.

    `query` is row by head by size, keys and values are position by head by size, the rest is as in `Blocks`. No block is empty.
    """
    places = (asking, first, widest, len(keys), 0.0, False, False)
    found = torch.ops.aten._flash_attention_forward(query, keys, values, *places, scale=scaling, seqused_k=used)
    return found[0], found[1]


@looked_up.register_kernel("cpu")
def _(
    query: Tensor, keys: Tensor, values: Tensor, first: Tensor, used: Tensor, asking: Tensor, widest: int, scaling: float
) -> tuple[Tensor, Tensor]:
    place, block = torch.arange(len(keys)), torch.bucketize(torch.arange(len(query)), asking[1:], right=True)
    counts = (place >= first[:-1, None]) & (place < (first[:-1] + used)[:, None])
    scores = torch.einsum("rhs,phs->hrp", query, keys).float().mul(scaling).masked_fill(~counts[block], -torch.inf)
    return torch.einsum("hrp,phs->rhs", scores.softmax(-1).to(values.dtype), values).contiguous(), scores.logsumexp(-1)


@looked_up.register_fake
def _(
    query: Tensor, keys: Tensor, values: Tensor, first: Tensor, used: Tensor, asking: Tensor, widest: int, scaling: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query, memory_format=torch.contiguous_format), query.new_empty(query.shape[1::-1], dtype=torch.float32)
