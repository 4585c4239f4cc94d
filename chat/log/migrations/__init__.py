"""The history of the tables, and its application at the start.

`upgrade` brings a database of any age to the newest step. All nodes may start at once: one holds
the lock, the others wait and find nothing left to do. Called by `log/database.py`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiosqlite
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

# Any constant that no other program is likely to take in the same database: "tertulia".
LOCK = 0x74657274756C6961
LOCK_PATIENCE = 60  # seconds that a node waits for another one's migration
CONNECT_PATIENCE = 5  # seconds that a server may take to let us in
BUSY_PAUSE = 0.05  # seconds between tries to set WAL, which SQLite's busy handler does not cover

FILE_MODE = 0o600  # of a new SQLite file: what people say is for the chat's own user

DRIVERS = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}


async def upgrade(url: str, revision: str = "head") -> None:
    """Apply the migrations up to `revision`; raise the driver's error where it cannot."""
    async with _engine(url) as engine:
        sqlite = engine.dialect.name == "sqlite"
        if sqlite:
            # The driver must not begin transactions by itself: ours is IMMEDIATE, the lock.
            event.listen(engine.sync_engine, "begin", lambda conn: conn.exec_driver_sql(_BEGIN))
            await _write_ahead(engine.url.database or "")
        async with engine.begin() as connection:
            if not sqlite:
                await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_PATIENCE * 1_000}"))
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            await connection.run_sync(_apply, revision)


async def standing(url: str) -> tuple[str | None, str]:
    """Return the step that the tables are at, None where there are none, and the newest step.

    Changes nothing, but for SQLite's file, which is made where it is not there. Raises the
    driver's error.
    """

    def current(connection: sqlalchemy.Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    newest = _steps().get_current_head()
    assert newest is not None
    async with _engine(url) as engine, engine.connect() as connection:
        return await connection.run_sync(current), newest


def is_newer(step: str) -> bool:
    """Tell whether a step that tables are at is a newer version's, which `upgrade` would refuse."""
    return all(one.revision != step for one in _steps().walk_revisions())


def _steps() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))


@asynccontextmanager
async def _engine(url: str) -> AsyncIterator[AsyncEngine]:
    """Lend an engine that pools nothing; raise the driver's own error for SQLAlchemy's."""
    target = make_url(url)
    options = (
        {
            "timeout": LOCK_PATIENCE,
            "isolation_level": None,
            "factory": Connection,
            "async_creator_fn": _connected,
        }
        if target.get_backend_name() == "sqlite"
        else {"timeout": CONNECT_PATIENCE}
    )
    engine = create_async_engine(
        target.set(drivername=DRIVERS[target.get_backend_name()]),
        poolclass=NullPool,
        connect_args=options,
    )
    try:
        yield engine
    except DBAPIError as error:
        # What the driver itself said; for PostgreSQL, SQLAlchemy wraps it twice.
        wrapped = error.orig or error
        raise wrapped.__cause__ or wrapped from error
    finally:
        await engine.dispose()


async def _connected(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    """Connect to SQLite; where that fails, leave no thread that would speak to a closed loop."""
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True
    try:
        return await connection
    except sqlite3.Error:
        # It was told to end, and will say that it did.
        await asyncio.to_thread(connection._thread.join)
        raise


_BEGIN = "BEGIN IMMEDIATE"


class Connection(sqlite3.Connection):
    """A SQLite connection that keeps no lock once it is closed.

    Closing alone does not end a transaction while somebody holds a cursor, as a task does that was
    cancelled within a statement: then nobody else would ever get the lock.
    """

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()
        super().close()


def _apply(connection: sqlalchemy.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


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
