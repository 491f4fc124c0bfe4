"""A stage on several GPUs of one machine: torchrun starts a process for each, and what they make together is what one makes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import candidate
import psutil
import pytest
import s3
import yaml

from conftest import NOWHERE, ROOT
from pipelines import stages
from unimed import hashes
from unimed.errors import BAD_INPUT, STOPPED
from unimed.model import artifacts, weights

pytest_plugins = ["s3"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="torch's collectives are compiled with g++")]
PARAMS = "seed: 0\nalign: {batch_size: 4, max_steps: 3, learning_rate: 0.001, warmup_steps: 0}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Validated data and a foundation."""
    root = tmp_path_factory.mktemp("made")
    candidate.make(root)
    return root


def start(made: Path, out: Path, processes: int, params: str = PARAMS, store: str = "") -> subprocess.Popen:
    """Stage 1 in a pod with that many processes, which works in `out`; in a store it keeps its checkpoints."""
    artifact = {"name": "aligned", "type": {"schemaTitle": "system.Model"}, "uri": "run/align/aligned", "metadata": {}}
    told = {"outputs": {"artifacts": {"aligned": {"artifacts": [artifact]}}, "outputFile": str(out / "told.json")}}
    [stage] = [stage for stage in stages.read((ROOT / "dvc.yaml").read_text()) if stage.name == "align"]
    sources = dict.fromkeys(stage.inputs.values(), "made here")
    code = {path: hashes.code_hash(ROOT / path) for path in stage.code}
    key = stages.recipe(stage, yaml.safe_load(params), sources | code)
    order = {"stage": "align", "recipe": key, "sources": sources, "processes": processes, "store": store, "most_bytes": 2**40}
    words = ["--order", json.dumps(order), "--params", params, "--executor-input", json.dumps(told), "--"]
    inputs = {"data": made / "valid/alignment", "shards": made / "shards", "foundation": made / "models/foundation"}
    places = inputs | {"aligned": out / "aligned"}
    ports = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    command = [sys.executable, "-m", "pipelines.pod", *words, "python", "-m", "components.align", *ports]
    out.mkdir(parents=True)
    known = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT))), "MLFLOW_TRACKING_URI": NOWHERE, "OMP_NUM_THREADS": "1"}
    with (out / "said.txt").open("w") as said:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | known | {"TMPDIR": str(out)}, stderr=said)


def align(made: Path, out: Path, processes: int) -> tuple[int, str]:
    """What such a pod ends with, and what it says."""
    return start(made, out, processes).wait(), (out / "said.txt").read_text()


def found(out: Path, pattern: str, pod: subprocess.Popen) -> list[Path]:
    """Files in the pod's folder, waited for as long as it runs."""
    while not (files := list(out.glob(f"*/runs/align-*/{pattern}"))) and pod.poll() is None:
        time.sleep(0.005)
    return files


def test_two_processes_train_together_on_the_batches_of_one_and_leave_one_model(made: Path, tmp_path: Path):
    for count in (1, 2):
        code, said = align(made, tmp_path / str(count), count)
        assert code == 0, said[-4000:]
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
    code, said = align(spoilt, tmp_path / "out", 2)
    assert code == BAD_INPUT, said[-4000:]
    assert "expected a manifest with files and parents" in said
    assert not (tmp_path / "out/aligned").exists()


@pytest.mark.parametrize(
    ("whom", "number", "code"),
    [("pod", signal.SIGTERM, STOPPED), ("worker", signal.SIGTERM, STOPPED), ("worker", signal.SIGKILL, 1)],
    ids=["its pod is told to stop", "one of them is told to stop", "one of them is killed"],
)
def test_two_processes_end_as_stopped_exactly_when_both_have_saved(made: Path, tmp_path: Path, whom: str, number: int, code: int):
    out = tmp_path / "out"
    pod = start(made, out, 2, PARAMS.replace("max_steps: 3", "max_steps: 400"))
    assert found(out, "metrics.jsonl", pod), (out / "said.txt").read_text()[-4000:]
    workers = [each for each in psutil.Process(pod.pid).children(recursive=True) if each.environ().get("LOCAL_RANK") == "1"]
    os.kill(pod.pid if whom == "pod" else workers[0].pid, number)
    assert bool(found(out, "checkpoints/1/step-*/manifest.json", pod)) == (code == STOPPED)
    assert pod.wait() == code
    said = (out / "said.txt").read_text()
    end = "was told to stop, and ended with" if code == STOPPED else "failed with"
    assert f"stage align {end} exit code {code}" in said, said[-4000:]
    assert not (out / "aligned").exists()


def test_a_pod_in_the_place_of_one_that_was_stopped_ends_in_the_bytes_of_one_left_alone(made: Path, tmp_path: Path, service: s3.Service):
    params = PARAMS.replace("max_steps: 3", "max_steps: 40")
    first = start(made, tmp_path / "first", 2, params, service.url)
    assert found(tmp_path / "first", "metrics.jsonl", first), (tmp_path / "first/said.txt").read_text()[-4000:]
    first.send_signal(signal.SIGTERM)
    assert first.wait() == STOPPED
    kept = {Path(name).name for name in service.names() if "/checkpoints/align-" in name and "/step-" in name}
    assert kept >= {"process-00000.safetensors", "process-00001.safetensors", "manifest.json"}
    for name, store in (("second", service.url), ("whole", "")):
        assert start(made, tmp_path / name, 2, params, store).wait() == 0, (tmp_path / name / "said.txt").read_text()[-4000:]
    said = (tmp_path / "second/said.txt").read_text()
    assert f"an earlier pod left the checkpoint {service.url}/checkpoints/align-" in said
    assert " goes on from " in said
    assert s3.contents(tmp_path / "second/aligned") == s3.contents(tmp_path / "whole/aligned")
    assert not [name for name in service.names() if "/checkpoints/" in name]
