"""A foundation from other people's checkpoints: every tensor accounted for, types kept, the language model's files linked."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)  # fmt: skip

from unimed import outputs
from unimed.config import Vlm
from unimed.errors import InputError
from unimed.model import artifacts, checkpoint, weights
from unimed.model import tokenizer as tokenizers
from unimed.model.checkpoint import Checkpoint, Rules
from unimed.model.configuration import UniMedConfig, fitting
from unimed.model.processor import UniMedProcessor
from unimed.model.sam_med2d import SamMed2D, SamMed2DConfig

LANGUAGE_MODEL, ADDED_ROWS = "language_model", "added_rows"
"""Folders of a foundation: the language model as it was released, and the rows of the tokens it did not know."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

LANGUAGE: Rules = (
    (r".*\.rotary_emb\.inv_freq", None),  # computed, not learned
    (r"model\.(mm_projector|vision_tower|visual_model|text_hidden_fcs|region_fea_adapter)\..*", None),  # LLaVA-1.5, MedPLIB
    # MedPLIB's second expert is the copy of the feed-forward layer that its stage IV started from, so it stands for the layer itself.
    (r"(.*\.mlp)\.deepspeed_moe\.experts\.deepspeed_experts\.1\.(.*)", r"\1.\2"),
    (r".*\.mlp\.deepspeed_moe\..*", None),
)
VISION: Rules = (
    (r"(text_model|text_projection|visual_projection)\..*|logit_scale", None),
    (r"(vision_model\.)?embeddings\.position_ids", None),  # counted, not learned
    (r"vision_model\.(.*)", r"\1"),
)
DETAIL: Rules = ((r"classifier\..*", None), (r"convnext\.(.*)", r"\1"))
MASK: Rules = ((r"module\.(.*)", r"\1"),)

log = logging.getLogger("foundation")


@dataclass(frozen=True)
class Part:
    """A checkpoint whose tensors were found to be exactly those of a configuration."""

    checkpoint: Checkpoint
    names: Mapping[str, str]
    """From a tensor's name here to its name there."""

    aside: list[str]
    """Tensors that belong to something else, by their names there."""

    dtype: torch.dtype

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by our names, in memory."""
        return {own: self.checkpoint.tensor(name).clone() for own, name in self.names.items()}


def part(place: Path, rules: Rules, expected: nn.Module, optional: tuple[str, ...] = ()) -> Part:
    """The checkpoint in a folder or file, held to the names and shapes of a module, which may lie on the meta device.

    Raises InputError that counts all tensors that are missing, unexpected or of another shape. Nothing is resized.
    """
    found = checkpoint.read(place)
    shapes = found.shapes
    names, aside = checkpoint.renamed(shapes, rules, place)
    needed = {name: tuple(value.shape) for name, value in expected.state_dict().items() if name in names or name not in optional}
    checkpoint.check({own: shapes[name] for own, name in names.items()}, needed, place)
    if aside:
        log.info("%s: left aside %d tensors that are no part of it, from %s to %s", place, len(aside), aside[0], aside[-1])
    return Part(found, names, aside, found.dtype(names.values()))


def language_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a language model's folder; LLaVA-1.5's and MedPLIB's are Llama's with more in it."""
    given = checkpoint.settings(folder)
    if "mm_hidden_size" not in given:
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            raise InputError(
                f"{folder / 'config.json'}: expected a model_type that transformers knows, found {given.get('model_type')}"
            ) from error
    known = {*LlamaConfig().to_dict(), "rope_theta", "rope_scaling"} - {"model_type", "architectures"}
    return LlamaConfig(**{key: value for key, value in given.items() if key in known})


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The language model's own tokenizer, padding on the left."""
    try:
        # Said here and not set later, because only what a tokenizer is made with is stored with it.
        found: Any = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{folder}: expected a tokenizer.json with its settings, found {str(error).splitlines()[0]}") from error
    return found


@fitting()
def configuration(
    vlm: Vlm, tokenizer: PreTrainedTokenizerBase, vision: PreTrainedConfig, detail: PreTrainedConfig, text: PreTrainedConfig
) -> UniMedConfig:
    """The architecture of params.yaml over these towers and this language model, with what the model must know of the tokenizer.

    Raises InputError for numbers that do not fit together.
    """
    return UniMedConfig(
        vision_config=vision, detail_config=detail, text_config=text, mask_config=SamMed2DConfig(**vlm.mask),
        **vlm.model_dump(exclude={"vision", "detail", "text", "mask"}), **tokenizers.known(tokenizer),
    )  # fmt: skip


def write(folder: Path, vlm: Vlm, places: Mapping[str, Path], **facts: object) -> None:
    """Store a foundation from checkpoints and seal it; `places` are those of language_model, vision, detail and mask."""
    text = language_config(places["language_model"])
    tokenizer = _tokenizer(places["language_model"])
    known = set(tokenizer.get_vocab().values())
    tokenizer = tokenizers.adopt(tokenizer)
    normalised = checkpoint.image_statistics(places["detail"])
    with torch.device("meta"), fitting():
        language = AutoModelForCausalLM.from_config(text)
        sam = SamMed2D(SamMed2DConfig(**vlm.mask))
    if EMBEDDING not in language.state_dict():
        raise InputError(f"{places['language_model']}: expected a language model built like Llama's, found a {text.model_type}")
    tied = bool(text.tie_word_embeddings)
    rules = ((HEAD, None), *LANGUAGE) if tied else LANGUAGE
    parts = {
        "language_model": part(places["language_model"], rules, language, optional=(HEAD,) if tied else ()),
        "mask": part(places["mask"], MASK, sam),
        "vision": _tower(folder, "vision", places["vision"], VISION, CLIPVisionModel, CLIPVisionConfig),
        "detail": _tower(folder, "detail", places["detail"], DETAIL, ConvNextModel, ConvNextConfig),
    }
    _same_type(parts, places)
    text.dtype = parts["language_model"].dtype
    _link(parts["language_model"], folder / LANGUAGE_MODEL)
    text.save_pretrained(folder / LANGUAGE_MODEL)
    ids = set(tokenizer.get_vocab().values())
    added = sorted((ids - known) | {*range(text.vocab_size, max(ids) + 1)})
    weights.write(folder / ADDED_ROWS, added_rows(parts["language_model"], added, sorted(known - {*added})), {})
    weights.write(folder / "mask", {f"grounding.sam.{name}": value for name, value in parts["mask"].tensors().items()}, {})
    config = _whole(folder, vlm, tokenizer, text, parts)
    if normalised:
        config.detail_image_mean, config.detail_image_std = normalised
    else:
        log.info("%s: no %s, so its images are normalised like ImageNet's", places["detail"], checkpoint.PREPROCESSOR)
    config.save_pretrained(folder)
    UniMedProcessor.of(config, tokenizer).save_pretrained(folder / "processor")
    artifacts.seal(folder, {}, left_aside={name: len(found.aside) for name, found in sorted(parts.items())}, **facts)


def _tower(
    folder: Path, name: str, place: Path, rules: Rules, model: type[CLIPVisionModel | ConvNextModel], config: type[PreTrainedConfig]
) -> Part:
    """A tower's checkpoint, stored in the foundation in Hugging Face's form and in its own type."""
    checkpoint.settings(place)
    shape = config.from_pretrained(place)
    with torch.device("meta"):
        tower = model(shape)
    found = part(place, rules, tower)
    tower.load_state_dict(found.tensors(), assign=True)
    tower.save_pretrained(folder / name)
    return found


def _same_type(parts: Mapping[str, Part], places: Mapping[str, Path]) -> None:
    """Raise InputError when the two towers differ in type: each block of one takes in what the other saw."""
    vision, detail = parts["vision"].dtype, parts["detail"].dtype
    if vision != detail:
        raise InputError(f"{places['detail']}: expected the type of {places['vision']}, {vision}, found {detail}; convert one of them")


def _whole(folder: Path, vlm: Vlm, tokenizer: PreTrainedTokenizerBase, text: PreTrainedConfig, parts: Mapping[str, Part]) -> UniMedConfig:
    """The configuration of the whole model: a vocabulary with room for the added tokens, an output layer of its own, types as found."""
    vision, detail = CLIPVisionConfig.from_pretrained(folder / "vision"), ConvNextConfig.from_pretrained(folder / "detail")
    text.vocab_size = max(text.vocab_size, max(tokenizer.get_vocab().values()) + 1)
    text.pad_token_id = tokenizer.pad_token_id
    # `<SEG>` has two rows of its own, so a table that served both sides can no longer do so.
    text.tie_word_embeddings = False
    vision.dtype, detail.dtype = parts["vision"].dtype, parts["detail"].dtype
    config = configuration(vlm, tokenizer, vision, detail, text)
    config.mask_config.dtype = parts["mask"].dtype
    return config


def _link(found: Part, folder: Path) -> None:
    """The language model's files as hard links where they are safetensors of nothing else, and else written anew, one at a time."""
    folder.mkdir(parents=True)
    ours = {name: own for own, name in found.names.items()}
    several = len(found.checkpoint.files) > 1
    index: dict[str, str] = {}
    for file in found.checkpoint.files:
        name = f"{file.stem}.safetensors" if several else "model.safetensors"
        kept = {there: ours[there] for there in found.checkpoint.names(file) if there in ours}
        if file.suffix == ".safetensors" and list(kept.values()) == found.checkpoint.names(file):
            outputs.link(file, folder / name)
        elif kept:
            save_file({own: found.checkpoint.tensor(there).contiguous() for there, own in kept.items()}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(kept.values(), name)
    if several:
        size = sum(file.stat().st_size for file in folder.iterdir())
        listing = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listing, indent=1) + "\n")


def added_rows(language: Part, tokens: list[int], known: list[int]) -> dict[str, Tensor]:
    """A row for each added token in the embedding table and in the output layer: the mean of those of tokens that were `known`."""
    rows = {}
    for side, name in (("input", EMBEDDING), ("output", HEAD)):
        table = language.checkpoint.tensor(language.names.get(name, language.names[EMBEDDING]))
        rows[side] = table[known].mean(0, dtype=torch.float32).to(table.dtype).expand(len(tokens), -1)
    return {"tokens": torch.tensor(tokens), **rows}
