"""A stage on several machines, whole: a launcher's pod orders a TrainJob, the TrainJob's command runs, the store carries the bytes."""

import json
import os
import threading
from pathlib import Path

import pytest
import s3
from kubernetes_api import KubernetesApi
from launching import COMPLETE, impatient
from test_pod import Cell, cell  # noqa: F401  the pod of the two-stage project

from conftest import wait_until
from unimed import hashes
from unimed.store import Store

pytest_plugins = ["s3"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("service")]
MACHINES = {
    "image": "train@sha256:1", "nodes": 2, "gpus": 1, "memory": "8Gi", "shared_memory": "", "gpu": "nvidia.com/gpu",
    "runtime": "unimed-torch", "deadline_s": 60, "tolerations": [], "node_selector": {}, "secrets": {},
}  # fmt: skip


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cluster to launch in."""
    yield from impatient(tmp_path, monkeypatch)


@pytest.fixture
def ordered(cell: Cell, service: s3.Service) -> Cell:  # noqa: F811
    """The pod told to train on two machines, its input in the store and handed over by reference."""
    cell.order |= {"store": service.url, "train_job": MACHINES}
    entries = hashes.listing(cell.root / "raw")
    Store(service.url).push(cell.root / "raw")
    for file in hashes.files(cell.root / "raw"):
        file.unlink()
    (cell.root / "raw").rmdir()
    (cell.root / "raw").write_bytes(hashes.listing_text(entries))
    return cell


def machine(cell: Cell, api: KubernetesApi, ended: list[int]) -> None:  # noqa: F811
    """Wait for a TrainJob, run its command as its first machine would, and let it be complete."""
    wait_until(lambda: bool(api.jobs))
    [job] = api.jobs.values()
    done = cell.project.run(*job["spec"]["trainer"]["command"], PET_NODE_RANK="0", MASTER_PORT="0")
    ended.append(done.returncode)
    (cell.root / "machine.log").write_text(done.stderr)
    api.update(job["metadata"]["name"], conditions=[COMPLETE])


def test_the_command_of_a_train_job_makes_what_its_launcher_hands_on(ordered: Cell, api: KubernetesApi, service: s3.Service):
    ended: list[int] = []
    thread = threading.Thread(target=machine, args=(ordered, api, ended))
    thread.start()
    done = ordered.run(KUBECONFIG=os.environ["KUBECONFIG"], KFP_POD_NAME="launcher", KFP_RUN_ID="run-7")
    thread.join()
    assert ended == [0], (ordered.root / "machine.log").read_text()
    assert done.returncode == 0, done.stderr
    assert ordered.project.first().returncode == 0
    digest = hashes.dvc_hash(ordered.project.root / "models/first")
    assert hashes.listing_hash(json.loads((ordered.root / "made").read_text())) == digest
    [artifact] = json.loads(ordered.told.read_text())["artifacts"]["made"]["artifacts"]
    assert artifact["metadata"]["md5"] == digest
    record = Store(service.url).record("first", ordered.order["recipe"])
    assert record is not None
    assert record["run"] == "run-7"


def test_machines_without_a_store_are_one_sentence(ordered: Cell):
    del ordered.order["store"]
    done = ordered.run()
    assert done.returncode == 78
    assert "expected a store that several machines can reach, found none" in done.stderr
