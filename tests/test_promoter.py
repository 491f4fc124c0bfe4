"""What an account of MLflow needs to promote: docs/cluster.md grants no more, and without it nothing changes."""

import httpx
import mlflow_server
import pytest
import releases
from mlflow import MlflowClient

from unimed.errors import InputError
from unimed.release import promote
from unimed.release.journal import JOURNAL, Said
from unimed.release.parts import REGISTERED, RELEASE
from unimed.settings import Tracking

pytest.importorskip("flask_wtf", reason="NOT CHECKED: mlflow[auth], which the server needs, is not installed")
pytestmark = pytest.mark.slow

PARTS = (*REGISTERED.values(), RELEASE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with two releases, of which the first is in use."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server.known(folder) as uri:
        for number in "12":
            releases.add(folder, uri, f"release {number}")
        promote.promote(Tracking(uri=uri), "1", Said("admin"))
        yield uri


def grant(uri: str, user: str, permissions: dict[str, str]) -> None:
    """Make an account that reads the experiment and has a permission on each model, as docs/cluster.md does."""
    as_admin = httpx.Client(auth=(mlflow_server.USER, mlflow_server.PASSWORD), base_url=uri, timeout=60)
    as_admin.post("/api/2.0/mlflow/users/create", json={"username": user, "password": f"the password of {user}"}).raise_for_status()
    experiment = MlflowClient(uri, uri).get_experiment_by_name(Tracking().experiment)
    assert experiment
    models = [("registered_model", name, permission) for name, permission in permissions.items()]
    for kind, key, permission in [("experiment", experiment.experiment_id, "READ"), *models]:
        body = {"username": user, "resource_type": kind, "resource_id": key, "permission": permission}
        as_admin.post("/api/3.0/mlflow/users/permissions/grant", json=body).raise_for_status()


def entries(uri: str) -> list:
    return list(MlflowClient(uri, uri).search_model_versions(f"name = '{JOURNAL}'"))


def log_in(monkeypatch, user: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"the password of {user}")


def test_who_reads_parts_manages_releases_and_edits_the_journal_promotes_and_rolls_back(server, monkeypatch):
    grant(server, "ann", dict.fromkeys(PARTS, "READ") | {RELEASE: "MANAGE", JOURNAL: "EDIT"})
    log_in(monkeypatch, "ann")
    assert promote.promote(Tracking(uri=server), "2", Said("ann", "it is better")).version == "2"
    assert promote.rollback(Tracking(uri=server), Said("ann", "it was not")).version == "1"


def test_who_may_only_read_is_told_so_and_changes_nothing(server, monkeypatch):
    before = releases.aliases(server), len(entries(server))
    grant(server, "bob", dict.fromkeys((*PARTS, JOURNAL), "READ"))
    log_in(monkeypatch, "bob")
    with pytest.raises(InputError) as told:
        promote.promote(Tracking(uri=server), "2", Said("bob"))
    assert "PERMISSION" in str(told.value).upper() and len(str(told.value).splitlines()) == 1
    for name, value in mlflow_server.LOGIN.items():
        monkeypatch.setenv(name, value)
    assert (releases.aliases(server), len(entries(server))) == before
