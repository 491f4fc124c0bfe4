"""Writes one run to MLflow, in a process of its own fed by tracking.py. The only file that imports mlflow.

A failure of MLflow is one warning; the run beside it never learns of it.
"""

import functools
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from unimed import environment, mlflow_server, sidecar
from unimed.job import Job, in_pod
from unimed.settings import Tracking

FLUSH_SECONDS = 10.0
BATCH = 1000
"""MLflow takes at most this many metrics in one call, and a tenth of it in params."""

UNNAMABLE = re.compile(r"[^\w\-. :/]")
"""What MLflow takes in no name of a param, such as the parentheses of a ladder's row that the gate holds against a bound."""

SEALED = "manifest_sha256"
"""Tag of a version: the hash of its manifest.json, which names all other files with theirs. A release finds its parts by it."""

P = ParamSpec("P")
logger = logging.getLogger("tracking")


def _forgiving(method: Callable[Concatenate["_Recorder", P], None]) -> Callable[Concatenate["_Recorder", P], None]:
    """Call a method only while MLflow answers; its first failure is one warning and the end of MLflow for this run."""

    @functools.wraps(method)
    def attempt(recorder: "_Recorder", *args: P.args, **kwargs: P.kwargs) -> None:
        if not recorder.is_tracked:
            return
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            method(recorder, *args, **kwargs)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            recorder.lose(str(error).strip().splitlines()[0])

    return attempt


class _Recorder:
    """The MLflow run of a job, under the parent of its `dvc repro`; each method answers one message."""

    def __init__(self, job: Job, settings: Tracking, repro: str, revision: str, milliseconds: int):
        self.job, self.settings, self.repro, self.started = job, settings, repro, milliseconds
        self.uri = mlflow_server.address(settings)
        self.about = {"git_revision": revision, **mlflow_server.TAGS} if revision else mlflow_server.TAGS
        self.parent = ""
        self.pending: list[Any] = []
        self.flushed_at = time.monotonic()
        self.is_tracked = True

    def lose(self, reason: str) -> None:
        """Go on without MLflow."""
        self.is_tracked = False
        warn(reason, self.job)

    @_forgiving
    def start(self) -> None:
        """Open the MLflow run and record what is known before any work: params, tags, inputs."""
        from mlflow import MlflowClient
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        self.client = MlflowClient(self.uri, self.uri)
        self.run_id = os.environ.get("MLFLOW_RUN_ID") or self._child()
        tags = {"stage": self.job.stage, "recipe_key": self.job.key, **self.about}
        params = [Param(UNNAMABLE.sub("_", key), str(value)) for key, value in self.job.numbers.items()]
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        for first in range(0, len(params), BATCH // 10):
            self.client.log_batch(self.run_id, params=params[first : first + BATCH // 10])
        context = [InputTag("mlflow.data.context", self.job.stage)]
        data = [Dataset(path, digest, "local", json.dumps({"uri": path})) for path, digest in self.job.inputs.items()]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, context) for dataset in data])

    def _child(self) -> str:
        number = mlflow_server.experiment(self.client, self.settings.experiment)
        self.parent = self._first(number) or self._open_parent(number)
        self.client.update_run(self.parent, status="RUNNING")
        tags = {"mlflow.parentRunId": self.parent}
        return self.client.create_run(number, self.started, tags, self.job.stage).info.run_id

    def _first(self, number: str) -> str:
        """The parent run of this one; of several, which pods that start together may open, the first."""
        wanted, order = f"tags.`unimed.repro` = '{self.repro}'", ["attributes.start_time ASC", "attributes.run_id ASC"]
        found = self.client.search_runs([number], wanted, max_results=1, order_by=order)
        return found[0].info.run_id if found else ""

    def _open_parent(self, number: str) -> str:
        tags = {"unimed.repro": self.repro, **self.about}
        now = int(time.time() * 1000)  # in the order of making, so that all who look see the same first
        made = self.client.create_run(number, now, tags, "kubeflow run" if in_pod() else "dvc repro").info.run_id
        if (first := self._first(number)) != made:
            self.client.delete_run(made)
        return first

    def log(self, metrics: dict[str, float], step: int, milliseconds: int) -> None:
        """Take in the metrics of a step; they are sent in batches."""
        self.pending += [(key, value, milliseconds, step) for key, value in metrics.items()]
        if len(self.pending) >= BATCH or time.monotonic() - self.flushed_at > FLUSH_SECONDS:
            self.flush()

    @_forgiving
    def flush(self) -> None:
        """Send MLflow what it has not got yet."""
        from mlflow.entities import Metric

        while self.pending:
            batch, self.pending = self.pending[:BATCH], self.pending[BATCH:]
            self.client.log_batch(self.run_id, metrics=[Metric(*entry) for entry in batch])
        self.flushed_at = time.monotonic()

    @_forgiving
    def keep(self, file: str, folder: str) -> None:
        """Copy a file to the run's artifacts."""
        self.client.log_artifact(self.run_id, file, folder)

    @_forgiving
    def register(self, name: str, folder: str) -> None:
        """Make a folder the next version of a registered model unless one with this recipe key exists."""
        key = self.job.key
        mlflow_server.model(self.client, name)
        if same := self.client.search_model_versions(f"name = '{name}' and tags.recipe_key = '{key}'"):
            logger.info("%s version %s already comes from recipe %s", name, same[0].version, key)
            return
        self.client.log_artifacts(self.run_id, folder, "model")
        source = f"{self.client.get_run(self.run_id).info.artifact_uri}/model"
        tags = {"recipe_key": key, "stage": self.job.stage, **self.about, **_sealed(Path(folder))}
        version = self.client.create_model_version(name, source, self.run_id, tags)
        logger.info("registered %s version %s", name, version.version)

    @_forgiving
    def end(self, status: str) -> None:
        """Close the run unless it was handed to us; the parent shows the worst end of its stages so far."""
        self.flush()
        if not self.parent:
            return
        self.client.set_terminated(self.run_id, status)
        if status != "FINISHED":
            self.client.set_tag(self.parent, "failed_stage", self.job.stage)
        failed = "failed_stage" in self.client.get_run(self.parent).data.tags
        self.client.set_terminated(self.parent, "FAILED" if failed else "FINISHED")


def _sealed(folder: Path) -> dict[str, str]:
    """The tag with the hash of a folder's manifest, if it has one."""
    manifest = folder / "manifest.json"
    return {SEALED: hashlib.sha256(manifest.read_bytes()).hexdigest()} if manifest.is_file() else {}


def warn(reason: str, job: Job) -> None:
    """Say, once a run, that MLflow has no part in it."""
    logger.warning("MLflow is not used (%s): the run goes on, its metrics are kept in %s", reason, job.folder)


def main() -> None:
    """Record what a run sends; a run that stops sending without an end was killed."""
    environment.settle()
    environment.start_logging()
    received = sidecar.messages()
    first = next(received)
    about = {name: first[name] for name in ("repro", "revision", "milliseconds")}
    recorder = _Recorder(Job(**first["job"]), Tracking(**first["settings"]), **about)
    recorder.start()
    for message in received:
        action = message.pop("do")
        getattr(recorder, action)(**message)
        if action == "end":
            return
    recorder.end("KILLED")


if __name__ == "__main__":
    main()
