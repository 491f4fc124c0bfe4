"""Samples as training batches: conversations through the chat template, labels on the answers, target masks per `<SEG>`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unimed.data.samples import Sample
from unimed.errors import InputError
from unimed.model.processor import IMAGE, Message, Picture, Size, UniMedProcessor

IGNORED = -100
Batch = dict[str, Any]
Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Piece:
    """A sample as a part of a packed row."""

    sample: Sample
    ids: Int[np.ndarray, " token"]
    labels: Int[np.ndarray, " token"]


def messages(sample: Sample) -> list[Message]:
    """A sample as a conversation that starts with its image."""
    said: list[Message] = []
    for number, turn in enumerate(sample.turns):
        image = [{"type": "image"}] if number == 0 else []
        said.append({"role": "user", "content": [*image, {"type": "text", "text": turn.question}]})
        said.append({"role": "assistant", "content": turn.answer})
    return said


def picture(sample: Sample) -> Picture:
    """A sample's image with all regions that its questions mark, in order."""
    return Picture(sample.load_image(), tuple(mask for turn in sample.turns for mask in turn.regions))


def rendered(processor: UniMedProcessor, conversation: Sequence[Message]) -> tuple[str, Spans]:
    """A conversation as text, and where in it each answer lies, end-of-turn included, as character positions.

    The template is asked, not parsed: an answer is what the text grows by when its turn is added. Raises InputError for a
    template that rewrites earlier turns.
    """
    if not conversation:
        raise InputError("expected a conversation of at least one message, found an empty one")
    said, size = list(conversation), len(conversation)
    befores = [processor.apply_chat_template(said[:end], add_generation_prompt=True) for end in range(1, size, 2)]
    afters = [processor.apply_chat_template(said[:end]) for end in sorted({*range(2, size + 1, 2), size})]
    spans = list(zip(befores, afters, strict=False))
    if not all(afters[-1].startswith(after) and after.startswith(before) for before, after in spans):
        raise InputError("expected a chat template that only appends, found one that rewrites earlier turns")
    return afters[-1], [(len(before), len(after)) for before, after in spans]


def labelled(processor: UniMedProcessor, conversations: Sequence[Sequence[Message]], sizes: Sequence[Sequence[Size]]) -> Batch:
    """`input_ids`, `attention_mask` and `labels`: the ids again where a token lies within an answer, IGNORED elsewhere.

    `sizes` holds height and width of each conversation's images. Raises InputError for a template after which the first token of
    an answer would hold more than the answer.
    """
    found = [rendered(processor, conversation) for conversation in conversations]
    expanded = [processor.expand(text, own) for (text, _), own in zip(found, sizes, strict=True)]
    encoded = processor.tokenizer(expanded, padding=True, return_offsets_mapping=True, add_special_tokens=False)
    # Through numpy, because the tokenizer's own way to tensors takes every pair of offsets apart in Python.
    ids, mask, offsets = (np.array(encoded[name], dtype=np.int64) for name in ("input_ids", "attention_mask", "offset_mapping"))
    answer = [_answered(processor, *said, own, row) for said, own, row in zip(found, sizes, offsets, strict=True)]
    labels = np.where(np.stack(answer) & mask.astype(bool), ids, IGNORED)
    return {name: torch.from_numpy(made) for name, made in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))}


def _answered(
    processor: UniMedProcessor, text: str, spans: Spans, sizes: Sequence[Size], offsets: Int[np.ndarray, "seq 2"]
) -> Bool[np.ndarray, " seq"]:
    """Which tokens lie within an answer, from their places in the text after its images were expanded."""
    befores = [text[:start] for start, _ in spans]
    shifts = [len(processor.expand(before, sizes[: before.count(IMAGE)])) - len(before) for before in befores]
    starts, ends = np.hsplit(np.reshape(spans, (-1, 2)) + np.reshape(shifts, (-1, 1)), 2)
    first, last = offsets.T
    if ((first < starts) & (last > starts)).any():
        raise InputError("expected a chat template whose answers begin with a token of their own, found one that joins them on")
    return ((first >= starts) & (last <= ends)).any(0)


class Collator:
    """Batches of samples: model inputs, `labels` on answer tokens only and `masks`, one target per `<SEG>`.

    `masks` holds coverage in [0, 1] in the model's square frame; it is absent when no sample has a target.
    """

    def __init__(self, processor: UniMedProcessor, text: Callable[[Sample], list[Message]] = messages):
        self.processor, self.text = processor, text

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """One batch; its image rows are in the samples' order."""
        return labelled(
            self.processor, [self.text(sample) for sample in samples], [[(sample.height, sample.width)] for sample in samples]
        ) | self.seen(samples)

    def piece(self, sample: Sample) -> Piece:
        """A sample's ids and labels; nothing is unpacked yet."""
        made = labelled(self.processor, [self.text(sample)], [[(sample.height, sample.width)]])
        return Piece(sample, made["input_ids"][0].numpy(), made["labels"][0].numpy())

    def seen(self, samples: Sequence[Sample]) -> Batch:
        """`pixel_values` of the samples' images with their `image_sizes` and, where there are targets, their `masks`."""
        pictures = [picture(sample) for sample in samples]
        pixels = {"pixel_values": self.processor.pixels(pictures), "image_sizes": torch.tensor([item.size for item in pictures])}
        targets = [self.processor.target(mask) for sample in samples for turn in sample.turns for mask in turn.targets]
        return pixels | ({"masks": torch.stack(targets)} if targets else {})


def blanked(batch: Batch) -> Batch:
    """The batch with its images black and its regions kept."""
    pixels: Float[Tensor, "image *view channel size size"] = batch["pixel_values"].clone()
    pixels[..., :3, :, :] = 0
    return batch | {"pixel_values": pixels}
