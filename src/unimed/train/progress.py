"""What a training shows of itself, and the check that what trains has gradients and nothing else has."""

import logging
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unimed import tracking
from unimed.progress import Ticker

logger = logging.getLogger("train")
TAUGHT_BY_MASKS = ("grounding.sam.", "grounding.text_hidden_fcs.")
"""How the names of parameters begin that have no gradient from a batch without target masks."""

LOGGED = "learning_rate"
"""What stands in every line of the log, be there a loss or, where all steps were skipped, none; in the summary at the end it does not."""


class Progress(TrainerCallback):
    """Shows every step, checks that exactly what trains gets gradients, and hands what the trainer logs to tracking."""

    def __init__(self, label: str, total: int):
        self.ticker = Ticker(total, label)
        self.losses: dict[str, float] = {}
        # Whether any batch had target masks, and whether the present one holds nothing at all; the trainer says so.
        self.masked = self.empty = False
        # What trains and never had a gradient; in a run that goes on the trainer says what that was before.
        self.waiting: set[str] = set()
        self.untaught: set[str] | None = None
        self.checked = False
        self.hooks: list[RemovableHandle] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        # Hooks, because DeepSpeed takes gradients away before anyone else can look at them.
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.waiting = trained.keys() & (trained.keys() if self.untaught is None else self.untaught)
        self.hooks = [trained[name].register_hook(partial(self._arrived, name)) for name in sorted(self.waiting)]
        self.ticker.__enter__()

    def _arrived(self, name: str, gradient: Tensor) -> None:
        self.waiting.discard(name)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Raise RuntimeError when something that should train has no gradient, or something frozen has one.

        What only masks teach may wait for the first batch that has one. Nothing is looked at once all have had a gradient.
        """
        if self.checked or self.empty:
            return
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad and parameter.grad is not None}
        missing = {name for name in self.waiting if self.masked or not name.startswith(TAUGHT_BY_MASKS)}
        if wrong := sorted(frozen | missing):
            raise RuntimeError(f"expected a gradient for exactly what trains, found otherwise for {wrong[:5]} and {len(wrong)} in all")
        self.checked = not self.waiting
        if self.checked:
            self._unhook()

    def _unhook(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.ticker.advance(1, **self.losses)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **kwargs: Any) -> None:
        if LOGGED in logs:
            self.losses = {"loss": float(logs["loss"])} if "loss" in logs else {}
            tracking.log({f"{self.ticker.label}/{name}": float(value) for name, value in logs.items()}, state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.ticker.__exit__(None, None, None)
        self._unhook()
        if self.waiting:
            found = f"{', '.join(sorted(self.waiting)[:5])} and {len(self.waiting)} in all"
            logger.warning("%s: no sample had a target mask, so these parameters stayed as they were: %s", self.ticker.label, found)
