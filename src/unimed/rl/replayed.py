"""A step that a GPU does by itself: layers compiled, and what they launch recorded once and replayed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unimed.model.experts import Router
from unimed.rl.shared_attention import Memory


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph, which is not run yet; what it reads and writes must stay where it is."""
    graph = torch.cuda.CUDAGraph()
    # What other threads do meanwhile, as those that pin batches, is not the step's.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


@contextmanager
def compiled(language_model: PreTrainedModel, backend: str = "inductor") -> Iterator[None]:
    """Compiles the layers, and routers that decide word by word, for the block: one graph for all of a kind and all lengths."""
    routers = [module for module in language_model.modules() if isinstance(module, Router) and module.level == "token"]
    with ExitStack() as stack:
        for call, modules in ((_any_length(_once(_layer, backend)), language_model.layers), (_once(Router.forward, backend), routers)):
            for module in modules:
                stack.enter_context(_forward(module, partial(call, module)))
        yield


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give the object alone another forward; hooks, which tell a layer's linears their gates, stay outside."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@cache
def _once(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """A part's function, compiled once for the process. As in training, parts with the same shapes are taken to be alike."""
    unchecked: dict[str, str | int | bool | Callable[..., Any]] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    return torch.compile(function, fullgraph=True, backend=backend, options=unchecked)


def _layer(layer: nn.Module, hidden: Tensor, **given: Any) -> Tensor:
    # A function of its own, because training compiles the class's, for packed rows.
    return type(layer).forward(layer, hidden, **given)


def _any_length(made: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled layer for prompts and windows of any length."""

    def call(layer: nn.Module, hidden: Tensor, siblings: Memory, attention_mask: Tensor, **given: Any) -> Tensor:
        for tensor, dim in ((attention_mask, 3), *((part, 2) for part in siblings.read())):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return made(layer, hidden, siblings=siblings, attention_mask=attention_mask, **given)

    return call
