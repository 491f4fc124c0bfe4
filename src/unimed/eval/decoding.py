"""Answers decoded together, greedily: every pass gives each its next word, and answers join and leave between passes.

What `generate` writes for a batch ends with its longest answer; here nobody waits for another's end, or for another's start.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from unimed.eval import predict
from unimed.model import router_use
from unimed.model.assemble import Assembled
from unimed.model.processor import Message
from unimed.model.router_use import RouterUse


@dataclass(eq=False)
class Row:
    """An answer in the making: its conversation, what the processor made of it, its tokens so far, what the routers chose for it.

    `mask_logits` holds one low-resolution map per `<SEG>` once it has ended.
    """

    conversation: list[Message]
    inputs: dict[str, Tensor]
    use: RouterUse
    ids: list[int] = field(default_factory=list)
    mask_logits: Tensor = field(default_factory=lambda: torch.empty(0))


class Decoding:
    """A batch of answers by one model; each ends with the tokenizer's end token or after `max_new_tokens`."""

    def __init__(self, made: Assembled, max_new_tokens: int):
        self.made, self.max_new_tokens = made, max_new_tokens
        self.rows: list[Row] = []
        # Without the configuration every layer keeps all it has seen, which is what lets rows of different lengths stand together.
        self._cache = DynamicCache()
        self._mask = torch.empty(0)
        self._forbidden = torch.tensor(made.model.generation_config.suppress_tokens, device=made.model.device)
        self._end = made.processor.tokenizer.eos_token_id

    @torch.no_grad()
    def advance(self, joining: Sequence[Row]) -> list[Row]:
        """One more word of every answer, the first of those that join; gives the answers that ended, which have left."""
        if self.rows:
            self._continue()
        if joining:
            self._join(joining)
        ended = [row for row in self.rows if row.ids[-1] == self._end or len(row.ids) == self.max_new_tokens]
        self.leave(ended)
        self._point(ended)
        return ended

    def leave(self, rows: Collection[Row]) -> None:
        """Go on without these answers."""
        kept = [number for number, row in enumerate(self.rows) if row not in rows]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[number] for number in kept]
        if not kept:
            self._cache, self._mask = DynamicCache(), torch.empty(0)
            return
        index = torch.tensor(kept, device=self._mask.device)
        first = int(self._mask[index].any(0).int().argmax())
        self._mask = self._mask[index, first:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index, :, first:], layer.values[index, :, first:]
        self._cache.expert_gates = {layer: gates[index] for layer, gates in _gates(self._cache).items()}

    def said(self, row: Row) -> str:
        """The words of an answer so far, without its end token."""
        return self.made.processor.tokenizer.decode(row.ids[:-1] if row.ids[-1:] == [self._end] else row.ids)

    def _continue(self) -> None:
        last = torch.tensor([row.ids[-1:] for row in self.rows], device=self._mask.device)
        self._mask = pad(self._mask, (0, 1), value=1)
        self._read(self.rows, {"input_ids": last, "attention_mask": self._mask}, self._cache)

    def _join(self, joining: Sequence[Row]) -> None:
        """Read the prompts and let their rows stand below those that are there, all ends of text in one column."""
        inputs, cache = self._together(joining), DynamicCache()
        self._read(joining, inputs, cache)
        self._cache, self._mask = _joined(self._cache, cache) if self.rows else cache, _stacked(self._mask, inputs["attention_mask"])
        self.rows += joining

    def _together(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The inputs of several rows as one batch: texts padded on the left, pictures with empty regions behind their own."""
        longest = max(row.inputs["input_ids"].shape[1] for row in rows)
        fill = {"input_ids": self.made.processor.tokenizer.pad_token_id, "attention_mask": 0}
        batch = {
            name: torch.cat([pad(row.inputs[name], (longest - row.inputs[name].shape[1], 0), value=value) for row in rows])
            for name, value in fill.items()
        }
        batch["pixel_values"] = _filled([row.inputs["pixel_values"] for row in rows])
        batch["image_sizes"] = torch.cat([row.inputs["image_sizes"] for row in rows])
        return {name: value.to(self.made.model.device) for name, value in batch.items()}

    def _read(self, rows: Sequence[Row], inputs: dict[str, Tensor], cache: DynamicCache) -> None:
        """One pass: the likeliest next token of each row, and what the routers chose for it, padding aside."""
        logits = self.made.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        words = logits.index_fill(1, self._forbidden, -torch.inf).argmax(-1).tolist()
        shares = router_use.taken_shares(self.made.model)
        chosen = {layer: router_use.of_texts(share, inputs["attention_mask"]) for layer, share in shares.items()}
        for number, (row, word) in enumerate(zip(rows, words, strict=True)):
            row.ids.append(word)
            for layer, share in chosen.items():
                row.use.add(layer, share[number])

    def _point(self, ended: Sequence[Row]) -> None:
        """The masks of answers that point."""
        if not ended:
            return
        pixels = _filled([row.inputs["pixel_values"] for row in ended]).to(self.made.model.device)
        sizes = torch.cat([row.inputs["image_sizes"] for row in ended])
        found = predict.mask_logits(self.made, [row.conversation for row in ended], [self.said(row) for row in ended], pixels, sizes)
        router_use.taken_shares(self.made.model)  # of a second reading, which is not to count
        for row, logits in zip(ended, found, strict=True):
            row.mask_logits = logits


def _gates(cache: DynamicCache) -> dict[int, Tensor]:
    """What routers on the sequence level remember of the prompts, by layer."""
    return getattr(cache, "expert_gates", {})


def _stacked(upper: Tensor, lower: Tensor) -> Tensor:
    """Two masks as one, the shorter filled up on the left."""
    width = max(upper.shape[-1], lower.shape[-1])
    return torch.cat([pad(mask, (width - mask.shape[-1], 0)) for mask in (upper, lower) if len(mask)])


def _joined(upper: DynamicCache, lower: DynamicCache) -> DynamicCache:
    """Two caches as one, the shorter filled up on the left with what the mask hides."""
    width = max(upper.get_seq_length(), lower.get_seq_length())
    for own, other in zip(upper.layers, lower.layers, strict=True):
        own.keys, own.values = (
            torch.cat([pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts])
            for parts in ((own.keys, other.keys), (own.values, other.values))
        )
    upper.expert_gates = {layer: torch.cat([gates, _gates(lower)[layer]]) for layer, gates in _gates(upper).items()}
    return upper


def _filled(pixels: Sequence[Tensor]) -> Tensor:
    """Pictures of one image each as one tensor, as deep as the deepest; what a picture lacks is zero."""
    shape = [max(sizes) for sizes in zip(*(own.shape[1:] for own in pixels), strict=True)]
    filled = pixels[0].new_zeros(len(pixels), *shape)
    for row, own in zip(filled, pixels, strict=True):
        row[tuple(map(slice, own.shape[1:]))] = own[0]
    return filled
