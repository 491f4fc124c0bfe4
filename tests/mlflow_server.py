"""A real MLflow server for the length of a test."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def _wait_for(port: int) -> None:
    """Return when the server says that it is well, after a minute in any case."""
    for _ in range(600):
        with suppress(OSError):
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A real MLflow server on a free port of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_port
    uri = f"http://127.0.0.1:{port}"
    place = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *place]
    environ = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # thirteen processes fewer
    with (folder / "server.log").open("w") as log, subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log) as server:
        try:
            _wait_for(port)
            yield uri
        finally:
            server.terminate()
