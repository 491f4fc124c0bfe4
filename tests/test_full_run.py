"""The full preset from random checkpoints to an answer and a mask: on a CPU in tiny shapes, through every stage's own process."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from benchmarks import full_run, originals, taken
from benchmarks.stage import DECLARED, Marks
from conftest import ROOT
from unimed.errors import BAD_INPUT
from unimed.model import artifacts

pytestmark = pytest.mark.timeout(1500)  # a dozen processes, of which each imports what its stage imports
ABSENT = ("boto3", "dvc", "great_expectations", "kfp", "mlflow", "typer")
"""What a machine with a GPU need not have for it."""

PRESET = yaml.safe_load((ROOT / "presets/full.yaml").read_text())
PINS = dict.fromkeys(PRESET["foundation"]["from"], "0" * 32)
MADE = ("foundation", "aligned", "vqa_expert", "grounding_expert", "router", "reasoner")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a run by a Python in which nothing of `ABSENT` can be imported, and what it printed."""
    folder, without = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("without")
    (without / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n")
    return folder, called(folder, without)


def called(folder, *libraries):
    """What the benchmark prints of a run in this folder."""
    command = [sys.executable, "-m", "benchmarks.full_run", "--folder", folder, "--steps", "2", "--cases", "6"]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, libraries))}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rows(text, head):
    """The cells of the table that begins with these words, by the first of each row."""
    lines = text[text.index(f"| {head[0]} | {head[1]} |") :].split("\n\n")[0].splitlines()
    return {row[0]: row[1:] for line in lines[2:] if (row := [cell.strip() for cell in line.split("|")[1:-1]])}


@pytest.mark.slow
def test_every_stage_is_in_the_table_with_what_it_took(ran):
    found = rows(ran[1], taken.HEAD)
    assert list(found) == ["foundation", "align", "vqa_expert", "grounding_expert", "moe_router", "grpo: cold start", "grpo: answers"]
    for name, row in list(found.items())[1:]:
        assert all(float(cell) > 0 for cell in row[1:3] if cell), name
    assert all(row[5].endswith("%") and float(row[5][:-1]) > 0 for name, row in found.items() if name in taken.MIXES)
    assert found["align"][0] == "2 (80)" and found["grpo: cold start"][0] == "2 (20)" and found["grpo: answers"][0] == "2 (128)"
    sizes = [int(row[6].replace(",", "")) for row in found.values() if row[6]]
    assert sizes == [sum(file.stat().st_size for file in (ran[0] / "models" / name).rglob("*") if file.is_file()) for name in MADE]


@pytest.mark.slow
def test_the_time_of_a_stage_is_told_in_parts(ran):
    found = rows(ran[1], taken.PARTS)
    assert list(found) == [*full_run.DATA, *full_run.MODELS]
    for name, row in found.items():
        *parts, whole = map(float, row)
        assert 0 < sum(parts) <= whole + 0.3, name  # the rest is the end of the process
        assert (parts[1] > 0 and parts[2] > 0) == (name in taken.TRAINED)


@pytest.mark.slow
def test_an_answer_and_a_mask_of_the_image_s_size_came_out(ran):
    assert re.search(r"^Answer in [0-9.]+ s: '.+'$", ran[1], re.MULTILINE)
    [(count, size, shown)] = re.findall(r"^Masks in [0-9.]+ s: (\d+) of \[(.+)\] for an image of (.+)$", ran[1], re.MULTILINE)
    assert int(count) >= 1 and size == shown


@pytest.mark.slow
def test_all_that_was_made_verifies_and_trained_as_the_preset_says(ran):
    steps = {}
    for name in MADE:
        manifest = artifacts.verify(ran[0] / "models" / name)
        steps[name] = len(manifest.get("history", []))
    assert steps == {"foundation": 0, "aligned": 2, "vqa_expert": 2, "grounding_expert": 2, "router": 2, "reasoner": 4}
    assert len(list((ran[0] / "data/foundation/llama").glob("model-*.safetensors"))) > 1
    assert not list(ran[0].rglob("*.partial"))


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_after_the_stages_that_had_ended(ran):
    folder, before = ran
    (folder / "grpo.json").unlink()
    again = called(folder)
    timed = re.compile(r"^([a-z_]+): [0-9.]+ s$", re.MULTILINE)
    assert timed.findall(before) == ["phantoms", "checkpoints", *full_run.DATA, *full_run.MODELS]
    assert timed.findall(again) == ["grpo"]
    first, second = (rows(text, taken.PARTS) for text in (before, again))
    assert first.keys() == second.keys() and {name for name in first if first[name] != second[name]} <= {"grpo"}


def test_a_run_does_not_go_on_with_another_number_of_steps(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(full_run.cut(PRESET, 3, PINS)))
    with pytest.raises(SystemExit, match="expected --steps 3, with which this run began, found 2"):
        full_run.main(tmp_path, steps=2, cases=6)


@pytest.mark.slow
def test_a_stage_that_fails_ends_the_run_with_its_own_exit_code(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PRESET))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        full_run.run("subset_vqa", tmp_path)
    assert caught.value.returncode == BAD_INPUT


@pytest.mark.parametrize("gpu", [True, False])
def test_the_preset_is_cut_in_steps_and_batches_and_on_a_cpu_in_shapes_alone(monkeypatch, gpu):
    monkeypatch.setattr(full_run, "GPU", gpu)
    numbers = full_run.cut(PRESET, 3, PINS)
    differ = {
        f"{name}.{key}": value
        for name, section in numbers.items()
        if isinstance(section, dict)
        for key, value in section.items()
        if PRESET[name].get(key) != value
    }
    few = {f"{name}.{key}" for name in taken.TRAINED for key in ("batch_size", "max_steps", "warmup_steps")}
    tiny = (
        {f"{name}.{key}" for name in taken.MIXES for key in ("row_tokens", "compile")}
        | {f"vlm.{key}" for key in ("mask", "fusion_blocks", "fusion_hidden_size")}
        | {"grpo.max_completion_length", "grpo.group_size"}
    )
    assert differ.keys() == few | {"grpo.cold_start", "foundation.from"} | (set() if gpu else tiny)
    assert numbers["grpo"]["cold_start"].items() >= {"batch_size": 2, "samples_at_once": 1, "max_steps": 3, "warmup_steps": 1}.items()
    assert numbers["vlm"]["canvases"] == PRESET["vlm"]["canvases"]


def test_the_first_step_of_a_training_does_not_count_nor_does_another_training():
    logged = [{"step": 1, "time": 0.0, "a/loss": 1.0}, {"step": 1, "time": 100.0, "b/loss": 1.0}]
    logged += [{"step": step, "time": 100.0 + at, "b/loss": 1.0} for step, at in ((2, 2.0), (3, 5.0), (5, 25.0))]
    assert taken.step_seconds(logged, "b") == 3.0  # of 2, 3 and twice 10


def test_the_parts_of_a_stage_follow_each_other(tmp_path):
    place = tmp_path / "runs/align-0123"
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text('{"step": 1, "time": 16.0}\n{"step": 2, "time": 17.5}\n')
    one = taken.Ran(DECLARED["align"], 10.0, 20.0, Marks(called=11.0, first_pass=15.0, placed=19.0))
    assert list(taken.parts(tmp_path, {"align": one}))[2] == "| align | 1.0 | 4.0 | 2.5 | 1.5 | 10.0 |"


def test_a_tokenizer_of_full_size_has_words_that_no_text_holds():
    words = originals.tokenizer(words=128256)
    ids = words("the liver, unused_5000<|eot_id|>")["input_ids"]
    assert len(words) == 128256 and words.decode([128255]) == "unused_128255"
    assert words.decode(ids) == "the liver, unused_5000<|eot_id|>"
    assert max(ids) < 1000 and ids[-1] == words.eos_token_id
