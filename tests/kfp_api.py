"""A small Kubeflow Pipelines API on a loopback socket: what its v2beta1 API stores, answers and refuses, as far as it is asked here.

Answers have the shape of the server of KFP 2.17 as read in its source (backend/src/apiserver): tasks are the nodes of an Argo workflow,
without a message; a run of a version refers to it and holds no pipeline; the upload refuses in other words than the rest.
"""

import email
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

Answer = tuple[int, Any]


def node(name: str, state: str, start: int = 0, end: int = 0, error: str = "") -> dict[str, Any]:
    """A node of a workflow as a task of a run; times are seconds into the run, 0 for the end of one that goes on."""
    moments = {"start_time": f"2026-01-01T00:00:{start:02d}Z"} | ({"end_time": f"2026-01-01T00:00:{end:02d}Z"} if end else {})
    told = {"error": {"code": 13, "message": error}} if error else {}
    return {"task_id": f"id-{name}", "display_name": name, "state": state, **moments, **told}


class KfpApi:
    """What the server holds, and what it does next: `faults` are answers by "METHOD path", each given once before the true one."""

    def __init__(self) -> None:
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.health: Any = {"commit_sha": "c", "tag_name": "2.17.3", "multi_user": False, "pipeline_store": "database"}
        self.token = ""
        self.faults: dict[str, list[Answer]] = {}
        self.course: list[dict[str, Any]] = [{"state": "SUCCEEDED"}]
        """How a run looks at one reading after another; the last for ever."""
        self.asked: list[str] = []
        self.before_write: threading.Barrier | None = None
        """Two clients meet here before either makes something, so that both have found nothing."""
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, method: str, path: str, query: dict[str, str], body: Any, token: str) -> Answer:
        """The status and JSON of one request; text stands for a page."""
        self.asked.append(f"{method} {path}")
        if self.token and token != f"Bearer {self.token}":
            return refusal(401, f"Unauthenticated: {token or 'no token'}")
        if fault := self.faults.get(f"{method} {path}"):
            return fault.pop(0)
        if method == "POST" and self.before_write and self.before_write.n_waiting < 2:
            self.before_write.wait(5)
        with self.lock:
            return self._route(method, path, query, body)

    def _route(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        match method, path.removeprefix("/apis/v2beta1").strip("/").split("/"):
            case "GET", ["healthz"]:
                return 200, self.health
            case "GET", ["pipelines", "names", name]:
                found = [one for one in self.pipelines.values() if one["name"] == name]
                return (200, found[0]) if found else refusal(404, f"Pipeline {name} not found.")
            case "POST", ["pipelines"]:
                return self._made(self.pipelines, "pipeline_id", "name", body)
            case "GET", ["pipelines", _, "versions"]:
                return 200, {"pipeline_versions": _matching(self.versions, query)}
            case "POST", ["pipelines", "upload_version"]:
                return self._uploaded(query, body)
            case "GET", ["pipelines", _, "versions", version]:
                return (200, self.versions[version]) if version in self.versions else refusal(404, f"Version {version} not found.")
            case "GET", ["experiments"]:
                if "namespace" in query and not self.health["multi_user"]:
                    return refusal(400, "In single-user mode, ListExperiment cannot filter by namespace.")
                return 200, {"experiments": _matching(self.experiments, query)}
            case "POST", ["experiments"]:
                return self._made(self.experiments, "experiment_id", "display_name", body)
            case "POST", ["runs"]:
                return self._made(self.runs, "run_id", "", body)
            case "GET", ["runs", run]:
                return self._run(run)
        return 404, "404 page not found"

    def _made(self, kind: dict[str, dict[str, Any]], key: str, name: str, body: dict[str, Any]) -> Answer:
        if name and any(one[name] == body[name] for one in kind.values()):
            return refusal(409, f"Already exist error: {body[name]}")
        number = f"{key[0]}{len(kind)}"
        kind[number] = {**body, key: number}
        return 200, kind[number]

    def _uploaded(self, query: dict[str, str], body: bytes) -> Answer:
        documents = list(yaml.safe_load_all(body))
        if not isinstance(documents[0], dict) or "root" not in documents[0]:
            return 400, {"error_message": "Failed to create a pipeline version: invalid pipeline spec", "error_details": "long\nstack"}
        spec = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        about = {
            "name": query["name"],
            "display_name": query["name"],
            "description": query["description"],
            "pipeline_id": query["pipelineid"],
        }
        status, made = self._made(self.versions, "version_id", "display_name", {**about, "pipeline_spec": spec})
        if status != 200:  # the upload does not say why
            return status, {"error_message": "Failed to create a pipeline version", "error_details": ""}
        made["pipeline_version_id"] = made["version_id"]
        return 200, made

    def _run(self, run: str) -> Answer:
        if run not in self.runs:
            return refusal(404, f"Run {run} not found.")
        now = self.course.pop(0) if len(self.course) > 1 else self.course[0]
        details = {"run_details": {"task_details": now["tasks"]}} if "tasks" in now else {}
        return 200, {**self.runs[run], **details, **{key: value for key, value in now.items() if key != "tasks"}}


def refusal(status: int, message: str) -> Answer:
    """A refusal in the words of the API."""
    return status, {"error": f"wrapped: {message}", "code": 3, "message": f"wrapped: {message}", "details": [{"error_message": message}]}


def _matching(kind: dict[str, dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    [predicate] = json.loads(query["filter"])["predicates"]
    assert predicate["operation"] == "EQUALS"
    return [one for one in kind.values() if one[predicate["key"]] == predicate["stringValue"]]


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take out of the environment what a developer may have set for a server of their own."""
    for name in ("KFP_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_UI_ENDPOINT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def serving() -> Iterator[KfpApi]:
    """A fresh API at `url` for as long as the block runs."""
    api = KfpApi()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            parts = urlsplit(self.path)
            raw, kind = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.headers.get("Content-Type", "")
            if kind.startswith("multipart"):
                [part] = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw).get_payload()
                body = part.get_payload(decode=True)
            else:
                body = json.loads(raw or "null")
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            status, answer = api.answer(self.command, parts.path, query, body, self.headers.get("Authorization", ""))
            if status == 0:  # the connection ends without an answer
                self.close_connection = True
                return
            text = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = _handle  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
