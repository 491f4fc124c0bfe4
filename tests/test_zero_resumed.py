"""Two processes under ZeRO-2 and ZeRO-3 write checkpoints together, each its part, and go on to the bits of two left alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from striking import reached
from test_processes import TWO, ZERO

from conftest import ROOT
from unimed.errors import STOPPED
from unimed.model import artifacts
from unimed.train import checkpoints

STAGES = {"align": 3, "vqa_expert": 7, "grounding_expert": 11, "moe_router": 15}
"""How many steps each takes: a step's number tells the stage."""
WAYS = {
    2: {"stage": 2},
    # Some weights so small that each process holds them whole, and several groups that are stepped one after the other.
    3: {"stage": 3, "stage3_param_persistence_threshold": 40, "sub_group_size": 1000},
}
PROGRAM = f"""
import logging, os, sys, threading
from pathlib import Path

import striking, tiny, torch, zero_stages
from unimed import job
from unimed.config import Optimisation
from unimed.model import weights
from unimed.train import resuming

step, number = map(int, sys.argv[1:])
rank = int(os.environ["RANK"])
out, mine = Path.cwd(), Path.cwd() / str(rank)
resuming.EVERY_SECONDS = 0.0
logging.basicConfig(level="INFO")
stirred = tiny.stirred

def noisy(module, inputs, output):
    torch.rand(rank)  # so that no process draws what another does
    return output + 0.1 * torch.randn_like(output)

def drawing(**changes):
    model = stirred(**changes)
    model.model.projector.register_forward_hook(noisy)
    return model

tiny.stirred = drawing
if rank == 1 and number:
    threading.Thread(target=striking.strike, args=(out, step, 0.0, number), daemon=True).start()
try:
    with job.run(job.Job("tiny", "key")):
        for name, steps in {STAGES}.items():
            settings = Optimisation(batch_size=4, max_steps=steps, learning_rate=0.01, warmup_steps=0, deepspeed=out / "zero.json")
            losses, tensors = zero_stages.WAYS[name][0](mine / "data", settings)
            weights.write(mine / name, tensors, {{}}, losses=losses)
except SystemExit as end:
    (out / f"{{rank}}.code").write_text(str(end.code))
    raise
"""


REWARDED = """
import logging, os, sys, threading
from pathlib import Path

import problems, striking, tiny
from unimed import job
from unimed.model import weights
from unimed.rl import trainer
from unimed.train import resuming

step, number = map(int, sys.argv[1:])
rank = int(os.environ["RANK"])
out, mine = Path.cwd(), Path.cwd() / str(rank)
resuming.EVERY_SECONDS = 0.0
logging.basicConfig(level="INFO")
if rank == 1 and number:
    threading.Thread(target=striking.strike, args=(out, step, 0.0, number), daemon=True).start()
with job.run(job.Job("grpo", "key")):
    model = problems.babbling(tiny.stirred(**tiny.EXPERTS))
    trained = problems.with_reasoner(model)
    found = [problems.absent(mine), problems.pointing(mine)]
    settings = problems.settings(max_steps=6, temperature=1.0, deepspeed=out / "zero.json")
    history = trainer.reinforce(model, tiny.processor(), found, [], settings, 0)
    weights.write(mine / "reasoner", weights.named(model, trained), {}, history=history)
"""


def run(folder: Path, way: int, step: int = 0, number: int = 0, program: str = PROGRAM) -> subprocess.CompletedProcess:
    """Stages 1 to 4, or another program, in two processes, a checkpoint after each step; at that step's the second gets a signal."""
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(program)
    (folder / "zero.json").write_text(json.dumps(ZERO | {"zero_optimization": WAYS[way]}))
    known = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "src", ROOT))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *TWO, "program.py", str(step), str(number)]
    return subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False)


def tear(folder: Path) -> str:
    """Cut the second process's file of the newest checkpoint short; returns the name of the checkpoint before."""
    newest = max(folder.glob("runs/*/checkpoints/*/step-????????"))
    file = checkpoints.file_of(newest, 1)
    file.write_bytes(file.read_bytes()[:-1])
    return f"{newest.parent.name}/{sorted(newest.parent.glob('step-????????'))[-2].name}"


def gone_on_from(done: subprocess.CompletedProcess) -> list[str]:
    """The training and the checkpoint that each process says it goes on from, last."""
    return re.findall(r"tiny goes on from \S*/(\d+/step-\d{8})", done.stderr)[-2:]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication when it first starts, with g++")
@pytest.mark.parametrize(("way", "killed_at", "stopped_at"), [(2, 2, 8), (3, 4, 12)])
def test_two_processes_killed_then_told_to_stop_go_on_to_the_bits_of_two_left_alone(tmp_path, way, killed_at, stopped_at):
    one, other = tmp_path / "disturbed", tmp_path / "whole"
    killed = run(one, way, killed_at, 9)
    assert killed.returncode == 1 and "Signal 9 (SIGKILL)" in killed.stderr, killed.stderr[-4000:]
    assert killed_at <= reached(one) <= killed_at + 1
    before = tear(one)
    stopped = run(one, way, stopped_at, 15)
    assert gone_on_from(stopped) == [before] * 2, stopped.stderr[-4000:]
    assert "process-00001.safetensors: expected sha256" in stopped.stderr
    assert [(one / f"{rank}.code").read_text() for rank in (0, 1)] == [str(STOPPED)] * 2
    assert stopped_at <= reached(one) < stopped_at + 3, "in the midst of a stage"
    newest = max(one.glob("runs/*/checkpoints/*/step-????????"))
    for folder in (one, other):
        done = run(folder, way)
        assert done.returncode == 0, done.stderr[-4000:]
        assert gone_on_from(done) == ([f"{newest.parent.name}/{newest.name}"] * 2 if folder == one else [])
        assert reached(folder) == 0
    for stage in STAGES:
        for rank in ("0", "1"):
            left, right = (artifacts.verify(folder / rank / stage) for folder in (one, other))
            assert left["files"] == right["files"]
            # The first process's alone is told to anybody.
            assert rank == "1" or left["losses"] == right["losses"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication when it first starts, with g++")
def test_rewarded_answers_under_zero_2_killed_go_on_to_the_bits_of_those_left_alone(tmp_path):
    one, other = tmp_path / "disturbed", tmp_path / "whole"
    killed = run(one, 2, 3, 9, REWARDED)
    assert killed.returncode == 1 and "Signal 9 (SIGKILL)" in killed.stderr, killed.stderr[-4000:]
    assert 3 <= reached(one) < 6
    newest = max(one.glob("runs/*/checkpoints/*/step-????????"))
    for folder in (one, other):
        done = run(folder, 2, program=REWARDED)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stderr.count(f"grpo goes on from {newest.relative_to(one)}") == (2 if folder == one else 0)
    for rank in ("0", "1"):
        left, right = (artifacts.verify(folder / rank / "reasoner") for folder in (one, other))
        assert left["files"] == right["files"]
        # The first process's alone is told to anybody.
        assert rank == "1" or left["history"] == right["history"]
