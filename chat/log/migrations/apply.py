"""The application of the migrations, by Alembic. Called by `upgrade`, where there are any to do."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from chat.errors import Unavailable
from chat.log import migrations

# Any constant that no other program is likely to take in the same database: "tertulia".
LOCK = 0x74657274756C6961

DRIVERS = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}


async def apply(url: str, step: str) -> None:
    """Apply the migrations up to `step`, alone; raise as `upgrade` does."""
    async with _engine(url) as engine:
        sqlite = engine.dialect.name == "sqlite"
        if sqlite:
            # The driver must not begin transactions by itself: ours is IMMEDIATE, the lock.
            event.listen(engine.sync_engine, "begin", lambda conn: conn.exec_driver_sql(_BEGIN))
        async with engine.begin() as connection:
            if not sqlite:
                limit = migrations.LOCK_PATIENCE * 1_000
                await connection.execute(text(f"SET LOCAL lock_timeout = {limit}"))
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            await connection.run_sync(_apply, step)


@asynccontextmanager
async def _engine(url: str) -> AsyncIterator[AsyncEngine]:
    """Lend an engine that pools nothing; raise the driver's own error for SQLAlchemy's."""
    target = make_url(url)
    options = (
        {
            "timeout": migrations.LOCK_PATIENCE,
            "isolation_level": None,
            "factory": Connection,
            "async_creator_fn": migrations.connected,
        }
        if target.get_backend_name() == "sqlite"
        else {"timeout": migrations.CONNECT_PATIENCE}
    )
    engine = create_async_engine(
        target.set(drivername=DRIVERS[target.get_backend_name()]),
        poolclass=NullPool,
        connect_args=options,
    )
    try:
        yield engine
    except CommandError as error:
        # Since we looked, somebody has brought them further than we know.
        raise Unavailable(migrations.NEWER) from error
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


def _apply(connection: sqlalchemy.Connection, step: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, step)
