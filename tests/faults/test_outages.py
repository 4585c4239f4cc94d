"""A database that says no, or nothing: full, read-only, out of connections, silent in mid-commit.
Nothing is acked that is not stored, nothing is lost, and once it is well again the same ids go
through without a restart.

Killed, frozen and restarted databases are in test_checker.py and tests/test_database.py.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest

from chat.errors import Unavailable
from chat.live.tasks import stop
from chat.log import database as module
from chat.log.repository import Repository, Room, Stored
from chat.log.writer import Writer
from tests.conftest import ChatServerFactory
from tests.people import NO_LIMITS, Member, ask, guest
from tests.servers import LOOK_INTERVAL, ROOT, PostgresServer
from tests.storage import LIMIT, draft, log_of, opened

# Seconds within which a send must work after the database is well again.
RECOVERY = 2.0
# What SQLite does by itself: pages in the write-ahead log after which it wants a checkpoint.
CHECKPOINT_PAGES, PAGE_SIZE = 1_000, 4_096
# Seconds: limits that a test waits for, and what a busy machine may add to them. A clean-up that
# waits for a dead server takes five.
SHORT, SLACK = 0.3, 2.5


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


@contextmanager
def files_of_at_most(size: int, pid: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`: what it writes there fails, as it does where
    the disk is full."""
    process = psutil.Process(pid)
    hard = process.rlimit(psutil.RLIMIT_FSIZE)[1]
    process.rlimit(psutil.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))


async def says_until_refused(
    member: Member, text: str, at_once: int
) -> tuple[list[str], list[str]]:
    """Say so many at a time, and in the end one, until it is refused; return the ids of what was
    stored, by their seqs, and of what was not."""
    acks: dict[int, str] = {}
    tried: dict[str, None] = {}
    while True:
        numbers = (f"big-{number}" for number in itertools.count())
        ids = list(itertools.islice((id for id in numbers if id not in acks.values()), at_once))
        for id in ids:
            await member.send("send", id=id, text=text)
        answers = [await member.next("ack", "error") for _ in ids]
        tried |= dict.fromkeys(ids)
        acks |= {one["seq"]: one["id"] for one in answers if one["type"] == "ack"}
        refused = [one for one in answers if one["type"] == "error"]
        assert all(one["code"] == "unavailable" and one["retry_after"] > 0 for one in refused)
        if refused and at_once == 1:
            stored = [acks[seq] for seq in sorted(acks)]
            return stored, [id for id in tried if id not in stored]
        if refused:
            # Where many do not fit, one may.
            at_once = 1


async def are_taken_again(member: Member, ids: Sequence[str], text: str) -> None:
    """Repeat them as a client does, in impatience."""
    async with asyncio.timeout(RECOVERY):
        for id in ids:
            while (answer := await member.asks("send", id=id, text=text))["type"] == "error":
                await asyncio.sleep(LOOK_INTERVAL)
            assert answer["duplicate"] is False


def stored_in(file: Path) -> list[tuple[int, str]]:
    """Return seq and id of all messages in a sound SQLite file."""
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return database.execute("SELECT seq, message_id FROM messages ORDER BY seq").fetchall()


async def test_a_program_whose_files_may_not_grow_refuses_and_goes_on_once_they_may(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(**NO_LIMITS)
    file = server.folder / "var" / "chat.db"
    maria = await guest(server)
    text = "x" * 4_000
    async with maria.enter("lobby") as member:
        size = file.with_name("chat.db-wal").stat().st_size + 100_000
        with files_of_at_most(size, server.pid):
            stored, refused = await says_until_refused(member, text, 8)
            answer = await member.asks("send", id=refused[0], text=text)
            assert (answer["type"], answer["code"]) == ("error", "unavailable")
            post = await maria.post("lobby", text, id="post")
            assert (post.status, post.code) == (503, "unavailable")
            assert post.headers["Retry-After"] == "1"
            # Reading goes on, and so does the process.
            page = await member.asks("history", id="page")
            assert [one["id"] for one in page["messages"]] == stored
            assert (await ask(server, "GET", "/healthz")).status == 200
            ready = await ask(server, "GET", "/readyz")
            check = ready.json["checks"]["database"]
            assert (ready.status, check["status"]) == (503, "unavailable")
            assert "takes no messages" in check["reason"] and check["since"]
        # It finds out by itself: no balancer sends anybody where nothing seems to work.
        assert (await ask(server, "GET", "/readyz")).json["checks"]["database"] == {"status": "ok"}
        await are_taken_again(member, refused, text)
        assert (await maria.post("lobby", text, id="post")).status == 201
        await member.read_to(len(stored) + len(refused) + 1)
    assert await server.stop() == 0
    assert stored_in(file) == list(enumerate([*stored, *refused, "post"], 1))


async def test_what_is_acked_while_no_checkpoint_gets_through_is_in_the_file_in_the_end(
    chat_server: ChatServerFactory, sqlite_url: str
) -> None:
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    text = "x" * 4_000
    async with opened(sqlite_url) as database:
        # The file is longer than the write-ahead log gets before SQLite wants a checkpoint.
        log = Repository(database)
        other = await log.make_room("other")
        await log.append([draft(other, text) for _ in range(1_100)])
    before = file.stat().st_size
    server = await chat_server(**NO_LIMITS, CHAT_DATABASE_URL=sqlite_url)
    maria = await guest(server)
    async with maria.enter("lobby") as member:
        with files_of_at_most(before, server.pid):
            stored, refused = await says_until_refused(member, text, 32)
            # It went on until there was no room for the log either, checkpoint or no checkpoint.
            assert file.with_name("chat.db-wal").stat().st_size > CHECKPOINT_PAGES * PAGE_SIZE
            assert file.stat().st_size == before
        await are_taken_again(member, refused, text)
    assert file.stat().st_size > before
    assert await server.stop() == 0
    with closing(sqlite3.connect(file)) as changed, changed:
        changed.execute("DELETE FROM messages WHERE room_id = ?", (other.id,))
    assert stored_in(file) == list(enumerate([*stored, *refused], 1))


# What a server says whose disk is full: at an insert, or only at the commit.
FULL = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE {kind} AFTER INSERT ON messages {when} FOR EACH ROW EXECUTE FUNCTION no_room()
"""


@pytest.mark.parametrize(
    ("kind", "when"),
    [("TRIGGER no_room", ""), ("CONSTRAINT TRIGGER no_room", "DEFERRABLE INITIALLY DEFERRED")],
    ids=["at the insert", "at the commit"],
)
async def test_a_postgresql_whose_disk_is_full_refuses_and_takes_the_same_ids_once_there_is_room(
    postgres_url: str, kind: str, when: str
) -> None:
    async with chatting(postgres_url) as here:
        await here.say("before")
        admin = await asyncpg.connect(postgres_url)
        await admin.execute(FULL.format(kind=kind, when=when))
        for _ in range(2):
            await here.is_refused("while")
        assert await here.ids() == ["before"]
        assert here.writer.failing_since is not None
        with pytest.raises(Unavailable):
            await here.writer.check(LIMIT)
        await admin.execute("DROP FUNCTION no_room CASCADE")
        await admin.close()
        await here.writer.check(LIMIT)
        assert here.writer.failing_since is None
        where = await here.works_again("while")
        assert (where.seq, where.duplicate) == (2, False)
        # The check left nothing behind.
        assert await here.ids() == ["before", "while"]
        assert await here.log.database.rows("SELECT count(*) FROM messages") == [(2,)]


# A node that is frozen after its insert and before its commit, once; awake again it goes on.
FROZEN = """
import asyncio, os, signal, sys
from chat.log.statements import PostgreSQL
from chat.log.writer import Writer
from chat.log.repository import Repository
from tests.storage import draft, opened

insert = PostgreSQL.insert

async def freeze(raw, new):
    await insert(raw, new)
    PostgreSQL.insert = staticmethod(insert)
    print("frozen", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

async def main(url):
    async with opened(url) as database:
        log = Repository(database)
        writer = Writer(log, lambda *_: None)
        writing = asyncio.create_task(writer.run())
        PostgreSQL.insert = staticmethod(freeze)
        stored = await writer.append(draft(await log.make_room("lobby"), id="frozen"))
        print(stored.seq, stored.duplicate, flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_a_node_that_is_frozen_in_the_midst_of_an_append_holds_nobody_up_for_long(
    postgres_url: str,
) -> None:
    async with chatting(postgres_url) as here:
        await here.say("before")
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        node = subprocess.Popen(
            [sys.executable, "-c", FROZEN, postgres_url], env=env, stdout=subprocess.PIPE, text=True
        )
        try:
            assert node.stdout is not None
            assert await asyncio.to_thread(node.stdout.readline) == "frozen\n"
            # Not even refused once: the server ends the other one's transaction before.
            assert (await here.say("while")).seq == 2
            node.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(node.stdout.readline) == "3 False\n"
        finally:
            node.kill()
            node.wait()
        assert await here.ids() == ["before", "while", "frozen"]


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
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
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


# --- In mid-commit


class Wire:
    """Lies between the program and PostgreSQL, and knows when a COMMIT passes."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        # What happens to the next COMMITs, the first one first: called before one passes, to say
        # whether it does; its answer is swallowed then, and the connection is cut.
        self.fates: list[Callable[[], bool]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        """Return the URL by which the database is reached over this wire."""
        listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        try:
            yield self._server._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()
        finally:
            listening.close()
            await stop(self._tasks)

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far, forth = await asyncio.open_connection("127.0.0.1", self._server.port)
        answers = asyncio.create_task(self._pass(far, back))
        self._tasks.add(answers)
        with suppress(ConnectionError):
            while data := await near.read(65_536):
                if self.fates and data.startswith(b"Q") and b"COMMIT;" in data:
                    answers.cancel()
                    await asyncio.wait([answers])
                    if self.fates.pop(0)():
                        forth.write(data)
                        assert b"COMMIT" in await far.read(65_536)
                    break
                forth.write(data)
        back.close()
        forth.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("arrives", [True, False], ids=["stored", "not stored"])
async def test_a_commit_whose_answer_is_lost_is_resolved_by_the_id(
    postgres_url: str, arrives: bool, times: int
) -> None:
    wire = Wire(postgres_url)
    async with wire.laid() as url, chatting(url) as here:
        await here.say("before")
        wire.fates = [lambda: arrives] * times
        if times == 2:
            # The first time, the writer has asked again by itself.
            await here.is_refused("lost")
        where = await here.say("lost")
        assert wire.fates == []
        assert (where.seq, where.duplicate) == (2, arrives)
        assert (await here.say("after")).seq == 3
        assert await here.ids() == ["before", "lost", "after"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make short what an append may take as a whole; its last statement began later than it."""
    transaction = module.Database.transaction
    monkeypatch.setattr(module.Database, "transaction", lambda self: transaction(self, SHORT))
    monkeypatch.setattr(module, "CONNECT_LIMIT", SHORT)


async def test_a_server_that_freezes_in_mid_commit_holds_up_nobody_and_is_asked_again_by_the_id(
    own_postgres: PostgresServer, short: None
) -> None:
    wire = Wire(own_postgres.create_database())
    async with wire.laid() as url, chatting(url) as here:
        await here.say("before")
        frozen: list[float] = []

        def freeze() -> bool:
            own_postgres.freeze()
            frozen.append(time.monotonic())
            return True

        wire.fates = [freeze]
        try:
            await here.is_refused("lost")
            assert time.monotonic() - frozen[0] < SHORT + SLACK
            # The writer has left the dead connection, and tries with others.
            await here.is_refused("later")
            assert time.monotonic() - frozen[0] < 3 * SHORT + SLACK
        finally:
            own_postgres.thaw()
        lost, later = await here.works_again("lost"), await here.works_again("later")
        assert sorted([lost.seq, later.seq]) == [2, 3]
        assert sorted(await here.ids()) == ["before", "later", "lost"]


async def test_a_server_that_freezes_in_mid_commit_does_not_hang_the_end(
    own_postgres: PostgresServer, short: None
) -> None:
    wire = Wire(own_postgres.create_database())

    def freeze() -> bool:
        own_postgres.freeze()
        frozen.set()
        return True

    frozen = asyncio.Event()
    try:
        async with wire.laid() as url:
            async with chatting(url) as here:
                wire.fates = [freeze]
                saying = asyncio.create_task(here.say("lost"))
                await frozen.wait()
                began = time.monotonic()
            assert time.monotonic() - began < SLACK
            assert isinstance(
                (await asyncio.gather(saying, return_exceptions=True))[0], Unavailable
            )
    finally:
        own_postgres.thaw()
