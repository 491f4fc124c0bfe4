"""Runs, metrics and registered models, as a component sees them. Metrics always reach a local file, and MLflow while it can be reached.

MLflow is written to by a process beside the run (recorder.py): the run neither waits for it nor fails with it. All it is told is kept in
an outbox until MLflow has it.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unimed import job as jobs
from unimed import mlflow_server, outputs, recorder, sidecar
from unimed.job import Job
from unimed.outbox import Outbox
from unimed.settings import Tracking

REPORTS = (".html", ".json")
"""Endings of the files in an output folder that are kept with the run."""

MAX_REPORT_BYTES = 20 * 2**20
CLOSE_SECONDS = 120.0
"""How long the end of a run waits for MLflow to take what is left."""

logger = logging.getLogger("tracking")


class _Open:
    """The run that is going on: its local file, its outbox, and the process that writes to MLflow unless its server is down."""

    def __init__(self, job: Job, settings: Tracking, outbox: Outbox):
        self.folder, self.outbox = job.folder, outbox
        about = {"repro": jobs.repro(), "tags": job.tags, "run_id": os.environ.get("MLFLOW_RUN_ID", "")}
        start = {"do": "start", "job": asdict(job), "settings": settings.model_dump(), **about, "milliseconds": _now()}
        outbox.add(start)
        self.mlflow: sidecar.Sidecar | None = None
        if reason := mlflow_server.refusal(mlflow_server.address(settings)):
            recorder.warn(reason, job)
            return
        self.mlflow = sidecar.Sidecar("unimed.recorder")
        self.mlflow.send(**start, outbox=str(outbox.folder))

    def send(self, **message: Any) -> None:
        """Keep a message for MLflow and tell its process, if there is one."""
        self.outbox.add(message)
        if self.mlflow:
            self.mlflow.send(**message)

    def send_file(self, path: Path, port: str, **message: Any) -> None:
        """Send a message about a file or folder as it is now, named to MLflow's process under `port`."""
        try:
            self.send(**message, **{port: self.outbox.hold(path)})
        except OSError as error:
            logger.warning("%s is not kept for MLflow: %s", path, error)

    def close(self, status: str) -> None:
        """Say how the run ended and wait until MLflow has it."""
        self.send(do="end", status=status, milliseconds=_now())
        if self.mlflow and not self.mlflow.close(CLOSE_SECONDS):
            logger.warning("MLflow did not take the end of this run; `unimed sync` sends it again from %s", self.outbox.folder)


_open: list[_Open] = []


@contextmanager
def follow(job: Job, settings: Tracking) -> Iterator[None]:
    """Keep a run open around the block: metrics in runs/<stage>-<recipe key>/metrics.jsonl and, with all else, in MLflow.

    With MLFLOW_RUN_ID set it writes to that run and leaves its end to whoever started it. Of several processes only the leader tracks.
    """
    if not outputs.is_leader():
        yield
        return
    outbox = Outbox.make(job.folder)
    with outbox.held():
        run = _Open(job, settings, outbox)
        _open.append(run)
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            _open.remove(run)
            run.close(status)


def log(metrics: dict[str, float], step: int) -> None:
    """Record metrics of an optimizer step in the open run; without one nothing happens."""
    numbers = {name: float(value) for name, value in metrics.items()}
    for run in _open:
        milliseconds = _now()
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "time": milliseconds / 1000, **numbers}) + "\n")
        run.send(do="log", metrics=numbers, step=step, milliseconds=milliseconds)


def keep_reports(folders: dict[str, Path]) -> None:
    """Keep the HTML and JSON files at the top of output folders with the open run, each under the folder's flag."""
    for name, folder in folders.items():
        for file in sorted(folder.glob("*")):
            if file.suffix in REPORTS and file.stat().st_size <= MAX_REPORT_BYTES:
                for run in _open:
                    run.send_file(file, "file", do="keep", folder=name)


def register(name: str, folder: Path) -> None:
    """Make `folder` the next version of the registered model `name`, once per recipe key; a second time only says so."""
    for run in _open:
        run.send_file(folder, "folder", do="register", name=name)


def _now() -> int:
    return int(time.time() * 1000)
