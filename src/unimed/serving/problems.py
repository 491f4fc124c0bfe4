"""Errors as problem JSON (RFC 9457): one sentence on what was expected and what was found, and nothing of the server's inside."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from unimed.errors import InputError
from unimed.serving.schema import Problem

log = logging.getLogger("serving")

NO_JSON = "body: expected a JSON object, found text that is none"
NO_PATH = "request: expected a path and a method that /openapi.json names, found others"


def response(status: int, detail: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """A problem as a response."""
    found = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, request_id=request_id)
    return JSONResponse(found.model_dump(), status, headers, "application/problem+json")


def handle(app: FastAPI) -> None:
    """Have every error of an app told as a problem."""
    app.add_exception_handler(InputError, _input)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _defect)


async def _input(request: Request, error: Exception) -> Response:
    return response(422, str(error), request.state.request_id)


async def _validation(request: Request, error: Exception) -> Response:
    """The first thing that does not fit the schema, without the value, which may be large."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return response(400, NO_JSON, request.state.request_id)
    place = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, int) or part.isidentifier()) or "body"
    detail = f"{place[:80]}: expected what /openapi.json describes, found otherwise: {first['msg'][:200]}"
    return response(422, detail, request.state.request_id)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = {400: NO_JSON, 404: NO_PATH, 405: NO_PATH}.get(error.status_code, str(error.detail))
    return response(error.status_code, detail, request.state.request_id, dict(error.headers or {}))


async def _gone(request: Request, error: Exception) -> Response:
    """For the metrics: nobody is there to read it."""
    return Response(status_code=499)


async def _defect(request: Request, error: Exception) -> Response:
    log.error("request %s failed: %s", request.state.request_id, type(error).__name__)  # uvicorn logs the rest
    return response(500, "server: expected to answer, found a defect of its own; its log tells more", request.state.request_id)
