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
from chat.settings import Settings


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
