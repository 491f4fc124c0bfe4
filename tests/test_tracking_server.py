"""The MLflow of manifests/, started with the very words and variables that stand there; SQLite in place of PostgreSQL."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import mlflow
import mlflow_server
import pytest
import requests
import yaml
from mlflow.exceptions import MlflowException
from s3 import BUCKET, Service, moto_address, service  # noqa: F401  fixtures

from conftest import ROOT, wait_until
from pipelines import doctor
from pipelines.namespace import MLFLOW_KEYS

pytest.importorskip("flask_wtf", reason="NOT CHECKED: mlflow[auth], which the server needs, is not installed")
pytestmark = pytest.mark.slow

ADMIN, PASSWORD = "admin", "canary-of-the-admin"


@dataclass
class Server:
    """A running server, and what it writes."""

    url: str
    log: Path


def words(folder: Path, port: int, secret: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the Deployment, as the kubelet would make them of the Secret."""
    documents = yaml.safe_load_all((ROOT / "manifests/base/mlflow.yaml").read_text())
    pod = next(document for document in documents if document["kind"] == "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "AWS"))}
    for each in container["env"]:
        reference = each.get("valueFrom", {}).get("secretKeyRef", {})
        value = each.get("value") or secret.get(reference.get("key", ""), "" if reference else "unimed")
        env |= {each["name"]: value} if value else {}
    env |= {"HOME": str(folder), "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini")}
    arguments = [
        word.replace("$(NAMESPACE)", "unimed").replace("5000", str(port)).replace("--host=0.0.0.0", "--host=127.0.0.1")
        for word in container["args"]
    ]
    return [str(Path(sys.executable).parent / container["command"][0]), *container["command"][1:], *arguments], env


@pytest.fixture
def server(tmp_path: Path, service: Service) -> Iterator[Server]:  # noqa: F811
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    secret = {
        **dict.fromkeys(MLFLOW_KEYS, "canary-of-a-key"),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_S3_ENDPOINT_URL": service.endpoint,
        "AWS_REGION": "us-east-1",
    }
    lines = (
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = sqlite:///{tmp_path}/users.db",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
    )
    (tmp_path / "basic_auth.ini").write_text("\n".join(lines) + "\n")
    command, env = words(tmp_path, port, secret)
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        wait_until(
            lambda: process.poll() is not None or mlflow_server.is_well(port, "10.1.2.3"), mlflow_server.START_SECONDS
        )  # a kubelet's way
        assert process.poll() is None, log.read_text()
        yield Server(f"http://localhost:{port}", log)
    finally:
        process.terminate()
        process.wait(30)


def test_it_lets_in_whom_it_knows_and_keeps_files_in_the_bucket(
    server: Server,
    service: Service,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    search = f"{server.url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert requests.get(search, timeout=10).status_code == 401
    assert requests.get(search, auth=(ADMIN, "password1234"), timeout=10).status_code == 401
    assert requests.get(search, auth=(ADMIN, PASSWORD), headers={"Host": "evil.example"}, timeout=10).status_code == 403
    user = {"username": "pipeline", "password": "canary-of-the-pipeline"}
    made = requests.post(f"{server.url}/api/2.0/mlflow/users/create", json=user, auth=(ADMIN, PASSWORD), timeout=10)
    assert made.status_code == 200, made.text
    for name, value in {"URI": server.url, "USERNAME": user["username"], "PASSWORD": user["password"]}.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    assert [finding.ok for finding in doctor.mlflow(server.url)] == [True, True, True]

    # A file above the limit goes by presigned addresses, from client to bucket.
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(5 * 2**20))
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(5 * 2**20))
    (tmp_path / "weights.bin").write_bytes(os.urandom(6 * 2**20))
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("uni-medvlm")).info
    client.log_artifact(run.run_id, str(tmp_path / "weights.bin"), "model")
    kept = [found["Key"] for found in service.client.list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")["Contents"]]
    assert [key.rsplit("/", 1)[-1] for key in kept] == ["weights.bin"]
    assert "mpu/complete" in server.log.read_text()

    client.create_registered_model("unimed-expert")
    assert int(client.create_model_version("unimed-expert", f"{run.artifact_uri}/model", run.run_id).version) == 1
    with pytest.raises(MlflowException, match="Invalid model version source"):
        client.create_model_version("unimed-expert", f"s3://{BUCKET}/elsewhere", run.run_id)
