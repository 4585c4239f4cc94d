"""`healthcheck`: whether a running chat works, asked as its clients would ask.

A line for each check, with its time and, where it fails, a sentence of advice. It changes nothing
but this: where the key and the database are at hand, two site users of its own exist afterwards,
and a message more in their direct room, which no list shows to anybody else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, NamedTuple

import msgspec

from chat.client import Refused, Room
from chat.commands import DEFAULT_URL
from chat.commands.at_hand import AtHand, at_hand
from chat.commands.place import Failing, Place, ask
from chat.link import GIVEN_UP, Link
from chat.protocol import CloseCode
from chat.settings import Settings

# Seconds for one check, and for all of them, which run side by side: with the start of Python on a
# busy machine they must end within ten.
STEP_LIMIT, LIMIT = 4.0, 5.0

NOT_KNOWN = "Not known, as the chat does not tell: see the line http."
# What is said of a check that gets no answer.
SILENT = {
    "http": "It takes the connection and does not answer: the process hangs, or has too much to do;"
    " look at its log.",
    "websocket": "There is no answer: see the lines http and database; if they are ok, something"
    " between holds the socket's frames back.",
    "database": "There is no answer from it: is it overloaded, or does somebody lock its tables?",
    "relay": NOT_KNOWN,
}
OTHER_KEY = (
    "It does not take a token made here: CHAT_SECRET_KEY and CHAT_DATABASE_URL must be those that"
    " it was started with."
)


class Finding(NamedTuple):
    name: str
    ok: bool
    ms: float
    said: str


class Check(msgspec.Struct):
    """One of the checks in the answer of `/readyz`."""

    status: str
    reason: str = ""
    round_trip_ms: float | None = None
    failed: list[str] = []


class Report(msgspec.Struct):
    checks: dict[str, Check]


def register(commands: Any) -> None:
    """Add the command to the parser's subparsers."""
    parser = commands.add_parser("healthcheck", help="ask a running chat whether it works")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the chat ({DEFAULT_URL})")
    parser.add_argument("--proxy-url", metavar="URL", help="of a proxy before it, to be tried, too")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.set_defaults(command=_healthcheck)


def _healthcheck(options: argparse.Namespace) -> int:
    settings = Settings.load(os.environ)
    place = Place.of(options.url, settings.allowed_hosts)
    proxy = Place.of(options.proxy_url) if options.proxy_url else None

    async def run() -> int:
        findings, hangs = await _findings(settings, place, proxy)
        code = 0 if all(one.ok for one in findings) else 1
        _print(findings, options.json)
        if hangs:
            # In a thread, most likely: a disk, a name server. Python would wait for it.
            sys.stdout.flush()
            os._exit(code)
        return code

    return asyncio.run(run())


def _print(findings: list[Finding], as_json: bool) -> None:
    if as_json:
        ok = all(one.ok for one in findings)
        checks = [
            {"name": name, "status": _word(ok), "ms": round(ms, 1), "detail": said}
            for name, ok, ms, said in findings
        ]
        print(json.dumps({"status": _word(ok), "checks": checks}, ensure_ascii=False))
        return
    for name, ok, ms, said in findings:
        print(f"{name:<15}  {_word(ok):<4}  {ms:5.0f} ms  {said}")


def _word(ok: bool) -> str:
    return "ok" if ok else "fail"


async def _findings(
    settings: Settings, place: Place, proxy: Place | None
) -> tuple[list[Finding], bool]:
    """Return what was found, in the order to be told, and whether something hangs still."""
    ready = asyncio.create_task(_ready(place))
    own = asyncio.create_task(at_hand(settings, os.environ))
    checks: dict[str, Coroutine[Any, Any, str]] = {
        "http": _http(place, ready),
        "websocket": _websocket(place, own),
        "database": _database(ready, own),
        "relay": _relay(ready),
    }
    if proxy is not None:
        checks |= {"proxy http": _http(proxy), "proxy websocket": _websocket(proxy, own)}
    tasks = [asyncio.create_task(_timed(name, check)) for name, check in checks.items()]
    _, hanging = await asyncio.wait([*tasks, ready, own], timeout=LIMIT)
    return [
        _silent(name, LIMIT) if task in hanging else task.result()
        for name, task in zip(checks, tasks, strict=True)
    ], bool(hanging)


async def _timed(name: str, check: Awaitable[str]) -> Finding:
    began = time.monotonic()
    try:
        async with asyncio.timeout(STEP_LIMIT):
            ok, said = True, await check
    except Failing as failing:
        ok, said = False, str(failing)
    except TimeoutError:
        return _silent(name, time.monotonic() - began)
    return Finding(name, ok, (time.monotonic() - began) * 1000, said)


def _silent(name: str, seconds: float) -> Finding:
    return Finding(name, False, seconds * 1000, SILENT[name.split()[-1]])


# --- The checks: each returns what to say, or raises Failing with a sentence of advice


async def _http(place: Place, ready: asyncio.Task[Report | None] | None = None) -> str:
    body = await ask(place, "/healthz")
    if body != b'{"status":"ok"}':
        raise Failing(f"Something answers, but not as Tertulia does: is {place.url} its address?")
    report = await asyncio.shield(ready) if ready is not None else None
    if report is not None and (failed := report.checks["tasks"].failed):
        raise Failing(
            f"It answers, but its tasks died or hang ({', '.join(failed)}): look for ERROR lines"
            " in its log, and start it again."
        )
    return "answers"


async def _websocket(place: Place, own: asyncio.Task[AtHand]) -> str:
    async def leave(link: Link) -> None:
        await link.close()

    link = Link(None, {}, lambda frame: None, leave, place.at)
    code, reason = await link.run(place.room("healthcheck"))
    if link.joined_at is not None:
        raise Failing("It lets in who has no token and no cookie: is that Tertulia?")
    if link.status is not None:
        raise Failing(place.refusal(link.status))
    if code == GIVEN_UP:
        raise Failing(f"There is no handshake: {reason}; see the line http.")
    if code != CloseCode.UNAUTHENTICATED:
        raise Failing(f"It closes with {code} who has no token, and not with 4401: {reason}.")
    closed = "who has no token is closed with 4401"
    try:
        entry = (await asyncio.shield(own)).entry
    except Failing:
        return f"{closed}; no message sent: see the line database"
    if entry is None:
        return f"{closed}; no message sent: no key and database are at hand"
    try:
        async with Room(place.room(entry.room), token=entry.token, at=place.at) as room:
            began = time.monotonic()
            ack = await room.send("healthcheck")
            async for message in room:
                if message.seq == ack.seq:
                    break
            spent = (time.monotonic() - began) * 1000
    except Refused as refused:
        raise Failing(OTHER_KEY) from refused
    return f"{closed}; a message went round in {spent:.0f} ms"


async def _database(ready: asyncio.Task[Report | None], own: asyncio.Task[AtHand]) -> str:
    tried = (await asyncio.shield(own)).database
    report = await asyncio.shield(ready)
    if report is None and tried:
        return "reachable, migrated and writable from here; the chat itself does not tell"
    if report is None:
        raise Failing(NOT_KNOWN)
    check = report.checks["database"]
    if check.status != "ok":
        raise Failing(
            f"The chat says of it: {check.reason}. Does it run where CHAT_DATABASE_URL says, and"
            " has it room on its disk?"
        )
    return "reachable, migrated and writable"


async def _relay(ready: asyncio.Task[Report | None]) -> str:
    report = await asyncio.shield(ready)
    if report is None:
        raise Failing(NOT_KNOWN)
    check = report.checks["relay"]
    if check.status != "ok":
        raise Failing(
            f"The chat has lost it ({check.reason}): messages arrive up to a second late. Does"
            " Redis run where CHAT_RELAY_URL says?"
        )
    if check.round_trip_ms is None:
        return "in memory, for one process"
    return f"its heartbeat came back in {check.round_trip_ms:.1f} ms"


async def _ready(place: Place) -> Report | None:
    """Return what the chat says of its parts; None where it says nothing."""
    try:
        async with asyncio.timeout(STEP_LIMIT - 1):
            body = await ask(place, "/readyz", (200, 503))
        report = msgspec.json.decode(body, type=Report)
    except (Failing, TimeoutError, msgspec.MsgspecError):
        return None
    return report if {"database", "relay", "tasks"} <= report.checks.keys() else None
