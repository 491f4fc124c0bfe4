"""The benchmarks run in small shapes on a CPU, so that they cannot rot between two runs that are looked at."""

import contextlib

import pytest
import torch
import typer

from benchmarks import answers, gpu, reinforced, serving
from benchmarks.shapes import WORDS
from unimed.model.processor import UniMedProcessor
from unimed.rl import prompts
from unimed.train.batch import picture


@pytest.mark.slow
def test_every_stage_is_measured_beside_its_baseline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gpu.main("tiny", 64, 1, ["stage1", "stage2", "mix", "stage3", "stage4", "canvases", "rollout"], compile=False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    both = [f"{name}{bits}" for name in ("1, encoders", "2, words alone") for bits in ("", ", float8")]
    names = [*both, "2, mixed lengths", "2, encoders", "3, over stage 2"]
    tiled = ["1, canvases", "2, canvases"]
    written = [name for level in ("sequence", "token") for name in (f"5, rollout, routers by {level}", "5, its steps alone")]
    assert [row[0] for row in rows[2:]] == [*names, "4, 2 experts over one LoRA", "4, 4 experts over one LoRA", *tiled, *written]
    assert all(" x " in row[2] and "% of " in row[3] for row in rows[2:7] + rows[-4::2])


def test_the_limit_of_a_rollout_is_what_a_step_must_read():
    model, load = answers.policy("tiny", "token", torch.device("cpu")), answers.Load(2, 10, 3, 8)
    # Two layers of 64: q, k, v, o and three of 128; adapters of rank 48 beside each; two norms and a router of 2; then the head.
    layer = 4 * 64 * 64 + 3 * 64 * 128 + 48 * (4 * (64 + 64) + 3 * (64 + 128)) + 2 * 64 + 2 * 64 + 2
    seen = 2 * 10 + 2 * 3 * 4
    assert answers.limit(model, load, 1000.0) == pytest.approx(6 * 1000 / (4 * (2 * layer + 512 * 64 + 2 * 2 * 64 * seen)))
    assert answers.together(model, load, lambda: None).graphs == 0


@pytest.mark.slow
def test_a_step_with_rewards_is_measured_beside_that_of_trl(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gpu.main("tiny", 64, 1, ["step5"], compile=False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == [
        "stage", "---", "5, a step, 2 groups at once", "5, a step, 4 groups at once", "5, a step of TRL's", "5, times"
    ]  # fmt: skip
    for row in rows[4:7]:
        step, rollout, rewards, gradient, _ = map(float, row[1:])
        assert step == pytest.approx(rollout + rewards + gradient, rel=0.02)
        assert min(rollout, gradient) > 0


def test_the_problems_of_a_benchmark_have_as_many_tokens_as_asked():
    processor = UniMedProcessor.of(answers.policy("tiny", "token", torch.device("cpu")).config, WORDS)
    problems = reinforced.problems(processor, answers.Load(2, 256, 2, 4))
    asked = [prompts.reasoning_messages(sample, think=True) for sample in problems]
    read = processor(images=[*map(picture, problems)], text=processor.apply_chat_template(asked, add_generation_prompt=True))
    assert [len(ids) for ids in read["input_ids"]] == [256, 256]
    assert read["input_ids"][0] != read["input_ids"][1]


@pytest.mark.slow
def test_a_service_is_measured_beside_a_loop(capsys):
    with contextlib.suppress(typer.Exit):  # whether it meets its bounds is for a machine that does nothing else
        serving.main(words=2, seconds=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[3].strip() for row in rows[2:]] == ["at least 2", "below 2", "200 alone", "none but 429"]
    assert "answers/s served" in rows[2] and "'200'" in rows[4]
