"""The journal of promotions: which release is champion, since when, by whom and why. The aliases in the registry are what it says.

MLflow gives versions of a registered model their numbers one after the other, whoever asks at once, but an alias goes to who writes last.
So each change is a version of a registered model of its own, and counts only if it starts from the champion that those before it left:
of several at once one wins, and a change has happened exactly when its entry is there.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Literal, cast, get_args

from unimed import mlflow_server
from unimed.errors import InputError
from unimed.recorder import SEALED
from unimed.release.parts import RELEASE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

JOURNAL = "unimed-medvlm-journal"
CHAMPION, PREVIOUS = "champion", "previous"
"""Aliases: the release in use, and the one that a rollback would go back to."""

Action = Literal["promote", "rollback"]

_ABOUT = "Every promotion and rollback of unimed-medvlm, in order; its aliases follow from these. Made by `unimed promote` and `rollback`."
_PAGE = 1000


@dataclass(frozen=True)
class Override:
    """A person's word that a release may be champion although the comparison says otherwise, until a day."""

    name: str
    reason: str
    until: date

    def expired(self, today: date) -> bool:
        """Whether its last day has passed."""
        return today > self.until


@dataclass(frozen=True)
class Said:
    """Who changes the champion, why, and under which override."""

    who: str
    why: str = ""
    override: Override | None = None


@dataclass(frozen=True)
class Release:
    """A release as an entry names it: a number can be given again where somebody deletes the registered model, a hash cannot."""

    version: str
    manifest_sha256: str


@dataclass(frozen=True)
class Entry:
    """A change of the champion: `version` is champion after it, `before` was until then."""

    number: int
    action: Action
    version: str
    before: str | None
    who: str
    why: str
    when: datetime
    override: Override | None
    manifest_sha256: str
    attempt: str
    """Random: MLflow's client sends a request again whose answer was lost, and so may make two entries of one change."""

    @property
    def release(self) -> Release:
        """The release that it made champion."""
        return Release(self.version, self.manifest_sha256)


def read(client: "MlflowClient") -> list[Entry]:
    """The entries that count, in order."""
    return counting(_all(client))


def counting(tried: Sequence[Entry]) -> list[Entry]:
    """Of entries in the order in which they were made those that count."""
    found: list[Entry] = []
    champions: list[Release] = []
    for entry in tried:
        if _counts(entry, champions):
            found.append(entry)
            champions = _after(champions, entry)
    return found


def _counts(entry: Entry, champions: Sequence[Release]) -> bool:
    """Whether it starts from the present champion and leads to another release, a rollback to the one before."""
    starts = entry.before == (champions[-1].version if champions else None)
    return starts and (entry.version != entry.before if entry.action == "promote" else champions[-2:-1] == [entry.release])


def line(entries: Sequence[Entry]) -> list[Release]:
    """The champions that lead to the present one, which is the last: a rollback takes the last away, so that two go back two."""
    champions: list[Release] = []
    for entry in entries:
        champions = _after(champions, entry)
    return champions


def _after(champions: Sequence[Release], entry: Entry) -> list[Release]:
    return list(champions[:-1]) if entry.action == "rollback" else [*champions, entry.release]


def champion(entries: Sequence[Entry]) -> str | None:
    """The version that is champion."""
    return entries[-1].version if entries else None


def overrides(entries: Sequence[Entry], version: str) -> list[Override]:
    """The override that a release was last promoted under, if it was, be it in force or expired."""
    promotions = [entry for entry in entries if entry.version == version and entry.action == "promote"]
    return [entry.override for entry in promotions[-1:] if entry.override]


def write(client: "MlflowClient", release: "ModelVersion", action: Action, before: str | None, said: Said) -> Entry:
    """Enter a change to `release`, a version of the registry; returns the entry. Raises InputError when another change came first."""
    mlflow_server.model(client, JOURNAL, _ABOUT)
    tags = {"action": action, "from": before or "", "to": str(release.version), "who": said.who, "why": said.why}
    tags |= {SEALED: release.tags[SEALED], "attempt": uuid.uuid4().hex}
    if said.override:
        tags |= {"override_reason": said.override.reason, "override_until": said.override.until.isoformat()}
    about = {**tags, **mlflow_server.TAGS}
    client.create_model_version(JOURNAL, str(release.source), release.run_id, about, description=_sentence(tags), await_creation_for=0)
    entries = read(client)
    for entry in entries:
        if entry.attempt == tags["attempt"]:
            return entry
    # Numbers are given in order of commit, so that whatever can come before one's own entry is there by now.
    now = f"that {entries[-1].who} made version {entries[-1].version} champion meanwhile"
    raise InputError(f"{RELEASE}: expected {_named(before)} as champion still, found {now}; look at `unimed releases` and decide again")


def mend(client: "MlflowClient") -> list[Entry]:
    """Let the aliases say what the journal says; returns its entries. Repeats while others write."""
    entries = read(client)
    while True:
        _align(client, entries)
        seen, entries = entries, read(client)
        if entries == seen:
            return entries


def _align(client: "MlflowClient", entries: Sequence[Entry]) -> None:
    """Set, move or take away the two aliases where they differ; a release that is no longer there gets none."""
    if not entries:
        return
    now = {alias: str(version) for alias, version in client.get_registered_model(RELEASE).aliases.items()}
    champions = line(entries)
    for alias, release in ((CHAMPION, champions[-1]), (PREVIOUS, champions[-2] if len(champions) > 1 else None)):
        wanted = release.version if release and is_there(client, release) else None
        if wanted and now.get(alias) != wanted:
            client.set_registered_model_alias(RELEASE, alias, wanted)
        if not wanted and alias in now:
            client.delete_registered_model_alias(RELEASE, alias)


def is_there(client: "MlflowClient", release: Release) -> bool:
    """Whether the registry still has this very release."""
    found = client.search_model_versions(f"name = '{RELEASE}' and version_number = {release.version}")
    return any(version.tags.get(SEALED) == release.manifest_sha256 for version in found)


def _all(client: "MlflowClient") -> list[Entry]:
    """All entries that were ever tried, in order; a version that is none, made by other hands, is left out."""
    found, token = [], None
    while True:
        # By number, so that an entry made meanwhile moves none to another page.
        page = client.search_model_versions(f"name = '{JOURNAL}'", _PAGE, ["version_number ASC"], token)
        found += page
        if not (token := page.token):
            return [entry for version in found if (entry := _entry(version))]


def _entry(version: "ModelVersion") -> Entry | None:
    tags = version.tags
    if tags.get("action") not in get_args(Action) or not {"from", "to", "who", "why", "attempt", SEALED} <= tags.keys():
        return None
    try:
        override = _override(tags)
    except ValueError:
        return None
    when = datetime.fromtimestamp(version.creation_timestamp // 1000, UTC)
    number, action, before = int(version.version), cast(Action, tags["action"]), tags["from"] or None
    return Entry(number, action, tags["to"], before, tags["who"], tags["why"], when, override, tags[SEALED], tags["attempt"])


def _override(tags: Mapping[str, str]) -> Override | None:
    if "override_reason" not in tags:
        return None
    return Override(tags["who"], tags["override_reason"], date.fromisoformat(tags.get("override_until", "")))


def _named(version: str | None) -> str:
    return f"version {version}" if version else "none"


def _sentence(tags: Mapping[str, str]) -> str:
    """The entry as the registry's page shows it."""
    why = f": {tags['why']}" if tags["why"] else ""
    until = f" Override until {tags['override_until']}: {tags['override_reason']}." if "override_until" in tags else ""
    return f"{tags['who']}, {tags['action']} from {_named(tags['from'] or None)} to version {tags['to']}{why}.{until}"
