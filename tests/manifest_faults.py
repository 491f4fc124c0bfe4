"""What an API server would refuse, and what is too free: faults of a Kubernetes object as short sentences."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
from kubeflow_trainer_api.models import TrainerV1alpha1ClusterTrainingRuntime

Document = dict[str, Any]
RELEASE = "1.34"
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret", "name"}
READING = {"get", "list", "watch"}
SECRETIVE = re.compile(r"password|secret|token|access_key", re.IGNORECASE)


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document, outer before inner."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(inner)


def pods(document: Document) -> list[dict[str, Any]]:
    """Every specification of a pod in a document."""
    return [part for part in parts(document) if "containers" in part]


def unknown_fields(document: Document) -> Iterator[str]:
    """Fields that Kubernetes or Kubeflow Trainer does not know, or that hold another kind of value."""
    if document["kind"] == "ClusterTrainingRuntime":
        if TrainerV1alpha1ClusterTrainingRuntime.from_dict(document).to_dict() != document:
            yield "a field that Kubeflow Trainer does not know"
        return
    try:
        kubernetes_validate.validate(document, RELEASE, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield error.message


def loose_pods(document: Document) -> Iterator[str]:
    """What Pod Security `restricted` forbids, and besides a root file system that can be written and a token nobody uses."""
    for pod in pods(document):
        whole = pod.get("securityContext", {})
        yield from (f"{word} is on" for word in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace") if pod.get(word))
        yield from (f"volume of type {word}" for volume in pod.get("volumes", []) for word in volume.keys() - VOLUMES)
        if pod.get("automountServiceAccountToken") is not False:
            yield "a token for the Kubernetes API"
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            own = container.get("securityContext", {})
            both = {**whole, **own}
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                yield "may gain privileges"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield "keeps capabilities"
            if both.get("runAsNonRoot") is not True or not both.get("runAsUser"):
                yield "may be root"
            if both.get("seccompProfile") != {"type": "RuntimeDefault"}:
                yield "any system call"
            if own.get("readOnlyRootFilesystem") is not True:
                yield "may write to its image"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield "a port of the node"


def written_passwords(document: Document) -> Iterator[str]:
    """Secrets that stand in the manifests themselves."""
    if document["kind"] == "Secret":
        yield "a Secret with values"
    for part in parts(document):
        if part.get("value") and SECRETIVE.search(part.get("name", "")):
            yield f"{part['name']} has its value written down"
    if re.search(r"://[^/\s\"]+:[^/@\s\"]+@|password1234", json.dumps(document)):
        yield "a password in an address, or the one everybody knows"


def wide_rights(document: Document) -> Iterator[str]:
    """Rights beyond one namespace, or to change what is not the pipeline's own."""
    if document["kind"] in ("ClusterRole", "ClusterRoleBinding"):
        yield "rights in every namespace"
    for rule in document.get("rules", []):
        if "*" in rule["apiGroups"] + rule["resources"] + rule["verbs"]:
            yield "a right to everything"
        if "secrets" in rule["resources"] and (set(rule["verbs"]) != {"get"} or not rule.get("resourceNames")):
            yield "any Secret"
        if rule["apiGroups"] == [""] and set(rule["verbs"]) - READING:
            yield f"changes {rule['resources']}"
        if {"pods/exec", "pods/attach", "serviceaccounts/token"} & set(rule["resources"]):
            yield "other pods' insides"


def open_ways(document: Document) -> Iterator[str]:
    """Traffic that a policy lets through without saying from or to whom."""
    if document["kind"] != "NetworkPolicy":
        return
    for rule, far in [
        *((rule, "to") for rule in document["spec"].get("egress", [])),
        *((rule, "from") for rule in document["spec"].get("ingress", [])),
    ]:
        if not rule.get(far):
            yield "from or to anywhere"
        for peer in rule.get(far, []):
            if peer in ({"namespaceSelector": {}}, {"podSelector": {}}) or peer.get("ipBlock", {}).get("cidr", "").endswith("/0"):
                yield "from or to anybody"
            if "podSelector" not in peer and not rule.get("ports"):
                yield "any port"


def loose_images(document: Document) -> Iterator[str]:
    """Images that can change under their name."""
    for image in [container["image"] for pod in pods(document) for container in pod["containers"]]:
        if not re.search(r"@sha256:[0-9a-f]{64}$", image):
            yield f"image {image} without digest"


CHECKS: tuple[Callable[[Document], Iterator[str]], ...] = (unknown_fields, loose_pods, written_passwords, wide_rights, open_ways)


def faults(documents: list[Document], *checks: Callable[[Document], Iterator[str]]) -> list[str]:
    """Every fault that the checks find, with the object it is in."""
    return [
        f"{document['kind']} {document['metadata']['name']}: {fault}"
        for document in documents
        for check in checks
        for fault in check(document)
    ]
