"""A run that is killed goes on from its newest checkpoint and ends in the very bytes of one that was left alone."""

import json
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import raw_tree
import torch
from places import stages
from problems import OPTIMISATION, SETTINGS, settings
from striking import reached, strike

from components import align, grounding_expert, grpo, moe_router, vqa_expert
from unimed import job
from unimed.config import GroundingTraining, LoraTraining, MoeRouter, Optimisation
from unimed.errors import STOPPED
from unimed.model import artifacts
from unimed.rewarding import Grpo
from unimed.train import checkpoints, generators, resuming
from unimed.train.together import Together

NUMBERS = OPTIMISATION | {"batch_size": 2, "max_steps": 6}
LORA = NUMBERS | {"rank": 2, "scaling": 2.0, "turns": 2}
MASKS = {"mask_loss": SETTINGS["mask_loss"]}
ROUTING = {"level": "sequence", "choice": "soft", "turns": 1, "grounding_share": 0.5, "balance_weight": 0.01, "z_weight": 0.001}
Run = Callable[[Path], None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Each training stage as a function of the folder it writes."""
    root = tmp_path_factory.mktemp("stages")
    data = raw_tree.ingested(raw_tree.write(root / "raw"), root)
    chosen = {task: raw_tree.chosen(data, task) for task in ("alignment", "vqa", "grounding", "reasoning")}
    shards, place = data / "shards", stages(root / "models")
    before = (shards, place["foundation"], place["aligned"])
    experts = (place["vqa_expert"], place["grounding_expert"])
    align_numbers, lora = Optimisation(**NUMBERS), LoraTraining(**LORA)
    pointing, routing = GroundingTraining(**LORA, **MASKS, vqa_share=0.25, samples_at_once=1), MoeRouter(**NUMBERS, **MASKS, **ROUTING)
    rewarded = settings(max_completion_length=4, max_steps=6, updates_per_rollout=2)
    coarse = {"dtype": "bfloat16", "cold_start": NUMBERS | {"dtype": "bfloat16"}, "groups_at_once": 1}

    def reasoner(out: Path, numbers: Grpo) -> None:
        tables = (chosen["reasoning"], chosen["vqa"], chosen["grounding"])
        grpo.run(*tables, *before, *experts, place["router"], out, 0, numbers)

    return {
        "align": lambda out: align.run(chosen["alignment"], shards, place["foundation"], out, 0, align_numbers),
        "vqa_expert": lambda out: vqa_expert.run(chosen["vqa"], *before, out, 0, lora),
        "grounding_expert": lambda out: grounding_expert.run(chosen["vqa"], chosen["grounding"], *before, out, 0, pointing),
        "moe_router": lambda out: moe_router.run(chosen["vqa"], chosen["grounding"], *before, *experts, out, 0, routing),
        "grpo": lambda out: reasoner(out, rewarded),
        "grpo in bfloat16, by pieces": lambda out: reasoner(out, Grpo.model_validate(rewarded.model_dump() | coarse)),
    }


def start(stage: str, run: Run, folder: Path, every: float = 0.0, struck: tuple[int, float, int] | None = None) -> multiprocessing.Process:
    """The stage in a process of its own, with a checkpoint after every step; `struck` is a step, seconds after its checkpoint, a signal."""

    def work() -> None:
        torch.set_num_threads(1)
        os.chdir(folder)
        resuming.EVERY_SECONDS = every
        if struck:
            threading.Thread(target=strike, args=(folder, *struck), daemon=True).start()
        with job.run(job.Job(stage, "key")):
            run(folder / "out")

    folder.mkdir(exist_ok=True)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def finished(stage: str, run: Run, folder: Path, every: float = 0.0) -> dict[str, bytes]:
    """What the stage leaves when nothing disturbs it any more."""
    child = start(stage, run, folder, every)
    child.join()
    assert child.exitcode == 0
    assert not list((folder / "runs").rglob("step-*"))
    return bytes_of(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "vqa_expert", "grounding_expert", "moe_router", "grpo", "grpo in bfloat16, by pieces"])
def test_a_stage_killed_at_any_moment_ends_in_the_bytes_of_one_left_alone(runs, tmp_path, stage):
    """`align` and both trainings of `grpo` are killed twice, the second time after going on."""
    moments = random.Random(stage)
    steps = (moments.randint(1, 2), moments.randint(3, 4))
    for step in steps if stage in ("align", "grpo") else steps[1:]:
        child = start(stage, runs[stage], tmp_path / "killed", struck=(step, moments.uniform(0, 0.05), signal.SIGKILL))
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert reached(tmp_path / "killed") >= step
    assert finished(stage, runs[stage], tmp_path / "killed") == finished(stage, runs[stage], tmp_path / "whole")


@pytest.mark.slow
def test_a_stage_told_to_stop_ends_after_its_step_with_75_and_goes_on_from_there(runs, tmp_path):
    child = start("align", runs["align"], tmp_path / "stopped", struck=(1, 0.0, signal.SIGTERM))
    child.join()
    assert child.exitcode == STOPPED
    assert 0 < reached(tmp_path / "stopped") < NUMBERS["max_steps"]
    assert finished("align", runs["align"], tmp_path / "stopped", every=600.0) == finished("align", runs["align"], tmp_path / "whole")


def test_a_spoilt_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, caplog):
    for step in (1, 2):
        place = tmp_path / f"step-{step:08d}"
        place.mkdir()
        (place / "numbers.json").write_text(f"{step}")
        artifacts.seal(place, {})
    (tmp_path / "step-00000002/numbers.json").write_text("3")
    assert checkpoints.newest(tmp_path, Together()) == tmp_path / "step-00000001"
    assert "step-00000002/numbers.json: expected sha256" in caplog.text


def test_each_training_of_a_job_has_a_place_of_its_own_and_the_same_one_again_when_it_is_started_again():
    def places():
        with job.run(job.Job("two", "key")):
            return [job.next_checkpoints() for _ in range(2)]

    first, second = places()
    assert first != second and places() == [first, second]
    assert job.next_checkpoints() is None


@pytest.mark.parametrize(("place", "left"), [("0", ["1-1"]), ("1", ["1", "1-0", "1-3"])])
def test_a_job_that_ends_well_leaves_what_another_machine_will_remove_itself(tmp_path, monkeypatch, place, left):
    """And removes what machines have left that are no part of it any more."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "RANK": place, "GROUP_RANK": place}.items():
        monkeypatch.setenv(name, value)
    with job.run(job.Job("tiny", "key")):
        for name in ("1", "1-0", "1-1", "1-3"):
            (tmp_path / f"runs/tiny-key/checkpoints/{name}/step-00000001").mkdir(parents=True)
        assert job.next_checkpoints() == Path(f"runs/tiny-key/checkpoints/1-{place}")
    assert sorted(folder.name for folder in tmp_path.glob("runs/tiny-key/checkpoints/*")) == left


def test_generators_go_on_as_if_nothing_had_happened():
    random.seed(0)
    np.random.seed(0)
    # Normal numbers are made two at a time: the second is a part of the state.
    random.gauss(), np.random.normal()
    tensors, numbers = generators.state()
    numbers = json.loads(json.dumps(numbers))
    first = random.gauss(), random.random(), np.random.normal(), np.random.rand(), torch.rand(3).tolist()
    generators.restore(tensors, numbers)
    assert (random.gauss(), random.random(), np.random.normal(), np.random.rand(), torch.rand(3).tolist()) == first
