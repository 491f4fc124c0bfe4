"""Beside the newest two checkpoints the best one stays, and a run that goes on knows which it is and by what number."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from failing import fit, model, sample
from problems import absent, babbling, settings, with_reasoner
from torch import nn
from transformers import TrainingArguments

from unimed import job
from unimed.rl import trainer as rewarded
from unimed.train import checkpoints, resuming
from unimed.train.resuming import Resumable
from unimed.train.together import Together

pytestmark = pytest.mark.slow


class Said(nn.Module):
    """A model whose losses are its data."""

    def __init__(self, breaks_at: float):
        super().__init__()
        self.weight, self.breaks_at = nn.Parameter(torch.ones(())), breaks_at

    def forward(self, loss):
        if loss.item() == self.breaks_at:
            raise InterruptedError
        return {"loss": loss.sum() + 0 * self.weight}


class Measured(Resumable):
    """A trainer that is judged by its loss."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.measure(loss)
        return loss


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A checkpoint whenever one may be written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resuming, "EVERY_SECONDS", 0.0)


def run(losses, breaks_at=math.pi, boundary=1):
    """Train on losses; returns the steps of the checkpoints that are left, and the best that the newest speaks of."""
    args = TrainingArguments(
        output_dir="runs", per_device_train_batch_size=1, max_steps=len(losses), train_sampling_strategy="sequential",
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, logging_nan_inf_filter=False,
    )  # fmt: skip
    trainer = Measured(Said(breaks_at), args, train_dataset=[{"loss": torch.tensor(loss)} for loss in losses])
    try:
        with job.run(job.Job("said", "key")):
            resuming.train(trainer, "said", boundary)
            return left()
    except InterruptedError:
        return left()


def left():
    places = sorted(Path("runs").glob("*/checkpoints/1/step-*"))
    return [int(place.name.removeprefix("step-")) for place in places], checkpoints.numbers_of(str(places[-1]))["best"]


def test_the_checkpoint_with_the_least_mean_loss_stays_beside_the_newest_two():
    assert run([5.0, 3.0, 4.0, 6.0, 7.0]) == ([2, 4, 5], {"step": 2, "mean": 3.0})
    assert run([5.0, 4.0, 3.0, 2.0, 1.0]) == ([4, 5], {"step": 5, "mean": 1.0})


def test_the_mean_is_of_all_steps_since_the_checkpoint_before():
    assert run([5.0, 4.0, 7.0, 1.0, 9.0, 2.0, 8.0, 1.0], boundary=2) == ([4, 6, 8], {"step": 4, "mean": 4.0})


def test_the_last_step_has_a_checkpoint_wherever_it_falls():
    assert run([5.0, 4.0, 7.0, 1.0, 9.0], boundary=2) == ([4, 5], {"step": 4, "mean": 4.0})


def test_what_a_run_killed_while_it_wrote_left_behind_is_in_no_ones_way():
    left_behind = Path("runs/said-key/checkpoints/1/step-00000002.partial/process-00000.safetensors")
    left_behind.parent.mkdir(parents=True)
    left_behind.write_text("half")
    assert run([5.0, 3.0, 4.0])[0] == [2, 3]
    assert not left_behind.parent.exists()


def test_of_equals_the_first_is_the_best():
    assert run([2.0, 1.0, 1.0, 1.0, 1.0]) == ([2, 4, 5], {"step": 2, "mean": 1.0})


def test_what_is_no_number_is_in_no_mean_and_a_checkpoint_of_nothing_else_is_not_the_best():
    assert run([math.nan, math.inf, 4.0, math.nan, 5.0, 6.0, -math.inf, 9.0], boundary=2) == ([4, 6, 8], {"step": 4, "mean": 4.0})
    assert run([math.nan, math.nan]) == ([1, 2], None)


def test_a_run_that_goes_on_knows_the_best_from_before_and_takes_the_newest():
    losses = [5.0, 1.0, 4.0, 6.0, 3.0, 2.0]
    assert run(losses, breaks_at=6.0) == ([2, 3], {"step": 2, "mean": 1.0})
    place = Path("runs/said-key/checkpoints/1")
    assert checkpoints.newest(place, Together()) == place / "step-00000003"
    assert run(losses) == ([2, 5, 6], {"step": 2, "mean": 1.0})


def test_a_stage_is_judged_by_its_loss_but_for_steps_that_were_skipped(tmp_path):
    samples = [sample(tmp_path, seed, poisoned=seed == 1) for seed in range(3)]
    with job.run(job.Job("tiny", "key")):
        history = fit(model(), samples, {"not_finite": "skip", "most_skipped": 9}, max_steps=6)
        _, best = left()
    losses = {number: entry["loss"] for number, entry in enumerate(history, 1) if "loss" in entry}
    assert 0 < len(losses) < 6
    step = min(losses, key=losses.__getitem__)
    assert best == {"step": step, "mean": pytest.approx(losses[step], abs=1e-4)}


def test_a_batch_in_portions_is_judged_by_the_loss_of_all_of_them(tmp_path):
    samples = [sample(tmp_path, seed) for seed in (0, 2)]
    with job.run(job.Job("tiny", "key")):
        [line] = fit(model(), samples, batch_size=2, samples_at_once=1, max_steps=1)
        _, best = left()
    assert best == {"step": 1, "mean": pytest.approx(line["loss"], abs=1e-4)}


def test_stage_5_is_judged_by_the_mean_reward_of_a_rollout(tmp_path):
    made = babbling(tiny.stirred(**tiny.EXPERTS))
    with_reasoner(made)
    with job.run(job.Job("tiny", "key")):
        numbers = settings(updates_per_rollout=2, max_steps=8, temperature=1.0)
        history = rewarded.reinforce(made, tiny.processor(), [absent(tmp_path)], [], numbers, seed=0)
        steps, best = left()
    rewards = {number + 1: entry["reward"] for number, entry in enumerate(history, 1) if "reward" in entry}
    assert len(set(rewards.values())) > 1
    step = max(rewards, key=rewards.__getitem__)
    assert best == {"step": step, "mean": pytest.approx(-rewards[step])}
    assert steps == sorted({step, 6, 8})
