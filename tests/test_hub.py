"""The hub: whatever happens to bells, heads and epochs, rooms stay true to the log."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import pytest

from chat.errors import Unavailable
from chat.live import announcement, hub
from chat.live.room import Room
from chat.log import epochs
from chat.log.repository import Room as Row
from chat.log.users import Session, Users
from chat.ops import metrics
from chat.protocol import PAGE_DEFAULT, CloseCode, Entry
from tests.live import Bells, Guest, Node, node
from tests.relays import LIMIT, until
from tests.servers import free_port

# For tests in which the ticker decides, and for those in which it must not.
OFTEN, NEVER = 0.02, 60.0


@pytest.fixture
def no_ticker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TICK", NEVER)


@pytest.fixture
def quick_ticker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TICK", OFTEN)
    monkeypatch.setattr(hub, "BELL_PATIENCE", OFTEN)


def counted(last: int) -> list[int]:
    return list(range(1, last + 1))


async def looks(here: Node, count: int) -> None:
    """Wait until the ticker has looked so many times from now on."""
    target = len(here.log.looks) + count
    await until(lambda: len(here.log.looks) >= target)


# --- Real relays


async def test_what_is_committed_reaches_the_members_at_once(
    database_url: str, relay_url: str, no_ticker: None
) -> None:
    async with node(database_url, relay_url) as here:
        guests = [await here.join() for _ in range(3)]
        for text in ("one", "two", "three"):
            await here.say(text)
        await until(lambda: all(guest.seqs == [1, 2, 3] for guest in guests))


async def test_two_processes_hear_each_other_in_one_order(
    database_url: str, redis_url: str, no_ticker: None
) -> None:
    async with (
        node(database_url, redis_url, "node-a") as a,
        node(database_url, redis_url, "node-b") as b,
    ):
        guests = [await a.join(), await b.join()]

        async def talk(here: Node) -> None:
            for number in range(25):
                await here.say(f"{number}", "and more")

        await asyncio.gather(talk(a), talk(b))
        await until(lambda: all(guest.seqs == counted(100) for guest in guests))
        assert "".join(guests[0].frames).count('"and more"') == 50


async def test_ones_own_announcements_are_passed_over_when_they_come_back(
    database_url: str, redis_url: str, no_ticker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        node(database_url, redis_url, "node-a") as a,
        node(database_url, redis_url, "node-b") as b,
    ):
        guest, other = await a.join(), await b.join()
        offers: list[int] = []
        offer = Room.offer

        def counting(room: Room, epoch: str, entries: Sequence[Entry]) -> None:
            if room is guest.cursor.room:
                offers.append(entries[0].seq)
            offer(room, epoch, entries)

        monkeypatch.setattr(Room, "offer", counting)
        await a.say("one")
        # What follows it over Redis proves that the first one has come back by then.
        await until(lambda: other.seqs == [1])
        await b.say("two")
        await until(lambda: guest.seqs == [1, 2])
        assert offers == [1, 2]


# --- Bells that are lost, doubled, late and out of order


async def test_a_lost_bell_is_found_by_the_ticker(database_url: str) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest = await b.join()
        await a.say("one", "two")
        await until(lambda: guest.seqs == [1, 2])


async def test_a_doubled_bell_is_ignored(database_url: str, no_ticker: None) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest = await b.join()
        await a.say("one")
        await a.say("two")
        b.log.reads.clear()
        bells.ring(0, 0, 1, 0, 1)
        await until(lambda: guest.seqs == [1, 2])
        await a.say("three")
        bells.ring(2, 2)
        await until(lambda: guest.seqs == [1, 2, 3])
        assert b.log.reads == []


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2), (2, 0, 1), (1, 2, 0), (1, 2, 1, 0, 0)])
async def test_bells_out_of_order_bring_each_message_once_and_in_order(
    database_url: str, order: Sequence[int], no_ticker: None
) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest = await b.join()
        for text in ("one", "two", "three"):
            await a.say(text, text)
        bells.ring(*order)
        await until(lambda: guest.seqs == counted(6))


async def test_a_gap_is_filled_from_the_log(database_url: str, no_ticker: None) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest = await b.join()
        for number in range(10):
            await a.say(f"{number}")
        bells.ring(0, 9)
        await until(lambda: guest.seqs == counted(10))


async def test_a_long_announcement_rings_without_its_text(
    database_url: str, no_ticker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcement, "MAX_ANNOUNCEMENT", 400)
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest, near = await b.join(), await a.join()
        await a.say("short")
        await a.say("long" * 200)
        assert ["short" in text for _, text in bells.held] == [True, False]
        assert len(bells.held[1][1]) < 100
        # Where it was committed it needs no bell.
        await until(lambda: near.seqs == [1, 2])
        bells.ring(0, 1)
        await until(lambda: guest.seqs == [1, 2])
        assert "longlong" in guest.frames[-1]


async def test_an_announcement_of_another_epoch_is_dropped_and_counted(
    database_url: str, no_ticker: None
) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest = await b.join()
        room = guest.cursor.room
        await a.say("one")
        channel, text = bells.held[0]
        for strange in (text.replace(room.epoch, "another"), "node-z another 7"):
            bells.send(channel, strange)
        await until(lambda: room.strangers == 2)
        assert (room.tail.last, guest.seqs) == (0, [])
        bells.ring(0)
        await until(lambda: guest.seqs == [1])


async def test_what_no_process_of_ours_said_makes_the_members_start_afresh(
    database_url: str, no_ticker: None, caplog: pytest.LogCaptureFixture
) -> None:
    bells = Bells()
    async with node(database_url, bells) as here:
        guest = await here.join()
        channel = f"room.{guest.cursor.room.id}"
        bells.send(channel, "???")
        await until(lambda: guest.ended == [CloseCode.RESTART])
        assert here.hub.find("lobby") is None
        [error] = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert "lobby" in error.getMessage() and error.exc_info is not None
        again = await here.join()
        await here.say("one")
        await until(lambda: again.seqs == [1])


# --- The ticker, heads and epochs


async def test_all_open_rooms_are_looked_at_in_one_question(
    database_url: str, quick_ticker: None
) -> None:
    async with node(database_url, Bells()) as here:
        rooms = [await here.room(f"room-{number}") for number in range(12)]
        await looks(here, 2)
        assert here.log.looks[-1] == sorted(room.id for room in rooms)


BACK_TO_ONE = "DELETE FROM messages WHERE seq > 1; UPDATE rooms SET last_seq = 1"


async def put_back(here: Node, change: str) -> None:
    """Change the database as an operator might who puts an older state back."""
    for statement in change.split("; "):
        await here.log.database.rows(f"{statement} RETURNING 1")


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("UPDATE rooms SET epoch = 'new'", 3),
        (BACK_TO_ONE, 1),
        (
            "DELETE FROM messages; UPDATE rooms SET last_seq = 0, epoch = 'new'",
            0,
        ),
        ("DELETE FROM messages; DELETE FROM rooms", 0),
    ],
    ids=["another epoch", "a lower head", "both", "no room"],
)
async def test_another_log_ends_the_members_and_newcomers_get_the_new_one(
    database_url: str, quick_ticker: None, change: str, left: int
) -> None:
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        bystander = await here.join("elsewhere")
        await here.say("one", "two", "three")
        await until(lambda: guest.seqs == [1, 2, 3])
        if "DELETE FROM rooms" in change:
            change = change.replace("rooms", "rooms WHERE name = 'lobby'")
        elif "UPDATE rooms" in change:
            change += " WHERE name = 'lobby'"
        await put_back(here, change)
        await until(lambda: bool(guest.ended))
        assert guest.ended == [CloseCode.RESTART]
        newcomer = await here.join(since=3, epoch=guest.cursor.room.epoch)
        assert newcomer.cursor.room is not guest.cursor.room
        assert newcomer.cursor.resumed is False
        await here.say("newer")
        await until(lambda: newcomer.seqs == counted(left + 1))
        assert guest.seqs == [1, 2, 3]
        assert bystander.ended == []


@pytest.mark.parametrize(
    "relay", [True, False], ids=["what another node said", "what it said itself"]
)
async def test_a_log_that_went_back_under_its_epoch_gets_a_new_one_though_it_has_grown_again(
    database_url: str, relay: bool
) -> None:
    bells = Bells()
    async with (
        node(database_url, bells, "node-a") as here,
        node(database_url, bells, "node-z") as elsewhere,
    ):
        guest = await here.join()
        await here.say("one", "two", "three")
        await until(lambda: guest.seqs == [1, 2, 3])
        lost = guest.cursor.room.epoch
        # Between two looks of the tickers it goes back, and is as long as before at once.
        here.log.gate.clear()
        await looks(here, 1)
        await put_back(here, BACK_TO_ONE)
        await (elsewhere if relay else here).say("other two", "other three", "other four")
        bells.ring(-1)
        await until(lambda: guest.cursor.room.contradicted)
        here.log.gate.set()
        await until(lambda: bool(guest.ended))
        newcomer = await here.join(since=3, epoch=lost)
        assert newcomer.cursor.resumed is False
        assert newcomer.cursor.room.epoch != lost
        await until(lambda: newcomer.seqs == [1, 2, 3, 4])


async def test_a_log_that_went_back_while_it_cannot_be_written_is_not_forgotten(
    database_url: str, quick_ticker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await here.say("one", "two", "three")
        await until(lambda: guest.seqs == [1, 2, 3])
        refused = asyncio.Event()

        async def refuse(*_: object) -> None:
            refused.set()
            raise Unavailable from OSError("read-only")

        with monkeypatch.context() as patch:
            patch.setattr(epochs, "renew", refuse)
            await put_back(here, BACK_TO_ONE)
            await refused.wait()
            assert guest.ended == []
        await until(lambda: guest.ended == [CloseCode.RESTART])
        assert (await here.room()).epoch != guest.cursor.room.epoch


async def test_a_head_that_is_merely_older_than_what_came_meanwhile_ends_nobody(
    database_url: str, quick_ticker: None
) -> None:
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await here.say("one")
        here.log.gate.clear()
        await looks(here, 1)
        # The ticker holds heads of before this commit.
        await here.say("two", "three")
        await until(lambda: guest.seqs == [1, 2, 3])
        here.log.gate.set()
        await looks(here, 3)
        assert guest.ended == []
        assert here.hub.missed == 0
        assert guest.cursor.room.tail.last == 3


async def test_the_ticker_tells_rooms_what_retention_has_trimmed(
    database_url: str, quick_ticker: None
) -> None:
    async with node(database_url, Bells()) as here:
        room = await here.room()
        await here.say("one", "two", "three")
        await put_back(here, "DELETE FROM messages WHERE seq < 3; UPDATE rooms SET first_seq = 3")
        await until(lambda: room.first_seq == 3)
        assert (await here.join(since=1)).cursor.resumed is False
        assert (await here.join(since=2)).cursor.resumed is True


async def test_a_deaf_relay_counts_as_missed_while_it_seems_well(
    database_url: str, quick_ticker: None
) -> None:
    bells, before = Bells(), metrics.MISSED.value
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest = await b.join()
        await a.say("one")
        await until(lambda: guest.seqs == [1])
        assert b.hub.missed > 0
        assert metrics.MISSED.value == before + b.hub.missed
        assert a.hub.missed == 0


async def test_nothing_counts_as_missed_while_the_relay_is_known_to_be_lost(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nor is any bell waited for then.
    monkeypatch.setattr(hub, "TICK", OFTEN)
    monkeypatch.setattr(hub, "BELL_PATIENCE", NEVER)
    bells = Bells()
    bells.lost = True
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest = await b.join()
        await a.say("one", "two")
        await until(lambda: guest.seqs == [1, 2])
        assert b.hub.missed == 0


async def test_a_bell_that_is_a_little_late_is_not_missed(
    database_url: str, quick_ticker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest = await b.join()
        late: list[list[tuple[Room, int]]] = []
        original = b.hub._mend_late
        monkeypatch.setattr(b.hub, "_mend_late", late.append)
        await a.say("one")
        await until(lambda: len(late) > 0)
        bells.ring(0)
        await until(lambda: guest.seqs == [1])
        for ahead in late:
            original(ahead)
        assert b.hub.missed == 0
        assert b.log.reads == []


async def test_a_database_that_is_away_is_said_once_and_ends_nobody(
    database_url: str, quick_ticker: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "chat.live.hub")
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        guest = await b.join()
        await until(lambda: b.hub.ticked_at > 0)
        caplog.clear()
        b.log.away = True
        await until(lambda: b.hub.database_lost_since is not None)
        await a.say("one")
        await looks(a, 5)
        assert guest.ended == []
        b.log.away = False
        await until(lambda: guest.seqs == [1])
        assert b.hub.database_lost_since is None
    said = [one.getMessage() for one in caplog.records]
    assert said[0] == "Database lost: it cannot be reached"
    assert re.fullmatch(r"Database restored after \d+\.\d s", said[1])
    assert len(said) == 2


# --- Opening


async def test_all_that_open_a_room_at_once_share_one_flight(
    database_url: str, no_ticker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(database_url, Bells()) as here:
        await here.say("one", "two")
        row = await here.log.make_room("lobby")
        listens: list[str] = []
        listen = here.relay.listen

        def counting(channel: str) -> AbstractAsyncContextManager[AsyncIterator[str]]:
            listens.append(channel)
            return listen(channel)

        monkeypatch.setattr(here.relay, "listen", counting)
        rooms = await asyncio.gather(*[here.hub.open(row) for _ in range(50)])
        assert all(room is rooms[0] for room in rooms)
        assert await here.hub.open(row) is rooms[0]
        assert len(listens) == 1
        assert len(here.log.reads_before) == 1


async def test_one_who_gives_up_does_not_end_the_opening_of_the_others(
    database_url: str, no_ticker: None
) -> None:
    bells = Bells()
    bells.confirming.clear()
    async with node(database_url, bells) as here:
        row = await here.log.make_room("lobby")
        leaving = asyncio.create_task(here.hub.open(row))
        staying = asyncio.create_task(here.hub.open(row))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).name == "lobby"
        assert leaving.cancelled()


async def test_a_room_that_cannot_be_read_is_refused_to_all_and_opens_later(
    database_url: str, no_ticker: None
) -> None:
    async with node(database_url, Bells()) as here:
        await here.say("one")
        row = await here.log.make_room("lobby")
        here.log.away = True
        refused = await asyncio.gather(
            *[here.hub.open(row) for _ in range(3)], return_exceptions=True
        )
        assert [type(one) for one in refused] == [Unavailable] * 3
        assert here.hub.find("lobby") is None
        assert not await here.relay.confirmed(f"room.{row.id}")
        here.log.away = False
        guest = await here.join()
        await until(lambda: guest.seqs == [1])


def once_it_is_read(
    here: Node, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Awaitable[object]]
) -> None:
    """Let this happen after a room that is being opened was read, and before it is known."""
    find, found = here.log.find_room, False

    async def finding(name: str) -> Row | None:
        nonlocal found
        row = await find(name)
        if not found and here.log.reads_before:
            found = True
            await happens()
        return row

    monkeypatch.setattr(here.log, "find_room", finding)


async def test_what_this_process_commits_while_a_room_is_opened_is_in_it_at_once(
    database_url: str, no_ticker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(database_url, Bells()) as here:
        await here.say("before")
        once_it_is_read(here, monkeypatch, lambda: here.say("meanwhile"))
        guest = await here.join(since=0)
        await until(lambda: guest.seqs == [1, 2])
        assert guest.cursor.room.tail.last == 2


async def test_a_gap_that_is_reported_while_a_room_is_opened_is_looked_for(
    database_url: str, no_ticker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        row = await a.log.make_room("lobby")
        await a.say("before")

        async def gap() -> None:
            await a.say("missed")
            b.hub.on_gap(f"room.{row.id}")

        once_it_is_read(b, monkeypatch, gap)
        guest = await b.join(since=0)
        await until(lambda: guest.seqs == [1, 2])


async def test_a_bell_for_a_room_that_nobody_opens_is_not_kept(
    database_url: str, no_ticker: None
) -> None:
    async with node(database_url, Bells()) as here:
        await here.say("one")
        room = await here.room()
        await here.say("two")
        assert here.log.reads == []
        assert (room.tail.last, here.hub._rung) == (2, set())


async def test_a_room_that_was_made_anew_meanwhile_is_not_opened_under_its_old_id(
    database_url: str, no_ticker: None
) -> None:
    async with node(database_url, Bells()) as here:
        old = await here.log.make_room("lobby")
        await put_back(here, "DELETE FROM rooms")
        with pytest.raises(Unavailable):
            await here.hub.open(old)
        new = await here.log.make_room("lobby")
        assert new.id != old.id
        with pytest.raises(Unavailable):
            await here.hub.open(old)
        assert (await here.hub.open(new)).epoch == new.epoch


async def test_opening_waits_for_the_confirmation_a_bounded_time_only(
    database_url: str, no_ticker: None
) -> None:
    assert hub.CONFIRM_LIMIT <= 0.25
    bells = Bells()
    bells.confirming.clear()
    async with node(database_url, bells) as here:
        row = await here.log.make_room("lobby")
        before = asyncio.get_running_loop().time()
        async with asyncio.timeout(LIMIT):
            room = await here.hub.open(row)
        assert asyncio.get_running_loop().time() - before >= hub.CONFIRM_LIMIT * 0.9
        assert here.hub.find("lobby") is room


async def test_opening_does_not_wait_at_all_while_the_relay_is_lost(
    database_url: str, no_ticker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "CONFIRM_LIMIT", NEVER)
    async with node(database_url, f"redis://127.0.0.1:{free_port()}") as here:
        assert here.relay.lost
        async with asyncio.timeout(LIMIT):
            guest = await here.join()
        await here.say("one")
        await until(lambda: guest.seqs == [1])


async def test_a_late_confirmation_is_a_gap_report(
    database_url: str, no_ticker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "CONFIRM_LIMIT", OFTEN)
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        bells.confirming.clear()
        guest = await b.join()
        await a.say("one")
        assert guest.seqs == []
        b.hub.on_gap(f"room.{guest.cursor.room.id}")
        await until(lambda: guest.seqs == [1])


@pytest.mark.parametrize("rung", [(), (0,), (1,), (1, 0)])
async def test_nothing_falls_between_subscribing_and_reading(
    database_url: str, rung: Sequence[int], quick_ticker: None
) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        await a.say("one")
        bells.confirming.clear()
        joining = asyncio.create_task(b.join(since=0))
        await until(lambda: b.hub._opening.under_way)
        await a.say("two")
        bells.ring(*rung)
        bells.confirming.set()
        guest = await joining
        await a.say("three")
        bells.ring(2)
        await until(lambda: guest.seqs == [1, 2, 3])


async def test_a_gap_report_for_a_room_that_is_not_open_is_nothing(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        here.hub.on_gap("room.4711")
        here.hub.on_control("something newer processes say")


async def test_a_newcomer_after_a_long_history_gets_the_newest_fifty(
    database_url: str, no_ticker: None
) -> None:
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * 300)
        guest = await here.join()
        await until(lambda: guest.seqs == list(range(300 - PAGE_DEFAULT + 1, 301)))


# --- Closing rooms


async def test_an_empty_room_closes_after_a_while_and_can_be_opened_again(
    database_url: str, relay_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TICK", OFTEN)
    async with node(database_url, relay_url) as here:
        guest = await here.join()
        await here.say("one")
        await until(lambda: guest.seqs == [1])
        room = guest.cursor.room
        await guest.leave()
        await looks(here, 3)
        assert here.hub.find("lobby") is room
        monkeypatch.setattr(hub, "ROOM_LINGER", OFTEN)
        await until(lambda: here.hub.find("lobby") is None)
        async with asyncio.timeout(LIMIT):  # its subscription ends a moment later
            while await here.relay.confirmed(f"room.{room.id}"):
                await asyncio.sleep(0)
        monkeypatch.setattr(hub, "ROOM_LINGER", NEVER)
        again = await here.join(since=0)
        assert again.cursor.room is not room
        await here.say("two")
        await until(lambda: again.seqs == [1, 2])


async def test_a_room_with_a_member_stays_open(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TICK", OFTEN)
    monkeypatch.setattr(hub, "ROOM_LINGER", 0.0)
    async with node(database_url, Bells()) as here:
        one, two = await here.join(), await here.join()
        await one.leave()
        await looks(here, 3)
        assert here.hub.find("lobby") is two.cursor.room
        assert two.ended == []


async def test_a_room_that_was_closed_lets_nobody_in(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TICK", OFTEN)
    monkeypatch.setattr(hub, "ROOM_LINGER", 0.0)
    async with node(database_url, Bells()) as here:
        old = await here.room()
        await until(lambda: here.hub.find("lobby") is None)
        monkeypatch.setattr(hub, "ROOM_LINGER", NEVER)
        member = await here.join("elsewhere")
        assert here.hub.enter(old, member) is False
        assert old.members == set()


async def test_joining_while_rooms_close_at_once_never_fails(
    database_url: str, relay_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TICK", 0.001)
    monkeypatch.setattr(hub, "ROOM_LINGER", 0.0)
    async with node(database_url, relay_url) as here:
        rooms: set[Room] = set()

        async def come_and_go() -> None:
            room = await here.room()
            while here.hub.find("lobby") is not room:
                # Closed before anyone came in, as never but with such a ticker: as clients do.
                room = await here.room()
            rooms.add(room)
            guest, last = Guest(here.hub, room), room.tail.last
            here.guests.append(guest)
            [stored] = await here.say("hola")
            await until(lambda: stored.seq in guest.seqs)
            assert guest.seqs == list(range(guest.seqs[0], guest.seqs[-1] + 1))
            assert guest.seqs[-1] > last
            assert guest.ended == []
            await guest.leave()
            await until(lambda: here.hub.find("lobby") is not room)

        async def again_and_again() -> None:
            for _ in range(15):
                await come_and_go()

        await asyncio.gather(again_and_again(), again_and_again())
        assert len(rooms) > 1


async def test_a_room_opened_again_while_another_one_closes_is_not_mistaken_for_the_old_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TICK", OFTEN)
    bells = Bells()
    async with node(database_url, bells) as here:
        first, second = await here.room("first"), await here.room("second")
        closing, go_on = asyncio.Event(), asyncio.Event()

        async def close_slowly() -> None:
            closing.set()
            await go_on.wait()

        monkeypatch.setattr(first, "close", close_slowly)
        monkeypatch.setattr(hub, "ROOM_LINGER", 0.0)
        await closing.wait()
        bells.send(f"room.{second.id}", "???")
        await until(lambda: here.hub.find("second") is None)
        guest = await here.join("second")
        go_on.set()
        await looks(here, 2)
        await here.say("one", name="second")
        await until(lambda: guest.seqs == [1])
        assert guest.ended == []


async def test_closing_ends_all_members_with_1012_and_leaves_no_task(
    database_url: str, relay_url: str
) -> None:
    async with node(database_url, relay_url) as here:
        guests = [await here.join(f"room-{number}") for number in range(3)]
        async with asyncio.timeout(LIMIT):
            await here.hub.close()
        assert [guest.ended for guest in guests] == [[CloseCode.RESTART]] * 3
        names = [task.get_name().split()[0] for task in asyncio.all_tasks()]
        assert not {"listen", "open", "mend", "page"} & set(names)


async def test_closing_while_a_room_opens_leaves_no_task(database_url: str) -> None:
    bells = Bells()
    bells.confirming.clear()
    async with node(database_url, bells) as here:
        row = await here.log.make_room("lobby")
        opening = asyncio.create_task(here.hub.open(row))
        await until(lambda: here.hub._opening.under_way)
        async with asyncio.timeout(LIMIT):
            await here.hub.close()
        await asyncio.wait([opening])
        assert opening.cancelled()
        names = [task.get_name().split()[0] for task in asyncio.all_tasks()]
        assert not {"listen", "open"} & set(names)


# --- Members


async def test_a_user_with_two_tabs_is_online_once(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        room = await here.room()
        online = functools.partial(here.hub.presence.count, room.id)
        assert online() == 0
        guests = [await here.join(user_id=user_id) for user_id in (7, 7, 8)]
        assert online() == 2
        await guests[0].leave()
        assert online() == 2
        await guests[1].leave()
        assert online() == 1


async def test_the_hub_knows_when_all_are_gone(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        assert here.hub.deserted.is_set()
        one, two = await here.join(), await here.join("elsewhere")
        assert not here.hub.deserted.is_set()
        await one.leave()
        assert not here.hub.deserted.is_set()
        await two.leave()
        assert here.hub.deserted.is_set()


# --- Signing out


async def signed_in(here: Node, name: str) -> Session:
    users = Users(here.log.database)
    return await users.open_session(await users.guest(name), 1)


async def join_as(here: Node, session: Session) -> Guest:
    return await here.join(user_id=session.user.id, sid=session.sid)


async def test_signing_out_ends_the_sessions_sockets_here_at_once(
    database_url: str, no_ticker: None
) -> None:
    async with node(database_url, Bells()) as here:
        maria, jon = await signed_in(here, "maria"), await signed_in(here, "jon")
        tabs = [await join_as(here, maria), await here.join("elsewhere", sid=maria.sid)]
        others = [await join_as(here, jon), await here.join(user_id=maria.user.id)]
        here.hub.revoke(maria.sid)
        assert [tab.ended for tab in tabs] == [[CloseCode.UNAUTHENTICATED]] * 2
        assert [other.ended for other in others] == [[], []]


async def test_signing_out_ends_the_sessions_sockets_on_other_nodes_over_the_relay(
    database_url: str, redis_url: str, no_ticker: None
) -> None:
    async with (
        node(database_url, redis_url, "node-a") as a,
        node(database_url, redis_url, "node-b") as b,
    ):
        maria = await signed_in(a, "maria")
        there, other = await join_as(b, maria), await b.join()
        await until(lambda: not a.relay.lost and not b.relay.lost)
        a.hub.revoke(maria.sid)
        await until(lambda: there.ended == [CloseCode.UNAUTHENTICATED])
        assert other.ended == []


async def test_signing_out_is_found_by_the_ticker_where_the_tell_is_lost(
    database_url: str, quick_ticker: None
) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        maria, jon = await signed_in(a, "maria"), await signed_in(a, "jon")
        there, other = await join_as(b, maria), await join_as(b, jon)
        await looks(b, 2)
        await Users(a.log.database).sign_out(maria)
        a.hub.revoke(maria.sid)
        assert f"revoked {maria.sid}" in bells.told
        await until(lambda: there.ended != [])
        assert set(there.ended) == {CloseCode.UNAUTHENTICATED}
        assert other.ended == []


async def test_signing_out_while_the_database_was_away_is_found_when_it_is_back(
    database_url: str, quick_ticker: None
) -> None:
    bells = Bells()
    async with node(database_url, bells, "node-a") as a, node(database_url, bells, "node-b") as b:
        maria = await signed_in(a, "maria")
        there = await join_as(b, maria)
        await until(lambda: b.hub.ticked_at > 0)
        b.log.away = True
        await until(lambda: b.hub.database_lost_since is not None)
        await Users(a.log.database).sign_out(maria)
        await looks(a, 3)
        assert there.ended == []
        b.log.away = False
        await until(lambda: CloseCode.UNAUTHENTICATED in there.ended)


async def test_a_disabled_user_is_found_by_the_ticker(
    database_url: str, quick_ticker: None
) -> None:
    async with node(database_url, Bells()) as here:
        maria = await signed_in(here, "maria")
        guest, other = await join_as(here, maria), await here.join(user_id=4711)
        clock = here.log.database.clock
        await put_back(here, f"UPDATE users SET disabled_at = {clock} WHERE id = {maria.user.id}")
        await until(lambda: CloseCode.UNAUTHENTICATED in guest.ended)
        assert other.ended == []
