"""GPU hours of a training at full size, before it is paid for: what must be computed, beside the share of a card that was measured."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import CLIPVisionConfig, ConvNextConfig, LlamaConfig

from unimed import params, throughput
from unimed.config import GroundingTraining, LoraTraining, MoeRouter, Vlm
from unimed.model import foundations
from unimed.model.canvas import squares
from unimed.model.configuration import UniMedConfig, fitting
from unimed.origins import Foundation, OwnFoundation
from unimed.rewarding import Grpo
from unimed.sections import Optimisation
from unimed.throughput import BANDWIDTH, CARD, MEASURED, RATE, Measured

REPLAYED = {"without_detail": ("align", "vqa_expert")}
"""A control that trains as other stages do, once more."""

Span = tuple[float, float]
"""GPU seconds at least and at most, as samples are small or large."""


@dataclass(frozen=True)
class Line:
    """GPU hours of a training: at the limit, which none undercuts, and at the measured share of it, where there is one."""

    name: str
    steps: int
    limit: Span
    expected: Span | None
    as_measured: bool
    """Whether params ask for what was measured."""


@dataclass(frozen=True)
class Sample:
    """How much of a sample the language model reads."""

    views: int
    words: int

    def tokens(self, config: UniMedConfig) -> int:
        """Its length."""
        return self.views * config.tokens_per_view + self.words


def lines(numbers: dict[str, Any]) -> tuple[list[Line], str] | None:
    """The trainings of these params, and whose sizes they have; None where a stand-in is trained, which takes minutes."""
    foundation = params.parse("foundation", Foundation, numbers)
    if not isinstance(foundation, OwnFoundation):
        return None
    config, sizes = configuration(params.parse("vlm", Vlm, numbers), foundation)
    kinds = {"align": Optimisation, "vqa_expert": LoraTraining, "grounding_expert": GroundingTraining, "moe_router": MoeRouter}
    taken = {name: params.parse(name, kind, numbers) for name, kind in kinds.items()}
    trained = {name: training(name, settings, MEASURED[name], config) for name, settings in taken.items()}
    twice = [both(name, [trained[part] for part in parts]) for name, parts in REPLAYED.items()]
    return [*trained.values(), *twice, *reasoning(params.parse("grpo", Grpo, numbers), config)], sizes


def configuration(vlm: Vlm, foundation: OwnFoundation) -> tuple[UniMedConfig, str]:
    """The model's sizes, from the checkpoints where they are there, else those that full size means; and which it was."""
    pinned = foundation.checkpoints
    places = (pinned.language_model.path, pinned.vision.path, pinned.detail.path)
    if all((place / "config.json").exists() for place in places):
        text, sizes = foundations.language_config(places[0]), "those of the checkpoints"
        vision, detail = CLIPVisionConfig.from_pretrained(places[1]), ConvNextConfig.from_pretrained(places[2])
    else:
        text, sizes = (
            LlamaConfig(**throughput.LANGUAGE["llama-3.1-8b"]),
            "Llama-3.1-8B's and the full towers', as no checkpoints are here",
        )
        vision, detail = CLIPVisionConfig(**throughput.VISION), ConvNextConfig(**throughput.DETAIL)
    shape = vlm.model_dump(exclude={"vision", "detail", "text", "mask"})
    with fitting():
        return UniMedConfig(vision_config=vision, detail_config=detail, text_config=text, **shape), sizes


def ends(config: UniMedConfig, words: int, turns: int) -> Iterator[Sample]:
    """The smallest sample and the largest: of the smallest canvas and one turn, of the largest and all turns."""
    views = [squares((rows, columns)) for rows, columns in config.canvases] or [1]
    yield Sample(min(views), words)
    yield Sample(max(views), words * turns)


def training(name: str, settings: Optimisation, measured: Measured, config: UniMedConfig) -> Line:
    """A training on samples, each of which has one image and, where it joins several, up to that many turns."""
    low, high = sorted(
        throughput.flops(config, sample.views, sample.tokens(config), sample.words, fused=name == "align") * count(settings, sample, config)
        for sample in ends(config, measured.words, getattr(settings, "turns", 1))
    )
    slower = measured.time / measured.share / RATE
    as_measured = settings.row_tokens is not None and settings.dtype == "bfloat16" and settings.compile and not settings.float8
    return Line(name, settings.max_steps, (low / RATE, high / RATE), (low * slower, high * slower), as_measured)


def count(settings: Optimisation, sample: Sample, config: UniMedConfig) -> float:
    """Samples of a run: so many a step, or as many as its rows hold."""
    taken = settings.batch_size * settings.max_steps
    return taken if settings.row_tokens is None else taken * settings.row_tokens / sample.tokens(config)


def both(name: str, parts: list[Line]) -> Line:
    """Several measured trainings, one after the other."""
    limit, expected = together([part.limit for part in parts]), together([part.expected for part in parts if part.expected])
    return Line(name, sum(part.steps for part in parts), limit, expected, all(part.as_measured for part in parts))


def together(spans: list[Span]) -> Span:
    """The sum of spans."""
    return sum(low for low, _ in spans), sum(high for _, high in spans)


def reasoning(settings: Grpo, config: UniMedConfig) -> list[Line]:
    """Both trainings of stage 5, each under a name of its own; of the rewarded one a bound is all there is."""
    cold = training("grpo, cold start", settings.cold_start, MEASURED["vqa_expert"], config)
    low, high = (rewarding(settings, sample, config) for sample in ends(config, MEASURED["vqa_expert"].words, 1))
    return [cold, Line("grpo, rewards", settings.max_steps, (low, high), None, as_measured=False)]


def rewarding(settings: Grpo, sample: Sample, config: UniMedConfig) -> float:
    """Seconds that rewards take at least: weights read once for every word of a rollout, then the gradient of prompts and answers.

    For answers of full length; the reading of prompts, of keys and values and all that is judged come on top.
    """
    text: Any = config.text_config
    length = settings.max_completion_length
    rollouts = math.ceil(settings.max_steps / settings.updates_per_rollout)
    weights = throughput.linears(config) + text.vocab_size * text.hidden_size
    sampling = rollouts * length * weights * (2 if settings.dtype == "bfloat16" else 4) / BANDWIDTH
    prompt = throughput.flops(config, sample.views, sample.tokens(config), 0)
    answers = settings.group_size * throughput.flops(config, 0, length, length)
    return sampling + settings.max_steps * settings.batch_size * (prompt + answers) / RATE


def table(found: list[Line], sizes: str, price: float | None) -> str:
    """The trainings as aligned lines, all together, and what that rests on; costs where there is a price of a GPU hour."""
    known = [line.expected for line in found if line.expected]
    cost = "" if price is None else f"cost at {price:g} an hour"
    rows = [f"{'GPU hours':20}{'steps':>8}  {'at least':16}{'as measured':18}{cost}".rstrip()]
    rows += [_row(line.name, f"{line.steps:,}", line.limit, line.expected, price) for line in found]
    rows.append(_row("together", "", together([line.limit for line in found]), together(known), price))
    return "\n".join([*rows, "", *_grounds(found, sizes)])


def _row(name: str, steps: str, limit: Span, expected: Span | None, price: float | None) -> str:
    cost = "" if price is None else _span(expected or limit, price)
    least = "at least " if price is not None and not expected else ""
    return f"{name:20}{steps:>8}  {_span(limit):16}{_span(expected) if expected else 'no estimate':18}{least}{cost}".rstrip()


def _span(seconds: Span, factor: float = 1.0) -> str:
    low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in (side / 3600 * factor for side in seconds))
    return low if low == high else f"{low}-{high}"


def _grounds(found: list[Line], sizes: str) -> Iterator[str]:
    caption, turn = MEASURED["align"].words, MEASURED["vqa_expert"].words
    yield f"Sizes are {sizes}. Small samples have the smallest canvas and one turn, large ones the largest and all turns;"
    yield f"a caption has {caption} words and a turn {turn}, as what was measured had: your data have others."
    yield f"At least: what must be computed, at {RATE / 1e12:.0f} TFLOP/s. As measured: at the share of it in docs/performance.md"
    yield f"for one {CARD}; another card differs roughly as its bfloat16 peak does, and several GPUs were not measured."
    if other := [line.name for line in found if line.expected and not line.as_measured]:
        yield "Measured were packed rows in bfloat16 with compiled layers; set otherwise, for which these hours are not, are"
        yield f"{'; '.join(other)}."
    yield "Of rewards there is a bound alone: weights are read for each word of answers of full length, and learnt from; a step of them is"
    yield "in docs/performance.md. The sum as measured lacks them. foundation and evaluate are not counted."
