"""A cluster that lacks nothing `unimed doctor` looks for, and an MLflow that asks for a password: fakes on loopback sockets."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipelines.namespace import MLFLOW_KEYS

NAME = "unimed"
OWN = f"/api/v1/namespaces/{NAME}"
RUNTIME = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/unimed-torch"
NETWORK = f"/apis/networking.k8s.io/v1/namespaces/{NAME}/networkpolicies"
SECRET_VALUE = "canary-of-a-secret"
GPU = "nvidia.com/gpu"
Reply = tuple[int, Any]


@contextmanager
def web(answer: Callable[[str, str, bytes, str], Reply]) -> Iterator[str]:
    """The address of a server whose replies `answer` gives to method, path, body and authorization."""

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, said = answer(self.command, self.path.split("?")[0], body, self.headers.get("Authorization", ""))
            data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _handle  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Kubernetes:
    """What a cluster holds by path, which paths this account may not see, and what runs may not do."""

    def __init__(self) -> None:
        self.forbidden: set[str] = set()
        self.refused: set[str] = set()
        self.login = 200
        self.asked: list[str] = []
        self.held: dict[str, Any] = {
            "/version": {"major": "1", "minor": "34+", "gitVersion": "v1.34.2"},
            f"/api/v1/namespaces/{NAME}": {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
            f"{OWN}/serviceaccounts/unimed-runner": {"kind": "ServiceAccount"},
            f"{OWN}/serviceaccounts/unimed-trainer": {"kind": "ServiceAccount"},
            f"{OWN}/secrets/unimed-store": filled("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            f"{OWN}/secrets/unimed-tracking": filled("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
            f"{OWN}/secrets/unimed-mlflow": filled(*MLFLOW_KEYS),
            f"/apis/apps/v1/namespaces/{NAME}/deployments/unimed-mlflow": {"kind": "Deployment"},
            f"{OWN}/resourcequotas": {"items": [{"spec": {"hard": {"limits.memory": "1Ti", f"requests.{GPU}": "8"}}}]},
            NETWORK: {"items": [{"metadata": {"name": "store"}, "spec": {"to": "10.0.0.0/8"}}]},
            "/apis/trainer.kubeflow.org": {"kind": "APIGroup"},
            "/apis/jobset.x-k8s.io": {"kind": "APIGroup"},
            "/openapi/v3/apis/trainer.kubeflow.org/v1alpha1": {"TrainJobSpec": {"properties": {"runtimePatches": {}}}},
            RUNTIME: {"kind": "ClusterTrainingRuntime"},
            "/api/v1/nodes": {"items": [node("a", "4"), node("b", "4")]},
        }

    def answer(self, method: str, path: str, body: bytes, authorization: str) -> Reply:
        """The reply to one request."""
        self.asked.append(f"{method} {path}")
        if self.login != 200:
            return self.login, {"kind": "Status", "message": "Unauthorized"}
        if path in self.forbidden:
            return 403, {"kind": "Status", "message": f"cannot get {path}"}
        if method == "POST":
            spec = json.loads(body)["spec"]
            asked = spec["resourceAttributes"]
            right = f"{asked['verb']} {asked['resource']}" + (f"/{asked['subresource']}" if asked["subresource"] else "")
            return 201, {"status": {"allowed": right not in self.refused or "user" not in spec}}
        return (200, self.held[path]) if path in self.held else (404, {"kind": "Status", "message": f"{path} not found"})


class Mlflow:
    """A tracking server that asks for a password."""

    def __init__(self) -> None:
        self.version, self.strangers, self.password = "3.17.2", 401, SECRET_VALUE

    def answer(self, method: str, path: str, body: bytes, authorization: str) -> Reply:
        """The reply to one request."""
        if path == "/health":
            return 200, "OK"
        known = authorization == "Basic " + base64.b64encode(f"ann:{self.password}".encode()).decode()
        return (200, self.version) if known else (self.strangers, "who is it")


def filled(*keys: str) -> dict[str, Any]:
    """A Secret with these keys."""
    return {"data": dict.fromkeys(keys, base64.b64encode(SECRET_VALUE.encode()).decode())}


def node(name: str, gpus: str, **spec: Any) -> dict[str, Any]:
    """A node with that many GPUs."""
    return {"metadata": {"name": name, "labels": {"pool": name}}, "spec": spec, "status": {"allocatable": {GPU: gpus}}}
