"""The four statements of an append: the same answers on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from chat.log.database import Database
from chat.log.repository import Repository, Room
from chat.log.statements import Draft, Head, PostgreSQL, SQLite
from chat.protocol import Person
from tests.storage import JUAN, MARIA, change, draft, log_of, opened

Statements = type[PostgreSQL] | type[SQLite]


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[Repository]:
    async with opened(database_url) as database:
        yield Repository(database)


@pytest.fixture
def statements(log: Repository) -> Statements:
    return SQLite if log.database.sqlite else PostgreSQL


async def rooms_row(database: Database, room: Room) -> Any:
    return await database.row(
        "SELECT last_seq, last_message_at FROM rooms WHERE id = :id", {"id": room.id}
    )


def test_a_draft_belongs_to_its_room_sender_and_id() -> None:
    one = Draft(3, "c-1", MARIA, JUAN, "hola")
    assert one.key == (3, MARIA.id, "c-1")
    assert one.key == Draft(3, "c-1", Person(MARIA.id, "maria~7"), None, "other").key


@pytest.mark.parametrize(
    ("text", "receiver_id", "same"),
    [
        ("hola", JUAN.id, True),
        ("hola", None, False),
        ("hola", MARIA.id, False),
        ("Hola", JUAN.id, False),
    ],
)
def test_a_draft_says_a_text_to_a_receiver(text: str, receiver_id: int | None, same: bool) -> None:
    assert Draft(3, "c-1", MARIA, JUAN, "hola").says(text, receiver_id) == same
    assert Draft(3, "c-1", MARIA, None, "hola").says("hola", None)


async def test_locking_tells_each_rooms_head(log: Repository, statements: Statements) -> None:
    rooms = [await log.make_room(name) for name in "abc"]
    await change(
        log.database,
        "UPDATE rooms SET last_seq = 5, last_message_at = 9 WHERE id = :id",
        id=rooms[1].id,
    )
    ids = [rooms[0].id, rooms[1].id, rooms[2].id + 1_000]
    async with log.database.transaction() as raw:
        assert await statements.lock(raw, ids) == {
            rooms[0].id: Head(rooms[0].id, rooms[0].epoch, 0, 0),
            rooms[1].id: Head(rooms[1].id, rooms[1].epoch, 5, 9),
        }


async def test_inserted_messages_are_known_by_their_keys(
    log: Repository, statements: Statements
) -> None:
    room = await log.make_room("lobby")
    drafts = [
        draft(room, "plain", id="1"),
        draft(room, "for juan", id='"quoted"', receiver=JUAN),
        draft(room, "from juan", id="1", sender=JUAN),
    ]
    async with log.database.transaction() as raw:
        keys = [one.key for one in drafts]
        assert await statements.known(raw, keys) == {}
        await statements.insert(raw, [(one, 7 + n, 1_000 + n) for n, one in enumerate(drafts)])
        others = [(room.id, MARIA.id, "2"), (room.id + 1, MARIA.id, "1"), (room.id, 99, "1")]
        assert await statements.known(raw, [*keys, *others]) == {
            keys[0]: (7, 1_000, "plain", None, False),
            keys[1]: (8, 1_001, "for juan", JUAN.id, False),
            keys[2]: (9, 1_002, "from juan", None, False),
        }
    entries = await log_of(log, room)
    assert [one["seq"] for one in entries] == [7, 8, 9]
    assert entries[1]["receiver"] == {"id": JUAN.id, "name": "juan"}
    assert entries[2]["sender"] == {"id": JUAN.id, "name": "juan"}


async def test_a_redacted_message_is_known_as_such(log: Repository, statements: Statements) -> None:
    room = await log.make_room("lobby")
    one = draft(room)
    await log.append([one])
    await change(log.database, "UPDATE messages SET redacted = true")
    async with log.database.transaction() as raw:
        [(*_, redacted)] = (await statements.known(raw, [one.key])).values()
    assert redacted


async def test_advancing_moves_the_heads_that_are_given(
    log: Repository, statements: Statements
) -> None:
    rooms = [await log.make_room(name) for name in "abc"]
    async with log.database.transaction() as raw:
        await statements.advance(
            raw, [Head(rooms[0].id, "", 3, 1_000), Head(rooms[2].id, "", 2**53 - 1, 2_000)]
        )
    assert await rooms_row(log.database, rooms[0]) == (3, 1_000)
    assert await rooms_row(log.database, rooms[1]) == (0, None)
    assert await rooms_row(log.database, rooms[2]) == (2**53 - 1, 2_000)
    found = await log.find_room("a")
    assert found is not None and found.epoch == rooms[0].epoch


SCANS = "SELECT idx_scan, seq_scan FROM pg_stat_user_tables WHERE relname = 'messages'"


async def test_no_kept_plan_reads_a_whole_table(postgres_url: str) -> None:
    # Plans are made for good after a few runs. Made for an empty table, one that reads all of it
    # looks cheap, and would make each batch slower the longer the log gets.
    async with opened(postgres_url) as database:
        log = Repository(database)
        rooms = [await log.make_room(name) for name in "abc"]
        before = await database.row(SCANS)
        async with database.held():
            for _ in range(20):
                results = await log.append([draft(rooms[place % 3]) for place in range(30)])
                assert len(results) == 30
                await log.read(rooms[0].id, 0, 50)
                await log.read_before(rooms[0].id, None, 50)
            await database.row("SELECT pg_stat_force_next_flush()")
        after = await database.row(SCANS)
    assert before is not None and after is not None
    assert after[1] == before[1]
    assert after[0] - before[0] >= 20 * 30
