"""A release becomes champion, or the champion before it comes back: one entry in the journal each, or one sentence about why not."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unimed import mlflow_server
from unimed.errors import InputError
from unimed.release import cards, comparison, journal, registered
from unimed.release.journal import Entry, Said
from unimed.release.parts import RELEASE
from unimed.release.registered import Registered
from unimed.settings import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SHOWN = 3
"""Reasons of a rejection that are told."""


def promote(settings: Tracking, number: str | None, said: Said) -> Entry:
    """Make a release champion, the challenger when none is named; returns the entry that did, maybe an earlier one.

    Raises InputError, with nothing changed, when the release or a part of it is not as registered, when it is worse than the champion or
    cannot be compared with it and there is no override, when there is one and nothing to override, and when another change came first.
    """
    with mlflow_server.reach(settings, "promote a release") as client:
        entries = journal.mend(client)
        release = registered.find(client, number or registered.challenger(client))
        if entries and entries[-1].version == release.number:
            _describe(client, entries)
            return _as_it_is(entries[-1], said)
        registered.verify_parts(client, release)
        reasons = _objections(client, release, entries)
        if reasons and not said.override:
            more = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
            remedy = "; mend that, or say why it may be so with --override and --until"
            raise InputError(f"{RELEASE} version {release.number}: not promoted: {'; '.join(reasons[:_SHOWN])}{more}{remedy}")
        if said.override and not reasons:
            raise InputError(f"--override: expected something to override, found {RELEASE} version {release.number} fit; leave it out")
        made = journal.write(client, release.version, "promote", journal.champion(entries), said)
        _describe(client, journal.mend(client))
        return made


def _as_it_is(entry: Entry, said: Said) -> Entry:
    if said.override:
        raise InputError(f"--override: expected another release than the champion, found version {entry.version}, which is; leave it out")
    return entry


def _objections(client: "MlflowClient", release: Registered, entries: Sequence[Entry]) -> list[str]:
    """Why the release should not follow the champion; empty when it may."""
    gate, new = release.gate, registered.scored(client, release)
    if not entries:
        return []
    try:
        before = registered.scored(client, registered.kept(client, entries[-1].release))
    except InputError as error:
        return [f"expected to compare with the champion, found {error}"]
    return [row.sentence for row in comparison.compare(new.scores, before.scores, gate) if row.outcome != "holds"]


def rollback(settings: Tracking, said: Said) -> Entry:
    """Make the champion before the present one champion again; returns the entry.

    Raises InputError, with nothing changed, when there was none, when it is no longer as registered, and when another change came first.
    """
    with mlflow_server.reach(settings, "roll back the champion") as client:
        entries = journal.mend(client)
        champions = journal.line(entries)
        if len(champions) < 2:
            raise InputError(f"{RELEASE}: expected a champion before the present one, found none; nothing to go back to")
        release = registered.kept(client, champions[-2])
        registered.verify_parts(client, release)
        made = journal.write(client, release.version, "rollback", champions[-1].version, said)
        _describe(client, journal.mend(client))
        return made


def _describe(client: "MlflowClient", entries: Sequence[Entry]) -> None:
    """Let the registry show of the champion, and of the one before the last change, whether an override holds it there."""
    last = entries[-1]
    for number in filter(None, (last.version, last.before)):
        if not (found := client.search_model_versions(f"name = '{RELEASE}' and version_number = {number}")):
            continue
        in_use = journal.overrides(entries, number) if number == last.version else []
        shown = cards.description(registered.find(client, number).manifest, in_use)
        if found[0].description != shown:
            client.update_model_version(RELEASE, number, shown)
