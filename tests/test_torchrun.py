"""A stage on several GPUs of one machine: torchrun starts a process for each, and what they make together is what one makes."""

import json
import shutil
from pathlib import Path

import candidate
import pytest
import yaml

from conftest import NOWHERE, ROOT, Project
from pipelines import stages
from unimed import hashes
from unimed.model import artifacts, weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="torch's collectives are compiled with g++")]
PARAMS = "seed: 0\nalign: {batch_size: 4, max_steps: 3, learning_rate: 0.001, warmup_steps: 0}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Validated data and a foundation."""
    root = tmp_path_factory.mktemp("made")
    candidate.make(root)
    return root


def align(made: Path, out: Path, processes: int, **environ: str):
    """Run stage 1 in a pod with that many processes."""
    artifact = {"name": "aligned", "type": {"schemaTitle": "system.Model"}, "uri": "run/align/aligned", "metadata": {}}
    told = {"outputs": {"artifacts": {"aligned": {"artifacts": [artifact]}}, "outputFile": str(out / "told.json")}}
    [stage] = [stage for stage in stages.read((ROOT / "dvc.yaml").read_text()) if stage.name == "align"]
    sources = dict.fromkeys(stage.inputs.values(), "made here")
    code = {path: hashes.code_hash(ROOT / path) for path in stage.code}
    key = stages.recipe(stage, yaml.safe_load(PARAMS), sources | code)
    order = {"stage": "align", "recipe": key, "sources": sources, "processes": processes}
    words = ["--order", json.dumps(order), "--params", PARAMS, "--executor-input", json.dumps(told), "--"]
    inputs = {"data": made / "valid/alignment", "shards": made / "shards", "foundation": made / "models/foundation"}
    places = inputs | {"aligned": out / "aligned"}
    ports = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    command = ["python", "-m", "pipelines.pod", *words, "python", "-m", "components.align", *ports]
    return Project(ROOT).run(*command, MLFLOW_TRACKING_URI=NOWHERE, OMP_NUM_THREADS="1", **environ)


def test_two_processes_train_together_on_the_batches_of_one_and_leave_one_model(made: Path, tmp_path: Path):
    for count in (1, 2):
        done = align(made, tmp_path / str(count), count)
        assert done.returncode == 0, done.stderr[-4000:]
    one, two = (artifacts.verify(tmp_path / count / "aligned") for count in ("1", "2"))
    assert one["parents"] == two["parents"]
    assert one["data"] == two["data"]
    # Each process averages over the words of its own half: where answers differ in length the mean of means is not quite the mean.
    losses = [[entry["loss"] for entry in manifest["history"]] for manifest in (one, two)]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert weights.read(tmp_path / "1/aligned").keys() == weights.read(tmp_path / "2/aligned").keys()


def test_input_at_fault_keeps_its_exit_code_through_torchrun(made: Path, tmp_path: Path):
    spoilt = shutil.copytree(made, tmp_path / "made")
    (spoilt / "models/foundation/manifest.json").write_text("{}")
    done = align(spoilt, tmp_path / "out", 2)
    assert done.returncode == 78, done.stderr[-4000:]
    assert "expected a manifest with files and parents" in done.stderr
    assert not (tmp_path / "out/aligned").exists()
