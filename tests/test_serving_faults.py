"""What goes wrong around a server: releases that do not load, models that fail, bodies that never end, and being told to stop."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from urllib.parse import urlsplit

import httpx
import pytest
import service
import tiny
from places import stages

from conftest import wait_until
from unimed.errors import InputError
from unimed.serving import command, source
from unimed.serving.follow import Follower, Source
from unimed.serving.metrics import Metrics
from unimed.serving.schema import PIXEL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made():
    return service.model()


def test_a_release_that_does_not_load_leaves_the_old_one_and_is_told(made):
    present = ["1"]

    def load(version):
        if version == "2":
            raise InputError("reasoner: expected sha256 aa, found bb")
        return made

    with service.serving(Source(lambda: present[0], load)) as server:
        present[0] = "2"
        wait_until(lambda: server.get("/readyz").json()["failure"] is not None)
        assert server.get("/readyz").json() == {
            "ready": True, "model": "1", "requests": 0, "failure": "version 2: reasoner: expected sha256 aa, found bb",
        }  # fmt: skip
        assert server.number("unimed_model_loads_total", outcome="failed") >= 1
        assert server.ask().json()["model"] == "1"
        present[0] = "3"
        wait_until(lambda: server.get("/readyz").json()["model"] == "3")
        assert server.get("/readyz").json()["failure"] is None
        assert server.ask().json()["model"] == "3"


def test_a_registry_that_is_away_changes_nothing_and_is_told(made):
    away = [False]

    def where():
        if away[0]:
            raise ConnectionError("no route")
        return "1"

    follower = Follower(Source(where, lambda version: made), Metrics())
    away[0] = True
    follower.look()
    assert follower.failure == "version unknown: no route"
    assert follower.release.version == "1"
    away[0] = False
    follower.look()
    assert follower.failure is None


def test_the_same_broken_version_is_tried_again_later_and_later(made, monkeypatch):
    tries = []
    present = ["1"]

    def load(version):
        tries.append(version)
        if version == "2" and len(tries) < 4:
            raise InputError("broken")
        return made

    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    follower = Follower(Source(lambda: present[0], load), Metrics(), every_s=5)
    present[0] = "2"
    for seconds, tried in ((0, 1), (4, 1), (1, 2), (9, 2), (1, 3)):  # after 5 s, then after 10
        clock[0] += seconds
        follower.look()
        assert tries == ["1", *["2"] * tried]
    assert follower.release.version == "2"


def test_a_folder_is_followed_by_the_hash_of_its_manifest(tmp_path):
    folder = stages(tmp_path)["vqa_expert"]
    found = source.folder(folder)
    version = found.where()
    assert len(version) == 64
    assert found.load(version).model.config.experts == []
    with pytest.raises(InputError, match="it changed while it was loaded"):
        found.load("0" * 64)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert found.where() != version
    manifest.unlink()
    with pytest.raises(InputError, match="expected a model folder with a manifest.json, found none"):
        found.where()


def test_a_model_that_fails_fails_its_questions_alone():
    made = service.model()
    fails = [True]

    def fail(module, args):
        if fails.pop():
            fails.append(False)
            raise RuntimeError("out of memory at 0xdeadbeef")
        fails.append(False)

    made.model.register_forward_pre_hook(fail)
    with service.serving(made) as server:
        first = server.ask()
        assert first.status_code == 500
        assert first.json()["detail"] == "server: expected to answer, found a defect of its own; its log tells more"
        assert server.ask().status_code == 200
        assert server.get("/readyz").status_code == 200


def test_a_body_that_never_ends_is_cut_off(made):
    limits = service.Limits(batch=1, queue=1, timeout_s=1, max_new_tokens=2)
    with service.serving(made, limits) as server, socket.create_connection(tuple(urlsplit(server.url).netloc.split(":"))) as slow:
        slow.sendall(b"POST /v1/answer HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert slow.recv(2000).startswith(b"HTTP/1.1 408 ")
        wait_until(lambda: server.number("unimed_requests_in_hand") == 0)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_the_bound_is_refused_before_it_is_parsed(made, chunked):
    with service.serving(made) as server, closing(http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)) as client:
        bound = service.LIMITS.body_bytes
        headers = {"Content-Type": "application/json"} | ({} if chunked else {"Content-Length": str(bound + 1)})
        body = (b"[" * 2**16 for _ in range(bound // 2**16 + 1)) if chunked else b""
        with suppress(BrokenPipeError, ConnectionResetError):  # the server has answered and will not read on
            client.request("POST", "/v1/answer", body, headers, encode_chunked=chunked)
        found = client.getresponse()
        assert found.status == 413
        assert json.loads(found.read())["detail"] == f"body: expected at most {bound} bytes, found more"


def test_an_address_that_is_taken_is_said_before_the_model_is_loaded():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match="--port .*Address already in use"),
    ):
        command.serve(model="nowhere", host="127.0.0.1", port=taken.getsockname()[1])


def test_sigterm_finishes_what_is_in_hand_and_ends_well(tmp_path):
    folder = stages(tmp_path)["router"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = ("serve", "--model", str(folder), "--port", str(port), "--max-new-tokens", "200", "--batch", "2", "--queue", "14")
    command_line = [sys.executable, "-c", "from unimed.cli import main; main()", *words]
    log = tmp_path / "server.log"
    with log.open("w") as told, subprocess.Popen(command_line, stderr=told) as process, ThreadPoolExecutor(8) as clients:
        try:
            wait_until(lambda: process.poll() is not None or _listens(port), 300)
            body = {"image": PIXEL, "question": "Is there a nodule?"}
            asked = [clients.submit(httpx.post, f"http://127.0.0.1:{port}/v1/answer", json=body, timeout=120) for _ in range(8)]
            server = service.Server(f"http://127.0.0.1:{port}", None)
            wait_until(lambda: server.number("unimed_requests_in_hand") == 8)
            process.send_signal(signal.SIGTERM)
            assert [one.result().status_code for one in asked] == [200] * 8
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.post(f"http://127.0.0.1:{port}/v1/answer", json=body)


def _listens(port: int) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    return False


def test_a_folder_that_is_none_is_said_in_one_sentence(project):
    done = project.run("unimed", "serve", "--model", "nowhere", "--port", "0")
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1] == "unimed: nowhere: expected a model folder with a manifest.json, found none"


def test_noise_at_the_door_leaves_the_server_up(made):
    with service.serving(made) as server:
        for noise in (b"\x00" * 2000, b"GET\r\n\r\n", b"POST /v1/answer HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"\x16\x03\x01" * 40):
            with socket.create_connection(tuple(urlsplit(server.url).netloc.split(":"))) as client:
                client.sendall(noise)
                client.shutdown(socket.SHUT_WR)
                client.recv(1000)
        assert server.ask(image=service.encoded(tiny.picture(1))).status_code == 200
