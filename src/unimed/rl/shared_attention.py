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
class Reach:
    """Which positions of a block of memory count; the same tensors in all layers, so that a step that moves them moves all."""

    first: Int[Tensor, " block_and_one"]
    """Where each block's begin, were all positions of all blocks in a row; last the end of them all."""

    used: Int[Tensor, " block"]
    """How many, from there on."""

    asking: Int[Tensor, " block_and_one"]
    """Where the queries of each block begin, every query head of a key head counted; last their number."""


def reach(room: int, used: Int[Tensor, " block"], rows: int) -> Reach:
    """The first positions of blocks that have room for so many, and so many rows of queries each."""
    ends = torch.arange(len(used) + 1, dtype=torch.int32, device=used.device)
    return Reach(first=ends * room, used=used.int(), asking=ends * rows)


@dataclass(frozen=True, eq=False)
class Memory:
    """What one layer has seen: every prompt once, and of every answer its own words, in room that was there before them.

    Stands where transformers' layers expect a cache.
    """

    prompt_keys: Float[Tensor, "group prompt head size"]
    prompt_values: Float[Tensor, "group prompt head size"]
    own_keys: Float[Tensor, "answer room head size"]
    own_values: Float[Tensor, "answer room head size"]
    prompt: Reach
    own: Reach
    place: Int[Tensor, "1"]
    """Where the newest word lies in the room; the same tensor in all layers."""

    expert_gates: dict[int, Float[Tensor, "answer 1 rank"]]
    """What a router on the sequence level made of the prompt."""

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Put the newest word into its place; gives the answers' own keys and values."""
        written = (room.index_copy_(1, self.place, new.transpose(1, 2)) for room, new in ((self.own_keys, keys), (self.own_values, values)))
        return next(written), next(written)

    def get_seq_length(self, layer: int) -> int:
        """More than nothing, for routers that ask whether the prompt has been read."""
        return self.prompt_keys.shape[1]


def attend(
    module: nn.Module,
    query: Float[Tensor, "answer head 1 size"],
    key: Float[Tensor, "answer room kv_head size"],
    value: Float[Tensor, "answer room kv_head size"],
    attention_mask: None,
    scaling: float,
    siblings: Memory,
    **kwargs: Any,
) -> tuple[Float[Tensor, "answer 1 head size"], None]:
    """Attention of each answer's newest word to its group's prompt and to its own words, under one softmax.

    A group's answers, and the query heads of a key head, are rows that look at the same keys. The two parts are joined by what their
    softmaxes have to be divided by, in float32.
    """
    heads = key.shape[2]
    rows = query.reshape(len(query), heads, -1, query.shape[-1]).transpose(1, 2)
    asked = rows.flatten(0, 1)
    shown, shown_sum = looked_up(asked, siblings.prompt_keys, siblings.prompt_values, *_parts(siblings.prompt), scaling)
    said, said_sum = looked_up(asked, key, value, *_parts(siblings.own), scaling)
    share = (shown_sum - said_sum).sigmoid().T.unsqueeze(-1)
    found = torch.lerp(said.float(), shown.float(), share).to(query.dtype)
    return found.view(rows.shape).transpose(1, 2).reshape(len(query), 1, -1, query.shape[-1]), None


def _parts(reach: Reach) -> tuple[Tensor, Tensor, Tensor]:
    return reach.first, reach.used, reach.asking


AttentionInterface.register(NAME, attend)


# An operator of its own, because the kernel wants places as integers that compiled layers would be compiled anew for.
@torch.library.custom_op("unimed::looked_up", mutates_args=(), device_types="cuda")
def looked_up(
    query: Tensor, keys: Tensor, values: Tensor, first: Tensor, used: Tensor, asking: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """FlashAttention of equally many rows to every block: states, and by head the log of the sum that softmax divides by.

    `query` is row by head by size, keys and values are block by position by head by size, the rest a `Reach`. No block is empty.
    """
    rows = len(query) // len(keys)
    places = (asking, first, rows, keys.shape[1], 0.0, False, False)
    found = torch.ops.aten._flash_attention_forward(query, keys.flatten(0, 1), values.flatten(0, 1), *places, scale=scaling, seqused_k=used)
    return found[0], found[1]


@looked_up.register_kernel("cpu")
def _(query: Tensor, keys: Tensor, values: Tensor, first: Tensor, used: Tensor, asking: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    blocks, room = keys.shape[:2]
    place = torch.arange(blocks * room).view(blocks, room)
    counts = (place >= first[:-1, None]) & (place < (first[:-1] + used)[:, None])
    scores = torch.einsum("brhs,bphs->bhrp", query.unflatten(0, (blocks, -1)), keys).float() * scaling
    scores = scores.masked_fill(~counts[:, None, None], -torch.inf)
    states = torch.einsum("bhrp,bphs->brhs", scores.softmax(-1).to(values.dtype), values)
    return states.flatten(0, 1), scores.logsumexp(-1).transpose(0, 1).flatten(1).contiguous()


@looked_up.register_fake
def _(query: Tensor, keys: Tensor, values: Tensor, first: Tensor, used: Tensor, asking: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query, memory_format=torch.contiguous_format), query.new_empty(query.shape[1::-1], dtype=torch.float32)
