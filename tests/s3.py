"""An S3 service as a user has one: moto over HTTP, and before it a proxy that answers with faults, drops connections, and keeps count.

PYTEST_DONT_REWRITE: test files import it and name it under `pytest_plugins`, for its fixtures.
"""

import base64
import hashlib
import http.client
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import boto3
import pytest

from unimed.objects import PART

BUCKET = "unimed-store"
SECRET = "canary-of-the-secret-key"
LARGE = 2 * PART + PART // 2
"""Bytes of a file that goes up in three parts."""

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>A message of the server.</Message></Error>"


@dataclass
class Fault:
    """What the proxy does, `times` times, to a `method` with `path` in its address.

    `answer`: says `status` and `code` itself. `cut`: resets the connection in the middle of the body. `stall`: stops there until released.
    `garble`: changes a byte of the body.
    `silence`: says nothing at all until released. `forget`: lets the request through and resets the connection instead of answering.
    """

    method: str
    path: str
    kind: Literal["answer", "cut", "stall", "silence", "garble", "forget"]
    times: int = 1
    status: int = 503
    code: str = "SlowDown"


@dataclass
class Service:
    """A store at `url`; faults and requests are the proxy's, `client` goes round it."""

    url: str
    endpoint: str
    client: Any
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environ(self) -> dict[str, str]:
        """The AWS variables of a user of this store."""
        keys = {"AWS_ACCESS_KEY_ID": "canary-of-the-key-id", "AWS_SECRET_ACCESS_KEY": SECRET}
        return keys | {"AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}

    def names(self) -> list[str]:
        """The names of all objects."""
        return [found["Key"] for found in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    def sent(self, *methods: str) -> list[str]:
        """The addresses of the requests with these methods."""
        return [path for method, path in self.requests if method in methods]

    def fault_of(self, method: str, path: str) -> Fault | None:
        """The fault whose turn it is, counted down."""
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.method == method and fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def moto() -> Iterator[str]:
    """The address of a moto server in a process of its own."""
    command = [sys.executable, "-u", "-m", "moto.server", "-p", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert server.stderr
    try:
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        threading.Thread(target=server.stderr.read, daemon=True).start()  # its log must not fill the pipe
        yield address
    finally:
        server.kill()
        server.wait()


@contextmanager
def empty(address: str) -> Iterator[Service]:
    """An empty bucket of the moto server at `address`, behind a fresh proxy."""
    keys = {"aws_access_key_id": "direct", "aws_secret_access_key": "direct", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address, **keys)
    client.create_bucket(Bucket=BUCKET)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    server.upstream = urlsplit(address).netloc
    server.service = Service(f"s3://{BUCKET}/team/store", f"http://127.0.0.1:{server.server_port}", client)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.service
    finally:
        server.service.released.set()
        server.shutdown()
        server.server_close()
        reset = http.client.HTTPConnection(server.upstream)
        reset.request("POST", "/moto-api/reset")
        reset.getresponse().read()
        reset.close()


@pytest.fixture(scope="module")
def moto_address() -> Iterator[str]:
    """The address of a moto server."""
    with moto() as address:
        yield address


@pytest.fixture
def service(moto_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """An empty store, and its AWS variables set for this process and its children."""
    with empty(moto_address) as found:
        for name, value in found.environ.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as stages leave them: files in folders, two alike, an empty one, and names that are no plain English."""
    root = tmp_path / "made"
    for name, text in {"a.json": "{}", "deep/b.bin": "bytes", "deep/er/c": "bytes", "empty": "", "größe ü.txt": "x"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of random bytes that goes up in three parts."""
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(LARGE))
    return file


def contents(root: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, by path."""
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def key(digest: str) -> str:
    """Where a store at `url` keeps the bytes of a hash."""
    return f"team/store/files/md5/{digest[:2]}/{digest[2:]}"


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def _pass(self) -> None:
        fault = self.server.service.fault_of(self.command, self.path)
        size = int(self.headers.get("Content-Length", 0))
        if fault and fault.kind in ("cut", "stall") and size:
            self.rfile.read(size // 2)
            self._break(fault)
            return
        body = self.rfile.read(size)
        if fault and fault.kind == "garble" and size:
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault and fault.kind == "answer":
            self._answer(fault.status, {}, ERROR.format(code=fault.code).encode() if fault.code else b"")
        elif (told := self.headers.get("Content-MD5")) and told != base64.b64encode(
            hashlib.md5(body, usedforsecurity=False).digest()
        ).decode():
            self._answer(400, {}, ERROR.format(code="BadDigest").encode())  # as S3 does, and moto does not
        else:
            self._forward(body, fault)

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault and fault.kind in ("forget", "silence"):
            self._break(fault)
            return
        if answer.status == 500 and "uploadId" in self.path:  # moto stumbles over an upload that has ended; S3 says so
            self._answer(404, {}, ERROR.format(code="NoSuchUpload").encode())
            return
        if fault and fault.kind == "garble" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        hop = ("connection", "transfer-encoding", "date", "server")
        self._answer(answer.status, {name: value for name, value in answer.getheaders() if name.lower() not in hop}, data, fault)

    def _answer(self, status: int, headers: dict[str, str], data: bytes, fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():  # that of HEAD is the object's
            self.send_header(name, value)
        self.end_headers()
        if fault and fault.kind in ("cut", "stall") and self.command == "GET":
            self.wfile.write(data[: len(data) // 2])
            self._break(fault)
        elif self.command != "HEAD":
            self.wfile.write(data)

    def _break(self, fault: Fault) -> None:
        """End the connection as a broken line does, at once or after the stall."""
        if fault.kind in ("stall", "silence"):
            self.server.service.stalled.set()
            self.server.service.released.wait(60)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve a connection; a client that was killed is no error."""
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815 (http.server's names)
