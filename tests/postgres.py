"""A real PostgreSQL for the length of a test, where one is installed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@contextmanager
def serving() -> Iterator[str]:
    """The address of an empty database, for MLflow; skips the test where PostgreSQL is not installed."""
    if not shutil.which("pg_config"):
        pytest.skip("NOT CHECKED: PostgreSQL is not installed")
    found = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found, "initdb").exists():
        pytest.skip("NOT CHECKED: PostgreSQL's server is not installed")
    owner = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_port
    # Not in the test's own folder, which the other user may not enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if owner:
            shutil.chown(folder, owner)
        initdb = [f"{found}/initdb", "--pgdata", f"{folder}/data", "--username", "mlflow", "--auth", "trust", "--encoding", "UTF8"]
        subprocess.run(initdb, cwd=folder, user=owner, check=True, capture_output=True)
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        control = [f"{found}/pg_ctl", "--pgdata", f"{folder}/data", "--wait"]
        subprocess.run(
            [*control, "--log", f"{folder}/log", "-o", options, "start"], cwd=folder, user=owner, check=True, capture_output=True
        )
        try:
            yield f"postgresql+psycopg://mlflow@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "--mode", "immediate", "stop"], cwd=folder, user=owner, check=True, capture_output=True)
