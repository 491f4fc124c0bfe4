"""Packed rows: samples one after the other in one sequence, and all that the model must know about where each of them lies."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unimed.model.canvas import Grid
from unimed.model.configuration import UniMedConfig
from unimed.model.views import Views


@dataclass(frozen=True)
class Packing:
    """Where the samples of one packed sequence lie. Every place is known before the pass, so that nothing waits for the GPU.

    The padding stands at the end and is a segment of its own, after the samples'.
    """

    samples: int
    tokens: int
    """Positions before the padding."""

    grids: tuple[Grid, ...]
    """The grid of tiles that each image is laid on."""

    extent: Int[Tensor, "2"]
    """Number of segments and the longest one's length; stays on the CPU."""

    bounds: Int[Tensor, " bound"]
    """Where segments begin, ascending; the last one's end is repeated, so that all batches have as many."""

    segment: Int[Tensor, " position"]
    """The segment that each position belongs to."""

    images: Int[Tensor, " slot"]
    """Positions of image tokens, in order."""

    regions: Int[Tensor, "3 region"]
    """For each region token its position, its image and its channel among the regions."""

    predicting: Int[Tensor, " row"]
    """Positions whose next token is labelled."""

    wanted: Int[Tensor, " row"]
    """Those next tokens."""

    pointing: Int[Tensor, "2 mask"]
    """For each `<SEG>` its position and which of `shown` it looks at."""

    shown: Int[Tensor, " shown"]
    """The images that some `<SEG>` looks at, each once."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Packing":
        """The same on a device, with `extent` left on the CPU."""
        return self._each(lambda name, value: value if name == "extent" else value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Packing":
        """The same in memory that a GPU reads without waiting."""
        return self._each(lambda name, value: value.pin_memory())

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> "Packing":
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if isinstance(getattr(self, field.name), Tensor)}
        return replace(self, **{name: change(name, value) for name, value in tensors.items()})

    @property
    def starts(self) -> Int[Tensor, "1 position"]:
        """For each position where its segment begins."""
        return self.bounds.long()[self.segment].unsqueeze(0)


def fill(
    embeds: Float[Tensor, "1 position width"],
    features: Float[Tensor, "view token width"],
    seen: Views,
    packing: Packing,
) -> Float[Tensor, "1 position width"]:
    """The embeddings with image and region placeholders filled in."""
    rows = embeds[0].index_copy(0, packing.images, features.flatten(0, 1).to(embeds.dtype))
    position, image, channel = packing.regions
    if len(position):
        rows = rows.index_copy(0, position, seen.regions(features, image, channel).to(embeds.dtype))
    return rows.unsqueeze(0)


def prompts(
    ids: Int[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], config: UniMedConfig, packing: Packing | None = None
) -> Bool[Tensor, "batch seq"]:
    """Which positions are text before the first answer: what a router on the sequence level may look at."""
    opening = torch.tensor(list(config.answer_opening), device=ids.device)
    prompt = mask & (ids != config.image_token_id)
    if not 0 < len(opening) <= ids.shape[1]:
        return prompt
    opens = (ids.unfold(1, len(opening), 1) == opening).all(-1)
    if packing is not None:
        opens &= packing.segment.unfold(0, len(opening), 1).diff().eq(0).all(-1)
    so_far = nn.functional.pad(opens.cumsum(1), (len(opening), 0))[:, : ids.shape[1]]
    return prompt & (so_far == (0 if packing is None else so_far.gather(1, packing.starts)))
