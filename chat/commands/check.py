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
import secrets
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any, NamedTuple
from urllib.parse import unquote

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from chat import __version__
from chat.commands import run_in_time, say_where_to_listen
from chat.errors import SettingsError, Unavailable
from chat.live.redis_backend import connections
from chat.live.redis_session import reason_of
from chat.log.database import Database
from chat.log.durable import unwritable
from chat.log.faults import FAULTS, describe
from chat.log.migrations import NEWEST, is_newer, standing
from chat.log.repository import Repository
from chat.log.writer import Writer
from chat.ops.advice import oddities
from chat.ops.config import found_file, load_config, named_in
from chat.ops.secret import KEY_FILE, kept_key, others_can_read
from chat.settings import Settings

PATIENCE = 5.0  # seconds for each part that is tried
MIN_DISK = 100 * 1024 * 1024  # bytes free beside a SQLite file
LIBRARIES = ("starlette", "hypercorn", "broadcaster", "databases", "redis", "uvloop")
SECRETS = ("CHAT_SECRET_KEY", "CHAT_API_KEY")
# What PostgreSQL must do for "acked is durable" to hold, and what it may lose otherwise.
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")

NO_DEPLOYMENT = "check"  # in the place of its name, while there is none


class Line(NamedTuple):
    word: str  # ok, warn or fail
    about: str
    sentence: str


def register(commands: Any) -> None:
    """Add the command to the parser's subparsers."""
    parser = commands.add_parser("check", help="look at the set-up, and say what is wrong with it")
    say_where_to_listen(parser)
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    print(f"{'versions':<9}{', '.join(_versions())}")
    for variable, value, origin in (*_told(os.environ), *_listening(options)):
        print(f"{'setting':<9}{variable} = {value}  ({origin})")

    async def run() -> int:
        lines = await _tried(os.environ, options)
        for word, about, sentence in lines:
            print(f"{word:<9}{about}: {sentence}")
        return 1 if any(line.word == "fail" for line in lines) else 0

    return run_in_time(run())


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
    raw = re.sub(r"([?&])([^=&]*)=([^&]*)", _masked_pair, raw)
    before, at, place = raw.rpartition("@")
    # Also where the scheme is misspelled, or not there.
    user = re.match(r"([a-z+]*:/+)?[^:]*", before, re.IGNORECASE)
    if at and user is not None and user[0] != before:
        return f"{user[0]}:***@{place}"
    return raw


def _masked_pair(found: re.Match[str]) -> str:
    """Mask the value of what may be a password: `ssl_password`, say."""
    return f"{found[1]}{found[2]}=***" if "pass" in unquote(found[2]).lower() else found[0]


def _listening(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Yield what is read by Hypercorn, and where and by how many it listens."""
    file = options.config or found_file()
    try:
        named = named_in(file)
        config = load_config(options.config, bind=options.bind, workers=options.workers)
    except SettingsError:
        return  # what is tried says so
    told = "--config" if options.config else "default"
    yield "hypercorn.toml", "none" if file is None else str(file.absolute()), told
    for name, value in (("bind", ", ".join(config.bind)), ("workers", str(config.workers))):
        origin = "hypercorn.toml" if name in named else "default"
        yield name, value, f"--{name}" if getattr(options, name) else origin


# --- What was tried


async def _tried(environ: Mapping[str, str], options: argparse.Namespace) -> list[Line]:
    lines = [
        Line("warn", "settings", f"{name} is unknown and has no effect; it may be misspelled.")
        for name in Settings.unknown(environ)
    ]
    try:
        settings = Settings.load(environ)
        config = load_config(options.config, bind=options.bind, workers=options.workers)
        settings.check_workers(config.workers)
    except SettingsError as error:
        return [*lines, Line("fail", "settings", str(error))]
    lines += [Line("warn", "settings", one) for one in oddities(settings, config.bind)]
    lines += _files(settings)
    found, deployment = await _database(settings)
    return [*lines, *found, await _relay(settings, deployment)]


def _files(settings: Settings) -> Iterator[Line]:
    """What others on this machine could read, and whether there is room."""
    if not settings.secret_key:
        yield _key()
    if not settings.on_sqlite:
        return
    file = settings.sqlite_file
    if os.path.exists(file) and stat.S_IMODE(file.stat().st_mode) & 0o007:
        yield Line("warn", "database", f"others can read {file}: `chmod 600 {file}*`.")
    place = next(one for one in (file, *file.absolute().parents) if os.path.exists(one))
    free = shutil.disk_usage(place).free
    if free < MIN_DISK:
        yield Line("warn", "database", f"only {free // 2**20} MB are free where {file} is.")


def _key() -> Line:
    """What the start would do for a key where none is set."""
    try:
        if kept_key() is None:
            if (place := unwritable(KEY_FILE, ())) is None:
                return Line("ok", "secret key", f"the first start makes one in {KEY_FILE}.")
            return Line(
                "fail",
                "secret key",
                f"CHAT_SECRET_KEY is not set, and this user cannot write {place} to keep one.",
            )
    except SettingsError as error:
        return Line("fail", "secret key", str(error))
    if others_can_read():
        return Line("fail", "secret key", f"others can read {KEY_FILE}: `chmod 600 {KEY_FILE}`.")
    return Line("ok", "secret key", f"it is in {KEY_FILE}, for its owner only.")


async def _database(settings: Settings) -> tuple[list[Line], str]:
    """Return what was found, and what the channels of this deployment begin with."""
    began = time.monotonic()
    database = Database(settings.database_url)
    try:
        if (line := await _before_opening(settings)) is not None:
            return [line], NO_DEPLOYMENT
        await database.open()
        log = Repository(database)
        await Writer(log, lambda *_: None).check(PATIENCE)
        spent = f"{(time.monotonic() - began) * 1000:.0f} ms"
        [(step,)] = await database.rows("SELECT version_num FROM alembic_version")
        line = Line("ok", "database", f"reachable, at step {step}, and takes writes ({spent}).")
        return [line, *await _durable(database)], await log.deployment()
    except Unavailable as error:
        reason = describe(error.__cause__ or error)
        sentence = f"it answers, but takes no messages: {reason}."
        return [Line("fail", "database", sentence)], NO_DEPLOYMENT
    finally:
        await database.close()


async def _before_opening(settings: Settings) -> Line | None:
    """Look without changing anything; return None where it can be opened and written to."""
    if settings.on_sqlite:
        if (place := unwritable(settings.sqlite_file)) is not None:
            sentence = f"this user cannot write {place}, and the chat must be able to."
            return Line("fail", "database", sentence)
        if not settings.sqlite_file.exists():
            return Line("ok", "database", "the first start makes it.")
    try:
        async with asyncio.timeout(PATIENCE):
            current = await standing(settings.database_url)
    except FAULTS as error:
        return Line("fail", "database", f"it cannot be opened: {describe(error)}.")
    if current is None:
        return Line("ok", "database", "it is empty; the first start makes the tables.")
    step = f"its tables are at step {current}, not {NEWEST}"
    if is_newer(current):
        sentence = f"{step}: a newer version made them, and this one would not start; install that."
        return Line("fail", "database", sentence)
    if current != NEWEST:
        return Line("warn", "database", f"{step}: the next start brings them up to date.")
    return None


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


async def _relay(settings: Settings, deployment: str) -> Line:
    """Announce something to ourselves: one who may connect may not be allowed to."""
    if settings.relay_url == "memory://":
        return Line("ok", "relay", "in memory, for one process.")
    try:
        make = connections(settings.relay_url)
    except ValueError as error:
        return Line("fail", "relay", f"CHAT_RELAY_URL is wrong: {error}.")
    channel = f"{deployment}/check-{secrets.token_hex(8)}"
    ears, mouth = make(), make()
    began = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            await _ask(ears, "SUBSCRIBE", channel)
            await _ask(mouth, "PUBLISH", channel, "hello")
            await ears.read_response()
    except (RedisError, OSError, TimeoutError) as error:
        return Line(
            "fail",
            "relay",
            f"Redis: {reason_of(error)}. Messages would still arrive, but up to a second late; look"
            " at CHAT_RELAY_URL.",
        )
    finally:
        for connection in (ears, mouth):
            await connection.disconnect(nowait=True)
    spent = f"{(time.monotonic() - began) * 1000:.0f} ms"
    return Line("ok", "relay", f"Redis passes on what is announced ({spent}).")


async def _ask(connection: AbstractConnection, *command: str) -> None:
    await connection.connect()  # type: ignore[no-untyped-call]
    await connection.send_command(*command)
    await connection.read_response()
