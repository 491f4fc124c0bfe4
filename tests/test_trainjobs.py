"""A TrainJob that is followed through an API that breaks off, forgets, and fails for a while."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes_api import GONE, Handler, KubernetesApi, status
from launching import COMPLETE, NAME, ORDER, ends, impatient, run

from pipelines import launch, trainjobs
from pipelines.watch import TrainingError

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """A cluster to launch in."""
    yield from impatient(tmp_path, monkeypatch)


def again(api: KubernetesApi) -> None:
    """Someone deletes the TrainJob while the watch is down, and someone makes it anew."""
    api.remove(NAME)
    api.add(launch.manifest(ORDER, None))
    api.forget()


@pytest.mark.parametrize("deletes", [lambda api: api.remove(NAME), again], ids=["deleted", "made anew"])
def test_a_train_job_that_someone_deletes_is_a_failure(api: KubernetesApi, deletes: Callable[[KubernetesApi], None]):
    with pytest.raises(TrainingError, match="found it deleted by someone else"):
        run(api, lambda: deletes(api))


def cut(handler: Handler, text: str = '{"type": "MODI') -> None:
    """The connection breaks off, in the middle of a line."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.chunk(text)
    handler.close_connection = True


def silent(handler: Handler) -> None:
    """The connection stays open and nothing comes any more."""
    handler.watch("", 10**9, 60)


def expired(handler: Handler) -> None:
    """The stream says that its version is too old."""
    handler.server.history.insert(0, (10**9, GONE))
    handler.watch("", 0, 0.02)
    del handler.server.history[0]


@pytest.mark.parametrize("breaks", [cut, silent, expired, status(410, "Expired"), status(500, "etcd")], ids=range(5))
def test_a_watch_that_breaks_off_goes_on_and_misses_nothing(
    api: KubernetesApi, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[Handler], None]
):
    monkeypatch.setattr(trainjobs, "TIMEOUT_S", (1, 0.2))
    api.fail("watch", breaks, breaks)
    run(api, ends(api))
    assert api.jobs[NAME]["status"]["conditions"] == [COMPLETE]


def test_a_watch_goes_on_where_it_was_and_lists_anew_only_when_that_is_too_old(api: KubernetesApi):
    run(api, lambda: api.update(NAME, number=1), lambda: api.fail("watch", cut), lambda: None, ends(api))
    begins = [request for request in api.asked if request.startswith("watch")]
    assert (begins[0], set(begins[1:])) == ("watch 101", {"watch 102"})
    assert api.asked.count("list") == 1
    api.asked.clear()
    api.remove(NAME)
    run(api, lambda: api.forget(), ends(api))
    assert api.asked.count("list") == 2


def test_failures_add_up_only_while_nothing_else_is_heard(api: KubernetesApi):
    def news(handler: Handler) -> None:
        api.update(NAME, number=api.version)
        cut(handler, json.dumps(api.history[-1][1]) + "\n")

    bearable = len(trainjobs.PAUSES_S)
    run(
        api,
        *[lambda: api.fail("watch", *[cut] * bearable)] * 3,
        lambda: api.fail("watch", *[news] * 2 * bearable),
        *[lambda: None] * 20,
        ends(api),
    )
    api.remove(NAME)
    with pytest.raises(TrainingError, match="expected an answer"):
        run(api, lambda: api.fail("watch", *[cut] * (bearable + 1)), ends(api))
