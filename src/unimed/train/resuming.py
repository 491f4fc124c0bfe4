"""A training that writes checkpoints and goes on from one: a resumed run ends in the same bits.

A checkpoint holds what trains, the state of optimizer and schedule and, of each process, that of its random generators and what it summed
up for the next line of the log. The data need nothing: which sample comes when follows from the seed and the step.
"""

import json
import logging
import signal
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from unimed import job, outputs
from unimed.errors import STOPPED
from unimed.model import artifacts, weights
from unimed.train import checkpoints, generators, zero
from unimed.train.together import Together

KEPT = 2
"""The newest checkpoints that stay, beside the best."""

EVERY_SECONDS = 600.0
log = logging.getLogger("resuming")


class Resumable(Trainer):
    """A trainer that writes checkpoints of ours and goes on from one, to the bit."""

    told: dict[str, Any] | None
    """What DeepSpeed is told, if it is there."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.noted: dict[str, list[Tensor]] = {}
        """Parts of the loss since the last line of the log, by name."""
        self.best: dict[str, float] | None = None
        """The `step` of the best checkpoint so far and its `mean`."""
        super().__init__(*args, **kwargs)
        self.together = Together()
        """The processes that train together, which transformers has met by now."""
        self.measured = torch.zeros(2, device=self.args.device)
        """What was measured since the last checkpoint: the sum, and of how many steps."""

    def measure(self, loss: Tensor) -> None:
        """Count a step in the mean that the next checkpoint is judged by, unless it is no number. Less is better."""
        self.measured += torch.stack([loss.detach().nan_to_num(0.0, 0.0, 0.0), loss.isfinite()]).to(self.measured.device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write what `step-N` of the machine's own output folder holds, and remove all but the newest and the best."""
        self._judge()
        tensors, numbers = self._state()
        place = Path(self.args.output_dir) / f"step-{self.state.global_step:08d}"
        partial = outputs.beside(place, ".partial")
        if self.together.is_first:
            outputs.remove(partial)
            partial.mkdir(parents=True)
        self.together.wait()
        own = checkpoints.file_of(partial, self.together.rank)
        safetensors.torch.save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, own)
        outputs.flush(own)
        self.together.wait()
        if self.together.is_first:
            self._complete(partial, place, numbers)
        self.together.wait()

    def _complete(self, partial: Path, place: Path, numbers: dict[str, Any]) -> None:
        """Make a checkpoint of what the machine's processes have written."""
        (partial / checkpoints.NUMBERS).write_text(json.dumps(numbers) + "\n")
        self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        artifacts.seal(partial, {})
        outputs.place(partial, place)
        best = self.best and place.with_name(f"step-{self.best['step']:08d}")
        for old in job.complete_checkpoints(place.parent)[:-KEPT]:
            if old != best:
                outputs.remove(old)

    def _judge(self) -> None:
        """Call the checkpoint about to be written the best if its mean is the least so far.

        The mean is of the training loss in the steps since the checkpoint before it; in stage 5, of minus the reward. Nothing else is known
        of a model while it trains, and no run goes on or ends with the best because it is: it is there for people.
        """
        said = [json.loads(each) for each in self.together.gathered(json.dumps(self.measured.tolist()).encode())]
        total, count = map(sum, zip(*said, strict=True))
        self.measured.zero_()
        if count and (self.best is None or total / count < self.best["mean"]):
            self.best = {"step": self.state.global_step, "mean": total / count}

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed run needs: tensors by name, as this process is to write them, and as JSON what a machine's first one is."""
        optimizer = zero.state_of(self.deepspeed.optimizer) if self.is_deepspeed_enabled else self.optimizer.state_dict()
        states, drawn = generators.state()
        summed = {"log/loss": self._tr_loss, **{f"log/{name}": torch.stack(values) for name, values in self.noted.items()}}
        own = summed | {f"random/{name}": state for name, state in states.items()}
        trained = self._trained(optimizer) if self.together.rank == self._keeper else {}
        numbers = {
            "groups": optimizer["param_groups"],
            "schedule": self.lr_scheduler.state_dict(),
            "random": [json.loads(each) for each in self.together.gathered(json.dumps(drawn).encode())],
            "logged_at": self._globalstep_last_logged,
            "best": self.best,
            "deepspeed": self.told,
        }
        return trained | own, numbers

    @property
    def _keeper(self) -> int:
        """The process that writes, and whose file holds, what trains here: ZeRO spreads it, else the machine's first has what all have."""
        return self.together.rank if self.is_deepspeed_enabled else self.together.first

    def _trained(self, optimizer: dict[str, Any]) -> dict[str, Tensor]:
        """What trains and the optimizer's state. Under ZeRO the weights follow from the float32 copies that it steps."""
        named = () if self.is_deepspeed_enabled else self.model.named_parameters()
        trained = {f"model/{name}": value for name, value in named if value.requires_grad}
        moments = {f"optimizer/{key}/{name}": value for key, state in optimizer["state"].items() for name, value in state.items()}
        copies = {f"masters/{number:06d}": value for number, value in enumerate(optimizer.get("masters", ()))}
        return trained | moments | copies

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Make all ready to go on; under DeepSpeed transformers would look for a checkpoint of DeepSpeed's own."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Give what trains the values of a checkpoint."""
        place = Path(resume_from_checkpoint)
        weights.load(self.model, checkpoints.tensors(checkpoints.file_of(place, self._keeper), "model/"), place)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Give optimizer and schedule the state of a checkpoint."""
        if checkpoint is None:
            return
        file, numbers = checkpoints.file_of(Path(checkpoint), self._keeper), checkpoints.numbers_of(checkpoint)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in checkpoints.tensors(file, "optimizer/").items():
            key, kind = name.split("/")
            moments.setdefault(int(key), {})[kind] = value
        copies = [value for _, value in sorted(checkpoints.tensors(file, "masters/").items())]
        state = {"state": moments, "param_groups": numbers["groups"]} | ({"masters": copies} if copies else {})
        if self.is_deepspeed_enabled:
            zero.restore(self.deepspeed.optimizer, state)
        else:
            self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(numbers["schedule"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Give the random generators and the sums for the log the state of a checkpoint; called when all else stands."""
        if checkpoint is None:
            return
        rank, numbers = self.together.rank, checkpoints.numbers_of(checkpoint)
        file = checkpoints.file_of(Path(checkpoint), rank)
        generators.restore(checkpoints.tensors(file, "random/"), numbers["random"][rank])
        summed = checkpoints.tensors(file, "log/")
        self._tr_loss = summed.pop("loss").to(self.args.device)
        self.noted = {name: list(values.to(self.args.device)) for name, values in summed.items()}
        self._globalstep_last_logged, self.best = numbers["logged_at"], numbers["best"]


class Saving(TrainerCallback):
    """Asks for a checkpoint every ten minutes, at the end, and when told to stop: all processes when one of them has cause.

    A run told to stop ends after its step, with exit code 75. Only every `boundary`-th step can be gone on from exactly.
    """

    def __init__(self, together: Together, boundary: int = 1):
        self.together, self.boundary = together, boundary
        self.told_to_stop, self.saved_at = False, time.monotonic()
        self.before: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved_at = time.monotonic()
        self.before = signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        log.warning("told to stop: the run ends after its step and can go on from there")
        self.told_to_stop = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.boundary and state.global_step < state.max_steps:
            return
        is_due = time.monotonic() - self.saved_at >= EVERY_SECONDS
        # All act on what all have heard: a signal that comes meanwhile counts after the next step.
        is_due, is_stopped = map(bool, self.together.greatest(is_due, self.told_to_stop))
        if is_due or is_stopped or state.global_step == state.max_steps:
            control.should_save, self.saved_at = True, time.monotonic()
        control.should_training_stop |= is_stopped

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # In the last step too, or even after it: another training may follow, which would know nothing of it.
        is_stopped = any(self.together.greatest(self.told_to_stop))
        # torchrun tells the other processes to stop when the first has ended: they are about to, and say so with their own exit code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if is_stopped else self.before)
        if is_stopped:
            raise SystemExit(STOPPED)


def train(trainer: Resumable, label: str, boundary: int = 1) -> None:
    """Train from the newest checkpoint of this recipe, or from the start; checkpoints are written as it goes.

    DeepSpeed's other ways than ZeRO-2 and ZeRO-3 write none. Raises SystemExit with 75 when told to stop.
    """
    place, trainer.told = job.next_checkpoints(), zero.configuration(trainer)
    if place is None or not zero.is_resumable(trainer.told):
        trainer.train()
        return
    trainer.args.output_dir = str(place)
    trainer.add_callback(Saving(trainer.together, boundary))
    found = checkpoints.agreed(place, trainer.together, trainer.told)
    if found:
        log.info("%s goes on from %s", label, found)
    trainer.train(resume_from_checkpoint=str(found) if found else None)
