"""Checkpoints with random numbers in the layouts, names and types in which the originals were released, small or of full size."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)  # fmt: skip

from unimed.config import Vlm
from unimed.model.sam_med2d import SamMed2D, SamMed2DConfig

TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SPECIAL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
TEXTS = ("the liver is there, is a nodule there? yes, no. the left lung, the right lung, the heart, the kidney",) * 20


@dataclass(frozen=True)
class Sizes:
    """What the four are like, in the words of transformers' own configurations and of SamMed2DConfig."""

    language: dict[str, Any]
    vision: dict[str, Any]
    detail: dict[str, Any]
    mask: dict[str, Any]
    shard: str
    """The most that a file of a folder holds."""

    stirring: float
    """How far every number is moved from its initial value, so that no two tensors are alike and no bias is 0."""

    @property
    def words(self) -> int:
        """Entries of the tokenizer."""
        return self.language["vocab_size"]


TINY = Sizes(
    language={"vocab_size": 290, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1},
    vision={
        "text_config": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20},
        "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16,
                          "patch_size": 4},
        "projection_dim": 8,
    },
    detail={"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    mask={
        "image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 5,
        "global_attention_indexes": [1], "output_channels": 16, "decoder_heads": 2, "decoder_mlp_dim": 32, "iou_hidden_dim": 16,
    },
    shard="30KB",
    stirring=0.1,
)  # fmt: skip
VLM = Vlm.model_validate({"mask": TINY.mask, "fusion_blocks": [1, 2], "fusion_hidden_size": 24, "vision_feature_layer": -2})
"""The architecture over the tiny ones."""

FULL = Sizes(
    language={
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "eos_token_id": [128001, 128008, 128009],
    },
    vision={
        "model_type": "clip", "projection_dim": 768, "text_config": {"hidden_size": 768},
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                          "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768},
    },
    detail={"model_type": "convnext", "hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3], "num_stages": 4, "patch_size": 4},
    mask={},
    shard="5GB",
    stirring=0.01,
)  # fmt: skip
"""Llama-3.1-8B-Instruct, clip-vit-large-patch14-336, ConvNeXt-L and SAM-Med2D ViT-B."""


def tokenizer(template: str | None = TEMPLATE, words: int = TINY.words, texts: Iterable[str] = TEXTS) -> PreTrainedTokenizerFast:
    """A tokenizer that knows nothing of our placeholders and, like Llama's, has no token to pad with.

    Where the texts do not give so many words, the rest are words that no text holds.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=words, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    written = json.loads(made.to_str())
    written["model"]["vocab"] |= {f"unused_{number}": number for number in range(made.get_vocab_size(), words)}
    made = Tokenizer.from_str(json.dumps(written))
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=SPECIAL[0], eos_token=SPECIAL[1], chat_template=template)


def stirred(model: Any, far: float) -> Any:
    """A module with every parameter moved at random."""
    with torch.no_grad():
        draw = torch.Generator(next(model.parameters()).device).manual_seed(4)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw, device=draw.device), alpha=far)
    return model


def save(model: PreTrainedModel, folder: Path, sizes: Sizes = TINY) -> PreTrainedModel:
    """A stirred model in Hugging Face's form, in as many parts as it takes."""
    stirred(model, sizes.stirring).save_pretrained(folder, max_shard_size=sizes.shard)
    return model


def language_model(folder: Path, words: PreTrainedTokenizerFast, sizes: Sizes = TINY, **changes: Any) -> LlamaForCausalLM:
    """Llama in bf16, as sharded safetensors with an index, and its tokenizer."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**sizes.language | changes)).to(torch.bfloat16)
    words.save_pretrained(folder)
    return save(model, folder, sizes)


def clip(folder: Path, sizes: Sizes = TINY) -> CLIPModel:
    """Both halves of a CLIP, the one for words too."""
    torch.manual_seed(2)
    return save(CLIPModel(CLIPConfig(**sizes.vision)), folder, sizes)


def convnext(folder: Path, sizes: Sizes = TINY) -> ConvNextForImageClassification:
    """A ConvNeXt with the classifier it was trained by."""
    torch.manual_seed(3)
    return save(ConvNextForImageClassification(ConvNextConfig(**sizes.detail)), folder, sizes)


def sam_med2d(file: Path, sizes: Sizes = TINY, **changes: Any) -> SamMed2D:
    """SAM-Med2D as its training saves it: the weights under `model`, beside the optimizer's state."""
    torch.manual_seed(5)
    model = stirred(SamMed2D(SamMed2DConfig(**sizes.mask | changes)), sizes.stirring)
    file.parent.mkdir(parents=True, exist_ok=True)
    held = {name: value.cpu() for name, value in model.state_dict().items()}
    torch.save({"model": held, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}}, file)
    return model


def write(places: dict[str, Path], sizes: Sizes = TINY, texts: Iterable[str] = TEXTS, device: str = "cpu", **changes: Any) -> None:
    """All four, at their places by the names that `foundation.from` gives them; the numbers are drawn on the device."""
    with torch.device(device):
        language_model(places["language_model"], tokenizer(words=sizes.words, texts=texts), sizes, **changes)
        clip(places["vision"], sizes)
        convnext(places["detail"], sizes)
        sam_med2d(places["mask"], sizes)
