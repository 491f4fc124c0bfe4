"""A model, a processor and samples so small that every test can make its own."""

import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, ConvNextConfig, LlamaConfig, PreTrainedTokenizerBase

from unimed.data import masks, shards
from unimed.data.records import REGION, SEG
from unimed.data.samples import Sample, Samples, Turn
from unimed.model import tokenizer
from unimed.model.configuration import UniMedConfig
from unimed.model.processor import IMAGE, Picture, UniMedProcessor
from unimed.model.sam_med2d import SamMed2DConfig
from unimed.model.unimed import UniMedForConditionalGeneration

SIZE = 32
"""Pixels per side of the image that enters the model; the ViT sees half of it, as a grid of 4 x 4 patches."""

TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")
EXPERTS = {"experts": ["vqa", "grounding"], "expert_ranks": [2, 4], "expert_scalings": [2.0, 0.5], "expert_targets": list(TARGETS)}
TEXTS = ("Describe this image briefly.", "Is there a nodule?", "yes", "no", "Which structure is marked?", "the liver", "It is there.")


def processor() -> UniMedProcessor:
    """A processor with a byte-level tokenizer; asking twice gives equals."""
    return UniMedProcessor(tokenizer.build(TEXTS, 300), image_size=SIZE, tile_size=16, tokens_per_view=16)


def config(words: PreTrainedTokenizerBase, **changes: Any) -> UniMedConfig:
    """Two blocks in every part; `changes` are fields of UniMedConfig."""
    end, pad = words.eos_token_id, words.pad_token_id
    parts = {
        "vision_config": CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
        ),
        "detail_config": ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=4),
        "text_config": LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=512, eos_token_id=end, pad_token_id=pad, bos_token_id=None,
        ),
        "mask_config": SamMed2DConfig(
            image_size=SIZE, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, window_size=5,
            global_attention_indexes=(1,), output_channels=16, decoder_heads=2, decoder_mlp_dim=32, iou_hidden_dim=16,
        ),
    }  # fmt: skip
    ids = {name: tokenizer.special_id(words, token) for name, token in (("image", IMAGE), ("region", REGION), ("seg", SEG))}
    fields = {f"{name}_token_id": number for name, number in ids.items()} | {
        "fusion_blocks": [1, 2],
        "fusion_hidden_size": 24,
        "answer_opening": tokenizer.answer_opening(words),
    }
    return UniMedConfig(**(parts | fields | changes))


def fresh(**changes: Any) -> UniMedForConditionalGeneration:
    """A model as its initialisation leaves it, in evaluation mode."""
    torch.manual_seed(0)
    return UniMedForConditionalGeneration(config(processor().tokenizer, **changes)).eval()


def stirred(**changes: Any) -> UniMedForConditionalGeneration:
    """A model whose every parameter was moved at random, so that no zero and no one hides anything."""
    model = fresh(**changes)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.15)
    return model


def picture(seed: int, height: int = SIZE, width: int = SIZE) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def box(top: int, left: int, height: int, width: int, of: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """A mask that is true in a box."""
    mask = np.zeros(of, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def ask(*questions: str) -> list[str]:
    """Questions as the chat template writes them, ready to be answered."""
    said = [[{"role": "user", "content": question}] for question in questions]
    return processor().apply_chat_template(said, add_generation_prompt=True)


def inputs(pictures: Sequence[Any], *texts: str) -> dict[str, Tensor]:
    """What the model reads, padded on the left."""
    return dict(processor()(images=pictures, text=list(texts), padding=True, return_tensors="pt"))


def marked(image: Image.Image, *regions: np.ndarray) -> Picture:
    """An image with marked regions."""
    return Picture(image, regions)


@dataclasses.dataclass(frozen=True)
class _Packed:
    sample_id: str
    content: bytes


Shape = int | tuple[int, int]
"""The side of a square, or height and width."""


def _both(side: Shape) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def turn(question: str, answer: str, regions: Iterable[np.ndarray] = (), targets: Iterable[np.ndarray] = (), side: Shape = SIZE) -> Turn:
    """A question and its answer about an image."""
    height, width = _both(side)
    return Turn(
        question=question, answer=answer, question_type="presence", answer_type="OPEN", conversation_id="c", task="vqa", options=(),
        solution="", rationale="", height=height, width=width,
        region_rles=tuple((masks.encode(mask),) for mask in regions), target_rles=tuple((masks.encode(mask),) for mask in targets),
    )  # fmt: skip


def sample(folder: Path, *turns: Turn, seed: int = 0, side: Shape = SIZE) -> Sample:
    """Turns about an image of noise that lies in a shard of its own."""
    content, (height, width) = io.BytesIO(), _both(side)
    picture(seed, height, width).save(content, "PNG")
    [(packed, place)] = shards.write(folder / str(seed), [_Packed(f"image{seed}", content.getvalue())], 2**20)
    return Sample(packed.sample_id, "Made/up", "ct", "Made", height, width, turns, folder / str(seed), place)


def samples(*found: Sample) -> Samples:
    """Samples as a stage reads them, every one an image and a conversation of its own."""
    return Samples(tuple((one,) for one in found), (), joined_turns=1, seed=0).at_epoch(0)
