"""A stage in a pod: same command, same bytes, and no run that claims to be what it is not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import s3
import yaml

from conftest import NOWHERE, ROOT, Project, wait_until
from pipelines import stages
from unimed import hashes
from unimed.store import Store

pytest_plugins = ["s3"]
pytestmark = pytest.mark.slow


@dataclass
class Cell:
    """A pod of the two-stage project: where its artifacts lie, and what it is told."""

    project: Project
    root: Path
    order: dict[str, Any]
    params: str

    @property
    def told(self) -> Path:
        """Where KFP reads what the pod says of its outputs."""
        return self.root / "executor_output.json"

    def command(self, *options: str) -> list[str]:
        """The pod's program and the stage's command, as the launcher starts them."""
        artifact = {"name": "made", "type": {"schemaTitle": "system.Model"}, "uri": "s3://bucket/run-1/first/made", "metadata": {}}
        executor_input = {"outputs": {"artifacts": {"made": {"artifacts": [artifact]}}, "outputFile": str(self.told)}}
        words = ["--order", json.dumps(self.order), "--params", self.params]
        told = ["--executor-input", json.dumps(executor_input), *options]
        ports = ["--task", "one", "--raw", str(self.root / "raw"), "--made", str(self.root / "made")]
        return ["python", "-m", "pipelines.pod", *words, *told, "--", "python", "-m", "components.first", *ports]

    def run(self, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the pod to its end."""
        return self.project.run(*self.command(*options), **{"MLFLOW_TRACKING_URI": NOWHERE, **environ})


@pytest.fixture
def cell(project: Project, tmp_path: Path) -> Cell:
    """A pod whose order is right in every point."""
    shutil.copytree(ROOT / "pipelines", project.root / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    root = tmp_path / "artifacts"
    shutil.copytree(project.root / "data/raw", root / "raw")
    params = (project.root / "params.yaml").read_text()
    sources = {"data/raw": hashes.dvc_hash(root / "raw")}
    return Cell(project, root, {"stage": "first", "recipe": recipe(project, params, sources), "sources": sources}, params)


def recipe(project: Project, params: str, sources: dict[str, str]) -> str:
    """The recipe key of the first stage on the code as it stands."""
    [first] = [stage for stage in stages.read((project.root / "dvc.yaml").read_text()) if stage.name == "first"]
    code = {path: hashes.code_hash(project.root / path) for path in first.code}
    return stages.recipe(first, yaml.safe_load(params), sources | code)


def test_a_pod_makes_what_the_stage_makes_and_tells_kfp_its_hash(cell: Cell):
    done = cell.run()
    assert done.returncode == 0, done.stderr
    assert cell.project.first().returncode == 0
    made = cell.root / "made"
    assert hashes.dvc_hash(made) == hashes.dvc_hash(cell.project.root / "models/first")
    [artifact] = json.loads(cell.told.read_text())["artifacts"]["made"]["artifacts"]
    assert artifact["metadata"]["md5"] == hashes.dvc_hash(made)
    assert json.loads(artifact["metadata"]["parents"]) == cell.order["sources"]
    assert artifact["uri"] == "s3://bucket/run-1/first/made"


@pytest.mark.parametrize("mistake", ["params", "code"])
def test_a_pod_whose_code_or_params_are_others_than_compiled_refuses_to_run(cell: Cell, mistake: str):
    if mistake == "params":
        cell.params = cell.params.replace("rate: 0.5", "rate: 0.25")
    else:
        with (cell.project.root / "components/first.py").open("a") as file:
            file.write("\n# edited\n")
    done = cell.run()
    assert done.returncode == 78
    assert f"expected code and params of recipe {cell.order['recipe']}" in done.stderr
    assert not (cell.root / "made").exists()
    assert not cell.told.exists()


def test_a_pod_that_gets_other_raw_data_than_compiled_refuses_to_run(cell: Cell):
    (cell.root / "raw/scan.txt").write_text("other pixels")
    done = cell.run()
    assert done.returncode == 78
    assert f"expected the data {cell.order['sources']['data/raw']} that this pipeline was compiled for" in done.stderr


@pytest.mark.parametrize(("mishap", "code"), [("defect", 1), ("input", 78), ("kill", 137)])
def test_a_stage_that_fails_fails_its_pod_with_its_own_code_and_leaves_no_output(cell: Cell, mishap: str, code: int):
    done = cell.run(MISHAP=mishap)
    assert done.returncode == code
    assert f"stage first failed with exit code {code}" in done.stderr
    assert not (cell.root / "made").exists()
    assert not cell.told.exists()


def test_a_pod_that_is_told_to_end_ends_its_stage_too(cell: Cell):
    component = cell.project.root / "components/first.py"
    waits = "    made.mkdir()\n    import time\n    Path(os.environ['PID']).write_text(str(os.getpid()))\n    time.sleep(60)"
    component.write_text(component.read_text().replace("    made.mkdir()", waits))
    cell.order["recipe"] = recipe(cell.project, cell.params, cell.order["sources"])
    note = cell.root / "pid"
    known = {"PYTHONPATH": f"{cell.project.root}{os.pathsep}{ROOT / 'src'}", "MLFLOW_TRACKING_URI": NOWHERE}
    environ = os.environ | known | {"PID": str(note)}
    pod = subprocess.Popen([sys.executable, *cell.command()[1:]], cwd=cell.project.root, env=environ, stderr=subprocess.PIPE)
    wait_until(lambda: note.exists() and note.read_text() != "")
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_an_unknown_stage_is_one_sentence(cell: Cell):
    cell.order["stage"] = "fly"
    done = cell.run()
    assert done.returncode == 78
    assert "stage fly: expected one of first, second, gate, release, found none of that name" in done.stderr


def test_an_artifact_that_is_neither_folder_nor_listing_is_one_sentence(cell: Cell):
    shutil.rmtree(cell.root / "raw")
    (cell.root / "raw").write_text("pixels")
    done = cell.run()
    assert done.returncode == 78
    assert "expected a folder or the DVC listing of one, found another file" in done.stderr


def test_a_reference_without_a_store_is_one_sentence(cell: Cell):
    entries = hashes.listing(cell.root / "raw")
    shutil.rmtree(cell.root / "raw")
    (cell.root / "raw").write_bytes(hashes.listing_text(entries))
    done = cell.run()
    assert done.returncode == 78
    assert "and no store to fetch it from" in done.stderr


def test_large_artifacts_travel_by_reference_and_the_store_gets_bytes_and_record(cell: Cell, service: s3.Service):
    cell.order |= {"store": service.url, "most_bytes": 1}
    entries = hashes.listing(cell.root / "raw")
    store = Store(service.url)
    store.push(cell.root / "raw")
    shutil.rmtree(cell.root / "raw")
    (cell.root / "raw").write_bytes(hashes.listing_text(entries))
    done = cell.run()
    assert done.returncode == 0, done.stderr
    assert cell.project.first().returncode == 0
    digest = hashes.dvc_hash(cell.project.root / "models/first")
    assert (cell.root / "made").is_file()
    assert hashes.listing_hash(json.loads((cell.root / "made").read_text())) == digest
    record = store.record("first", cell.order["recipe"])
    assert record is not None
    assert [out["md5"] for out in record["lock"]["outs"]] == [digest]
    assert record["run"] == "run-1"


def test_a_store_that_fails_leaves_no_artifact(cell: Cell, service: s3.Service):
    cell.order |= {"store": service.url}
    service.faults.append(s3.Fault("PUT", "", "answer", times=10**6, status=403, code="AccessDenied"))
    done = cell.run()
    assert done.returncode == 78
    assert "Traceback" not in done.stderr
    assert not (cell.root / "made").exists()


def test_a_pod_without_a_tracking_server_says_so_and_goes_on(cell: Cell):
    done = cell.run(MLFLOW_TRACKING_URI="")
    assert done.returncode == 0, done.stderr
    assert "would be a file of this pod and go with it" in done.stderr
