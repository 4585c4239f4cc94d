"""The history of the tables, and its application at the start.

`upgrade` brings a database of any age to the newest step. All nodes may start at once: one holds
the lock, the others wait and find nothing left to do. Where nothing is to be done Alembic is not
even imported (it is in `apply.py`): it takes 0.2 s of a start, and 19 MB of a process. Called by
`log/database.py`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiosqlite
from databases import Database
from sqlalchemy.engine import make_url

from chat.errors import Unavailable

LOCK_PATIENCE = 60  # seconds that a node waits for another one's migration
CONNECT_PATIENCE = 5  # seconds that a server may take to let us in, and then to answer
BUSY_PAUSE = 0.05  # seconds between tries to set WAL, which SQLite's busy handler does not cover

FILE_MODE = 0o600  # of a new SQLite file: what people say is for the chat's own user

# By the names of their files, `step_0001_….py`; each is above the one before.
STEPS = sorted(path.name.split("_")[1] for path in Path(__file__).parent.glob("versions/step_*.py"))
NEWEST = STEPS[-1]

NEWER = "The database cannot be opened: a newer version of this program made its tables."

_IS_THERE = {
    "sqlite": "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'",
    "postgresql": "SELECT 1 WHERE to_regclass('alembic_version') IS NOT NULL",
}
_STEP = "SELECT version_num FROM alembic_version"


async def upgrade(url: str, step: str = NEWEST) -> None:
    """Apply the migrations up to `step`, where they are not.

    Raises the driver's error where that fails; Unavailable where a newer version made the tables.
    """
    if url.startswith("sqlite:"):
        await _write_ahead(make_url(url).database or "")
    current = await standing(url)
    if current is not None and is_newer(current):
        raise Unavailable(NEWER)
    if current is None or current < step:
        from chat.log.migrations.apply import apply

        await apply(url, step)


async def standing(url: str) -> str | None:
    """Return the step that the tables are at, None where there are none.

    Changes nothing, but for SQLite's file, which is made where it is not there. Raises the
    driver's error.
    """
    if url.startswith("sqlite:"):
        file = await connected(make_url(url).database or "", timeout=LOCK_PATIENCE)
        try:
            row = await _first(file, _IS_THERE["sqlite"]) and await _first(file, _STEP)
            return None if row is None else str(row[0])
        finally:
            await file.close()
    limits: dict[str, Any] = {"timeout": CONNECT_PATIENCE, "command_timeout": CONNECT_PATIENCE}
    database = Database(url, min_size=0, max_size=1, **limits)
    await database.connect()
    try:
        if await database.fetch_val(_IS_THERE["postgresql"]) is None:
            return None
        step = await database.fetch_val(_STEP)
        return None if step is None else str(step)
    finally:
        # A server that hangs would not answer a good-bye.
        backend: Any = database._backend
        backend._pool.terminate()


def is_newer(step: str) -> bool:
    """Tell whether a step that tables are at is a newer version's, which `upgrade` refuses."""
    return step not in STEPS


async def _first(file: aiosqlite.Connection, query: str) -> sqlite3.Row | None:
    async with file.execute(query) as rows:
        return await rows.fetchone()


async def connected(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    """Connect to SQLite; where that fails, leave no thread that would speak to a closed loop."""
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True
    try:
        return await connection
    except sqlite3.Error:
        # It was told to end, and will say that it did.
        await asyncio.to_thread(connection._thread.join)
        raise


async def _write_ahead(path: str) -> None:
    """Put the database file into WAL mode, for good; several processes may try at once."""

    def switch() -> None:
        with suppress(OSError):  # it is there already, or SQLite says why it cannot be
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, FILE_MODE))
        connection = sqlite3.connect(path, timeout=LOCK_PATIENCE)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()

    async with asyncio.timeout(LOCK_PATIENCE):
        while True:
            try:
                return await asyncio.to_thread(switch)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) and "busy" not in str(error):
                    raise
                await asyncio.sleep(BUSY_PAUSE * (1 + secrets.randbelow(100) / 100))
