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
from unimed.train.compiled import part


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph, which is not run yet; what it reads and writes must stay where it is."""
    graph = torch.cuda.CUDAGraph()
    # What other threads do meanwhile, as those that pin batches, is not the step's.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


@contextmanager
def compiled(language_model: PreTrainedModel, backend: str = "inductor") -> Iterator[None]:
    """Compiles the layers, and routers that decide word by word, for the block: one graph for all of a kind and all prompts."""
    routers = [module for module in language_model.modules() if isinstance(module, Router) and module.level == "token"]
    with ExitStack() as stack:
        for call, modules in ((_any_prompt(once(_layer, backend)), language_model.layers), (once(_word_by_word, backend), routers)):
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
def once(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """A part's function, compiled once for the process."""
    return part(function, backend, static=False, alike=True)


def _layer(layer: nn.Module, hidden: Tensor, **given: Any) -> Tensor:
    # A function of its own, because training compiles the class's, for packed rows.
    return type(layer).forward(layer, hidden, **given)


def _word_by_word(router: Router, hidden: Tensor, *_: Any) -> Tensor:
    # As packed positions, for which a compiled router needs no product with as many columns as there are experts.
    return router.packed(hidden.transpose(0, 1), None, None)[0].transpose(0, 1)


def _any_prompt(made: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled layer for prompts of any length."""

    def call(layer: nn.Module, hidden: Tensor, siblings: Memory, **given: Any) -> Tensor:
        for side in (siblings.keys, siblings.values):
            torch._dynamo.maybe_mark_dynamic(side, 0)
        return made(layer, hidden, siblings=siblings, **given)

    return call
