"""What `pixel_values` and `image_sizes` say about the images of a batch: squares, tiles, regions, and how many tokens each takes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unimed.model import region
from unimed.model.canvas import NO_TILES, Grid, squares
from unimed.model.configuration import UniMedConfig


@dataclass(frozen=True)
class Views:
    """The views of a batch's images: the whole image in a square first, then the tiles of its canvas in reading order.

    Colours come first among the channels, then one mask per region; channels of zeros and views beyond an image's own are padding.
    """

    pixels: Float[Tensor, "image view channel size size"]
    grids: tuple[Grid, ...]
    tokens_per_view: int

    @property
    def square(self) -> Float[Tensor, "image 3 size size"]:
        """The whole image in the middle of a square, which is also the frame of all masks."""
        return self.pixels[:, 0, :3]

    @property
    def tiles(self) -> Float[Tensor, "image tile 3 size size"]:
        """The tiles of every image's canvas and the padding behind them."""
        return self.pixels[:, 1:, :3]

    @property
    def tokens(self) -> list[int]:
        """Language model positions that each image takes."""
        return [self.tokens_per_view * squares(grid) for grid in self.grids]

    @property
    def marked(self) -> tuple[Int[Tensor, " region"], Int[Tensor, " region"]]:
        """Image and channel of each region, image by image; the GPU is waited for."""
        image, channel = self.pixels[:, :, 3:].transpose(1, 2).flatten(2).any(-1).nonzero(as_tuple=True)
        return image, channel

    def regions(
        self, features: Float[Tensor, "view token width"], image: Int[Tensor, " region"], channel: Int[Tensor, " region"]
    ) -> Float[Tensor, "region width"]:
        """One vector for each region: the mean of its tokens, of the canvas's tiles where there are any.

        In the tiles the image is larger than in the square, so a small region has tokens of its own there. `features` holds the
        real views' tokens alone, in the images' order; a region is told by its image and its channel behind the colours.
        """
        masks = self.pixels[:, :, 3:].transpose(1, 2)
        own = pad_sequence(list(features.split([squares(grid) for grid in self.grids])), batch_first=True)
        finest = slice(1 if self.pixels.shape[1] > 1 else 0, own.shape[1])
        return region.pool(own[image, finest].flatten(1, 2), masks[image, channel, finest])

    def of_texts(self, image_tokens: Bool[Tensor, "batch seq"]) -> list[int]:
        """How many of the images stand in each text."""
        last = ends(self.tokens, image_tokens.device)
        return torch.searchsorted(last, image_tokens.sum(1).cumsum(0), right=True).diff(prepend=last.new_zeros(1)).tolist()


def read(config: UniMedConfig, pixel_values: Tensor, image_sizes: Int[Tensor, "image 2"] | None) -> Views:
    """The views that `pixel_values` holds; ValueError when it, or `image_sizes`, is not what a model of this configuration reads."""
    if not config.canvases:
        return laid(config, pixel_values, [NO_TILES] * len(pixel_values))
    if image_sizes is None or len(image_sizes) != len(pixel_values):
        found = "none" if image_sizes is None else len(image_sizes)
        raise ValueError(f"expected image_sizes for {len(pixel_values)} images on canvases, found {found}")
    grids = config.grids(image_sizes.tolist())
    if pixel_values.dim() != 5 or pixel_values.shape[1] < max(map(squares, grids)):
        raise ValueError(f"expected {max(map(squares, grids))} views of every image or more, found pixels of {tuple(pixel_values.shape)}")
    return laid(config, pixel_values, grids)


def laid(config: UniMedConfig, pixel_values: Float[Tensor, "image *view channel size size"], grids: Sequence[Grid]) -> Views:
    """The views that `pixel_values` holds of images on these grids."""
    pixels = pixel_values if config.canvases else pixel_values.unsqueeze(1)
    return Views(pixels, tuple(grids), config.tokens_per_view)


def copied(images: Mapping[str, Tensor], of_texts: Sequence[int], times: int) -> dict[str, Tensor]:
    """Tensors with a row per image for texts that are repeated one by one: each text's images `times` over, then the next text's."""
    own = {name: tensor.split(list(of_texts)) for name, tensor in images.items()}
    return {name: torch.cat([part.tile(times, *[1] * (part.dim() - 1)) for part in parts]) for name, parts in own.items()}


def ends(tokens: Iterable[int], device: torch.device) -> Int[Tensor, " image"]:
    """How many image tokens of a batch have come when each image is over."""
    return torch.tensor(list(tokens), dtype=torch.long, device=device).cumsum(0)
