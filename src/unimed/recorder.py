"""Writes one run to MLflow, in a process of its own fed by tracking.py. The only file that imports mlflow.

A failure of MLflow is one warning; the run beside it never learns of it.
"""

import functools
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec
from urllib.parse import urlsplit

from unimed import environment, sidecar
from unimed.config import Tracking
from unimed.job import Job

CONNECT_SECONDS = 2.0
FLUSH_SECONDS = 10.0
BATCH = 1000
"""MLflow takes at most this many metrics in one call, and a tenth of it in params."""

NOTICE = {"research_use_only": "true"}

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
        self.uri = address(settings)
        self.about = {"git_revision": revision, **NOTICE} if revision else NOTICE
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
        params = [Param(key, str(value)) for key, value in self.job.numbers.items()]
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        for first in range(0, len(params), BATCH // 10):
            self.client.log_batch(self.run_id, params=params[first : first + BATCH // 10])
        context = [InputTag("mlflow.data.context", self.job.stage)]
        data = [Dataset(path, digest, "local", json.dumps({"uri": path})) for path, digest in self.job.inputs.items()]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, context) for dataset in data])

    def _child(self) -> str:
        experiment = self.client.get_experiment_by_name(self.settings.experiment)
        place = Path("mlartifacts").resolve().as_uri() if self.uri.startswith("sqlite:") else None
        number = experiment.experiment_id if experiment else self.client.create_experiment(self.settings.experiment, place)
        if found := self.client.search_runs([number], f"tags.`unimed.repro` = '{self.repro}'", max_results=1):
            self.parent = found[0].info.run_id
            self.client.update_run(self.parent, status="RUNNING")
        else:
            tags = {"unimed.repro": self.repro, **self.about}
            self.parent = self.client.create_run(number, self.started, tags, "dvc repro").info.run_id
        tags = {"mlflow.parentRunId": self.parent}
        return self.client.create_run(number, self.started, tags, self.job.stage).info.run_id

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
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name, NOTICE, "For research only: not a medical device, not for clinical use.")
        if same := self.client.search_model_versions(f"name = '{name}' and tags.recipe_key = '{key}'"):
            logger.info("%s version %s already comes from recipe %s", name, same[0].version, key)
            return
        self.client.log_artifacts(self.run_id, folder, "model")
        source = f"{self.client.get_run(self.run_id).info.artifact_uri}/model"
        version = self.client.create_model_version(name, source, self.run_id, {"recipe_key": key, "stage": self.job.stage, **self.about})
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


def latest_versions(settings: Tracking) -> dict[str, str]:
    """The newest version of each registered model, by name; empty when the tracking server is down."""
    uri = address(settings)
    if refusal(uri):
        return {}
    from mlflow import MlflowClient

    newest: dict[str, int] = {}
    for version in MlflowClient(uri, uri).search_model_versions():
        newest[version.name] = max(int(version.version), newest.get(version.name, 0))
    return {name: str(number) for name, number in sorted(newest.items())}


def address(settings: Tracking) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, else the settings; a server gets one retry, so that nobody waits for a dead one."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    return os.environ.get("MLFLOW_TRACKING_URI") or settings.uri


def refusal(uri: str) -> str:
    """Why a tracking server takes no connection, asked without importing mlflow; empty when it does, or when the address is a file."""
    parts = urlsplit(uri)
    if not parts.scheme.startswith("http") or not parts.hostname:
        return ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        return f"{parts.hostname}:{port} does not answer: {error}"
    return ""


def warn(reason: str, job: Job) -> None:
    """Say, once a run, that MLflow has no part in it."""
    logger.warning("MLflow is not used (%s): the run goes on, its metrics are kept in runs/%s", reason, job.name)


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
