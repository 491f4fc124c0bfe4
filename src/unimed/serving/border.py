"""What every request passes before anything of it is read: who asks, how large it is, whether there is room, and how long it may take."""

import asyncio
import hmac
import logging
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unimed.serving import page, problems
from unimed.serving.limits import Limits
from unimed.serving.metrics import Metrics

log = logging.getLogger("serving")

ANSWER, ALIVE = "/v1/answer", "/healthz"
OPEN = {ALIVE, *page.FILES}
"""What anybody may have, who has no token."""

RETRY_SECONDS = "1"


class Border:
    """Lets requests in, or says why not; counts them, gives each an id, and cuts off what takes too long."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, token: str):
        self._app, self._limits, self._metrics = app, limits, metrics
        self._token = token.encode()
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passing = _Passing(self._limits, receive, send)
        scope.setdefault("state", {})["request_id"] = passing.request_id
        if scope["path"] != ANSWER:
            refused = self._stranger(scope, passing)
            await (refused or self._app)(scope, receive, passing.send)
            return
        self.inside += 1
        self._metrics.inside.set(self.inside)
        try:
            refused = self._stranger(scope, passing) or self._too_much(scope, passing)
            await (refused(scope, receive, passing.send) if refused else self._pass(scope, passing))
        finally:
            self.inside -= 1
            self._metrics.inside.set(self.inside)
            self._metrics.requests.labels(passing.status or 499).inc()
            self._metrics.seconds.observe(time.monotonic() - passing.since)

    async def _pass(self, scope: Scope, passing: "_Passing") -> None:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await self._app(scope, passing.receive, passing.send)
        except TimeoutError:
            log.warning("request %s took longer than %g s", passing.request_id, self._limits.timeout_s)
            # What has begun cannot become an error; the server closes the connection, and a stream lacks its end.
            if not passing.status:
                await self._late(passing)(scope, passing.receive, passing.send)

    def _late(self, passing: "_Passing") -> Response:
        bound = f"{self._limits.timeout_s:g} s"
        if not passing.arrived:
            return problems.response(408, f"body: expected all of it within {bound}, found part of it", passing.request_id)
        return problems.response(504, f"server: expected an answer within {bound}, found none", passing.request_id)

    def _stranger(self, scope: Scope, passing: "_Passing") -> Response | None:
        given = Headers(scope=scope).get("authorization", "").encode("latin-1", "replace")
        if not self._token or scope["path"] in OPEN or hmac.compare_digest(given, b"Bearer " + self._token):
            return None
        detail = "authorization: expected the server's bearer token, found another or none"
        return problems.response(401, detail, passing.request_id, {"WWW-Authenticate": "Bearer"})

    def _too_much(self, scope: Scope, passing: "_Passing") -> Response | None:
        """Refusals that need only the head of a request; a method that is not POST is the app's to refuse."""
        headers = Headers(scope=scope)
        if scope["method"] != "POST":
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return problems.response(415, "content-type: expected application/json, found another or none", passing.request_id)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            return problems.response(413, _too_large(self._limits), passing.request_id)
        if self.inside > self._limits.room:
            detail = f"queue: expected at most {self._limits.room} requests at once, found more"
            return problems.response(429, detail, passing.request_id, {"Retry-After": RETRY_SECONDS})
        return None


class _Passing:
    """A request as it passes: bytes counted on the way in, status and id noted on the way out."""

    def __init__(self, limits: Limits, receive: Receive, send: Send):
        self.request_id = uuid.uuid4().hex
        self.since = time.monotonic()
        self.status = 0
        self.arrived = False
        self._limits, self._receive, self._send = limits, receive, send
        self._bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self.arrived = not message.get("more_body", False)
            if self._bytes > self._limits.body_bytes:
                raise HTTPException(413, _too_large(self._limits))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.request_id
        await self._send(message)


def _too_large(limits: Limits) -> str:
    return f"body: expected at most {limits.body_bytes} bytes, found more"
