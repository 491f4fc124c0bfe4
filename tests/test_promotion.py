"""Promotion, rollback and the listing in a registry that is a local file, by the commands a person types."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import releases
from mlflow import MlflowClient
from typer.testing import CliRunner

from conftest import NOWHERE
from unimed.cli import app
from unimed.errors import InputError
from unimed.release import journal, registered
from unimed.release.journal import JOURNAL
from unimed.settings import Tracking

pytestmark = pytest.mark.slow

FIRST, SECOND, WORSE, ELSEWHERE = "1", "2", "3", "4"
"""Two equal releases, one that lost a tenth of its accuracy, and one that was judged on other items."""

DAY = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The address of a registry with four releases."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert releases.add(folder, uri, "first") == FIRST
        assert releases.add(folder, uri, "second") == SECOND
        assert releases.add(folder, uri, "worse", closed=0.8) == WORSE
        assert releases.add(folder, uri, "elsewhere", seed=1) == ELSEWHERE
    return uri


@pytest.fixture
def registry(kept, tmp_path, monkeypatch):
    """That registry without a champion."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", kept)
    monkeypatch.setenv("UNIMED_USER", "ann")
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(kept, kept)
    if client.search_registered_models(f"name = '{JOURNAL}'"):
        client.delete_registered_model(JOURNAL)
    for alias in releases.aliases(kept):
        client.delete_registered_model_alias("unimed-medvlm", alias)
    return client


def unimed(*words: str) -> str:
    """What a command prints. Raises InputError as the command does."""
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        unimed(*words)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def champions(registry: MlflowClient) -> dict[str, str]:
    return releases.aliases(registry.tracking_uri)


def test_a_release_becomes_champion_and_a_rollback_takes_it_back(registry):
    assert "unimed-medvlm version 1 is champion, before it none (entry 1: promote by ann, " in unimed(
        "promote", FIRST, "--why", "the first"
    )
    assert champions(registry) == {"champion": FIRST}
    unimed("promote", SECOND)
    assert champions(registry) == {"champion": SECOND, "previous": FIRST}
    assert "version 1 is champion, before it 2 (entry 3: rollback by ann" in unimed("rollback", "--why", "complaints")
    assert champions(registry) == {"champion": FIRST}
    assert "expected a champion before the present one, found none" in refused("rollback")


def test_the_challenger_is_promoted_when_no_version_is_named(registry):
    unimed("promote")
    assert champions(registry) == {"champion": ELSEWHERE}


def test_what_is_champion_already_stays_it_without_another_entry(registry):
    once = unimed("promote", FIRST)
    assert unimed("promote", FIRST) == once
    assert "leave it out" in refused("promote", FIRST, "--override", "why not", "--until", DAY)


@pytest.mark.parametrize(
    ("version", "reason"),
    [(WORSE, "found -0.100 (-0.100 to -0.100), n 240"), (ELSEWHERE, "found 0 shared items of 0 patients")],
)
def test_a_release_that_is_worse_or_cannot_be_compared_takes_an_override(registry, version, reason):
    unimed("promote", FIRST)
    assert reason in refused("promote", version)
    assert champions(registry) == {"champion": FIRST}
    unimed("promote", version, "--override", "a new scanner", "--until", DAY)
    assert champions(registry) == {"champion": version, "previous": FIRST}
    listed = unimed("releases")
    assert listed.count(f"ann: a new scanner (until {DAY})") == 2, "beside the release and in the journal"


def test_an_override_of_nothing_is_refused(registry):
    assert "expected something to override" in refused("promote", FIRST, "--override", "to be sure", "--until", DAY)
    assert champions(registry) == {}


TOO_FAR = (datetime.now(UTC) + timedelta(days=400)).date().isoformat()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--override", "so"), "found only one of them"),
        (("--until", DAY), "found only one of them"),
        (("--override", "  ", "--until", DAY), "found only one of them"),
        (("--override", "so", "--until", "2020-01-01"), "--until: expected a day after"),
        (("--override", "so", "--until", datetime.now(UTC).date().isoformat()), "--until: expected a day after"),
        (("--override", "so", "--until", TOO_FAR), "--until: expected a day after"),
        (("--override", "so", "--until", "soon"), "--until: expected a day like"),
        (("--override", "s\x1b[2J", "--until", DAY), "--override: expected one line"),
        (("--why", "w" * 501), "--why: expected one line of at most 500 characters, found 501"),
        (("one",), "VERSION: expected the number of a version, found 'one'"),
        (("17",), "expected a version 17 in the registry, found none"),
    ],
)
def test_words_that_say_nothing_are_one_sentence_and_change_nothing(registry, words, sentence):
    assert sentence in refused("promote", *words)
    assert champions(registry) == {}


def test_an_override_is_marked_when_it_has_expired(registry):
    unimed("promote", FIRST)
    unimed("promote", WORSE, "--override", "a new scanner", "--until", DAY)
    entry = registry.search_model_versions(f"name = '{JOURNAL}'", order_by=["version_number DESC"])[0]
    registry.set_model_version_tag(JOURNAL, str(entry.version), "override_until", "2026-01-31")
    assert unimed("releases").count("ann: a new scanner (EXPIRED on 2026-01-31)") == 2
    found = json.loads(unimed("releases", "--json"))
    assert [one["overrides"][0]["expired"] for one in found["releases"] if one["version"] == WORSE] == [True]


def test_the_listing_says_what_each_release_is(registry):
    unimed("promote", FIRST)
    unimed("promote", SECOND, "--why", "as good")
    found = json.loads(unimed("releases", "--json"))
    assert [release["version"] for release in found["releases"]] == [ELSEWHERE, WORSE, SECOND, FIRST]
    second = found["releases"][2]
    assert (second["aliases"], second["verdict"], second["overrides"]) == (["champion"], "passed", [])
    assert second["parts"] == {
        "unimed-align": "1", "unimed-vqa-expert": "1", "unimed-grounding-expert": "1", "unimed-router": "1", "unimed-reasoner": "2",
    }  # fmt: skip
    assert [row["value"] for row in second["scores"].values()] == [0.9, 0.8]
    last = found["journal"][-1]
    assert [last[key] for key in ("action", "before", "version", "who", "why", "override")] == [
        "promote",
        FIRST,
        SECOND,
        "ann",
        "as good",
        None,
    ]
    text = unimed("releases")
    assert re.search(r"(?m)^2 +champion +passed +1 +1 +1 +1 +2 +-$", text) and re.search(r"(?m)^1 +previous +passed", text)
    assert re.search(r"(?m)^2 +\S+Z +ann +promote 1 to 2 +as good +-$", text)


def test_aliases_that_other_hands_moved_are_mended_by_the_next_command(registry):
    unimed("promote", FIRST)
    unimed("promote", SECOND)
    registry.set_registered_model_alias("unimed-medvlm", "champion", WORSE)
    registry.delete_registered_model_alias("unimed-medvlm", "previous")
    unimed("releases")
    assert champions(registry) == {"champion": SECOND, "previous": FIRST}


def test_without_a_registry_a_command_says_so_and_makes_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "mlflow.db: expected MLflow's database, found none; change into the project's folder" in refused("releases")
    assert not list(tmp_path.iterdir())


def test_the_gate_takes_no_registry_as_no_champion_and_a_dead_server_as_an_error(registry, monkeypatch):
    assert registered.champion(Tracking()) is None, "nobody is champion yet"
    unimed("promote", FIRST)
    found = registered.champion(Tracking())
    assert found and (found.version, found.data) == (FIRST, {"vqa": "0.dir"}) and len(found.scores) > 240
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///absent.db")
    assert registered.champion(Tracking()) is None and not Path("absent.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    with pytest.raises(InputError, match="expected it to give the scores of the champion, found: 127.0.0.1:9 does not answer"):
        registered.champion(Tracking())


FOREIGN = [{"action": "delete"}, {"override_reason": "so"}, {"override_reason": "so", "override_until": "soon"}]


def test_versions_that_other_hands_made_are_no_entries_and_many_entries_take_several_pages(registry, monkeypatch):
    monkeypatch.setattr(journal, "_PAGE", 2)
    unimed("promote", FIRST)
    about = {"action": "promote", "from": FIRST, "to": WORSE, "who": "eve", "why": "", "attempt": "1", "manifest_sha256": "0"}
    for tags in (*(about | tags for tags in FOREIGN), {"action": "promote"}):
        registry.create_model_version(JOURNAL, "nowhere", tags=tags)
    unimed("promote", SECOND)
    unimed("rollback")
    assert [entry.number for entry in journal.read(registry)] == [1, 6, 7]
    assert champions(registry) == {"champion": FIRST}
