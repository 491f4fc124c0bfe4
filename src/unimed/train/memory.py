"""What a run on packed rows will take of a GPU's memory, told before it starts."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from unimed.config import Optimisation
from unimed.model import words
from unimed.model.experts import RoutedLinear
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.train import float8
from unimed.train.together import per_process

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Bytes of a training step at its peak."""

    weights: int
    optimizer: int
    """Gradients, both moments and, in bfloat16, float32 copies of weights and gradients."""

    states: int
    """What the layers keep for the gradient."""

    work: int
    """What is there for a moment: a chunk of logits, or one layer's gradients."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.optimizer + self.states + self.work

    def __str__(self) -> str:
        parts = (("weights", self.weights), ("optimizer", self.optimizer), ("states", self.states), ("work", self.work))
        return f"{self.total / GIB:.1f} GiB expected: " + ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)


def estimate(model: UniMedForConditionalGeneration, settings: Optimisation) -> Estimate:
    """The peak of a step of compiled layers in one process, the towers' share counted for as many images as fit in a row."""
    size = torch.finfo(getattr(torch, settings.dtype)).bits // 8
    rows = per_process(settings)
    tokens = min(settings.samples_at_once or rows, rows) * (settings.row_tokens or 0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    config = model.config.text_config
    states = tokens * size * sum(kept(layer, config.hidden_size) for layer in model.model.language_model.layers)
    images = tokens // model.config.tokens_per_view
    logits = words.CHUNK * config.vocab_size * (2 * size + 3 * 4)
    gradients = tokens * size * (2 * config.hidden_size + 3 * config.intermediate_size)
    copies = sum(own.weight.numel() + 4 * len(own.weight) for own in float8.linears(model.model.language_model).values())
    return Estimate(
        weights=_bytes(chain(model.parameters(), model.buffers())) + settings.float8 * copies,
        optimizer=trained * (size + (16 if size < 4 else 8)),
        states=states + images * size * seen(model),
        work=max(logits, gradients),
    )


def kept(layer: nn.Module, width: int) -> int:
    """Numbers per token that a compiled decoder layer keeps for its gradient.

    Kept are the inputs of both norms, query, key, value, the attended states, and the two factors of the gated product. The inputs
    of linears that train or whose adapters do are kept too; those are the norms' outputs and the product.
    """
    out = {name.rpartition(".")[2]: linear for name, linear in layer.named_modules() if _linear(linear)}
    results = sum(int(out[name].out_features) for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    kept = 2 * width + results + int(out["o_proj"].in_features)
    learns = {name for name, linear in out.items() if _learns(linear)}
    kept += width * bool(learns & {"q_proj", "k_proj", "v_proj"}) + width * bool(learns & {"gate_proj", "up_proj"})
    kept += int(out["down_proj"].in_features) * ("down_proj" in learns)
    return kept + sum(rank(linear) for linear in out.values())


def rank(linear: nn.Module) -> int:
    """The rank of what stands beside a linear: of its adapters or its stacked experts, which are kept before and after the gates."""
    if isinstance(linear, RoutedLinear):
        return 2 * linear.expert_in.shape[0]
    return sum(getattr(linear, "r", {}).values())


def seen(model: UniMedForConditionalGeneration) -> int:
    """Numbers per image that the ViT keeps: nothing unless a fusion trains, else about ten widths a token from there on."""
    encoder, vision = model.model.encoder, model.config.vision_config
    if not any(parameter.requires_grad for parameter in encoder.fusions.parameters()):
        return 0
    blocks = encoder.last_block - encoder.fusion_blocks[0]
    fused = len(encoder.fusion_blocks) * (3 * model.config.fusion_hidden_size + 3 * vision.hidden_size)
    return (model.config.tokens_per_view + 1) * (blocks * (6 * vision.hidden_size + vision.intermediate_size) + fused)


def _linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _learns(linear: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in linear.parameters())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
