"""Checkpoints with a few thousand numbers in the layouts, names and types in which the originals were released."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
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
WORDS = 290
LANGUAGE = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
MASK = {
    "image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 5,
    "global_attention_indexes": [1], "output_channels": 16, "decoder_heads": 2, "decoder_mlp_dim": 32, "iou_hidden_dim": 16,
}  # fmt: skip
VLM = Vlm.model_validate({"mask": MASK, "fusion_blocks": [1, 2], "fusion_hidden_size": 24, "vision_feature_layer": -2})


def stirred(model: Any) -> Any:
    """A module with every parameter moved at random, so that no two tensors are alike."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return model


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer that knows nothing of our placeholders and, like Llama's, has no token to pad with."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["the liver is there, is a nodule there? yes, no. the left lung, the right lung, the heart, the kidney"] * 20,
        trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    assert made.get_vocab_size() == WORDS
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=special[0], eos_token=special[1], chat_template=template)


def save(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A stirred model in Hugging Face's form, in many small parts."""
    stirred(model).save_pretrained(folder, max_shard_size="30KB")
    return model


def language_model(folder: Path, **changes: Any) -> LlamaForCausalLM:
    """Llama in bf16, as sharded safetensors with an index, and its tokenizer."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**LANGUAGE | {"eos_token_id": 1, "bos_token_id": 0} | changes)).to(torch.bfloat16)
    tokenizer().save_pretrained(folder)
    return save(model, folder)


def clip(folder: Path) -> CLIPModel:
    """Both halves of a CLIP, the one for words too."""
    torch.manual_seed(2)
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    return save(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)), folder)


def convnext(folder: Path) -> ConvNextForImageClassification:
    """A ConvNeXt with the classifier it was trained by."""
    torch.manual_seed(3)
    return save(ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=4)), folder)


def sam_med2d(file: Path, **changes: Any) -> SamMed2D:
    """SAM-Med2D as its training saves it: the weights under `model`, beside the optimizer's state."""
    torch.manual_seed(5)
    model = stirred(SamMed2D(SamMed2DConfig(**MASK | changes)))
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}}, file)
    return model


def originals(folder: Path, **changes: Any) -> dict[str, Path]:
    """All four, by the names that `foundation.from` gives them."""
    places = {name: folder / name for name in ("language_model", "vision", "detail")} | {"mask": folder / "sam-med2d_b.pth"}
    language_model(places["language_model"], **changes)
    clip(places["vision"])
    convnext(places["detail"])
    sam_med2d(places["mask"])
    return places


def llava(folder: Path, language: dict[str, Tensor], tower: CLIPModel | None = None, pickled: bool = True) -> dict[str, Tensor]:
    """LLaVA-1.5 around a language model, with or without the vision tower, in its own names; returns its tensors."""
    draw = torch.Generator().manual_seed(6)
    tensors = {name: value.clone() for name, value in language.items()}
    tensors |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    for number, width in ((0, 16), (2, 32)):
        tensors[f"model.mm_projector.{number}.weight"] = torch.randn(32, width, generator=draw)
        tensors[f"model.mm_projector.{number}.bias"] = torch.randn(32, generator=draw)
    if tower is not None:
        tensors |= {
            f"model.vision_tower.vision_tower.vision_model.{name}": value for name, value in tower.vision_model.state_dict().items()
        }
        tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17).unsqueeze(0)
    folder.mkdir(parents=True)
    settings = LANGUAGE | {"model_type": "llava_llama", "mm_hidden_size": 16, "mm_vision_select_layer": -2, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(settings | {"vocab_size": len(tensors["lm_head.weight"])}))
    shards(folder, tensors, pickled=pickled)
    return tensors


def low_rank_change(like: Tensor, rank: int, seed: int) -> Tensor:
    """A change of a matrix of exactly that rank."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape[0], rank, generator=draw) @ torch.randn(rank, like.shape[1], generator=draw) * 0.02


def medplib(folder: Path, language: dict[str, Tensor], tower: CLIPModel, sam: SamMed2D, pickled: bool = True) -> dict[str, Tensor]:
    """MedPLIB with two experts: the layers changed by rank 2 for pointing and rank 1 for answering, attention by rank 1 for both."""
    changed = {name: value.float() for name, value in language.items()}
    for layer in range(LANGUAGE["num_hidden_layers"]):
        query = changed[f"model.layers.{layer}.self_attn.q_proj.weight"]
        query += low_rank_change(query, 1, 9)
        for part in ("gate_proj", "up_proj", "down_proj"):
            dense = changed.pop(f"model.layers.{layer}.mlp.{part}.weight")
            for expert, rank in ((0, 2), (1, 1)):
                name = f"model.layers.{layer}.mlp.deepspeed_moe.experts.deepspeed_experts.{expert}.{part}.weight"
                changed[name] = dense + low_rank_change(dense, rank, 10 * layer + expert)
        changed[f"model.layers.{layer}.mlp.deepspeed_moe.gate.wg.weight"] = torch.zeros(2, 32)
    rows = torch.arange(64.0).view(2, 32) / 64
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        changed[table] = torch.cat([changed[table], rows if "embed" in table else -rows])
    draw = torch.Generator().manual_seed(11)
    for number, width in ((0, 32), (2, 16)):
        changed[f"model.text_hidden_fcs.0.{number}.weight"] = torch.randn(width, 32, generator=draw)
        changed[f"model.text_hidden_fcs.0.{number}.bias"] = torch.randn(width, generator=draw)
    changed |= {"model.region_fea_adapter.weight": torch.zeros(32, 16), "model.region_fea_adapter.bias": torch.zeros(32)}
    for name, value in sam.state_dict().items():
        changed[f"model.visual_model.{name}"] = value * 1.5 if name.startswith("mask_decoder.") else value
    tensors = llava(folder, changed, tower, pickled)
    (folder / "added_tokens.json").write_text(json.dumps({"<region>": WORDS, "<SEG>": WORDS + 1}))
    return tensors


def read_language(folder: Path) -> dict[str, Tensor]:
    """The tensors of a language model's folder, by transformers' own way of loading it."""
    return {name: value.clone() for name, value in LlamaForCausalLM.from_pretrained(folder).state_dict().items()}


def shards(folder: Path, tensors: dict[str, Tensor], parts: int = 3, pickled: bool = True) -> None:
    """Tensors in several files with an index, as torch's files, which is how LLaVA-1.5 came, or as safetensors."""
    stem, end = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    listed = {name: f"{stem}-{1 + number % parts:05d}-of-{parts:05d}.{end}" for number, name in enumerate(sorted(tensors))}
    for file in sorted(set(listed.values())):
        held = {name: tensors[name].clone() for name in tensors if listed[name] == file}
        torch.save(held, folder / file) if pickled else save_file(held, folder / file)
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
