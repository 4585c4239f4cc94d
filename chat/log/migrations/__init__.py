"""The history of the tables, and its application at the start.

`upgrade` brings a database of any age to the newest step. All nodes may start at once: one holds
the lock, the others wait and find nothing left to do. Called by `log/database.py`.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

# Any constant that no other program is likely to take in the same database: "tertulia".
LOCK = 0x74657274756C6961
LOCK_PATIENCE = 60  # seconds that a node waits for another one's migration
CONNECT_PATIENCE = 5  # seconds that a server may take to let us in
BUSY_PAUSE = 0.05  # seconds between tries to set WAL, which SQLite's busy handler does not cover

DRIVERS = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}


async def upgrade(url: str, revision: str = "head") -> None:
    """Apply the migrations up to `revision`; raise the driver's error where it cannot."""
    target = make_url(url)
    sqlite = target.get_backend_name() == "sqlite"
    options = (
        {"timeout": LOCK_PATIENCE, "isolation_level": None, "factory": Connection}
        if sqlite
        else {"timeout": CONNECT_PATIENCE}
    )
    engine = create_async_engine(
        target.set(drivername=DRIVERS[target.get_backend_name()]),
        poolclass=NullPool,
        connect_args=options,
    )
    if sqlite:
        # The driver must not begin transactions by itself: ours is IMMEDIATE, which is the lock.
        event.listen(engine.sync_engine, "begin", lambda conn: conn.exec_driver_sql(_BEGIN))
    try:
        if sqlite:
            await _write_ahead(target.database or "")
        async with engine.begin() as connection:
            if not sqlite:
                await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_PATIENCE * 1_000}"))
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            await connection.run_sync(_apply, revision)
    except DBAPIError as error:
        # What the driver itself said; for PostgreSQL, SQLAlchemy wraps it twice.
        wrapped = error.orig or error
        raise wrapped.__cause__ or wrapped from error
    finally:
        await engine.dispose()


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
