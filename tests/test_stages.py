"""dvc.yaml, the components and the recipe keys agree, and DVC itself runs what is out of date and nothing else."""

import copy
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT
from pipelines import stages
from pipelines.plan import CONTROL
from pipelines.stages import Stage
from unimed import hashes, step
from unimed.errors import InputError

TEXT = (ROOT / "dvc.yaml").read_text()
STAGES = stages.read(TEXT)
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())

STUB = """
import sys
from pathlib import Path

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
for flag in {outputs}:
    path = Path(flags["--" + flag.replace("_", "-")])
    path.mkdir(parents=True, exist_ok=True)
    (path / "made.txt").write_text(Path("params.yaml").read_text() + Path(__file__).read_text())
"""


def _recipes(params: dict[str, Any] | None = None, digest: Callable[[str], str] = str) -> dict[str, str]:
    return stages.recipes(STAGES, PARAMS if params is None else params, digest)


def _changed(recipes: dict[str, str]) -> set[str]:
    before = _recipes()
    return {name for name in before if before[name] != recipes[name]}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_component_takes_what_dvc_hands_it(stage: Stage):
    run = importlib.import_module(f"components.{stage.component}").run
    ports = step.paths(run)
    assert {name for name, port in ports.items() if port == step.Input} == stage.inputs.keys()
    assert {name for name, port in ports.items() if port == step.Output} == stage.outputs.keys()
    assert set(step.words(run)) == stage.words.keys()
    assert set(step.sections(run)) == {key.split(".")[0] for key in stage.params}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_depends_on_the_program_it_runs(stage: Stage):
    assert f"components/{stage.component}.py" in stage.code


def test_every_component_is_a_stage_or_follows_them():
    programs = {path.stem for path in (ROOT / "components").glob("*.py")} - {"__init__"}
    assert programs == {stage.component for stage in [*STAGES, *CONTROL]}


def test_stages_come_after_what_they_read():
    made: set[str] = set()
    outs = {path for stage in STAGES for path in stage.outputs.values()}
    for stage in STAGES:
        assert set(stage.inputs.values()) & outs <= made, stage.name
        made |= set(stage.outputs.values())


def test_training_reads_validated_data_only():
    for stage in STAGES:
        if stage.meta.image == "train":
            assert all(path.startswith(("data/valid/", "data/shards", "models/")) for path in stage.inputs.values()), stage.name


def test_another_grpo_number_changes_grpo_and_evaluate_only():
    params = copy.deepcopy(PARAMS)
    params["grpo"]["learning_rate"] *= 2
    assert _changed(_recipes(params)) == {"grpo", "evaluate"}


def test_another_checkpoint_under_the_same_path_changes_all_that_is_built_on_it():
    def pinned(digit: str) -> dict[str, Any]:
        return PARAMS | {"foundation": {"from": {"mask": {"path": "data/foundation/sam-med2d_b.pth", "md5": digit * 32}}}}

    before, after = _recipes(pinned("0")), _recipes(pinned("1"))
    built = {stage.name for stage in STAGES if stage.meta.image == "train"}
    assert {name for name in before if before[name] != after[name]} == built


def test_an_edit_in_rl_changes_grpo_and_evaluate_only():
    assert _changed(_recipes(digest=lambda path: "edited" if path == "src/unimed/rl" else path)) == {"grpo", "evaluate"}


def test_one_task_s_subset_changes_what_comes_after_it():
    params = copy.deepcopy(PARAMS)
    params["subsets"]["reasoning"] = {"other": "numbers"}
    assert _changed(_recipes(params)) == {"subset_reasoning", "validate_reasoning", "grpo", "evaluate"}


def test_other_raw_data_change_every_stage_but_the_foundation():
    assert _changed(_recipes(digest=lambda path: "other" if path == "data/raw" else path)) == {stage.name for stage in STAGES} - {
        "foundation"
    }


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[data/raw, components/ingest.py", "[components/ingest.py", "has --raw data/raw in its command, but not under deps or outs"),
        ("outs: [data/shards, data/tables]", "outs: [data/tables]", "has --shards data/shards in its command"),
        (
            "outs: [models/aligned]",
            "outs: [models/aligned, models/other]",
            "lists models/other under outs, but its command does not name it",
        ),
        ("[data/raw, components", "[data/raw, data/more, components", "lists data/more under deps"),
        ("--raw data/raw --shards", "--raw ${paths.raw} --shards", "templates are DVC's own"),
        ("--raw data/raw --shards", "--shards data/raw --shards", "must name each flag and path once"),
        ("--raw data/raw", "--raw", "must run `python -m components.NAME"),
        ("python -m components.ingest", "python ingest.py", "must run `python -m components.NAME"),
        ("meta: {image: ops, memory: 8Gi}", "meta: {image: ops}", "stage ingest: meta.memory: Field required"),
        ("meta: {image: ops, memory: 8Gi}", "meta: {image: gpu, memory: 8Gi}", "meta.image: Input should be 'ops' or 'train', found 'gpu'"),
        ("    params: [seed, ingest]\n", "", "must have the keys"),
        ("[data/raw, components/ingest.py", "[data/raw, models/reasoner, components/ingest.py", "lists models/reasoner under deps"),
        ("--raw data/raw --shards data/shards", "--raw data/tables --shards data/shards", "repeats ['data/tables']"),
    ],
)
def test_a_mistake_in_dvc_yaml_is_one_sentence(old: str, new: str, sentence: str):
    assert old in TEXT
    with pytest.raises(InputError) as caught:
        stages.read(TEXT.replace(old, new, 1))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_circle_is_named():
    text = TEXT.replace("--raw data/raw", "--raw models/aligned").replace("[data/raw,", "[models/aligned,")
    with pytest.raises(InputError, match="found the circle"):
        stages.read(text)


def test_a_param_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"expected a key subsets\.alignment, found none"):
        _recipes({**PARAMS, "subsets": {}})


def test_the_hash_of_a_source_folder_ignores_compiled_files(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1")
    before = hashes.code_hash(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.pyc").write_bytes(b"compiled")
    assert hashes.code_hash(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 2")
    assert hashes.code_hash(tmp_path) != before


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own dvc.yaml and params.yaml over stub components, run once."""
    root = tmp_path_factory.mktemp("stubs")
    for name in ("dvc.yaml", "params.yaml", "exclusions.csv", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
    shutil.copytree(ROOT / "src/unimed", root / "src/unimed", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data/raw").mkdir(parents=True)
    (root / "data/raw/scan.png").write_bytes(b"pixels")
    (root / "components").mkdir()
    for stage in STAGES:
        (root / f"components/{stage.component}.py").write_text(STUB.format(outputs=list(stage.outputs)))
    done = _dvc(root, "repro")
    assert done.returncode == 0, done.stderr
    return root


def _dvc(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    bin_ = Path(sys.executable).parent
    environ = os.environ | {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([bin_ / "dvc", *words], cwd=root, env=environ, capture_output=True, text=True, check=False)


def _due(root: Path) -> set[str]:
    """The stages that DVC itself would look into again, by name."""
    lines = _dvc(root, "status").stdout.splitlines()
    return {line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith("\t")}


@pytest.mark.slow
def test_dvc_runs_without_git_and_a_second_run_does_nothing(stubs: Path):
    assert "Data and pipelines are up to date." in _dvc(stubs, "repro").stdout


@pytest.mark.slow
def test_dvc_runs_in_a_clone_too(stubs: Path, tmp_path: Path):
    clone = tmp_path / "clone"
    shutil.copytree(stubs, clone)
    subprocess.run(["git", "init", "--quiet", clone], check=True)
    assert "Data and pipelines are up to date." in _dvc(clone, "repro").stdout


@pytest.mark.slow
def test_dvc_finds_only_grpo_due_after_another_grpo_number(stubs: Path, tmp_path: Path):
    changed = tmp_path / "changed"
    shutil.copytree(stubs, changed)
    params = copy.deepcopy(PARAMS)
    params["grpo"]["learning_rate"] *= 2
    (changed / "params.yaml").write_text(yaml.safe_dump(params))
    assert _due(changed) == {"grpo"}
    done = _dvc(changed, "repro")
    assert [line for line in done.stdout.splitlines() if line.startswith("Running")] == [
        "Running stage 'grpo':",
        "Running stage 'evaluate':",
    ]


@pytest.mark.slow
def test_dvc_finds_only_grpo_due_after_an_edit_in_rl(stubs: Path, tmp_path: Path):
    changed = tmp_path / "changed"
    shutil.copytree(stubs, changed)
    (changed / "src/unimed/rl/__init__.py").write_text('"""Edited."""\n')
    assert _due(changed) == {"grpo"}


@pytest.mark.slow
def test_our_hash_of_data_is_the_one_dvc_records(stubs: Path):
    recorded = hashes.recorded(("deps", "outs"), stubs)
    for path in ("data/raw", "data/shards", "models/reasoner"):
        assert hashes.dvc_hash(stubs / path) == recorded[path]
        assert len(recorded[path]) == len("0123456789abcdef0123456789abcdef.dir")


@pytest.mark.slow
def test_the_recipe_key_is_the_same_before_and_after_dvc_has_recorded_anything(stubs: Path, tmp_path: Path):
    fresh = tmp_path / "fresh"
    shutil.copytree(stubs, fresh)
    (fresh / "dvc.lock").unlink()
    for name in ("ingest", "align", "evaluate"):
        assert stages.recipe_key(name, PARAMS, fresh) == stages.recipe_key(name, PARAMS, stubs)
