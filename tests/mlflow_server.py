"""A real MLflow server for the length of a test."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import wait_until

USER, PASSWORD = "admin", "canary-of-the-admin"
LOGIN = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
"""What a client needs for a server with a login."""
START_SECONDS = 300
"""Which a busy machine takes."""


def is_well(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server on this port says that it is well to who calls it by this name."""
    with suppress(OSError):
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health", headers={"Host": f"{host}:{port}"})
        return connection.getresponse().status == 200
    return False


@contextmanager
def serving(folder: Path, login: bool = False, database: str = "", artifacts: str = "") -> Iterator[str]:
    """A real MLflow server on a free port of this machine; with `login` for who knows it, and for sources in its own store alone."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_port
    uri = f"http://127.0.0.1:{port}"
    kept = {
        "--backend-store-uri": database or f"sqlite:///{folder}/server.db",
        "--artifacts-destination": artifacts or f"{folder}/artifacts",
    }
    place = [word for pair in kept.items() for word in pair]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *place]
    environ = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # thirteen processes fewer
    if login:
        command += ["--app-name", "basic-auth"]
        environ |= _login(folder)
    with (folder / "server.log").open("w") as log, subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log) as server:
        try:
            wait_until(lambda: server.poll() is not None or is_well(port), START_SECONDS)
            yield uri
        finally:
            server.terminate()


@contextmanager
def known(folder: Path) -> Iterator[str]:
    """A real MLflow server with a login that this process has for the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOGIN.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with serving(folder, login=True) as uri:
            yield uri


def _login(folder: Path) -> dict[str, str]:
    lines = (
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = sqlite:///{folder}/users.db",
        f"admin_username = {USER}",
        f"admin_password = {PASSWORD}",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds = 3600",  # a right password is hashed once and not at each request, which takes longer than all else
    )
    (folder / "basic_auth.ini").write_text("\n".join(lines) + "\n")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "canary-of-a-key",
        "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": "^mlflow-artifacts:/",
    }
