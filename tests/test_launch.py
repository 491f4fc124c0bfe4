"""A stage as a TrainJob: what is asked for, who makes it, who deletes it, and what a user hears when the cluster refuses."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from kubernetes_api import NAMESPACE, KubernetesApi, dropped, status
from launching import COMPLETE, FAILED, KEY, NAME, ORDER, OWNER, ends, impatient

from conftest import ROOT
from pipelines import launch, stages
from pipelines.watch import TrainingError
from unimed.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """A cluster to launch in."""
    yield from impatient(tmp_path, monkeypatch)


def existing(api: KubernetesApi, run: str = "run-0", key: str = KEY, **more: Any) -> dict[str, Any]:
    """A TrainJob that a run made earlier."""
    form = launch.manifest(replace(ORDER, run=run), None)
    form["metadata"]["annotations"] = {launch.RECIPE: key}
    return api.add({**form, **more})


def strictly(form: dict[str, Any]) -> dict[str, Any]:
    """What the API's own models keep of a TrainJob: they drop keys that they do not know."""
    return TrainerV1alpha1TrainJob.from_dict(form).to_dict()


def test_a_train_job_is_one_that_the_trainer_s_own_models_take_whole():
    form = launch.manifest(ORDER, OWNER)
    assert strictly(form) == form
    form["spec"]["trainer"]["envFrom"] = [{"secretRef": {"name": "unimed-store"}}]
    assert strictly(form) != form, "the models drop what they do not know"


def test_machines_are_what_the_order_says():
    spec = launch.manifest(ORDER, OWNER)["spec"]
    trainer, job = spec["trainer"], spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pods = job["template"]["spec"]["template"]["spec"]
    assert (trainer["command"], trainer["numNodes"], trainer["numProcPerNode"]) == (list(ORDER.command), 2, 4)
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "128Gi", "nvidia.com/gpu": "4"}
    assert (pods["tolerations"], pods["nodeSelector"]) == ([{"key": "gpu", "operator": "Exists"}], {"pool": "gpu"})
    assert pods["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert pods["containers"][0]["volumeMounts"][0]["mountPath"] == "/dev/shm"


def test_secrets_are_named_and_never_read():
    env = launch.manifest(ORDER, OWNER)["spec"]["trainer"]["env"]
    assert [(each["valueFrom"]["secretKeyRef"], each["name"]) for each in env] == [
        ({"name": secret, "key": key, "optional": True}, key) for secret, keys in ORDER.machines.secrets.items() for key in keys
    ]


def test_machines_without_a_gpu_train_in_one_process_each():
    trainer = launch.manifest(replace(ORDER, machines=ORDER.machines.model_copy(update={"gpus": 0})), None)["spec"]["trainer"]
    assert trainer["numProcPerNode"] == 1
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "128Gi"}


@pytest.mark.parametrize("stage", ["a", "Long_" * 30, *(stage.name for stage in stages.read((ROOT / "dvc.yaml").read_text()))])
def test_every_stage_has_a_name_that_kubernetes_takes_for_its_pods_too(stage: str):
    name = replace(ORDER, stage=stage).name
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(f"{name}-node-0-999") <= 63
    assert name.endswith(KEY)


def test_a_train_job_belongs_to_the_run_and_says_what_it_is(api: KubernetesApi):
    api.script.append(ends(api))
    launch.train(ORDER)
    (made,) = api.made
    assert made["metadata"]["ownerReferences"] == [OWNER]
    assert made["metadata"]["labels"] == {"unimed/stage": "vqa_expert", "unimed/recipe": KEY, "unimed/run": "run-1"}
    assert "delete" not in api.asked


def test_a_launcher_that_is_no_pod_of_a_run_goes_on_and_says_so(api: KubernetesApi, caplog: pytest.LogCaptureFixture):
    api.pods.clear()
    api.script.append(ends(api))
    launch.train(ORDER)
    assert api.made[0]["metadata"]["ownerReferences"] == []
    assert "deleting the run will not delete the TrainJob" in caplog.text


def test_a_second_run_of_a_recipe_waits_for_the_first_one_s(api: KubernetesApi):
    before = existing(api)
    api.script.append(ends(api))
    launch.train(ORDER)
    assert len(api.made) == 1
    after = api.jobs[NAME]
    assert (after["metadata"]["uid"], after["metadata"]["labels"]) == (before["metadata"]["uid"], before["metadata"]["labels"])


def test_a_complete_recipe_is_not_trained_again(api: KubernetesApi):
    existing(api, status={"conditions": [COMPLETE]})
    launch.train(ORDER)
    assert "pods" not in api.asked


@pytest.mark.parametrize("mark", [{"status": {"conditions": [FAILED]}}, {}], ids=["failed", "being deleted"])
def test_what_failed_or_is_being_deleted_is_made_anew(api: KubernetesApi, mark: dict[str, Any]):
    before = existing(api, **mark)
    if not mark:
        before = api.put({**before, "metadata": {**before["metadata"], "deletionTimestamp": before["metadata"]["creationTimestamp"]}})
    api.script.append(ends(api))
    launch.train(ORDER)
    assert api.jobs[NAME]["metadata"]["uid"] != before["metadata"]["uid"]
    assert api.jobs[NAME]["metadata"]["labels"]["unimed/run"] == "run-1"


def test_a_namesake_of_another_recipe_is_left_alone(api: KubernetesApi):
    existing(api, key="f" * 16)
    with pytest.raises(InputError, match=f"expected recipe {KEY}, found ffffffffffffffff; delete it"):
        launch.train(ORDER)
    assert "delete" not in api.asked


def test_an_answer_lost_after_the_train_job_was_made_makes_no_second(api: KubernetesApi):
    api.fail("create", lambda handler: (api.add(api.made[-1]) if api.made else existing(api, "run-1"), dropped(handler)))
    api.script.append(ends(api))
    launch.train(ORDER)
    assert len(api.jobs) == 1


def test_a_server_that_fails_for_a_while_is_waited_for(api: KubernetesApi):
    for verb in ("pod", "create", "list", "watch", "pods"):
        api.fail(verb, status(500, "etcd"), dropped, status(429, "slow down"))
    api.script.extend([lambda: None, lambda: None, lambda: None, ends(api)])
    launch.train(ORDER)
    assert api.asked.count("create") == 4


def test_a_cluster_that_never_answers_ends_it_as_something_that_can_go_on(api: KubernetesApi):
    api.fail("list", *[status(503, "the server is down")] * 50)
    with pytest.raises(TrainingError, match="expected an answer, found the server is down; .* start the stage again") as error:
        launch.train(ORDER)
    assert error.value.code == 75
    assert "delete" not in api.asked


REFUSALS = {
    "quota": ("create", 403, 'trainjobs "a" is forbidden: exceeded quota: unimed, requested: count=1', "raise that ResourceQuota"),
    "role": ("create", 403, 'trainjobs is forbidden: User "x" cannot create resource "trainjobs"', "cannot create.*Role"),
    "token": ("create", 401, "Unauthorized", "renew the token"),
    "trainer": ("create", 404, "404 page not found\n", "install Kubeflow Trainer 2.3"),
    "namespace": ("create", 404, f'namespaces "{NAMESPACE}" not found', "create it"),
    "runtime": (
        "create",
        403,
        'webhook "validator" denied the request: "unimed-torch": specified runtime must be created before the TrainJob is created',
        "apply manifests/",
    ),
    "webhook": ("create", 403, 'admission webhook "validator" denied the request: spec.trainer', "compare it with the runtime"),
    "manifest": ("create", 422, "spec.runtimePatches: Invalid value", "compare it with the runtime"),
    "pods": ("pods", 403, 'pods is forbidden: User "x" cannot list resource "pods"', "cannot list resource.*Role"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_how_to_mend_it(api: KubernetesApi, case: str):
    verb, code, message, remedy = REFUSALS[case]
    api.fail(verb, status(code, message))
    with pytest.raises(InputError, match=f"(?s){NAMESPACE}.*({remedy})") as error:
        launch.train(ORDER)
    assert "\n" not in str(error.value)
    assert "deletionTimestamp" in api.jobs[NAME]["metadata"] if verb == "pods" else not api.jobs


def test_without_a_cluster_it_says_where_one_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InputError, match="expected a service account or a kubeconfig in KUBECONFIG"):
        launch.train(ORDER)


STOPPABLE = """
import logging, signal
import test_launch
from unimed import step
logging.basicConfig(level="INFO")
signal.signal(signal.SIGTERM, step.stop)
test_launch.launch.train(test_launch.ORDER)
"""


@pytest.mark.slow
@pytest.mark.parametrize("run", ["run-1", "run-0"], ids=["its own", "another run's"])
def test_a_stopped_launcher_deletes_what_its_run_made_and_nothing_else(api: KubernetesApi, run: str):
    existing(api, run)
    path = f"{ROOT / 'src'}:{ROOT}:{ROOT / 'tests'}"
    child = subprocess.Popen([sys.executable, "-c", STOPPABLE], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE)
    api.script.append(lambda: child.send_signal(signal.SIGTERM))
    _, said = child.communicate(timeout=25)
    assert child.returncode == 143, said
    assert ("delete" in api.asked) == (run == "run-1")
    assert (b"deleted, its run was stopped" if run == "run-1" else b"left alone, another run made it") in said
