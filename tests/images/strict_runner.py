"""kfp.local.DockerRunner made to tell the truth, with every container in the shape Kubeflow gives a pod. For tests, and only here.

What kfp 2.17 does otherwise: it starts containers that remove themselves and takes one that is gone before it looks for a success, so that
failures pass; it hands the command to an image's ENTRYPOINT, which on Kubernetes the command replaces (kubeflow/pipelines#13332); and it
takes a condition on an output that is not called `Output` for false.
"""

import logging
from typing import Any

import pytest
from docker import DockerClient
from kfp import local
from kfp.local import docker_task_handler
from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator
from kubeflow import task_output

from images import engine

SCRATCH = ("/tmp", "/kfp-launcher", "/gcs", "/s3", "/minio", "/.local", "/.cache", "/.config")
"""The emptyDirs of a pod: /tmp, and those that Kubeflow adds."""

POD: dict[str, Any] = {
    "user": "65532:65532",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "read_only": True,
    "network_mode": "none",
    "mem_limit": "8g",
    "memswap_limit": "8g",
    "tmpfs": dict.fromkeys(SCRATCH, "exec,mode=1777"),
    "environment": {"OMP_NUM_THREADS": "1"},
}
"""A pod under Pod Security restricted, as `docker run` says it; seccomp's default profile is on by itself, as RuntimeDefault is there."""

log = logging.getLogger("container")


def run(client: DockerClient, image: str, command: list[str], volumes: dict[str, Any] | None = None, **more: Any) -> tuple[int, str]:
    """Run a container to its end; returns its exit code and what it printed. Nothing is pulled."""
    found = client.images.get(image)
    container = client.containers.create(found, command, volumes=volumes or {}, **{"entrypoint": [], **more})
    try:
        container.start()
        code = container.wait()["StatusCode"]
        return code, container.logs(stdout=True, stderr=True).decode(errors="replace")
    finally:
        container.remove(force=True)


def install(patch: pytest.MonkeyPatch, pipeline_root: str) -> list[list[str]]:
    """Make `kfp.local` run pipelines that way below `pipeline_root`; returns the list that gathers the commands it has run."""
    commands: list[list[str]] = []

    def strict(client: DockerClient, image: str, command: list[str], volumes: dict[str, Any], **more: Any) -> int:
        commands.append(command)
        code, text = run(client, image, command, volumes, **more)
        log.info("exit code %d\n%s", code, text)
        return code

    patch.setenv("DOCKER_HOST", engine.SOCKET)
    patch.setattr(docker_task_handler, "run_docker_container", strict)
    patch.setattr(ConditionEvaluator, "_resolve_pipeline_channel", staticmethod(task_output))
    local.init(runner=local.DockerRunner(**POD), pipeline_root=pipeline_root)
    return commands
