"""Releases on a real MLflow server with a login, its files on S3: what fails there passes by itself or is one sentence."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import registered_release
import s3
from mlflow_server import LOGIN, PASSWORD, serving

from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release import fetch
from unimed.release.parts import REGISTERED
from unimed.settings import Tracking
from unimed.store import Store

pytest.importorskip("flask_wtf", reason="NOT CHECKED: mlflow[auth], which the server needs, is not installed")
pytest_plugins = ["registered_release"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("apart")]

CHAMPION = "models:/unimed-medvlm@champion"


@dataclass
class Registry:
    """A server, the S3 behind it, the folder its release came from, and how to stop it."""

    uri: str
    service: s3.Service
    root: Path
    up: ExitStack

    def stored(self, file: str) -> str:
        """The name of the one object in S3 that ends so."""
        [name] = [name for name in self.service.names() if name.endswith(file)]
        return name


@pytest.fixture(scope="module")
def registry(passed, tmp_path_factory) -> Iterator[Registry]:
    """A registry with one release, alias champion."""
    from mlflow import MlflowClient

    root = registered_release.copied(passed, tmp_path_factory.mktemp("home"))
    path = registered_release.write(root, "abc")
    with s3.moto() as address, s3.empty(address) as service, pytest.MonkeyPatch.context() as patch, ExitStack() as up:
        for name, value in (service.environ | LOGIN | {"AWS_MAX_ATTEMPTS": "1"}).items():
            patch.setenv(name, value)
        uri = up.enter_context(serving(tmp_path_factory.mktemp("server"), login=True, artifacts=f"s3://{s3.BUCKET}/mlflow"))
        registered_release.register_at(root, uri, path)
        MlflowClient(uri, uri).set_registered_model_alias("unimed-medvlm", "champion", "1")
        yield Registry(uri, service, root, up)


@pytest.fixture(autouse=True)
def reachable(registry, apart, monkeypatch):
    """The registry as a user of the project has it: the foundation in models/, faults of earlier tests gone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setattr(fetch, "PAUSES_S", (0, 0))
    monkeypatch.chdir(registry.root)
    registry.service.faults.clear()


def told(caught: pytest.ExceptionInfo[InputError]) -> str:
    """The sentence, which is one and holds no password."""
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and PASSWORD not in said and s3.SECRET not in said
    return said


def test_a_store_that_answers_503_for_a_while_is_waited_out(registry):
    registry.service.faults.append(fault := s3.Fault("GET", "adapter_model.safetensors", "answer", times=2))
    assert fetch.fetch(CHAMPION, Tracking()).version == "1"
    assert fault.times == 0, "it did answer so"


def test_a_store_that_answers_503_for_ever_is_one_sentence_and_leaves_nothing(registry, tmp_path):
    registry.service.faults.append(s3.Fault("GET", "adapter_model.safetensors", "answer", times=1000))
    with pytest.raises(InputError) as caught:
        fetch.fetch(CHAMPION, Tracking())
    assert "MLflow at 127.0.0.1: expected it to hand out unimed-medvlm version 1, found: " in told(caught)
    assert not list((tmp_path / "cache/unimed/releases").glob("*[0-9a-f]"))


def test_bytes_that_change_on_the_way_are_named(registry):
    registry.service.faults.append(s3.Fault("GET", "/adapter_model.safetensors", "garble", times=1))
    with pytest.raises(InputError) as caught:
        fetch.fetch(CHAMPION, Tracking())
    assert told(caught).startswith("unimed-") and "adapter_model.safetensors: expected sha256" in told(caught)


def test_a_file_that_was_replaced_in_the_store_is_named(registry):
    from mlflow import MlflowClient

    run = MlflowClient().get_model_version("unimed-router", "1").run_id
    name = registry.stored(f"{run}/artifacts/model/model.safetensors")
    right = registry.service.client.get_object(Bucket=s3.BUCKET, Key=name)["Body"].read()
    registry.service.client.put_object(Bucket=s3.BUCKET, Key=name, Body=b"other weights")
    with pytest.raises(InputError) as caught:
        fetch.fetch(CHAMPION, Tracking())
    registry.service.client.put_object(Bucket=s3.BUCKET, Key=name, Body=right)
    assert told(caught).startswith("unimed-router version 1: ") and "model.safetensors: expected sha256" in told(caught)


def test_a_wrong_password_is_one_sentence(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-that-is-wrong")
    with pytest.raises(InputError) as caught:
        fetch.fetch(CHAMPION, Tracking())
    assert "401" in told(caught) and "MLFLOW_TRACKING_PASSWORD" in told(caught) and "canary" not in told(caught)


def test_the_foundation_comes_from_the_store_where_the_project_is_not(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIMED_STORE", registry.service.url)
    with pytest.raises(InputError, match=r"expected the listing of a folder, found none; push it"):
        fetch.fetch(CHAMPION, Tracking())
    Store(registry.service.url).push(registry.root / "models/foundation")
    found = fetch.fetch(CHAMPION, Tracking())
    assert artifacts.verify(found.folder / "foundation") == artifacts.verify(registry.root / "models/foundation")


def test_two_releases_at_once_are_two_versions_of_the_same_parts(registry):
    from mlflow import MlflowClient

    paths = [registered_release.write(registry.root, revision) for revision in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda path: registered_release.register_at(registry.root, registry.uri, path), paths)
    assert {first["version"], second["version"]} == {"2", "3"} and first["parts"] == second["parts"]
    client = MlflowClient()
    assert [len(client.search_model_versions(f"name = '{name}'")) for name in REGISTERED.values()] == [1] * len(REGISTERED)
    assert str(client.get_model_version_by_alias("unimed-medvlm", "challenger").version) in ("2", "3")
    for made in (first, second):
        assert fetch.fetch(f"models:/unimed-medvlm/{made['version']}", Tracking()).version == made["version"]


def test_the_tags_of_a_release_say_what_it_is(registry, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("UNIMED_IMAGE", "registry.example/ops@sha256:2")
    registered_release.register_at(registry.root, registry.uri, path := registered_release.write(registry.root, "tagged"))
    release = fetch.load(path)
    tags = MlflowClient().get_model_version_by_alias("unimed-medvlm", "challenger").tags
    assert (tags["git_revision"], tags["image"]) == ("tagged", "registry.example/ops@sha256:2")
    assert tags["base_model_sha256"] == artifacts.sha256(registry.root / "models/foundation/manifest.json")
    assert (tags["evaluation"], tags["gate"]) == (release["evaluation"]["dvc"], f"passed sha256:{release['gate']['sha256']}")
    part = MlflowClient().get_model_version("unimed-router", tags["unimed-router"]).tags
    assert part["base_model_sha256"] == tags["base_model_sha256"]


def test_a_deleted_part_is_named_until_then_and_offline_the_cache_will_do(registry, tmp_path, monkeypatch, caplog):
    """The last test here: afterwards the server is gone."""
    from mlflow import MlflowClient

    MlflowClient().delete_model_version("unimed-router", "1")
    with pytest.raises(InputError) as caught:
        fetch.fetch(CHAMPION, Tracking())
    assert told(caught).startswith("unimed-router version 1: expected it in the registry, which unimed-medvlm version 1 needs, found none")
    registered_release.register_at(registry.root, registry.uri, path := registered_release.write(registry.root, "later"))
    number = str(MlflowClient().get_model_version_by_alias("unimed-medvlm", "challenger").version)
    before = fetch.fetch(f"models:/unimed-medvlm/{number}", Tracking())
    registry.up.close()
    assert fetch.fetch(f"models:/unimed-medvlm/{number}", Tracking()) == before
    assert before.manifest == fetch.load(path) and "is taken from the cache: 127.0.0.1:" in caplog.text
    with pytest.raises(InputError, match=r"say what models:/unimed-medvlm@champion is, found: 127.0.0.1:\d+ does not answer"):
        fetch.fetch(CHAMPION, Tracking())
