"""The package flash-attn-4: attention of packed rows on Hopper and Blackwell GPUs, used where it is installed and asked for."""

import importlib
import warnings
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unimed.errors import InputError

CAPABILITY = 9
"""Of the first GPUs, Hopper's, for which it has a backward."""


def require(device: torch.device) -> None:
    """Nothing where it can be used; and a needless warning of its compiler is off from then on.

    Raises InputError where the device is none of its GPUs or the package is missing.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < CAPABILITY:
        found = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        need = f"params.yaml: flash_attn needs a GPU of compute capability {CAPABILITY} or more"
        raise InputError(f"{need}, found {found}; use one, or leave flash_attn out")
    kernels()
    # Said of each kernel when it is compiled, of an argument that nobody gave.
    warnings.filterwarnings("ignore", message="Argument aux_data", category=UserWarning)


def kernels() -> ModuleType:
    """Its module that has forward and backward apart: the names it has in public are one for both, which an operator cannot be.

    Raises InputError where the package is missing.
    """
    try:
        return importlib.import_module("flash_attn.cute.interface")
    except ImportError as error:
        told = f"found {error}; install it with `uv pip install -c requirements.lock -e '.[flash]'`, or leave flash_attn out"
        raise InputError(f"params.yaml: flash_attn needs the package flash-attn-4, {told}") from None


def forward(
    query: Float[Tensor, "position head size"],
    key: Float[Tensor, "position group size"],
    value: Float[Tensor, "position group size"],
    ends: Int[Tensor, " end"],
    longest: int,
    scaling: float,
) -> tuple[Float[Tensor, "position head size"], Float[Tensor, "head position"]]:
    """Causal attention within segments: the states, and the log of the softmax's sum."""
    found = kernels()._flash_attn_fwd(query, key, value, return_lse=True, **_told(ends, longest, scaling))
    return found[0], found[1]


def backward(
    gradient: Float[Tensor, "position head size"],
    query: Float[Tensor, "position head size"],
    key: Float[Tensor, "position group size"],
    value: Float[Tensor, "position group size"],
    states: Float[Tensor, "position head size"],
    lse: Float[Tensor, "head position"],
    ends: Int[Tensor, " end"],
    longest: int,
    scaling: float,
) -> tuple[Float[Tensor, "position head size"], Float[Tensor, "position group size"], Float[Tensor, "position group size"]]:
    """The gradients with respect to query, key and value, in bits that may differ from one time to the next."""
    found = kernels()._flash_attn_bwd(query, key, value, states, gradient, lse, **_told(ends, longest, scaling))
    return found[0], found[1], found[2]


def _told(ends: Tensor, longest: int, scaling: float) -> dict[str, Any]:
    places = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": longest, "max_seqlen_k": longest}
    return places | {"causal": True, "softmax_scale": scaling}
