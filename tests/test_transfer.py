"""What an import stores: nothing that anybody sees until it is a room, and then all of it."""

from __future__ import annotations

import pytest

from chat.errors import Unavailable
from chat.log.faults import one_is_to_blame
from chat.log.statements import Draft
from chat.log.transfer import BATCH, Old, discard, people, publish, stage
from chat.log.users import Users
from tests.servers import ROOT
from tests.storage import JUAN, MARIA, draft, log_of, repositories, seqs, stored
from tests.test_docs import block

ID = 4_711


def old(seq: int, text: str = "hola", *, redacted: bool = False) -> Old:
    return Old(Draft(ID, f"c-{seq}", MARIA, JUAN, text), seq, 1_000 + seq, redacted)


async def test_what_is_staged_becomes_a_room_that_goes_on(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        await stage(log.database, [old(3), old(4, "", redacted=True)])
        await stage(log.database, [old(5)])
        assert await log.find_room("lobby") is None
        assert await publish(log.database, ID, "lobby", 3, 5, 1_005)
        room = await log.find_room("lobby")
        assert room is not None and room[2:] != ("", 0, 0)
        assert (room.id, room.first_seq, room.last_seq) == (ID, 3, 5)
        entries = await log_of(log, room)
        assert [(one["seq"], one["id"], one.get("redacted")) for one in entries] == [
            (3, "c-3", None),
            (4, "c-4", True),
            (5, "c-5", None),
        ]
        [again] = await log.append([old(5).draft])
        assert (stored(again).seq, stored(again).duplicate) == (5, True)
        assert seqs(await log.append([draft(room)])) == [6]


async def test_an_empty_room_becomes_the_imported_one_and_a_room_with_messages_stays(
    database_url: str,
) -> None:
    async with repositories(database_url, 1) as [log]:
        empty = await log.make_room("empty")
        await stage(log.database, [old(1)])
        assert await publish(log.database, ID, "empty", 1, 1, 1_001)
        room = await log.find_room("empty")
        assert room is not None and (room.id, room.last_seq) == (ID, 1)
        assert room.epoch != empty.epoch
        # What is still said in the room that was there is not confirmed, and not lost in silence.
        [lost] = await log.append([draft(empty)])
        assert isinstance(lost, Unavailable)
        assert not await publish(log.database, ID + 1, "empty", 1, 0, None)
        assert (await log.find_room("empty")) == room


async def test_what_a_killed_import_leaves_goes_by_the_line_in_the_docs(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        lobby = await log.make_room("lobby")
        await log.append([draft(lobby, "kept")])
        await stage(log.database, [old(1), old(2)])
        left = "SELECT count(*) FROM messages"
        assert await log.database.rows(left) == [(3,)]
        line = block(ROOT / "docs" / "data.md", "sql", "DELETE FROM messages")
        await log.database.change(f"{line.strip().rstrip(';')} RETURNING seq")
        assert await log.database.rows(left) == [(1,)]
        assert [one["text"] for one in await log_of(log, lobby)] == ["kept"]


async def test_a_direct_room_is_its_two_users(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        await stage(log.database, [old(1)])
        assert await publish(log.database, ID, f"dm.{MARIA.id}.{JUAN.id}", 1, 1, 1_001)
        for user_id, count in ((MARIA.id, 1), (JUAN.id, 1), (99, 0)):
            assert len((await log.rooms_of(user_id, None, 9))[0]) == count


async def test_what_is_discarded_leaves_nothing(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        await stage(log.database, [old(seq) for seq in range(7, BATCH + 9)])
        await discard(log.database, ID)
        await discard(log.database, ID)
        assert await log.database.rows("SELECT * FROM messages") == []


async def test_what_is_a_room_already_is_not_discarded(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        await stage(log.database, [old(1), old(2)])
        assert await publish(log.database, ID, "lobby", 1, 2, 1_002)
        await discard(log.database, ID)
        room = await log.find_room("lobby")
        assert room is not None and len(await log_of(log, room)) == 2


async def test_an_id_that_comes_twice_is_its_own_fault(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        twice = Old(old(1).draft, 2, 1_002, False)
        with pytest.raises(Unavailable) as caught:
            await stage(log.database, [old(1), twice])
        assert one_is_to_blame(caught.value)
        assert await log.database.rows("SELECT * FROM messages") == []


async def test_people_are_found_as_they_are_now(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        users = Users(log.database)
        maria, ghost = await users.site_user("maria"), await users.former_guest("juan")
        found = await people(log.database, {ghost.id, maria.id, 999})
        assert [(one.id, one.name, one.kind) for one in found] == [
            (maria.id, "maria", "site"),
            (ghost.id, "juan", "guest"),
        ]
        # A guest who has gone takes nobody's name.
        assert (await users.guest("juan")).id != ghost.id
