"""What a task asks of Kubernetes: memory, GPUs, shared memory, Secrets, a place to write."""

from kfp import dsl, kubernetes

from pipelines import artifacts, resources
from pipelines.stages import Stage
from unimed.settings import Cluster

LAUNCHER_MEMORY = "2Gi"


def settle(task: dsl.PipelineTask, stage: Stage, cluster: Cluster) -> dsl.PipelineTask:
    """Give a task the resources and Secrets of its stage; one that only starts a TrainJob and waits needs little.

    Secrets are optional to Kubernetes: a pod that lacks one says so in a sentence, where Kubernetes would let it wait for ever.
    """
    waits = resources.is_spread(stage, cluster)
    wanted = LAUNCHER_MEMORY if waits else resources.memory(stage, cluster)
    task.set_memory_request(wanted).set_memory_limit(wanted)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.empty_dir_mount(task, "scratch", "/tmp")  # noqa: S108  the one place that a read-only root leaves to write to
    kubernetes.use_field_path_as_env(task, artifacts.RUN, "metadata.labels['pipeline/runid']")
    for secret, keys in resources.secrets(cluster).items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    if not waits:
        _place(task, stage, cluster)
    return task


def _place(task: dsl.PipelineTask, stage: Stage, cluster: Cluster) -> None:
    """GPUs with the nodes that have them, and /dev/shm."""
    if size := resources.shared_memory(stage, cluster):
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=size)  # noqa: S108
    if not (count := resources.gpus(stage, cluster)):
        return
    task.set_accelerator_type(cluster.gpu).set_accelerator_limit(count)
    for toleration in cluster.tolerations:
        kubernetes.add_toleration(task, **{name: value or None for name, value in toleration.model_dump().items()})
    for label, value in cluster.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
