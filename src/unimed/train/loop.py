"""The one loop of stages 1 to 4: transformers' Trainer, told what trains, which samples come and which losses count."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainingArguments

from unimed import environment
from unimed.config import MaskLoss, Optimisation, RouterLoss
from unimed.errors import InputError
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.sections import Failures
from unimed.train import fast_path, float8, portions, resuming, zero
from unimed.train.batch import Batch, Collator
from unimed.train.draws import Draws, Epochs
from unimed.train.portions import InPortions
from unimed.train.progress import LOGGED, Progress
from unimed.train.readable import ReadableOnly
from unimed.train.rows import RowCollator, Rows
from unimed.train.stage_trainer import StageTrainer, legible
from unimed.train.tally import Tally
from unimed.train.together import per_process


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
        rows = Rows(draws, collator.piece, settings.row_tokens, length)
        batches = {"train_dataset": rows, "data_collator": RowCollator(collator, settings.row_tokens)}
    if settings.failures.unreadable == "skip":
        batches["data_collator"] = ReadableOnly(batches["data_collator"])
    if settings.workers:
        environment.allow_open_files()
    args = arguments(settings, seed)
    fast_path.check(settings, args.device)
    size = args.per_device_train_batch_size
    batches["data_collator"] = InPortions(batches["data_collator"], min(settings.samples_at_once or size, size))
    if settings.float8:
        batch = first(batches["train_dataset"], batches["data_collator"], settings.failures)
        float8.judged(model.to(args.device, torch.bfloat16), portions.placed(batch, args.device))
    with fast_path.prepared(model, settings, args.device) as masters:
        trainer = StageTrainer(model=model, args=args, callbacks=[progress], optimizers=(masters, None), **batches)
        trainer.remove_callback(PrinterCallback)
        trainer.mask_loss, trainer.router_loss, trainer.progress = mask_loss, router_loss, progress
        trainer.tally = Tally(settings.failures)
        resuming.train(trainer, label)
        trainer.arrive()
        zero.gather(trainer)
    model.eval()
    return [{name: float(value) for name, value in entry.items()} for entry in trainer.state.log_history if LOGGED in entry]


def first(items: Draws | Rows, collator: InPortions, failures: Failures) -> Batch:
    """The first item that can be read, as a batch of its own. Raises InputError where more than may be skipped cannot."""
    batches = (collator([items[number]]) for number in range(min(len(items), failures.most_skipped + 1)))
    found = next(filter(legible, batches), None)
    if found is None:
        bound = f"as failures.most_skipped is {failures.most_skipped}"
        raise InputError(f"params.yaml: expected one of the first {failures.most_skipped + 1} to be readable, {bound}, found none")
    return found


def arguments(settings: Optimisation, seed: int) -> TrainingArguments:
    """The trainer's arguments: AdamW without decay, linear warm-up, cosine to zero, gradients clipped to norm 1."""
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir="runs/trainer",
        per_device_train_batch_size=per_process(settings),
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
