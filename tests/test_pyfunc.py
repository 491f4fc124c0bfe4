"""A release as MLflow's own loader and server have it: the same answers, the same refusals, and no file of the server's for who asks."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import registered_release
from registered_release import address

import unimed
from unimed.errors import InputError
from unimed.release import pyfunc, row

pytest_plugins = ["registered_release"]
pytestmark = pytest.mark.usefixtures("apart")

CHAMPION = "models:/unimed-medvlm@champion"
ASKED = {"image": registered_release.encoded(), "question": "Which structure lies in <region>?"}


@pytest.fixture
def project(home, monkeypatch):
    """The working folder is that project."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address(home))
    monkeypatch.delenv("UNIMED_IMAGE_ROOT", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # MLflow's loader leaves __pycache__ among the artifacts
    return home


@pytest.mark.slow
def test_mlflow_s_loader_gives_the_answers_of_ours(project):
    import mlflow

    rows = pd.DataFrame([{**ASKED, "region": "box:2,3,9,9", "think": True}])
    [found] = mlflow.pyfunc.load_model(CHAMPION).predict(rows).to_dict("records")
    reply = unimed.load(CHAMPION).answer(registered_release.scan(), ASKED["question"], ["box:2,3,9,9"], think=True)
    assert (found["answer"], found["reasoning"]) == (reply.answer, reply.reasoning)
    assert (json.loads(found["masks"]), json.loads(found["router"])) == (list(reply.masks), list(reply.router))
    assert reply.router


@pytest.mark.slow
def test_rows_without_region_or_think_are_plain_questions(project):
    import mlflow

    model = mlflow.pyfunc.load_model(CHAMPION)
    rows = pd.DataFrame([{**ASKED, "question": "Is there a nodule?"}] * 2)
    reply = unimed.load(CHAMPION).answer(registered_release.scan(), "Is there a nodule?")
    assert model.predict(rows)["answer"].tolist() == [reply.answer] * 2
    assert [column.name for column in model.metadata.get_input_schema()] == ["image", "question", "region", "think"]
    with pytest.raises(mlflow.exceptions.MlflowException, match="question"):
        model.predict(pd.DataFrame([{"image": ASKED["image"]}]))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "said"), [("unimed-medvlm", "expected the manifest of a version"), ("unimed-router", "router")])
def test_mlflow_s_loader_refuses_what_was_changed(project, tmp_path, model, said):
    import mlflow

    place = Path(mlflow.MlflowClient().get_model_version(model, "1").source.removeprefix("file://"))
    file = place / ("release.json" if model == "unimed-medvlm" else "model.safetensors")
    kept = file.read_bytes()
    file.write_bytes(kept + b"\n")
    try:
        with pytest.raises(InputError, match=said):
            mlflow.pyfunc.load_model(CHAMPION)
    finally:
        file.write_bytes(kept)


@pytest.mark.slow
def test_what_mlflow_needs_is_the_same_for_every_release(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pyfunc.write(tmp_path / name)
    files = {name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")}
    assert files["one"] == files["two"] and files["one"].keys() == {"MLmodel", "pyfunc_model.py"}
    assert b"UNIMED_IMAGE_ROOT" in files["one"]["MLmodel"]


def test_a_path_is_read_only_below_the_folder_that_was_named(tmp_path, monkeypatch):
    registered_release.scan().save(tmp_path / "outside.png")
    (tmp_path / "images").mkdir()
    registered_release.scan().save(tmp_path / "images/scan.png")
    (tmp_path / "images/link.png").symlink_to(tmp_path / "outside.png")
    ask = {"question": "?", "region": None, "think": None}
    monkeypatch.delenv("UNIMED_IMAGE_ROOT", raising=False)
    with pytest.raises(InputError, match="expected base64, found a path; paths are read only below the folder UNIMED_IMAGE_ROOT"):
        row.question({**ask, "image": str(tmp_path / "images/scan.png")})
    monkeypatch.setenv("UNIMED_IMAGE_ROOT", str(tmp_path / "images"))
    for image in ("scan.png", str(tmp_path / "images/scan.png")):
        assert row.question({**ask, "image": image}).image == registered_release.scan()
    for image in ("../outside.png", str(tmp_path / "outside.png"), "link.png", "nothing.png"):
        with pytest.raises(InputError, match="expected a file below the folder UNIMED_IMAGE_ROOT, found none"):
            row.question({**ask, "image": image})


@pytest.mark.parametrize(("image", "said"), [("?", "expected a PNG or JPEG as base64"), ("", "expected a PNG"), ("AAAA", "expected a PNG")])
def test_what_is_no_image_is_one_sentence(image, said):
    with pytest.raises(InputError, match=said):
        row.question({"image": image, "question": "?"})


def test_a_row_may_name_several_regions(monkeypatch):
    asked = row.question({**ASKED, "region": "box:0,0,2,3 point:5,5", "think": float("nan")})
    assert [int(region.sum()) for region in asked.regions] == [6, 1] and asked.think is False
    assert asked.image == registered_release.scan()


@pytest.mark.slow
def test_mlflow_serves_it_and_gives_away_no_file(project, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = probe.server_port
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local", "-p", str(port), "-w", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    registered_release.scan().save(tmp_path / "secret.png")
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=os.environ | {"PATH": path}, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            assert _asked(port, "GET", "/ping", None, patience=240)[0] == 200, (tmp_path / "log").read_text()
            status, said = _asked(port, "POST", "/invocations", {"dataframe_records": [{**ASKED, "region": "box:2,3,9,9"}]})
            assert status == 200, said
            reply = unimed.load(CHAMPION).answer(registered_release.scan(), ASKED["question"], ["box:2,3,9,9"])
            assert json.loads(said)["predictions"][0]["answer"] == reply.answer
            status, said = _asked(port, "POST", "/invocations", {"dataframe_records": [{**ASKED, "image": str(tmp_path / "secret.png")}]})
            assert status >= 400 and "found a path" in said
        finally:
            os.killpg(server.pid, 15)


def _asked(port: int, method: str, path: str, body: dict | None, patience: int = 0) -> tuple[int, str]:
    """Status and text of an answer; with patience a server may still be starting."""
    end = time.monotonic() + patience
    while True:
        with suppress(OSError):
            connection = HTTPConnection("127.0.0.1", port, timeout=240)
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        if time.monotonic() > end:
            return 0, ""
        time.sleep(0.5)
