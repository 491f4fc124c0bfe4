"""Models of full size with random weights, and samples of given lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionConfig, ConvNextConfig, LlamaConfig

from unimed import throughput
from unimed.data.records import REGION, SEG
from unimed.data.samples import Sample
from unimed.data.shards import Place
from unimed.model import tokenizer
from unimed.model.configuration import UniMedConfig
from unimed.model.processor import IMAGE, UniMedProcessor
from unimed.model.sam_med2d import SamMed2DConfig
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.train.batch import IGNORED, Batch, Collator, Piece

LANGUAGE = throughput.LANGUAGE | {
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
WORDS = tokenizer.build(["A benchmark reads no words."], 300)
TAKEN = 300
"""Token ids below this one may mean something to the template; words are drawn above."""


def config(shape: str, **changes: object) -> UniMedConfig:
    """CLIP ViT-L/14-336, ConvNeXt-L at 768 pixels and SAM-Med2D at 256 around a language model; all of them small for `tiny`."""
    ids = {f"{name}_token_id": tokenizer.special_id(WORDS, token) for name, token in (("image", IMAGE), ("region", REGION), ("seg", SEG))}
    small = shape == "tiny"
    vision, detail = dict(throughput.VISION), dict(throughput.DETAIL)
    mask = {"image_size": 256, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "window_size": 14}
    if small:
        vision |= {"image_size": 28, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
        detail |= {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
        mask |= {"image_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 2}
    return UniMedConfig(
        vision_config=CLIPVisionConfig(**vision),
        detail_config=ConvNextConfig(**detail),
        text_config=LlamaConfig(max_position_embeddings=8192, bos_token_id=None, eos_token_id=None, **LANGUAGE[shape]),
        mask_config=SamMed2DConfig(global_attention_indexes=(1,) if small else (2, 5, 8, 11), **mask),
        fusion_blocks=[1, 2, 3, 4] if small else [2, 6, 12, 20],
        fusion_hidden_size=64 if small else 4096,
        vision_feature_layer=-1 if small else -2,
        answer_opening=tokenizer.answer_opening(WORDS),
        **(ids | changes),
    )


def build(config: UniMedConfig, device: torch.device) -> UniMedForConditionalGeneration:
    """A model on the device in bfloat16 on a GPU, with random weights where a fresh one has zeros."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model = UniMedForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("expert_in", "expert_out", "gate", "router.linear.weight")):
                parameter.normal_(std=0.01)
    return model


@dataclass(frozen=True)
class Drawn(Sample):
    """A sample that is nothing but its size."""

    images: int
    words: int
    labelled: int
    points: bool


def drawn(images: int, words: int, labelled: int, points: bool = False, size: tuple[int, int] = (1, 1)) -> Drawn:
    """A sample of so many images of a size and words, the last `labelled` of them an answer, which may hold a `<SEG>`."""
    sample = {"sample_id": "drawn", "case": "", "modality": "", "dataset": "", "height": size[0], "width": size[1], "turns": ()}
    return Drawn(**sample, shards=Path(), place=Place("", 0, 0), images=images, words=words, labelled=labelled, points=points)


@dataclass(frozen=True)
class Endless:
    """Samples, again and again in the order given by the seed."""

    samples: Sequence[Drawn]

    def __len__(self) -> int:
        return len(self.samples)

    def at_epoch(self, epoch: int) -> Sequence[Drawn]:
        """The samples."""
        return self.samples


def mixed(patches: int, count: int, seed: int = 0) -> Iterator[int]:
    """Lengths of a mix: three in ten of text alone, five with one image, two with two to four."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        # Two words at least, however few patches: the first of a sample is never asked for.
        kind, text = rng.random(), int(rng.integers(patches // 11 + 2, patches * 7 // 10 + 4))
        yield text + patches * (0 if kind < 0.3 else 1 if kind < 0.8 else int(rng.integers(2, 5)))


class DrawnCollator(Collator):
    """Random words and images of the sizes that samples ask for; everything after it is what real samples go through."""

    def __init__(self, config: UniMedConfig):
        super().__init__(UniMedProcessor.of(config, WORDS))
        self.config, self.rng = config, np.random.default_rng(0)
        views, side = (1 + max(rows * columns for rows, columns in config.canvases),) if config.canvases else (), config.image_size
        self.pixels = torch.rand(8 if views else 32, *views, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.target = (self.pixels.flatten(0, -4)[:, 0] > 0.5).float()

    def piece(self, sample: Drawn) -> Piece:
        """The sample as ids: its images, then its words."""
        images = np.full(sample.images * self.processor.tokens((sample.height, sample.width)), self.config.image_token_id)
        words = self.rng.integers(TAKEN, self.config.text_config.vocab_size, sample.words)
        if sample.points:
            words[-1] = self.config.seg_token_id
        ids = np.concatenate([images, words]).astype(np.int64)
        labels = np.full_like(ids, IGNORED)
        labels[len(ids) - sample.labelled :] = ids[len(ids) - sample.labelled :]
        return Piece(sample, ids, labels)

    def seen(self, samples: Sequence[Drawn]) -> Batch:
        """As many images as the samples have, and a mask for each `<SEG>`."""
        count, masks = sum(sample.images for sample in samples), sum(sample.points for sample in samples)
        sizes = [(sample.height, sample.width) for sample in samples for _ in range(sample.images)]
        pixels = {"pixel_values": self.pixels[:count], "image_sizes": torch.tensor(sizes)} if count else {}
        return pixels | ({"masks": self.target[:masks]} if masks else {})
