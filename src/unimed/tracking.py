"""Runs, metrics and registered models, as a component sees them. Metrics always reach a local file, and MLflow while it can be reached.

MLflow is written to by a process beside the run (recorder.py): the run neither waits for it nor fails with it.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unimed import job as jobs
from unimed import mlflow_server, outputs, recorder, sidecar
from unimed.job import Job
from unimed.settings import Tracking

REPORTS = (".html", ".json")
"""Endings of the files in an output folder that are kept with the run."""

MAX_REPORT_BYTES = 20 * 2**20
CLOSE_SECONDS = 120.0
"""How long the end of a run waits for MLflow to take what is left."""

logger = logging.getLogger("tracking")


class _Open:
    """The run that is going on: its local file, and the process that writes to MLflow unless its server is down."""

    def __init__(self, job: Job, settings: Tracking):
        self.folder = job.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mlflow: sidecar.Sidecar | None = None
        if reason := mlflow_server.refusal(mlflow_server.address(settings)):
            recorder.warn(reason, job)
            return
        self.mlflow = sidecar.Sidecar("unimed.recorder")
        about = {"repro": jobs.repro(), "revision": jobs.revision(), "milliseconds": int(time.time() * 1000)}
        self.send(do="start", job=asdict(job), settings=settings.model_dump(), **about)

    def send(self, **message: Any) -> None:
        """Tell MLflow's process, if there is one."""
        if self.mlflow:
            self.mlflow.send(**message)

    def close(self, status: str) -> None:
        """Say how the run ended and wait until MLflow has it."""
        self.send(do="end", status=status)
        if self.mlflow and not self.mlflow.close(CLOSE_SECONDS):
            logger.warning("MLflow did not take the end of this run; its metrics are kept in %s", self.folder)


_open: list[_Open] = []


@contextmanager
def follow(job: Job, settings: Tracking) -> Iterator[None]:
    """Keep a run open around the block: metrics in runs/<stage>-<recipe key>/metrics.jsonl and, with all else, in MLflow.

    With MLFLOW_RUN_ID set it writes to that run and leaves its end to whoever started it. Of several processes only the leader tracks.
    """
    if not outputs.is_leader():
        yield
        return
    run = _Open(job, settings)
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
        moment = time.time()
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "time": round(moment, 3), **numbers}) + "\n")
        run.send(do="log", metrics=numbers, step=step, milliseconds=int(moment * 1000))


def keep_reports(folders: dict[str, Path]) -> None:
    """Keep the HTML and JSON files at the top of output folders with the open run, each under the folder's flag."""
    for name, folder in folders.items():
        for file in sorted(folder.glob("*")):
            if file.suffix in REPORTS and file.stat().st_size <= MAX_REPORT_BYTES:
                for run in _open:
                    run.send(do="keep", file=str(file), folder=name)


def register(name: str, folder: Path) -> None:
    """Make `folder` the next version of the registered model `name`, once per recipe key; a second time only says so."""
    for run in _open:
        run.send(do="register", name=name, folder=str(folder))
