"""SAM's prompt encoder and mask decoder: prompt tokens look at image features and become one mask each.

Kirillov et al. 2023, arXiv:2304.02643, appendix A. Names of modules and parameters are those of the released SAM-Med2D
weights (arXiv:2308.16184). Left out: mask prompts and the three masks of an ambiguous prompt; their weights are kept so
that a checkpoint loads whole.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

MASK_PROMPT_CHANNELS = 16
"""Width of the mask prompt's last convolution; SAM has no other."""


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a feature map."""

    def forward(self, input: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel height width"]:
        """The map with each position's channels normalised."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def feed_forward(width: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    """Two linear layers, `lin1` and `lin2`, with an activation between."""
    return nn.Sequential(OrderedDict(lin1=nn.Linear(width, hidden), activation=activation, lin2=nn.Linear(hidden, width)))


class FourierPositions(nn.Module):
    """Positions in the unit square as sines and cosines of random frequencies (Tancik et al. 2020, arXiv:2006.10739)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.empty(2, channels // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the frequencies: standard normal, fixed from then on."""
        nn.init.normal_(self.positional_encoding_gaussian_matrix)

    def forward(self, places: Float[Tensor, "*place 2"]) -> Float[Tensor, "*place channel"]:
        """One embedding per (x, y) in [0, 1], computed in float32 whatever the weights' type."""
        matrix = self.positional_encoding_gaussian_matrix
        angles = 2 * math.pi * (2 * places.float() - 1) @ matrix.float()
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(matrix.dtype)


class PromptEncoder(nn.Module):
    """Points and box corners as tokens of the decoder's width, and where the cells of the feature grid lie."""

    def __init__(self, channels: int, image_size: int, grid: int) -> None:
        super().__init__()
        self.image_size, self.grid = image_size, grid
        self.pe_layer = FourierPositions(channels)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, MASK_PROMPT_CHANNELS // 4, kernel_size=2, stride=2),
            LayerNorm2d(MASK_PROMPT_CHANNELS // 4, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(MASK_PROMPT_CHANNELS // 4, MASK_PROMPT_CHANNELS, kernel_size=2, stride=2),
            LayerNorm2d(MASK_PROMPT_CHANNELS, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(MASK_PROMPT_CHANNELS, channels, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, channels)

    def forward(
        self, points: Float[Tensor, "prompt point 2"], labels: Int[Tensor, "prompt point"]
    ) -> Float[Tensor, "prompt point channel"]:
        """One token per point: its place, plus a learned vector for its label.

        Whole numbers are pixel centres. A padding point (label -1) has no place, only its learned vector.
        """
        places = self.pe_layer((points + 0.5) / self.image_size)
        kinds = torch.cat([self.not_a_point_embed.weight, *self.point_embeddings.parameters()])
        return places.masked_fill(labels[..., None] < 0, 0) + kinds[labels + 1]

    def cells(self) -> Float[Tensor, "cell channel"]:
        """The place of each cell of the feature grid, row by row."""
        centres = (torch.arange(self.grid, device=self.no_mask_embed.weight.device) + 0.5) / self.grid
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([columns, rows], dim=-1)).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention whose heads together may be narrower than its tokens."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(
        self, query: Float[Tensor, "prompt q width"], key: Float[Tensor, "prompt k width"], value: Float[Tensor, "prompt k width"]
    ) -> Float[Tensor, "prompt q width"]:
        """What each query takes from the values."""
        projected = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        seen = functional.scaled_dot_product_attention(*(x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected))
        return self.out_proj(seen.transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens attend to each other and to the image, then the image attends to the tokens."""

    def __init__(self, width: int, heads: int, inner: int, hidden: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(width, heads, width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, inner)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = feed_forward(width, hidden, nn.ReLU())
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, inner)

    def forward(
        self,
        tokens: Float[Tensor, "prompt token width"],
        image: Float[Tensor, "prompt cell width"],
        prompts: Float[Tensor, "prompt token width"],
        cells: Float[Tensor, "cell width"],
    ) -> tuple[Float[Tensor, "prompt token width"], Float[Tensor, "prompt cell width"]]:
        """Tokens and image after the block; `prompts` and `cells` are added wherever tokens or cells are compared."""
        # The first block's tokens are the prompts themselves: SAM neither adds them again nor keeps them beside the result.
        placed = tokens + prompts
        tokens = self.self_attn(tokens, tokens, tokens) if self.is_first else tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + prompts, image + cells, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        return tokens, self.norm4(image + self.cross_attn_image_to_token(image + cells, tokens + prompts, tokens))


class TwoWayTransformer(nn.Module):
    """Two-way blocks, then one last look of the tokens at the image."""

    def __init__(self, depth: int, width: int, heads: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, inner, hidden, is_first=index == 0) for index in range(depth))
        self.final_attn_token_to_image = Attention(width, heads, inner)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(
        self,
        prompts: Float[Tensor, "prompt token width"],
        image: Float[Tensor, "prompt cell width"],
        cells: Float[Tensor, "cell width"],
    ) -> tuple[Float[Tensor, "prompt token width"], Float[Tensor, "prompt cell width"]]:
        """The tokens and the image, each having seen the other."""
        tokens = prompts
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompts, cells)
        return self.norm_final_attn(tokens + self.final_attn_token_to_image(tokens + prompts, image + cells, image)), image


class Mlp(nn.Module):
    """Linear layers of the given widths with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Float[Tensor, "*rest before"]) -> Float[Tensor, "*rest after"]:
        """The last layer's output, without an activation."""
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """A mask at four times the grid's resolution per prompt, and the overlap with the truth it expects of it."""

    def __init__(self, width: int, transformer: TwoWayTransformer, mask_tokens: int, iou_widths: Sequence[int]) -> None:
        super().__init__()
        self.transformer = transformer
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(mask_tokens, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm2d(width // 4, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp([width, width, width, width // 8]) for _ in range(mask_tokens))
        self.iou_prediction_head = Mlp([width, *iou_widths, mask_tokens])

    def forward(
        self,
        features: Float[Tensor, "prompt width grid grid"],
        cells: Float[Tensor, "cell width"],
        sparse: Float[Tensor, "prompt token width"],
    ) -> tuple[Float[Tensor, "prompt 4*grid 4*grid"], Float[Tensor, " prompt"]]:
        """Logits and expected overlap of each prompt's single mask; row i of the features belongs to prompt i."""
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(len(sparse), -1, -1)
        tokens, image = self.transformer(torch.cat([learned, sparse], dim=1), features.flatten(2).transpose(1, 2), cells)
        upscaled = self.output_upscaling(image.transpose(1, 2).unflatten(2, features.shape[2:]))
        kernels = self.output_hypernetworks_mlps[0](tokens[:, 1])
        return torch.einsum("pc,pchw->phw", kernels, upscaled), self.iou_prediction_head(tokens[:, 0])[:, 0]
