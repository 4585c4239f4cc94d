"""The cursor: where a member begins, and that each message reaches it once and in order."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.errors import Reset, Unavailable
from chat.live.cursor import Cursor
from chat.live.room import TAIL_LOAD, Room
from chat.log import repository
from chat.log.database import Database
from chat.log.repository import Repository
from chat.protocol import MAX_TEXT, PAGE_DEFAULT, PAGE_MAX, Entry, SharedText
from tests.live import Bells, node, run, seqs_of

MAX_SERVER_FRAME = 256 * 1024  # bytes, as the contract says


def room_of(first_seq: int, last_seq: int, log: Repository | None = None) -> Room:
    """Return an open room with this log, whose tail holds the newest messages."""
    row = repository.Room(1, "lobby", "now", first_seq, last_seq)
    entries = run(max(first_seq, last_seq - TAIL_LOAD + 1), last_seq)
    return Room(row, entries, log or Paper([]))


class Paper(Repository):
    """A log without a database: a list, read with a turn of the loop between."""

    def __init__(self, entries: list[Entry]) -> None:
        super().__init__(Database("sqlite:///unused"))
        self.entries = entries

    async def read(self, room_id: int, after: int, limit: int) -> list[Entry]:
        found = [one for one in self.entries if one.seq > after][:limit]
        await asyncio.sleep(0)
        return found


@pytest.mark.parametrize(
    ("since", "epoch", "resumed"),
    [
        (None, None, False),
        (None, "now", False),
        (812, None, True),
        (812, "now", True),
        (812, "before", False),
        (812, "", False),
        (813, "now", False),
        (2**53 - 1, None, False),
        (400, "now", True),
        (100, None, True),
        (99, None, True),
        (98, None, False),
        (0, "now", False),
    ],
)
def test_since_is_honoured_where_the_log_holds_what_follows_it(
    since: int | None, epoch: str | None, resumed: bool
) -> None:
    cursor = Cursor(room_of(100, 812), since, epoch)
    assert cursor.resumed is resumed
    assert cursor.seq == (since if resumed else 812 - PAGE_DEFAULT)


@pytest.mark.parametrize("since", [0, None])
def test_an_empty_room_resumes_from_its_beginning_only(since: int | None) -> None:
    cursor = Cursor(room_of(1, 0), since, None)
    assert cursor.resumed is (since == 0)
    assert (cursor.seq, cursor.behind) == (0, False)
    assert Cursor(room_of(1, 0), 1, None).resumed is False


def test_a_room_that_was_trimmed_whole_resumes_from_its_head_only() -> None:
    room = room_of(813, 812)
    assert [Cursor(room, since, None).resumed for since in (0, 811, 812, 813)] == [
        False,
        False,
        True,
        False,
    ]
    assert Cursor(room, None, None).behind is False


def test_a_newcomer_begins_no_earlier_than_the_log() -> None:
    assert Cursor(room_of(1, 20), None, None).seq == 0
    assert Cursor(room_of(800, 812), None, None).seq == 799


async def test_a_newcomer_gets_the_newest_fifty(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * 70)
        guest = await here.join()
        cursor = Cursor(guest.cursor.room, None, None)
        assert cursor.resumed is False
        frame = await cursor.take()
        assert frame is not None
        assert seqs_of(frame) == list(range(21, 71))
        assert await cursor.take() is None


async def test_since_zero_brings_the_whole_log(database_url: str) -> None:
    count = TAIL_LOAD + 40
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * count)
        cursor = Cursor(await here.room(), 0, None)
        assert await taken(cursor) == list(range(1, count + 1))


async def test_resuming_inside_the_tail_reads_nothing_from_the_log(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * (TAIL_LOAD + 40))
        room = await here.room()
        here.log.reads.clear()
        here.log.reads_before.clear()
        for since in (40, 41, TAIL_LOAD, TAIL_LOAD + 39, TAIL_LOAD + 40):
            cursor = Cursor(room, since, room.epoch)
            assert await taken(cursor) == list(range(since + 1, TAIL_LOAD + 41))
        assert (here.log.reads, here.log.reads_before) == ([], [])


async def test_one_who_is_far_behind_reads_pages_until_the_tail_reaches_back(
    database_url: str,
) -> None:
    count = TAIL_LOAD + 2 * PAGE_MAX + 30
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * count)
        room = await here.room()
        here.log.reads.clear()
        assert await taken(Cursor(room, 0, None)) == list(range(1, count + 1))
        # The third page ends inside the tail, which has the rest.
        assert here.log.reads == [0, PAGE_MAX, 2 * PAGE_MAX]


async def test_members_at_the_same_place_get_the_very_same_object(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        guests = [await here.join() for _ in range(3)]
        await here.say(*["hola"] * 10)
        room = guests[0].cursor.room
        frames = [await Cursor(room, 4, None).take() for _ in range(5)]
        assert frames[0] is not None and seqs_of(frames[0]) == [5, 6, 7, 8, 9, 10]
        assert all(frame is frames[0] for frame in frames)
        async with asyncio.timeout(10):
            while any(guest.seqs != list(range(1, 11)) for guest in guests):
                await asyncio.sleep(0.005)
        for place in range(len(guests[0].frames)):
            assert len({id(guest.frames[place]) for guest in guests}) == 1


@pytest.mark.parametrize("since", [0, None])
async def test_no_frame_is_longer_than_the_contract_allows(
    database_url: str, since: int | None
) -> None:
    # Each character is escaped by six bytes: 20 such messages fill a frame and more.
    async with node(database_url, Bells()) as here:
        room = await here.room()
        await here.say(*["\x01" * MAX_TEXT] * 45)
        fresh, frames = Cursor(room, since, None), []
        while (frame := await fresh.take()) is not None:
            frames.append(frame)
        assert [seq for frame in frames for seq in seqs_of(frame)] == list(range(1, 46))
        assert all(len(frame.encode()) <= MAX_SERVER_FRAME for frame in frames)
        assert len(frames) >= 5


async def test_pages_from_the_log_are_cut_to_that_length_too(database_url: str) -> None:
    count = TAIL_LOAD + 30
    async with node(database_url, Bells()) as here:
        await here.say(*["\x01" * MAX_TEXT] * count)
        room = await here.room()
        assert room.tail.first > 40, "the tail is cut by bytes"
        here.log.reads.clear()
        cursor, seqs = Cursor(room, 0, None), []
        while (frame := await cursor.take()) is not None:
            assert len(frame.encode()) <= MAX_SERVER_FRAME
            seqs += seqs_of(frame)
        assert seqs == list(range(1, count + 1))
        assert len(here.log.reads) > 1


async def test_one_whose_next_message_was_trimmed_starts_afresh(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * (TAIL_LOAD + 40))
        room = await here.room()
        slow = Cursor(room, 10, None)
        await here.log.database.rows("DELETE FROM messages WHERE seq < 30 RETURNING seq")
        with pytest.raises(Reset):
            await slow.take()
        # What is still there is sent as ever.
        cursor = Cursor(room, 29, None)
        assert await taken(cursor) == list(range(30, TAIL_LOAD + 41))


async def test_one_whose_messages_are_all_gone_starts_afresh(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * (TAIL_LOAD + 40))
        slow = Cursor(await here.room(), 10, None)
        await here.log.database.rows("DELETE FROM messages RETURNING seq")
        with pytest.raises(Reset):
            await slow.take()


async def test_a_log_that_is_away_leaves_the_cursor_where_it_was(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        await here.say(*["hola"] * (TAIL_LOAD + 40))
        cursor = Cursor(await here.room(), 10, None)
        here.log.away = True
        with pytest.raises(Unavailable):
            await cursor.take()
        assert cursor.seq == 10
        here.log.away = False
        assert (await taken(cursor))[0] == 11


async def test_a_frame_is_what_the_contract_says(database_url: str) -> None:
    async with node(database_url, Bells()) as here:
        [stored] = await here.say('hola "señora"\n🌍')
        frame = await Cursor(await here.room(), 0, None).take()
        assert frame is not None and stored.entry is not None
        content = json.loads(frame)
        assert content.pop("messages") == [json.loads(stored.entry.json)]
        assert content == {"type": "messages", "room": "lobby"}


async def taken(cursor: Cursor) -> list[int]:
    """Return the seqs of all that the cursor has to give."""
    seqs: list[int] = []
    while (frame := await cursor.take()) is not None:
        assert isinstance(frame, SharedText)
        seqs += seqs_of(frame)
        assert cursor.seq == seqs[-1]
    return seqs


# Steps of a made-up life: messages are stored; a run of them is announced, or again, or late; one
# of the members takes a frame, or two do at once.
STEP = st.one_of(
    st.tuples(st.just("store"), st.integers(1, 5)),
    st.tuples(st.just("bell"), st.tuples(st.integers(1, 40), st.integers(0, 5))),
    st.tuples(st.just("take"), st.integers(0, 3)),
    st.tuples(st.just("mend"), st.none()),
)


@given(st.integers(0, 12), st.lists(STEP, max_size=40), st.integers(1, 6))
def test_members_get_each_message_once_and_in_order_whatever_the_bells_do(
    stored: int, steps: list[tuple[str, object]], tail: int
) -> None:
    async def live() -> None:
        paper = Paper(run(1, stored))
        row = repository.Room(1, "lobby", "now", 1, stored)
        room = Room(row, paper.entries[-tail:], paper)
        cursors = [Cursor(room, stored * part // 3, "now") for part in range(4)]
        starts = [cursor.seq for cursor in cursors]
        seqs: list[list[int]] = [[] for _ in cursors]

        async def take(one: int) -> None:
            frame = await cursors[one].take()
            seqs[one] += seqs_of(frame) if frame is not None else []

        for kind, what in steps:
            if kind == "store" and isinstance(what, int):
                last = len(paper.entries)
                paper.entries = paper.entries + run(last + 1, last + what)
            elif kind == "bell" and isinstance(what, tuple):
                # Only what is stored is ever announced.
                if told := paper.entries[what[0] - 1 : what[0] + what[1]]:
                    room.offer("now", told)
            elif kind == "mend":
                room.mend()
            elif isinstance(what, int):
                await asyncio.gather(take(what), take((what + 1) % 4) if what else take(3))
        room.mend()
        while room._mending is not None and not room._mending.done():
            await room._mending
        for one, cursor in enumerate(cursors):
            while cursor.behind:
                await take(one)
        assert room.tail.last == len(paper.entries)
        for start, got in zip(starts, seqs, strict=True):
            assert got == list(range(start + 1, len(paper.entries) + 1))
        await room.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chat.live.tail.TAIL_COUNT", tail)
        patch.setattr("chat.live.room.GAP_PATIENCE", 0)
        asyncio.run(live())
