"""Marks on their way: folded, written together, kept while the database is away, bounded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from chat.errors import Unavailable
from chat.log import marks as module
from chat.log.database import Database
from chat.log.marks import Marks
from chat.log.members import Mark, Members
from chat.log.users import Users
from tests.relays import until
from tests.storage import LIMIT, opened

LOBBY, GARDEN = 3, 4
MARIA, JUAN = 7, 12
LONG = 3_600.0  # seconds: a second write never comes in a test


class Store(Members):
    """Keeps what it is to save; can be away, and can take its time."""

    def __init__(self) -> None:
        super().__init__(Database("sqlite:///nowhere.db"))
        self.saved: list[list[Mark]] = []
        self.away = False
        self.tries = 0
        # While it is cleared, saving takes its time.
        self.gate = asyncio.Event()
        self.gate.set()

    async def save(self, marks: Iterable[Mark]) -> None:
        batch = list(marks)
        self.tries += 1
        await self.gate.wait()
        if self.away:
            raise Unavailable from OSError("away")
        self.saved.append(batch)

    @property
    def rows(self) -> dict[tuple[int, int], int]:
        """Return how far each one has read, as a database would hold it."""
        found: dict[tuple[int, int], int] = {}
        for mark in [mark for batch in self.saved for mark in batch]:
            key = mark.room_id, mark.user_id
            found[key] = max(found.get(key, 0), mark.read_seq)
        return found


@pytest.fixture
async def store() -> Store:
    return Store()


@asynccontextmanager
async def running(marks: Marks) -> AsyncIterator[None]:
    task = asyncio.create_task(marks.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_what_waits_is_written_in_one_statement(store: Store) -> None:
    marks = Marks(store)
    marks.seen(LOBBY, MARIA)
    marks.read(LOBBY, JUAN, 5)
    marks.seen(GARDEN, MARIA)
    assert await marks.flush()
    [batch] = store.saved
    assert [(mark.room_id, mark.user_id, mark.read_seq) for mark in batch] == [
        (LOBBY, MARIA, 0),
        (LOBBY, JUAN, 5),
        (GARDEN, MARIA, 0),
    ]
    assert await marks.flush()
    assert len(store.saved) == 1


async def test_marks_of_one_user_in_a_room_are_folded_to_the_newest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(range(1_000, 2_000))
    monkeypatch.setattr(module, "now", lambda: next(moments))
    marks = Marks(store)
    for seq in (3, 8, 5):
        marks.read(LOBBY, MARIA, seq)
    marks.seen(LOBBY, MARIA)
    await marks.flush()
    assert store.saved == [[Mark(LOBBY, MARIA, 1_003, 8)]]


async def test_the_task_writes_at_once_and_then_what_gathered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.02)
    marks = Marks(store)
    async with running(marks):
        marks.read(LOBBY, MARIA, 1)
        await until(lambda: len(store.saved) == 1)
        for seq in (2, 3, 4):
            marks.read(LOBBY, MARIA, seq)
        await until(lambda: len(store.saved) == 2)
    assert [[mark.read_seq for mark in batch] for batch in store.saved] == [[1], [4]]


async def test_the_task_writes_no_more_often_than_every_interval(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL", LONG)
    marks = Marks(store)
    async with running(marks):
        marks.seen(LOBBY, MARIA)
        await until(lambda: len(store.saved) == 1)
        marks.seen(LOBBY, MARIA)
        for _ in range(5):
            await asyncio.sleep(0)
        assert store.tries == 1
        # Draining does not wait for it.
        await marks.flush()
        assert len(store.saved) == 2


async def test_without_a_mark_nothing_is_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    marks = Marks(store)
    async with running(marks):
        for _ in range(20):
            await asyncio.sleep(0)
        assert store.tries == 0
        marks.seen(LOBBY, MARIA)
        await until(lambda: store.tries == 1)
        assert store.tries == 1
    # Nor does the task look again and again.
    looks: list[bool] = []
    real = marks.flush

    async def counted() -> bool:
        looks.append(await real())
        return looks[-1]

    monkeypatch.setattr(marks, "flush", counted)
    async with running(marks):
        marks.seen(LOBBY, JUAN)
        for _ in range(20):
            await asyncio.sleep(0)
    assert looks == [True]


async def test_marks_wait_while_the_database_is_away(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.005)
    marks = Marks(store)
    store.away = True
    async with running(marks):
        marks.read(LOBBY, MARIA, 5)
        await until(lambda: store.tries > 3)
        marks.read(LOBBY, MARIA, 4)
        marks.read(LOBBY, JUAN, 6)
        assert not await marks.flush()
        store.away = False
        await until(lambda: store.rows == {(LOBBY, MARIA): 5, (LOBBY, JUAN): 6})
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.records[0].getMessage() == "Marks wait to be stored: OSError"


async def test_what_comes_while_it_is_written_is_written_next(store: Store) -> None:
    marks = Marks(store)
    marks.read(LOBBY, MARIA, 5)
    marks.read(LOBBY, JUAN, 5)
    store.gate.clear()
    writing = asyncio.create_task(marks.flush())
    await until(lambda: store.tries == 1)
    marks.read(LOBBY, MARIA, 6)
    marks.seen(GARDEN, MARIA)
    store.gate.set()
    async with asyncio.timeout(LIMIT):
        assert await writing
        assert await marks.flush()
    assert [[(mark.room_id, mark.read_seq) for mark in batch] for batch in store.saved] == [
        [(LOBBY, 5), (LOBBY, 5)],
        [(LOBBY, 6), (GARDEN, 0)],
    ]


@pytest.mark.parametrize("away", [False, True])
async def test_who_flushes_meanwhile_waits_for_what_is_being_written(
    store: Store, away: bool
) -> None:
    marks = Marks(store)
    store.gate.clear()
    store.away = away
    marks.read(LOBBY, MARIA, 5)
    crowd = [asyncio.create_task(marks.flush()) for _ in range(20)]
    await until(lambda: store.tries > 0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(one.done() for one in crowd)
    store.gate.set()
    async with asyncio.timeout(LIMIT):
        assert await asyncio.gather(*crowd) == [not away] * 20
    assert store.tries == 1
    store.away = False
    assert await marks.flush()
    assert store.rows == {(LOBBY, MARIA): 5}


async def test_a_write_that_is_cancelled_loses_nothing(store: Store) -> None:
    marks = Marks(store)
    store.gate.clear()
    async with running(marks):
        marks.read(LOBBY, MARIA, 5)
        await until(lambda: store.tries == 1)
    store.gate.set()
    assert store.saved == []
    async with asyncio.timeout(LIMIT):
        assert await marks.flush()
    assert store.rows == {(LOBBY, MARIA): 5}


async def test_above_the_bound_the_oldest_are_lost_and_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    marks = Marks(store)
    for user_id in (1, 2, 3, 4, 5, 4, 5, 5):
        marks.read(LOBBY, user_id, user_id)
    assert marks.dropped == 2
    await marks.flush()
    assert store.rows == {(LOBBY, user_id): user_id for user_id in (3, 4, 5)}


async def test_many_marks_are_several_statements(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 10)
    marks = Marks(store)
    for user_id in range(1, 26):
        marks.seen(LOBBY, user_id)
    await marks.flush()
    assert [len(batch) for batch in store.saved] == [10, 10, 5]


async def test_marks_reach_the_table(database_url: str) -> None:
    async with opened(database_url) as database:
        maria = await Users(database).site_user("maria")
        members = Members(database)
        marks = Marks(members)
        async with running(marks):
            marks.seen(LOBBY, maria.id)
            marks.read(LOBBY, maria.id, 8)
            marks.read(LOBBY, maria.id, 5)

            async with asyncio.timeout(LIMIT):
                while await members.last_read(maria.id, [LOBBY]) != {LOBBY: 8}:
                    await asyncio.sleep(0.01)
        [row] = await members.of_room(LOBBY, 0, 10)
        assert row.name == "maria" and row.last_seen_at is not None
