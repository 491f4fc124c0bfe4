"""A trainer that takes no wrong step: what is no number never reaches weights or optimizer, or at least never a file."""

import json
import math
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unimed.sections import Failures
from unimed.train import checkpoints
from unimed.train.progress import Progress
from unimed.train.resuming import Resumable
from unimed.train.tally import Tally
from unimed.train.watch import Found, Watch

COUNTED = "counted"
"""Beside the parts of the loss: for each step since the last line of the log whether its loss counts in the mean."""


class Guarded(Resumable):
    """A trainer that looks at every step's losses and gradient, and skips or stops as params say.

    The optimizer is told on the device whether to leave a step out, so that no step waits for the GPU; which step it was is told by
    the CPU when the numbers have arrived.
    """

    progress: Progress

    def __init__(self, *args: Any, **kwargs: Any):
        self.watch, self.tally = Watch(), Tally(Failures())
        self.parts: dict[str, Tensor] = {}
        """Of the present step's loss; the trainer says so."""
        super().__init__(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The gradients of one batch; returns its loss, which is 0 where it counts for nothing."""
        self.parts = {}
        loss = self.gradients(model, inputs, num_items_in_batch)
        if not self.tally.policy.skips:
            return loss
        counted = self.together.all_say(loss.isfinite())
        self.note({COUNTED: counted})
        return torch.where(counted, loss, 0.0)

    def gradients(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Loss and gradients of a batch, as transformers has them."""
        return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip; then say of the step about to be made whether all its numbers are finite."""
        norm = super()._clip_grad_norm(model)
        # DeepSpeed looks at its gradients itself.
        # Of no gradients at all the norm would lie on the CPU.
        parts = self.parts | ({"gradient": norm.to(self.args.device)} if isinstance(norm, Tensor) else {})
        if self.tally.policy.not_finite == "skip":
            finite = torch.stack([value.isfinite() for value in parts.values()]).all()
            made = self.together.all_say(finite)
            # Fused AdamW leaves weights, moments and its count of steps alone where this is 1: made for GradScaler, read on the device.
            self.optimizer.optimizer.found_inf = made.logical_not().float()
            if self.together.count > 1:  # its loss may be no number while the gradient, which all share, is one
                parts |= {"another process": torch.where(made | ~finite, 0.0, torch.nan)}
        self._tell(self.watch.look(self.state.global_step, parts))
        return norm

    def arrive(self) -> None:
        """Wait for the numbers of all steps so far, and name those that are not finite."""
        self._tell(self.watch.arrive())

    def _tell(self, found: Found) -> None:
        for step, parts in found:
            self.tally.not_finite(step, parts, self.named(step))

    @abstractmethod
    def named(self, step: int) -> list[str]:
        """The ids of the samples that a step is about; each kind of trainer has its own."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, once it is known of all steps so far whether they were made."""
        self.arrive()
        super()._save_checkpoint(model, trial)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        # What no process has seen taught: a run that goes on is not to warn of what was taught before.
        said = self.together.gathered(json.dumps(sorted(self.progress.waiting)).encode())
        self.progress.waiting = set.intersection(*(set(json.loads(each)) for each in said))
        tensors, numbers = super()._state()
        return tensors, numbers | {"failures": self.tally.counts, "waiting": sorted(self.progress.waiting)}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.progress.untaught = set(checkpoints.numbers_of(checkpoint)["waiting"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self.tally.counts = checkpoints.numbers_of(checkpoint)["failures"]

    def note(self, parts: dict[str, Tensor]) -> None:
        """Keep numbers of this step for the next line of the log."""
        for name, value in parts.items():
            self.noted.setdefault(name, []).append(value.detach())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the mean of every part of the loss since the last time and, where failures are gone on from, their counts.

        What is no number is in no mean, and left out where nothing else is there.
        """
        noted, self.noted = self.noted, {}
        made = [bool(counted) for counted in noted.pop(COUNTED, [])]
        means = {f"loss_{name}": _mean(torch.stack(values)) for name, values in noted.items()}
        if made:
            self.arrive()
            whole = {"loss": logs["loss"] * (len(made) / sum(made)) if any(made) else math.nan} if "loss" in logs else {}
            logs = {name: value for name, value in (logs | whole).items() if math.isfinite(value)}
            means = {name: value for name, value in means.items() if math.isfinite(value)}
        super().log(logs | means | self.tally.told(), *args, **kwargs)


def _mean(values: Float[Tensor, " step"]) -> float:
    return values[values.isfinite()].mean().item()
