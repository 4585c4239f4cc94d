"""The lines that Hypercorn writes into the log."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypercorn.config import Config
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from chat.ops.access import ServerLog
from chat.ops.config import DEFAULTS

SCOPE: Any = {
    "type": "http",
    "method": "GET",
    "scheme": "http",
    "http_version": "1.1",
    "path": "/a\nb",
    "raw_path": b"/a%0Ab",
    "query_string": b"token=secret",
    "headers": [(b"referer", b"http://x/?secret"), (b"user-agent", b"secret")],
    "client": ("192.0.2.1", 4711),
}
RESPONSE: Any = {"status": 200, "headers": [(b"Content-Length", b"12"), (b"x", b"secret")]}


@pytest.fixture
def log() -> ServerLog:
    config = Config.from_mapping(
        accesslog=logging.getLogger("hypercorn.access"),
        errorlog=logging.getLogger("hypercorn.error"),
        access_log_format=DEFAULTS["access_log_format"],
    )
    return ServerLog(config)


async def test_a_line_names_client_request_status_size_and_microseconds(
    log: ServerLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await log.access(SCOPE, RESPONSE, 0.001234)
    (record,) = caplog.records
    assert record.getMessage() == '192.0.2.1:4711 "GET /a%0Ab 1.1" 200 12 1234'


def test_no_format_gets_at_the_query_the_referer_or_any_other_header(log: ServerLog) -> None:
    every = (
        "%(h)s %(l)s %(t)s %(r)s %(R)s %(s)s %(st)s %(S)s %(m)s %(U)s %(Uq)s %(q)s %(H)s %(b)s "
        "%(B)s %(f)s %(a)s %(T)s %(D)s %(L)s %(p)s %({referer}i)s %({x}o)s %({path}e)s"
    )
    line = every % log.atoms(SCOPE, RESPONSE, 1.0)
    assert "secret" not in line and "\n" not in line


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"/a\nb\x1b[0m", "/a%0Ab%1B[0m"),
        (b"/\xff", "/%FF"),
        (b'/"x"', "/%22x%22"),
        (b"/ws/chat/lobby/", "/ws/chat/lobby/"),
    ],
)
def test_nothing_in_a_path_can_begin_a_new_line_or_end_the_quotes(
    log: ServerLog, raw: bytes, shown: str
) -> None:
    assert log.atoms({**SCOPE, "raw_path": raw}, None, 0.0)["U"] == shown


def test_a_websocket_and_a_client_without_an_address_have_a_line_too(log: ServerLog) -> None:
    scope = {**SCOPE, "type": "websocket", "client": None}
    del scope["method"]
    atoms = log.atoms(scope, {"status": 101, "headers": []}, 0.0)
    assert (atoms["h"], atoms["r"], atoms["b"]) == ("-", "GET /a%0Ab 1.1", "-")


@pytest.mark.parametrize(
    "error", [ClientDisconnect(), WebSocketDisconnect(1006), ConnectionResetError()]
)
async def test_a_client_that_goes_away_is_no_error(
    log: ServerLog, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    caplog.set_level(logging.INFO)
    try:
        raise error
    except Exception:
        await log.exception("Error in ASGI Framework")
    assert not caplog.records


async def test_a_fault_of_the_app_is_an_error_with_its_trace(
    log: ServerLog, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        raise LookupError("ours")
    except LookupError:
        await log.exception("Error in ASGI Framework")
    (record,) = caplog.records
    assert record.levelname == "ERROR" and record.exc_info is not None
