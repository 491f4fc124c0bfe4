"""The commands about a project's runs on a cluster, as a user types them: compile, submit, plan, adopt, gate."""

import json
import shutil
from pathlib import Path

import pytest
import s3
import yaml
from kfp_api import KfpApi, node, serving

from conftest import ROOT, Project
from pipelines import lock, stages
from unimed import hashes
from unimed.errors import InputError
from unimed.store import Store

pytest_plugins = ["s3"]
pytestmark = pytest.mark.slow
IMAGES = {"ops": "localhost/unimed-ops:1", "train": "localhost/unimed-train:1"}


@pytest.fixture
def done(project: Project) -> Project:
    """The two-stage project with pipelines of its own and a dvc.lock as `dvc repro` leaves it."""
    shutil.copytree(ROOT / "pipelines", project.root / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    for stage in stages.read((project.root / "dvc.yaml").read_text()):
        for path in stage.outputs.values():
            (project.root / path).mkdir(parents=True)
            (project.root / path / "weights.bin").write_text(stage.name)
        made = {path: hashes.dvc_hash(project.root / path) for path in stage.outputs.values()}
        lock.write(project.root / "dvc.lock", {stage.name: lock.entry(stage, params, made, project.root, project.root)})
    return project


@pytest.fixture
def whole(tmp_path: Path) -> Project:
    """The real project with noted images and a little raw data, nothing made yet."""
    root = tmp_path / "whole"
    for name in ("src", "components", "pipelines"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in (".dvc/config", "dvc.yaml", "params.yaml", "exclusions.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "data/raw").mkdir(parents=True)
    (root / "data/raw/scan.txt").write_text("pixels")
    (root / "images.json").write_text(json.dumps(IMAGES))
    return Project(root)


def with_store(project: Project, service: s3.Service) -> Project:
    """The project with a store as its DVC remote."""
    config = f"[core]\n    no_scm = true\n    remote = r\n['remote \"r\"']\n    url = {service.url}\n"
    (project.root / ".dvc/config").write_text(config)
    return project


def said(project: Project, *command: str, **environ: str) -> str:
    """What a command prints on success."""
    finished = project.run(*command, **environ)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def fault(project: Project, *command: str, **environ: str) -> str:
    """The sentence of a command on input that a user can mend."""
    finished = project.run(*command, **environ)
    assert finished.returncode == 78, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stderr


def test_a_plan_says_of_each_stage_whether_it_would_run_and_why_without_any_data(done: Project):
    shutil.rmtree(done.root / "data")
    shutil.rmtree(done.root / "models")
    lines = said(done, "unimed", "plan").splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["first", "second"]
    assert all("up to date" in line for line in lines[:2])
    assert lines[-1] == "here 0 of 2 stages would run"
    done.set("first: {rate: 0.5", "first: {rate: 0.25")
    lines = said(done, "unimed", "plan").splitlines()
    assert lines[0].endswith("first.rate was 0.5, is 0.25")
    assert lines[1].endswith("models/first is made anew by first")
    assert lines[-1] == "here 2 of 2 stages would run"


def test_a_plan_names_edited_code_a_changed_command_and_other_raw_data(done: Project):
    with (done.root / "components/second.py").open("a") as file:
        file.write("\n# edited\n")
    assert said(done, "unimed", "plan").splitlines()[1].endswith("components/second.py has changed")
    (done.root / "data/raw.dvc").write_text(yaml.safe_dump({"outs": [{"md5": "0" * 32 + ".dir", "path": "raw"}]}))
    (done.root / "dvc.yaml").write_text((done.root / "dvc.yaml").read_text().replace("--task one", "--task other"))
    assert said(done, "unimed", "plan").splitlines()[0].endswith("its command has changed; data/raw has changed")


def test_a_plan_tells_gpu_hours_of_a_full_run_and_costs_where_there_is_a_price(whole: Project):
    assert "GPU hours" not in said(whole, "unimed", "plan")
    full = ("unimed", "plan", "--params", str(ROOT / "presets/full.yaml"))
    told = said(whole, *full)
    assert told.startswith("GPU hours ") and told.endswith("here 17 of 17 stages would run\n") and "cost" not in told
    assert "cost at 2.5 an hour" in said(whole, *full, "--gpu-hour", "2.5")


def test_a_plan_tells_gpu_hours_before_it_asks_for_data(whole: Project):
    shutil.rmtree(whole.root / "data")
    (whole.root / "dvc.lock").unlink(missing_ok=True)
    finished = whole.run("unimed", "plan", "--params", str(ROOT / "presets/full.yaml"))
    assert finished.stdout.startswith("GPU hours ") and finished.returncode == 78
    assert "data/raw: expected raw data" in finished.stderr


def test_a_plan_names_code_that_was_deleted(whole: Project):
    (whole.root / "exclusions.csv").unlink()
    expected = "unimed: exclusions.csv: expected a file or folder that stages depend on, found nothing; restore it, for instance from git\n"
    assert fault(whole, "unimed", "plan") == expected


@pytest.mark.parametrize("lost", ["exclusions.csv", "src/unimed/data"])
def test_code_that_is_not_there_is_named_where_a_key_is_asked_for(tmp_path: Path, lost: str):
    [ingest] = [stage for stage in stages.read((ROOT / "dvc.yaml").read_text()) if stage.name == "ingest"]
    for path in ("dvc.yaml", *ingest.code):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(ROOT / path)
    (tmp_path / "data/raw").mkdir(parents=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert len(stages.recipe_key("ingest", params, tmp_path)) == 16
    (tmp_path / lost).unlink()
    with pytest.raises(InputError, match=f"{lost}: expected a file or folder that stages depend on, found nothing; restore it"):
        stages.recipe_key("ingest", params, tmp_path)


def test_a_plan_asks_the_store_and_goes_on_when_it_does_not_answer(done: Project, service: s3.Service):
    with_store(done, service)
    lines = said(done, "unimed", "plan").splitlines()
    key = lines[0].split()[1]
    assert lines[-1] == "here 0 of 2 stages would run, on the cluster 2"
    entry = yaml.safe_load((done.root / "dvc.lock").read_text())["stages"]["first"]
    Store(service.url).put_record("first", key, {"stage": "first", "key": key, "run": "r", "lock": entry})
    assert said(done, "unimed", "plan").splitlines()[-1] == "here 0 of 2 stages would run, on the cluster 1"
    finished = done.run("unimed", "plan", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert finished.returncode == 0
    assert finished.stdout.splitlines()[-1] == "here 0 of 2 stages would run"
    assert "127.0.0.1:9" in finished.stderr


def test_compile_writes_one_file_and_says_what_the_project_lacks(whole: Project):
    out = said(whole, "unimed", "compile", "--raw", "s3://bucket/raw")
    assert "17 stages, gate and release are in build/uni-medvlm.yaml" in out
    assert "no DVC remote on S3" in out
    assert len(list(yaml.safe_load_all((whole.root / "build/uni-medvlm.yaml").read_text()))) == 2


def test_each_thing_that_compile_misses_is_one_sentence_with_the_remedy(whole: Project):
    assert "expected a DVC remote on S3 that holds them, or --raw" in fault(whole, "unimed", "compile")
    assert "other.yaml: expected a file of params, found No such file" in fault(whole, "unimed", "compile", "--params", "other.yaml")
    (whole.root / "images.json").unlink()
    assert "expected ops as NAME@sha256:DIGEST, found ''; `make images" in fault(whole, "unimed", "compile", "--raw", "s3://b/raw")
    shutil.rmtree(whole.root / "data")
    assert "data/raw: expected raw data, or data/raw.dvc" in fault(whole, "unimed", "compile")
    (whole.root / "dvc.yaml").unlink()
    assert "dvc.yaml: expected the project in the working folder" in fault(whole, "unimed", "plan")


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1)])
def test_submit_waits_for_the_true_outcome_and_exits_with_it(whole: Project, state: str, code: int):
    with serving() as api:
        api.course = [{"state": state, "tasks": [node("align", state, 1, 2)]}]
        finished = whole.run("unimed", "submit", "--host", api.url, "--raw", "s3://bucket/raw", "--wait")
        assert finished.returncode == code, finished.stderr
        assert f"run {state.lower()}" in finished.stdout
        [run] = api.runs
        assert run in finished.stdout


def test_a_cluster_that_does_not_answer_is_one_sentence(whole: Project):
    sentence = fault(whole, "unimed", "submit", "--host", "http://127.0.0.1:9", "--raw", "s3://bucket/raw")
    assert "http://127.0.0.1:9" in sentence


def test_a_run_is_adopted_from_its_id_or_its_file(whole: Project, service: s3.Service):
    with_store(whole, service)
    said(whole, "unimed", "compile")
    [key] = [line.split()[1] for line in said(whole, "unimed", "plan").splitlines() if line.startswith("foundation ")]
    entry = {"cmd": "python", "deps": [], "outs": [{"path": "models/foundation", "md5": "0" * 32 + ".dir", "size": 1, "nfiles": 1}]}
    Store(service.url).put_record("foundation", key, {"stage": "foundation", "key": key, "run": "r", "lock": entry})
    out = said(whole, "unimed", "adopt", "build/uni-medvlm.yaml")
    assert "dvc.lock now has 1 stages of the run; the store has nothing of align, " in out
    assert yaml.safe_load((whole.root / "dvc.lock").read_text())["stages"] == {"foundation": entry}
    (whole.root / "dvc.lock").unlink()
    with serving() as api:
        _submitted(whole, api)
        assert "1 stages" in said(whole, "unimed", "adopt", next(iter(api.runs)), "--host", api.url)
    assert yaml.safe_load((whole.root / "dvc.lock").read_text())["stages"] == {"foundation": entry}


def _submitted(project: Project, api: KfpApi) -> None:
    assert "run " in said(project, "unimed", "submit", "--host", api.url)


def test_what_cannot_be_adopted_is_one_sentence(whole: Project, tmp_path: Path):
    assert "or a run with --host, found neither" in fault(whole, "unimed", "adopt", "r0")
    other = tmp_path / "other.yaml"
    other.write_text("a: [list")
    assert "expected a compiled pipeline, found" in fault(whole, "unimed", "adopt", str(other))
    other.write_text("deploymentSpec: {executors: {}}")
    assert "expected the stages of this project, found none" in fault(whole, "unimed", "adopt", str(other))
    said(whole, "unimed", "compile", "--raw", "s3://bucket/raw")
    assert "expected one compiled with a store" in fault(whole, "unimed", "adopt", "build/uni-medvlm.yaml")


def test_the_gate_without_anything_to_judge_is_one_sentence(whole: Project):
    assert "--alignment data/valid/alignment: expected a file or folder, found nothing" in fault(whole, "unimed", "gate")
