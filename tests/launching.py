"""What tests of the launcher share: an order, how a TrainJob ends, and a cluster that is watched in fractions of a second."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_api import KubernetesApi, pod

from pipelines import launch, trainjobs
from pipelines.order import TrainJob

KEY = "0123456789abcdef"
NAME = f"unimed-vqa-expert-{KEY}"
ORDER = launch.Order(
    stage="vqa_expert",
    key=KEY,
    run="run-1",
    command=("python", "-m", "components.vqa_expert", "--data", "data/valid/vqa"),
    machines=TrainJob(
        image="train@sha256:1",
        nodes=2,
        gpus=4,
        memory="128Gi",
        shared_memory="16Gi",
        gpu="nvidia.com/gpu",
        runtime="unimed-torch",
        deadline_s=86400,
        tolerations=({"key": "gpu", "operator": "Exists"},),
        node_selector={"pool": "gpu"},
        secrets={"unimed-store": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "unimed-tracking": ("MLFLOW_TRACKING_URI",)},
    ),
)
COMPLETE = {"type": "Complete", "status": "True", "reason": "JobsCompleted", "message": "jobset completed"}
FAILED = {"type": "Failed", "status": "True", "reason": "FailedJobs", "message": "jobset failed"}
OWNER = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "uni-medvlm-x7", "uid": "workflow-uid"}


def impatient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """A cluster that the kubeconfig of this test leads to, and a launcher whose pauses are short."""
    server = KubernetesApi()
    server.pods["launcher"] = pod("launcher", "")
    server.pods["launcher"]["metadata"]["ownerReferences"] = [{**OWNER, "controller": True, "blockOwnerDeletion": True}]
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(folder / "kubeconfig")))
    monkeypatch.setenv("KFP_POD_NAME", "launcher")
    monkeypatch.setattr(trainjobs, "PAUSES_S", (0.01, 0.02, 0.03))
    monkeypatch.setattr(trainjobs, "LOOK_AGAIN_S", 0.1)
    log = logging.getLogger("launch")
    level = log.level
    log.setLevel(logging.INFO)
    yield server
    log.setLevel(level)
    server.shutdown()
    server.server_close()


def run(api: KubernetesApi, *steps: Callable[[], Any]) -> None:
    """Train while these things happen, each after the launcher has seen the one before."""
    api.script.extend(steps)
    launch.train(ORDER)


def ends(api: KubernetesApi, **condition: str) -> Callable[[], None]:
    return lambda: api.update(NAME, conditions=[{**(COMPLETE if not condition else FAILED), **condition}])
