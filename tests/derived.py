"""The tiny originals as tests want them, and what LLaVA-1.5 and MedPLIB made of such, in their own names."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel, LlamaForCausalLM

from benchmarks import originals
from benchmarks.originals import TINY
from unimed.model.sam_med2d import SamMed2D


def written(folder: Path, **changes: Any) -> dict[str, Path]:
    """The tiny originals in a folder, by the names that `foundation.from` gives them; changes are those of the language model."""
    places = {name: folder / name for name in ("language_model", "vision", "detail")} | {"mask": folder / "sam-med2d_b.pth"}
    originals.write(places, **changes)
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
    settings = TINY.language | {"model_type": "llava_llama", "mm_hidden_size": 16, "mm_vision_select_layer": -2}
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
    for layer in range(TINY.language["num_hidden_layers"]):
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
    (folder / "added_tokens.json").write_text(json.dumps({"<region>": TINY.words, "<SEG>": TINY.words + 1}))
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
