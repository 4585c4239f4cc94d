"""`check`: look at the whole set-up before the start, and change nothing.

It prints the versions, each setting and where it came from, and a line for each thing that it
tried: `ok`, `warn`, or `fail`, with a sentence that says what to do. The exit code is 1 where
something failed. What `serve` says at its start is `ops/advice.py`, short.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any, NamedTuple

import redis.asyncio
from redis.exceptions import RedisError

from chat import __version__
from chat.errors import SettingsError, Unavailable
from chat.live.redis_session import reason_of
from chat.log.database import Database
from chat.log.faults import FAULTS, describe
from chat.log.migrations import standing
from chat.log.repository import Repository
from chat.log.writer import Writer
from chat.ops.advice import oddities
from chat.ops.config import load_config
from chat.ops.secret import KEY_FILE
from chat.settings import Settings

PATIENCE = 5.0  # seconds for each part that is tried
MIN_DISK = 100 * 1024 * 1024  # bytes free beside a SQLite file
LIBRARIES = ("starlette", "hypercorn", "broadcaster", "databases", "redis", "uvloop")
SECRETS = ("CHAT_SECRET_KEY", "CHAT_API_KEY")
# What PostgreSQL must do for "acked is durable" to hold, and what it may lose otherwise.
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


class Line(NamedTuple):
    word: str  # ok, warn or fail
    about: str
    sentence: str


def register(commands: Any) -> None:
    """Add the command to the parser's subparsers."""
    parser = commands.add_parser("check", help="look at the set-up, and say what is wrong with it")
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    print(f"{'versions':<9}{', '.join(_versions())}")
    for variable, value, origin in _told(os.environ):
        print(f"{'setting':<9}{variable} = {value}  ({origin})")
    lines = list(asyncio.run(_tried(os.environ)))
    for word, about, sentence in lines:
        print(f"{word:<9}{about}: {sentence}")
    return 1 if any(line.word == "fail" for line in lines) else 0


# --- What is set


def _versions() -> Iterator[str]:
    yield f"tertulia {__version__}"
    yield f"Python {platform.python_version()}"
    yield f"SQLite {sqlite3.sqlite_version}"
    for name in LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except ModuleNotFoundError:
            yield f"no {name}"


def _told(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield each setting, its value with secrets masked, and where it comes from."""
    for one in fields(Settings):
        variable, default = one.metadata["variable"], one.metadata["default"]
        raw = environ.get(variable, "").strip()
        yield variable, masked(variable, raw or default), "environment" if raw else "default"


def masked(variable: str, raw: str) -> str:
    """Return the value as it may be shown."""
    if not raw:
        return "none"
    if variable in SECRETS:
        return "***" if "," not in raw else f"*** ({len(raw.split(','))} keys)"
    raw = re.sub(r"(?<=[?&]password=)[^&]*", "***", raw)
    scheme, separator, rest = raw.partition("://")
    user, at, place = rest.rpartition("@")
    if at and separator:
        return f"{scheme}://{user.partition(':')[0]}:***@{place}"
    return raw


# --- What was tried


async def _tried(environ: Mapping[str, str]) -> list[Line]:
    lines = [
        Line("warn", "settings", f"{name} is unknown and has no effect; it may be misspelled.")
        for name in Settings.unknown(environ)
    ]
    try:
        settings = Settings.load(environ)
        config = load_config()
        settings.check_workers(config.workers)
    except SettingsError as error:
        return [*lines, Line("fail", "settings", str(error))]
    lines += [Line("warn", "settings", one) for one in oddities(settings, config.bind)]
    lines += _files(settings)
    lines += await _database(settings)
    lines.append(await _relay(settings))
    return lines


def _files(settings: Settings) -> Iterator[Line]:
    """What others on this machine could read, and whether there is room."""
    if not settings.secret_key and KEY_FILE.exists():
        mode = stat.S_IMODE(KEY_FILE.stat().st_mode)
        if mode & 0o077:
            yield Line("fail", "secret key", f"others can read {KEY_FILE}: `chmod 600 {KEY_FILE}`.")
        else:
            yield Line("ok", "secret key", f"it is in {KEY_FILE}, for its owner only.")
    elif not settings.secret_key:
        yield Line("ok", "secret key", f"the first start makes one in {KEY_FILE}.")
    if not settings.on_sqlite:
        return
    file = settings.sqlite_file
    if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o007:
        yield Line("warn", "database", f"others can read {file}: `chmod 600 {file}*`.")
    place = next(one for one in (file, *file.absolute().parents) if one.exists())
    if not os.access(place, os.W_OK):
        yield Line("fail", "database", f"{place} cannot be written by this user.")
    free = shutil.disk_usage(place).free
    if free < MIN_DISK:
        yield Line("warn", "database", f"only {free // 2**20} MB are free where {file} is.")


async def _database(settings: Settings) -> list[Line]:
    if settings.on_sqlite and not settings.sqlite_file.exists():
        return [Line("ok", "database", "the first start makes it.")]
    began = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            current, newest = await standing(settings.database_url)
    except FAULTS as error:
        return [Line("fail", "database", f"it cannot be opened: {describe(error)}.")]
    if current is None:
        return [Line("ok", "database", "it is empty; the first start makes the tables.")]
    if current != newest:
        # A step that is not ours is a newer program's, which the start would refuse.
        return [
            Line(
                "warn",
                "database",
                f"its tables are at step {current}, not {newest}: the"
                " next start brings them up to date, if they are older.",
            )
        ]
    database = Database(settings.database_url)
    try:
        await database.open()
        await Writer(Repository(database), lambda *_: None).check(PATIENCE)
        spent = f"{(time.monotonic() - began) * 1000:.0f} ms"
        return [
            Line("ok", "database", f"reachable, at step {newest}, and takes writes ({spent})."),
            *await _durable(database),
        ]
    except Unavailable as error:
        reason = describe(error.__cause__ or error)
        return [Line("fail", "database", f"it answers, but takes no messages: {reason}.")]
    finally:
        await database.close()


async def _durable(database: Database) -> list[Line]:
    """What PostgreSQL is set to that may lose what was acked."""
    if database.sqlite:
        return []
    names = ", ".join(f"'{name}'" for name in DURABLE)
    rows = await database.rows(
        f"SELECT name, setting FROM pg_settings WHERE name IN ({names}) AND setting = 'off'"
    )
    return [
        Line(
            "warn",
            "database",
            f"PostgreSQL's {name} is {value}: a crash can take messages that"
            " were acked; set it to on.",
        )
        for name, value in rows
    ]


async def _relay(settings: Settings) -> Line:
    if settings.relay_url == "memory://":
        return Line("ok", "relay", "in memory, for one process.")
    client = redis.asyncio.Redis.from_url(settings.relay_url)
    began = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            await client.ping()
    except (RedisError, OSError, TimeoutError) as error:
        return Line(
            "fail",
            "relay",
            f"Redis: {reason_of(error)}. Messages would still arrive, but up to a second late; look"
            " at CHAT_RELAY_URL.",
        )
    finally:
        await client.aclose()
    return Line("ok", "relay", f"Redis answers ({(time.monotonic() - began) * 1000:.0f} ms).")
