"""A Kubernetes API on a real socket, as far as launching needs it: TrainJobs to make, list, watch and delete, pods, their logs, events.

It moves when the client has looked at the pods: then the next step of `script` changes what there is. `fail` makes answers go wrong.
"""

import json
import threading
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

NAMESPACE = "uni-medvlm"
ROOT = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}}

Answer = Callable[["Handler"], None]


class KubernetesApi(ThreadingHTTPServer):
    """The state of a cluster and a server for it; `asked` lists the requests as a verb and, for a watch, the version it begins at."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.script: deque[Callable[[], Any]] = deque()
        self.failures: dict[str, deque[Answer]] = defaultdict(deque)
        self.asked: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.history: list[tuple[int, dict[str, Any]]] = []
        self.version = 100
        self.changed = threading.Condition(threading.RLock())
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients go away in the middle of a watch."""

    def kubeconfig(self, file: Path) -> Path:
        """Write what kubectl would use to reach this server."""
        entries = {
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": "tester", "user": {"token": "token"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "tester", "namespace": NAMESPACE}}],
        }
        file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "fake", **entries}))
        return file

    def fail(self, verb: str, *answers: Answer) -> None:
        """Answer the next requests of a verb (create, list, watch, delete, pods, pod, log, events) in these ways instead."""
        self.failures[verb].extend(answers)

    def put(self, job: dict[str, Any], kind: str = "MODIFIED") -> dict[str, Any]:
        """Store a TrainJob, under a new version, and tell those who watch."""
        with self.changed:
            self.version += 1
            kept = json.loads(json.dumps(job))
            kept["metadata"]["resourceVersion"] = str(self.version)
            self.jobs[kept["metadata"]["name"]] = kept
            self.history.append((self.version, {"type": kind, "object": kept}))
            self.changed.notify_all()
            return kept

    def add(self, job: dict[str, Any]) -> dict[str, Any]:
        """Store a new TrainJob as the API does on a create."""
        told = {"uid": str(uuid.uuid4()), "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        return self.put({**job, "metadata": {**job["metadata"], **told}}, "ADDED")

    def update(self, name: str, **status: Any) -> None:
        """Change the status of a TrainJob."""
        job = self.jobs[name]
        self.put({**job, "status": {**job.get("status", {}), **status}})

    def remove(self, name: str) -> None:
        """Take a TrainJob away and tell those who watch."""
        with self.changed:
            self.put(self.jobs[name], "DELETED")
            del self.jobs[name]

    def forget(self) -> None:
        """Lose the history, so that a watch from before now is too old."""
        with self.changed:
            self.version += 10
            self.history = [(self.version, GONE)]

    def step(self) -> None:
        """Do what the script says happens next."""
        if self.script:
            self.script.popleft()()


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    server: KubernetesApi
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the client's acknowledgement

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet."""

    def send(self, status: int, body: Any) -> None:
        """Answer with JSON, or with a text as it is."""
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, message: str) -> None:
        """Answer with a Status, as the API does."""
        self.send(status, {"kind": "Status", "status": "Failure", "code": status, "message": message})

    def body(self) -> dict[str, Any]:
        """What the client sent."""
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")

    def _handle(self) -> None:
        url = urlsplit(self.path)
        query, given = dict(parse_qsl(url.query)), self.body()
        verb, action = self._route(url.path, query, given)
        self.server.asked.append(f"watch {query['resourceVersion']}" if verb == "watch" else verb)
        if self.server.failures[verb]:
            self.server.failures[verb].popleft()(self)
        else:
            action()
        if verb == "pods":
            self.server.step()

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815  http.server looks for these names

    def _route(self, path: str, query: dict[str, str], given: dict[str, Any]) -> tuple[str, Callable[[], None]]:
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        match self.command, path.removeprefix(ROOT).removeprefix(CORE).split("/")[1:]:
            case "POST", []:
                return "create", lambda: self._create(given)
            case "GET", [] if "watch" in query:
                return "watch", lambda: self.watch(name, int(query["resourceVersion"]), float(query["timeoutSeconds"]))
            case "GET", []:
                return "list", lambda: self._list([job for job in self.server.jobs.values() if job["metadata"]["name"] == name])
            case "DELETE", [name]:
                return "delete", lambda: self._delete(name, given)
            case "GET", ["pods"]:
                label, value = query["labelSelector"].split("=")
                return "pods", lambda: self._list(
                    [pod for pod in self.server.pods.values() if pod["metadata"]["labels"].get(label) == value]
                )
            case "GET", ["pods", name]:
                return "pod", lambda: self._pod(name)
            case "GET", ["pods", name, "log"]:
                lines = self.server.logs.get(name, "").splitlines(keepends=True)
                return "log", lambda: self.send(200, "".join(lines[-int(query["tailLines"]) :]))
            case "GET", ["events"]:
                return "events", lambda: self._list(self.server.events)
        raise AssertionError(f"{self.command} {self.path}: no such request is expected")

    def _list(self, items: list[dict[str, Any]]) -> None:
        with self.server.changed:
            self.send(200, {"metadata": {"resourceVersion": str(self.server.version)}, "items": items})

    def _pod(self, name: str) -> None:
        if name not in self.server.pods:
            self.refuse(404, f'pods "{name}" not found')
        else:
            self.send(200, self.server.pods[name])

    def _create(self, job: dict[str, Any]) -> None:
        self.server.made.append(job)
        if job["metadata"]["name"] in self.server.jobs:
            self.refuse(409, f'trainjobs.trainer.kubeflow.org "{job["metadata"]["name"]}" already exists')
        else:
            self.send(201, self.server.add(job))

    def _delete(self, name: str, options: dict[str, Any]) -> None:
        """Foreground, as it is asked for: the object stays a moment, marked, until what it owns is gone."""
        job = self.server.jobs[name]
        assert options["propagationPolicy"] == "Foreground"
        if options["preconditions"]["uid"] != job["metadata"]["uid"]:
            self.refuse(409, "Precondition failed: UID in precondition differs")
            return
        marked = self.server.put({**job, "metadata": {**job["metadata"], "deletionTimestamp": job["metadata"]["creationTimestamp"]}})
        threading.Timer(0.05, self.server.remove, [name]).start()
        self.send(200, marked)

    def watch(self, name: str, version: int, timeout: float) -> None:
        """Send what happened since a version, and what happens until the timeout, a line each."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = datetime.now(UTC).timestamp() + timeout
        with suppress(OSError), self.server.changed:
            while (left := end - datetime.now(UTC).timestamp()) > 0:
                for number, event in [each for each in self.server.history if each[0] > version]:
                    version = number
                    if event is GONE or event["object"]["metadata"]["name"] == name:
                        self.chunk(json.dumps(event) + "\n")
                self.server.changed.wait(left)
            self.chunk("")

    def chunk(self, text: str) -> None:
        """Send a part of a chunked answer."""
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def status(code: int, message: str) -> Answer:
    """An answer that refuses; a message that ends with a line break is sent as plain text."""
    return lambda handler: handler.send(code, message) if message.endswith("\n") else handler.refuse(code, message)


def dropped(handler: Handler) -> None:
    """No answer: the connection is closed."""
    handler.close_connection = True


def pod(
    name: str, job: str, phase: str = "Running", *, attempt: int = 0, again: int = 0, conditions: Any = (), **states: Any
) -> dict[str, Any]:
    """A pod of a TrainJob; `states` are those of its container: waiting, or terminated now (`state`) or before (`lastState`)."""
    labels = {"jobset.sigs.k8s.io/jobset-name": job, "jobset.sigs.k8s.io/restart-attempt": str(attempt)}
    known = {"name": "node", "image": "train", "imageID": "", "ready": phase == "Running", "restartCount": again}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "node", "resources": {"limits": {"memory": "4Gi"}}}]},
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            "containerStatuses": [{**known, "state": {}, "lastState": {}, **states}],
        },
    }
