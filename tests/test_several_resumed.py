"""Processes that train together keep one checkpoint of all of them, stop together, and go on to the bits of a run left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from striking import reached
from test_processes import TWO

from conftest import ROOT
from unimed.errors import STOPPED, InputError
from unimed.model import artifacts
from unimed.train import checkpoints
from unimed.train.together import Together

PROGRAM = """
import json, os, sys, threading
from pathlib import Path

import numpy as np
import problems, striking, tiny, torch
from safetensors.torch import save_file
from unimed import job
from unimed.config import Optimisation
from unimed.model import assemble
from unimed.rl import trainer
from unimed.train import loop, resuming
from unimed.train.batch import Collator

step, number = map(int, sys.argv[1:])
out, rank = Path.cwd(), int(os.environ["RANK"])
mine = out / str(rank)
resuming.EVERY_SECONDS = 0.0 if rank else 600.0  # one of them has cause

def noisy(module, inputs, output):
    torch.rand(rank), np.random.rand(rank)  # so that no process draws what another does
    return output + 0.2 * np.random.rand() * torch.randn_like(output)

def stage_1():
    model = tiny.stirred()
    model.model.projector.register_forward_hook(noisy)
    loop.train_only(model, assemble.ALIGNED)
    samples = [tiny.sample(mine, tiny.turn("Is there a nodule?", "no" * (1 + seed % 3)), seed=seed) for seed in range(6)]
    settings = Optimisation(batch_size=4, max_steps=4, learning_rate=0.01, warmup_steps=0)
    return model, loop.fit(model, tiny.samples(*samples), Collator(tiny.processor()), settings, 0, "tiny")

def stage_5():
    model = problems.babbling(tiny.stirred(**tiny.EXPERTS))
    problems.with_reasoner(model)
    found = [problems.absent(mine), problems.pointing(mine)]
    numbers = problems.settings(max_steps=8, temperature=1.0)
    return model, trainer.reinforce(model, tiny.processor(), found, [], numbers, 0)

if rank == 1 and number:
    threading.Thread(target=striking.strike, args=(out, step, 0.0, number), daemon=True).start()
try:
    with job.run(job.Job("tiny", "key")):
        made = [stage_1(), stage_5()]
except SystemExit as end:
    (out / f"{rank}.code").write_text(str(end.code))
    raise
for stage, (model, history) in enumerate(made):
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    save_file(trained, out / f"{stage}-{rank}.safetensors")
    (out / f"{stage}-{rank}.json").write_text(json.dumps(history, sort_keys=True))
"""


def run(folder: Path, step: int = 0, number: int = 0) -> subprocess.CompletedProcess:
    """Train twice, 4 and 8 steps, in two processes, with a checkpoint after each; at that step's the second gets a signal."""
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(PROGRAM)
    known = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "src", ROOT))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *TWO, "program.py", str(step), str(number)]
    return subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_processes_killed_then_told_to_stop_go_on_to_the_bits_of_two_left_alone(tmp_path):
    one, other = tmp_path / "disturbed", tmp_path / "whole"
    killed = run(one, 2, 9)
    assert killed.returncode == 1 and "Signal 9 (SIGKILL)" in killed.stderr
    assert 2 <= reached(one) <= 4
    stopped = run(one, 5, 15)
    assert f"exitcode  : {STOPPED}" in stopped.stderr
    assert [(one / f"{rank}.code").read_text() for rank in (0, 1)] == [str(STOPPED)] * 2
    assert 5 <= reached(one) < 8
    best = checkpoints.numbers_of(str(checkpoints.newest(one / "runs/tiny-key/checkpoints/1", Together())))["best"]
    for folder in (one, other):
        done = run(folder)
        assert done.returncode == 0, done.stderr[-4000:]
        assert reached(folder) == 0
    for stage in (0, 1):
        left, right = ([load_file(folder / f"{stage}-{rank}.safetensors") for rank in (0, 1)] for folder in (one, other))
        for rank in (0, 1):
            torch.testing.assert_close(left[rank], right[rank], atol=0, rtol=0)
        # The first process's alone is told to anybody.
        assert (one / f"{stage}-0.json").read_text() == (other / f"{stage}-0.json").read_text()
    least = min(json.loads((one / "0-0.json").read_text()), key=lambda entry: entry["loss"])
    assert best == {"step": least["step"], "mean": pytest.approx(least["loss"])}, "the mean over both"


def checkpoint(folder: Path, processes: int, told: dict | None = None) -> Path:
    """A sealed one, as far as its choice looks into it."""
    place = folder / "step-00000007"
    place.mkdir(parents=True)
    (place / checkpoints.NUMBERS).write_text(json.dumps({"random": [{}] * processes, "deepspeed": told}))
    artifacts.seal(place, {})
    return place


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"step-00000007: expected a checkpoint of 1 processes, found one of 2; start as many, or delete"):
        checkpoints.agreed(checkpoint(tmp_path / "two", 2).parent, Together())
    place = checkpoint(tmp_path / "one", 1)
    assert checkpoints.agreed(place.parent, Together()) == place
    assert checkpoints.agreed(tmp_path / "none", Together()) is None


def test_a_checkpoint_made_under_another_configuration_of_deepspeed_is_refused(tmp_path):
    two, three = ({"zero_optimization": {"stage": stage}} for stage in (2, 3))
    place = checkpoint(tmp_path, 1, two)
    assert checkpoints.agreed(tmp_path, Together(), two) == place
    for told in (three, None):
        with pytest.raises(InputError, match=r"step-00000007: expected a checkpoint made under DeepSpeed's present .*; put that back, or"):
            checkpoints.agreed(tmp_path, Together(), told)
