"""Speed and memory of stages 1 to 4 and of stage 5's rollout and step at full size on random weights, beside baselines in one process.

python -m benchmarks.gpu [--shape llama-7b] [--row-tokens 8448] [--steps 20] [--flash-attn]
    [--only stage1,stage2,mix,stage3,stage4,canvases,rollout,step5]
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import answers, plain, reinforced
from benchmarks.shapes import Drawn, config, drawn, mixed
from benchmarks.timed import DEVICE, Measured, clear, matmul_rate, ours, wait
from unimed.config import MaskLoss, RouterLoss
from unimed.model.canvas import Grid, squares
from unimed.model.configuration import UniMedConfig
from unimed.throughput import flops
from unimed.train import memory

CANVASES: list[Grid] = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
"""FILA's."""

EIGHT_BITS = {"float8": True, "dtype": "bfloat16"}
"""Of a training whose frozen language model multiplies in eight bits; the limit beside it stays the bfloat16 one."""

CAPTIONS = 16
"""Samples of stage 1's row, which are all of one length: it has no padding, and with 776 tokens each it has 97 times 128."""

PACKAGE = {"flash_attn": True}
"""Of a training whose language model attends by flash-attn-4."""


def say(*cells: object) -> None:
    """A row of the table."""
    sys.stdout.write(f"| {' | '.join(f'{cell:.3g}' if isinstance(cell, float) else str(cell) for cell in cells)} |\n")
    sys.stdout.flush()


def report(name: str, unit: str, value: float, found: Measured, base: float | None, limit: float | None) -> None:
    """A measured stage beside its baseline and its limit."""
    ratio = f"{value / base:.2f} x {base:.4g}" if base else ""
    share = f"{value / limit:.0%} of {limit:.4g}" if limit else ""
    memory_ = f"{found.peak:.1f} ({found.expected:.1f})"
    say(name, f"{value:.4g} {unit}", ratio, share, f"{1000 * found.step:.0f}", memory_, f"{found.warm:.0f}", found.recompiles)


def main(shape: str, row_tokens: int, steps: int, only: Sequence[str], compile: bool, flash_attn: bool = False) -> None:
    """Print the table; `flash_attn`: stages 1 and 2 also with the package."""
    seen = config(shape)
    patches = seen.tokens_per_view
    words = [drawn(0, patches + length, length) for length in _uniform(patches)]
    pictures = [drawn(1, length, length) for length in _uniform(patches)]
    captions = drawn(1, patches * 200 // 576, patches * 200 // 576)
    gpu = DEVICE.type == "cuda"
    rate, steady = matmul_rate(), matmul_rate(2000)
    card = torch.cuda.get_device_name() if gpu else "CPU"
    sys.stdout.write(f"{card}, torch {torch.__version__}, {shape}: {rate / 1e12:.4g} TFLOP/s, {steady / 1e12:.4g} where it lasts\n")
    settings: dict[str, Any] = {"batch_size": 1, "row_tokens": row_tokens, "compile": compile, "workers": 4 if gpu else 0}
    settings["dtype"] = "bfloat16" if gpu else "float32"
    load = answers.Load(16, 704, 8, 256) if gpu else answers.Load(2, patches + 12, 2, 4)
    say("stage", "ours", "over plain", "share of limit", "step ms", "peak GiB (expected)", "compile s", "recompiles")
    say(*["---"] * 8)
    lora, grounding, align, router = (settings | {"trained": name} for name in ("lora", "grounding", "align", "router"))
    masks, shares = MaskLoss(pixel_weight=1.0, dice_weight=1.0), RouterLoss(balance_weight=0.1, z_weight=0.01)
    ways: dict[str, dict[str, Any]] = {"": {}, ", float8": EIGHT_BITS}
    if flash_attn:
        ways |= {", flash-attn-4": PACKAGE, ", flash-attn-4 and float8": PACKAGE | EIGHT_BITS}
    if "stage1" in only:
        base = plain.alignment(seen, captions, max(4, steps // 2), DEVICE)
        clear()
        limit = rate / flops(seen, 1, patches + captions.words, captions.labelled, fused=True)
        align["row_tokens"] = CAPTIONS * (patches + captions.words)
        for name, way in ways.items():
            found = ours(shape, [captions], align | way, steps)
            report(f"1, encoders{name}", "samples/s", found.samples, found, base, limit)
    if "stage2" in only:
        base = plain.adapters(seen, words, max(4, steps // 2), DEVICE)
        clear()
        for name, way in ways.items():
            found = ours(shape, words, lora | way, steps)
            report(f"2, words alone{name}", "tokens/s", found.tokens, found, base, _tokens_limit(seen, words, rate))
    if "mix" in only:
        mix = [drawn(0, length, length) for length in mixed(patches, 4000) if length <= row_tokens]
        base = plain.adapters(seen, mix, max(4, steps // 2), DEVICE)
        clear()
        found = ours(shape, mix, lora, steps)
        report("2, mixed lengths", "tokens/s", found.tokens, found, base, _tokens_limit(seen, mix, rate))
    one = ours(shape, pictures, lora, steps) if {"stage3", "stage4"} & set(only) else None
    if one:
        report("2, encoders", "tokens/s", one.tokens, one, None, _tokens_limit(seen, pictures, rate))
    if one and "stage3" in only:
        points = [drawn(1, sample.words, sample.words, points=True) for sample in pictures]
        found = ours(shape, points, grounding, steps, mask_loss=masks)
        report("3, over stage 2", "x time a sample", one.samples / found.samples, found, None, None)
    for experts in (2, 4) if one and "stage4" in only else ():
        found = ours(shape, pictures, dict(router), steps, experts=experts, router_loss=shares)
        report(f"4, {experts} experts over one LoRA", "x time a step", found.step / one.step, found, None, None)
    if "canvases" in only:
        tiled(shape, rate, steps, settings | {"batch_size": 2, "samples_at_once": 1})
    for level in ("sequence", "token") if "rollout" in only else ():
        rollout(shape, level, load)
    for row in reinforced.rows(shape, load, DEVICE) if "step5" in only else ():
        say(*row)


def tiled(shape: str, rate: float, steps: int, settings: dict[str, Any]) -> None:
    """Rows of stages 1 and 2 whose images lie on FILA's canvases, each as often; a step has two rows, one after the other."""
    seen = config(shape, canvases=CANVASES)
    side = seen.vision_config.image_size
    grids = [CANVASES[number % len(CANVASES)] for number in torch.randperm(4000, generator=torch.Generator().manual_seed(0)).tolist()]
    lengths = zip(grids, _uniform(seen.tokens_per_view), strict=True)
    samples = [drawn(1, length, length, size=(rows * side, columns * side)) for (rows, columns), length in lengths]
    for name, what in (("1, canvases", "align"), ("2, canvases", "lora")):
        found = ours(shape, samples, settings | {"trained": what}, steps, canvases=CANVASES)
        report(name, "tokens/s", found.tokens, found, None, _tokens_limit(seen, samples, rate, fused=what == "align"))


def rollout(shape: str, level: str, load: answers.Load) -> None:
    """A row of stage 5: useful tokens a second, prompts read included."""
    model = answers.policy(shape, level, DEVICE)
    rate = answers.memory_rate(DEVICE, 2**31 if DEVICE.type == "cuda" else 2**20, wait)
    base = load.tokens / answers.plain(model, load, wait)
    torch._dynamo.reset()
    clear()
    found, expected = answers.together(model, load, wait), answers.expected(model, load) / memory.GIB
    value, peak = load.tokens / found.second, torch.cuda.max_memory_allocated() / memory.GIB if DEVICE.type == "cuda" else 0.0
    told = Measured(found.second / load.new, 0.0, value, found.first - found.second, found.graphs, peak, expected)
    limit, steps = answers.limit(model, load, rate), (load.tokens - load.prompts * load.siblings) / (found.second - found.reading)
    report(f"5, rollout, routers by {level}", "tokens/s", value, told, base, limit)
    report("5, its steps alone", "tokens/s", steps, told, None, limit)


def _uniform(patches: int) -> list[int]:
    """Lengths of text from 50 to 400 tokens beside 576 patches, in proportion for fewer."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(patches * 50 // 576 + 2, patches * 400 // 576 + 4, (4000,), generator=draw).tolist()


def _tokens_limit(seen: UniMedConfig, samples: Sequence[Drawn], rate: float, fused: bool = False) -> float:
    tokens, operations = 0, 0.0
    for sample in samples[:1000]:
        [grid] = seen.grids([(sample.height, sample.width)])
        views = sample.images * squares(grid)
        size = views * seen.tokens_per_view + sample.words
        tokens, operations = tokens + size, operations + flops(seen, views, size, sample.labelled, fused)
    return rate * tokens / operations


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.1-8b" if DEVICE.type == "cuda" else "tiny")
    parser.add_argument("--row-tokens", type=int, default=8448 if DEVICE.type == "cuda" else 64)
    parser.add_argument("--steps", type=int, default=20 if DEVICE.type == "cuda" else 2)
    parser.add_argument("--only", default="stage1,stage2,mix,stage3,stage4,canvases,rollout,step5")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--flash-attn", action="store_true", help="stages 1 and 2 with the package flash-attn-4 as well")
    given = parser.parse_args()
    layers = DEVICE.type == "cuda" and not given.eager
    main(given.shape, given.row_tokens, given.steps, given.only.split(","), layers, given.flash_attn)
