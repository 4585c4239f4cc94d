"""Migrations at the start: from nothing, again, several at once, and where they cannot."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import stat
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiosqlite
import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from chat.errors import Unavailable
from chat.log import migrations
from chat.log.database import Database
from chat.log.migrations import NEWEST, STEPS, standing, upgrade
from chat.log.migrations.apply import LOCK, Connection, apply
from tests.storage import LIMIT, change, opened

STARTS = 4


def steps() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return ScriptDirectory.from_config(config)


async def versions(url: str) -> list[str]:
    async with opened(url) as database:
        return [row[0] for row in await database.rows("SELECT version_num FROM alembic_version")]


async def deployment(url: str) -> str:
    async with opened(url) as database:
        [(id,)] = await database.rows("SELECT id FROM deployment")
    return str(id)


async def execute(url: str, sql: str) -> None:
    """Run one statement on a database as it is, without the program."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(urlsplit(url).path[1:])
        connection.execute(sql)
        connection.commit()
        connection.close()
    else:
        other = await asyncpg.connect(url)
        await other.execute(sql)
        await other.close()


def test_the_history_is_one_line() -> None:
    directory = steps()
    assert len(directory.get_heads()) == 1
    assert len(directory.get_bases()) == 1
    # Files are named by their steps.
    assert [one.revision for one in directory.walk_revisions()] == STEPS[::-1]


async def test_a_fresh_database_gets_all_steps(database_url: str) -> None:
    await upgrade(database_url)
    assert await versions(database_url) == steps().get_heads()


async def test_a_repeated_upgrade_changes_nothing(database_url: str) -> None:
    await upgrade(database_url)
    before = await deployment(database_url)
    async with opened(database_url) as database:
        await change(
            database, "INSERT INTO rooms (name, epoch, created_at) VALUES ('lobby', 'e', 0)"
        )
    await upgrade(database_url)
    await upgrade(database_url)
    assert await deployment(database_url) == before
    async with opened(database_url) as database:
        assert await database.rows("SELECT name FROM rooms") == [("lobby",)]
    assert await versions(database_url) == steps().get_heads()


@pytest.mark.parametrize("step", [one.revision for one in steps().walk_revisions()])
async def test_a_database_of_any_age_keeps_what_it_holds(database_url: str, step: str) -> None:
    await upgrade(database_url, step)
    # Not `Database.open`, which would upgrade it.
    await execute(
        database_url, "INSERT INTO rooms (name, epoch, created_at) VALUES ('lobby', 'e', 0)"
    )
    async with opened(database_url) as database:
        assert await database.rows("SELECT name FROM rooms") == [("lobby",)]
    assert await versions(database_url) == steps().get_heads()


async def test_several_upgrades_at_once_are_one(database_url: str) -> None:
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(upgrade(database_url) for _ in range(STARTS)))
    assert len(await versions(database_url)) == 1
    assert await deployment(database_url)


def _start(url: str, begin: float, deployments: multiprocessing.SimpleQueue[str]) -> None:
    # All at the same moment: importing takes longer than migrating.
    time.sleep(max(0.0, begin - time.time()))
    deployments.put(asyncio.run(deployment(url)))


def test_several_processes_may_start_at_once(database_url: str) -> None:
    context = multiprocessing.get_context("fork")
    deployments: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    begin = time.time() + 0.2
    starts = [
        context.Process(target=_start, args=(database_url, begin, deployments))
        for _ in range(STARTS)
    ]
    for one in starts:
        one.start()
    for one in starts:
        one.join()
    assert [one.exitcode for one in starts] == [0] * STARTS
    assert {deployments.get() for _ in starts} == {asyncio.run(deployment(database_url))}


async def test_a_node_waits_for_the_migration_of_another_one(postgres_url: str) -> None:
    other = await asyncpg.connect(postgres_url)
    await other.execute(f"SELECT pg_advisory_lock({LOCK})")
    async with asyncio.timeout(LIMIT):
        upgrading = asyncio.create_task(upgrade(postgres_url))
        while not await other.fetch("SELECT 1 FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
        assert not upgrading.done()
        await other.execute(f"SELECT pg_advisory_unlock({LOCK})")
        await upgrading
        await other.close()
    assert await versions(postgres_url) == steps().get_heads()


async def test_a_node_does_not_wait_for_ever(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_PATIENCE", 1)
    other = await asyncpg.connect(postgres_url)
    await other.execute(f"SELECT pg_advisory_lock({LOCK})")
    async with asyncio.timeout(LIMIT):
        with pytest.raises(asyncpg.LockNotAvailableError):
            await upgrade(postgres_url)
        with pytest.raises(Unavailable, match="cannot be opened"):
            await Database(postgres_url).open()
        await other.close()
        await upgrade(postgres_url)


async def test_a_sqlite_file_that_is_locked_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_PATIENCE", 0.3)
    path = tmp_path / "chat.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    async with asyncio.timeout(LIMIT):
        with pytest.raises((TimeoutError, sqlite3.OperationalError)):
            await upgrade(f"sqlite:///{path}")
        other.execute("ROLLBACK")
        other.close()
        await upgrade(f"sqlite:///{path}")


async def test_an_upgrade_that_is_cancelled_leaves_nothing_half_done(database_url: str) -> None:
    async with asyncio.timeout(LIMIT):
        for number in range(12):
            task = asyncio.create_task(upgrade(database_url))
            await asyncio.sleep(0.008 * number)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
        await upgrade(database_url)
    assert await versions(database_url) == steps().get_heads()


def test_a_closed_connection_keeps_no_lock_though_somebody_holds_its_cursor(tmp_path: Path) -> None:
    def begin(factory: type[sqlite3.Connection]) -> sqlite3.Cursor:
        """Close a connection within a transaction and a statement; return the cursor."""
        connection = sqlite3.connect(tmp_path / "chat.db", isolation_level=None, factory=factory)
        connection.execute("BEGIN IMMEDIATE")
        cursor = connection.execute("SELECT 1 UNION SELECT 2")
        assert cursor.fetchone() == (1,)
        connection.close()
        return cursor

    held = begin(Connection)
    other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    # SQLite's own: what a task that was cancelled leaves behind.
    del held
    held = begin(sqlite3.Connection)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    del held
    other.close()


async def test_a_new_file_is_for_its_owner_only_and_an_old_one_keeps_its_mode(
    sqlite_url: str,
) -> None:
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    for mode in (0o600, 0o640):
        await upgrade(sqlite_url)
        assert stat.S_IMODE(file.stat().st_mode) == mode
        file.chmod(0o640)


async def test_where_the_tables_stand_is_told_and_not_changed(database_url: str) -> None:
    assert await standing(database_url) is None
    assert await standing(database_url) is None
    await upgrade(database_url, "0001")
    assert await standing(database_url) == "0001"
    await upgrade(database_url)
    assert await standing(database_url) == NEWEST


async def test_tables_of_a_newer_program_are_left_alone(database_url: str) -> None:
    await upgrade(database_url)
    async with opened(database_url) as database:
        await change(database, "UPDATE alembic_version SET version_num = 'from-the-future'")
    with pytest.raises(Unavailable, match="a newer version of this program"):
        await upgrade(database_url)
    # Where that happened after we looked.
    with pytest.raises(Unavailable, match="a newer version of this program"):
        await apply(database_url, NEWEST)
    with pytest.raises(Unavailable, match="a newer version of this program"):
        await Database(database_url).open()


async def test_the_drivers_own_error_is_raised(postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await upgrade(f"{postgres_url}_missing")
    parts = urlsplit(postgres_url)
    with pytest.raises(OSError):
        await upgrade(f"postgresql://127.0.0.1:1{parts.path}")
    with pytest.raises(ConnectionError, match="rejected SSL"):  # as log/faults.py knows it
        await upgrade(f"{postgres_url}?ssl=require")
    (tmp_path / "file").write_text("This is no database, and longer than a header.\n" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        await upgrade(f"sqlite:///{tmp_path}/file")


async def test_a_file_that_cannot_be_opened_leaves_no_thread_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = aiosqlite.Connection.stop

    def late(self: aiosqlite.Connection) -> object:
        # The thread is slow to hear of its end, and would tell a loop that is closed by then.
        self._tx.put_nowait((None, lambda: time.sleep(0.3)))
        return stop(self)

    monkeypatch.setattr(aiosqlite.Connection, "stop", late)
    before = set(threading.enumerate())
    with pytest.raises(sqlite3.OperationalError):
        await standing(f"sqlite:///{tmp_path}/nowhere/chat.db")
    left = set(threading.enumerate()) - before
    assert not [one for one in left if "_connection_worker_thread" in one.name]


async def test_a_fault_within_a_migration_is_the_drivers_and_changes_nothing(
    database_url: str,
) -> None:
    # Somebody else's table is in the way.
    await execute(database_url, "CREATE TABLE messages (mine text)")
    with pytest.raises((sqlite3.OperationalError, asyncpg.DuplicateTableError)):
        await upgrade(database_url)
    with pytest.raises(Unavailable, match="cannot be opened"):
        await Database(database_url).open()
    await execute(database_url, "DROP TABLE messages")
    assert await versions(database_url) == steps().get_heads()
