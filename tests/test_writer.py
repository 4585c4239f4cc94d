"""Group commit: answers after the commit only, batches, bounds, faults and second chances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from chat.errors import IdConflict, Unavailable
from chat.log import writer as module
from chat.log.repository import Repository, Room, Stored
from chat.log.statements import Draft
from chat.log.writer import Writer
from chat.protocol import Entry, Person
from tests.servers import PostgresServer
from tests.storage import LIMIT, change, draft, log_of, opened, stored

OTHER_BACKENDS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class Log(Repository):
    """A repository that counts its batches, waits at a gate and fails when it is told to."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Ids of the drafts of each append, in order.
        self.batches: list[list[str]] = []
        # While cleared, appends wait before they begin.
        self.gate = asyncio.Event()
        self.gate.set()
        # Set once an append waits at the gate.
        self.at_gate = asyncio.Event()
        # What the next appends raise, before or after the commit.
        self.before: list[Exception] = []
        self.after: list[Exception] = []

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | IdConflict | Unavailable]:
        self.batches.append([one.id for one in drafts])
        if not self.gate.is_set():
            self.at_gate.set()
            await self.gate.wait()
        if self.before:
            raise self.before.pop(0)
        results = await super().append(drafts)
        if self.after:
            raise self.after.pop(0)
        return results


class Rig:
    """A writer that runs, and all that it has to do with."""

    def __init__(self, log: Log, lobby: Room) -> None:
        self.log = log
        self.lobby = lobby
        # What the writer announced: room id, epoch, seqs.
        self.announced: list[tuple[int, str, list[int]]] = []
        self.writer = Writer(log, self.on_commit)
        self.task: asyncio.Task[None] | None = None

    def on_commit(self, room_id: int, epoch: str, entries: list[Entry]) -> None:
        self.announced.append((room_id, epoch, [one.seq for one in entries]))

    def put(self, *drafts: Draft) -> list[asyncio.Future[Stored]]:
        return [self.writer.append(one) for one in drafts]

    def start(self) -> None:
        self.task = asyncio.create_task(self.writer.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task


@asynccontextmanager
async def rigged(url: str) -> AsyncIterator[Rig]:
    async with opened(url) as database, asyncio.timeout(LIMIT):
        log = Log(database)
        rig = Rig(log, await log.make_room("lobby"))
        try:
            yield rig
        finally:
            await rig.stop()


@pytest.fixture
async def rig(database_url: str) -> AsyncIterator[Rig]:
    async with rigged(database_url) as rig:
        rig.start()
        yield rig


def lost() -> Unavailable:
    """What a lost connection becomes: safe to try again at once."""
    error = Unavailable()
    error.__cause__ = asyncpg.ConnectionDoesNotExistError("connection was closed")
    return error


async def outcome(future: asyncio.Future[Stored]) -> Stored | Exception:
    try:
        return await future
    except (IdConflict, Unavailable) as error:
        return error


# --- All goes well


async def test_an_answer_comes_after_the_commit_and_is_then_announced(rig: Rig) -> None:
    rig.log.gate.clear()
    [future] = rig.put(draft(rig.lobby))
    await rig.log.at_gate.wait()
    assert not future.done()
    assert await log_of(rig.log, rig.lobby) == []
    rig.log.gate.set()
    assert (await future).seq == 1
    assert len(await log_of(rig.log, rig.lobby)) == 1
    assert rig.announced == [(rig.lobby.id, rig.lobby.epoch, [1])]


async def test_nothing_is_answered_where_the_commit_fails(rig: Rig) -> None:
    rig.log.after = [Unavailable()]
    [future] = rig.put(draft(rig.lobby))
    with pytest.raises(Unavailable):
        await future
    assert rig.announced == []


async def test_what_waits_while_a_transaction_runs_becomes_one_batch(rig: Rig) -> None:
    rig.log.gate.clear()
    other = await rig.log.make_room("other")
    first = rig.put(draft(rig.lobby))
    await rig.log.at_gate.wait()
    drafts = [draft(room) for _ in range(20) for room in (rig.lobby, other)]
    futures = first + rig.put(*drafts)
    rig.log.gate.set()
    results = await asyncio.gather(*futures)
    assert [len(batch) for batch in rig.log.batches] == [1, 40]
    assert rig.log.batches[1] == [one.id for one in drafts]
    assert [one.seq for one in results[1::2]] == list(range(2, 22))
    assert [one.seq for one in results[2::2]] == list(range(1, 21))
    assert rig.announced == [
        (rig.lobby.id, rig.lobby.epoch, [1]),
        (rig.lobby.id, rig.lobby.epoch, list(range(2, 22))),
        (other.id, other.epoch, list(range(1, 21))),
    ]


async def test_a_batch_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    rig.log.gate.clear()
    futures = rig.put(draft(rig.lobby))
    await rig.log.at_gate.wait()
    futures += rig.put(*(draft(rig.lobby) for _ in range(7)))
    rig.log.gate.set()
    assert [one.seq for one in await asyncio.gather(*futures)] == list(range(1, 9))
    assert [len(batch) for batch in rig.log.batches] == [1, 3, 3, 1]


async def test_duplicates_are_answered_but_not_announced_again(rig: Rig) -> None:
    one = draft(rig.lobby)
    first = await rig.put(one)[0]
    again = await rig.put(one)[0]
    assert (first.seq, first.duplicate) == (1, False)
    assert (again.seq, again.duplicate) == (1, True)
    assert len(rig.announced) == 1


async def test_a_conflict_fails_alone(rig: Rig) -> None:
    await rig.put(draft(rig.lobby, "a", id="same"))[0]
    rig.log.gate.clear()
    futures = rig.put(draft(rig.lobby, "b"))
    await rig.log.at_gate.wait()
    futures += rig.put(draft(rig.lobby, "c", id="same"), draft(rig.lobby, "d"))
    rig.log.gate.set()
    results = [await outcome(future) for future in futures]
    assert isinstance(results[1], IdConflict)
    assert [stored(results[n]).seq for n in (0, 2)] == [2, 3]  # type: ignore[arg-type]


async def test_a_room_that_is_gone_fails_alone(rig: Rig) -> None:
    gone = Room(rig.lobby.id + 1_000, "gone", "epoch", 1, 5)
    futures = rig.put(draft(gone), draft(rig.lobby))
    results = [await outcome(future) for future in futures]
    assert isinstance(results[0], Unavailable)
    assert isinstance(results[1], Stored)


async def test_a_sender_who_no_longer_waits_disturbs_nobody(rig: Rig) -> None:
    rig.log.gate.clear()
    futures = rig.put(draft(rig.lobby), draft(rig.lobby), draft(rig.lobby))
    futures[0].cancel()
    await rig.log.at_gate.wait()
    futures[1].cancel()
    rig.log.gate.set()
    assert (await futures[2]).seq == 3
    assert rig.announced[-1][2][-1] == 3
    assert len(await log_of(rig.log, rig.lobby)) == 3, "who is gone may still find it stored"


# --- Bounds


async def test_the_queue_is_bounded_by_drafts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    rig.log.gate.clear()
    futures = rig.put(draft(rig.lobby))
    await rig.log.at_gate.wait()
    futures += rig.put(*(draft(rig.lobby) for _ in range(3)))
    with pytest.raises(Unavailable) as full:
        rig.put(draft(rig.lobby, "too many"))
    assert full.value.retry_after is not None
    rig.log.gate.set()
    await asyncio.gather(*futures)
    assert (await rig.put(draft(rig.lobby, "there is room again"))[0]).seq == 5


async def test_the_queue_is_bounded_by_characters(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_CHARACTERS", 100)
    rig.log.gate.clear()
    futures = rig.put(draft(rig.lobby, "x" * 90))
    await rig.log.at_gate.wait()
    futures += rig.put(draft(rig.lobby, "x" * 99), draft(rig.lobby, "x"))
    with pytest.raises(Unavailable):
        rig.put(draft(rig.lobby, "x"))
    rig.log.gate.set()
    await asyncio.gather(*futures)
    assert (await rig.put(draft(rig.lobby, "x" * 100))[0]).seq == 4


# --- Flushing and stopping


async def test_flush_waits_for_all_answers(rig: Rig) -> None:
    await rig.writer.flush()
    rig.log.gate.clear()
    futures = rig.put(draft(rig.lobby))
    await rig.log.at_gate.wait()
    futures += rig.put(draft(rig.lobby))
    flushing = asyncio.create_task(rig.writer.flush())
    await asyncio.sleep(0)
    assert not flushing.done()
    rig.log.gate.set()
    await flushing
    assert all(future.done() for future in futures)
    await rig.writer.flush()


async def test_flush_ends_though_batches_fail(rig: Rig) -> None:
    rig.log.before = [Unavailable()]
    futures = rig.put(draft(rig.lobby))
    await rig.writer.flush()
    assert isinstance(futures[0].exception(), Unavailable)


async def test_cancelling_the_writer_fails_all_that_wait(rig: Rig) -> None:
    rig.log.gate.clear()
    futures = rig.put(draft(rig.lobby), draft(rig.lobby))
    await rig.log.at_gate.wait()
    futures += rig.put(draft(rig.lobby))
    assert rig.task is not None
    rig.task.cancel()
    await asyncio.wait([rig.task])
    assert rig.task.cancelled()
    for future in futures:
        with pytest.raises(Unavailable):
            await future
    await rig.writer.flush()
    assert await log_of(rig.log, rig.lobby) == []


async def test_cancelling_an_idle_writer_ends_it(rig: Rig) -> None:
    await rig.put(draft(rig.lobby))[0]
    assert rig.task is not None
    rig.task.cancel()
    await asyncio.wait([rig.task])
    assert rig.task.cancelled()


async def test_what_came_before_the_writer_began_is_stored(database_url: str) -> None:
    async with rigged(database_url) as rig:
        futures = rig.put(*(draft(rig.lobby) for _ in range(5)))
        rig.start()
        assert [one.seq for one in await asyncio.gather(*futures)] == [1, 2, 3, 4, 5]
        assert len(rig.log.batches) == 1


# --- Faults


async def test_a_batch_that_fails_is_unavailable_and_later_ones_work(rig: Rig) -> None:
    rig.log.before = [Unavailable(), Unavailable()]
    for _ in range(2):
        [future] = rig.put(draft(rig.lobby))
        with pytest.raises(Unavailable):
            await future
    assert (await rig.put(draft(rig.lobby))[0]).seq == 1
    assert [len(batch) for batch in rig.log.batches] == [1, 1, 1]


# A value that the database cannot store, though the wire lets none of them pass.
CULPRITS = {
    "NUL": lambda room: draft(room, "a\0b"),
    "lone surrogate": lambda room: draft(room, "\ud800"),
    "huge": lambda room: draft(room, sender=Person(2**70, "maria")),
}


@pytest.mark.parametrize("kind", CULPRITS)
async def test_of_a_batch_with_a_culprit_only_the_culprit_fails(rig: Rig, kind: str) -> None:
    rig.log.gate.clear()
    rig.put(draft(rig.lobby))
    await rig.log.at_gate.wait()
    drafts = [draft(rig.lobby, str(number)) for number in range(4)]
    drafts.insert(2, CULPRITS[kind](rig.lobby))
    futures = rig.put(*drafts)
    rig.log.gate.set()
    results = [await outcome(future) for future in futures]
    if kind == "NUL" and rig.log.database.sqlite:
        assert all(isinstance(one, Stored) for one in results), "SQLite stores it"
        return
    assert isinstance(results.pop(2), Unavailable)
    assert [stored(one).seq for one in results] == [2, 3, 4, 5]  # type: ignore[arg-type]
    texts = [one["text"] for one in await log_of(rig.log, rig.lobby)]
    assert texts == ["hola", "0", "1", "2", "3"]
    assert [seqs for _, _, seqs in rig.announced] == [[1], [2], [3], [4], [5]]
    assert (await rig.put(draft(rig.lobby))[0]).seq == 6


async def test_a_batch_whose_connection_is_lost_is_said_again_with_the_same_ids(rig: Rig) -> None:
    rig.log.before = [lost()]
    futures = rig.put(draft(rig.lobby), draft(rig.lobby))
    results = [await future for future in futures]
    assert [(one.seq, one.duplicate) for one in results] == [(1, False), (2, False)]
    assert rig.log.batches[0] == rig.log.batches[1]
    assert rig.announced == [(rig.lobby.id, rig.lobby.epoch, [1, 2])]


async def test_a_connection_that_is_lost_after_the_commit_doubles_nothing(rig: Rig) -> None:
    rig.log.after = [lost()]
    futures = rig.put(draft(rig.lobby), draft(rig.lobby))
    results = [await future for future in futures]
    assert [one.seq for one in results] == [1, 2]
    assert len(await log_of(rig.log, rig.lobby)) == 2


async def test_a_connection_that_is_lost_twice_is_unavailable(rig: Rig) -> None:
    rig.log.before = [lost(), lost()]
    [future] = rig.put(draft(rig.lobby))
    with pytest.raises(Unavailable):
        await future
    assert (await rig.put(draft(rig.lobby))[0]).seq == 1


async def test_connections_terminated_between_batches_cost_no_message(postgres_url: str) -> None:
    async with rigged(postgres_url) as rig, opened(postgres_url) as other:
        rig.start()
        for number in range(10):
            one = draft(rig.lobby, str(number))
            result = await outcome(rig.put(one)[0])
            while isinstance(result, Unavailable):
                result = await outcome(rig.put(one)[0])
            assert stored(result).seq == number + 1  # type: ignore[arg-type]
            await other.rows(OTHER_BACKENDS)
        texts = [one["text"] for one in await log_of(Repository(other), rig.lobby)]
        assert texts == list(map(str, range(10)))


async def test_connections_terminated_at_any_moment_double_and_lose_nothing(
    postgres_url: str,
) -> None:
    async with rigged(postgres_url) as rig, opened(postgres_url) as other:
        rig.start()

        async def send(number: int) -> None:
            one = draft(rig.lobby, str(number))
            while isinstance(await outcome(rig.put(one)[0]), Unavailable):
                pass

        async def sender(lane: int) -> None:
            for number in range(lane, 200, 10):
                await send(number)
                if lane == 0:
                    await other.rows(OTHER_BACKENDS)

        await asyncio.gather(*map(sender, range(10)))
        log = await log_of(Repository(other), rig.lobby)
        assert [one["seq"] for one in log] == list(range(1, 201))
        assert sorted(int(one["text"]) for one in log) == list(range(200))


async def test_a_server_that_was_killed_is_unavailable_and_back_after_its_start(
    own_postgres: PostgresServer,
) -> None:
    async with rigged(own_postgres.create_database()) as rig:
        rig.start()
        await rig.put(draft(rig.lobby, "before"))[0]
        own_postgres.kill()
        one = draft(rig.lobby, "while it was away")
        assert isinstance(await outcome(rig.put(one)[0]), Unavailable)
        assert isinstance(await outcome(rig.put(one)[0]), Unavailable)
        own_postgres.start()
        while isinstance(await outcome(rig.put(one)[0]), Unavailable):
            await asyncio.sleep(0.01)
        await rig.put(draft(rig.lobby, "after"))[0]
        assert [entry["text"] for entry in await log_of(rig.log, rig.lobby)] == [
            "before",
            "while it was away",
            "after",
        ]


async def test_messages_of_a_sqlite_that_another_process_locks_are_stored_afterwards(
    sqlite_url: str,
) -> None:
    async with rigged(sqlite_url) as rig, opened(sqlite_url) as other:
        rig.start()
        await rig.put(draft(rig.lobby))[0]
        async with other.transaction():
            [future] = rig.put(draft(rig.lobby))
            while len(rig.log.batches) < 2:
                await asyncio.sleep(0.001)
            assert not future.done()
        assert (await future).seq == 2


async def test_a_room_put_under_another_epoch_is_announced_under_it(rig: Rig) -> None:
    await rig.put(draft(rig.lobby))[0]
    await change(rig.log.database, "UPDATE rooms SET epoch = 'new'")
    assert (await rig.put(draft(rig.lobby))[0]).epoch == "new"
    assert rig.announced[-1] == (rig.lobby.id, "new", [2])
