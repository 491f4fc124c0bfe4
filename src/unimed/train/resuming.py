"""Checkpoints of a training: complete or absent, verified before use, in safetensors and JSON. A resumed run ends in the same bits.

One holds what trains, the state of optimizer and schedule and, of each process, that of its random generators and what it summed up for
the next line of the log. The data need nothing: which sample comes when follows from the seed and the step.
"""

import json
import logging
import signal
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from unimed import job, outputs
from unimed.errors import STOPPED, InputError
from unimed.model import artifacts, weights
from unimed.train import generators
from unimed.train.together import Together

KEPT = 2
"""The newest checkpoints that stay, beside the best."""

EVERY_SECONDS = 600.0
NUMBERS = "numbers.json"
log = logging.getLogger("resuming")


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; those that do not are named in a warning and left out."""
    for place in sorted(folder.glob("step-????????"), reverse=True):
        try:
            artifacts.verify(place)
            return place
        except InputError as error:
            log.warning("checkpoint left out: %s", error)
    return None


class Resumable(Trainer):
    """A trainer that writes checkpoints of ours and goes on from one, to the bit."""

    together: Together
    """The processes that train together."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.noted: dict[str, list[Tensor]] = {}
        """Parts of the loss since the last line of the log, by name."""
        self.best: dict[str, float] | None = None
        """The `step` of the best checkpoint so far and its `mean`."""
        super().__init__(*args, **kwargs)
        self.measured = torch.zeros(2, device=self.args.device)
        """What was measured since the last checkpoint: the sum, and of how many steps."""

    def measure(self, loss: Tensor) -> None:
        """Count a step in the mean that the next checkpoint is judged by, unless it is no number. Less is better."""
        self.measured += torch.stack([loss.detach().nan_to_num(0.0, 0.0, 0.0), loss.isfinite()]).to(self.measured.device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write what `step-N` of the output folder holds, and remove all but the newest and the best."""
        self._judge()
        tensors, numbers = self._state()
        if outputs.is_leader():
            self._write(Path(self.args.output_dir) / f"step-{self.state.global_step:08d}", tensors, numbers)
        self.together.wait()

    def _write(self, place: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        partial = outputs.beside(place, ".partial")
        outputs.remove(partial)
        partial.mkdir(parents=True)
        safetensors.torch.save_file(_stored(tensors), partial / artifacts.WEIGHTS)
        (partial / NUMBERS).write_text(json.dumps(numbers) + "\n")
        self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        artifacts.seal(partial, {})
        outputs.place(partial, place)
        best = self.best and place.with_name(f"step-{self.best['step']:08d}")
        for old in sorted(place.parent.glob("step-????????"))[:-KEPT]:
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
        """All that a resumed run needs, as tensors by name and as JSON; what each process has of its own stands under its rank."""
        optimizer = self.optimizer.state_dict()
        trained = {f"model/{name}": value for name, value in self.model.named_parameters() if value.requires_grad}
        moments = {f"optimizer/{key}/{name}": value for key, state in optimizer["state"].items() for name, value in state.items()}
        copies = {f"masters/{number:06d}": value for number, value in enumerate(optimizer.get("masters", ()))}
        states, drawn = generators.state()
        summed = {"log/loss": self._tr_loss, **{f"log/{name}": torch.stack(values) for name, values in self.noted.items()}}
        content = safetensors.torch.save(_stored(summed | {f"random/{name}": state for name, state in states.items()}))
        every = enumerate(map(safetensors.torch.load, self.together.gathered(content)))
        own = {f"{rank}/{name}": value for rank, tensors in every for name, value in tensors.items()}
        numbers = {
            "groups": optimizer["param_groups"],
            "schedule": self.lr_scheduler.state_dict(),
            "random": [json.loads(each) for each in self.together.gathered(json.dumps(drawn).encode())],
            "logged_at": self._globalstep_last_logged,
            "best": self.best,
        }
        return {**trained, **moments, **copies, **own}, numbers

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Give what trains the values of a checkpoint."""
        place = Path(resume_from_checkpoint)
        weights.load(self.model, _tensors(resume_from_checkpoint, "model/"), place)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Give optimizer and schedule the state of a checkpoint."""
        if checkpoint is None:
            return
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _tensors(checkpoint, "optimizer/").items():
            key, kind = name.split("/")
            moments.setdefault(int(key), {})[kind] = value
        numbers = numbers_of(checkpoint)
        copies = [value for _, value in sorted(_tensors(checkpoint, "masters/").items())]
        self.optimizer.load_state_dict({"state": moments, "param_groups": numbers["groups"]} | ({"masters": copies} if copies else {}))
        self.lr_scheduler.load_state_dict(numbers["schedule"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Give the random generators and the sums for the log the state of a checkpoint; called when all else stands."""
        if checkpoint is None:
            return
        rank = self.together.rank
        numbers, summed = numbers_of(checkpoint), _tensors(checkpoint, f"{rank}/log/")
        generators.restore(_tensors(checkpoint, f"{rank}/random/"), numbers["random"][rank])
        self._tr_loss = summed.pop("loss").to(self.args.device)
        self.noted = {name: list(values.to(self.args.device)) for name, values in summed.items()}
        self._globalstep_last_logged, self.best = numbers["logged_at"], numbers["best"]


def _tensors(checkpoint: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin so, by the rest of their names; no others are read."""
    with safe_open(Path(checkpoint) / artifacts.WEIGHTS, framework="pt") as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them."""
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def numbers_of(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint holds besides tensors."""
    return json.loads((Path(checkpoint) / NUMBERS).read_text())


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
        is_cut = control.should_training_stop and state.global_step < state.max_steps
        # torchrun tells the other processes to stop when the first has ended: they are about to, and say so with their own exit code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if is_cut else self.before)
        if is_cut:
            raise SystemExit(STOPPED)


def train(trainer: Resumable, label: str, boundary: int = 1) -> None:
    """Train from the newest checkpoint of this recipe, or from the start; checkpoints are written as it goes.

    Runs under DeepSpeed write none. Raises SystemExit with 75 when told to stop.
    """
    place = job.next_checkpoints()
    if place is None or trainer.is_deepspeed_enabled:
        trainer.train()
        return
    trainer.args.output_dir, trainer.together = str(place), Together()
    trainer.add_callback(Saving(trainer.together, boundary))
    found = agreed(place, trainer.together)
    if found:
        log.info("%s goes on from %s", label, found)
    trainer.train(resume_from_checkpoint=str(found) if found else None)


def agreed(folder: Path, together: Together) -> Path | None:
    """The newest checkpoint that the first process can verify. Raises InputError where this one cannot go on from it."""
    mine = newest(folder) if outputs.is_leader() else None
    name = together.gathered(mine.name.encode() if mine else b"")[0].decode()
    if not name:
        return None
    found = folder / name
    if not found.is_dir():
        raise InputError(
            f"{found}: expected the checkpoint of the first process, found none; processes of several machines need one folder"
        )
    if (count := len(numbers_of(str(found))["random"])) != together.count:
        remedy = "start as many, or delete it to start anew"
        raise InputError(f"{found}: expected a checkpoint of {together.count} processes, found one of {count}; {remedy}")
    return found
