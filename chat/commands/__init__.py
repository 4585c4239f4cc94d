"""What operators say on the command line: `python -m chat user`, `token`, and so on.

Each module is one subject, and adds its commands to the parser (`register`). They work on the
database that the settings name, beside nodes that may be running: these find what was changed by
their tickers. `chat/__main__.py` collects them; `serve` is there, since it alone needs the app.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import unicodedata
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from chat.errors import ChatError
from chat.log.database import Database
from chat.log.faults import FAULTS
from chat.log.migrations import standing
from chat.log.users import Users
from chat.ops.secret import KEY_FILE, kept_key, with_secret_key
from chat.settings import Settings
from chat.web.identity import TOKEN_TTL, Identities

DEFAULT_URL = "http://127.0.0.1:8000"  # of a server on this machine, where nobody says otherwise
LEAVE_LIMIT = 0.2  # seconds that a thread may take to end which has nothing to do

# Control and format characters, halves of pairs, and what ends a line.
HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # harmless, and parts of letters and emoji


class Impossible(ChatError):
    """What was asked for cannot be done; the sentence says why. The exit code is 1."""


def harmless(text: str) -> str:
    """Write what could steer a terminal as escapes, such as `\\x1b` and `\\n`."""
    return "".join(
        one.encode("unicode_escape").decode()
        if unicodedata.category(one) in HARMFUL and one not in JOINERS
        else one
        for one in text
    )


def closed_quietly() -> None:
    """Let nothing more be written to standard output, at the end of the program neither."""
    with suppress(OSError):  # where it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_in_time(work: Coroutine[Any, Any, int]) -> int:
    """Run what limits its own time; return its exit code.

    Where a thread hangs, as a disk or a name server lets it, the process ends here with that code:
    Python would wait for it.
    """

    async def run() -> int:
        threads = ThreadPoolExecutor(thread_name_prefix="in time")
        asyncio.get_running_loop().set_default_executor(threads)
        code = await work
        sys.stdout.flush()
        threads.shutdown(wait=False)
        for one in threading.enumerate():
            if one.name.startswith("in time"):
                one.join(LEAVE_LIMIT)
                if one.is_alive():
                    os._exit(code)
        return code

    return asyncio.run(run())


def say_where_to_listen(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`, which `check` takes, too."""
    parser.add_argument(
        "--bind", action="append", default=[], metavar="HOST:PORT", help="where to listen"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="how many processes")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="hypercorn.toml to use (default: ./, if any)"
    )


@asynccontextmanager
async def opened(
    settings: Settings | None = None, *, make: bool = False
) -> AsyncIterator[Database]:
    """Open the database of the settings, its tables brought up to date.

    Raises SettingsError or Unavailable, with a sentence; Impossible where there is none, unless
    `make` says that it is to be made.
    """
    settings = settings or Settings.load(os.environ)
    if not await _is_there(settings):
        where = settings.sqlite_file.absolute() if settings.on_sqlite else "CHAT_DATABASE_URL"
        if not make:
            raise Impossible(
                f"There is no database of the chat at {where}. Is this the folder that the chat"
                " runs in, with its settings? Its first start makes one."
            )
        print(f"Making the database at {where}.", file=sys.stderr)
    database = Database(settings.database_url)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def _is_there(settings: Settings) -> bool:
    try:
        if settings.on_sqlite and not settings.sqlite_file.exists():
            return False
        return await standing(settings.database_url) is not None
    except FAULTS:
        return True  # to open it says what is wrong


async def token_of(
    settings: Settings, name: str, room: str | None = None, ttl: int = TOKEN_TTL
) -> str:
    """Return a token that lets a site user in, made if new.

    Raises Impossible, SettingsError, NameRefused or Unavailable, with a sentence.
    """
    async with opened(settings) as database:
        if not settings.secret_key and kept_key() is None:
            raise Impossible(
                f"CHAT_SECRET_KEY is not set, and there is no {KEY_FILE} here: no chat would take"
                " our token. Is this the folder that the chat runs in, with its settings?"
            )
        settings = with_secret_key(settings)
        users = Users(database)
        user = await users.site_user(name)
        if user.disabled_at is not None:
            raise Impossible(f"{user.name} is disabled; `user enable` lets them in again.")
        return Identities(settings, users).mint(user, room, ttl)[0]
