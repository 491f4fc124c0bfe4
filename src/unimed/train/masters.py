"""AdamW for weights that are too coarse to be stepped: it steps float32 copies and writes them back."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of bfloat16 parameters.

    A bfloat16 has eight bits: steps below 1/256 of a weight would be rounded away.
    """

    def __init__(self, trained: Iterable[nn.Parameter], learning_rate: float):
        self.trained = list(trained)
        self.masters = [nn.Parameter(parameter.detach().float()) for parameter in self.trained]
        self.gradients = [torch.zeros_like(master) for master in self.masters]
        super().__init__(self.masters, lr=learning_rate, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]
        """Step the copies by the parameters' gradients, then set the parameters to them."""
        # All at once: one kernel for hundreds of small matrices.
        came = [(own, parameter.grad) for own, parameter in zip(self.gradients, self.trained, strict=True) if parameter.grad is not None]
        if came:
            torch._foreach_copy_(*map(list, zip(*came, strict=True)))
        for master, own, parameter in zip(self.masters, self.gradients, self.trained, strict=True):
            master.grad = None if parameter.grad is None else own
        super().step()
        torch._foreach_copy_(self.trained, self.masters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the parameters' gradients."""
        for parameter in self.trained:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state and the copies, from which a run goes on bit by bit."""
        return super().state_dict() | {"masters": [master.detach() for master in self.masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored state."""
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "masters"})
        torch._foreach_copy_(self.masters, list(state_dict["masters"]))
        torch._foreach_copy_(self.trained, self.masters)

    def hand_over(self) -> None:
        """Give the parameters the copies themselves, so that what is stored has lost nothing. No step may follow."""
        for parameter, master in zip(self.trained, self.masters, strict=True):
            parameter.data = master.data
