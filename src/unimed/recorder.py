"""Writes one run to MLflow, in a process of its own fed by tracking.py, or afterwards from its outbox.

Whatever it tells MLflow may be told again and is there once. A failure of MLflow is one warning; the run beside it never learns of it.
"""

import hashlib
import itertools
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimed import environment, mlflow_server, sidecar
from unimed.job import Job, in_pod
from unimed.outbox import Outbox
from unimed.settings import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FLUSH_SECONDS = 10.0
BATCH = 1000
"""MLflow takes at most this many metrics in one call, and a tenth of it in params."""

UNNAMABLE = re.compile(r"[^\w\-. :/]")
"""What MLflow takes in no name of a param, such as the parentheses of a ladder's row that the gate holds against a bound."""

SEALED = "manifest_sha256"
"""Tag of a version: the hash of its manifest.json, which names all other files with theirs. A release finds its parts by it."""

SENT = "unimed.outbox"
"""Tag of a run: the name of the outbox that it was sent from."""

logger = logging.getLogger("tracking")


class _Recorder:
    """The MLflow run of a job, under the parent of its `dvc repro`; each method answers one message."""

    def __init__(self, client: "MlflowClient", outbox: Outbox, start: dict[str, Any]):
        self.client, self.outbox = client, outbox
        self.job, self.experiment = Job(**start["job"]), Tracking(**start["settings"]).experiment
        self.repro, self.started, self.given = start["repro"], start["milliseconds"], start["run_id"]
        self.tags = {**start["tags"], **mlflow_server.TAGS}
        self.parent = ""
        self.pending: list[Any] = []
        self.flushed_at, self.latest, self.ended = time.monotonic(), self.started, False

    def start(self) -> None:
        """Open the MLflow run and record what is known before any work: params, tags, inputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        self.run_id = self.given or self._child()
        params = [Param(UNNAMABLE.sub("_", key), str(value)) for key, value in self.job.numbers.items()]
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in self.tags.items()])
        for first in range(0, len(params), BATCH // 10):
            self.client.log_batch(self.run_id, params=params[first : first + BATCH // 10])
        context = [InputTag("mlflow.data.context", self.job.stage)]
        data = [Dataset(path, digest, "local", json.dumps({"uri": path})) for path, digest in self.job.inputs.items()]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, context) for dataset in data])

    def _child(self) -> str:
        number = mlflow_server.experiment(self.client, self.experiment)
        self.parent = self._first(number, "unimed.repro", self.repro) or self._open_parent(number)
        self.client.update_run(self.parent, status="RUNNING")
        if begun := self._first(number, SENT, self.outbox.name):
            return begun
        tags = {"mlflow.parentRunId": self.parent, SENT: self.outbox.name}
        return self.client.create_run(number, self.started, tags, self.job.stage).info.run_id

    def _first(self, number: str, tag: str, value: str) -> str:
        """The run with that tag; of several parents, which pods that start together may open, the first."""
        wanted, order = f"tags.`{tag}` = '{value}'", ["attributes.start_time ASC", "attributes.run_id ASC"]
        found = self.client.search_runs([number], wanted, max_results=1, order_by=order)
        return found[0].info.run_id if found else ""

    def _open_parent(self, number: str) -> str:
        about = {key: value for key, value in self.tags.items() if key in ("git_revision", "image", *mlflow_server.TAGS)}
        now = int(time.time() * 1000)  # in the order of making, so that all who look see the same first
        name = "kubeflow run" if in_pod() else "dvc repro"
        made = self.client.create_run(number, now, {"unimed.repro": self.repro, **about}, name).info.run_id
        if (first := self._first(number, "unimed.repro", self.repro)) != made:
            self.client.delete_run(made)
        return first

    def log(self, metrics: dict[str, float], step: int, milliseconds: int) -> None:
        """Take in the metrics of a step; they are sent in batches."""
        self.latest = milliseconds
        self.pending += [(key, value, milliseconds, step) for key, value in metrics.items()]
        if len(self.pending) >= BATCH or time.monotonic() - self.flushed_at > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        """Send MLflow what it has not got yet; it takes in once what it is told twice."""
        from mlflow.entities import Metric

        while self.pending:
            batch, self.pending = self.pending[:BATCH], self.pending[BATCH:]
            self.client.log_batch(self.run_id, metrics=[Metric(*entry) for entry in batch])
        self.flushed_at = time.monotonic()

    def keep(self, file: str, folder: str) -> None:
        """Copy a file of the outbox to the run's artifacts."""
        self.client.log_artifact(self.run_id, str(self.outbox.folder / file), folder)

    def register(self, name: str, folder: str) -> None:
        """Make a folder of the outbox the next version of a registered model unless one with this recipe key exists."""
        made = self.outbox.folder / folder

        def make() -> "ModelVersion":
            self.client.log_artifacts(self.run_id, str(made), "model")
            source = f"{self.client.get_run(self.run_id).info.artifact_uri}/model"
            return self.client.create_model_version(name, source, self.run_id, self.tags | sealed(made))

        version = mlflow_server.version(self.client, name, "recipe_key", self.job.key, make)
        news = "registered %s version %s" if version.run_id == self.run_id else "%s version %s already comes from recipe " + self.job.key
        logger.info(news, name, version.version)

    def end(self, status: str, milliseconds: int) -> None:
        """Close the run unless it was handed to us; the parent shows the worst end of its stages so far."""
        self._flush()
        self.ended = True
        if not self.parent:
            return
        self.client.set_terminated(self.run_id, status, milliseconds)
        if status != "FINISHED":
            self.client.set_tag(self.parent, "failed_stage", self.job.stage)
        failed = "failed_stage" in self.client.get_run(self.parent).data.tags
        self.client.set_terminated(self.parent, "FAILED" if failed else "FINISHED")


def sealed(folder: Path) -> dict[str, str]:
    """Tags with the hashes of a model folder's manifest and of the base model it names, where it has them."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return {}
    said = manifest.read_bytes()
    base = json.loads(said).get("parents", {}).get("foundation", {}).get("sha256")
    return {SEALED: hashlib.sha256(said).hexdigest()} | ({"base_model_sha256": base} if base else {})


def deliver(client: "MlflowClient", outbox: Outbox, messages: Iterator[dict[str, Any]]) -> None:
    """Tell MLflow the messages of a run, of which it may know some; a run that stopped sending without an end was killed."""
    if (start := next(messages, None)) is None:
        return
    recorder = _Recorder(client, outbox, start)
    recorder.start()
    for message in messages:
        getattr(recorder, message.pop("do"))(**message)
    if not recorder.ended:
        recorder.end("KILLED", recorder.latest)


def warn(reason: str, job: Job) -> None:
    """Say, once a run, that MLflow does not get it now."""
    kept = "what MLflow would have got goes with this pod" if in_pod() else f"metrics are in {job.folder}, `unimed sync` sends the rest"
    logger.warning("MLflow is not used (%s): the run goes on, %s", reason, kept)


def main() -> None:
    """Record what a run sends, and discard its outbox once MLflow has all of it."""
    environment.settle()
    environment.start_logging()
    received = sidecar.messages()
    first = next(received)
    outbox = Outbox(Path(first.pop("outbox")))
    with outbox.held() as mine:
        if not mine:
            return
        uri = mlflow_server.address(Tracking(**first["settings"]))
        from mlflow import MlflowClient

        try:
            deliver(MlflowClient(uri, uri), outbox, itertools.chain([first], received))
        except mlflow_server.failures() as error:
            warn(mlflow_server.told(error), Job(**first["job"]))
            return
        outbox.discard()


if __name__ == "__main__":
    main()
