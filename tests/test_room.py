"""A room: waking its members, mending its gaps from the log, and sharing frames and pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import suppress

import pytest

from chat.live.room import MAX_FRAMES, TAIL_LOAD, Room
from chat.live.tail import TAIL_COUNT
from chat.log.redactions import Outcome, redact
from chat.ops import metrics
from chat.protocol import PAGE_MAX, CloseCode, Entry, messages_frame
from tests.live import Bells, Guest, Node, node, seqs_of
from tests.relays import LIMIT, until


async def logged(here: Node, seqs: range) -> list[Entry]:
    """Return these messages of the lobby's log, and forget that they were read."""
    row = await here.log.find_room("lobby")
    assert row is not None
    entries = await here.log.read(row.id, seqs[0] - 1, len(seqs))
    here.log.reads.clear()
    return entries


async def stored_unheard(here: Node, database_url: str, count: int) -> None:
    """Let another process store messages whose bells are lost."""
    async with node(database_url, Bells(), "node-z") as other:
        await other.say(*["hola"] * count)


async def test_what_continues_the_tail_wakes_all_members(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        guests = [await here.join() for _ in range(3)]
        await here.say("one")
        await here.say("two")
        await until(lambda: all(guest.seqs == [1, 2] for guest in guests))


async def test_what_is_known_already_wakes_nobody(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await here.say("one")
        await until(lambda: guest.seqs == [1])
        woken: list[str] = []
        guest.wake = lambda: woken.append("woken")  # type: ignore[method-assign]
        room = guest.cursor.room
        room.offer(room.epoch, await logged(here, range(1, 2)))
        assert woken == []


async def test_an_announcement_of_another_epoch_is_dropped_and_counted(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await here.say("one", "two")
        room = guest.cursor.room
        entries = await logged(here, range(1, 3))
        before = metrics.STRANGERS.value
        room.offer("another", [Entry(3, entries[0].json, entries[0].size)])
        room.offer("another", [Entry(9, entries[0].json, entries[0].size)])
        assert room.strangers == 2
        assert metrics.STRANGERS.value == before + 2
        assert room.tail.last == 2
        assert here.log.reads == []
        await here.say("three")
        await until(lambda: guest.seqs == [1, 2, 3])


async def test_another_message_under_a_seq_that_is_held_is_a_contradiction(
    database_url: str,
) -> None:
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await here.say("one", "two")
        room = guest.cursor.room
        one, two = await logged(here, range(1, 3))
        room.offer(room.epoch, [one, two])
        room.offer("another", [Entry(2, one.json, one.size)])
        assert not room.contradicted
        room.offer(room.epoch, [Entry(2, one.json, one.size)])
        assert room.contradicted


def told_of(guest: Guest) -> list[int]:
    """Return the seqs whose text it was told to be gone."""
    return [frame["seq"] for frame in guest.asides if frame["type"] == "redacted"]


def texts_of(frames: Iterable[str]) -> list[str]:
    return [one["text"] for frame in frames for one in json.loads(frame)["messages"]]


async def test_the_text_of_a_redacted_message_leaves_the_memory_and_members_are_told_once(
    database_url: str,
) -> None:
    async with node(database_url, Bells()) as here:
        guests = [await here.join() for _ in range(2)]
        await here.say("one", "two")
        await until(lambda: all(guest.seqs == [1, 2] for guest in guests))
        room = guests[0].cursor.room
        assert room.frame_after(0) is not None
        assert await redact(here.log.database, room.id, 2) is Outcome.REDACTED
        await until(lambda: all(told_of(guest) == [2] for guest in guests))
        assert {"type": "redacted", "room": "lobby", "seq": 2} in guests[0].asides
        frame, _ = room.frame_after(0) or ("", 0)
        assert texts_of([frame]) == ["one", ""]
        # The next looks find it, too.
        looks = len(here.log.looks)
        await until(lambda: len(here.log.looks) > looks + 1)
        assert [told_of(guest) for guest in guests] == [[2], [2]]


async def test_what_is_older_than_a_redaction_brings_no_text_back_and_contradicts_nothing(
    database_url: str,
) -> None:
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await here.say("one", "two")
        room = guest.cursor.room
        before = await logged(here, range(1, 3))
        await here.say("three")
        room.redact([1, 3])
        late = await logged(here, range(3, 4))
        room.offer(room.epoch, before)
        room.offer(room.epoch, [*before, *late])
        assert not room.contradicted
        assert texts_of([messages_frame("lobby", room.tail.after(0) or ())]) == ["", "two", ""]
        assert texts_of([messages_frame("lobby", room.cleaned([*before, *late]))]) == [
            "",
            "two",
            "",
        ]


async def test_a_page_that_was_read_before_a_redaction_has_no_text_after_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(database_url, Bells()) as here:
        await here.say("one", "two")
        room = await here.room()
        before = await logged(here, range(1, 3))
        answered = asyncio.Event()

        async def late(room_id: int, after: int, limit: int) -> list[Entry]:
            await answered.wait()
            return before

        monkeypatch.setattr(here.log, "read", late)
        reading = asyncio.create_task(room.page_after(0))
        await asyncio.sleep(0)
        room.redact([2])
        answered.set()
        assert texts_of([messages_frame("lobby", await reading)]) == ["one", ""]


async def test_who_comes_back_is_told_of_what_was_redacted_meanwhile(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        await here.say("one", "two", "three")
        row = await here.log.find_room("lobby")
        assert row is not None
        for seq in (1, 3):
            await redact(here.log.database, row.id, seq)
        guest = await here.join(since=2)
        room = guest.cursor.room
        assert await room.taken_away.missed(here.log.database, room.id, 2) == [1]
        assert json.loads(room.gone(1)) == {"type": "redacted", "room": "lobby", "seq": 1}
        await until(lambda: texts_of(guest.frames) == [""])


async def test_who_cannot_be_told_of_a_redaction_comes_back_and_is(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await here.say("one")
        guest.aside = lambda *_, **__: False  # type: ignore[method-assign]
        guest.cursor.room.redact([1])
        assert guest.ended == [CloseCode.RESTART]


async def test_a_gap_is_filled_from_the_log(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await stored_unheard(here, database_url, 5)
        room = guest.cursor.room
        room.offer(room.epoch, await logged(here, range(5, 6)))
        await until(lambda: guest.seqs == [1, 2, 3, 4, 5])


async def test_a_gap_that_closes_by_itself_reads_nothing_from_the_log(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far apart, so that nothing but the order of events decides.
    monkeypatch.setattr("chat.live.hub.TICK", 60)
    monkeypatch.setattr("chat.live.room.GAP_PATIENCE", 0.5)
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await stored_unheard(here, database_url, 2)
        room = guest.cursor.room
        first, second = await logged(here, range(1, 3))
        room.offer(room.epoch, [second])
        room.offer(room.epoch, [first])
        await until(lambda: guest.seqs == [1])
        room.offer(room.epoch, [second])
        await until(lambda: guest.seqs == [1, 2])
        assert room._mending is not None
        await room._mending
        assert here.log.reads == []


async def test_a_second_gap_seen_while_the_first_is_waited_for_is_filled_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.hub.TICK", 60)
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await stored_unheard(here, database_url, 6)
        room = guest.cursor.room
        entries = await logged(here, range(1, 7))
        room.offer(room.epoch, entries[1:2])
        room.offer(room.epoch, entries[5:6])
        # The first gap closes by itself while it is waited for; the second one never does.
        room.offer(room.epoch, entries[0:2])
        await until(lambda: guest.seqs == [1, 2, 3, 4, 5, 6])


async def test_a_gap_report_is_not_forgotten_for_a_gap_that_closes_by_itself(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.hub.TICK", 60)
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await stored_unheard(here, database_url, 4)
        room = guest.cursor.room
        entries = await logged(here, range(1, 5))
        room.offer(room.epoch, entries[1:2])
        # The relay confirms a subscription: what was said before it may be missing.
        here.hub.on_gap(f"room.{room.id}")
        room.offer(room.epoch, entries[0:2])
        await until(lambda: guest.seqs == [1, 2, 3, 4])


async def test_a_gap_report_reads_the_log_at_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.hub.TICK", 60)
    monkeypatch.setattr("chat.live.room.GAP_PATIENCE", 60)
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await stored_unheard(here, database_url, 3)
        here.hub.on_gap(f"room.{guest.cursor.room.id}")
        await until(lambda: guest.seqs == [1, 2, 3])


async def test_a_gap_longer_than_a_page_is_filled_to_its_end(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.hub.TICK", 60)
    length = 2 * PAGE_MAX + 50
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await stored_unheard(here, database_url, length)
        guest.cursor.room.mend()
        await until(lambda: guest.seqs == list(range(1, length + 1)))


async def test_a_log_that_is_away_is_asked_again_until_the_gap_is_filled(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.hub.TICK", 60)
    monkeypatch.setattr("chat.live.room.RETRY_PAUSE", 0.01)
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await stored_unheard(here, database_url, 3)
        here.log.reads.clear()
        here.log.away = True
        guest.cursor.room.mend()
        await until(lambda: len(here.log.reads) > 2)
        assert guest.seqs == []
        here.log.away = False
        await until(lambda: guest.seqs == [1, 2, 3])


async def test_a_gap_that_the_log_has_not_any_more_starts_the_tail_afresh(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.hub.TICK", 60)
    async with node(database_url, Bells()) as here:
        guest = await here.join()
        await here.say("one", "two")
        await until(lambda: guest.seqs == [1, 2])
        await stored_unheard(here, database_url, 6)
        room = guest.cursor.room
        # Retention: 1 to 5 are gone, 6 to 8 are there.
        await here.log.database.rows("DELETE FROM messages WHERE seq < 6 RETURNING seq")
        await here.log.database.rows("UPDATE rooms SET first_seq = 6 RETURNING id")
        here.log.reads.clear()
        room.mend()
        await until(lambda: guest.ended == [1012])
        assert room._mending is not None
        await room._mending
        assert guest.seqs == [1, 2]
        assert len(here.log.reads) < 5, "it must not ask again and again"
        assert (room.first_seq, room.tail.last) == (6, 8)
        newcomer = await here.join()
        await until(lambda: newcomer.seqs == [6, 7, 8])


async def test_members_at_the_same_place_share_one_frame(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        room = await here.room()
        await here.say("one", "two", "three")
        first, again = room.frame_after(1), room.frame_after(1)
        assert first is not None and again is not None
        assert first[0] is again[0]
        assert (seqs_of(first[0]), first[1]) == ([2, 3], 3)


async def test_a_frame_is_made_anew_once_there_is_more(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        room = await here.room()
        await here.say("one")
        assert room.frame_after(0)
        await here.say("two")
        found = room.frame_after(0)
        assert found is not None
        assert (seqs_of(found[0]), found[1]) == ([1, 2], 2)


async def test_a_bounded_number_of_frames_is_kept(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        room = await here.room()
        await here.say(*["hola"] * (3 * MAX_FRAMES))
        for seq in range(3 * MAX_FRAMES):
            assert room.frame_after(seq)
        assert len(room._frames) == MAX_FRAMES


async def test_a_place_before_the_tail_is_left_to_the_log(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * (TAIL_LOAD + 10))
        room = await here.room()
        assert room.frame_after(9) is None
        assert room.frame_after(10) is not None


async def test_a_crowd_at_the_same_place_reads_its_page_once(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * 30)
        room = await here.room()
        here.log.reads.clear()
        pages = await asyncio.gather(*[room.page_after(5) for _ in range(50)])
        assert here.log.reads == [5]
        assert [one.seq for one in pages[0]] == list(range(6, 31))
        assert all(page is pages[0] for page in pages)
        # The flight is over: who comes later reads what is there then.
        await room.page_after(5)
        assert here.log.reads == [5, 5]


async def test_one_who_leaves_does_not_end_the_read_of_the_others(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        await here.say("one", "two")
        room = await here.room()
        here.log.reads.clear()
        leaving = asyncio.create_task(room.page_after(0))
        staying = asyncio.create_task(room.page_after(0))
        await until(lambda: here.log.reads == [0])
        leaving.cancel()
        assert [one.seq for one in await staying] == [1, 2]
        assert here.log.reads == [0]


async def test_closing_ends_the_mending_of_a_log_that_is_away(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        room = await here.room()
        here.log.away = True
        room.mend()
        await until(lambda: len(here.log.reads) > 0)
        await room.close()
        assert room._mending is not None and room._mending.done()
        here.log.away = False


async def test_closing_does_not_wait_for_a_read_that_never_ends(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.tasks.STOP_STEP", 0.01)
    monkeypatch.setattr("chat.live.tasks.STOP_LIMIT", 0.05)
    free, reading = asyncio.Event(), asyncio.Event()

    async def hang(*_: object) -> list[Entry]:
        reading.set()
        while not free.is_set():
            # As a driver that loses cancellations.
            with suppress(asyncio.CancelledError):
                await free.wait()
        return []

    async with node(database_url, Bells()) as here:
        room = await here.room()
        monkeypatch.setattr(here.log, "read", hang)
        room.mend()
        await reading.wait()
        async with asyncio.timeout(LIMIT):
            await room.close()
        free.set()


async def test_a_room_keeps_a_bounded_tail(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        room: Room = await here.room()
        await here.say(*["hola"] * (TAIL_COUNT + 5))
        assert (room.tail.first, room.tail.last) == (6, TAIL_COUNT + 5)
