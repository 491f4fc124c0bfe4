"""Answers written together, several to each prompt: every step gives each its next word, in shapes that stay as they are.

The keys and values of a prompt are held once for all its answers. A step waits for nothing, so that a GPU replays it as one graph.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from unimed.model.attention import attending
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.rl.joined import joined
from unimed.rl.replayed import compiled, once, recorded
from unimed.rl.shared_attention import NAME, Memory, blocks

LOOK = 16
"""Words between two looks, each of which waits for the GPU, at whether all answers have ended."""


class Answers:
    """The answers in the making: `said` holds their words, padding after their ends, `ended` which of them have one."""

    def __init__(self, model: UniMedForConditionalGeneration, inputs: Any, siblings: int, chosen: GenerationConfig):
        """Read every prompt once and say each answer's first word. `chosen` asks for nothing but temperature and forbidden words."""
        self.model, self.pick, device = model, picked, model.device
        self.temperature = chosen.temperature if chosen.do_sample else None
        self.pad = chosen.pad_token_id
        self.ends, self.forbidden = (
            torch.tensor(ids or [], dtype=torch.long, device=device) for ids in (_ends(chosen), chosen.suppress_tokens)
        )
        mask = inputs["attention_mask"]
        self.said = torch.full((len(mask) * siblings, chosen.max_new_tokens), self.pad, device=device)
        self.ended = torch.zeros(len(self.said), dtype=torch.bool, device=device)
        self.place, self.position = torch.full((1,), -1, device=device), mask.sum(1, keepdim=True).repeat_interleave(siblings, 0) - 1
        seen = DynamicCache(config=model.config.text_config)
        logits = model(**inputs, past_key_values=seen, use_cache=True, logits_to_keep=1).logits
        heads = model.config.text_config.num_attention_heads // seen.layers[0].keys.shape[1]
        self.blocks = blocks(mask, siblings, chosen.max_new_tokens, heads)
        self.memories = [self._memory(seen, layer, siblings) for layer in range(len(seen.layers))]
        self._say(logits[:, 0].repeat_interleave(siblings, 0))

    def step(self) -> None:
        """One more word of every answer. Those that have ended get padding, and are worked on like the others."""
        backbone, newest = self.model.model, self.said.index_select(1, self.place)
        hidden = backbone.embedded(newest, self.model.grounding.seg_input)
        turned = backbone.language_model.rotary_emb(hidden, position_ids=self.position)
        self.blocks.used[-len(self.said) :].add_(1)
        for layer, memory in zip(backbone.language_model.layers, self.memories, strict=True):
            hidden = layer(hidden, position_embeddings=turned, past_key_values=memory, siblings=memory)
        self.blocks.newest.add_(1)
        self._say(self.model.logits(backbone.language_model.norm(hidden)[:, 0]))

    def _say(self, logits: Float[Tensor, "answer vocabulary"]) -> None:
        # What torch.multinomial does, which would wait for the GPU to check its input.
        noise = None if self.temperature is None else torch.empty_like(logits, dtype=torch.float32).exponential_()
        word = self.pick(logits, self.forbidden, noise, self.temperature).masked_fill(self.ended, self.pad)
        self.place.add_(1)
        self.position.add_(1)
        self.said.index_copy_(1, self.place, word.unsqueeze(1))
        self.ended.logical_or_((word.unsqueeze(1) == self.ends).any(1))

    def _memory(self, seen: DynamicCache, number: int, siblings: int) -> Memory:
        """Of a layer; what the prompts left in `seen` is taken out of it."""
        layer, gates = seen.layers[number], getattr(seen, "expert_gates", {})
        # Zeros, because what no word has filled may be multiplied by a share of zero.
        room = layer.keys.new_zeros(self.said.numel(), layer.keys.shape[1], layer.keys.shape[3])
        keys, values = (torch.cat([side.transpose(1, 2).flatten(0, 1), room]) for side in (layer.keys, layer.values))
        layer.keys = layer.values = None
        own = {number: gates[number].repeat_interleave(siblings, 0)} if number in gates else {}
        return Memory(keys, values, self.blocks, own)


def picked(
    logits: Float[Tensor, "answer vocabulary"],
    forbidden: Int[Tensor, " token"],
    noise: Float[Tensor, "answer vocabulary"] | None,
    temperature: float | None,
) -> Int[Tensor, " answer"]:
    """The likeliest word of each answer or, with exponential noise, one drawn by its probability at a temperature."""
    scores = logits.float().index_fill(1, forbidden, -torch.inf)
    return (scores if noise is None else scores / temperature - noise.log()).argmax(-1)


def _ends(chosen: GenerationConfig) -> list[int] | None:
    end = chosen.eos_token_id
    return [end] if isinstance(end, int) else end


@torch.no_grad()
def write(model: UniMedForConditionalGeneration, inputs: Any, siblings: int, chosen: GenerationConfig) -> Int[Tensor, "answer new"]:
    """New tokens of `siblings` answers to each prompt, in the prompts' order, as `generate` draws them; padding after an end."""
    gpu, training, language = model.device.type == "cuda", model.training, model.model.language_model
    model.eval()  # else layers that are computed twice would refuse to remember
    try:
        with joined(language):
            answers = Answers(model, inputs, siblings, chosen)
            with attending(language, NAME), compiled(language) if gpu else nullcontext():
                if gpu:
                    answers.pick = once(picked)
                _finish(answers, recorded if gpu else None)
    finally:
        model.train(training)
    return answers.said


def _finish(answers: Answers, record: Callable[[Callable[[], None]], Callable[[], None]] | None) -> None:
    """Say all further words. The first step is not recorded: it compiles and makes room for what is new in it."""
    step = answers.step
    for number in range(answers.said.shape[1] - 1):
        if number % LOOK == 0 and bool(answers.ended.all()):
            return
        if number == 1 and record is not None:
            step = record(answers.step)
        step()
