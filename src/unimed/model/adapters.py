"""LoRA adapters as peft writes them: put on a language model, taken off, stored and read back unchanged."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unimed.errors import InputError

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SPECIAL = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
"""Settings of peft that make an adapter more than B A x times one number."""


@dataclass(frozen=True)
class Adapter:
    """A stored adapter: tensors by peft's names without its prefix, rank, scaling and the linears it stands beside."""

    tensors: dict[str, Tensor]
    rank: int
    scaling: float
    targets: tuple[str, ...]


def add(language_model: nn.Module, name: str, rank: int, scaling: float, targets: tuple[str, ...]) -> list[str]:
    """Put a fresh adapter beside the named linears; returns its parameters' names within the language model.

    It is in single precision whatever the linears are in: an optimizer's steps are too small for half.
    """
    inject_adapter_in_model(_config(rank, scaling, targets), language_model, adapter_name=name)
    own = {key: value for key, value in language_model.named_parameters() if f".lora_A.{name}." in key or f".lora_B.{name}." in key}
    for parameter in own.values():
        parameter.data = parameter.data.float()
    return list(own)


def _config(rank: int, scaling: float, targets: tuple[str, ...]) -> LoraConfig:
    if not float(rank * scaling).is_integer():
        raise InputError(f"expected rank times scaling, peft's alpha, to be a whole number, found {rank} times {scaling}")
    return LoraConfig(r=rank, lora_alpha=int(rank * scaling), target_modules=sorted(targets), lora_dropout=0.0, bias="none")


def taken(language_model: nn.Module, name: str) -> Adapter:
    """An adapter as it is now, by peft's names."""
    config = language_model.peft_config[name]
    state = language_model.state_dict()
    found = {key.replace(f".{name}.weight", ".weight"): value.detach().clone() for key, value in state.items() if f".{name}.weight" in key}
    return Adapter(found, config.r, config.lora_alpha / config.r, tuple(sorted(config.target_modules)))


def write(folder: Path, adapter: Adapter) -> None:
    """Store an adapter so that peft's own `from_pretrained` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({PREFIX + key: value.contiguous() for key, value in sorted(adapter.tensors.items())}, folder / WEIGHTS)
    config = _config(adapter.rank, adapter.scaling, adapter.targets).to_dict()
    written = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    written |= {"peft_type": "LORA", "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(written, indent=1, sort_keys=True, default=str) + "\n")


def read(folder: Path) -> Adapter:
    """A stored adapter. Raises InputError when a file is missing or the adapter is no plain LoRA."""
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise InputError(f"{folder}: expected an adapter in peft's form, found no {missing[0]}")
    config = _read_config(folder / CONFIG)
    found = {key.removeprefix(PREFIX): value for key, value in load_file(folder / WEIGHTS).items()}
    special = [key for key in SPECIAL if config.get(key)] + [key for key in found if ".lora_A." not in key and ".lora_B." not in key]
    if not isinstance(config.get("target_modules"), list):
        special.append("target_modules that are no list of names")
    if special:
        raise InputError(f"{folder}: expected a plain LoRA, found one with {special[0]}")
    return Adapter(found, config["r"], config["lora_alpha"] / config["r"], tuple(config["target_modules"]))


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
        if config["r"] > 0 and config["lora_alpha"] > 0:
            return config
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{file}: expected settings of a LoRA in JSON, with r and lora_alpha above 0, found others")


@torch.no_grad()
def load(language_model: nn.Module, name: str, adapter: Adapter) -> None:
    """Put a stored adapter beside a language model's linears; InputError names the first tensor that does not fit."""
    added = add(language_model, name, adapter.rank, adapter.scaling, adapter.targets)
    own = dict(language_model.named_parameters())
    given = {key.removesuffix(".weight") + f".{name}.weight": value for key, value in adapter.tensors.items()}
    for key in sorted({*added, *given}):
        shapes = [tuple(side[key].shape) if key in side else "no such tensor" for side in (own, given)]
        if shapes[0] != shapes[1]:
            raise InputError(f"adapter {name}: expected {key} of shape {shapes[0]}, found {shapes[1]}")
        own[key].copy_(given[key])


@torch.no_grad()
def replace(language_model: nn.Module, name: str, adapter: Adapter) -> None:
    """Give an adapter that is there another's values."""
    own = dict(language_model.named_parameters())
    for key, value in adapter.tensors.items():
        own[key.removesuffix(".weight") + f".{name}.weight"].copy_(value)
