"""A training of our own loop on samples that are nothing but their sizes: its steps, its memory and what was compiled."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.shapes import Drawn, DrawnCollator, Endless, build, config
from unimed.config import Optimisation
from unimed.model import adapters, assemble
from unimed.model.canvas import Grid
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.train import loop, memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM = 10 if DEVICE.type == "cuda" else 2
"""Steps before the clock starts: the first compiles, the others fill the memory that batches are read ahead into."""


class Enough(Exception):  # noqa: N818
    """All steps were seen."""


@dataclass
class Clock:
    """Notes when every pass begins, what it reads, and stops the run after as many as asked."""

    steps: int
    began: float = field(default_factory=time.perf_counter)
    ticks: list[Any] = field(default_factory=list)
    samples: int = 0
    tokens: int = 0
    warm: float = 0.0
    graphs: int = 0

    def tick(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A pass begins."""
        if len(self.ticks) == WARM:
            wait()
            self.warm, self.graphs = time.perf_counter() - self.began, counters["stats"]["unique_graphs"]
        if len(self.ticks) >= WARM + self.steps:
            self.ticks.append(now())
            raise Enough
        if len(self.ticks) >= WARM:
            self.samples, self.tokens = self.samples + kwargs["packing"].samples, self.tokens + kwargs["packing"].tokens
        self.ticks.append(now())

    def seconds(self) -> float:
        """Time of the steps after the warm ones."""
        wait()
        first, last = self.ticks[WARM], self.ticks[-1]
        return first.elapsed_time(last) / 1000 if DEVICE.type == "cuda" else last - first


@dataclass(frozen=True)
class Measured:
    """What a run of our own loop did."""

    step: float
    samples: float
    tokens: float
    warm: float
    recompiles: int
    peak: float
    expected: float


def ours(
    shape: str,
    samples: Sequence[Drawn],
    settings: dict[str, Any],
    steps: int,
    experts: int = 0,
    rank: int = 16,
    canvases: list[Grid] | tuple[()] = (),
    **losses: Any,
) -> Measured:
    """A stage through `loop.fit`: what trains follows from its losses and experts."""
    names = [f"e{number}" for number in range(experts)]
    more = {"experts": names, "expert_ranks": [rank] * experts, "expert_scalings": [2.0] * experts}
    more = more | {"expert_targets": list(assemble.EXPERT_TARGETS)} if experts else {}
    model = build(config(shape, canvases=canvases, **more), DEVICE)
    chosen = {name: value for name, value in settings.items() if name != "trained"}
    loop.train_only(model, _trained(model, settings["trained"], rank))
    chosen = Optimisation(max_steps=100_000, learning_rate=1e-4, **chosen)
    clear()
    expected = memory.estimate(model, chosen).total / memory.GIB
    clock = Clock(steps)
    handle = model.register_forward_pre_hook(clock.tick, with_kwargs=True)
    try:
        loop.fit(model, Endless(samples), DrawnCollator(model.config), chosen, 0, "benchmark", **losses)
    except Enough:
        handle.remove()
    seconds, peak = clock.seconds(), torch.cuda.max_memory_allocated() / memory.GIB if DEVICE.type == "cuda" else 0.0
    step = seconds / steps
    recompiles = counters["stats"]["unique_graphs"] - clock.graphs
    warm = clock.warm - WARM * step
    return Measured(step, clock.samples / seconds, clock.tokens / seconds, warm, recompiles, peak, expected)


def _trained(model: UniMedForConditionalGeneration, what: str, rank: int) -> list[str]:
    """The names of what a stage trains, its adapter added."""
    if what == "align":
        return assemble.ALIGNED
    if what == "router":
        return [name for name, _ in model.named_modules() if name.endswith(".router.linear")]
    added = adapters.add(model.model.language_model, "expert", rank, 2.0, assemble.EXPERT_TARGETS)
    return [f"model.language_model.{name}" for name in added] + (assemble.GROUNDING if what == "grounding" else [])


def matmul_rate(count: int = 20) -> float:
    """Operations a second of a large product in the dtype that trains, over so many of them."""
    size = 8192 if DEVICE.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait()
    start = time.perf_counter()
    for _ in range(count):
        a @ b
    wait()
    return count * 2 * size**3 / (time.perf_counter() - start)


def now() -> Any:
    """A moment, on the GPU's own clock where there is one."""
    if DEVICE.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def wait() -> None:
    """Until the GPU has done all it was told."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def clear() -> None:
    """Forget what was held, and the most that was."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
