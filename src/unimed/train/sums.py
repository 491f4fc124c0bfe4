"""Gradients of several backward passes added up in float32: a bfloat16 has eight bits, which the later passes would fall out of."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Sums:
    """What the gradients of parameters that train come to over several backward passes."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.totals: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def take(self) -> None:
        """Add the gradients that the parameters have now, and take them off."""
        came = {parameter: parameter.grad for parameter in self.trained if parameter.grad is not None}
        for parameter in came:
            if parameter not in self.totals:
                self.totals[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
            parameter.grad = None
        if came:
            torch._foreach_add_([self.totals[parameter] for parameter in came], list(came.values()))

    def give(self) -> None:
        """Give the parameters their totals, rounded once to their own type; none to those that no pass reached."""
        for parameter, total in self.totals.items():
            parameter.grad = total.to(parameter.dtype)
