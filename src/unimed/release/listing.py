"""The releases in the registry side by side, and the journal: as text for people, as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Any

from unimed import mlflow_server
from unimed.errors import InputError
from unimed.release import journal, registered
from unimed.release.journal import Entry, Override
from unimed.release.parts import REGISTERED, RELEASE
from unimed.settings import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient


def releases(settings: Tracking, today: date) -> dict[str, Any]:
    """All releases, newest first, and the journal, oldest first; mends the aliases on the way."""
    with mlflow_server.reach(settings, "list the releases") as client:
        entries = journal.mend(client)
        aliases: dict[str, list[str]] = {}
        for model in client.search_registered_models(f"name = '{RELEASE}'"):
            for alias, number in sorted(model.aliases.items()):
                aliases.setdefault(str(number), []).append(alias)
        numbers = sorted((int(version.version) for version in client.search_model_versions(f"name = '{RELEASE}'")), reverse=True)
        found = [_release(client, str(number), aliases.get(str(number), []), entries, today) for number in numbers]
    return {"releases": found, "journal": [_entry(entry, today) for entry in entries]}


def _release(client: "MlflowClient", number: str, aliases: Sequence[str], entries: Sequence[Entry], today: date) -> dict[str, Any]:
    told = {"version": number, "aliases": aliases, "overrides": [_override(one, today) for one in journal.overrides(entries, number)]}
    try:
        release = registered.find(client, number)
        rows = {f"{row['stage']} / {row['metric']}": row for row in release.manifest["evaluation"]["rows"]}
        scores = {name: rows[name] for name in release.gate.margins if name in rows}
    except InputError as error:
        return {**told, "verdict": str(error), "scores": {}, "parts": {}}
    parts = {name: release.version.tags[name] for name in REGISTERED.values() if name in release.version.tags}
    return {**told, "verdict": "passed", "scores": scores, "parts": parts}


def _entry(entry: Entry, today: date) -> dict[str, Any]:
    override = _override(entry.override, today) if entry.override else None
    return {**asdict(entry), "when": f"{entry.when:%Y-%m-%dT%H:%M:%SZ}", "override": override}


def _override(override: Override, today: date) -> dict[str, Any]:
    return {**asdict(override), "until": override.until.isoformat(), "expired": override.expired(today)}


def text(found: Mapping[str, Any]) -> str:
    """The listing as tables: releases, their headline scores, the journal."""
    releases, entries = found["releases"], found["journal"]
    if not releases:
        return f"no version of {RELEASE} is registered; `unimed release` makes one"
    parts = [name for name in REGISTERED.values() if any(name in release["parts"] for release in releases)]
    head = ["version", "aliases", "gate", *(name.removeprefix("unimed-") for name in parts), "override"]
    rows = [[*_about(release), *(release["parts"].get(name, "-") for name in parts), _overridden(release)] for release in releases]
    blocks = [_table([head, *rows])]
    names = dict.fromkeys(name for release in releases for name in release["scores"])
    if names:
        scores = [[name, *(_score(release["scores"].get(name)) for release in releases)] for name in names]
        blocks.append(_table([["score", *(f"version {release['version']}" for release in releases)], *scores]))
    if entries:
        blocks.append(_table([["entry", "when", "who", "change", "why", "override"], *map(_change, entries)]))
    return "\n\n".join(blocks)


def _about(release: Mapping[str, Any]) -> list[str]:
    return [release["version"], ", ".join(release["aliases"]) or "-", release["verdict"]]


def _overridden(release: Mapping[str, Any]) -> str:
    return "; ".join(map(_words, release["overrides"])) or "-"


def _words(override: Mapping[str, Any]) -> str:
    end = f"EXPIRED on {override['until']}" if override["expired"] else f"until {override['until']}"
    return f"{override['name']}: {override['reason']} ({end})"


def _score(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    return f"{row['value']:.3f}" + ("" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})")


def _change(entry: Mapping[str, Any]) -> list[str]:
    change = f"{entry['action']} {entry['before'] or 'none'} to {entry['version']}"
    override = _words(entry["override"]) if entry["override"] else "-"
    return [str(entry["number"]), entry["when"], entry["who"], change, entry["why"] or "-", override]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns; what is no printable character, and could move a terminal's cursor, becomes a question mark."""
    clean = [["".join(letter if letter.isprintable() else "?" for letter in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in clean)
