"""Stages 1 to 4, two steps each on batches of four alike, in this process or as one of several; what each logs and stores."""

import os
import sys
from pathlib import Path

import tiny

from unimed.config import MaskLoss, Optimisation, RouterLoss
from unimed.model import adapters, assemble, weights
from unimed.train import loop
from unimed.train.batch import Collator

MASKS = MaskLoss(pixel_weight=2.0, dice_weight=0.5)
ROUTING = RouterLoss(balance_weight=0.0, z_weight=0.1)
"""Without a balance, which is no mean: each process's is taken on its own."""


def history(model, folder, settings, **losses):
    """Train on eight samples whose answers are equally long, each with one mask."""
    shown = [tiny.turn(f"Segment it {seed}.", "It is <SEG>.", targets=[tiny.box(2 * seed, 4, 12, 12)]) for seed in range(8)]
    samples = tiny.samples(*(tiny.sample(folder, turn, seed=seed) for seed, turn in enumerate(shown)))
    return [entry["loss"] for entry in loop.fit(model, samples, Collator(tiny.processor()), settings, 0, "tiny", **losses)]


def align(folder, settings):
    model = tiny.stirred()
    loop.train_only(model, assemble.ALIGNED)
    losses = history(model, folder, settings)
    return losses, weights.named(model, assemble.ALIGNED)


def vqa_expert(folder, settings):
    model = tiny.stirred()
    language = model.model.language_model
    names = adapters.add(language, "vqa", 2, 2.0, tiny.TARGETS)
    loop.train_only(model, [f"model.language_model.{name}" for name in names])
    losses = history(model, folder, settings)
    return losses, adapters.taken(language, "vqa").tensors


def grounding_expert(folder, settings):
    model = tiny.stirred()
    language = model.model.language_model
    names = adapters.add(language, "grounding", 2, 2.0, tiny.TARGETS)
    loop.train_only(model, [*(f"model.language_model.{name}" for name in names), *assemble.GROUNDING])
    losses = history(model, folder, settings, mask_loss=MASKS)
    return losses, adapters.taken(language, "grounding").tensors | weights.named(model, assemble.GROUNDING)


def moe_router(folder, settings):
    model = tiny.stirred(**tiny.EXPERTS)
    routers = [name for name, _ in model.named_modules() if name.endswith(".router")]
    loop.train_only(model, [f"{name}.linear" for name in routers])
    losses = history(model, folder, settings, mask_loss=MASKS, router_loss=ROUTING)
    return losses, weights.named(model, routers)


PACKED = {"row_tokens": 400}
WAYS = {
    "align": (align, {}), "vqa_expert": (vqa_expert, {}), "grounding_expert": (grounding_expert, {}), "moe_router": (moe_router, {}),
    "grounding_expert_packed": (grounding_expert, PACKED), "moe_router_packed": (moe_router, PACKED),
}  # fmt: skip


def run(folder: Path, deepspeed: Path | None = None) -> None:
    """Every stage and way, each into a folder of its name."""
    for name, (stage, changes) in WAYS.items():
        settings = Optimisation(batch_size=4, max_steps=2, learning_rate=0.01, warmup_steps=0, deepspeed=deepspeed, **changes)
        losses, tensors = stage(folder / "data", settings)
        weights.write(folder / name, tensors, {}, losses=losses)


if __name__ == "__main__":
    run(Path(sys.argv[1]) / os.environ["RANK"], Path(sys.argv[2]))
