"""The command `unimed serve`."""

import ipaddress
import logging
import math
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimed import environment
from unimed.errors import InputError
from unimed.release.parts import IN_USE

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from unimed.serving.follow import Source

log = logging.getLogger("serving")

TOKEN = "UNIMED_TOKEN"  # noqa: S105  a name


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(serve)


def serve(
    model: Annotated[str, typer.Option(help="A model folder, such as models/reasoner, or a release in MLflow.")] = IN_USE,
    host: Annotated[str, typer.Option(help=f"Where to listen; others than this machine need {TOKEN} in the environment.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    batch: Annotated[int, typer.Option(min=1, help="Answers decoded together.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Requests that wait; above them the answer is 429.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds from a request to the end of its answer.")] = 60,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, its reasoning included.")] = 256,
    max_image_mb: Annotated[int, typer.Option(min=1, help="Of an image file.")] = 16,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of an image.")] = 2**26,
) -> None:
    """Answer questions about images over HTTP; docs/serving.md is the runbook."""
    environment.start_logging()
    token = os.environ.get(TOKEN, "")
    check(host, token)
    with _bound(host, port) as listener:
        from unimed.serving import app, follow, limits, metrics

        numbers = metrics.Metrics()
        bounds = limits.Limits(batch, queue, timeout, max_new_tokens, max_image_mb * 2**20, max_pixels)
        follower = follow.Follower(_source(model), numbers)
        _listen(app.make(follower, bounds, numbers, token), listener, bounds.timeout_s)


def check(host: str, token: str) -> None:
    """That whoever can reach the server must know its token. Raises InputError for a host or a token that cannot be used."""
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError(f"{TOKEN}: expected printable ASCII without spaces, found other characters")
    if not token and not _is_loopback(host):
        raise InputError(f"--host {host}: expected {TOKEN} in the environment where others can reach the server, found none; set it")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    """A socket that holds the address while the model is loaded, and refuses connections until the server listens."""
    try:
        [(family, *_, place), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: expected an address to listen on, found: {error.strerror}") from None
    return listener


def _source(model: str) -> "Source":
    """Where releases come from, by what --model says."""
    from unimed.serving import source

    return source.registry(model) if model.startswith("models:") else source.folder(Path(model))


def _listen(app: "ASGIApp", listener: socket.socket, grace_s: float) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is in hand; the log names the address."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again once it has ended in good order; this is where that leads.
        signal.signal(number, lambda number, frame: None)
    log.info("listening on %s port %d", *listener.getsockname()[:2])
    server(app, grace_s).run([listener])


def server(app: "ASGIApp", grace_s: float) -> "uvicorn.Server":
    """uvicorn for the app; told to end it takes nothing new and waits for what is in hand, `grace_s` at most."""
    import uvicorn

    quiet = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
    return uvicorn.Server(uvicorn.Config(app, lifespan="on", timeout_graceful_shutdown=math.ceil(grace_s), **quiet))
