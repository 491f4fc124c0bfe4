"""Answers written together, several to each prompt: every step gives each its next word, in shapes that stay as they are.

The keys and values of a prompt are held once for all its answers. A step waits for nothing, so that a GPU replays it as one graph.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from unimed.model.attention import attending
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.rl.replayed import compiled, recorded
from unimed.rl.shared_attention import NAME, Memory

WINDOW = 64
"""Room for an answer's words is read up to a multiple of this; each multiple is a graph of its own."""

LOOK = 16
"""Words between two looks, each of which waits for the GPU, at whether all answers have ended. Divides `WINDOW`."""


class Answers:
    """The answers in the making: `said` holds their words, padding after their ends, `ended` which of them have one."""

    def __init__(self, model: UniMedForConditionalGeneration, inputs: Any, siblings: int, chosen: GenerationConfig):
        """Read every prompt once and say each answer's first word. `chosen` asks for nothing but temperature and forbidden words."""
        self.model, device = model, model.device
        self.temperature = chosen.temperature if chosen.do_sample else None
        self.pad = chosen.pad_token_id
        self.ends, self.forbidden = (
            torch.tensor(ids or [], dtype=torch.long, device=device) for ids in (_ends(chosen), chosen.suppress_tokens)
        )
        mask = inputs["attention_mask"].repeat_interleave(siblings, 0)
        self.prompt: Bool[Tensor, "answer prompt"] = mask.bool()
        self.said = torch.full((len(mask), chosen.max_new_tokens), self.pad, device=device)
        self.ended = torch.zeros(len(mask), dtype=torch.bool, device=device)
        self.place, self.position = torch.full((1,), -1, device=device), mask.sum(1, keepdim=True) - 1
        seen = DynamicCache(config=model.config.text_config)
        logits = model(**inputs, past_key_values=seen, use_cache=True, logits_to_keep=1).logits
        self.memories = [self._memory(seen, layer, siblings) for layer in range(len(seen.layers))]
        self.window = 0
        self._say(logits[:, 0].repeat_interleave(siblings, 0))

    def widen(self, window: int) -> None:
        """Let answers reach this many words."""
        self.window = window
        for memory in self.memories:
            memory.widen(window)

    def step(self) -> None:
        """One more word of every answer. Those that have ended get padding, and are worked on like the others."""
        backbone, newest = self.model.model, self.said.index_select(1, self.place)
        hidden = backbone.embedded(newest, self.model.grounding.seg_input)
        own = torch.arange(self.window, device=self.place.device) <= self.place
        shown = torch.cat([self.prompt, own.expand(len(self.said), -1)], 1)[:, None, None]
        hidden_from = torch.zeros_like(shown, dtype=torch.float32).masked_fill(~shown, -torch.inf)
        turned = backbone.language_model.rotary_emb(hidden, position_ids=self.position)
        for layer, memory in zip(backbone.language_model.layers, self.memories, strict=True):
            hidden = layer(hidden, attention_mask=hidden_from, position_embeddings=turned, past_key_values=memory, siblings=memory)
        self._say(self.model.logits(backbone.language_model.norm(hidden)[:, 0]))

    def _say(self, logits: Float[Tensor, "answer vocabulary"]) -> None:
        scores = logits.float().index_fill(1, self.forbidden, -torch.inf)
        if self.temperature is not None:
            # What torch.multinomial does, which would wait for the GPU to check its input.
            shares = (scores / self.temperature).softmax(-1)
            scores = shares / torch.empty_like(shares).exponential_(1)
        word = scores.argmax(-1).masked_fill(self.ended, self.pad)
        self.place.add_(1)
        self.position.add_(1)
        self.said.index_copy_(1, self.place, word.unsqueeze(1))
        self.ended.logical_or_((word.unsqueeze(1) == self.ends).any(1))

    def _memory(self, seen: DynamicCache, layer: int, siblings: int) -> Memory:
        keys, values = seen.layers[layer].keys, seen.layers[layer].values
        answers, new = self.said.shape
        # One place more than is ever read: a window that is all of the room would lie otherwise and ask for another graph.
        room = (answers, keys.shape[1], -(-new // WINDOW) * WINDOW + 1, keys.shape[3])
        gates = {
            number: gates.repeat_interleave(siblings, 0) for number, gates in getattr(seen, "expert_gates", {}).items() if number == layer
        }
        # Zeros, because what no word has filled is multiplied by a share of zero.
        return Memory(keys, values, keys.new_zeros(room), values.new_zeros(room), self.place, gates)


def _ends(chosen: GenerationConfig) -> list[int] | None:
    end = chosen.eos_token_id
    return [end] if isinstance(end, int) else end


@torch.no_grad()
def write(model: UniMedForConditionalGeneration, inputs: Any, siblings: int, chosen: GenerationConfig) -> Int[Tensor, "answer new"]:
    """New tokens of `siblings` answers to each prompt, in the prompts' order, as `generate` draws them; padding after an end."""
    gpu, training = model.device.type == "cuda", model.training
    model.eval()  # else layers that are computed twice would refuse to remember
    try:
        answers = Answers(model, inputs, siblings, chosen)
        with attending(model.model.language_model, NAME), compiled(model.model.language_model) if gpu else nullcontext():
            _finish(answers, recorded if gpu else None)
    finally:
        model.train(training)
    return answers.said


def _finish(answers: Answers, record: Callable[[Callable[[], None]], Callable[[], None]] | None) -> None:
    """Say all further words. A window's first step is not recorded: it compiles and makes room for what is new in it."""
    step = answers.step
    for number in range(answers.said.shape[1] - 1):
        if number % LOOK == 0 and bool(answers.ended.all()):
            return
        if number % WINDOW == 0:
            answers.widen(number + WINDOW)
            step = answers.step
        elif number % WINDOW == 1 and record is not None:
            step = record(answers.step)
        step()
