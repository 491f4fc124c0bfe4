"""The architecture as numbers: sub-configurations of the towers, the fusion, the special tokens and the experts."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPVisionConfig, ConvNextConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from unimed.errors import InputError
from unimed.model.canvas import Grid, choose
from unimed.model.sam_med2d import SamMed2DConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@contextmanager
def fitting() -> Iterator[None]:
    """Within it, numbers of params.yaml that a configuration refuses raise InputError."""
    try:
        yield
    except StrictDataclassError as error:
        raise InputError(f"params.yaml: vlm: {error.__cause__ or error}") from error


@strict
class UniMedConfig(PreTrainedConfig):
    """Everything the model's shapes depend on; towers are transformers' own configurations.

    The image enters as a square of `image_size` pixels a side and, with `canvases`, also as tiles of that size. The detail tower
    sees them as they are; the ViT sees them shrunk, and so does the mask encoder the square. `image_size` is such that the detail
    tower's last map and the ViT's patches form the same grid (FILA, Wang et al. 2024, arXiv:2412.08378: 768 = 336 / 14 * 32).
    """

    model_type = "unimed"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=CLIPVisionConfig),
        "detail_config": SubConfigSpec(config_class=ConvNextConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "mask_config": SubConfigSpec(config_class=SamMed2DConfig),
    }

    vision_config: dict | PreTrainedConfig | None = None
    detail_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    mask_config: dict | PreTrainedConfig | None = None

    detail_image_mean: list[float] | tuple[float, ...] = IMAGENET_MEAN
    """Mean of each colour, in [0, 1], over the images that the detail tower was trained on; a checkpoint says its own."""

    detail_image_std: list[float] | tuple[float, ...] = IMAGENET_STD

    fusion_blocks: list[int] | tuple[int, ...] = (2, 6, 12, 20)
    """ViT blocks, counted from one, after which a detail map is fused in; as many as the detail tower has stages."""

    fusion_hidden_size: int = 4096
    vision_feature_layer: int = -2
    """Which ViT hidden state feeds the projector; -2 is the last but one, as in LLaVA."""

    fused_stages: Literal["all", "last", "none"] = "all"
    """Ablation: `all` stages of the detail tower are fused, the `last` alone, or `none`."""

    canvases: list[list[int]] | list[tuple[int, int]] | tuple[()] = ()
    """Rows and columns of tiles that an image can be laid on beside the square view; without any it is seen as the square alone."""

    tile_detail: Literal["slice", "whole"] = "slice"
    """Ablation: a tile is fused with its own `slice` of the canvas's detail maps, or with the `whole` of them, pooled to its size."""

    pixel_shuffle: int = 1
    """Patches per side of the square that becomes one token of the language model."""

    image_token_id: int = 0
    region_token_id: int = 1
    seg_token_id: int = 2
    answer_opening: list[int] | tuple[int, ...] = ()
    """Token ids with which the chat template opens an assistant turn; what stands before the first is the prompt."""

    experts: list[str] | tuple[str, ...] = ()
    """Names of the experts that stand beside the language model's linears; none before stage 4."""

    expert_ranks: list[int] | tuple[int, ...] = ()
    expert_scalings: list[float] | tuple[float, ...] = ()
    expert_targets: list[str] | tuple[str, ...] = ()
    router_level: str = "sequence"
    router_choice: str = "soft"
    tie_word_embeddings: bool = False

    def validate_views(self) -> None:
        """ValueError for canvases that are no grids of at least two tiles and for a pixel shuffle that does not divide the patches."""
        if not all(len(grid) == 2 and min(grid) > 0 and max(grid) > 1 for grid in self.canvases):
            raise ValueError(f"canvases must hold rows and columns of two tiles or more, are {self.canvases}")
        if self.pixel_shuffle < 1 or self.grid_size % self.pixel_shuffle:
            raise ValueError(f"pixel_shuffle must divide the {self.grid_size} patches of a side, is {self.pixel_shuffle}")

    @property
    def grid_size(self) -> int:
        """Patches per side of the ViT, which is also the side of the detail tower's last map."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def detail_stride(self) -> int:
        """Pixels per cell of the detail tower's last map."""
        return self.detail_config.patch_size * 2 ** (len(self.detail_config.hidden_sizes) - 1)

    @property
    def image_size(self) -> int:
        """Pixels per side of the image that enters the model."""
        return self.grid_size * self.detail_stride

    @property
    def tokens_per_view(self) -> int:
        """Language model positions that the square view takes, and as many again for each tile."""
        return (self.grid_size // self.pixel_shuffle) ** 2

    def grids(self, sizes: Iterable[Sequence[int]]) -> list[Grid]:
        """The grid of tiles for each image, from its height and width in pixels."""
        return [choose(height, width, self.canvases, self.vision_config.image_size) for height, width in sizes]
