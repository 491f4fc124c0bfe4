"""Runs compiled pipelines on this machine: KFP's own local runner walks the graph, each container is a process of this Python instead.

A program of its own, because KFP keeps the settings of its local runner for the life of a process.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

COLOURS = re.compile(r"\x1b\[\d+m")


def run(file: Path, root: Path, project: Path, environ: dict[str, str]) -> str:
    """Run a compiled pipeline on the code of `project`, artifacts and cache below `root`; what it logged. Raises when the run fails."""
    path = os.pathsep.join([str(project / "src"), str(project)])
    inner = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environ}
    command = [sys.executable, __file__, str(file), str(root), json.dumps(inner)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = COLOURS.sub("", done.stdout)
    (root / "log.txt").write_text(said + done.stderr)
    if done.returncode:
        raise RuntimeError(said[-6000:] + done.stderr[-3000:])
    return said


def _process_handler(environ: dict[str, str]) -> type:
    from kfp.local import docker_task_handler, status, subprocess_task_handler

    class ProcessTaskHandler(docker_task_handler.DockerTaskHandler):
        """Runs the command of a container as a process."""

        def run(self) -> status.Status:
            program, *words = self.full_command
            command = [sys.executable if program == "python" else program, *words]
            code = subprocess_task_handler.run_local_subprocess(command, {**os.environ, **environ, **self.env_vars})
            return status.Status.SUCCESS if code == 0 else status.Status.FAILURE

    return ProcessTaskHandler


def task_output(channel: str, store: Any) -> Any:
    """The output that a condition asks for, whatever it is called: `pipelinechannel--TASK-OUTPUT`.

    kfp 2.17's local runner sees outputs called `Output` alone, a name that it forbids to containers, and takes all others for false.
    """
    words = channel.removeprefix("pipelinechannel--").split("-")
    for cut in range(1, len(words)):
        with contextlib.suppress(ValueError):
            return store.get_task_output("-".join(words[:cut]), "-".join(words[cut:]))
    return None


def _main(file: str, root: str, environ: str) -> None:
    from kfp import components, local
    from kfp.local import docker_task_handler
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

    ConditionEvaluator._resolve_pipeline_channel = staticmethod(task_output)
    docker_task_handler.DockerTaskHandler = _process_handler(json.loads(environ))
    os.chdir(root)
    local.init(local.DockerRunner(), pipeline_root=f"{root}/artifacts", cache_root=f"{root}/cache", enable_caching=True)
    components.load_component_from_file(file)()


if __name__ == "__main__":
    _main(*sys.argv[1:])
