"""What MLflow has missed of earlier runs, sent from their outboxes; nothing is lost, and nothing is there twice."""

from pathlib import Path

import typer

from unimed import environment, mlflow_server, outbox, recorder
from unimed.outbox import Outbox
from unimed.settings import Tracking


def sync() -> None:
    """Send MLflow what it missed while it was down; however often it is interrupted and called again, it is there once."""
    environment.start_logging()
    sent, left = send(Path("runs"))
    for name in left:
        typer.echo(f"left     {name}: its run is still going on, or another sync is sending it")
    typer.echo(f"sent     {len(sent)} runs" if sent else "nothing to send" if not left else "nothing else to send")


def send(runs: Path) -> tuple[list[str], list[str]]:
    """Send the outboxes below `runs`, oldest first; gives the names of those sent and of those that someone else holds.

    Raises InputError when MLflow does not answer or refuses one; that one and those after it are kept.
    """
    sent, left = [], []
    for each in sorted(outbox.waiting(runs), key=_begun):
        with each.held(alone=True) as mine:
            if mine:
                _send(each)
        (sent if mine else left).append(str(each.folder))
    return sent, left


def _begun(waiting: Outbox) -> int:
    return next(waiting.messages(), {"milliseconds": 0})["milliseconds"]


def _send(waiting: Outbox) -> None:
    settings = Tracking(**next(waiting.messages())["settings"])
    with mlflow_server.reach(settings, f"take what {waiting.folder} holds") as client:
        recorder.deliver(client, waiting, waiting.messages())
    waiting.discard()
