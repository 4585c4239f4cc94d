"""What operators say on the command line: `python -m chat user`, `token`, and so on.

Each module is one subject, and adds its commands to the parser (`register`). They work on the
database that the settings name, beside nodes that may be running: these find what was changed by
their tickers. `chat/__main__.py` collects them; `serve` is there, since it alone needs the app.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chat.errors import ChatError
from chat.log.database import Database
from chat.log.users import Users
from chat.settings import Settings
from chat.web.identity import TOKEN_TTL, Identities

DEFAULT_URL = "http://127.0.0.1:8000"  # of a server on this machine, where nobody says otherwise


class Impossible(ChatError):
    """What was asked for cannot be done; the sentence says why. The exit code is 1."""


@asynccontextmanager
async def opened(settings: Settings | None = None) -> AsyncIterator[Database]:
    """Open the database of the settings, its tables brought up to date.

    Raises SettingsError or Unavailable, with a sentence.
    """
    database = Database((settings or Settings.load(os.environ)).database_url)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def token_of(
    settings: Settings, name: str, room: str | None = None, ttl: int = TOKEN_TTL
) -> str:
    """Return a token that lets a site user in, made if new; the settings hold the key.

    Raises Impossible, NameRefused or Unavailable, with a sentence.
    """
    async with opened(settings) as database:
        users = Users(database)
        user = await users.site_user(name)
        if user.disabled_at is not None:
            raise Impossible(f"{user.name} is disabled; `user enable` lets them in again.")
        return Identities(settings, users).mint(user, room, ttl)[0]
