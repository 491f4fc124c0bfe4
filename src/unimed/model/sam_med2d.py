"""SAM-Med2D: SAM at 256 pixels with an adapter in every block of its image encoder.

Kirillov et al. 2023, arXiv:2304.02643; Cheng et al. 2023, arXiv:2308.16184. Names of modules and parameters are those of
the released weights, so that they load strictly. A model that contains this one initialises `ImageEncoder`,
`GridAttention` and `FourierPositions` by their `reset_parameters`: they own tensors outside torch's own layers.
"""

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from unimed.model.sam_decoder import LayerNorm2d, MaskDecoder, PromptEncoder, TwoWayTransformer, feed_forward


@strict
class SamMed2DConfig(PreTrainedConfig):
    """The released SAM-Med2D ViT-B; smaller numbers make smaller ones.

    `window_size` is in cells of the feature grid: 0, or one that holds the grid, means attention over the whole grid in every
    block. Mean and standard deviation are those of pixels in 0..1. Raises if the sizes do not divide into each other.
    """

    model_type = "sam_med2d"

    image_size: int = 256
    patch_size: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4
    window_size: int = 14
    global_attention_indexes: list[int] | tuple[int, ...] = (2, 5, 8, 11)
    output_channels: int = 256
    adapter_ratio: float = 0.25
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    attention_downsample_rate: int = 2
    num_mask_tokens: int = 4
    iou_hidden_dim: int = 256
    iou_head_depth: int = 3
    image_mean: list[float] | tuple[float, ...] = (123.675 / 255, 116.28 / 255, 103.53 / 255)
    image_std: list[float] | tuple[float, ...] = (58.395 / 255, 57.12 / 255, 57.375 / 255)

    def __post_init__(self, **kwargs) -> None:
        # JSON has no tuples: without this a config read back would differ from the one written.
        for name in ("global_attention_indexes", "image_mean", "image_std"):
            setattr(self, name, tuple(getattr(self, name)))
        super().__post_init__(**kwargs)

    @property
    def grid(self) -> int:
        """Rows and columns of the feature grid."""
        return self.image_size // self.patch_size

    def window(self, block: int) -> int:
        """Side of the squares of cells within which this block attends."""
        is_global = block in self.global_attention_indexes or not 0 < self.window_size < self.grid
        return self.grid if is_global else self.window_size

    def validate_architecture(self) -> None:
        """Raise ValueError where one size does not divide into another."""
        inner = self.output_channels // self.attention_downsample_rate
        for what, size, part in (
            ("image_size by twice the patch_size (adapters halve the grid)", self.image_size, 2 * self.patch_size),
            ("hidden_size by num_attention_heads", self.hidden_size, self.num_attention_heads),
            ("output_channels by 8 (upscaling divides them)", self.output_channels, 8),
            ("output_channels by decoder_heads", self.output_channels, self.decoder_heads),
            ("output_channels / attention_downsample_rate by decoder_heads", inner, self.decoder_heads),
        ):
            if size % part:
                raise ValueError(f"SamMed2DConfig must divide {what}, found {size} and {part}")


class PatchEmbed(nn.Module):
    """An image as a grid of patch vectors."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image row column channel"]:
        """One vector per patch, channels last."""
        return self.proj(images).permute(0, 2, 3, 1)


class GridAttention(nn.Module):
    """Self-attention over a square of cells, with a learned vector per row and per column distance (MViTv2, arXiv:2112.01526)."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.empty(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.empty(2 * side - 1, width // heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the distance vectors afresh."""
        nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
        nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: Float[Tensor, "square side side channel"]) -> Float[Tensor, "square side side channel"]:
        """What each cell takes from all cells of its square."""
        query, key, value = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=self.distance_bias(query))
        return self.proj(seen.transpose(1, 2).reshape(x.shape))

    def distance_bias(self, query: Float[Tensor, "square head cell depth"]) -> Float[Tensor, "square head cell cell"]:
        """What each query adds to its score of a cell for lying so many rows and columns away; queries are not scaled."""
        side = len(self.rel_pos_h) // 2 + 1
        steps = torch.arange(side, device=query.device)
        distance = steps[:, None] - steps + side - 1
        query = query.unflatten(2, (side, side))
        rows = torch.einsum("bnrcd,rkd->bnrck", query, self.rel_pos_h[distance])
        columns = torch.einsum("bnrcd,ckd->bnrck", query, self.rel_pos_w[distance])
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


class Adapter(nn.Module):
    """SAM-Med2D's adapter: channels are gated by their mean, then a half-resolution convolution adds what lies around."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid())
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "image row column channel"]) -> Float[Tensor, "image row column channel"]:
        """What the block adds beside its feed-forward layer."""
        gate = self.channel(x.mean(dim=(1, 2)))[:, None, None]
        around = self.spatial((x * gate).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(x + around)


class EncoderBlock(nn.Module):
    """Attention within windows, then a feed-forward layer and the adapter side by side on the whole grid."""

    def __init__(self, config: SamMed2DConfig, window: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = GridAttention(width, config.num_attention_heads, window)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = feed_forward(width, int(width * config.mlp_ratio), nn.GELU())
        self.Adapter = Adapter(width, int(width * config.adapter_ratio))

    def forward(self, x: Float[Tensor, "image grid grid channel"]) -> Float[Tensor, "image grid grid channel"]:
        """The grid after the block."""
        windows = split(self.norm1(x), self.window)
        x = x + join(self.attn(windows), x.shape[1])
        normed = self.norm2(x)
        return x + self.mlp(normed) + self.Adapter(normed)


class ImageEncoder(nn.Module):
    """A ViT that keeps the image a grid, and a neck that brings it to the decoder's width."""

    def __init__(self, config: SamMed2DConfig) -> None:
        super().__init__()
        width, channels = config.hidden_size, config.output_channels
        self.patch_embed = PatchEmbed(config.patch_size, width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.grid, config.grid, width))
        self.blocks = nn.ModuleList(EncoderBlock(config, config.window(index)) for index in range(config.num_hidden_layers))
        self.neck = nn.Sequential(
            nn.Conv2d(width, channels, kernel_size=1, bias=False),
            LayerNorm2d(channels, eps=1e-6),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(channels, eps=1e-6),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the positional embedding afresh; the layers have their own."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Float[Tensor, "image 3 size size"]) -> Float[Tensor, "image channel grid grid"]:
        """One feature vector per patch."""
        # In one layout, whatever the convolution left: compiled blocks would be made anew for another.
        x = (self.patch_embed(images) + self.pos_embed).contiguous()
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class SamMed2D(nn.Module):
    """Images in, features out; features and prompts in, masks out."""

    def __init__(self, config: SamMed2DConfig) -> None:
        super().__init__()
        width = config.output_channels
        inner = width // config.attention_downsample_rate
        transformer = TwoWayTransformer(config.decoder_layers, width, config.decoder_heads, inner, config.decoder_mlp_dim)
        iou_widths = [config.iou_hidden_dim] * (config.iou_head_depth - 1)
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(width, config.image_size, config.grid)
        self.mask_decoder = MaskDecoder(width, transformer, config.num_mask_tokens, iou_widths)

    def encode(self, images: Float[Tensor, "image 3 size size"]) -> Float[Tensor, "image channel grid grid"]:
        """Features of images that are letterboxed to the frame and normalised by the config's mean and deviation."""
        return self.image_encoder(images)

    def prompt_points(
        self, points: Float[Tensor, "prompt point 2"], labels: Int[Tensor, "prompt point"]
    ) -> Float[Tensor, "prompt point channel"]:
        """Sparse prompts for `decode` from points (x, y) of the frame, whole numbers being pixel centres.

        Labels: 1 on the target, 0 off it, 2 and 3 the first and last corner of a box, -1 padding. SAM was trained with one
        padding point after the points of a prompt that has no box; add it when using its weights.
        """
        return self.prompt_encoder(points, labels)

    def decode(
        self, features: Float[Tensor, "prompt channel grid grid"], sparse: Float[Tensor, "prompt token channel"]
    ) -> tuple[Float[Tensor, "prompt 4*grid 4*grid"], Float[Tensor, " prompt"]]:
        """Mask logits and expected overlap (IoU) of every prompt, of as many images as you like, in one call.

        Row i of the features is the image of prompt i: `encode(images)[image_index]`. Unlike SAM, which repeats one image.
        """
        no_mask = self.prompt_encoder.no_mask_embed.weight[..., None, None]
        return self.mask_decoder(features + no_mask, self.prompt_encoder.cells(), sparse)


def split(x: Float[Tensor, "image grid grid channel"], side: int) -> Float[Tensor, "square side side channel"]:
    """The grid cut into squares, row by row; zeros fill the last ones and are attended to like cells, as SAM was trained."""
    missing = -x.shape[1] % side
    x = functional.pad(x, (0, 0, 0, missing, 0, missing))
    squares = x.shape[1] // side
    return x.unflatten(2, (squares, side)).unflatten(1, (squares, side)).transpose(2, 3).flatten(0, 2)


def join(x: Float[Tensor, "square side side channel"], grid: int) -> Float[Tensor, "image grid grid channel"]:
    """The grid that `split` cut."""
    squares = -(-grid // x.shape[1])
    x = x.unflatten(0, (len(x) // squares**2, squares, squares))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :grid, :grid]
