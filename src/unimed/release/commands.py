"""Commands about releases in the registry: which there are, which one is in use, and a change of that."""

import getpass
import json
import os
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from unimed.errors import InputError

if TYPE_CHECKING:
    from unimed.release.journal import Entry, Override
    from unimed.settings import Tracking

LONGEST_OVERRIDE = timedelta(days=366)
LONGEST_TEXT = 500

Why = Annotated[str, typer.Option(help="For the journal.")]


def add(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (promote, rollback, releases):
        app.command()(command)


def promote(
    version: Annotated[str | None, typer.Argument(help="The version of unimed-medvlm; the challenger when left out.")] = None,
    why: Why = "",
    override: Annotated[str, typer.Option(help="Promote what the comparison speaks against, for this reason; needs --until.")] = "",
    until: Annotated[str, typer.Option(help="The last day of the override, as 2027-01-31; within a year.")] = "",
) -> None:
    """Make a release champion, if it is as registered and no worse than the present one."""
    from unimed.release import promote as promotion
    from unimed.release.journal import Said

    if version is not None and not (version.isascii() and version.isdecimal()):
        raise InputError(f"VERSION: expected the number of a version, found {version!r}; `unimed releases` lists them")
    said = Said(_who(), _text("--why", why), _override(override, until, _today()))
    _tell(promotion.promote(_settings(), version, said))


def rollback(why: Why = "") -> None:
    """Make the champion before the present one champion again; twice goes back two."""
    from unimed.release import promote as promotion
    from unimed.release.journal import Said

    _tell(promotion.rollback(_settings(), Said(_who(), _text("--why", why))))


def releases(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False) -> None:
    """List releases with aliases, scores, overrides and parts, then the journal."""
    from unimed.release import listing

    found = listing.releases(_settings(), _today())
    typer.echo(json.dumps(found) if as_json else listing.text(found))


def _tell(entry: "Entry") -> None:
    since = f"{entry.action} by {entry.who}, {entry.when:%Y-%m-%d %H:%M} UTC"
    typer.echo(f"unimed-medvlm version {entry.version} is champion, before it {entry.before or 'none'} (entry {entry.number}: {since})")


def _settings() -> "Tracking":
    """Where the registry is, by ./params.yaml if there is one. Raises InputError when it would be a file that is not there."""
    from unimed import mlflow_server

    settings = mlflow_server.configured()
    if reason := mlflow_server.absence(settings):
        raise InputError(reason)
    return settings


def _who() -> str:
    """UNIMED_USER, else the name one is logged in by."""
    try:
        name = os.environ.get("UNIMED_USER") or getpass.getuser()
    except (KeyError, OSError):
        raise InputError("UNIMED_USER: expected a name for the journal, found neither it nor a login name; set it") from None
    return _text("UNIMED_USER", name)


def _override(reason: str, until: str, today: date) -> "Override | None":
    from unimed.release.journal import Override

    if not reason.strip() and not until:
        return None
    if not reason.strip() or not until:
        raise InputError("--override: expected a reason, and the last day it holds with --until, found only one of them; give both")
    try:
        day = date.fromisoformat(until)
    except ValueError:
        raise InputError(f"--until: expected a day like {today + timedelta(days=30)}, found {until!r}") from None
    if not today < day <= today + LONGEST_OVERRIDE:
        raise InputError(f"--until: expected a day after {today} and at most {LONGEST_OVERRIDE.days} days on, found {day}")
    return Override(_who(), _text("--override", reason), day)


def _text(where: str, text: str) -> str:
    """A line of text, without spaces around it."""
    if len(text) > LONGEST_TEXT or not text.isprintable():
        raise InputError(
            f"{where}: expected one line of at most {LONGEST_TEXT} characters, found {len(text)} or a sign that cannot be printed"
        )
    return text.strip()


def _today() -> date:
    return datetime.now(UTC).date()
