"""Errors as HTTP answers: `application/problem+json` (RFC 9457) for programs, a page for people."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from chat.errors import Unavailable, WireError
from chat.ops import metrics
from chat.web.pages import problem_page, root_of

logger = logging.getLogger(__name__)

# What Starlette raises by itself, in the contract's words.
CODES = {404: "not_found", 405: "method_not_allowed"}


def problem(
    status: int, code: str, detail: str, *, retry_after: float | None = None, **more: str
) -> Response:
    """Return the answer; `retry_after` in seconds becomes the header, rounded up."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        **more,
    }
    headers = {"Cache-Control": "no-store"}
    if retry_after is not None:
        headers["Retry-After"] = str(math.ceil(retry_after))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(
        msgspec.json.encode(body), status, headers, media_type="application/problem+json"
    )


async def on_wire_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    metrics.ERRORS.add(error.code)
    if isinstance(error, Unavailable):
        cause = type(error.__cause__ or error).__name__
        saving = request.method == "POST" and request.url.path.endswith("/messages")
        if saving:
            logger.error("Error saving message: %s", cause)
        else:
            logger.error("Error answering %s: %s", request.url.path, cause)
    if _wants_page(request):
        return problem_page(request, error.status, error.detail)
    more = {} if error.message_id is None else {"id": error.message_id}
    return problem(error.status, error.code, error.detail, retry_after=error.retry_after, **more)


async def on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "error")
    metrics.ERRORS.add(code)
    if _wants_page(request):
        return problem_page(request, error.status_code, "")
    answer = problem(error.status_code, code, str(error.detail) + ".")
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


async def on_fault(request: Request, error: Exception) -> Response:
    """Our own mistake: the trace is in the log, the client gets a sentence."""
    metrics.ERRORS.add("fault")
    detail = "The server failed to answer; it has been logged."
    return (
        problem_page(request, 500, detail)
        if _wants_page(request)
        else problem(500, "fault", detail)
    )


def _wants_page(request: Request) -> bool:
    path = request.url.path.removeprefix(root_of(request))
    for_programs = path.startswith(("/api/", "/healthz", "/readyz", "/metrics"))
    return not for_programs and "text/html" in request.headers.get("accept", "")
