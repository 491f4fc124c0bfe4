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

SEEING = {CLIPEncoderLayer: (0,), ConvNextLayer: (0, 2, 3), EncoderBlock: (0,)}
"""Layers of the towers, and which dimensions of what they see differ: the images' number and, on canvases, height and width."""


@contextmanager
def compiled(model: UniMedForConditionalGeneration, backend: str = "inductor") -> Iterator[None]:
    """Compiles the layers of all towers and of the language model while the block runs; batches must be packed rows."""
    # Convolutions read images whose channels lie beside each other without turning them round first.
    model.model.encoder.to(memory_format=torch.channels_last)
    language = type(model.model.language_model.layers[0])
    with ExitStack() as stack:
        # Unchecked graphs would be taken for those of another model's layers.
        stack.callback(torch._dynamo.reset)
        # Each of four stages of the detail tower has graphs of its own, for one image and for several.
        stack.enter_context(torch._dynamo.config.patch(recompile_limit=32))
        # A square's height and width are equal by chance: a graph that took them for one number would be made anew for a canvas.
        stack.enter_context(shapes.patch(use_duck_shape=False))
        for kind, name in ((language, "forward"), (Router, "packed"), *((kind, "forward") for kind in SEEING)):
            made = part(getattr(kind, name), backend, static=kind not in SEEING, alike=kind is not EncoderBlock)
            made = partial(_any, made, SEEING[kind]) if kind in SEEING else made
            for module in model.modules():
                if isinstance(module, kind):
                    # On the object alone; hooks, which tell a layer's linears their gates, stay outside.
                    setattr(module, name, partial(made, module))
                    stack.callback(delattr, module, name)
        yield


def part(function: Callable[..., Any], backend: str, static: bool, alike: bool) -> Callable[..., Any]:
    """A layer's function, compiled as one graph; `alike`: layers that are given the same shapes do the same.

    To check again at every call that a layer's many parts are what they were takes the CPU longer than the GPU needs for the layer.
    """
    unchecked = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    options: dict[str, str | int | bool | Callable[..., Any]] | None = {"guard_filter_fn": unchecked} if alike else None
    return torch.compile(function, fullgraph=True, dynamic=False if static else None, backend=backend, options=options)


def _any(made: Callable[..., Any], dimensions: Sequence[int], module: nn.Module, images: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What a compiled layer makes of images, whatever these dimensions are."""
    torch._dynamo.maybe_mark_dynamic(images, dimensions)
    return made(module, images, *args, **kwargs)
