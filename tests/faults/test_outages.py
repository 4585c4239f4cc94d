"""A database that says no: full, read-only, out of connections. Nothing is acked, nothing is lost,
and once it is well again the same ids go through without a restart.

Killed, frozen and restarted databases are in test_checker.py and tests/test_database.py.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from chat.errors import Unavailable
from chat.live.tasks import stop
from chat.log import database as module
from chat.log.repository import Repository, Room, Stored
from chat.log.writer import Writer
from tests.servers import PostgresServer
from tests.storage import LIMIT, draft, log_of, opened

# Seconds within which a send must work after the database is well again.
RECOVERY = 2.0


class Chatting:
    def __init__(self, log: Repository, lobby: Room) -> None:
        self.log = log
        self.lobby = lobby
        self.writer = Writer(log, lambda *_: None)

    async def say(self, id: str, text: str = "hola") -> Stored:
        async with asyncio.timeout(LIMIT):
            return await self.writer.append(draft(self.lobby, text, id=id))

    async def is_refused(self, id: str, text: str = "hola") -> None:
        with pytest.raises(Unavailable) as refusal:
            await self.say(id, text)
        assert refusal.value.retry_after

    async def works_again(self, id: str, text: str = "hola") -> Stored:
        """Repeat the same id until it is stored, as a client does."""
        async with asyncio.timeout(RECOVERY):
            while True:
                try:
                    return await self.say(id, text)
                except Unavailable:
                    await asyncio.sleep(0.01)

    async def ids(self) -> list[Any]:
        return [row["id"] for row in await log_of(self.log, self.lobby)]


@asynccontextmanager
async def chatting(url: str) -> AsyncIterator[Chatting]:
    async with opened(url) as database:
        log = Repository(database)
        here = Chatting(log, await log.make_room("lobby"))
        running = asyncio.create_task(here.writer.run())
        yield here
        await stop([running])


async def test_a_full_disk_refuses_and_takes_the_same_ids_once_there_is_room(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"pages": 0}

    class Small(module.DurableConnection):
        """SQLite fails as on a full disk once the file has so many pages."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.execute(f"PRAGMA max_page_count={limits['pages'] or 2**30}")

    monkeypatch.setattr(module, "DurableConnection", Small)
    async with chatting(sqlite_url) as here:
        await here.say("before")
        with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
            limits["pages"] = connection.execute("PRAGMA page_count").fetchone()[0] + 2
        connection.close()
    text = "x" * 4_000
    async with chatting(sqlite_url) as here:
        stored = 0
        with pytest.raises(Unavailable):
            while True:
                await here.say(f"big-{stored}", text)
                stored += 1
        await here.is_refused(f"big-{stored}", text)
        assert await here.ids() == ["before", *(f"big-{number}" for number in range(stored))]
        # The writer leaves its connection after a fault, so a new one sees the new limit.
        limits["pages"] = 0
        where = await here.works_again(f"big-{stored}", text)
        assert (where.seq, where.duplicate) == (stored + 2, False)


async def test_a_read_only_database_refuses_until_it_takes_writes_again(
    own_postgres: PostgresServer,
) -> None:
    url = own_postgres.create_database()
    async with chatting(url) as here:
        await here.say("before")
        admin = await asyncpg.connect(own_postgres.url)
        name = url.rpartition("/")[2].partition("?")[0]
        for state in ("on", "off"):
            await admin.execute(
                f'ALTER DATABASE "{name}" SET default_transaction_read_only = {state}'
            )
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
            )
            if state == "on":
                await here.is_refused("while")
                assert await here.ids() == ["before"]
        await admin.close()
        assert (await here.works_again("while")).seq == 2
        assert await here.ids() == ["before", "while"]


async def test_a_database_without_free_connections_refuses_until_one_is_free() -> None:
    server = PostgresServer(max_connections="8", superuser_reserved_connections="0")
    server.start()
    try:
        url = server.create_database()
        async with chatting(url) as here:
            await here.say("before")
            hogs = []
            with pytest.raises(asyncpg.TooManyConnectionsError):
                while True:
                    hogs.append(await asyncpg.connect(url))
            # The writer holds a connection of its own: it must lose that one to be in need.
            await hogs[0].execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'tertulia'"
            )
            with pytest.raises(asyncpg.TooManyConnectionsError):
                while True:
                    hogs.append(await asyncpg.connect(url))
            await here.is_refused("while")
            for hog in hogs:
                await hog.close()
            assert (await here.works_again("while")).seq == 2
            assert await here.ids() == ["before", "while"]
    finally:
        server.remove()
