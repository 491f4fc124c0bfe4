"""What a user is told when a Kubeflow Pipelines server cannot be reached, is another one, or refuses."""

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp_api import KfpApi, refusal, serving, settle

from conftest import NOWHERE
from pipelines import kfp_server, submit
from unimed.errors import InputError

TOKEN = "very-secret-token"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpApi]:
    settle(monkeypatch)
    with serving() as served:
        yield served


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    file = tmp_path / "pipeline.yaml"
    file.write_text("pipelineInfo: {name: uni-medvlm}\nroot: {dag: {tasks: {}}}\n")
    return file


def _submit(api: KfpApi, ir: Path, namespace: str | None = None) -> submit.Run:
    return submit.submit(ir, api.url, "rehearsals", "0123456789abcdef", namespace)


def _refused(api: KfpApi, ir: Path, *expected: str) -> str:
    with pytest.raises(InputError) as caught:
        _submit(api, ir)
    text = str(caught.value)
    assert all(part in text for part in (f"{api.url}: expected", ", found ", "; ", *expected)), text
    assert "\n" not in text
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    return text


def test_nothing_listening_is_told_in_one_sentence(api: KfpApi, ir: Path):
    api.url = NOWHERE
    _refused(api, ir, "nothing that answers", "refused", "--host")


def test_an_untrusted_connection_is_told_from_a_dead_one(api: KfpApi, ir: Path):
    api.url = api.url.replace("http:", "https:")
    _refused(api, ir, "certificate", "SSL_CERT_FILE")


@pytest.mark.parametrize("health", ["<html>log in</html>", {"status": "ok"}, []])
def test_another_server_is_told_from_kubeflow(api: KfpApi, ir: Path, health: object):
    api.health = health
    _refused(api, ir, "something else", "--host")


def test_a_path_that_is_not_there_is_told_from_kubeflow(api: KfpApi, ir: Path):
    api.url += "/pipeline"
    _refused(api, ir, "something else", "--host")


@pytest.mark.parametrize("health", [{"tag_name": "2.16.1"}, {"apiServerTagName": "v2.4.0"}])
def test_an_old_server_is_refused(api: KfpApi, ir: Path, health: dict):
    api.health = {"multi_user": False, **health}
    _refused(api, ir, "2.17 or later", *health.values())
    assert not api.pipelines


@pytest.mark.parametrize("tag", ["2.17.0", "2.20.1", "3.0.0", "unknown"])
def test_a_server_as_old_as_needed_or_of_unknown_age_is_accepted(api: KfpApi, ir: Path, tag: str):
    api.health["tag_name"] = tag
    assert _submit(api, ir)


def test_a_token_is_asked_for_used_and_never_shown(api: KfpApi, ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    api.token = TOKEN
    _refused(api, ir, "found none", "KFP_TOKEN")
    monkeypatch.setenv("KFP_TOKEN", TOKEN + "-of-yesterday")
    _refused(api, ir, "one that is refused", "KFP_TOKEN", "***")
    monkeypatch.setenv("KFP_TOKEN", TOKEN + "\n")
    assert _submit(api, ir)
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.delenv("KFP_TOKEN")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert _submit(api, ir)


REFUSALS = [
    ("POST /runs", (0, ""), "connection broken", "look in the UI"),
    ("POST /runs", refusal(403, "User 'me' is not authorized"), "the right to start a run", "--namespace"),
    ("GET /experiments", refusal(403, "User 'me' is not authorized"), "the right to find the experiment", "--namespace"),
    ("POST /pipelines/upload_version", (400, {"error_message": "Authorization Failure: me"}), "the right to upload", "role"),
    ("POST /pipelines/upload_version", (400, {"error_message": "invalid\npipeline spec"}), "invalid pipeline spec", "compile"),
    ("POST /runs", refusal(500, 'workflows "x" is forbidden: exceeded quota: runs'), "exceeded quota", "ResourceQuota"),
    ("POST /runs", refusal(403, 'workflows "x" is forbidden: exceeded quota: runs'), "exceeded quota", "ResourceQuota"),
    ("POST /runs", (502, "<html>bad gateway</html>"), "502", "ml-pipeline"),
    ("GET /pipelines/names/uni-medvlm", refusal(500, "a" * 9999), "aaa…", "ml-pipeline"),
]


@pytest.mark.parametrize(("where", "answer", "said", "remedy"), REFUSALS)
def test_every_refusal_is_one_sentence_with_its_own_remedy(api: KfpApi, ir: Path, where: str, answer: tuple, said: str, remedy: str):
    api.faults[where.replace(" ", " /apis/v2beta1")] = [answer]
    assert len(_refused(api, ir, said, remedy)) < 600
    assert not api.runs


def test_a_server_for_several_users_asks_for_a_namespace_and_one_for_one_user_is_sent_none(api: KfpApi, ir: Path):
    _submit(api, ir, "mine")
    api.health["multi_user"] = True
    _refused(api, ir, "--namespace")
    api.experiments.clear()
    _submit(api, ir, "mine")
    assert [one["namespace"] for one in api.experiments.values()] == ["mine"]


@pytest.mark.parametrize("host", ["localhost:8888", "http://", f"https://me:{TOKEN}@example.org", "file:///x"])
def test_an_address_that_is_none_is_refused_before_anything_is_sent(host: str):
    with pytest.raises(InputError, match="--host.*expected.*;") as caught:
        kfp_server.Server(host)
    assert TOKEN not in str(caught.value)


def test_an_address_copied_from_a_browser_works(api: KfpApi, ir: Path):
    run = submit.submit(ir, f"{api.url}/#/experiments?x=1", "rehearsals", "0123456789abcdef")
    assert run.url == f"{api.url}/#/runs/details/{run.id}"


@pytest.mark.parametrize("text", [None, "", "a: [", "a: 1", "\x00\xff"])
def test_a_file_that_is_no_pipeline_is_refused_before_anything_is_sent(api: KfpApi, tmp_path: Path, text: str | None):
    file = tmp_path / "pipeline.yaml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="pipeline.yaml: expected a compiled pipeline.*make compile"):
        _submit(api, file)
    assert not api.asked
