"""The service: questions about images answered over HTTP, its health and its numbers."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from unimed import NOTICE, answering
from unimed.answering import Question, Reply
from unimed.data import masks
from unimed.errors import InputError
from unimed.eval.decoding import Row
from unimed.serving import page, problems
from unimed.serving.batcher import Batcher, Job
from unimed.serving.border import ALIVE, ANSWER, Border
from unimed.serving.follow import Follower, Release
from unimed.serving.limits import Limits
from unimed.serving.metrics import Metrics
from unimed.serving.schema import WHEN, Answer, AnswerRequest, MarkedMask, Readiness, refusals

T = TypeVar("T")
READERS = 2
"""Images that are unpacked at a time: each may take gigabytes for a moment."""


class Service:
    """What answers requests: the release, the batcher, and a few hands that read images and draw masks."""

    def __init__(self, follower: Follower, limits: Limits, metrics: Metrics):
        self.follower, self.limits = follower, limits
        self.batcher = Batcher(limits, metrics)
        self._hands = ThreadPoolExecutor(READERS, "read")

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Answers within the block, and after it what is still in hand."""
        self.batcher.start()
        self.follower.start()
        try:
            yield
        finally:
            self.follower.stop()
            await asyncio.to_thread(self.batcher.stop)
            self._hands.shutdown(cancel_futures=True)

    async def ask(self, asked: AnswerRequest) -> Job:
        """A question in line. Raises InputError for one that cannot be asked."""
        release = self.follower.release
        row = await self._by_hand(_read, release, asked, self.limits)
        job = Job(release, row, asked.stream)
        self.batcher.put(job)
        return job

    async def reply(self, job: Job) -> Reply:
        """The reply of an answer that has ended."""
        return await self._by_hand(answering.reply, job.release.made, job.row)

    async def _by_hand(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._hands, work, *arguments)


def _read(release: Release, asked: AnswerRequest, limits: Limits) -> Row:
    if len(asked.image) > limits.image_characters:
        raise InputError(f"image: expected at most {limits.image_bytes} bytes, found more")
    try:
        content = base64.b64decode(asked.image, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("image: expected base64, found other text") from None
    image = answering.picture(content, "image", limits.pixels)
    regions = tuple(_region(region, image) for region in asked.regions)
    return answering.read(release.made, Question(image, asked.question, regions, asked.think), limits.max_new_tokens)


def _region(region: str | MarkedMask, image: Image.Image) -> masks.Pixels:
    if isinstance(region, str):
        return answering.region(region, image)
    if region.size != [image.height, image.width]:
        raise InputError(f"region: expected a mask of {image.height} x {image.width} pixels, found {region.size[0]} x {region.size[1]}")
    mask = masks.decode(region.counts, image.height, image.width)
    if not mask.any():
        raise InputError("region: expected at least one pixel, found an empty mask")
    return mask


def make(follower: Follower, limits: Limits, metrics: Metrics, token: str = "") -> ASGIApp:
    """The app; with a token every path but /healthz and its page asks for it.

    FastAPI's own pages are off: they would load code from elsewhere.
    """
    service = Service(follower, limits, metrics)
    app = FastAPI(title="Uni-MedVLM", description=NOTICE, version="1", lifespan=service.running, docs_url=None, redoc_url=None)
    border = Border(app, limits, metrics, token)
    problems.handle(app)
    _answers(app, service)
    _tells(app, service, metrics, border)
    page.add(app)
    return border


def _answers(app: FastAPI, service: Service) -> None:
    """The one path that asks the model."""
    statuses = (400, 401, 408, 413, 415, 422, 429, 500, 504)
    streamed = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The answer, whole or as events."}}

    @app.post(ANSWER, response_model=Answer, responses={**streamed, **refusals(*statuses)}, summary="Ask about an image")
    async def answer(request: Request, asked: AnswerRequest) -> Any:
        """The answer, its reasoning and a mask for all it points at. For research only.

        With `stream` the events are `reasoning` (its next words) as they are written, then `answer`, `masks` and `done`; a stream without
        `done` was cut off.
        """
        job = await _unless_gone(request, service.ask(asked))
        if asked.stream:
            return StreamingResponse(_events(service, job, request.state.request_id), media_type="text/event-stream")
        try:
            reply = await _unless_gone(request, _ended(service, job))
        finally:
            job.gone = True
        return Answer.model_validate(asdict(reply) | _told(job, reply, request.state.request_id))


def _tells(app: FastAPI, service: Service, metrics: Metrics, border: Border) -> None:
    """What the server says of itself."""

    @app.get(ALIVE, summary="Whether the process lives")
    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": WHEN[503]}, **refusals(401)})
    async def ready() -> Response:
        """Whether there is room for a request and somebody to answer it."""
        inside, follower = border.inside, service.follower
        well = inside < service.limits.room and service.batcher.alive
        told = Readiness(ready=well, model=follower.release.version, requests=inside, failure=follower.failure)
        return JSONResponse(told.model_dump(), 200 if well else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=refusals(401), summary="Numbers for Prometheus")
    async def numbers() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)


async def _ended(service: Service, job: Job) -> Reply:
    while await job.text() is not None:
        pass
    return await service.reply(job)


async def _events(service: Service, job: Job, request_id: str) -> AsyncIterator[bytes]:
    """Server-sent events: the reasoning as it grows, then the rest."""
    told = ""
    try:
        while (text := await job.text()) is not None:
            if grown := answering.thought_so_far(text)[len(told) :]:
                told += grown
                yield _event("reasoning", {"text": grown})
        reply = await service.reply(job)
    finally:
        job.gone = True
    yield _event("answer", {"answer": reply.answer, "reasoning": reply.reasoning})
    yield _event("masks", {"masks": list(reply.masks)})
    yield _event("done", _told(job, reply, request_id))


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _told(job: Job, reply: Reply, request_id: str) -> dict[str, Any]:
    return {"model": job.release.version, "request_id": request_id, "notice": NOTICE, "router": list(reply.router)}


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of the work, which ends unfinished when the client hangs up. Raises ClientDisconnect then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
