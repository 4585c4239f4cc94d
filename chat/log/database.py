"""The `databases` package, fenced in: one place that opens, bounds and mends connections.

Each use has a time limit, and every fault of a driver leaves here as `Unavailable`. Never
`databases`' own transactions or iterators: they lose their connection where a begin or a commit
fails. Called by the other modules of `chat.log` only.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import databases
from databases.core import Connection

from chat.errors import Unavailable
from chat.log.durable import DurableConnection, unwritable
from chat.log.faults import BROKEN, FAULTS, describe
from chat.log.migrations import upgrade

USE_LIMIT = 5.0  # seconds for one use of a connection, waiting for it included
CLOSE_LIMIT = 0.5  # seconds; nothing is under way by then that anybody waits for
CONNECT_LIMIT = 5.0  # seconds
POOL_SIZE = 10  # connections per process: the writer, the ticker, and readers
BUSY_LIMIT = 5.0  # seconds that SQLite waits for another process's write
# Seconds that PostgreSQL keeps the locks of a transaction whose process says nothing: one that was
# frozen or cut off in the midst of it would hold up everybody's sends for as long. Well below
# USE_LIMIT, so that who waits behind it still gets through.
IDLE_LIMIT = 2.5

Row = tuple[Any, ...]


async def _prepare(connection: asyncpg.Connection[Any]) -> None:
    """Prefer indexes: plans are kept as long as a connection, and one that was made for an empty
    table must not read all of it when it is full. And let the server end what we leave open."""
    await connection.execute(
        "SET enable_seqscan = off;"
        f" SET idle_in_transaction_session_timeout = {IDLE_LIMIT * 1000:.0f}"
    )


async def _keep(connection: asyncpg.Connection[Any]) -> None:
    """Reset nothing when a connection goes back: we leave no state, and a dead server hangs."""


class Database:
    """Connections to the one database, on SQLite or PostgreSQL."""

    def __init__(self, url: str) -> None:
        self.url = url
        # SQLite: those that open connections, each in a thread of its own.
        self._threads: set[threading.Thread] = set()
        self.sqlite = url.startswith("sqlite:")
        # The database's own clock in milliseconds: nodes' clocks may differ, this one does not.
        self.clock = (
            "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
            if self.sqlite and sqlite3.sqlite_version_info >= (3, 42)
            else "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
            if self.sqlite
            else "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"
        )
        options: dict[str, Any] = (
            {"factory": self._connect, "timeout": BUSY_LIMIT}
            if self.sqlite
            else {
                # None that is kept: asyncpg logs a trace where it cannot restore one.
                "min_size": 0,
                "max_size": POOL_SIZE,
                "timeout": CONNECT_LIMIT,
                "command_timeout": USE_LIMIT,
                "reset": _keep,
                "init": _prepare,
                "server_settings": {"application_name": "tertulia"},
            }
        )
        # `databases` would end the path at a `#`; SQLAlchemy, which migrates, does not.
        path = quote(url.removeprefix("sqlite:///"), safe="/%")
        self._database = databases.Database(f"sqlite:///{path}" if self.sqlite else url, **options)
        # SQLite: one connection that all reads share. Opening one costs more than a query. It is
        # of a Database of its own, since `databases` gives each task one connection.
        self._reads = databases.Database(str(self._database.url), **options)
        self._reader: Connection | None = None

    async def open(self) -> None:
        """Bring the tables up to date and connect; raise Unavailable where that fails."""
        try:
            if self.sqlite:
                if (place := unwritable(self._file)) is not None:
                    # SQLite would say so at the first message only.
                    raise sqlite3.OperationalError(f"this user cannot write {place}")
                self._file.parent.mkdir(parents=True, exist_ok=True)
            await upgrade(self.url)
            await self._database.connect()
            if self.sqlite:
                self._reader = await Connection(self._reads, self._reads._backend).__aenter__()
        except FAULTS as error:
            raise Unavailable(f"The database cannot be opened: {describe(error)}.") from error

    async def close(self) -> None:
        """Close all connections, within twice CLOSE_LIMIT: who hangs is not waited for."""
        reader, self._reader = self._reader, None
        try:
            async with asyncio.timeout(CLOSE_LIMIT):
                if reader is not None:
                    await reader.__aexit__()
                await self._database.disconnect()
        except TimeoutError:
            if not self.sqlite:
                backend: Any = self._database._backend
                backend._pool.terminate()
        # One whose connecting was cancelled ends unseen, and would speak to a loop that is closed.
        end = time.monotonic() + CLOSE_LIMIT
        for thread in [one for one in self._threads if one.is_alive()]:
            await asyncio.to_thread(thread.join, max(0.0, end - time.monotonic()))

    def _connect(self, path: str, **options: Any) -> DurableConnection:
        self._threads = {one for one in self._threads if one.is_alive()}
        self._threads.add(threading.current_thread())
        return DurableConnection(path, **options)

    @asynccontextmanager
    async def connection(self, limit: float = USE_LIMIT) -> AsyncIterator[Connection]:
        """Lend a connection for reads and single statements, for at most `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                if self._reader is not None:
                    async with await self._reading(self._reader) as reader:
                        yield reader
                    return
                async with self._lend() as connection:
                    yield connection
        except FAULTS as error:
            raise Unavailable from error

    @asynccontextmanager
    async def transaction(self, limit: float = USE_LIMIT) -> AsyncIterator[Any]:
        """Lend a driver's connection inside a writing transaction, committed on leaving.

        PostgreSQL: READ COMMITTED, so that each statement sees what was committed before it.
        SQLite: IMMEDIATE, so that no other writer comes between.
        """
        try:
            async with asyncio.timeout(limit), self._lend() as connection:
                raw: Any = connection.raw_connection
                if not self.sqlite:
                    transaction = raw.transaction(isolation="read_committed")
                    await transaction.start()
                    try:
                        yield raw
                    except BROKEN:
                        # No rollback: `_lend` ends the connection, and with it the transaction.
                        # A dead server would not answer, and put its error in this one's place.
                        raise
                    except BaseException:
                        await transaction.rollback()
                        raise
                    await transaction.commit()
                    return
                if limit < BUSY_LIMIT:
                    # A cancelled BEGIN waits on in its thread, and leaving waits for the thread.
                    await raw.execute(f"PRAGMA busy_timeout = {limit * 1000:.0f}")
                await raw.execute("BEGIN IMMEDIATE")
                try:
                    yield raw
                    await raw.execute("COMMIT")
                    if raw._conn.replaced():
                        # Stored where nobody will look; the connection is of no more use.
                        raise ConnectionResetError("another file has taken its place")
                except BaseException:
                    if raw.in_transaction:
                        # Cancelled within COMMIT, which goes on in its thread: then there is
                        # nothing left to roll back, and the cancellation must not get lost.
                        with suppress(sqlite3.OperationalError):
                            await raw.execute("ROLLBACK")
                    raise
        except FAULTS as error:
            raise Unavailable from error

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Keep one connection for this task: its transactions need not wait for another.

        To be left after any Unavailable: what broke stays broken until it is entered again.
        """
        try:
            async with asyncio.timeout(USE_LIMIT) as entering, self._lend():
                entering.reschedule(None)
                yield
        except FAULTS as error:
            raise Unavailable from error

    async def rows(self, sql: str, values: dict[str, Any] | None = None) -> list[Row]:
        """Run one statement and return its rows; raise Unavailable."""
        async with self.connection() as connection:
            # A Record of `databases` iterates over its keys.
            records: list[Any] = list(await connection.fetch_all(sql, values))
            return [tuple(record.values()) for record in records]

    async def change(self, sql: str, values: dict[str, Any] | None = None) -> list[Row]:
        """Run one statement that writes, and return its rows; raise Unavailable.

        On SQLite it has a connection of its own: one that waits for its turn must not hold up
        all who read.
        """
        try:
            async with asyncio.timeout(USE_LIMIT), self._lend() as connection:
                records: list[Any] = list(await connection.fetch_all(sql, values))
                return [tuple(record.values()) for record in records]
        except FAULTS as error:
            raise Unavailable from error

    async def row(self, sql: str, values: dict[str, Any] | None = None) -> Row | None:
        """Run one statement and return its first row or None; raise Unavailable."""
        return next(iter(await self.rows(sql, values)), None)

    async def reads_only(self, limit: float = USE_LIMIT) -> bool:
        """Tell whether it answers, but takes no writes; raise Unavailable where it does not answer.

        SQLite: what is open already may be written still, and nothing that is opened from now on.
        """
        async with self.connection(limit) as connection:
            asked = "SELECT 0" if self.sqlite else "SHOW transaction_read_only"
            row: Any = await connection.fetch_one(asked)
        return row[0] == "on" or (self.sqlite and unwritable(self._file) is not None)

    @property
    def _file(self) -> Path:
        return Path(self._database.url.database)

    async def _reading(self, reader: Connection) -> Connection:
        """Return the connection that all reads share, another one where the file is another one."""
        raw: Any = reader.raw_connection
        if raw._conn.replaced():
            reader = await Connection(self._reads, self._reads._backend).__aenter__()
            stale, self._reader = self._reader, reader
            if stale is not None:
                await stale.__aexit__()  # closed once nobody reads with it
        return reader

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[Connection]:
        if self._reader is not None:
            await self._reading(self._reader)  # nothing is opened beside a replaced file's rests
        async with self._database.connection() as connection:
            try:
                yield connection
            except BROKEN:
                if not self.sqlite:
                    # Before the context is left: giving it back would wait for the server.
                    raw: Any = connection.raw_connection
                    # The pool may have taken back what the server ended: nothing is left to do,
                    # and the error (a cancellation, say) must not get lost.
                    with suppress(asyncpg.InterfaceError):
                        raw.terminate()
                raise
