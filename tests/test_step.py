"""The border of a component: flags, params, outputs, errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Project
from unimed import job, outputs, step
from unimed.errors import BAD_INPUT, STOPPED
from unimed.settings import Tracking
from unimed.step import Input, Output


def component(data: Input, vqa_expert: Input, report: Output, task: str, seed: int, tracking: Tracking) -> None:
    """A component for the tests below."""


def test_a_signature_says_ports_words_and_params():
    assert step.paths(component) == {"data": Input, "vqa_expert": Input, "report": Output}
    assert step.words(component) == ["task"]
    assert step.sections(component) == {"seed": int, "tracking": Tracking}


def test_a_component_runs_and_its_output_is_in_place(project: Project):
    done = project.first()
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (project.root / "models").iterdir()) == ["first"]
    assert (project.root / "models/first/weights.bin").read_text().startswith("one ")


def test_a_process_beside_the_first_does_not_look_at_what_that_one_is_moving(project: Project):
    """A file that was there a moment ago is a link to nowhere here."""
    (project.root / "models/first.partial").mkdir(parents=True)
    (project.root / "models/first.partial/report.json").symlink_to("moved")
    done = project.first(RANK="1")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (project.root / "models").iterdir()] == ["first.partial"]


def test_the_same_seed_draws_the_same_numbers(project: Project):
    def drawn() -> str:
        assert project.first().returncode == 0
        return (project.root / "models/first/weights.bin").read_text()

    once, again = drawn(), drawn()
    project.set("seed: 3", "seed: 4")
    assert once == again != drawn()


@pytest.mark.parametrize("mishap", ["defect", "kill"])
def test_an_interrupted_stage_leaves_nothing_under_its_output_path(project: Project, mishap: str):
    assert project.first(MISHAP=mishap).returncode != 0
    assert not (project.root / "models/first").exists()
    assert project.first().returncode == 0
    assert sorted(path.name for path in (project.root / "models").iterdir()) == ["first"]


def test_an_interrupted_stage_leaves_its_old_output_as_it_was(project: Project):
    project.first()
    before = (project.root / "models/first/weights.bin").read_text()
    project.set("rate: 0.5", "rate: 0.25")
    project.first(MISHAP="defect")
    assert (project.root / "models/first/weights.bin").read_text() == before


def test_a_finished_output_takes_the_place_of_the_old_one_whole(project: Project):
    project.first()
    (project.root / "models/first/stray.txt").write_text("of an older run")
    project.first()
    assert sorted(path.name for path in (project.root / "models/first").iterdir()) == ["report.html", "weights.bin"]


def test_faulty_input_ends_with_one_sentence_and_code_78(project: Project):
    done = project.first(MISHAP="input")
    assert done.returncode == BAD_INPUT
    assert done.stderr.splitlines()[-1].endswith("weights.bin: expected one thing, found another")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("ends", "whole"),
    [
        ((STOPPED, STOPPED), STOPPED),
        ((STOPPED, None), None),
        ((STOPPED, 143), None),
        ((143, BAD_INPUT), BAD_INPUT),
        ((STOPPED, BAD_INPUT), BAD_INPUT),
        ((), None),
    ],
    ids=str,
)
def test_processes_are_told_to_stop_together_when_all_say_so_and_at_fault_when_one_does(tmp_path: Path, monkeypatch, ends, whole):
    monkeypatch.setenv(job.ENDS, str(tmp_path))
    for rank, code in enumerate(ends):
        monkeypatch.setenv("RANK", str(rank))
        # A process that is killed ends without a word: any error that nobody expects leaves as much.
        end = SystemExit(code) if code else KeyError("a defect")
        with pytest.raises(type(end)), job.noting_end():
            raise end
    assert job.noted_end(tmp_path) == whole


def test_a_defect_shows_its_traceback(project: Project):
    done = project.first(MISHAP="defect")
    assert done.returncode == 1
    assert "KeyError: 'a defect'" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("rate: 0.5", "rate: -1", "params.yaml: first.rate must be > 0, is -1"),
        ("rate: 0.5", "rte: 0.5", "params.yaml: first.rate is missing; params.yaml: first.rte is not a known key"),
        ("steps: 3", "steps: many", "params.yaml: first.steps must be a valid integer, unable to parse string as an integer, is 'many'"),
        ("first:", "frist:", "params.yaml: first is missing"),
        ("seed: 3", "sed: 1\nseed: 3", "params.yaml: sed is not a known key; known are cluster, first, gate, second, seed, tracking"),
        ("{rate", "{[rate", "params.yaml, line 3: expected YAML, found a mistake: "),
    ],
)
def test_wrong_params_are_one_sentence_before_any_work(project: Project, old: str, new: str, sentence: str):
    project.set(old, new)
    done = project.first()
    assert done.returncode == BAD_INPUT
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (project.root / "models").exists()


def test_a_missing_input_is_named(project: Project):
    (project.root / "data/raw").rename(project.root / "data/other")
    done = project.first()
    assert done.returncode == BAD_INPUT
    assert "--raw data/raw: expected a file or folder, found nothing" in done.stderr


def test_params_can_come_on_the_command_line(project: Project):
    (project.root / "params.yaml").unlink()
    assert project.first("--params", "{seed: 1, first: {rate: 8, steps: 1}}").returncode == 0
    assert (project.root / "models/first/weights.bin").read_text().endswith(" 8.0")


def test_only_the_first_of_several_processes_moves_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    target = tmp_path / "made"
    with outputs.complete({"made": target}) as partial:
        partial["made"].write_text("written by another rank")
    assert not partial["made"].exists()
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_was_not_written_is_a_defect(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="made"), outputs.complete({"made": tmp_path / "made"}):
        pass


def test_step_starts_without_heavy_imports():
    code = "import sys, unimed.step; print({'torch', 'mlflow', 'pandas', 'numpy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_deepspeed_says_nothing_of_a_missing_accelerator_and_still_says_other_things():
    code = """if True:
        from unimed import environment
        environment.settle()
        environment.start_logging()
        from deepspeed.accelerator import get_accelerator
        from deepspeed.utils import logger
        logger.warning(f"other things about {get_accelerator().device_name()}")
    """
    known = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=known)
    assert done.stdout.endswith("] other things about cpu\n")
    assert "Setting accelerator" not in done.stdout + done.stderr
