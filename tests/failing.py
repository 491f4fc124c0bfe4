"""Trainings in which something goes wrong: samples that overflow, shards cut short, passes that do not fit; and what they leave."""

import os
from contextlib import contextmanager

import tiny
import torch
from test_loop import SETTINGS
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from unimed.config import Optimisation
from unimed.model import assemble
from unimed.train import loop
from unimed.train.batch import Collator

POISON = "\x7f"
"""A letter of one sample alone; its word has no finite embedding."""

PACKED = {"row_tokens": 400}


def model(*more):
    """A model whose aligned parts, and those named, train; `POISON` makes its losses no number."""
    made = tiny.stirred()
    loop.train_only(made, [*assemble.ALIGNED, *more])
    with torch.no_grad():
        made.get_input_embeddings().weight[tiny.processor().tokenizer.encode(POISON, add_special_tokens=False)] = torch.inf
    return made


def sample(folder, seed, poisoned=False):
    """A question of a length of its own; every other sample points as well."""
    mask = tiny.box(4 * (seed % 4), 3, 12, 12)
    turns = [tiny.turn("Is there a nodule" + " or two" * seed + (POISON if poisoned else "") + "?", "yes" + " and no" * (seed % 3))]
    turns += [tiny.turn("Segment it.", "It is <SEG>.", targets=[mask])] if seed % 2 else []
    return tiny.sample(folder, *turns, seed=seed)


def cut_short(one):
    """The sample, whose shard now ends in the middle of its image."""
    os.truncate(one.shards / one.place.shard, one.place.offset + one.place.size // 2)
    return one


def fit(made, samples, failures=None, mask_loss=None, **changes):
    settings = Optimisation(**(SETTINGS | {"batch_size": 1} | changes), failures=failures or {})
    return loop.fit(made, tiny.samples(*samples), Collator(tiny.processor()), settings, 0, "tiny", mask_loss)


@contextmanager
def steps_watched(made):
    """Within the block the list fills with, for each step: what trains, gradients and the optimizer's state, before and after."""
    steps, before = [], []

    def now(optimizer):
        trained = {name: value for name, value in made.named_parameters() if value.requires_grad}
        weights = {name: value.detach().clone() for name, value in trained.items()}
        gradients = {name: value.grad.clone() for name, value in trained.items() if value.grad is not None}
        state = {f"{key}/{name}": value.clone() for key, held in optimizer.state_dict()["state"].items() for name, value in held.items()}
        return weights, gradients, state

    def after(optimizer):
        begun = before.pop()
        if not before:  # AdamW's own step within that of the copies is none of its own
            steps.append((begun, now(optimizer)))

    first = register_optimizer_step_pre_hook(lambda optimizer, *_: before.append(now(optimizer)))
    then = register_optimizer_step_post_hook(lambda optimizer, *_: after(optimizer))
    try:
        yield steps
    finally:
        first.remove()
        then.remove()


def same(one, other):
    """Whether two groups of tensors are the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refuse_more_than(made, images, when="forward"):
    """Let the projector run out of memory, forward or backward, for more images than that; gives the list of sizes it was asked for."""
    asked = []

    def check(size):
        asked.append(size)
        if size > images:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size}.00 GiB.\nMore is said here.")

    if when == "forward":
        made.model.projector.register_forward_pre_hook(lambda module, args: check(len(args[0])))
    else:
        made.model.projector.register_full_backward_pre_hook(lambda module, gradients: check(len(gradients[0])))
    return asked
