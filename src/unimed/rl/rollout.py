"""Sampling several answers to each prompt with what siblings share done once: reading the prompt and encoding the image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers import DynamicCache
from trl import GRPOTrainer

from unimed.model.processor import Message, UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration

Rollout = Callable[[list[list[Message]], GRPOTrainer], dict[str, Any]]


def rollout(processor: UniMedProcessor) -> Rollout:
    """TRL's hook for sampling. It answers `num_generations` equal prompts in a row from one reading of the prompt."""

    def answer(prompts: list[list[Message]], trainer: GRPOTrainer) -> dict[str, Any]:
        model, siblings = trainer.accelerator.unwrap_model(trainer.model_wrapped), trainer.num_generations
        read = processor.apply_chat_template(prompts[::siblings], tokenize=True, return_dict=True, add_generation_prompt=True)
        inputs = processor.tokenizer.pad({"input_ids": read["input_ids"]}, return_tensors="pt") | {"pixel_values": read["pixel_values"]}
        new = sample(model, {name: tensor.to(model.device) for name, tensor in inputs.items()}, siblings, trainer.generation_config)
        return {
            "prompt_ids": [ids for ids in read["input_ids"] for _ in range(siblings)],
            "completion_ids": [_through_end(ids, trainer.eos_token_ids) for ids in new.tolist()],
            "logprobs": None,
        }

    return answer


@torch.no_grad()
def sample(
    model: UniMedForConditionalGeneration, inputs: Any, siblings: int, generation_config: Any
) -> Int[Tensor, "answer new"]:
    """New tokens of `siblings` answers to each prompt, in the prompts' order; what `generate` gives, for one reading of each."""
    cache = DynamicCache(config=model.config.text_config)
    model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    # `generate` must have a token to go on from; the gates of the whole prompt stay remembered.
    cache.crop(-1)
    cache.batch_repeat_interleave(siblings)
    cache.expert_gates = {layer: gates.repeat_interleave(siblings, 0) for layer, gates in getattr(cache, "expert_gates", {}).items()}
    ids, mask = (inputs[name].repeat_interleave(siblings, 0) for name in ("input_ids", "attention_mask"))
    return model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=generation_config)[:, ids.shape[1] :]


def _through_end(ids: list[int], ends: list[int]) -> list[int]:
    """The ids up to and with the first end token."""
    return ids[: next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))]


class EncodeOnce(nn.Module):
    """An encoder for batches in which images repeat: it encodes each distinct one once, with the gradient of all its copies."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Float[Tensor, "image 3 size size"]) -> Float[Tensor, "image patch width"]:
        """What the encoder makes of every image."""
        rows, copy_of = first_alike(images).unique(return_inverse=True)
        return self.encoder(images[rows])[copy_of]


def first_alike(images: Float[Tensor, "image 3 size size"]) -> Int[Tensor, " image"]:
    """For every image the number of the first that equals it in all pixels."""
    number = torch.arange(len(images), device=images.device)
    _, group = adaptive_avg_pool2d(images, 4).flatten(1).unique(dim=0, return_inverse=True)
    first = torch.full_like(number, len(images)).scatter_reduce(0, group, number, "amin")[group]
    return torch.where((images == images[first]).flatten(1).all(1), first, number)


@contextmanager
def encoding_once(model: UniMedForConditionalGeneration) -> Iterator[None]:
    """Within the block the model encodes an image that a batch holds several times once."""
    encoder = model.model.encoder
    model.model.encoder = EncodeOnce(encoder)
    try:
        yield
    finally:
        model.model.encoder = encoder
