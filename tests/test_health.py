"""What a process says of itself: ok, degraded or unavailable, and nothing that helps a stranger."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from chat.clock import rfc3339
from chat.errors import Unavailable
from chat.live.hub import Hub
from chat.live.relay import Relay
from chat.live.tasks import Tasks, stop
from chat.log import writer as module
from chat.log.database import Database
from chat.log.repository import Repository
from chat.log.writer import CHECK_BYTES, Writer
from chat.ops import metrics
from chat.ops.health import TICKER_PATIENCE, readiness
from tests.relays import LIMIT, Node, until
from tests.servers import LOOK_INTERVAL, PostgresServer, RedisServer
from tests.storage import draft

# Seconds within which an answer is due, whatever hangs.
ANSWER_LIMIT = 2.0


@asynccontextmanager
async def parts(database_url: str, relay_url: str) -> AsyncIterator[tuple[Database, Relay]]:
    database, relay = Database(database_url), Node(relay_url, "node-a").relay
    await database.open()
    await relay.open()
    try:
        yield database, relay
    finally:
        async with asyncio.timeout(LIMIT):
            await relay.close()
            await database.close()


async def ready(
    database: Database,
    relay: Relay,
    tasks: Tasks | None = None,
    hub: Hub | None = None,
    writer: Writer | None = None,
) -> tuple[int, dict[str, Any]]:
    log = Repository(database)
    hub = hub or Hub(log, relay, "node-a")
    writer = writer or Writer(log, lambda *_: None)
    return await readiness(database, writer, relay, tasks or Tasks(), hub)


async def test_all_is_well(database_url: str, relay_url: str) -> None:
    async with parts(database_url, relay_url) as (database, relay):
        status, report = await ready(database, relay)
    assert (status, report["status"]) == (200, "ok")
    assert {name: check["status"] for name, check in report["checks"].items()} == {
        "database": "ok",
        "relay": "ok",
        "tasks": "ok",
    }
    trip = report["checks"]["relay"]["round_trip_ms"]
    assert (trip is None) == (relay_url == "memory://")


async def test_a_lost_relay_degrades_only(sqlite_url: str, own_redis: RedisServer) -> None:
    async with parts(sqlite_url, own_redis.url) as (database, relay):
        began = time.time()
        own_redis.stop()
        await until(lambda: relay.lost)
        status, report = await ready(database, relay)
        assert (status, report["status"]) == (200, "degraded")
        check = report["checks"]["relay"]
        assert check["status"] == "lost"
        assert check["round_trip_ms"] is None
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", check["since"])
        assert relay.lost_since is not None and relay.lost_since >= began - 1
        assert check["reason"]
        assert "127.0.0.1" not in json.dumps(report)
        assert str(own_redis.port) not in json.dumps(report)
        own_redis.start()
        await until(lambda: not relay.lost)
        assert (await ready(database, relay))[1]["status"] == "ok"


# --- A database that answers, but takes no messages


@asynccontextmanager
async def failing(database_url: str) -> AsyncIterator[tuple[Database, Relay, Writer, int]]:
    """A writer whose last commit failed, and the id of the room that it was for."""
    async with parts(database_url, "memory://") as (database, relay):
        log = Repository(database)
        room = await log.make_room("lobby")
        writer = Writer(log, lambda *_: None)
        writing = asyncio.create_task(writer.run())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(log, "append", _fails)
            with pytest.raises(Unavailable):
                await writer.append(draft(room, "hola"))
        yield database, relay, writer, room.id
        await stop([writing])


async def _fails(drafts: object) -> None:
    raise Unavailable


async def says(relay: Relay, database: Database, writer: Writer) -> str | None:
    """The reason for which the database is unavailable; None: it is well."""
    async with asyncio.timeout(ANSWER_LIMIT):
        status, report = await ready(database, relay, writer=writer)
    check = report["checks"]["database"]
    assert (status, check["status"]) in ((200, "ok"), (503, "unavailable"))
    reason: str | None = check.get("reason")
    assert (reason is None) == (status == 200)
    return reason


async def test_once_a_commit_failed_only_a_write_shows_that_all_is_well(database_url: str) -> None:
    async with failing(database_url) as (database, relay, writer, _):
        assert writer.failing_since is not None
        assert await says(relay, database, writer) is None
        assert writer.failing_since is None
        assert await database.rows("SELECT count(*) FROM messages") == [(0,)]


async def test_that_all_is_well_again_is_found_where_nobody_asks_or_sends(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_PAUSE", 0.02)
    async with failing(database_url) as (_, _, writer, _):
        async with asyncio.timeout(LIMIT):
            while writer.failing_since is not None or metrics.FAILING.value:
                await asyncio.sleep(LOOK_INTERVAL)
        assert not writer._waiting


async def test_a_sqlite_file_that_another_one_locks_is_told_in_time(sqlite_url: str) -> None:
    async with failing(sqlite_url) as (database, relay, writer, _):
        other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        reason = await says(relay, database, writer)
        assert (reason is not None and "takes no messages" in reason) or "in time" in str(reason)
        other.execute("ROLLBACK")
        other.close()
        assert await says(relay, database, writer) is None


async def test_a_room_that_somebody_locks_is_told(postgres_url: str) -> None:
    async with failing(postgres_url) as (database, relay, writer, room):
        admin = await asyncpg.connect(postgres_url)
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("SELECT * FROM rooms WHERE id = $1 FOR UPDATE", room)
        assert await says(relay, database, writer) == "it does not answer in time"
        await transaction.rollback()
        await admin.close()
        assert await says(relay, database, writer) is None


async def test_a_check_needs_pages_that_a_full_disk_does_not_have(postgres_url: str) -> None:
    async with failing(postgres_url) as (database, _, writer, _):
        size = "SELECT pg_total_relation_size('messages') - pg_indexes_size('messages')"
        [[before]] = await database.rows(size)
        await writer.check(LIMIT)
        [[after]] = await database.rows(size)
        assert after >= before + CHECK_BYTES


async def test_checks_of_two_nodes_do_not_wait_for_each_other(postgres_url: str) -> None:
    async with failing(postgres_url) as (_, _, one, _), failing(postgres_url) as (_, _, other, _):
        checks = [one.check(ANSWER_LIMIT) for _ in range(8)]
        await asyncio.gather(*checks, *(other.check(ANSWER_LIMIT) for _ in range(8)))


async def test_a_database_that_only_reads_is_told_before_anybody_sends(postgres_url: str) -> None:
    async with parts(postgres_url, "memory://") as (database, relay):
        admin = await asyncpg.connect(postgres_url)
        name = await admin.fetchval("SELECT current_database()")
        for state, status in (("on", 503), ("off", 200)):
            await admin.execute(
                f'ALTER DATABASE "{name}" SET default_transaction_read_only = {state}'
            )
            # As a server that became a replica's does.
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            async with asyncio.timeout(LIMIT):
                while (await ready(database, relay))[0] != status:
                    await asyncio.sleep(LOOK_INTERVAL)
        await admin.close()


async def test_without_the_database_nothing_can_be_done(own_postgres: PostgresServer) -> None:
    async with parts(own_postgres.url, "memory://") as (database, relay):
        assert (await ready(database, relay))[0] == 200
        own_postgres.stop()
        status, report = await ready(database, relay)
        assert (status, report["status"]) == (503, "unavailable")
        check = report["checks"]["database"]
        assert check["reason"] == "it cannot be reached"
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", check["since"])
        assert str(own_postgres.port) not in json.dumps(report)
        own_postgres.start()

        async def well() -> bool:
            return (await ready(database, relay))[0] == 200

        async with asyncio.timeout(LIMIT):
            while not await well():
                await asyncio.sleep(0.01)


async def test_a_database_that_hangs_does_not_hang_the_answer(
    own_postgres: PostgresServer,
) -> None:
    async with parts(own_postgres.url, "memory://") as (database, relay):
        own_postgres.freeze()
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                answers = await asyncio.gather(*[ready(database, relay) for _ in range(3)])
        finally:
            own_postgres.thaw()
        assert [status for status, _ in answers] == [503] * 3
        reasons = {report["checks"]["database"]["reason"] for _, report in answers}
        assert reasons == {"it does not answer in time"}


async def test_a_relay_lost_as_well_changes_nothing_of_unavailable(
    own_postgres: PostgresServer, own_redis: RedisServer
) -> None:
    async with parts(own_postgres.url, own_redis.url) as (database, relay):
        own_redis.stop()
        own_postgres.stop()
        await until(lambda: relay.lost)
        status, report = await ready(database, relay)
        assert (status, report["status"]) == (503, "unavailable")
        assert report["checks"]["relay"]["status"] == "lost"


async def test_a_task_that_died_makes_the_process_unavailable(sqlite_url: str) -> None:
    tasks = Tasks()
    starts = 0

    async def die_once() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise LookupError("a mistake with a secret in it")
        await asyncio.Event().wait()

    async with parts(sqlite_url, "memory://") as (database, relay):
        tasks.start("ticker", die_once)
        try:
            await until(lambda: starts == 2)
            status, report = await ready(database, relay, tasks)
        finally:
            await tasks.close()
    check: dict[str, Any] = report["checks"]["tasks"]
    assert (status, report["status"]) == (503, "unavailable")
    assert check == {"status": "unavailable", "failed": ["ticker"]}
    assert "secret" not in json.dumps(report)


async def test_a_ticker_that_hangs_makes_the_process_unavailable(sqlite_url: str) -> None:
    async with parts(sqlite_url, "memory://") as (database, relay):
        hub = Hub(Repository(database), relay, "node-a")
        assert (await ready(database, relay, hub=hub))[0] == 200  # it has not begun yet
        ticking = asyncio.create_task(hub.tick())
        await until(lambda: hub.ticked_at > 0)
        assert (await ready(database, relay, hub=hub))[0] == 200
        ticking.cancel()
        hub.ticked_at -= TICKER_PATIENCE + 1
        status, report = await ready(database, relay, hub=hub)
    assert status == 503
    assert report["checks"]["tasks"] == {"status": "unavailable", "failed": ["ticker"]}


async def test_it_says_since_when_the_database_is_away(own_postgres: PostgresServer) -> None:
    async with parts(own_postgres.url, "memory://") as (database, relay):
        hub = Hub(Repository(database), relay, "node-a")
        ticking = asyncio.create_task(hub.tick())
        own_postgres.stop()
        await until(lambda: hub.database_lost_since is not None)
        _, report = await ready(database, relay, hub=hub)
        assert hub.database_lost_since is not None
        assert report["checks"]["database"]["since"] == rfc3339(hub.database_lost_since)
        own_postgres.start()
        await until(lambda: hub.database_lost_since is None)
        assert (await ready(database, relay, hub=hub))[0] == 200
        ticking.cancel()
