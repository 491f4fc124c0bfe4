"""What a sample must compute, and how much of a card's limit was reached when that was last measured (docs/performance.md)."""

from dataclasses import dataclass
from typing import Any

from unimed.model.configuration import UniMedConfig

LANGUAGE: dict[str, dict[str, Any]] = {
    "llama-7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama-3.1-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "rope_theta": 500000.0,
    },
}  # fmt: skip
VISION: dict[str, Any] = {
    "image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
}  # fmt: skip
DETAIL: dict[str, Any] = {"patch_size": 4, "num_stages": 4, "hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]}
"""The shapes of full size: Llama's, CLIP ViT-L/14-336's and ConvNeXt-L's."""

CARD = "NVIDIA H100 80GB HBM3"
RATE = 773e12
"""Operations a second of a large bfloat16 product on that card, as measured in the same run."""

BANDWIDTH = 3.35e12
"""Bytes a second of that card's memory as its maker says; nothing reads faster."""


@dataclass(frozen=True)
class Measured:
    """How a stage's training went: which row of docs/performance.md says so, and on samples of how many words."""

    row: str
    words: int
    """Tokens beside those of the image; the mean where they were drawn."""

    share: float
    """Of the limit, which is what a sample must compute at `RATE`."""

    time: float = 1.0
    """Of a step, in that of the stage whose share stands here."""


_CAPTION, _ADAPTER = ("1, encoders, 576 + 200 tokens", 200, 0.64), (225, 0.56)
MEASURED = {
    "align": Measured(*_CAPTION),
    "vqa_expert": Measured("2, encoders, 576 + U(50, 400)", *_ADAPTER),
    "grounding_expert": Measured("3, over stage 2", *_ADAPTER, time=1.018),
    "moe_router": Measured("4, 2 experts over one LoRA", *_ADAPTER, time=0.983),
}
"""On packed rows in bfloat16 with compiled layers, one image a sample."""


def flops(config: UniMedConfig, images: int, tokens: int, labelled: int, fused: bool = False) -> float:
    """What a sample must compute: frozen linears forward and for the input's gradient, causal attention, the head on labelled rows.

    `fused`: the fusions train, so that the gradient also runs through the ViT from the first of them on.
    """
    text: Any = config.text_config
    vision: Any = config.vision_config
    detail: Any = config.detail_config
    size = text.hidden_size
    words = 4 * linears(config) * tokens + 6 * text.num_hidden_layers * size * tokens**2 + 4 * size * text.vocab_size * labelled
    patches, wide = config.tokens_per_view + 1, vision.hidden_size
    block = 2 * patches * (4 * wide * wide + 2 * wide * vision.intermediate_size) + 4 * patches**2 * wide
    blocks = vision.num_hidden_layers + 1 + config.vision_feature_layer
    seen = blocks * block + sum(map(_stage, detail.depths, detail.hidden_sizes, _cells(config)))
    join = 2 * patches * config.fusion_hidden_size * sum(2 * wide + width for width in detail.hidden_sizes)
    project = 2 * config.tokens_per_view * (wide * size + size * size)
    if fused:
        return words + images * (seen + (blocks - config.fusion_blocks[0]) * block + 3 * join + 3 * project)
    return words + images * (seen + join + project)


def _cells(config: UniMedConfig) -> list[int]:
    detail: Any = config.detail_config
    side = config.image_size // detail.patch_size
    return [(side >> stage) ** 2 for stage in range(len(detail.hidden_sizes))]


def _stage(depth: int, width: int, cells: int) -> float:
    return depth * cells * 2 * (8 * width * width + 49 * width)


def linears(config: UniMedConfig) -> int:
    """Weights of the language model's linears, the output layer aside."""
    text: Any = config.text_config
    size, kv = text.hidden_size, text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    return text.num_hidden_layers * (2 * size * size + 2 * size * kv + 3 * size * text.intermediate_size)
