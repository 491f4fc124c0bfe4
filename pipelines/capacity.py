"""Whether the stages fit into a cluster: what quotas of the namespace leave, and GPUs of its nodes."""

from decimal import Decimal

from pipelines import resources
from pipelines.namespace import Finding, Place


def quota(place: Place) -> Finding:
    """Whether the largest stage fits into what quotas leave."""
    from kubernetes.utils.quantity import parse_quantity

    wanted: dict[str, tuple[Decimal, str]] = {}
    for stage in place.stages:
        memory, gpus = parse_quantity(resources.memory(stage, place.cluster)), Decimal(resources.gpus(stage, place.cluster))
        machines = stage.meta.nodes if stage in place.spread else 1
        for key, amount in (("memory", memory), (place.cluster.gpu, gpus)):
            for word in (f"requests.{key}", f"limits.{key}", key):
                wanted[word] = max(wanted.get(word, (Decimal(0), "")), (amount * machines, stage.name))
    short = []
    for item in (place.own("resourcequotas") or {}).get("items", []):
        used = item.get("status", {}).get("used", {})
        for key, hard in item["spec"]["hard"].items():
            left = parse_quantity(hard) - parse_quantity(used.get(key, "0"))
            if key in wanted and left < wanted[key][0]:
                short.append(f"{key}: {used.get(key, '0')} of {hard} in use, {wanted[key][1]} asks for {wanted[key][0]}")
    remedy = "wait for what runs there, raise the ResourceQuota, or lower cluster.most_memory and most_gpus in params.yaml" if short else ""
    return Finding("quota", not short, "; ".join(short) or "the largest stage fits", remedy)


def gpus(place: Place) -> Finding:
    """Whether enough nodes have as many GPUs as a pod asks for, in use or not."""
    wanted = max(resources.gpus(stage, place.cluster) for stage in place.stages)
    machines = max((stage.meta.nodes for stage in place.spread), default=1)
    nodes = [node for node in place.ask("/api/v1/nodes")["items"] if not node["spec"].get("unschedulable")]
    chosen = [node for node in nodes if place.cluster.node_selector.items() <= node["metadata"].get("labels", {}).items()]
    fit = [node for node in chosen if int(node["status"]["allocatable"].get(place.cluster.gpu, 0)) >= wanted]
    said = f"{len(fit)} nodes have {wanted} of {place.cluster.gpu}, {machines} needed"
    remedy = "install the GPU's device plugin, correct cluster.node_selector, or lower cluster.most_gpus in params.yaml"
    return Finding("gpus", len(fit) >= machines, said, "" if len(fit) >= machines else remedy)
