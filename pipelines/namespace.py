"""What must be there for the pipeline to run in a namespace, as seen through the Kubernetes API, which is only asked."""

import json
import re
from dataclasses import dataclass
from typing import Any

from pipelines import resources
from pipelines.stages import Stage
from pipelines.trainjobs import GROUP
from unimed.settings import Cluster

OLDEST, OLDEST_FOR_TRAINER = (1, 30), (1, 31)
RUNNER, TRAINER, MLFLOW = "unimed-runner", "unimed-trainer", "unimed-mlflow"
"""Service accounts of a run's pods and of training pods; MLflow's Deployment, Service and Secret in manifests/."""

MLFLOW_KEYS = (
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_ARTIFACTS_DESTINATION",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_AUTH_ADMIN_USERNAME",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "basic_auth.ini",
)
OPTIONAL_KEYS = {"AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"}
"""Left out for AWS itself."""

RIGHTS = (
    ("argoproj.io", "workflowtaskresults", "create"),
    (GROUP, "trainjobs", "create"),
    (GROUP, "trainjobs", "watch"),
    (GROUP, "trainjobs", "delete"),
    ("", "pods", "list"),
    ("", "pods/log", "get"),
    ("", "events", "list"),
)
"""What a run's pods ask of the Kubernetes API: group, resource, verb."""

UNFILLED = '"192.0.2.'
"""How the addresses begin that manifests/ hold in place of yours."""

APPLY = "fill in manifests/overlays/production, then `kubectl apply -k manifests/overlays/production`"
TIMEOUT_S = (5, 20)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `ok` is None where it could not be seen or is not needed."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Place:
    """A namespace of a cluster, and the stages that are to run in it."""

    api: Any
    name: str
    cluster: Cluster
    stages: list[Stage]

    def get(self, path: str) -> dict[str, Any] | None:
        """What the Kubernetes API has at a path; None when there is nothing."""
        from kubernetes.client import ApiException

        try:
            return self.ask(path)
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def own(self, kind: str, name: str = "", group: str = "api/v1") -> dict[str, Any] | None:
        """An object of the namespace, or all of a kind."""
        return self.get(f"/{group}/namespaces/{self.name}/{kind}/{name}".rstrip("/"))

    def ask(self, path: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the Kubernetes API answers, to a question where one is put."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        words = {"header_params": headers, "auth_settings": ["BearerToken"], "_return_http_data_only": True, "_request_timeout": TIMEOUT_S}
        return self.api.call_api(path, "POST" if question else "GET", body=question, response_type="object", **words)

    @property
    def spread(self) -> list[Stage]:
        """The stages that train on several machines of this cluster."""
        return [stage for stage in self.stages if resources.train_job(stage, self.cluster, "")]


def kubernetes(place: Place) -> Finding:
    """The version of the cluster."""
    told = place.ask("/version")
    version = tuple(int(re.sub(r"\D", "", told[part])) for part in ("major", "minor"))
    oldest = OLDEST_FOR_TRAINER if place.spread else OLDEST
    remedy = "" if version >= oldest else f"upgrade the cluster to {oldest[0]}.{oldest[1]} or later"
    return Finding("kubernetes", not remedy, told["gitVersion"], remedy)


def namespace(place: Place) -> Finding:
    """That the namespace is there and refuses pods that are not restricted."""
    kept = place.get(f"/api/v1/namespaces/{place.name}")
    if kept is None:
        return Finding("namespace", False, f"{place.name} is not there", f"name another one with --namespace, or {APPLY}")
    level = kept["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce", "nothing")
    if level == "restricted":
        return Finding("namespace", True, f"{place.name} enforces Pod Security {level}")
    if place.own("services", "ml-pipeline"):
        return Finding("namespace", None, f"{place.name} is that of Kubeflow Pipelines itself, and enforces {level}")
    command = f"kubectl label namespace {place.name} pod-security.kubernetes.io/enforce=restricted"
    return Finding("namespace", False, f"{place.name} enforces {level} of Pod Security, not restricted", f"`{command}`")


def account(place: Place, account_name: str) -> Finding:
    """That a service account is there."""
    name = f"service account {account_name}"
    return Finding(name, True, "there") if place.own("serviceaccounts", account_name) else Finding(name, False, "not there", APPLY)


def rights(place: Place) -> Finding:
    """Whether the pods of a run may do what they do."""
    groups = ["system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{place.name}"]
    subject = {"user": f"system:serviceaccount:{place.name}:{RUNNER}", "groups": groups}
    path = f"/apis/authorization.k8s.io/v1/namespaces/{place.name}/localsubjectaccessreviews"
    if missing := _refused(place, path, "LocalSubjectAccessReview", subject):
        return Finding("rights of runs", False, f"{RUNNER} may not {missing}", f"{APPLY}: it holds the Role")
    return Finding("rights of runs", True, f"{RUNNER} may do what stages and launchers do")


def own_rights(place: Place) -> Finding:
    """Whether whoever asks may do the same; a run does not need it, looking after one does."""
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    if missing := _refused(place, path, "SelfSubjectAccessReview", {}):
        return Finding("your rights", None, f"you may not {missing}", "only needed to look after runs with kubectl")
    return Finding("your rights", True, "you may do what runs do")


def _refused(place: Place, path: str, kind: str, subject: dict[str, Any]) -> str:
    """The rights that the subject lacks, as words; empty when it has them all."""
    missing = []
    for group, resource, verb in RIGHTS:
        whole, _, part = resource.partition("/")
        asked = {"namespace": place.name, "group": group, "resource": whole, "subresource": part, "verb": verb}
        question = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {}, "spec": {**subject, "resourceAttributes": asked}}
        if kind.startswith("Local"):
            question["metadata"] = {"namespace": place.name}
        if not place.ask(path, question)["status"]["allowed"]:
            missing.append(f"{verb} {resource}")
    return ", ".join(missing)


def secret(place: Place, secret_name: str, keys: tuple[str, ...], needed: bool) -> Finding:
    """That a Secret has the keys that are read from it, each with something in it; values are never shown."""
    name = f"secret {secret_name}"
    mend = f"`kubectl create secret generic {secret_name} --namespace {place.name} ...`, as docs/cluster.md says"
    kept = place.own("secrets", secret_name)
    if kept is None:
        return Finding(name, False if needed else None, "not there" if needed else "not there: nothing is tracked", mend)
    lacking = [key for key in keys if key not in OPTIONAL_KEYS and not (kept.get("data") or {}).get(key)]
    return Finding(name, not lacking, f"lacks {', '.join(lacking)}" if lacking else "has its keys", mend if lacking else "")


def mlflow_secret(place: Place) -> Finding:
    """That the Secret of an MLflow server in this namespace is whole."""
    if place.own("deployments", MLFLOW, "apis/apps/v1") is None:
        return Finding(f"secret {MLFLOW}", None, "not needed: no MLflow server in this namespace")
    return secret(place, MLFLOW, MLFLOW_KEYS, needed=True)


def addresses(place: Place) -> Finding:
    """That network policies name real addresses."""
    policies = (place.own("networkpolicies", group="apis/networking.k8s.io/v1") or {}).get("items", [])
    unfilled = [policy["metadata"]["name"] for policy in policies if UNFILLED in json.dumps(policy["spec"])]
    if unfilled:
        return Finding("network", False, f"policies {', '.join(unfilled)} name an address that nobody has", f"name yours: {APPLY}")
    return Finding("network", True if policies else None, f"{len(policies)} policies" if policies else "no policies: nothing is refused")


def trainer(place: Place) -> Finding:
    """That Kubeflow Trainer and JobSet are there, new enough for runtime patches."""
    install = "install Kubeflow Trainer 2.3 or later, which brings JobSet: docs/cluster.md"
    missing = [group for group in (GROUP, "jobset.x-k8s.io") if place.get(f"/apis/{group}") is None]
    if missing and not place.spread:
        return Finding("trainer", None, "not needed: no stage trains on several machines")
    if missing:
        return Finding("trainer", False, f"the cluster does not know {', '.join(missing)}", install)
    served = place.get(f"/openapi/v3/apis/{GROUP}/v1alpha1")
    if "runtimePatches" not in json.dumps(served):
        return Finding("trainer", False, "its TrainJobs know no runtimePatches, or are of another version", install)
    return Finding("trainer", True, "serves TrainJobs with runtime patches")


def runtime(place: Place) -> Finding:
    """That the runtime is there which TrainJobs name."""
    if not place.spread:
        return Finding("runtime", None, "not needed: no stage trains on several machines")
    name = place.cluster.runtime
    if place.get(f"/apis/{GROUP}/v1alpha1/clustertrainingruntimes/{name}"):
        return Finding("runtime", True, f"{name} is there")
    return Finding("runtime", False, f"{name} is not there", APPLY)
