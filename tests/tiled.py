"""The model and processor of `tiny` on canvases: with tiles of 16 pixels for the ViT and 32 for the detail tower."""

from collections.abc import Sequence
from typing import Any

import tiny
import torch
from torch import Tensor

from unimed.model.canvas import Grid
from unimed.model.processor import UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration

CANVASES: list[Grid] = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
"""FILA's five, rows and columns of tiles."""

SHAPES: dict[Grid, tuple[int, int]] = {(1, 2): (15, 31), (2, 1): (40, 20), (2, 2): (40, 33), (3, 1): (60, 15), (1, 3): (16, 48)}
"""For each canvas the height and width of a picture that is laid on it."""


def processor(**changes: Any) -> UniMedProcessor:
    """A processor for `stirred` with the same changes."""
    words = tiny.processor().tokenizer
    return UniMedProcessor.of(tiny.config(words, **{"canvases": CANVASES} | changes), words)


def stirred(**changes: Any) -> UniMedForConditionalGeneration:
    """A model on canvases whose every parameter was moved at random."""
    return tiny.stirred(**{"canvases": CANVASES} | changes)


def inputs(pictures: Sequence[Any], *texts: str, **changes: Any) -> dict[str, Tensor]:
    """What the model reads, padded on the left."""
    return dict(processor(**changes)(images=pictures, text=list(texts), padding=True, return_tensors="pt"))


def rows(model: UniMedForConditionalGeneration, inputs: dict[str, Tensor], **more: Any) -> list[Tensor]:
    """Logits of every text's real tokens."""
    with torch.no_grad():
        logits = model(**inputs, **more).logits
    return [row[mask.bool()] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]
