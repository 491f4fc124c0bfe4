"""Promotion on a real MLflow server with a login, over SQLite and PostgreSQL: many at once, cut off anywhere, with parts gone."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import dropping
import mlflow_server
import postgres
import pytest
import releases
from mlflow import MlflowClient

from unimed.errors import InputError
from unimed.release import journal, promote
from unimed.release.journal import JOURNAL, Entry, Said
from unimed.settings import Tracking

pytest.importorskip("flask_wtf", reason="NOT CHECKED: mlflow[auth], which the server needs, is not installed")
pytestmark = pytest.mark.slow

AT_ONCE = 6
FIRST, SECOND, BROKEN = "1", "2", str(AT_ONCE + 2)
"""The first release; equal ones follow, the last of which is for tests that spoil it."""

ANN = Said("ann", "a test")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request, tmp_path_factory) -> Iterator[str]:
    """A server with equal releases."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (mlflow_server.LOGIN | {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0"}).items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if request.param == "sqlite":
            with mlflow_server.serving(folder, login=True) as uri:
                yield filled(folder, uri)
        else:
            with postgres.serving() as database, mlflow_server.serving(folder, login=True, database=database) as uri:
                yield filled(folder, uri)


def filled(folder: Path, uri: str) -> str:
    for number in range(int(BROKEN)):
        releases.add(folder, uri, f"release {number}")
    return uri


@pytest.fixture
def client(server) -> MlflowClient:
    """That server without a champion."""
    reset(found := MlflowClient(server, server))
    return found


def reset(client: MlflowClient) -> None:
    """Let there be no champion, and no journal."""
    if client.search_registered_models(f"name = '{JOURNAL}'"):
        client.delete_registered_model(JOURNAL)
    for alias in releases.aliases(client.tracking_uri):
        client.delete_registered_model_alias("unimed-medvlm", alias)


def refused(uri: str, number: str) -> str:
    with pytest.raises(InputError) as caught:
        promote.promote(Tracking(uri=uri), number, ANN)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


LOST = r"expected version \d as champion still, found that (ann|user\d) made version \d champion meanwhile"


def test_of_many_promotions_at_once_one_wins_and_the_others_are_told(client):
    """Each with a client of its own, as on several machines; what none of them may see is a half."""
    settings, numbers = Tracking(uri=client.tracking_uri), [str(number) for number in range(2, 2 + AT_ONCE)]
    promote.promote(settings, FIRST, ANN)
    ready = threading.Barrier(AT_ONCE, timeout=60)

    def contend(number: str) -> str:
        ready.wait()
        try:
            promote.promote(settings, number, Said(f"user{number}"))
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        said = dict(zip(numbers, pool.map(contend, numbers), strict=True))
    entries = journal.read(client)
    assert sorted(entry.version for entry in entries[1:]) == [number for number, reason in said.items() if not reason]
    assert releases.aliases(client.tracking_uri) == {"champion": entries[-1].version, "previous": entries[-2].version}
    assert all(re.search(LOST, reason) and len(reason.splitlines()) == 1 for reason in said.values() if reason)
    assert len(client.search_model_versions(f"name = '{JOURNAL}'")) == 1 + AT_ONCE, "each of them has tried"


Act = Callable[[Tracking], Entry]
ENTRY = "POST /api/2.0/mlflow/model-versions/create"
"""The one request that makes a change of the champion; the journal's next number."""


def cut_off(client: MlflowClient, act: Act, undo: Act, reads: bool) -> None:
    """Act with the connection lost at every write in turn, with `reads` at every request; it has happened if its entry is made.

    What is there after a lost read is what the write before it left, so that once is enough to see that reads fail in good order.
    """
    direct = Tracking(uri=client.tracking_uri)
    before = journal.champion(journal.read(client))
    with dropping.between(client.tracking_uri) as middle:
        behind = Tracking(uri=middle.uri)
        act(behind)  # MLflow's client asks a server that it does not know yet more than later
        undo(direct)
        middle.expect(dropping.ALL)
        after = act(behind).version
        calls = list(middle.seen)
        assert len(calls) > 10 and sum(not call.startswith("GET") for call in calls) >= 3
        undo(direct)
        happened = set()
        for limit, arrives in cuts(calls, reads):
            middle.expect(limit, arrives)
            with suppress(InputError):
                act(behind)
            champion = journal.champion(journal.read(client))
            assert champion == (after if ENTRY in middle.done else before)
            happened.add(champion)
            journal.mend(client)
            assert releases.aliases(client.tracking_uri)["champion"] == champion
            if champion == after:
                undo(direct)
        assert happened == {before, after}


def cuts(calls: list[str], reads: bool) -> Iterator[tuple[int, bool]]:
    """At which request the connection is lost, and whether it still arrives; a read that arrives is the next request's case."""
    for limit, call in enumerate(calls, start=1):
        if not call.startswith("GET"):
            yield from ((limit, False), (limit, True))
        elif reads:
            yield limit, False


def promotion(number: str) -> Act:
    return lambda settings: promote.promote(settings, number, ANN)


def rollback(settings: Tracking) -> Entry:
    return promote.rollback(settings, ANN)


def test_a_promotion_that_is_cut_off_has_happened_or_not(client, request):
    promotion(FIRST)(Tracking(uri=client.tracking_uri))
    cut_off(client, promotion(SECOND), rollback, reads=request.node.callspec.params["server"] == "sqlite")


def test_a_rollback_that_is_cut_off_has_happened_or_not(client):
    for number in (FIRST, SECOND):
        promotion(number)(Tracking(uri=client.tracking_uri))
    cut_off(client, rollback, promotion(SECOND), reads=False)


def test_a_change_whose_answer_is_lost_and_that_is_sent_again_is_one_change(client):
    with dropping.between(client.tracking_uri) as middle:
        for _ in range(2):  # MLflow's client asks a server that it does not know yet more than later
            reset(client)
            middle.expect(dropping.ALL)
            promotion(FIRST)(Tracking(uri=middle.uri))
        [entry] = [place for place, call in enumerate(middle.seen, start=1) if call == ENTRY]
        reset(client)
        middle.expect(entry, arrives=True, back=True)
        assert promotion(FIRST)(Tracking(uri=middle.uri)).number == 1
    assert len(client.search_model_versions(f"name = '{JOURNAL}'")) == 2
    assert [entry.number for entry in journal.read(client)] == [1]


def test_a_release_whose_part_was_deleted_is_refused_and_named(client):
    number = client.get_model_version("unimed-medvlm", BROKEN).tags["unimed-reasoner"]
    uri, release = client.tracking_uri, f"unimed-medvlm version {BROKEN}"
    client.set_model_version_tag("unimed-reasoner", number, "manifest_sha256", "0" * 64)
    assert f"{release}: expected its part unimed-reasoner version {number} to have the manifest sha256" in refused(
        client.tracking_uri, BROKEN
    )
    client.delete_model_version("unimed-reasoner", number)
    assert f"{release}: expected its part unimed-reasoner version {number} in the registry, found none" in refused(
        client.tracking_uri, BROKEN
    )
    client.set_model_version_tag("unimed-medvlm", BROKEN, "manifest_sha256", "0" * 64)
    assert f"{release}: expected a release.json with the sha256 of its tag" in refused(uri, BROKEN)
    assert releases.aliases(client.tracking_uri) == {}


def test_a_champion_that_was_deleted_takes_an_override_and_is_skipped_by_no_rollback(client, tmp_path):
    settings = Tracking(uri=client.tracking_uri)
    gone = releases.add(tmp_path, client.tracking_uri, f"gone from {client.tracking_uri[-5:]}")
    promote.promote(settings, gone, ANN)
    client.delete_model_version("unimed-medvlm", gone)
    reason = f"expected to compare with the champion, found unimed-medvlm version {gone}: expected it in the registry as the journal has it"
    assert reason in refused(client.tracking_uri, FIRST)
    promote.promote(settings, FIRST, Said("ann", "", journal.Override("ann", "it is gone", journal.date.max)))
    assert releases.aliases(client.tracking_uri) == {"champion": FIRST}
    with pytest.raises(InputError, match=f"version {gone}: expected it in the registry as the journal has it, found it deleted"):
        promote.rollback(settings, ANN)


def test_a_login_that_is_wrong_is_one_sentence_without_the_password(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-of-another")
    said = refused(client.tracking_uri, FIRST)
    assert "MLflow at 127.0.0.1: expected it to promote a release, found:" in said and "canary" not in said
