"""A server between a client and MLflow that goes away at a chosen request: what a client that dies there has done, and no more."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ALL = 10**9


class Between(ThreadingHTTPServer):
    """Passes requests on until `limit` have come; the last of them still reaches MLflow if `arrives`, but no answer comes back.

    If it is `back`, all requests after that one are passed on again.
    """

    daemon_threads = True

    def __init__(self, target: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.lock = threading.Lock()
        self.expect(ALL)

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def expect(self, limit: int, arrives: bool = False, back: bool = False) -> None:
        """Begin to count anew."""
        self.limit, self.arrives, self.back = limit, arrives, back
        self.seen: list[str] = []
        self.done: list[str] = []
        """The requests that MLflow has answered with success, whether or not their answers came back."""


class _Handler(BaseHTTPRequestHandler):
    server: Between

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.seen.append(f"{self.command} {self.path}")
            number = len(self.server.seen)
        if (number > self.server.limit and not self.server.back) or (number == self.server.limit and not self.server.arrives):
            return
        connection = HTTPConnection(self.server.target, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status < 300:
            self.server.done.append(self.server.seen[number - 1])
        if number == self.server.limit:
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def between(target: str) -> Iterator[Between]:
    """Such a server in front of a running one."""
    with Between(target) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
