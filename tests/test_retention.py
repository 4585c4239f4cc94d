"""Trimming: what goes, what stays, who is told, and that sending does not wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chat.clock import now
from chat.log import retention as module
from chat.log.database import Database
from chat.log.redactions import of_room, redact
from chat.log.repository import Repository, Room
from chat.log.retention import BATCH, CHECKERS, DAY, Lost, Retention
from chat.log.users import Users
from tests.conftest import ChatServerFactory
from tests.people import NO_LIMITS, execute, lines_with, site, until
from tests.storage import change, draft, repositories, seqs

DAYS = 30
# Seconds that a send may take beside the trimming, at the most: far below a member's patience.
SLOW = 0.5


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD", 0.0)


async def age(database: Database, room: Room, until_seq: int, days: float) -> None:
    """Let the messages up to this seq be so old."""
    await change(
        database,
        "UPDATE messages SET sent_at = :at WHERE room_id = :room AND seq <= :seq",
        at=now() - int(days * DAY),
        room=room.id,
        seq=until_seq,
    )


async def a_room_of(log: Repository, name: str, count: int, old: int) -> Room:
    """Make a room of so many messages, the first `old` of them too old."""
    room = await log.make_room(name)
    await log.append([draft(room) for _ in range(count)])
    if old:
        await age(log.database, room, old, DAYS + 1)
    return room


async def state(log: Repository, name: str) -> tuple[int, int, list[int]]:
    """Return first_seq, last_seq and the seqs that are there."""
    room = await log.find_room(name)
    assert room is not None
    return room.first_seq, room.last_seq, [one.seq for one in await log.read(room.id, 0, 10**6)]


async def test_what_is_too_old_is_trimmed_and_no_more(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        await a_room_of(log, "some", 9, 4)
        await a_room_of(log, "none", 3, 0)
        everything = await a_room_of(log, "everything", 5, 5)
        await a_room_of(log, "dm.1.2", 3, 2)
        many = await a_room_of(log, "many", 2 * BATCH + 7, 2 * BATCH + 6)
        await log.make_room("empty")
        edge = await a_room_of(log, "edge", 2, 0)
        await age(log.database, edge, 1, DAYS - 0.001)
        retention = Retention(log.database, DAYS, "here")
        await retention.sweep()
        assert retention.trimmed == 4 + 5 + 2 + 2 * BATCH + 6
        assert await state(log, "some") == (5, 9, [5, 6, 7, 8, 9])
        assert await state(log, "none") == (1, 3, [1, 2, 3])
        assert await state(log, "everything") == (6, 5, [])
        assert await state(log, "dm.1.2") == (3, 3, [3])
        assert await state(log, "many") == (2 * BATCH + 7, 2 * BATCH + 7, [2 * BATCH + 7])
        assert await state(log, "empty") == (1, 0, [])
        assert await state(log, "edge") == (1, 2, [1, 2])
        # No seq comes twice, and the head stays where it was.
        assert seqs(await log.append([draft(everything), draft(many)])) == [6, 2 * BATCH + 8]
        await retention.sweep()
        assert await state(log, "everything") == (6, 6, [6])


async def test_what_was_redacted_and_is_trimmed_is_noted_no_more(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        lobby, other = await a_room_of(log, "lobby", 6, 4), await a_room_of(log, "other", 3, 0)
        for room, seq in ((lobby, 2), (lobby, 4), (lobby, 5), (other, 1)):
            await redact(log.database, room.id, seq)
        await Retention(log.database, DAYS, "here").sweep()
        assert await of_room(log.database, lobby.id, 10) == [5]
        assert await of_room(log.database, other.id, 10) == [1]


@pytest.mark.parametrize("days", [0, DAYS])
async def test_of_what_health_checks_say_a_day_is_kept_whatever_the_setting(
    days: int, database_url: str
) -> None:
    async with repositories(database_url, 1) as [log]:
        await a_room_of(log, "lobby", 3, 2)
        users = Users(log.database)
        await users.site_user("maria")
        one, other = [await users.site_user(name) for name in CHECKERS[::-1]]
        await a_room_of(log, f"dm.{one.id - 1}.{other.id}", 3, 2)
        checks = await a_room_of(log, f"dm.{one.id}.{other.id}", 5, 0)
        await age(log.database, checks, 4, 0.99)
        await age(log.database, checks, 2, 1.01)
        retention = Retention(log.database, days, "here")
        for _ in range(2):
            await retention.sweep()
            assert await state(log, checks.name) == (3, 5, [3, 4, 5])
        left = (1, 3, [1, 2, 3]) if not days else (3, 3, [3])
        for name in ("lobby", f"dm.{one.id - 1}.{other.id}"):
            assert await state(log, name) == left
        # They are not among those that the log's line counts.
        assert retention.trimmed == (4 if days else 0)


async def test_where_nothing_is_too_old_nothing_is_written(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        await a_room_of(log, "lobby", 3, 0)
        one, other = [await Users(log.database).site_user(name) for name in CHECKERS]
        for days in (0, DAYS):
            await Retention(log.database, days, "here").sweep()
        await a_room_of(log, f"dm.{one.id}.{other.id}", 3, 0)
        for days in (0, DAYS):
            await Retention(log.database, days, "here").sweep()
        assert await log.database.rows("SELECT name FROM chores") == []


async def test_a_room_whose_messages_are_all_trimmed_is_in_no_list(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        await a_room_of(log, "everything", 2, 2)
        await a_room_of(log, "some", 2, 1)
        await Retention(log.database, DAYS, "here").sweep()
        found, _ = await log.rooms_of(1, None, 10)
        assert [room.name for room in found] == ["some"]


async def test_rooms_beyond_one_look_are_trimmed_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOMS", 2)
    async with repositories(database_url, 1) as [log]:
        for number in range(5):
            await a_room_of(log, f"room-{number}", 2, 1)
        retention = Retention(log.database, DAYS, "here")
        await retention.sweep()
        assert retention.trimmed == 5


async def test_first_seq_is_told_before_anything_vanishes_and_a_sweep_may_be_broken_off(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLD", 60.0)
    async with repositories(database_url, 2) as [log, other]:
        await a_room_of(log, "lobby", 5, 3)
        sweep = asyncio.create_task(Retention(log.database, DAYS, "here").sweep())

        async def moved() -> bool:
            return (await state(log, "lobby"))[0] == 4

        await until(moved)
        assert await state(log, "lobby") == (4, 5, [1, 2, 3, 4, 5])
        sweep.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sweep
        # Another process, once the chore of the first one has run out.
        there = Retention(other.database, DAYS, "there")
        with pytest.raises(Lost):
            await there.sweep()
        await change(log.database, "UPDATE chores SET held_until = 0")
        await there.sweep()
        assert await state(log, "lobby") == (4, 5, [4, 5])


async def test_who_loses_the_chore_within_a_sweep_deletes_nothing_more(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    async with repositories(database_url, 1) as [log]:
        await a_room_of(log, "lobby", 9, 8)
        retention = Retention(log.database, DAYS, "here")
        sweep = asyncio.create_task(retention.sweep())
        await until(lambda: retention.trimmed)
        await change(log.database, f"UPDATE chores SET holder = 'there', held_until = {2**62}")
        with pytest.raises(Lost):
            await sweep
        first, last, left = await state(log, "lobby")
        assert (first, last) == (9, 9) and left[-1] == 9


async def test_a_log_that_was_put_back_meanwhile_keeps_its_beginning(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        await a_room_of(log, "lobby", 6, 6)
        retention = Retention(log.database, DAYS, "here")
        [before] = await retention._look(0)
        await change(log.database, "UPDATE rooms SET last_seq = 3")
        assert not await retention._advance(before, now())
        await change(log.database, "UPDATE rooms SET last_seq = 6, epoch = 'another'")
        assert not await retention._advance(before, now())
        assert (await state(log, "lobby"))[0] == 1


# --- Beside those who talk


async def test_a_node_trims_what_health_checks_left_though_all_is_kept_for_ever(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server()
    for _ in range(2):
        await server.says("healthcheck", "--url", server.url)
    await server.stop()
    execute(server, "UPDATE messages SET sent_at = ? WHERE seq = 1", now() - 2 * DAY)
    await server.start()
    seqs = "SELECT m.seq FROM messages m JOIN rooms r ON r.id = m.room_id AND r.name LIKE 'dm.%'"
    await until(lambda: execute(server, seqs) == [(2,)])
    assert execute(server, "SELECT first_seq FROM rooms WHERE name LIKE 'dm.%'") == [(2,)]
    assert not lines_with(server, "Trimmed")


async def fill(log: Repository, count: int) -> None:
    """Make a room `old` of so many messages that are too old."""
    room = await log.make_room("old")
    numbers = (
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
        if log.database.sqlite
        else f"WITH n AS (SELECT i FROM generate_series(1, {count}) AS i)"
    )
    async with log.database.transaction(60) as raw:
        await raw.execute(
            "INSERT INTO messages (room_id, seq, message_id, sender_id, sender_name, text, sent_at)"
            f" {numbers} SELECT {room.id}, i, 'c-' || i, 7, 'maria',"
            f" 'something that was said long ago, number ' || i, {now() - 2 * DAYS * DAY} FROM n"
        )
        await raw.execute(f"UPDATE rooms SET last_seq = {count} WHERE id = {room.id}")


@asynccontextmanager
async def sending(log: Repository) -> AsyncIterator[list[float]]:
    """Let somebody say one message after the other; collect how long each took, in seconds."""
    room, took = await log.make_room("lobby"), []

    async def send() -> None:
        while True:
            began = time.perf_counter()
            await log.append([draft(room)])
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)

    task = asyncio.create_task(send())
    try:
        yield took
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.timeout(180)
async def test_sending_does_not_wait_while_a_hundred_thousand_messages_are_trimmed(
    database_url: str,
) -> None:
    async with repositories(database_url, 2) as [log, other]:
        await fill(log, 100_000)
        retention = Retention(other.database, DAYS, "there")
        async with sending(log) as took:
            await until(lambda: len(took) > 100)
            usual = sorted(took)
            took.clear()
            began = time.perf_counter()
            await retention.sweep()
            whole = time.perf_counter() - began
            beside = sorted(took)
        assert retention.trimmed == 100_000
        assert (await state(log, "old"))[0] == 100_001
    middles = [each[len(each) // 2] * 1000 for each in (usual, beside)]
    ends = [each[len(each) * 99 // 100] * 1000 for each in (usual, beside)]
    print(f"{whole:.1f} s, {len(beside)} sends, ms before and beside: {middles} {ends}")
    assert beside[-1] < SLOW, "somebody waited"
    assert middles[1] < 3 * middles[0] + 5, "all waited"


async def test_members_are_told_the_truth_while_old_messages_go(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(**NO_LIMITS)
    maria = await site(server)
    async with maria.enter("lobby") as member:
        await member.say_all([f"message {number}" for number in range(1, 301)])
    await server.stop()
    execute(server, "UPDATE messages SET sent_at = ? WHERE seq <= 250", now() - 31 * DAY)
    server.settings["CHAT_RETENTION_DAYS"] = str(DAYS)
    await server.start()
    async with maria.enter("lobby", "?since=290") as member:
        await server.wait_for_log("Trimmed 250 messages")
        assert (await member.say("still here"))["seq"] == 301
        page = (await maria.read("lobby", "?limit=200")).json
        assert (page["first_seq"], page["messages"][0]["seq"], page["more"]) == (251, 251, False)
    for since, resumed in ((249, False), (250, True), (301, True)):
        async with maria.enter("lobby", f"?since={since}") as member:
            assert member.welcome["first_seq"] == 251
            assert member.welcome["resumed"] is resumed
