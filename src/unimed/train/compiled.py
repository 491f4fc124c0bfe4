"""Layers that are compiled while a model trains: one graph for all layers of a kind, no breaks, no new graph for a new batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.convnext.modeling_convnext import ConvNextLayer

from unimed.model.experts import Router
from unimed.model.sam_med2d import EncoderBlock
from unimed.model.unimed import UniMedForConditionalGeneration

COUNT, SIDES = (0,), (2, 3)
"""Dimensions of images, or of a tower's states of them, that differ from batch to batch: their number, or height and width."""

SEEING = {CLIPEncoderLayer: COUNT, EncoderBlock: COUNT}
"""Layers of the towers, and which dimensions of what they see differ."""


@contextmanager
def compiled(model: UniMedForConditionalGeneration, backend: str = "inductor") -> Iterator[None]:
    """Compiles the layers of all towers and of the language model while the block runs; batches must be packed rows."""
    # Convolutions read images whose channels lie beside each other without turning them round first.
    model.model.encoder.to(memory_format=torch.channels_last)
    language = type(model.model.language_model.layers[0])
    seeing = SEEING | {ConvNextLayer: SIDES if model.config.canvases else COUNT}
    with ExitStack() as stack:
        # Unchecked graphs would be taken for those of another model's layers.
        stack.callback(torch._dynamo.reset)
        # A square's height and width are equal by chance: a graph that took them for one number would be made anew for a canvas.
        stack.enter_context(shapes.patch(use_duck_shape=False))
        for kind, name in ((language, "forward"), (Router, "packed"), *((kind, "forward") for kind in seeing)):
            made = part(getattr(kind, name), backend, static=kind not in seeing, alike=kind is not EncoderBlock)
            made = partial(_any, made, seeing[kind]) if kind in seeing else made
            for module in model.modules():
                if isinstance(module, kind):
                    # On the object alone; hooks, which tell a layer's linears their gates, stay outside.
                    setattr(module, name, partial(made, module))
                    stack.callback(delattr, module, name)
        if model.config.canvases:
            encoder = model.model.encoder
            encoder.detail_maps = partial(_one_by_one, encoder.detail_maps)
            stack.callback(delattr, encoder, "detail_maps")
        yield


def part(function: Callable[..., Any], backend: str, static: bool, alike: bool) -> Callable[..., Any]:
    """A layer's function, compiled as one graph; `alike`: layers that are given the same shapes do the same.

    To check again at every call that a layer's many parts are what they were takes the CPU longer than the GPU needs for the layer.
    """
    unchecked = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    options: dict[str, str | int | bool | Callable[..., Any]] | None = {"guard_filter_fn": unchecked} if alike else None
    return torch.compile(function, fullgraph=True, dynamic=False if static else None, backend=backend, options=options)


def _any(made: Callable[..., Any], dimensions: Sequence[int], module: nn.Module, images: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What a compiled layer makes of images, whatever these dimensions are.

    A single image is seen twice: a number of one would have a graph of its own, made when the first such batch comes.
    """
    single = dimensions == COUNT and len(images) == 1
    images = torch.cat([images, images]) if single else images
    torch._dynamo.maybe_mark_dynamic(images, dimensions)
    found = made(module, images, *args, **kwargs)
    return found[:1] if single else found


def _one_by_one(maps: Callable[[Tensor], Sequence[Tensor]], images: Tensor) -> list[Tensor]:
    """The detail tower's maps of images that are looked at one after the other: a canvas is large, and numbers would have graphs."""
    return [torch.cat(stage) for stage in zip(*map(maps, images.split(1)), strict=True)]
