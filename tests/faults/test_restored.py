"""A database that is put back to an older state under running nodes and clients that are ahead.

Whatever the way it was put back, all end on the one log that is there: members get `closing` and
1012, nobody resumes with a cursor into what was lost, and nothing is acked that is not in the log.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from websockets.exceptions import ConnectionClosed

from chat.log.statements import Draft
from chat.log.tables import metadata
from tests.conftest import ChatServerFactory
from tests.faults.client import Talker
from tests.faults.findings import Book
from tests.faults.test_outages import chatting
from tests.people import NO_LIMITS, Member, Person, ask, guest, mint, until
from tests.servers import LOOK_INTERVAL, ChatServer, RedisServer

# Seconds within which running nodes must notice: their tickers look every half second.
NOTICE = 2.0
# Seconds between two messages of one who talks all the time.
PAUSE = 0.02
TALKERS = 4

TABLES = [table.name for table in metadata.sorted_tables]
LOG = (
    "SELECT seq, text FROM messages WHERE room_id = (SELECT id FROM rooms WHERE name = 'lobby')"
    " ORDER BY seq"
)

Log = list[tuple[int, str]]  # seq and text


# --- The ways to put an older state back


class Rows:
    """PostgreSQL: the rows are replaced in one transaction."""

    new_epochs = "UPDATE rooms SET epoch = gen_random_uuid()::text"

    def __init__(self, url: str) -> None:
        self.url = url

    async def copy(self) -> None:
        """Keep the state of now."""
        steps = [
            # One moment for all tables: rooms must not know of messages that are not copied.
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "CREATE SCHEMA copy",
            *[f"CREATE TABLE copy.{name} AS TABLE public.{name}" for name in TABLES],
            "COMMIT",
        ]
        await execute(self.url, "; ".join(steps))

    async def put_back(self, new_epochs: bool) -> None:
        """Put the copy back, as an operator who remembers the new epochs, or forgets them."""
        steps = [
            "BEGIN",
            # Rooms first, as an append does: one that is under way comes to its end before.
            "LOCK TABLE rooms, messages IN ACCESS EXCLUSIVE MODE",
            *[f"DELETE FROM {name}" for name in TABLES],
            *[f"INSERT INTO {name} SELECT * FROM copy.{name}" for name in TABLES],
            *([self.new_epochs] if new_epochs else []),
            "COMMIT",
        ]
        await execute(self.url, "; ".join(steps))

    async def log(self) -> Log:
        """Return the lobby's log as the database has it."""
        connection = await asyncpg.connect(self.url)
        rows = await connection.fetch(LOG)
        await connection.close()
        return [(row[0], row[1]) for row in rows]


class Exchange(Rows):
    """PostgreSQL: the whole database goes, and another one gets its name."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.name = urlsplit(url).path[1:]
        self.admin = at_database(url, "postgres")

    async def copy(self) -> None:
        await self._alone(
            f"CREATE DATABASE {self.name}_copy TEMPLATE {self.name}",
            f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true",
        )

    async def put_back(self, new_epochs: bool) -> None:
        if new_epochs:
            await execute(at_database(self.url, f"{self.name}_copy"), self.new_epochs)
        await self._alone(
            f"DROP DATABASE {self.name}", f"ALTER DATABASE {self.name}_copy RENAME TO {self.name}"
        )

    async def _alone(self, *statements: str) -> None:
        """Run these while nobody is connected to the database, nor can be."""
        await execute(
            self.admin,
            f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false",
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname = '{self.name}'",
            *statements,
        )


class Restore:
    """SQLite: another process replaces the rows in one transaction."""

    new_epochs = "UPDATE rooms SET epoch = hex(randomblob(9))"

    def __init__(self, file: Path) -> None:
        self.file = file
        self.kept = file.with_name("kept.db")

    async def copy(self) -> None:
        with sqlite(self.file) as source, sqlite(self.kept) as target:
            source.backup(target)

    async def put_back(self, new_epochs: bool) -> None:
        self._renew(new_epochs)
        with sqlite(self.file) as database:
            database.execute("ATTACH ? AS kept", (str(self.kept),))
            database.execute("BEGIN IMMEDIATE")
            for name in [*TABLES, "sqlite_sequence"]:
                database.execute(f"DELETE FROM main.{name}")
                database.execute(f"INSERT INTO main.{name} SELECT * FROM kept.{name}")
            database.execute("COMMIT")

    async def log(self) -> Log:
        with sqlite(self.file) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return database.execute(LOG).fetchall()

    def _renew(self, new_epochs: bool) -> None:
        if new_epochs:
            with sqlite(self.kept) as database:
                database.execute(self.new_epochs)


class Move(Restore):
    """SQLite: the copy is moved into the place of the file; what belongs to the old one stays."""

    async def put_back(self, new_epochs: bool) -> None:
        self._renew(new_epochs)
        assert self.file.with_name("chat.db-wal").stat().st_size > 0
        os.replace(self.kept, self.file)


class TidyMove(Move):
    """SQLite: what belongs to the old file is deleted before."""

    async def put_back(self, new_epochs: bool) -> None:
        self._renew(new_epochs)
        for suffix in ("-wal", "-shm"):
            self.file.with_name(f"chat.db{suffix}").unlink()
        os.replace(self.kept, self.file)


def at_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@contextmanager
def sqlite(file: Path) -> Any:
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        yield database


# --- The nodes and their people


class House:
    """Two nodes on one PostgreSQL, or one on SQLite, and a way to put an older state back."""

    def __init__(self, nodes: Sequence[ChatServer], way: Rows | Restore) -> None:
        self.nodes = nodes
        self.way = way

    async def hears_and_says_one_log(self, people: Sequence[Person], *others: Member) -> Log:
        """See that sockets, HTTP and the database agree, also for who comes now."""
        log = await self.way.log()
        assert [seq for seq, _ in log] == list(range(1, len(log) + 1))
        async with in_lobby(people, "?since=0") as newcomers:
            for member in [*newcomers, *others]:
                await member.read_to(len(log))
                assert shown(member.messages) == log
        for person in people:
            page = (await person.read("lobby", "?limit=200")).json
            assert shown(page["messages"]) == log[-200:]
            assert page["epoch"] == newcomers[0].welcome["epoch"]
        return log


@pytest.fixture
async def build(
    request: pytest.FixtureRequest, chat_server: ChatServerFactory, tmp_path: Path
) -> Callable[..., Any]:
    async def build(kind: type[Rows] | type[Restore], relay: str | None = None) -> House:
        if issubclass(kind, Restore):
            return House([await chat_server(**NO_LIMITS)], kind(tmp_path / "var" / "chat.db"))
        url = request.getfixturevalue("postgres_url")
        settings = {
            "CHAT_DATABASE_URL": url,
            "CHAT_RELAY_URL": relay or request.getfixturevalue("redis_url"),
        }
        return House([await chat_server(**NO_LIMITS, **settings) for _ in range(2)], kind(url))

    return build


def shown(messages: Sequence[Any]) -> Log:
    return [(one["seq"], one["text"]) for one in messages]


@asynccontextmanager
async def in_lobby(people: Sequence[Person], query: str) -> AsyncIterator[list[Member]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(one.enter("lobby", query)) for one in people]


async def say(members: Sequence[Member], text: str, count: int = 5) -> None:
    """Let them say so many in turn, and all of them read all of it."""
    acks = [await members[place % len(members)].say(f"{text} {place}") for place in range(count)]
    await asyncio.gather(*[member.read_to(acks[-1]["seq"]) for member in members])


async def are_sent_away(members: Sequence[Member]) -> None:
    async with asyncio.timeout(NOTICE):
        for member in members:
            goodbye = await member.next("closing")
            assert (goodbye["code"], goodbye["reason"]) == (1012, "the room starts afresh")
            assert goodbye["reconnect_after"] >= 0
            assert await member.end() == 1012


WAYS = [
    (Rows, True),
    (Rows, False),
    (Exchange, True),
    (Restore, True),
    (Restore, False),
    (Move, True),
    (Move, False),
    (TidyMove, True),
]
in_each_way = pytest.mark.parametrize(
    ("kind", "new_epochs"),
    WAYS,
    ids=[f"{kind.__name__}-{'new' if new else 'old'} epochs" for kind, new in WAYS],
)


@in_each_way
async def test_who_was_ahead_of_what_is_put_back_starts_afresh_and_all_go_on_with_one_log(
    build: Callable[..., Any], kind: type[Rows] | type[Restore], new_epochs: bool
) -> None:
    house = await build(kind)
    maria, jon = await guest(house.nodes[0]), await guest(house.nodes[-1])
    people = [maria, jon, replace(maria, server=house.nodes[-1])]
    async with in_lobby(people, "?since=0") as members:
        await say(members, "before")
        await house.way.copy()
        await say(members, "lost")
        assert [seq for seq, _ in shown(members[0].messages)] == list(range(1, 11))
        ahead = f"?since=10&epoch={members[0].welcome['epoch']}"
        await house.way.put_back(new_epochs)
        await are_sent_away(members)
    async with in_lobby(people, ahead) as members:
        for member in members:
            assert (member.welcome["resumed"], member.welcome["last_seq"]) == (False, 5)
        await say(members, "after", 10)
        # Who comes back now finds a log that is longer than what it has of the lost one.
        async with in_lobby(people, ahead) as late:
            assert [member.welcome["resumed"] for member in late] == [False, False, False]
            log = await house.hears_and_says_one_log(people, *members, *late)
        assert [text for _, text in log] == [
            *[f"before {number}" for number in range(5)],
            *[f"after {number}" for number in range(10)],
        ]
    for node in house.nodes:
        assert (await ask(node, "GET", "/readyz")).status == 200


async def test_an_older_state_that_is_put_back_while_the_relay_is_away_is_noticed_too(
    build: Callable[..., Any], own_redis: RedisServer
) -> None:
    house = await build(Rows, own_redis.url)
    people = [await guest(node) for node in house.nodes]
    async with in_lobby(people, "?since=0") as members:
        await say(members, "before")
        await house.way.copy()
        await say(members, "lost")
        own_redis.stop()
        await asyncio.gather(*[node.wait_for_log("Relay lost") for node in house.nodes])
        await house.way.put_back(True)
        await are_sent_away(members)
    async with in_lobby(people, "?since=10") as members:
        assert [member.welcome["resumed"] for member in members] == [False, False]
        await say(members, "without a relay")
        own_redis.start()
        await asyncio.gather(*[node.wait_for_log("Relay restored") for node in house.nodes])
        await say(members, "with it")
        assert len(await house.hears_and_says_one_log(people, *members)) == 15


async def test_what_is_said_in_a_room_that_vanished_gets_into_no_other_room(
    build: Callable[..., Any],
) -> None:
    house = await build(Restore)
    maria, jon = await guest(house.nodes[0]), await guest(house.nodes[0])
    async with maria.enter("lobby") as member:
        await member.say("before")

    async def is_tried(private: str, public: str) -> bool:
        await house.way.copy()
        async with maria.enter(private) as member:
            await member.say("lost")
            await house.way.put_back(True)
            # The first room that is made since: its row is the next one, as the other's was.
            async with jon.enter(public) as other:
                try:
                    answer = await member.asks("send", id="c-1", text="nobody else's business")
                except ConnectionClosed:
                    await are_sent_away([member])
                    return False  # the node had noticed before she said it
                assert (answer["type"], answer["code"]) == ("error", "unavailable")
                await are_sent_away([member])
                async with maria.enter(private, "?since=1") as again:
                    assert (again.welcome["resumed"], again.welcome["last_seq"]) == (False, 0)
                    assert (await again.say("nobody else's business", id="c-1"))["seq"] == 1
                await other.is_well()
                assert (await jon.read(public)).json["messages"] == other.messages == []
        return True

    tries = count(1)
    while not await is_tried(f"private-{(number := next(tries))}", f"public-{number}"):
        pass


# --- While all talk


@asynccontextmanager
async def talking(
    nodes: Sequence[ChatServer], book: Book
) -> AsyncIterator[tuple[list[Talker], list[asyncio.Task[None]]]]:
    """Let people come who talk all the time, until their tasks are cancelled."""
    names = [f"user-{number}" for number in range(TALKERS)]
    tokens = [(await mint(nodes[0], user=name)).json["token"] for name in names]
    urls = [node.ws_url for node in nodes]
    talkers = [
        Talker(name, "lobby", token, urls, book, home=number, seed=number)
        for number, (name, token) in enumerate(zip(names, tokens, strict=True))
    ]

    async def talk(talker: Talker) -> None:
        while True:
            await asyncio.sleep(PAUSE)
            talker.say()

    tasks = [asyncio.create_task(talker.run(), name=talker.name) for talker in talkers]
    await until(lambda: all(talker.connected for talker in talkers))
    talks = [asyncio.create_task(talk(talker)) for talker in talkers]
    try:
        yield talkers, talks
    finally:
        for talk_task in talks:
            talk_task.cancel()
        await asyncio.gather(*[talker.leave() for talker in talkers])
        await asyncio.gather(*tasks)


async def all_see(talkers: Sequence[Talker], more: int) -> None:
    """Wait until each has so many more messages on its screen."""
    goals = [len(talker.screen) + more for talker in talkers]
    pairs = list(zip(talkers, goals, strict=True))
    await until(lambda: all(len(talker.screen) >= goal for talker, goal in pairs))


@pytest.mark.parametrize(
    ("kind", "new_epochs"),
    [(Rows, True), (Rows, False), (Move, False)],
    ids=["Rows-new epochs", "Rows-old epochs", "Move-old epochs"],
)
async def test_nothing_is_acked_that_is_not_in_the_log_that_is_put_back_while_all_talk(
    build: Callable[..., Any], kind: type[Rows] | type[Restore], new_epochs: bool
) -> None:
    house = await build(kind)
    book = Book()
    async with talking(house.nodes, book) as (talkers, talks):
        await all_see(talkers, 20)
        kept = {id: seq for talker in talkers for id, seq in talker.acks.items()}
        await house.way.copy()
        await all_see(talkers, 30)
        await house.way.put_back(new_epochs)
        since = book.now
        # What is on a screen from now on came after a new start, when each had one.
        await until(lambda: all(one.closes and one.connected for one in talkers))
        settled = book.now
        assert {code for talker in talkers for _, code in talker.closes} == {1012}
        await all_see(talkers, 10)
        for task in talks:
            task.cancel()
        await until(lambda: not any(talker.unacked for talker in talkers))
        log = await house.way.log()
        await until(lambda: all(talker.last == len(log) for talker in talkers))
        people = [await guest(node) for node in house.nodes]
        assert await house.hears_and_says_one_log(people) == log
    places = {text: seq for seq, text in log}
    assert len(places) == len(log), "a message is there twice"
    for talker in talkers:
        assert [(line.seq, line.text) for line in talker.screen] == log[-len(talker.screen) :]
        for id, seq in talker.acks.items():
            said = book.said[id]
            if id in kept or (said.sent is not None and said.sent > since):
                assert places[said.text] == seq
    assert [one for one in book.findings if one.at > settled] == []


async def test_who_waits_while_an_older_state_is_put_back_is_numbered_from_what_is_there(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chatting(database_url) as here:
        for number in range(1, 11):
            await here.say(f"before-{number}")
        begun, append = asyncio.Event(), here.log.append

        async def noted(drafts: Sequence[Draft]) -> Any:
            begun.set()
            return await append(drafts)

        monkeypatch.setattr(here.log, "append", noted)
        older = "DELETE FROM messages WHERE seq > 5; UPDATE rooms SET last_seq = 5, epoch = 'new'"
        saying: asyncio.Task[Any] | None = None
        if here.log.database.sqlite:
            with sqlite(Path(database_url.removeprefix("sqlite:///"))) as operator:
                operator.execute("BEGIN IMMEDIATE")
                saying = asyncio.create_task(here.say("meanwhile"))
                await begun.wait()
                for statement in [*older.split("; "), "COMMIT"]:
                    operator.execute(statement)
        else:
            operator = await asyncpg.connect(database_url)
            async with operator.transaction():
                await operator.execute(older)
                saying = asyncio.create_task(here.say("meanwhile"))
                waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                while await operator.fetchval(f"{waits} AND datname = current_database()") is None:
                    await asyncio.sleep(LOOK_INTERVAL)
            await operator.close()
        where = await saying
        assert (where.seq, where.epoch, where.duplicate) == (6, "new", False)
        assert await here.ids() == [*[f"before-{number}" for number in range(1, 6)], "meanwhile"]
