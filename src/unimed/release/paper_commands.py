"""Commands that tell of a release: what it was made of, whether it is what it says, its card, and the keys that sign it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from unimed.release.parts import IN_USE

Release = Annotated[
    str, typer.Argument(help="models:/unimed-medvlm@ALIAS, models:/unimed-medvlm/NUMBER, or a folder such as reports/release.")
]

keys = typer.Typer(help="Keys that releases are signed with.", no_args_is_help=True)


def add(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (trace, verify, card):
        app.command()(command)
    app.add_typer(keys, name="keys")


def trace(
    release: Release = IN_USE,
    check: Annotated[bool, typer.Option("--verify", help="Hash everything on the way; exit code 1 when something does not match.")] = False,
    case: Annotated[str, typer.Option(help="The other way round: what saw this case, named DATASET/CASE.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with hashes in full.")] = False,
) -> None:
    """Print what a release or model was made of, down to data and licences."""
    from unimed import mlflow_server
    from unimed.release import case as cases
    from unimed.release import trace as traces

    settings = mlflow_server.configured()
    tree = cases.trace(case, settings, Path()) if case else traces.trace(release, settings, Path(), check)
    typer.echo(json.dumps(tree.as_json(), indent=1, ensure_ascii=False) if as_json else tree.text())
    if check and (fault := next(tree.faults(), "")):
        typer.echo(f"unimed: {fault}", err=True)
        raise typer.Exit(1)


def verify(
    release: Release = IN_USE,
    key: Annotated[Path | None, typer.Option(help="The public key that the signature must be made with, as PEM.")] = None,
) -> None:
    """Check every file of a release, its parts that are here, and its signature."""
    from unimed import mlflow_server, recorder
    from unimed.release import closure
    from unimed.release import verify as verification

    if not release.startswith(closure.SCHEME):
        _tell(verification.verify(Path(release), Path("models"), key))
        return
    with closure.opened(mlflow_server.configured(), f"hand out {release}") as (client, cache):
        version, folder = closure.handed(client, release, cache)
        _tell(verification.verify(folder, Path("models"), key, version.tags.get(recorder.SEALED, "")))


def _tell(lines: Iterator[str]) -> None:
    for line in lines:
        typer.echo(line)
    typer.echo("all of it matches")


def card(release: Release = IN_USE) -> None:
    """Print the model card of a release, with the override that it is in use by, if any."""
    from unimed import mlflow_server
    from unimed.release import cards, closure, journal

    if not release.startswith(closure.SCHEME):
        typer.echo(cards.read(Path(release)), nl=False)
        return
    with closure.opened(mlflow_server.configured(), f"hand out {release}") as (client, cache):
        version, folder = closure.handed(client, release, cache)
        typer.echo(cards.with_overrides(cards.read(folder), journal.overrides(journal.read(client), str(version.version))), nl=False)


@keys.command()
def new(folder: Annotated[Path, typer.Argument(help="Where the pair is written; keep private.pem out of git and out of images.")]) -> None:
    """Make a key pair: private.pem signs (UNIMED_SIGNING_KEY names it), public.pem verifies."""
    from unimed.release import signing

    private, public = signing.new_keys(folder)
    typer.echo(f"private key  {private} (keep it to yourself; export {signing.KEY}={private})\npublic key   {public} (give it to everyone)")
