"""The manifests as an API server would take them: every field known, every pod restricted, no right, way out or password too many."""

import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity
from manifest_faults import CHECKS, Document, faults, loose_images, parts, pods

from conftest import ROOT
from pipelines import namespace, stages
from pipelines.launch import SHARED
from pipelines.resources import STORE, TRACKING
from pipelines.trainjobs import NODE
from unimed.settings import Cluster

OVERLAYS = ("kind", "production")
KUSTOMIZE = next((words for words in (["kubectl", "kustomize"], ["kustomize", "build"]) if shutil.which(words[0])), [])
pytestmark = pytest.mark.skipif(not KUSTOMIZE, reason="NOT CHECKED: neither kubectl nor kustomize is installed to render manifests/")


@cache
def rendered(folder: Path) -> str:
    return subprocess.run([*KUSTOMIZE, str(folder)], capture_output=True, text=True, check=True).stdout


def overlay(name: str, root: Path = ROOT) -> list[Document]:
    return list(yaml.safe_load_all(rendered(root / "manifests/overlays" / name)))


def one(documents: list[Document], kind: str, name: str) -> Document:
    [found] = [document for document in documents if (document["kind"], document["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_api_server_takes_every_object_and_none_is_too_free(name: str):
    assert not faults(overlay(name), *CHECKS)


def test_production_takes_images_by_digest_only():
    assert not faults(overlay("production"), loose_images)


PLANTED: dict[str, tuple[str, str, Callable[[Document], object]]] = {
    "an unknown field": ("Deployment", "unimed-mlflow", lambda it: it["spec"].update(replica=2)),
    "a field deep in a pod": ("Deployment", "unimed-mlflow", lambda it: pods(it)[0]["containers"][0].update(imagePullPolice="Always")),
    "a field of an older Trainer": (
        "ClusterTrainingRuntime",
        "unimed-torch",
        lambda it: it["spec"]["mlPolicy"]["torch"].update(numProcPerNode="auto"),
    ),
    "no securityContext": ("ClusterTrainingRuntime", "unimed-torch", lambda it: pods(it)[0]["containers"][0].pop("securityContext")),
    "root": ("Deployment", "unimed-mlflow", lambda it: pods(it)[0]["securityContext"].update(runAsUser=0)),
    "no seccomp": ("Deployment", "unimed-mlflow", lambda it: pods(it)[0]["securityContext"].pop("seccompProfile")),
    "a path of the node": (
        "ClusterTrainingRuntime",
        "unimed-torch",
        lambda it: pods(it)[0]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    "a password written down": (
        "Deployment",
        "unimed-mlflow",
        lambda it: pods(it)[0]["containers"][0]["env"].append({"name": "MLFLOW_AUTH_ADMIN_PASSWORD", "value": "x"}),
    ),
    "a password in an address": (
        "Deployment",
        "unimed-mlflow",
        lambda it: pods(it)[0]["containers"][0]["args"].append("--backend-store-uri=postgresql://mlflow:mlflow@host/db"),
    ),
    "a right to everything": ("Role", "unimed-runner", lambda it: it["rules"][0].update(verbs=["*"])),
    "rights in every namespace": ("Role", "unimed-runner", lambda it: it.update(kind="ClusterRole")),
    "every Secret": ("Role", "unimed-runner", lambda it: [rule.pop("resourceNames", None) for rule in it["rules"]]),
    "a way to everywhere": ("NetworkPolicy", "store", lambda it: it["spec"]["egress"][0]["to"][0]["ipBlock"].update(cidr="0.0.0.0/0")),
    "a rule without an address": ("NetworkPolicy", "store", lambda it: it["spec"]["egress"].append({})),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake: str):
    kind, name, spoil = PLANTED[mistake]
    document = copy.deepcopy(one(overlay("production"), kind, name))
    spoil(document)
    assert faults([document], *CHECKS)


def test_nothing_goes_in_or_out_of_a_namespace_that_no_policy_names():
    assert one(overlay("production"), "NetworkPolicy", "default-deny")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    narrowed = one(overlay("kind"), "NetworkPolicy", "default-deny")["spec"]["podSelector"]["matchLabels"]
    ours = [part["metadata"]["labels"] for document in overlay("kind") for part in parts(document) if "containers" in part.get("spec", {})]
    assert len(ours) == 3 and all(narrowed.items() <= labels.items() for labels in ours)


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_named_is_there(name: str):
    documents = overlay(name)
    there = {(document["kind"], document["metadata"]["name"]) for document in documents}
    labels = [part.get("labels", {}) for document in documents for part in parts(document)]
    for part in [part for document in documents for part in parts(document)]:
        if "serviceAccountName" in part:
            assert ("ServiceAccount", part["serviceAccountName"]) in there
        if isinstance(wanted := part.get("podSelector", {}).get("matchLabels"), dict) and "namespaceSelector" not in part:
            assert any(wanted.items() <= own.items() for own in labels), wanted
        if "secretKeyRef" in part and part["secretKeyRef"]["name"] == namespace.MLFLOW and not part["secretKeyRef"].get("optional"):
            assert part["secretKeyRef"]["key"] in namespace.MLFLOW_KEYS
    assert {("ServiceAccount", namespace.RUNNER), ("ServiceAccount", namespace.TRAINER), ("Deployment", namespace.MLFLOW)} <= there
    assert ("ClusterTrainingRuntime", Cluster().runtime) in there


def test_one_line_moves_everything_to_another_namespace(tmp_path: Path):
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    file = tmp_path / "manifests/overlays/production/namespace/kustomization.yaml"
    file.write_text(re.sub(r"(?m)^namespace: .*$", "namespace: team", file.read_text()))
    documents = overlay("production", tmp_path)
    assert {
        document["metadata"].get("namespace") for document in documents if document["kind"] not in ("Namespace", "ClusterTrainingRuntime")
    } == {"team"}
    assert one(documents, "Namespace", "team") and one(documents, "RoleBinding", "unimed-runner")["subjects"][0]["namespace"] == "team"
    assert "namespace" not in one(documents, "ClusterTrainingRuntime", "unimed-torch")["metadata"]


def test_a_run_may_do_what_doctor_says_it_does():
    rules = one(overlay("production"), "Role", namespace.RUNNER)["rules"]
    for group, resource, verb in namespace.RIGHTS:
        assert any(group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"] for rule in rules), (
            verb,
            resource,
        )


def test_the_runtime_fits_what_the_launcher_patches_and_ends_at_bad_input():
    [job] = one(overlay("production"), "ClusterTrainingRuntime", "unimed-torch")["spec"]["template"]["spec"]["replicatedJobs"]
    [pod] = pods(job)
    assert job["name"] == pod["containers"][0]["name"] == NODE
    assert {"name": SHARED, "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    assert job["template"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [78]
    assert pod["restartPolicy"] == "Never", "Kubernetes refuses a podFailurePolicy otherwise"


def test_the_quota_holds_the_largest_stage():
    hard = one(overlay("production"), "ResourceQuota", "unimed")["spec"]["hard"]
    for stage in stages.read((ROOT / "dvc.yaml").read_text()):
        assert stage.meta.gpus * stage.meta.nodes <= int(hard["requests.nvidia.com/gpu"])
        assert parse_quantity(stage.meta.memory) * stage.meta.nodes <= parse_quantity(hard["limits.memory"])


def test_the_runbook_makes_every_key_of_every_secret():
    text = (ROOT / "docs/cluster.md").read_text()
    assert not [key for key in (*namespace.MLFLOW_KEYS, *STORE, *TRACKING) if key not in text]
    found = [part for name in OVERLAYS for document in overlay(name) for part in parts(document)]
    named = {part["secretKeyRef"]["name"] for part in found if "secretKeyRef" in part}
    named |= {pull["name"] for part in found for pull in part.get("imagePullSecrets", [])}
    assert named == {"unimed-mlflow", "unimed-postgres", "unimed-registry"}
    assert not [name for name in named if not re.search(rf"create secret (generic|docker-registry) {name} ", text)]
