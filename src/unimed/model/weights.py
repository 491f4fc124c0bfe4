"""Tensors of a model in sealed folders: stored as safetensors, read after verification, and put where they belong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unimed.errors import InputError
from unimed.model import artifacts


def write(folder: Path, tensors: Mapping[str, Tensor], parents: Mapping[str, Path], **facts: Any) -> None:
    """Store tensors in a sealed folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in sorted(tensors.items())}, folder / artifacts.WEIGHTS)
    artifacts.seal(folder, parents, **facts)


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors of a sealed folder, after it was verified. Raises InputError when it has none."""
    if artifacts.WEIGHTS not in artifacts.verify(folder)["files"]:
        raise InputError(f"{folder / artifacts.MANIFEST}: expected {artifacts.WEIGHTS} among its files, found none")
    return load_file(folder / artifacts.WEIGHTS)


def named(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The parameters and buffers of the named modules, or the named parameters themselves. Raises ValueError for a wrong name."""
    state = model.state_dict()
    known = {*state, *(name for name, _ in model.named_modules())}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"cannot store {unknown}: the model has {[name for name, _ in model.named_children()]}")
    return {key: value for key, value in state.items() if any(f"{key}.".startswith(f"{name}.") for name in names)}


@torch.no_grad()
def load(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a model; InputError names the first that the model lacks or has in another shape."""
    own = model.state_dict()
    for name, value in tensors.items():
        if name not in own or own[name].shape != value.shape:
            found = tuple(own[name].shape) if name in own else "no such tensor"
            raise InputError(
                f"{source / artifacts.WEIGHTS}: expected the model to have {name} of shape {tuple(value.shape)}, found {found}"
            )
        own[name].copy_(value)
