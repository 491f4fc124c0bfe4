"""The rehearsal's foundation: a model of the configured shape, its tokenizer, and a brief stand-in for pre-training."""

from typing import Any

import numpy as np
from transformers import AutoConfig, CLIPVisionConfig, ConvNextConfig, PreTrainedTokenizerBase, set_seed

from unimed.config import Vlm
from unimed.data import phantom_text, phantoms
from unimed.data.records import REGION
from unimed.errors import InputError
from unimed.model import foundations
from unimed.model import tokenizer as tokenizers
from unimed.model.assemble import Assembled
from unimed.model.configuration import UniMedConfig, fitting
from unimed.model.processor import UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.origins import StandIn
from unimed.train import rehearsal_language, rehearsal_vision

WORDS = "Please segment the and in this image. There is no. Reason in then answer <think></think> <answer></answer> A) B) C) D)\n"
"""Words of later stages' prompts, so that the tokenizer has them whole; of these the language model is shown the tags alone."""


def build(vlm: Vlm, settings: StandIn, seed: int) -> Assembled:
    """A fresh model of the configured shape with a tokenizer made from the phantoms' words."""
    set_seed(seed)
    tokenizer = tokenizers.build(_texts(seed), settings.vocabulary)
    config = configuration(vlm, tokenizer)
    processor = UniMedProcessor.of(config, tokenizer)
    return Assembled(UniMedForConditionalGeneration(config), processor)


@fitting()
def configuration(vlm: Vlm, tokenizer: PreTrainedTokenizerBase) -> UniMedConfig:
    """The architecture of params.yaml, its towers included, with the special tokens of a tokenizer.

    Raises InputError for numbers that are missing or do not fit together.
    """
    if vlm.vision is None or vlm.detail is None or vlm.text is None:
        raise InputError("params.yaml: vlm must hold vision, detail and text where foundation names no checkpoints, lacks one of them")
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    words = {"vocab_size": len(tokenizer), "tie_word_embeddings": False, **tokens}
    text = AutoConfig.for_model(**{"model_type": "llama"} | vlm.text | words)
    return foundations.configuration(vlm, tokenizer, CLIPVisionConfig(**vlm.vision), ConvNextConfig(**vlm.detail), text)


def teach(made: Assembled, settings: StandIn, seed: int) -> dict[str, list[float]]:
    """Show every frozen part what its stand-in needs; returns the losses of each."""
    model = made.model
    shown = rehearsal_vision.show(settings, model.config.image_size, seed)
    return {
        "vision": rehearsal_vision.train_encoder(model.model.encoder, shown, settings, seed),
        "masks": rehearsal_vision.train_masks(model.grounding.sam, model.grounding.normalise, shown, settings, seed),
        "language": rehearsal_language.train_language(model, made.processor, shown, settings, seed),
    }


def _texts(seed: int) -> list[str]:
    rng = np.random.default_rng([seed, 5])
    scenes = list(phantoms.scenes(60, 4, seed + 2_000_003))
    texts: list[Any] = [phantom_text.caption(scene) for scene in scenes]
    texts += [words for scene in scenes for item in phantom_text.closed_questions(scene, rng) for words in item[1:]]
    texts += [item[key] for scene in scenes for item in phantom_text.reasoning_items(scene, rng) for key in ("question", "rationale")]
    return [*texts, *[f"Which structure lies in {REGION}? The marked region shows the"] * 20, *[WORDS] * 40]
