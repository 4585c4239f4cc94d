"""The fence around `databases`: limits, faults, cancellations, lost and frozen servers."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from chat.errors import Unavailable
from chat.log import database as module
from chat.log import migrations
from chat.log.database import POOL_SIZE, Database
from chat.log.durable import DurableConnection
from chat.log.faults import connection_lost, one_is_to_blame
from chat.log.repository import Repository
from chat.log.users import Users
from tests.servers import ROOT, ChatServer, PostgresServer, obeying
from tests.storage import LIMIT, change, opened

# Seconds: a limit that a test waits for.
SHORT = 0.3
# Seconds that a busy machine may add to a limit.
SLACK = 3.0
CANCELS = 100


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with opened(database_url) as database:
        yield database


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[Database]:
    async with opened(postgres_url) as database:
        yield database


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> float:
    """Make the limits short; returns them in seconds."""
    monkeypatch.setattr(migrations, "CONNECT_PATIENCE", SHORT)
    for name in ("USE_LIMIT", "CONNECT_LIMIT", "BUSY_LIMIT"):
        monkeypatch.setattr(module, name, SHORT)
    return SHORT


async def rooms(database: Database) -> list[str]:
    return [row[0] for row in await database.rows("SELECT name FROM rooms ORDER BY name")]


async def add_room(raw: Any, name: str) -> None:
    """Insert a room by the driver's own connection, as in a transaction."""
    await raw.execute(f"INSERT INTO rooms (name, epoch, created_at) VALUES ('{name}', 'epoch', 0)")


async def add_other_room(database: Database) -> None:
    async with database.transaction() as raw:
        await add_room(raw, "other")


async def healthy(database: Database) -> None:
    """Use all connections at once, to read and to write."""

    async def use(number: int) -> None:
        assert await database.rows("SELECT 1") == [(1,)]
        async with database.transaction() as raw:
            await add_room(raw, f"healthy-{number}-{random.random()}")

    async with asyncio.timeout(LIMIT):
        async with asyncio.TaskGroup() as group:
            for number in range(POOL_SIZE):
                group.create_task(use(number))


async def healthy_again(database: Database) -> None:
    """Use all connections until none of them is a lost one."""
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                return await healthy(database)
            except* Unavailable as lost:
                assert all(connection_lost(one) for one in lost.exceptions)  # type: ignore[arg-type]


# --- Statements and transactions


async def test_rows_are_tuples_of_values(database: Database) -> None:
    found = await database.rows(
        "SELECT id, name FROM rooms WHERE name = :name", {"name": "nowhere"}
    )
    assert found == []
    assert await database.row("SELECT id FROM rooms") is None
    made = await database.row(
        "INSERT INTO rooms (name, epoch, created_at) VALUES (:name, 'e', 5)"
        " RETURNING name, created_at",
        {"name": "a:b '\" %s $1"},
    )
    assert made == ("a:b '\" %s $1", 5)
    assert await database.rows("SELECT name, low_user FROM rooms") == [("a:b '\" %s $1", None)]


async def test_a_transaction_is_committed_on_leaving(database: Database) -> None:
    async with database.transaction() as raw:
        await add_room(raw, "a")
        assert await rooms(database) == ([] if database.sqlite else ["a"])
    assert await rooms(database) == ["a"]


async def test_an_exception_rolls_the_transaction_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as raw:
            await add_room(raw, "a")
            raise ZeroDivisionError
    assert await rooms(database) == []
    await healthy(database)


async def test_a_fault_of_the_database_becomes_unavailable_and_rolls_back(
    database: Database,
) -> None:
    with pytest.raises(Unavailable) as fault:
        async with database.transaction() as raw:
            await add_room(raw, "a")
            await add_room(raw, "a")
    assert isinstance(fault.value.__cause__, sqlite3.IntegrityError | asyncpg.UniqueViolationError)
    assert one_is_to_blame(fault.value) and not connection_lost(fault.value)
    with pytest.raises(Unavailable) as fault:
        await database.rows("SELECT nonsense")
    assert not one_is_to_blame(fault.value) and not connection_lost(fault.value)
    assert await rooms(database) == []
    await healthy(database)


async def test_a_statement_sees_what_was_committed_since_the_transaction_began(
    postgres: Database,
) -> None:
    async with postgres.transaction() as raw:
        assert await raw.fetch("SELECT 1 FROM rooms") == []
        # A task of its own has a connection of its own.
        await asyncio.create_task(add_other_room(postgres))
        assert len(await raw.fetch("SELECT 1 FROM rooms")) == 1
        assert await raw.fetchval("SHOW transaction_isolation") == "read committed"


async def test_an_uncommon_default_isolation_changes_nothing(postgres: Database) -> None:
    name = urlsplit(postgres.url).path[1:]
    await change_setting(
        postgres.url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"
    )
    async with opened(postgres.url) as other, other.transaction() as raw:
        assert await raw.fetchval("SHOW transaction_isolation") == "read committed"


async def change_setting(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


async def test_sqlite_writers_wait_for_each_other(sqlite_url: str) -> None:
    async with opened(sqlite_url) as one, opened(sqlite_url) as other, asyncio.timeout(LIMIT):

        async def count_on(database: Database) -> None:
            for _ in range(20):
                async with database.transaction() as raw:
                    [(count,)] = await raw.execute_fetchall("SELECT count(*) FROM rooms")
                    await add_room(raw, f"room-{count}")

        await asyncio.gather(*(count_on(database) for database in (one, other, one, other)))
        assert len(await rooms(one)) == 80


async def test_sqlite_writes_ahead_and_syncs_each_commit(sqlite_url: str) -> None:
    async with opened(sqlite_url) as database:
        assert await database.rows("PRAGMA journal_mode") == [("wal",)]
        assert await database.rows("PRAGMA synchronous") == [(2,)]
        async with database.transaction() as raw:
            assert await raw.execute_fetchall("PRAGMA synchronous") == [(2,)]
            assert await raw.execute_fetchall("PRAGMA journal_mode") == [("wal",)]
        async with database.held(), database.transaction() as raw:
            assert await raw.execute_fetchall("PRAGMA synchronous") == [(2,)]


async def test_the_clock_is_the_databases_and_counts_milliseconds(database: Database) -> None:
    before = time.time_ns() // 1_000_000
    [(moment,)] = await database.rows(f"SELECT {database.clock}")
    assert isinstance(moment, int)
    assert before - 1_000 <= moment <= time.time_ns() // 1_000_000 + 1_000


async def test_the_clock_goes_on_within_a_transaction(database: Database) -> None:
    async with database.transaction() as raw:
        query = raw.execute_fetchall if database.sqlite else raw.fetch
        first = second = (await query(f"SELECT {database.clock}"))[0][0]
        async with asyncio.timeout(LIMIT):
            while first == second:
                second = (await query(f"SELECT {database.clock}"))[0][0]
    assert first < second


async def test_connections_say_whose_they_are(postgres: Database) -> None:
    assert await postgres.rows("SHOW application_name") == [("tertulia",)]


# --- Opening and closing


@pytest.mark.parametrize("written", ["a b", "a%20b", "a#b", "ñ", "a+b&c", "a@b:c", "deep/er"])
async def test_a_sqlite_file_may_lie_in_any_folder(tmp_path: Path, written: str) -> None:
    async with opened(f"sqlite:///{tmp_path}/{written}/chat.db") as database:
        await healthy(database)
        [(_, _, file)] = await database.rows("PRAGMA database_list")
        assert file == f"{tmp_path}/{unquote(written)}/chat.db"


async def test_a_sqlite_file_may_be_named_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened("sqlite:///var/chat.db"):
        assert (tmp_path / "var" / "chat.db").exists()


async def test_what_is_no_database_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("This is a letter, and longer than any header is.\n" * 100)
    for path in (tmp_path, tmp_path / "file", tmp_path / "file" / "chat.db"):
        database = Database(f"sqlite:///{path}")
        with pytest.raises(Unavailable, match=r"^The database cannot be opened: .*\.$"):
            await database.open()
        await database.close()


@pytest.mark.parametrize("name", ["chat.db", "chat.db-wal", "chat.db-shm", "."])
async def test_a_server_does_not_start_on_a_file_that_it_cannot_write(
    sqlite_url: str, tmp_path: Path, name: str
) -> None:
    server = ChatServer(tmp_path, {"CHAT_DATABASE_URL": sqlite_url})
    server.obeys = True
    server.log_file = tmp_path.with_name(f"{tmp_path.name}.log")
    async with opened(sqlite_url):
        with readable_only(tmp_path / name):
            server.spawn()
            assert await server.wait() == 1
    sentence = f"The database cannot be opened: this user cannot write {tmp_path / name}."
    assert server.log.splitlines()[-1] == sentence
    assert "is open at" not in server.log and "Traceback" not in server.log


@contextmanager
def readable_only(place: Path) -> Iterator[None]:
    mode = place.stat().st_mode
    place.chmod(mode & ~0o222)
    try:
        yield
    finally:
        place.chmod(mode)


_ASK = """
import asyncio, os, sys
from chat.log.database import Database

async def ask(url, file):
    database = Database(url)
    await database.open()
    print(await database.reads_only())
    os.chmod(file, 0o400)
    print(await database.reads_only())
    os.chmod(file, 0o600)
    print(await database.reads_only())
    await database.close()

asyncio.run(ask(*sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["chat.db", "chat.db-wal", "chat.db-shm"])
def test_a_sqlite_file_that_was_made_read_only_is_noticed(
    sqlite_url: str, tmp_path: Path, name: str
) -> None:
    command = obeying([sys.executable, "-c", _ASK, sqlite_url, str(tmp_path / name)])
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "True", "False"]


async def test_a_postgresql_that_was_made_read_only_is_noticed(postgres_url: str) -> None:
    name = urlsplit(postgres_url).path[1:]
    async with opened(postgres_url) as database:
        assert not await database.reads_only()
        read_only = f"ALTER DATABASE {name} SET default_transaction_read_only = on"
        await change_setting(postgres_url, read_only)
    # The tables are there: it opens, as a node's new connections do.
    async with opened(postgres_url) as database:
        assert await database.reads_only()


async def test_a_server_that_is_not_there_cannot_be_opened_until_it_is(
    own_postgres: PostgresServer,
) -> None:
    url = own_postgres.create_database()
    own_postgres.stop()
    database = Database(url)
    with pytest.raises(Unavailable, match="cannot be opened") as fault:
        await database.open()
    assert str(own_postgres.port) not in str(fault.value)
    own_postgres.start()
    await database.open()
    await healthy(database)
    await database.close()


async def test_a_wrong_password_and_a_missing_database_are_told_in_words(
    postgres_url: str,
) -> None:
    missing = Database(f"{postgres_url}_missing")
    with pytest.raises(Unavailable, match="it has no database of that name"):
        await missing.open()
    parts = urlsplit(postgres_url)
    stranger = Database(f"postgresql://stranger:pass@{parts.hostname}:{parts.port}{parts.path}")
    with pytest.raises(Unavailable, match=r"user or password|cannot be opened") as fault:
        await stranger.open()
    assert "stranger" not in str(fault.value) and "pass@" not in str(fault.value)


async def test_a_user_who_may_make_no_tables_is_told(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    role = f"reader_{parts.path[1:]}"
    await change_setting(postgres_url, f"CREATE ROLE {role} LOGIN PASSWORD 'pw'")
    try:
        database = Database(f"postgresql://{role}:pw@{parts.hostname}:{parts.port}{parts.path}")
        with pytest.raises(Unavailable, match=r"^The database cannot be opened: .*\.$") as fault:
            await database.open()
        assert "CREATE" not in str(fault.value)
    finally:
        await change_setting(postgres_url, f"DROP ROLE {role}")


async def test_closing_twice_or_without_opening_is_no_fault(database_url: str) -> None:
    never = Database(database_url)
    await never.close()
    database = Database(database_url)
    await database.open()
    await database.close()
    await database.close()


async def test_no_connection_is_left_after_closing(postgres_url: str) -> None:
    async with opened(postgres_url) as database:
        await healthy(database)
    async with opened(postgres_url) as watcher:
        # The server notices a moment later.
        async with asyncio.timeout(LIMIT):
            while len(await watcher.rows(_OTHERS)) > 0:
                await asyncio.sleep(0.01)


_OTHERS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


# --- Files that are replaced


async def copied(database: Database, path: Path) -> Path:
    """Copy the database as it is now into another file."""
    with sqlite3.connect(database.url.removeprefix("sqlite:///")) as source:
        with sqlite3.connect(path) as target:
            source.backup(target)
        target.close()
    source.close()
    return path


async def test_a_commit_into_a_file_that_was_replaced_is_not_confirmed(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with opened(sqlite_url) as database:
        with pytest.raises(Unavailable) as fault:
            async with database.held():
                async with database.transaction() as raw:
                    await add_room(raw, "kept")
                copy = await copied(database, tmp_path / "copy.db")
                async with database.transaction() as raw:
                    await add_room(raw, "lost")
                copy.replace(tmp_path / "chat.db")
                async with database.transaction() as raw:
                    await add_room(raw, "late")
        # Another connection may serve at once, and it does.
        assert connection_lost(fault.value)
        assert await rooms(database) == ["kept"]
        async with database.held(), database.transaction() as raw:
            await add_room(raw, "new")
        assert await rooms(database) == ["kept", "new"]
        await healthy(database)
    async with opened(sqlite_url) as database:
        assert {"kept", "new"} < set(await rooms(database))


@pytest.mark.parametrize("use", ["read", "change", "transaction"])
async def test_whatever_comes_first_finds_the_file_that_was_put_in_the_place_of_the_old_one(
    sqlite_url: str, tmp_path: Path, use: str
) -> None:
    async with opened(sqlite_url) as database:
        copy = await copied(database, tmp_path / "copy.db")
        async with database.transaction() as raw:
            await add_room(raw, "lost")
        assert await rooms(database) == ["lost"]
        copy.replace(tmp_path / "chat.db")
        if use == "change":
            await database.change(
                "INSERT INTO rooms (name, epoch, created_at) VALUES ('a', 'e', 0) RETURNING name"
            )
        elif use == "transaction":
            async with database.transaction() as raw:
                await add_room(raw, "a")
        assert await rooms(database) == ([] if use == "read" else ["a"])
        assert await database.rows("PRAGMA integrity_check") == [("ok",)]


async def test_who_reads_while_the_file_is_replaced_reads_on(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with opened(sqlite_url) as database:
        before = threading.active_count()
        copy = await copied(database, tmp_path / "copy.db")
        async with database.transaction() as raw:
            await add_room(raw, "lost")

        async def read() -> list[str]:
            async with database.connection() as connection:
                entered.release()
                await go_on.wait()
                found = await connection.fetch_all("SELECT name FROM rooms")
                return [row[0] for row in found]

        entered, go_on = asyncio.Semaphore(0), asyncio.Event()
        reading = [asyncio.create_task(read()) for _ in range(5)]
        for _ in reading:
            await entered.acquire()
        copy.replace(tmp_path / "chat.db")
        assert await asyncio.gather(*(rooms(database) for _ in range(5))) == [[]] * 5
        go_on.set()
        assert await asyncio.gather(*reading) == [["lost"]] * 5
        # The connections to the old file are closed by then, but for their threads' last steps.
        async with asyncio.timeout(LIMIT):
            while threading.active_count() > before:
                await asyncio.sleep(0.001)


async def test_without_its_file_a_database_is_unavailable_until_there_is_one_again(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with opened(sqlite_url) as database:
        copy = await copied(database, tmp_path / "copy.db")
        (tmp_path / "chat.db").unlink()
        with pytest.raises(Unavailable):
            await rooms(database)
        with pytest.raises(Unavailable):
            await database.change("UPDATE rooms SET name = 'b' RETURNING name")
        with pytest.raises(Unavailable):
            await add_other_room(database)
        assert not (tmp_path / "chat.db").exists(), "an empty one would be in the way"
        copy.replace(tmp_path / "chat.db")
        await add_other_room(database)
        assert await rooms(database) == ["other"]


# --- Limits


async def test_a_use_that_takes_too_long_is_unavailable(postgres_url: str, short: float) -> None:
    async with opened(postgres_url) as database:
        began = time.monotonic()
        with pytest.raises(Unavailable) as fault:
            await database.rows("SELECT pg_sleep(60)")
        assert isinstance(fault.value.__cause__, TimeoutError)
        with pytest.raises(Unavailable):
            async with database.transaction() as raw:
                await raw.execute("SELECT pg_sleep(60)")
        with pytest.raises(Unavailable):
            async with database.transaction(limit=0.05):
                await asyncio.sleep(60)
        assert time.monotonic() - began < 3 * short + SLACK
        await healthy(database)


async def test_the_limit_covers_the_wait_for_a_connection(postgres_url: str, short: float) -> None:
    async with opened(postgres_url) as database:
        release, entered = asyncio.Event(), asyncio.Semaphore(0)

        async def hold() -> None:
            async with database.held():
                entered.release()
                await release.wait()

        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
            for _ in range(POOL_SIZE):
                group.create_task(hold())
            for _ in range(POOL_SIZE):
                await entered.acquire()
            with pytest.raises(Unavailable):
                async with database.connection(limit=short):
                    raise AssertionError("there is no connection left")
            with pytest.raises(Unavailable):
                async with database.transaction(limit=short):
                    raise AssertionError("there is no connection left")
            with pytest.raises(Unavailable):
                async with database.held():
                    raise AssertionError("there is no connection left")
            release.set()
        await healthy(database)


async def test_a_sqlite_write_waits_only_so_long_for_another_writer(
    sqlite_url: str, short: float
) -> None:
    async with opened(sqlite_url) as one, opened(sqlite_url) as other:
        async with one.transaction(limit=LIMIT) as raw:
            await add_room(raw, "a")
            began = time.monotonic()
            with pytest.raises(Unavailable):
                async with other.transaction():
                    raise AssertionError("both may write")
            with pytest.raises(Unavailable):
                await change(other, "UPDATE rooms SET name = 'b'")
            assert time.monotonic() - began < 2 * short + SLACK
            assert await rooms(other) == [], "reading waits for nobody"
        await healthy(other)
        assert "a" in await rooms(other)


async def test_a_change_that_waits_for_another_writer_holds_up_no_reads(sqlite_url: str) -> None:
    async with opened(sqlite_url) as one, opened(sqlite_url) as other:
        async with one.transaction(limit=LIMIT) as raw:
            await add_room(raw, "a")
            changes = [
                asyncio.create_task(work)
                for work in (
                    other.change("UPDATE rooms SET created_at = 1 RETURNING name"),
                    Repository(other).make_room("b"),
                    Users(other).site_user("maria"),
                )
            ]
            # All of them have asked for the lock by then.
            for _ in range(50):
                assert await rooms(other) == []
            assert not any(change.done() for change in changes)
        async with asyncio.timeout(LIMIT):
            changed, room, user = await asyncio.gather(*changes)
        assert ("a",) in changed
        assert (room.name, user.name) == ("b", "maria")
        assert sorted(await rooms(one)) == ["a", "b"]


async def test_a_held_connection_is_the_one_that_transactions_use(postgres: Database) -> None:
    async with postgres.held():
        pids = set()
        for _ in range(3):
            async with postgres.transaction() as raw:
                pids.add(await raw.fetchval("SELECT pg_backend_pid()"))
        pids.add((await postgres.rows("SELECT pg_backend_pid()"))[0][0])
    assert len(pids) == 1


async def test_holding_has_no_limit_of_its_own(database_url: str, short: float) -> None:
    async with opened(database_url) as database, database.held():
        await asyncio.sleep(short * 1.2)
        async with database.transaction() as raw:
            await add_room(raw, "a")


# --- Cancellation


async def test_cancelled_transactions_lose_no_connection(database: Database) -> None:
    chance = random.Random(7)
    outcomes = {"done": 0, "cancelled": 0}

    async def write(number: int) -> None:
        async with database.transaction() as raw:
            await add_room(raw, f"room-{number}")

    async with asyncio.timeout(LIMIT):
        for number in range(CANCELS):
            task = asyncio.create_task(write(number))
            await asyncio.sleep(chance.random() * (0.004 if database.sqlite else 0.006))
            task.cancel()
            try:
                await task
                outcomes["done"] += 1
            except asyncio.CancelledError:
                outcomes["cancelled"] += 1
    assert outcomes["cancelled"] > 0
    assert len(await rooms(database)) >= outcomes["done"]
    await healthy(database)


async def test_cancelled_statements_lose_no_connection_and_keep_no_lock(
    database: Database,
) -> None:
    chance = random.Random(11)

    async def write(number: int) -> None:
        await change(
            database,
            "INSERT INTO rooms (name, epoch, created_at) VALUES (:name, 'e', 0)",
            name=f"room-{number}",
        )

    async with asyncio.timeout(LIMIT):
        for number in range(CANCELS):
            task = asyncio.create_task(write(number))
            await asyncio.sleep(chance.random() * 0.002)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
    await healthy(database)


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "INSERT", "COMMIT", "ROLLBACK"])
async def test_a_cancellation_at_any_statement_of_sqlite_stays_one(
    sqlite_url: str, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aiosqlite

    execute: Any = aiosqlite.Connection._execute

    def watched(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        if task is not asyncio.current_task() or not str(*args[:1]).startswith(statement):
            return execute(self, function, *args, **kwargs)
        asyncio.get_running_loop().call_soon(task.cancel)

        def late(*args: Any) -> Any:
            # The statement is under way in its thread when the cancellation comes.
            time.sleep(0.05)
            return function(*args)

        return execute(self, late, *args, **kwargs)

    async def write() -> None:
        async with database.transaction() as raw:
            await add_room(raw, "a")
            if statement == "ROLLBACK":
                raise ZeroDivisionError

    async with opened(sqlite_url) as database, asyncio.timeout(LIMIT):
        monkeypatch.setattr(aiosqlite.Connection, "_execute", watched)
        task = asyncio.create_task(write())
        await asyncio.wait([task])
        assert task.cancelled(), task
        assert await rooms(database) == (["a"] if statement == "COMMIT" else [])
        await healthy(database)


# --- Lost and frozen servers


async def test_a_terminated_connection_heals(postgres_url: str) -> None:
    async with opened(postgres_url) as database, opened(postgres_url) as other:
        await healthy(database)
        for attempt in range(3):
            await other.rows(f"SELECT pg_terminate_backend(pid) FROM ({_OTHERS}) AS others")
            await healthy_again(database)
            with pytest.raises(Unavailable) as fault:
                async with database.transaction() as raw:
                    pid = await raw.fetchval("SELECT pg_backend_pid()")
                    await asyncio.create_task(
                        other.rows("SELECT pg_terminate_backend(:pid)", {"pid": pid})
                    )
                    await add_room(raw, f"lost-{attempt}")
            assert connection_lost(fault.value)
        await healthy(database)
        assert not [name for name in await rooms(database) if name.startswith("lost")]


async def test_a_held_connection_that_was_terminated_heals_when_entered_again(
    postgres_url: str,
) -> None:
    async with opened(postgres_url) as database, opened(postgres_url) as other:
        for _ in range(3):
            with pytest.raises(Unavailable) as fault:
                async with database.held():
                    await asyncio.create_task(
                        other.rows(f"SELECT pg_terminate_backend(pid) FROM ({_OTHERS}) AS o")
                    )
                    while True:
                        async with database.transaction() as raw:
                            await raw.fetch("SELECT 1")
            assert connection_lost(fault.value)
            await healthy_again(database)
        async with database.held(), database.transaction() as raw:
            await add_room(raw, "a")
        assert "a" in await rooms(database)


async def test_a_cancellation_that_meets_a_lost_connection_stays_one(postgres_url: str) -> None:
    async with opened(postgres_url) as database, opened(postgres_url) as other:
        entered: asyncio.Queue[int] = asyncio.Queue()

        async def use() -> None:
            async with database.transaction() as raw:
                entered.put_nowait(await raw.fetchval("SELECT pg_backend_pid()"))
                await asyncio.sleep(LIMIT)

        async with asyncio.timeout(LIMIT):
            for _ in range(5):
                task = asyncio.create_task(use())
                pid = {"pid": await entered.get()}
                await other.rows("SELECT pg_terminate_backend(:pid)", pid)
                while await other.rows("SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid):
                    await asyncio.sleep(0.001)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled(), task
                await healthy_again(database)


async def test_a_server_that_was_killed_and_started_again_heals(
    own_postgres: PostgresServer,
) -> None:
    url = own_postgres.create_database()
    async with opened(url) as database:
        async with database.transaction() as raw:
            await add_room(raw, "before")
        own_postgres.kill()
        for _ in range(2 * POOL_SIZE):
            with pytest.raises(Unavailable):
                await database.rows("SELECT 1")
            with pytest.raises(Unavailable):
                async with database.transaction():
                    pass
        own_postgres.start()
        await healthy(database)
        assert "before" in await rooms(database)


async def test_a_frozen_server_is_unavailable_within_the_limit(
    own_postgres: PostgresServer, short: float
) -> None:
    async with opened(own_postgres.create_database()) as database:
        await healthy(database)
        own_postgres.freeze()
        try:

            async def transaction() -> None:
                async with database.transaction() as raw:
                    await raw.fetch("SELECT 1")

            async def frozen_within() -> None:
                async with database.transaction(limit=LIMIT) as raw:
                    await raw.fetch("SELECT 1")

            uses = [database.rows("SELECT 1"), transaction(), frozen_within()]
            uses += [database.rows("SELECT 1") for _ in range(2 * POOL_SIZE)]
            began = time.monotonic()
            async with asyncio.timeout(LIMIT):
                results = await asyncio.gather(*uses, return_exceptions=True)
            assert all(isinstance(one, Unavailable) for one in results), results
            assert time.monotonic() - began < 2 * short + SLACK
        finally:
            own_postgres.thaw()
        await healthy(database)


async def test_a_server_that_freezes_within_a_transaction_is_left_within_the_limit(
    own_postgres: PostgresServer, short: float
) -> None:
    async with opened(own_postgres.create_database()) as database:
        try:
            with pytest.raises(Unavailable):
                async with database.held(), database.transaction() as raw:
                    await add_room(raw, "a")
                    own_postgres.freeze()
                    began = time.monotonic()
                    await add_room(raw, "b")
            assert time.monotonic() - began < 2 * short + SLACK
        finally:
            own_postgres.thaw()
        await healthy(database)
        assert not {"a", "b"} & set(await rooms(database))


@pytest.mark.parametrize("busy", [True, False])
async def test_closing_does_not_hang_on_a_frozen_server(
    own_postgres: PostgresServer, short: float, busy: bool
) -> None:
    database = Database(own_postgres.create_database())
    await database.open()
    await healthy(database)
    own_postgres.freeze()
    try:
        use = asyncio.create_task(database.rows("SELECT 1")) if busy else None
        await asyncio.sleep(0)
        began = time.monotonic()
        async with asyncio.timeout(LIMIT):
            await database.close()
        assert time.monotonic() - began < 2 * short + SLACK
        if use:
            await asyncio.wait([use])
            assert isinstance(use.exception(), Unavailable)
    finally:
        own_postgres.thaw()


async def test_opening_does_not_hang_on_a_frozen_server(
    own_postgres: PostgresServer, short: float
) -> None:
    database = Database(own_postgres.create_database())
    own_postgres.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="did not answer in time"):
            await database.open()
        assert time.monotonic() - began < 2 * short + SLACK
    finally:
        own_postgres.thaw()
    await database.open()
    await healthy(database)
    await database.close()


async def test_no_thread_outlives_a_database_whose_connecting_was_cancelled(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(sqlite_url)
    await database.open()
    began, go_on = threading.Event(), threading.Event()
    connect = DurableConnection.__init__

    def slowly(self: DurableConnection, path: str, **options: Any) -> None:
        began.set()
        go_on.wait()
        connect(self, path, **options)

    monkeypatch.setattr(DurableConnection, "__init__", slowly)
    changing = asyncio.create_task(database.change("UPDATE rooms SET epoch = '' RETURNING id"))
    await asyncio.to_thread(began.wait)
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    threads = set(database._threads)
    asyncio.get_running_loop().call_later(0.01, go_on.set)
    await database.close()
    assert threads and not any(one.is_alive() for one in threads)


async def test_a_file_that_is_slow_to_close_is_left(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_LIMIT", 0.05)
    database = Database(sqlite_url)
    await database.open()
    disconnect = database._database.disconnect
    monkeypatch.setattr(database._database, "disconnect", asyncio.Event().wait)
    await database.close()
    await disconnect()
