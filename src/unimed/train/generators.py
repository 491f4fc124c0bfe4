"""The random generators that a training draws from: their state as tensors and JSON, and back."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every generator that training draws from: Python's, numpy's, torch's and each GPU's."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    tensors = {
        "python": torch.tensor(words),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    numbers = {"python": [version, gauss], "numpy": [kind, int(position), int(has_gauss), float(cached)]}
    return tensors | {f"gpu/{number}": state for number, state in enumerate(gpus)}, numbers


def restore(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Give every generator the state that `state` returned."""
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, position, has_gauss, cached = numbers["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    for name, state in tensors.items():
        if name.startswith("gpu/"):
            torch.cuda.set_rng_state(state, int(name.removeprefix("gpu/")))
