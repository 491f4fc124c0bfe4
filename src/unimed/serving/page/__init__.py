"""The page of a server, for a browser: three files of its own, nothing from elsewhere, and no leave to send anything elsewhere."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
"""What a browser asks for, the file and its kind; anybody who reaches the server may have them, since they hold nothing of a model."""

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def add(app: FastAPI) -> None:
    """Have the server show the page."""
    for path, (name, kind) in FILES.items():
        app.add_route(path, _showing(Path(__file__).with_name(name).read_bytes(), kind), methods=["GET"], include_in_schema=False)


def _showing(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return show
