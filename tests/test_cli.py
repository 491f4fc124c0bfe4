"""The command line and the demo: what a first-time user touches."""

import json
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, Project
from unimed import NOTICE, demo
from unimed.errors import InputError

SMALL = ("--cases", "3", "--slices", "1")


def _bytes(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_loads_no_library_that_takes_seconds_and_says_research_only(project: Project):
    found = project.run("unimed", "--help", PYTHONPROFILEIMPORTTIME="1")
    assert NOTICE in found.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in found.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {
        "torch",
        "transformers",
        "numpy",
        "pandas",
        "pyarrow",
        "duckdb",
        "mlflow",
        "kfp",
        "boto3",
        "great_expectations",
        "dvc",
    }


def test_phantoms_of_one_seed_are_the_same_bytes_and_of_another_are_not(project: Project):
    for folder, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert project.run("unimed", "data", "phantoms", "--out", folder, "--seed", seed, *SMALL).returncode == 0
    a, b, c = (_bytes(project.root / folder) for folder in "abc")
    assert a == b
    assert a != c


def test_bad_input_is_one_sentence_and_exit_code_78(project: Project):
    done = project.run("unimed", "demo", "--raw", "nowhere")
    assert done.returncode == 78
    assert done.stderr.splitlines() == ["unimed: nowhere: expected the folder SAMed2Dv1 of a download in it, found none"]


def test_the_seed_is_edited_in_place_and_comments_stay(here: Path):
    file = here / "params.yaml"
    file.write_text("# numbers\nseed: 0  # of everything\n\nother: {seed: 0}\n")
    assert demo.set_seed(7)
    assert file.read_text() == "# numbers\nseed: 7  # of everything\n\nother: {seed: 0}\n"
    assert not demo.set_seed(7)


def test_the_shipped_params_have_a_seed_that_can_be_set(here: Path):
    file = here / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    demo.set_seed(41)
    assert yaml.safe_load(file.read_text())["seed"] == 41


def test_phantoms_are_made_once_and_anew_for_another_seed(here: Path):
    assert demo.place_phantoms(2, 1, seed=0)
    before = _bytes(demo.RAW)
    assert not demo.place_phantoms(2, 1, seed=0)
    assert demo.place_phantoms(2, 1, seed=1)
    assert _bytes(demo.RAW) != before


def test_a_download_is_linked_and_gives_way_to_phantoms(here: Path):
    demo.place_phantoms(2, 1, seed=0)
    (here / "elsewhere/SAMed2Dv1").mkdir(parents=True)
    demo.place_link(Path("elsewhere"))
    assert demo.RAW.resolve() == here / "elsewhere"
    assert demo.place_phantoms(2, 1, seed=0)
    assert (here / "elsewhere/SAMed2Dv1").is_dir()
    assert not demo.RAW.is_symlink()


def test_a_download_in_data_raw_is_never_removed(here: Path):
    (demo.RAW / "SAMed2Dv1").mkdir(parents=True)
    (here / "elsewhere/SAMed2Dv1").mkdir(parents=True)
    for place in (lambda: demo.place_phantoms(2, 1, seed=0), lambda: demo.place_link(Path("elsewhere"))):
        with pytest.raises(InputError, match="expected phantoms or a link, found other files"):
            place()
    demo.place_link(demo.RAW)
    assert (demo.RAW / "SAMed2Dv1").is_dir()


@pytest.mark.slow
def test_the_demo_goes_from_nothing_to_registered_models_and_says_where_they_are(project: Project):
    (project.root / "data/raw/scan.txt").unlink()
    (project.root / "data/raw").rmdir()
    done = project.run("unimed", "demo", "--seed", "8", *SMALL)
    assert done.returncode == 0, done.stderr
    assert json.loads((project.root / "data/raw/provenance.json").read_text())["seed"] == 8
    assert "seed: 8  # the seed" in (project.root / "params.yaml").read_text()
    tail = done.stdout.splitlines()[-5:]
    assert tail[0].endswith("reports/evaluation/report.html")
    assert tail[1:3] == ["model    toy-first version 1", "model    toy-second version 1"]
    assert tail[4] == NOTICE


@pytest.mark.slow
def test_the_demo_ends_with_the_exit_code_of_what_failed(project: Project):
    (project.root / "elsewhere/SAMed2Dv1").mkdir(parents=True)
    (project.root / "data/raw/scan.txt").unlink()
    (project.root / "data/raw").rmdir()
    done = project.run("unimed", "demo", "--raw", "elsewhere", MISHAP="input")
    assert done.returncode != 0
    assert "weights.bin: expected one thing, found another" in done.stderr
    assert "report " not in done.stdout


@pytest.mark.parametrize("module", ["trace", "verify", "cards", "promote", "listing", "gate"])
def test_what_is_asked_of_a_registry_needs_no_torch(project: Project, module):
    said = f"import sys, unimed.release.{module}; print(sorted({{'torch', 'transformers', 'mlflow'}} & sys.modules.keys()))"
    assert project.run("python", "-c", said).stdout.strip() == "[]"
