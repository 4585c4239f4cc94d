"""`healthcheck`: whether a running chat works, asked as its clients would ask.

A line for each check, with its time and, where it fails, a sentence of advice. It changes nothing
but this: where the key and the database are at hand, two site users of its own exist afterwards,
and a message more in their direct room, which is kept for a day (`log/retention.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from chat.commands import DEFAULT_URL, harmless, run_in_time
from chat.commands.at_hand import SILENT, AtHand, at_hand
from chat.commands.knock import Knock
from chat.commands.place import Failing, Place, ask
from chat.settings import Settings

# Seconds for one check, and for all of them, which run side by side: with the start of Python on a
# busy machine they must end within ten.
STEP_LIMIT, LIMIT = 4.0, 5.0
READY_LIMIT = 3.0  # seconds for the answer of `/readyz`, which is due within two

NOT_KNOWN = "Not known, as the chat does not tell: see the line http."
DATABASE_SILENT = f"There is no answer from it: {SILENT}"
# What to do about a reason that `/readyz` gives.
AWAY = "Does it run where CHAT_DATABASE_URL says?"
DATABASE_ADVICE = {
    "it is read-only": "Is it a replica, or set to read-only?",
    "it cannot be reached": AWAY,
    "it does not answer in time": AWAY,
}


class Finding(NamedTuple):
    name: str
    ok: bool
    ms: float
    said: str


class Question(NamedTuple):
    """One of our checks: it returns what to say, or raises Failing with a sentence of advice."""

    answer: Awaitable[str]
    # What to say where it takes too long.
    silence: Callable[[], str]


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
        findings = await _findings(settings, place, proxy)
        _print(findings, options.json)
        return 0 if all(one.ok for one in findings) else 1

    return run_in_time(run())


def _print(findings: list[Finding], as_json: bool) -> None:
    if as_json:
        ok = all(one.ok for one in findings)
        checks = [
            {"name": name, "status": _word(ok), "ms": round(ms, 1), "detail": said}
            for name, ok, ms, said in findings
        ]
        print(json.dumps({"status": _word(ok), "checks": checks}))
        return
    for name, ok, ms, said in findings:
        print(f"{name:<15}  {_word(ok):<4}  {ms:5.0f} ms  {harmless(said)}")


def _word(ok: bool) -> str:
    return "ok" if ok else "fail"


async def _findings(settings: Settings, place: Place, proxy: Place | None) -> list[Finding]:
    """Return what was found, in the order to be told."""
    ready = asyncio.create_task(_ready(place))
    own = asyncio.create_task(at_hand(settings, os.environ))
    knock = Knock(place, "http")
    questions = {
        "http": Question(_http(place, ready), lambda: _hangs(place)),
        "websocket": Question(knock.run(own), lambda: knock.silence),
        "database": Question(_database(ready, own), lambda: DATABASE_SILENT),
        "relay": Question(_relay(ready), lambda: NOT_KNOWN),
    }
    if proxy is not None:
        through = Knock(proxy, "proxy http")
        questions |= {
            "proxy http": Question(_http(proxy), lambda: _hangs(proxy)),
            "proxy websocket": Question(through.run(own), lambda: through.silence),
        }
    tasks = [asyncio.create_task(_timed(name, one)) for name, one in questions.items()]
    done, hanging = await asyncio.wait([*tasks, ready, own], timeout=LIMIT)
    for task in done:
        task.exception()  # of `ready` and `own` nobody may have asked for it
    return [
        Finding(name, False, LIMIT * 1000, question.silence()) if task in hanging else task.result()
        for (name, question), task in zip(questions.items(), tasks, strict=True)
    ]


async def _timed(name: str, question: Question) -> Finding:
    began = time.monotonic()
    try:
        async with asyncio.timeout(STEP_LIMIT):
            ok, said = True, await question.answer
    except Failing as failing:
        ok, said = False, str(failing)
    except TimeoutError:
        ok, said = False, question.silence()
    return Finding(name, ok, (time.monotonic() - began) * 1000, said)


# --- The checks


async def _http(place: Place, ready: asyncio.Task[Report] | None = None) -> str:
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


def _hangs(place: Place) -> str:
    what = (
        "it hangs, or the chat behind it does; see the line http"
        if place.is_proxy
        else "the process hangs, or has too much to do; look at its log"
    )
    return f"{place.who} takes the connection and does not answer: {what}."


async def _database(ready: asyncio.Task[Report], own: asyncio.Task[AtHand]) -> str:
    tried = (await asyncio.shield(own)).database
    try:
        report = await asyncio.shield(ready)
    except Failing as failing:
        if tried:
            return "reachable, migrated and writable from here; the chat itself does not tell"
        raise Failing(NOT_KNOWN) from failing
    check = report.checks["database"]
    if check.status != "ok":
        # One that is not listed asks for itself.
        advice = DATABASE_ADVICE.get(check.reason)
        raise Failing(f"The chat says of it: {check.reason}" + (f". {advice}" if advice else ""))
    return "reachable, migrated and writable"


async def _relay(ready: asyncio.Task[Report]) -> str:
    try:
        report = await asyncio.shield(ready)
    except Failing as failing:
        raise Failing(NOT_KNOWN) from failing
    check = report.checks["relay"]
    if check.status != "ok":
        raise Failing(
            f"The chat has lost it ({check.reason}): messages arrive up to a second late. Does"
            " Redis run where CHAT_RELAY_URL says?"
        )
    if check.round_trip_ms is None:
        return "in memory, for one process"
    return f"its heartbeat came back in {check.round_trip_ms:.1f} ms"


async def _ready(place: Place) -> Report:
    """Return what the chat says of its parts; raise Failing where it says nothing."""
    try:
        async with asyncio.timeout(READY_LIMIT):
            body = await ask(place, "/readyz", (200, 503))
        report = msgspec.json.decode(body, type=Report)
    except TimeoutError as error:
        raise Failing(
            f"/healthz answers, /readyz does not within {READY_LIMIT:.0f} s: does one of several"
            " workers hang?"
        ) from error
    except msgspec.MsgspecError as error:
        raise Failing("/healthz answers, but /readyz not as Tertulia's does.") from error
    if not {"database", "relay", "tasks"} <= report.checks.keys():
        raise Failing("/healthz answers, but /readyz not as Tertulia's does.")
    return report
