"""A model made ready for the way a run was asked to go: dtype, packed rows, eight bits, compiled layers, short memory."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from unimed.config import Optimisation
from unimed.errors import InputError
from unimed.model import attention, flash_attention_4
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.train import float8, memory
from unimed.train.compiled import compiled
from unimed.train.masters import MasterAdamW

logger = logging.getLogger("train")


def check(settings: Optimisation, device: torch.device) -> None:
    """Nothing where a device can do what is asked of it. Raises InputError where it cannot."""
    if settings.row_tokens is not None and device.type == "cuda" and settings.dtype == "float32":
        raise InputError("params.yaml: expected dtype bfloat16 where rows are packed on a GPU, found float32")
    if settings.flash_attn:
        flash_attention_4.require(device)


@contextmanager
def prepared(model: UniMedForConditionalGeneration, settings: Optimisation, device: torch.device) -> Iterator[MasterAdamW | None]:
    """The model ready for a run on a device; gives the optimizer where it is not the trainer's own.

    What trained is float32 afterwards.
    """
    if settings.dtype == "bfloat16":  # else each part stays in the type it came in
        model.to(torch.bfloat16)
    with ExitStack() as stack:
        if settings.row_tokens is not None:
            stack.enter_context(attention.packed(model.model.language_model, settings.flash_attn))
            room = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
            stack.enter_context(fitting(model, settings, room))
        if settings.float8:
            stack.enter_context(float8.multiplied(model.to(device).model.language_model))
        if settings.compile:
            stack.enter_context(compiled(model))
        masters = None
        if settings.dtype == "bfloat16" and settings.deepspeed is None:  # DeepSpeed has copies of its own
            trained = [parameter for parameter in model.to(device).parameters() if parameter.requires_grad]
            masters = MasterAdamW(trained, settings.learning_rate)
        yield masters
        if masters is not None:
            masters.hand_over()


@contextmanager
def fitting(model: UniMedForConditionalGeneration, settings: Optimisation, room: int | None) -> Iterator[None]:
    """Says how much memory the run will take; where that is more than `room`, layers are computed twice while the block runs."""
    need = memory.estimate(model, settings)
    short = room is not None and need.total > 0.95 * room
    logger.info("memory: %s%s", need, "; too much, so layers are computed twice" if short else "")
    if short:
        model.gradient_checkpointing_enable()
    try:
        yield
    finally:
        if short:
            model.gradient_checkpointing_disable()
