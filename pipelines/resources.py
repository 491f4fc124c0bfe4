"""How much of a cluster a stage gets: `meta` in dvc.yaml says what it needs, the section `cluster` of params.yaml cuts it down."""

from pipelines.order import TrainJob
from pipelines.stages import Stage
from unimed.settings import Cluster

STORE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
TRACKING = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Keys of the two Secrets, each an environment variable of the same name; a key that a Secret lacks is left out."""

UNITS = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def gpus(stage: Stage, cluster: Cluster) -> int:
    """GPUs of one pod of a stage on this cluster."""
    return min(stage.meta.gpus, cluster.most_gpus)


def memory(stage: Stage, cluster: Cluster) -> str:
    """Memory of one pod of a stage on this cluster: what it asks for, or the most that there is."""
    return min(stage.meta.memory, cluster.most_memory, key=_bytes)


def shared_memory(stage: Stage, cluster: Cluster) -> str:
    """Size of /dev/shm of a pod of a stage: it counts as memory; empty for what Kubernetes gives anyway."""
    return stage.meta.shared_memory and min(stage.meta.shared_memory, cluster.most_memory, key=_bytes)


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def is_spread(stage: Stage, cluster: Cluster) -> bool:
    """Whether a stage trains on several machines of this cluster."""
    return stage.meta.nodes > 1 and cluster.most_gpus > 0


def train_job(stage: Stage, cluster: Cluster, image: str) -> TrainJob | None:
    """The machines of a stage that trains on several; None for one that fits into its own pod."""
    if not is_spread(stage, cluster):
        return None
    return TrainJob(
        image=image,
        nodes=stage.meta.nodes,
        gpus=gpus(stage, cluster),
        memory=memory(stage, cluster),
        shared_memory=shared_memory(stage, cluster),
        gpu=cluster.gpu,
        runtime=cluster.runtime,
        deadline_s=int(cluster.deadline_hours * 3600),
        tolerations=tuple(toleration.model_dump(exclude_unset=True) for toleration in cluster.tolerations),
        node_selector=cluster.node_selector,
        secrets=secrets(cluster),
    )


def secrets(cluster: Cluster) -> dict[str, tuple[str, ...]]:
    """The Secrets of a pod, each with the keys that become environment variables where they exist."""
    return {cluster.store_secret: STORE, cluster.tracking_secret: TRACKING}
