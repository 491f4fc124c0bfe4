"""Stage 5's rollout: answers to a few prompts, written together beside transformers' `generate` with its dynamic cache."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import GenerationConfig

from benchmarks.shapes import DrawnCollator, build, config, drawn
from unimed.model import adapters, assemble
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.rl import siblings


@dataclass(frozen=True)
class Load:
    """How many prompts of how many tokens, image included, with how many answers each, of how many words."""

    prompts: int
    prompt: int
    siblings: int
    new: int

    @property
    def tokens(self) -> int:
        """All words written."""
        return self.prompts * self.siblings * self.new


@dataclass(frozen=True)
class Written:
    """Seconds of the first rollout, which compiles, and of the second; graphs that the second added; seconds of reading prompts alone."""

    first: float
    second: float
    graphs: int
    reading: float = 0.0


def policy(shape: str, level: str, device: torch.device) -> UniMedForConditionalGeneration:
    """A model with two routed experts and a reasoner beside them, in one dtype."""
    names = {"experts": ["vqa", "grounding"], "expert_ranks": [16, 16], "expert_scalings": [2.0, 2.0], "router_level": level}
    model = build(config(shape, **names, expert_targets=list(assemble.EXPERT_TARGETS)), device)
    adapters.add(model.model.language_model, "reasoner", 16, 2.0, assemble.EXPERT_TARGETS)
    return model.to(device, model.dtype).eval()


def asked(model: UniMedForConditionalGeneration, load: Load) -> dict[str, Tensor]:
    """Prompts of one image and random words each."""
    collator = DrawnCollator(model.config)
    words = load.prompt - model.config.tokens_per_view
    ids = torch.stack([torch.from_numpy(collator.piece(drawn(1, words, words)).ids) for _ in range(load.prompts)])
    pixels = collator.pixels[:1].expand(load.prompts, -1, -1, -1).contiguous()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {name: tensor.to(model.device) for name, tensor in given.items()}


def plain(model: UniMedForConditionalGeneration, load: Load, wait: Callable[[], None]) -> float:
    """Seconds of `generate` with every prompt as often as it has answers, after a few words to warm up."""
    given = asked(model, load)
    for chosen in (_drawing(replace(load, new=2), load.siblings), _drawing(load, load.siblings)):
        wait()
        start = time.perf_counter()
        model.generate(**given, generation_config=chosen)
        wait()
    return time.perf_counter() - start


def together(model: UniMedForConditionalGeneration, load: Load, wait: Callable[[], None]) -> Written:
    """`siblings.write`, as stage 5 calls it."""
    given = asked(model, load)
    reading = _twice(lambda: siblings.write(model, given, load.siblings, _drawing(replace(load, new=1))), wait).second
    return replace(_twice(lambda: siblings.write(model, given, load.siblings, _drawing(load)), wait), reading=reading)


def _drawing(load: Load, copies: int = 1) -> GenerationConfig:
    ends = {"pad_token_id": 0, "max_new_tokens": load.new}  # without an end token, so that all are as long
    drawing = {"do_sample": True, "temperature": 1.0, "top_k": 0, "num_return_sequences": copies}
    return GenerationConfig(**drawing, **ends, use_cache=True, disable_compile=True)


def _twice(write: Callable[[], Tensor], wait: Callable[[], None]) -> Written:
    marks, graphs = [], []
    for _ in range(2):
        start = time.perf_counter()
        write()
        wait()
        marks.append(time.perf_counter() - start)
        graphs.append(counters["stats"]["unique_graphs"])
    return Written(marks[0], marks[1], graphs[1] - graphs[0])


def memory_rate(device: torch.device, size: int, wait: Callable[[], None]) -> float:
    """Bytes a second that a copy of `size` bytes reads and writes."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    wait()
    start = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    wait()
    return 10 * 2 * size / (time.perf_counter() - start)


def limit(model: UniMedForConditionalGeneration, load: Load, rate: float) -> float:
    """Words a second if a step did nothing but read the language model once and what has been seen, each prompt once, at `rate`.

    Of an answer's own words half are there on the mean step.
    """
    read = _weights(model) + kept(model, load.prompts * load.prompt + load.prompts * load.siblings * load.new // 2)
    return load.prompts * load.siblings * rate / read


def expected(model: UniMedForConditionalGeneration, load: Load) -> int:
    """Bytes that the model, its layers once more, and the keys and values take."""
    every = sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers(), model.model.language_model.layers.parameters()))
    return every + kept(model, load.prompts * load.prompt + load.prompts * load.siblings * load.new)


def kept(model: UniMedForConditionalGeneration, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens."""
    text = model.config.text_config
    return 2 * tokens * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * model.dtype.itemsize


def _weights(model: UniMedForConditionalGeneration) -> int:
    read = [*model.model.language_model.layers.parameters(), model.lm_head.weight]
    return sum(tensor.nbytes for tensor in read)
