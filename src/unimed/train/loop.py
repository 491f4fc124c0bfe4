"""The one loop of stages 1 to 4: transformers' Trainer, told what trains, which samples come and which losses count."""

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.hooks import RemovableHandle
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unimed import tracking
from unimed.config import MaskLoss, Optimisation, RouterLoss
from unimed.errors import InputError
from unimed.model import experts
from unimed.model.packing import Packing
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.progress import Ticker
from unimed.train import fast_path, losses, resuming
from unimed.train.batch import Batch, Collator
from unimed.train.draws import Draws, Epochs
from unimed.train.resuming import Resumable
from unimed.train.rows import RowCollator, Rows
from unimed.train.watch import Watch

logger = logging.getLogger("train")
TAUGHT_BY_MASKS = ("grounding.sam.", "grounding.text_hidden_fcs.")
"""How the names of parameters begin that have no gradient from a batch without target masks."""


def train_only(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Freeze all of `model` but the named modules and parameters; returns the names of the parameters that train.

    Raises ValueError for a name that the model does not have.
    """
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"cannot train {unknown}: the model has {[name for name, _ in model.named_children()]}")
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name == chosen or name.startswith(f"{chosen}.") for chosen in names))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


class Progress(TrainerCallback):
    """Shows every step, checks that exactly what trains gets gradients, and hands what the trainer logs to tracking."""

    def __init__(self, label: str, total: int):
        self.ticker = Ticker(total, label)
        self.losses: dict[str, float] = {}
        # Whether any batch had target masks; the trainer says so.
        self.masked = False
        # What trains and never had a gradient.
        self.waiting: set[str] = set()
        self.checked = False
        self.hooks: list[RemovableHandle] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, optimizer: Any, **kwargs: Any
    ) -> None:
        # The optimizer of a run that goes on holds moments of exactly what had a gradient before.
        taught = optimizer.state if state.global_step else {}
        # Hooks, because DeepSpeed takes gradients away before anyone else can look at them.
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad and value not in taught}
        self.waiting = set(trained)
        self.hooks = [parameter.register_hook(partial(self._arrived, name)) for name, parameter in trained.items()]
        self.ticker.__enter__()

    def _arrived(self, name: str, gradient: Tensor) -> None:
        self.waiting.discard(name)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Raise RuntimeError when something that should train has no gradient, or something frozen has one.

        What only masks teach may wait for the first batch that has one. Nothing is looked at once all have had a gradient.
        """
        if self.checked:
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
        if "loss" in logs:
            self.losses = {"loss": float(logs["loss"])}
            tracking.log({f"{self.ticker.label}/{name}": float(value) for name, value in logs.items()}, state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.ticker.__exit__(None, None, None)
        self._unhook()
        if self.waiting:
            found = f"{', '.join(sorted(self.waiting)[:5])} and {len(self.waiting)} in all"
            logger.warning("%s: no sample had a target mask, so these parameters stayed as they were: %s", self.ticker.label, found)


class StageTrainer(Resumable):
    """Trainer whose loss is the weighted sum of words, masks and router terms, each logged on its own."""

    mask_loss: MaskLoss | None = None
    router_loss: RouterLoss | None = None
    progress: Progress

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.watch = Watch()

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The loss of one batch; FloatingPointError, with the step and the parts, when it is not finite."""
        inputs = dict(inputs)
        masks, packing = inputs.pop("masks", None), inputs.get("packing")
        self.progress.masked |= masks is not None
        # A packed row is read once; nobody goes on from its cache.
        outputs = model(**inputs, segment=masks is not None, **({} if packing is None else {"use_cache": False}))
        parts = {"words": outputs.loss}
        if masks is not None and self.mask_loss is not None:
            parts |= mask_terms(outputs.mask_logits, masks, self.mask_loss)
        if self.router_loss is not None:
            mask = inputs["attention_mask"].bool() if packing is None else None
            parts |= router_terms(model, mask, self.router_loss, packing)
        loss = torch.stack(list(parts.values())).sum()
        self.watch.look(self.state.global_step, parts)
        self._note(parts)
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, once all losses so far are known to be finite."""
        self.watch.arrive()
        super()._save_checkpoint(model, trial)

    def _note(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            self.noted.setdefault(name, []).append(value.detach())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the mean of every part of the loss since the last time."""
        noted, self.noted = self.noted, {}
        super().log(logs | {f"loss_{name}": torch.stack(values).mean().item() for name, values in noted.items()}, *args, **kwargs)


def mask_terms(low: Float[Tensor, "mask low low"], target: Float[Tensor, "mask size size"], weights: MaskLoss) -> dict[str, Tensor]:
    """Pixel and overlap loss of predicted masks, averaged over masks, at the target's size, in float32."""
    logits = interpolate(low.float().unsqueeze(1), target.shape[-1], mode="bilinear", align_corners=False).squeeze(1)
    return {
        "pixel": weights.pixel_weight * losses.pixel(logits, target).mean(),
        "dice": weights.dice_weight * losses.dice(logits, target).mean(),
    }


def router_terms(
    model: nn.Module, mask: Bool[Tensor, "batch seq"] | None, weights: RouterLoss, packing: Packing | None = None
) -> dict[str, Tensor]:
    """Balance and z-loss over what the routers decided in the forward pass just made.

    On the token level every position that is no padding counts, image positions too; on the sequence level every sequence once.
    """
    logits = experts.take_decisions(model, mask, packing)
    return {
        "balance": weights.balance_weight * experts.balance_loss(logits),
        "z": weights.z_weight * experts.z_loss(logits),
    }


def fit(
    model: UniMedForConditionalGeneration,
    epochs: Epochs,
    collator: Collator,
    settings: Optimisation,
    seed: int,
    label: str,
    mask_loss: MaskLoss | None = None,
    router_loss: RouterLoss | None = None,
) -> list[dict[str, float]]:
    """Train what requires a gradient for `settings.max_steps` optimizer steps; returns what was logged, in evaluation mode.

    What trained is float32 afterwards, whatever it was trained in.
    """
    length, progress = settings.max_steps * settings.batch_size, Progress(label, settings.max_steps)
    draws = Draws(epochs, length, seed)
    batches: dict[str, Any] = {"train_dataset": draws, "data_collator": collator}
    if settings.row_tokens is not None:
        if model.config.canvases:
            raise InputError("params.yaml: expected row_tokens or canvases, found both: rows are packed of images of one size alone")
        rows = Rows(draws, collator.piece, settings.row_tokens, length)
        batches = {"train_dataset": rows, "data_collator": RowCollator(collator, settings.row_tokens)}
    args = arguments(settings, seed)
    with fast_path.prepared(model, settings, args.device) as masters:
        trainer = StageTrainer(model=model, args=args, callbacks=[progress], optimizers=(masters, None), **batches)
        trainer.remove_callback(PrinterCallback)
        trainer.mask_loss, trainer.router_loss, trainer.progress = mask_loss, router_loss, progress
        resuming.train(trainer, label)
        trainer.watch.arrive()
    model.eval()
    return [{name: float(value) for name, value in entry.items()} for entry in trainer.state.log_history if "loss" in entry]


def per_process(batch_size: int) -> int:
    """A process's part of a batch. Raises InputError when the processes that torchrun started cannot share it evenly."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % processes:
        raise InputError(f"params.yaml: batch_size must be a multiple of the {processes} processes of this run, is {batch_size}")
    return batch_size // processes


def arguments(settings: Optimisation, seed: int) -> TrainingArguments:
    """The trainer's arguments: AdamW without decay, linear warm-up, cosine to zero, gradients clipped to norm 1."""
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir="runs/trainer",
        per_device_train_batch_size=per_process(settings.batch_size),
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=max(1, settings.max_steps // 40),
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        # It would wait for the GPU in every step; `Watch` looks at losses when they have arrived.
        logging_nan_inf_filter=False,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=settings.workers > 0,
        accelerator_config={"non_blocking": gpu},
        deepspeed=settings.deepspeed,
        seed=seed,
    )
