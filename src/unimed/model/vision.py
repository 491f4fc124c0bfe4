"""FILA's hybrid encoder: a frozen ViT that takes in detail from a frozen ConvNeXt after chosen blocks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers import CLIPVisionModel, ConvNextModel

from unimed.model.canvas import NO_TILES, Grid, cut, join, squares
from unimed.model.configuration import UniMedConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Normalise(nn.Module):
    """RGB in [0, 1] as a tower was trained to see it: mean 0 and deviation 1 per channel over its own training images."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, image: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height width"]:
        """The image in the tower's units."""
        return (image - self.mean) / self.std


class Fusion(nn.Module):
    """Adds to each ViT token what the detail map shows in its place: tokens + tanh(gate) * mlp(norm(tokens, detail)).

    CVFM of FILA (Wang et al. 2024, arXiv:2412.08378) with three choices of ours: the norm lies inside the branch, the gate is
    one number per channel, and it starts at 0, so that a fresh fusion changes nothing, to the last bit.
    """

    def __init__(self, width: int, detail_width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width + detail_width)
        self.fc1 = nn.Linear(width + detail_width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.gate = nn.Parameter(torch.zeros(width))

    def forward(
        self, tokens: Float[Tensor, "image token width"], detail: Float[Tensor, "image channel rows columns"]
    ) -> Float[Tensor, "image token width"]:
        """Fuse a map of any whole multiple of the patch grid; the class token meets the map's mean."""
        side = int((tokens.shape[1] - 1) ** 0.5)
        cells = adaptive_avg_pool2d(detail, side).flatten(2).transpose(1, 2)
        both = torch.cat([tokens, torch.cat([cells.mean(1, keepdim=True), cells], 1)], -1)
        return tokens + self.gate.tanh() * self.fc2(nn.functional.gelu(self.fc1(self.norm(both))))


class HybridEncoder(nn.Module):
    """A CLIP ViT and a ConvNeXt that look at the same pixels, the ViT at a smaller copy, joined by fusions.

    Of an image with tiles the ConvNeXt sees the canvas in one piece and the ViT tile by tile. A tile is fused with its own window
    of the canvas's maps, so that what lies across a border is known on both sides of it.
    """

    def __init__(self, config: UniMedConfig):
        super().__init__()
        vision, detail, blocks = config.vision_config, config.detail_config, list(config.fusion_blocks)
        self.last_block = vision.num_hidden_layers + 1 + config.vision_feature_layer
        if len(blocks) != len(detail.hidden_sizes) or blocks != sorted({*blocks} & {*range(1, self.last_block + 1)}):
            expected = f"{len(detail.hidden_sizes)} ViT blocks, one per detail stage, ascending, in 1..{self.last_block}"
            raise ValueError(f"fusion_blocks must name {expected}, is {blocks}")
        first = {"all": 0, "last": len(blocks) - 1, "none": len(blocks)}[config.fused_stages]
        self.vision = CLIPVisionModel(vision)
        self.detail = ConvNextModel(detail)
        self.vision_normalise = Normalise(CLIP_MEAN, CLIP_STD)
        self.detail_normalise = Normalise(tuple(config.detail_image_mean), tuple(config.detail_image_std))
        self.fusions = nn.ModuleList(Fusion(vision.hidden_size, width, config.fusion_hidden_size) for width in detail.hidden_sizes[first:])
        self.fusion_blocks = tuple(blocks[first:])
        self.image_size, self.tile_detail = vision.image_size, config.tile_detail

    def forward(
        self,
        image: Float[Tensor, "image 3 size size"],
        tiles: Float[Tensor, "image tile 3 size size"] | None = None,
        grids: Sequence[Grid] = (),
    ) -> Float[Tensor, "view patch width"]:
        """Patch features of the configured ViT layer, detail included: image by image, the square view and then its tiles.

        Pixels hold RGB in [0, 1]. Of `tiles` only the first rows x columns of an image's grid are looked at. Frozen towers are
        frozen by requires_grad alone: gradients must flow through the blocks after the first fusion.
        """
        shown, maps, places = [image], [self._fused_maps(image)], [[slice(number, number + 1)] for number in range(len(image))]
        seen = len(image)
        for grid in sorted({*grids} - {NO_TILES}) if tiles is not None else ():
            of_grid = [number for number, laid in enumerate(grids) if laid == grid]
            own = torch.cat([tiles[number, : squares(grid) - 1] for number in of_grid])
            shown.append(own)
            maps.append([self._of_tiles(whole, grid) for whole in self._fused_maps(join(own, grid))])
            for number in of_grid:
                places[number].append(slice(seen, seen := seen + squares(grid) - 1))
        features = self._seen(torch.cat(shown), [torch.cat(stage) for stage in zip(*maps, strict=True)])
        # Cut and joined: numbers to pick by would have to go to the GPU first, and it would be waited for.
        return features if seen == len(image) else torch.cat([features[place] for own in places for place in own])

    def _seen(
        self, squares: Float[Tensor, "view 3 size size"], maps: list[Float[Tensor, "view _channel _rows _columns"]]
    ) -> Float[Tensor, "view patch width"]:
        """What the ViT makes of squares and the maps that are fused in, one per fusion."""
        tokens = self._embed(squares)
        for number, block in enumerate(self.vision.encoder.layers[: self.last_block], 1):
            tokens = block(tokens, attention_mask=None)
            if number in self.fusion_blocks:
                fusion = self.fusion_blocks.index(number)
                tokens = self.fusions[fusion](tokens, maps[fusion])
        return tokens[:, 1:]

    def _fused_maps(self, image: Float[Tensor, "image 3 height width"]) -> list[Float[Tensor, "image _channel _rows _columns"]]:
        """The detail maps that a fusion reads; the tower does not run when there is no fusion."""
        return self.detail_maps(image)[-len(self.fusions) :] if self.fusions else []

    def _of_tiles(self, whole: Float[Tensor, "image channel height width"], grid: Grid) -> Float[Tensor, "tile channel rows columns"]:
        """What each tile is fused with: its window of the canvas's map or, as an ablation, all of the map at the window's size."""
        windows = cut(whole, grid)
        if self.tile_detail == "slice":
            return windows
        return adaptive_avg_pool2d(whole, windows.shape[-2:]).repeat_interleave(squares(grid) - 1, 0)

    def plain_tokens(self, image: Float[Tensor, "image 3 size size"]) -> Float[Tensor, "image token width"]:
        """What the ViT alone makes of the image: all tokens of the configured layer, nothing fused in."""
        tokens = self._embed(image)
        for block in self.vision.encoder.layers[: self.last_block]:
            tokens = block(tokens, attention_mask=None)
        return tokens

    def _embed(self, image: Float[Tensor, "image 3 size size"]) -> Float[Tensor, "image token width"]:
        small = self.vision_normalise(adaptive_avg_pool2d(image, self.image_size))
        return self.vision.pre_layrnorm(self.vision.embeddings(small))

    def detail_maps(self, image: Float[Tensor, "image 3 height width"]) -> list[Float[Tensor, "image _channel _rows _columns"]]:
        """The detail tower's map after each of its stages, from fine to coarse."""
        maps, features = [], self.detail.embeddings(self.detail_normalise(image))
        for stage in self.detail.encoder.stages:
            features = stage(features)
            maps.append(features)
        return maps


class Projector(nn.Module):
    """Two linear layers that write image features as vectors the language model can read (LLaVA-1.5, arXiv:2310.03744).

    With `shuffle` above 1, squares of as many patches a side become one vector, their features one after the other in reading
    order (InternVL 1.5, arXiv:2404.16821).
    """

    def __init__(self, width: int, out_width: int, shuffle: int = 1):
        super().__init__()
        self.shuffle = shuffle
        self.fc1 = nn.Linear(width * shuffle**2, out_width)
        self.fc2 = nn.Linear(out_width, out_width)

    def forward(self, features: Float[Tensor, "view patch width"]) -> Float[Tensor, "view token out_width"]:
        """The features in the language model's width."""
        return self.fc2(nn.functional.gelu(self.fc1(self._shuffled(features))))

    def _shuffled(self, features: Float[Tensor, "view patch width"]) -> Float[Tensor, "view token wider"]:
        if self.shuffle == 1:
            return features
        rows = int(features.shape[1] ** 0.5) // self.shuffle
        split = features.unflatten(1, (rows, self.shuffle, rows, self.shuffle))
        return split.transpose(2, 3).flatten(3).flatten(1, 2)
