"""The release: only what the gate judged and let through, registered once in a real MLflow, or one sentence about why not."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import candidate
import pytest
from candidate import GATE
from mlflow_server import serving

from conftest import NOWHERE, ROOT
from unimed import tracking
from unimed.errors import InputError
from unimed.job import Job
from unimed.model import artifacts
from unimed.release import gate, manifest, register
from unimed.release.parts import REGISTERED
from unimed.settings import Tracking

COUNTS = {"unimed-medvlm": 1} | dict.fromkeys(REGISTERED.values(), 1)
"""How many versions there are of each model after one release."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A candidate that has passed the gate."""
    root = tmp_path_factory.mktemp("candidate")
    candidate.make(root)
    assert gate.write(root / "gate", candidate.of(root), GATE)["passed"]
    return root


@pytest.fixture
def spoilt(made, tmp_path):
    """A copy of it to spoil; the gate's verdict stays beside the original."""
    return candidate.copied(made, tmp_path)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """No tracking but what a test names, and a folder of its own for what MLflow writes."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def written(made: Path, folder: Path, revision: str = "abc") -> Path:
    return manifest.write(folder, made / "gate", candidate.of(made).models, revision)


def test_the_manifest_holds_hashes_of_all_parts_and_only_the_rows_that_were_judged(made, tmp_path):
    content = json.loads(written(made, tmp_path / "release").read_text())
    assert content["parts"].keys() == set(candidate.MODELS)
    assert content["parts"]["reasoner"]["manifest_sha256"] == artifacts.sha256(made / "models/reasoner/manifest.json")
    assert (content["parts"]["reasoner"]["model"], len(content["parts"]["reasoner"]["dvc"])) == ("unimed-reasoner", 36)
    assert "model" not in content["parts"]["foundation"]
    assert [row["metric"] for row in content["evaluation"]["rows"]] == [row.metric for row in candidate.ROWS]
    assert (content["git_revision"], content["notice"][:17]) == ("abc", "For research only")


def test_the_same_release_is_the_same_manifest(made, tmp_path):
    once, again, other = (written(made, tmp_path / name, name[:1]).read_bytes() for name in ("a1", "a2", "b"))
    assert once == again != other


def test_what_the_gate_rejected_is_refused_with_its_reason(made, spoilt):
    gate.write(spoilt / "gate", candidate.of(spoilt), GATE.model_copy(update={"least_patients": 9}))
    with pytest.raises(InputError, match=r"verdict.json: expected a passed gate, found a rejection \(data: held-out patients of align"):
        written(spoilt, spoilt / "release")
    assert not (spoilt / "release").exists()


def test_another_model_than_the_gate_judged_is_refused(made, spoilt):
    (spoilt / "models/reasoner/note.txt").write_text("retrained")
    candidate.resealed(spoilt, "reasoner")
    with pytest.raises(InputError, match=r"models/reasoner: expected the model that .*gate judged, manifest sha256"):
        manifest.write(spoilt / "release", made / "gate", candidate.of(spoilt).models, "")


def test_a_file_that_changed_since_the_gate_is_refused(made, spoilt):
    (spoilt / "models/reasoner/adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"adapter_model.safetensors: expected sha256"):
        manifest.write(spoilt / "release", made / "gate", candidate.of(spoilt).models, "")


def test_json_that_is_no_verdict_is_refused(made, spoilt):
    (spoilt / "gate").mkdir()
    (spoilt / "gate/verdict.json").write_text('{"passed": true}')
    with pytest.raises(InputError, match=r"verdict.json: expected the verdict of a gate, found other JSON"):
        written(spoilt, spoilt / "release")


def registered(made: Path, folder: Path, uri: str, revision: str = "abc") -> dict:
    path = written(made, folder, revision)
    return register.register(path, candidate.of(made).models, revision, Tracking(uri=uri))


def versions(uri: str) -> dict[str, int]:
    """How many versions each registered model has."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    return {model.name: len(client.search_model_versions(f"name = '{model.name}'")) for model in client.search_registered_models()}


def test_a_server_that_is_down_is_one_sentence_with_a_remedy(made, tmp_path):
    with pytest.raises(InputError) as caught:
        registered(made, tmp_path / "release", NOWHERE)
    assert "MLflow at 127.0.0.1: expected it to register the release, found: 127.0.0.1:9 does not answer" in str(caught.value)
    assert "then try again" in str(caught.value)


def test_in_a_pod_without_a_server_the_release_is_its_manifest_alone(made, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("UNIMED_RUN", "run-1")
    assert registered(made, tmp_path / "release", "sqlite:///mlflow.db") == {}
    assert "the release is not registered" in caplog.text
    assert not Path("mlflow.db").exists()


@pytest.mark.slow
def test_a_server_that_refuses_is_one_sentence_without_the_password(made, tmp_path):
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"You are not authenticated.")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(InputError) as caught:
        registered(made, tmp_path / "release", f"http://ann:secret@127.0.0.1:{server.server_port}")
    server.shutdown()
    assert "MLflow at 127.0.0.1: expected it to register the release, found: " in str(caught.value) and "401" in str(caught.value)
    assert "secret" not in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_release_in_a_local_file_is_registered_once_and_found_by_its_alias(made, tmp_path):
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = registered(made, tmp_path / "one", uri)
    assert registered(made, tmp_path / "two", uri) == first
    assert versions(uri) == COUNTS
    client = MlflowClient(uri, uri)
    assert len(client.search_runs(["1"], run_view_type=ViewType.ALL)) == len(COUNTS), "the second time sent nothing"
    release = client.get_model_version_by_alias("unimed-medvlm", "challenger")
    assert (release.tags["unimed-reasoner"], release.tags["git_revision"], release.tags["research_use_only"]) == ("1", "abc", "true")
    kept = Path(release.source.removeprefix("file://"))
    assert (kept / "release.json").read_bytes() == (tmp_path / "one/release.json").read_bytes()
    assert release.tags["manifest_sha256"] == artifacts.sha256(kept / "release.json")
    reasoner = client.get_model_version("unimed-reasoner", "1")
    artifacts.verify(Path(reasoner.source.removeprefix("file://")))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.mark.slow
def test_many_at_once_register_one_version(made, tmp_path, server):
    ready = threading.Barrier(4)

    def release(number: int) -> dict:
        ready.wait()
        return registered(made, tmp_path / str(number), server)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(release, range(4))
    assert others == [first] * 3
    assert versions(server) == COUNTS


@pytest.mark.slow
def test_a_part_that_its_stage_registered_is_taken_with_its_recipe(made, tmp_path):
    from mlflow import MlflowClient

    settings = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.follow(Job("grpo", "0123456789abcdef"), settings):
        tracking.register("unimed-reasoner", made / "models/reasoner")
    registered(made, tmp_path / "release", settings.uri)
    assert versions(settings.uri) == COUNTS
    release = MlflowClient(settings.uri).get_model_version_by_alias("unimed-medvlm", "challenger")
    assert (release.tags["recipe_key"], release.tags["unimed-reasoner"]) == ("0123456789abcdef", "1")


@pytest.mark.slow
def test_another_release_moves_the_alias_and_leaves_the_parts(made, tmp_path, server):
    from mlflow import MlflowClient

    before = registered(made, tmp_path / "before", server)
    after = registered(made, tmp_path / "after", server, revision="def")
    assert after["version"] != before["version"] and after["parts"] == before["parts"]
    assert str(MlflowClient(server).get_model_version_by_alias("unimed-medvlm", "challenger").version) == after["version"]


def program(made: Path, root: Path, uri: str) -> subprocess.CompletedProcess[str]:
    (root / "params.yaml").write_text("tracking: {}\n")
    data = [word for task, folder in candidate.of(made).data.items() for word in (f"--{task}", str(folder))]
    command = [sys.executable, "-m", "components.release", "--verdict", str(made / "gate"), *data, *candidate.flags(made)]
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "MLFLOW_TRACKING_URI": uri}
    return subprocess.run([*command, "--release", "reports/release"], cwd=root, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_program_leaves_manifest_and_versions_or_nothing(made, tmp_path, server):
    down = program(made, tmp_path, NOWHERE)
    assert down.returncode == 78 and "Traceback" not in down.stderr
    assert down.stderr.splitlines()[-1].endswith("then try again")
    assert not (tmp_path / "reports/release").exists()
    done = program(made, tmp_path, server)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "reports/release/registered.json").read_text())["alias"] == "challenger"
