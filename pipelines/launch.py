"""A stage on several machines: a Kubeflow Trainer v2 TrainJob, named by its recipe key, waited for until it is complete.

Whoever asks for a recipe first makes the TrainJob, others wait for the same one. A run that is stopped deletes what it made.
"""

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

from pipelines.order import TrainJob
from pipelines.trainjobs import GROUP, NODE, VERSION, Cluster, passing, refusal, sentence
from pipelines.watch import TrainingError, condition, wait
from unimed.errors import STOPPED, InputError

MANAGER = "unimed/launch"
"""Whose part of a TrainJob's runtime patches ours is."""

STAGE, RECIPE, RUN = "unimed/stage", "unimed/recipe", "unimed/run"
"""Labels of a TrainJob; the recipe is an annotation as well."""

LONGEST_STAGE = 28
"""Letters of a stage in a name, because that of its pods' hosts, `unimed-STAGE-KEY-node-0-999`, may have 63."""

SHARED = "shared-memory"
log = logging.getLogger("launch")


@dataclass(frozen=True)
class Order:
    """What a TrainJob is to run: a command on each of its machines, for one stage, recipe and run."""

    stage: str
    key: str
    run: str
    command: tuple[str, ...]
    machines: TrainJob

    @property
    def name(self) -> str:
        """The name of the recipe's TrainJob, whichever run asks for it."""
        return f"unimed-{self.stage.lower().replace('_', '-')[:LONGEST_STAGE].rstrip('-')}-{self.key}"


def train(order: Order) -> None:
    """Have a stage trained on several machines; returns when all of it is complete.

    Raises `InputError` for what a user or administrator can mend, `TrainingError` for a TrainJob that ended otherwise or a cluster that no
    longer answers. Stopped while it waits, it deletes the TrainJob if this run made it.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    cluster = Cluster()
    try:
        wait(cluster, _obtain(cluster, order))
    except TrainingError:
        raise
    except (ApiException, HTTPError) as error:
        if not passing(error):
            _give_up(cluster, order)
            raise refusal(error, cluster.namespace) from error
        message = f"Kubernetes: expected an answer, found {sentence(error)}; {order.name} may go on, start the stage again to wait for it"
        raise TrainingError(message, STOPPED) from error
    except BaseException:
        _give_up(cluster, order)
        raise


def manifest(order: Order, owner: dict[str, str] | None) -> dict[str, Any]:
    """The TrainJob as Kubeflow Trainer 2.3 takes it; `owner` is what it is deleted with."""
    resources = {"memory": order.machines.memory} | ({order.machines.gpu: str(order.machines.gpus)} if order.machines.gpus else {})
    labels = {STAGE: order.stage, RECIPE: order.key, RUN: order.run}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": order.name,
            "labels": labels,
            "annotations": {RECIPE: order.key},
            "ownerReferences": [owner] if owner else [],
        },
        "spec": {
            "runtimeRef": {"name": order.machines.runtime},
            "activeDeadlineSeconds": order.machines.deadline_s,
            "trainer": {
                "image": order.machines.image,
                "command": list(order.command),
                "numNodes": order.machines.nodes,
                "numProcPerNode": order.machines.processes,
                "resourcesPerNode": {"requests": resources, "limits": resources},
                "env": _secrets(order),
            },
            "runtimePatches": [_patch(order, labels)],
        },
    }


def _secrets(order: Order) -> list[dict[str, Any]]:
    chosen = [(secret, key) for secret, keys in order.machines.secrets.items() for key in keys]
    return [{"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}} for secret, key in chosen]


def _patch(order: Order, labels: dict[str, str]) -> dict[str, Any]:
    """What the runtime's pods get besides: our labels, their place, and shared memory where the stage asks for it."""
    spec: dict[str, Any] = {"tolerations": list(order.machines.tolerations), "nodeSelector": order.machines.node_selector}
    if order.machines.shared_memory:
        spec["volumes"] = [{"name": SHARED, "emptyDir": {"medium": "Memory", "sizeLimit": order.machines.shared_memory}}]
        spec["containers"] = [{"name": NODE, "volumeMounts": [{"name": SHARED, "mountPath": "/dev/shm"}]}]  # noqa: S108
    pods = {"metadata": {"labels": labels}, "spec": spec}
    jobs = [{"name": NODE, "template": {"spec": {"template": pods}}}]
    return {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}


def _owner(cluster: Cluster) -> dict[str, str] | None:
    """What this pod belongs to, which is the run; Kubernetes deletes a TrainJob with it."""
    from kubernetes.client import ApiException

    name = os.environ.get("KFP_POD_NAME") or socket.gethostname()
    try:
        owners = cluster.ask(cluster.core.read_namespaced_pod, name, cluster.namespace).metadata.owner_references or []
    except ApiException as error:
        if error.status != 404:
            raise
        owners = []
    for owner in owners:
        if owner.controller:
            return {"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}
    log.warning("pod %s belongs to no run: deleting the run will not delete the TrainJob", name)
    return None


def _obtain(cluster: Cluster, order: Order) -> dict[str, Any]:
    """The TrainJob of a recipe: made now, or complete or on its way already; one that failed is replaced."""
    from kubernetes.client import ApiException

    wanted = manifest(order, _owner(cluster))
    while True:
        try:
            job = cluster.create(wanted)
            log.info("%s: made, for %d machines", order.name, order.machines.nodes)
            return job
        except ApiException as error:
            if error.status != 409:
                raise
        job, _ = cluster.find(order.name)
        if job is not None and _usable(cluster, job, order):
            log.info("%s: there already, made by run %s", order.name, _run(job))
            return job


def _usable(cluster: Cluster, job: dict[str, Any], order: Order) -> bool:
    """Whether a TrainJob found under our name can be waited for; one that failed or is being deleted is gone when this returns."""
    found = job["metadata"].get("annotations", {}).get(RECIPE)
    if found != order.key:
        remedy = f"delete it: kubectl delete trainjob {order.name} -n {cluster.namespace}"
        raise InputError(f"TrainJob {order.name}: expected recipe {order.key}, found {found}; {remedy}")
    if not condition(job, "Failed") and "deletionTimestamp" not in job["metadata"]:
        return True
    log.info("%s: failed earlier or is being deleted; made anew once it is gone", order.name)
    cluster.delete(job)
    for still in cluster.follow(job):
        if still is None:
            break
    return False


def _run(job: dict[str, Any]) -> str | None:
    return job["metadata"].get("labels", {}).get(RUN)


def _give_up(cluster: Cluster, order: Order) -> None:
    """Delete the TrainJob unless another run made it or it has ended; what goes wrong is said, not raised."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        job, _ = cluster.find(order.name)
        if job is None or condition(job, "Complete") or condition(job, "Failed"):
            return
        if _run(job) != order.run:
            log.info("%s: left alone, another run made it", order.name)
            return
        cluster.delete(job)
        log.info("%s: deleted, its run was stopped", order.name)
    except (ApiException, HTTPError) as error:
        log.warning("%s: may go on, it could not be deleted: %s", order.name, sentence(error))
