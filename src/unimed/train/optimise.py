"""The plain optimisation loop of the rehearsal's towers, which no trainer knows."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from unimed.config import Optimisation
from unimed.progress import Ticker


def minimise(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], Tensor],
    settings: Optimisation,
    label: str,
    matrices: Iterable[nn.Parameter] = (),
) -> list[float]:
    """Step down `loss(step)` with linear warm-up, cosine decay and gradients clipped to norm 1; returns the losses.

    AdamW moves `parameters`; Muon moves `matrices`, weights between hidden layers, at twice the rate. Muon (Jordan et al. 2024,
    arXiv:2502.16982) needs about half of AdamW's steps until a small language model can look things up.
    """
    adam, muon = list(parameters), list(matrices)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(adam, lr=settings.learning_rate, weight_decay=0.01, fused=True)]
    if muon:
        optimizers.append(torch.optim.Muon(muon, lr=2 * settings.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings)) for optimizer in optimizers]
    history = []
    with Ticker(settings.max_steps, label) as ticker:
        for step in range(settings.max_steps):
            value = loss(step)
            value.backward()
            nn.utils.clip_grad_norm_([*adam, *muon], 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            history.append(value.item())
            ticker.advance(1, loss=history[-1])
    return history


def _rate(step: int, settings: Optimisation) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))
