"""A run that is told to stop ends as stopped, whichever step of whichever training it hears it in."""

import os
import signal

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from unimed import job
from unimed.errors import STOPPED
from unimed.train import resuming
from unimed.train.resuming import Resumable


class Plain(nn.Module):
    """A model of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, number):
        return {"loss": number.sum() * self.weight}


class Struck(Resumable):
    """A trainer that is told to stop within a step."""

    at: int | None = None

    def training_step(self, *args, **kwargs):
        if self.state.global_step + 1 == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(*args, **kwargs)


def train(*at: int | None) -> list[tuple[float, float]]:
    """Trainings of three steps, one after the other, told to stop in step `at`; of each the weight and the mean loss."""
    made = []
    with job.run(job.Job("two", "key")):
        for step in at:
            told = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
            args = TrainingArguments("runs", max_steps=3, logging_steps=3, learning_rate=0.25, **told)
            trainer = Struck(Plain(), args, train_dataset=[{"number": torch.tensor(1.0)}] * 24)
            trainer.at = step
            resuming.train(trainer, "two")
            made.append((trainer.model.weight.item(), trainer.state.log_history[0]["loss"]))
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
    monkeypatch.chdir(tmp_path / "runs")
    assert went_on == train(None, None)
