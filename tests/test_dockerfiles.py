"""What can be said of the images without building them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

from conftest import ROOT
from unimed import environment

NAMES = ("ops", "train")
TEXTS = {name: (ROOT / f"docker/{name}.Dockerfile").read_text() for name in NAMES}
KEPT_OUT = {"data", "models", "reports", "runs", "mlartifacts", ".git", ".venv", ".dvc", "tests", "params.yaml", "mlflow.db"}
both = pytest.mark.parametrize("name", NAMES)


def instructions(name: str) -> list[list[str]]:
    """The instructions of a Dockerfile as words, continued lines joined, comments left out."""
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", TEXTS[name]))
    return [line.split() for line in joined.splitlines() if line.strip()]


def stages(name: str) -> list[list[list[str]]]:
    """The instructions from each FROM to the next; what stands before the first is left out."""
    found: list[list[list[str]]] = []
    for words in instructions(name):
        if words[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(words)
    return found


def environ(name: str) -> dict[str, str]:
    """The variables that the last stage sets."""
    pairs = [pair for words in stages(name)[-1] if words[0] == "ENV" for pair in words[1:]]
    return dict(pair.split("=", 1) for pair in pairs)


@both
def test_the_base_is_named_by_digest_once_and_every_stage_stands_on_it(name):
    [base] = [words[1] for words in instructions(name) if words[0] == "ARG" and words[1].startswith("BASE=")]
    assert re.fullmatch(r"BASE=docker\.io/library/python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", base)
    known = {"${BASE}"}
    for stage in stages(name):
        assert stage[0][1] in known
        known |= set(stage[0][3:])


@both
def test_an_image_ends_as_a_numeric_user_without_entrypoint(name):
    last = {words[0]: words[1:] for words in stages(name)[-1]}
    assert last["USER"] == ["65532:65532"]
    assert last["ENTRYPOINT"] == ["[]"]
    assert last["CMD"] == ['["unimed",', '"--help"]']


@both
def test_nothing_but_copies_makes_the_last_stage(name):
    assert not {words[0] for words in stages(name)[-1]} & {"RUN", "ADD"}
    assert all(words[1].startswith("--from=") for words in stages(name)[-1] if words[0] == "COPY")


def test_both_images_hold_the_code_in_the_same_way():
    ops, train = (TEXTS[name].split("FROM dependencies AS code\n")[1].split("FROM ")[0] for name in NAMES)
    assert ops == train
    assert environ("ops") == environ("train")


@both
def test_an_image_sets_what_keeps_libraries_from_calling_home_to_the_programs_own_values(name):
    found = environ(name)
    assert {"DO_NOT_TRACK", "GX_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "MLFLOW_DISABLE_TELEMETRY"} < found.keys()
    assert not {key for key, value in environment.DEFAULTS.items() if found.get(key, value) != value}


def test_the_build_sees_what_it_copies_and_none_of_the_data_history_or_environment():
    seen = {Path(file) for file in exclude_paths(str(ROOT), (ROOT / ".dockerignore").read_text().splitlines()) if (ROOT / file).is_file()}
    assert not {file for file in seen if file.parts[0] in KEPT_OUT or "__pycache__" in file.parts or file.suffix == ".pyc"}
    copied = [word for name in NAMES for stage in stages(name) for words in stage if words[0] == "COPY" for word in words[1:-1]]
    sources = {Path(word) for word in copied if not word.startswith(("--", "/"))}
    assert sources
    assert not {source for source in sources if source not in seen and not any(source in file.parents for file in seen)}


@pytest.mark.parametrize(("engine", "folder", "sentence"), [("", ROOT, "found neither"), ("podman", ROOT / "tests", "working folder")])
def test_building_without_an_engine_or_elsewhere_is_a_sentence(engine, folder, sentence, tmp_path):
    script, shell = ROOT / "docker/images.sh", shutil.which("sh")
    assert shell
    environ = {"PATH": str(tmp_path), "ENGINE": engine}
    done = subprocess.run([shell, script], cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
