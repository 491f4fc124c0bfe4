"""Experts and router: LoRA adapters beside the language model's linears, and per layer a router that says how much of each.

MedPLIB (Huang et al. 2024, arXiv:2412.09278) copies whole feed-forward layers, scales their output by the gate and drops tokens
over capacity. Here the base output always counts in full and the experts only add to it; nothing is dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unimed.model.configuration import UniMedConfig
from unimed.model.packing import Packing

SIDES = (("lora_A", "expert_in", 0), ("lora_B", "expert_out", 1))
"""What peft calls the two halves of an adapter, what they are called here, and the dimension along which they stand together."""


class Routed(nn.Module):
    """A part of a decoder layer that is told before each pass what the layer's router made of the input."""

    gates: Float[Tensor, "batch seq_or_one rank"] | None


class RoutedLinear(Routed, nn.Linear):
    """A linear layer with stacked experts: base(x) + B (gates * A x), one wide product for all experts."""

    gates: Float[Tensor, "batch seq_or_one rank"]

    def __init__(self, in_features: int, out_features: int, bias: bool, rank: int, dtype: torch.dtype | None = None):
        super().__init__(in_features, out_features, bias, dtype=dtype)
        self.expert_in = nn.Parameter(torch.zeros(rank, in_features, dtype=dtype))
        self.expert_out = nn.Parameter(torch.zeros(out_features, rank, dtype=dtype))

    def forward(self, input: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq out_width"]:
        """The base output plus each expert's, weighted by the gates that the layer's router set for this pass."""
        inner = nn.functional.linear(input, self.expert_in) * self.gates.to(input.dtype)
        return super().forward(input) + nn.functional.linear(inner, self.expert_out)


class Router(nn.Module):
    """Weights per expert from a layer's input, per token or once for a whole sequence.

    `soft` mixes by the softmax; `top1` takes the best alone and lets the gradient pass as if it were soft (straight-through).
    On the sequence level the mean of the prompt's text decides, also for what is generated after it.
    """

    def __init__(self, config: UniMedConfig, layer: int):
        super().__init__()
        self.linear = nn.Linear(config.text_config.hidden_size, len(config.experts))
        # Not by nn.init, which does nothing where a model is made without initial values.
        self.linear.weight.data.zero_()
        self.linear.bias.data.zero_()
        # Without this the language model, whose part the router becomes, would draw the weights at random.
        self.linear._is_hf_initialized = True
        shares = zip(config.expert_ranks, config.expert_scalings, strict=True)
        self.register_buffer("spread", torch.block_diag(*(torch.full((1, rank), float(scaling)) for rank, scaling in shares)))
        self.level, self.choice, self.layer = config.router_level, config.router_choice, layer
        self.logits: Float[Tensor, "batch seq expert"] | None = None
        self.fixed: tuple[float, ...] | None = None

    def forward(
        self,
        hidden: Float[Tensor, "batch seq width"],
        prompt: Bool[Tensor, "batch seq"] | None,
        cache: Any,
        packing: Packing | None = None,
    ) -> Float[Tensor, "batch seq_or_one rank"]:
        """Gates spread over the experts' ranks, scaling included.

        `cache` is None, transformers' or what stands for it; gates that it remembers of a prompt stay.
        """
        if packing is not None:
            gates, self.logits = self.packed(hidden, prompt, packing.segment)
            return gates
        remembered = getattr(cache, "expert_gates", {})
        if self.level == "sequence" and self.layer in remembered and cache.get_seq_length(self.layer):
            return remembered[self.layer]
        unit = nn.functional.rms_norm(hidden.float(), hidden.shape[-1:])
        if self.level == "sequence":
            unit = (unit * prompt.unsqueeze(-1)).sum(1, keepdim=True) / prompt.sum(1).clamp(min=1)[:, None, None]
        self.logits = nn.functional.linear(unit, self.linear.weight.float(), self.linear.bias.float())
        gates = self.chosen(self.logits) @ self.spread.float()
        if self.level == "sequence" and cache is not None:
            cache.expert_gates = {**remembered, self.layer: gates.detach()}
        return gates

    def packed(
        self, hidden: Float[Tensor, "1 position width"], prompt: Bool[Tensor, "1 position"], segment: Int[Tensor, " position"]
    ) -> tuple[Float[Tensor, "1 position rank"], Float[Tensor, "1 decision expert"]]:
        """Gates for every position of a packed sequence, and the logits behind them: one per position or one per segment.

        A segment's mean is taken of what the linear layer says of each position, which is the same and far less to add up. There
        are as many decisions as positions, so that all batches have as many; those after the last segment mean nothing.
        """
        unit = nn.functional.rms_norm(hidden.float(), hidden.shape[-1:])
        # Expert by expert: compiled, all are one sweep over the states, which a product would first write out in float32.
        logits = torch.stack([(unit * row).sum(-1) for row in self.linear.weight.float()], -1)
        if self.level == "sequence":
            weight = prompt[0].float().unsqueeze(-1)
            count = torch.zeros_like(weight).index_add(0, segment, weight)
            logits = (torch.zeros_like(logits[0]).index_add(0, segment, logits[0] * weight) / count.clamp(min=1)).unsqueeze(0)
        logits = logits + self.linear.bias.float()
        shares = self.chosen(logits)
        shares = shares[:, segment] if self.level == "sequence" else shares
        return (shares.unsqueeze(-1) * self.spread.float()).sum(-2), logits

    def chosen(self, logits: Float[Tensor, "batch seq expert"]) -> Float[Tensor, "batch seq expert"]:
        """The share of each expert; sums to one unless it was fixed otherwise."""
        if self.fixed is not None:
            return torch.tensor(self.fixed, device=logits.device).expand_as(logits)
        soft = logits.softmax(-1)
        if self.choice == "soft":
            return soft
        hard = nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        return hard + soft - soft.detach()


def install(language_model: nn.Module, config: UniMedConfig) -> None:
    """Put stacked experts beside the configured linears of every decoder layer and a router before each layer."""
    for number, layer in enumerate(language_model.layers):
        layer.router = Router(config, number)
        for path, linear in list(layer.named_modules()):
            name = path.rpartition(".")[2]
            if name in config.expert_targets and isinstance(linear, nn.Linear):
                sizes = linear.in_features, linear.out_features, linear.bias is not None, sum(config.expert_ranks)
                setattr(layer.get_submodule(path.rpartition(".")[0]), name, RoutedLinear(*sizes, linear.weight.dtype))
        # A hook, because the linears must know the gates of the very pass they are part of, recomputed passes included.
        layer.register_forward_pre_hook(_route, with_kwargs=True)


def without(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A routed language model's tensors but those of its experts and routers: what it would have without them."""
    ends = tuple(f".{own_name}" for _, own_name, _ in SIDES)
    return {name: value for name, value in state.items() if not name.endswith(ends) and ".router." not in name}


def _route(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Set the gates of a layer's routed parts from its input; the prompt's extent is meant for the router alone."""
    kwargs = dict(kwargs)
    gates = layer.router(args[0], kwargs.pop("prompt", None), kwargs.get("past_key_values"), kwargs.get("packing"))
    for part in layer.modules():
        if isinstance(part, Routed):
            part.gates = gates
    return args, kwargs


def stack(
    adapters: Mapping[str, Mapping[str, Tensor]], config: UniMedConfig
) -> dict[str, Float[Tensor, "rank width"] | Float[Tensor, "out_width rank"]]:
    """The tensors of several peft adapters as stacked experts, by the language model's own names, in the config's order.

    An adapter that leaves a linear alone adds nothing there. The way back is `unstack`.
    """
    stacked: dict[str, Tensor] = {}
    for peft_name, own_name, dim in SIDES:
        keys = [key for name in config.experts for key in adapters[name] if f".{peft_name}." in key]
        for key in dict.fromkeys(keys):
            shape = next(adapters[name][key].shape for name in config.experts if key in adapters[name])
            parts = []
            for name, rank in zip(config.experts, config.expert_ranks, strict=True):
                empty = torch.zeros((rank, shape[1]) if dim == 0 else (shape[0], rank))
                parts.append(adapters[name].get(key, empty))
            stacked[key.replace(f".{peft_name}.weight", f".{own_name}")] = torch.cat(parts, dim)
    return stacked


def unstack(tensors: Mapping[str, Tensor], config: UniMedConfig) -> dict[str, dict[str, Tensor]]:
    """Every expert's tensors by peft's names, out of a routed language model's; zeros where its adapter left a linear alone."""
    adapters: dict[str, dict[str, Tensor]] = {name: {} for name in config.experts}
    for key, value in tensors.items():
        for peft_name, own_name, dim in SIDES:
            if key.endswith(f".{own_name}"):
                for name, part in zip(config.experts, value.split(list(config.expert_ranks), dim), strict=True):
                    adapters[name][f"{key.removesuffix(own_name)}{peft_name}.weight"] = part
    return adapters


def take_decisions(
    model: nn.Module, mask: Bool[Tensor, "batch seq"] | None, packing: Packing | None = None
) -> Float[Tensor, "layer decision expert"]:
    """The routers' logits of the pass just made: on the token level one for each position of `mask`, else one per sequence.

    Of a packed sequence: one for each position before the padding, or one per sample.

    They can be taken once. Raises RuntimeError for a router that has decided nothing since.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    if idle := [router.layer for router in routers if router.logits is None]:
        raise RuntimeError(f"expected every router to have decided since its logits were taken, found nothing in layer {idle[0]}")
    logits = torch.stack([router.logits for router in routers])
    for router in routers:
        router.logits = None
    token = routers[0].level == "token"
    if packing is not None:
        return logits[:, 0, : packing.tokens if token else packing.samples]
    return logits[:, mask] if token else logits.squeeze(2)


def balance_loss(logits: Float[Tensor, "layer decision expert"]) -> Float[Tensor, ""]:
    """Number of experts times the sum over experts of the squared mean share; 1 when used evenly, more when one takes all.

    Switch Transformer, Fedus et al. 2021, arXiv:2101.03961, eq. 4, with soft shares on both sides.
    """
    share = logits.softmax(-1).mean(1)
    return (share.shape[-1] * share.square().sum(-1)).mean()


def z_loss(logits: Float[Tensor, "layer decision expert"]) -> Float[Tensor, ""]:
    """Mean squared log-sum-exp of the router's logits; keeps them small. ST-MoE, Zoph et al. 2022, arXiv:2202.08906, eq. 5."""
    return logits.logsumexp(-1).square().mean()


def fix(model: nn.Module, shares: Sequence[float]) -> None:
    """Give every expert a constant share, whatever the input, in the config's order; shares need not sum to one."""
    for router in (module for module in model.modules() if isinstance(module, Router)):
        router.fixed = tuple(shares)
