"""A run that is told to stop ends as stopped, whichever step of whichever training it hears it in."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from unimed import job
from unimed.errors import STOPPED
from unimed.train import resuming
from unimed.train.guarded import Guarded
from unimed.train.progress import Progress
from unimed.train.resuming import Saving
from unimed.train.together import Together


class Plain(nn.Module):
    """A model of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, number):
        return {"loss": number.sum() * self.weight}


class Struck(Guarded):
    """A trainer that is told to stop within a step, and notes the weight of each for the log."""

    at: int | None = None

    def training_step(self, *args, **kwargs):
        if self.state.global_step + 1 == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.note({"weight": self.model.weight.clone()})
        return super().training_step(*args, **kwargs)

    def named(self, step):
        return []


def train(*at: int | None) -> list[tuple[float, ...]]:
    """Trainings of three steps, one after the other, told to stop in step `at`; of each the weight and the means of loss and weight."""
    made = []
    with job.run(job.Job("two", "key")):
        for step in at:
            told = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
            args = TrainingArguments("runs", max_steps=3, logging_steps=3, learning_rate=0.25, **told)
            progress = Progress("two", 3)
            trainer = Struck(Plain(), args, train_dataset=[{"number": torch.tensor(1.0)}] * 24, callbacks=[progress])
            trainer.at, trainer.progress = step, progress
            resuming.train(trainer, "two")
            [logged, _] = trainer.state.log_history
            made.append((trainer.model.weight.item(), logged["loss"], logged["loss_weight"]))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_training_told_to_stop_in_any_step_the_last_too_starts_no_other_and_ends_with_75(tmp_path, monkeypatch, at):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            train(at, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == STOPPED
    assert sorted(place.name for place in tmp_path.glob("runs/two-key/checkpoints/*/*")) == [f"step-{at:08d}"]
    went_on = train(None, None)
    assert signal.getsignal(signal.SIGTERM) == before, "who is told to stop between trainings ends"
    monkeypatch.chdir(tmp_path / "runs")
    assert went_on == train(None, None)


@pytest.mark.slow
def test_a_training_told_to_stop_leaves_the_last_checkpoint_of_the_one_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            train(None, 1)
    finally:
        signal.signal(signal.SIGTERM, before)
    places = [
        place.relative_to(tmp_path / "runs/two-key/checkpoints").as_posix() for place in tmp_path.glob("runs/two-key/checkpoints/*/*")
    ]
    assert sorted(places) == ["1/step-00000003", "2/step-00000001"]


def test_a_checkpoint_is_due_ten_minutes_after_the_one_before_it(tmp_path, monkeypatch):
    seconds = iter([0.0, 1.0, 599.0, 600.0, 600.0, 601.0, 1199.0, 1200.0, 1200.0, 1201.0])
    monkeypatch.setattr(resuming, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    saving, args, saved = Saving(Together()), TrainingArguments(str(tmp_path), use_cpu=True), []
    for step in range(7):
        control = TrainerControl()
        saving.on_step_end(args, TrainerState(global_step=step, max_steps=100), control)
        saved.append(control.should_save)
    assert saved == [False, False, True, False, False, True, False]
