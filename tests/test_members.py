"""Who was ever in a room and how far they have read: stored in batches, never backwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chat.errors import Unavailable
from chat.log.database import Database
from chat.log.members import Mark, MemberRow, Members
from chat.log.users import User, Users
from chat.protocol import MAX_INTEGER
from tests.servers import PostgresServer
from tests.storage import LIMIT, opened

LOBBY, GARDEN, DIRECT = 3, 4, 5
AT = 1_000


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with opened(database_url) as database:
        yield database


@pytest.fixture
def members(database: Database) -> Members:
    return Members(database)


@pytest.fixture
async def people(database: Database) -> list[User]:
    """Four users, by their ids."""
    users = Users(database)
    return [await users.site_user(name) for name in ("maria", "juan", "ana", "luz")]


async def test_who_was_seen_is_a_member(members: Members, people: list[User]) -> None:
    maria, juan, *_ = people
    await members.save([Mark(LOBBY, juan.id, AT, 7), Mark(LOBBY, maria.id, AT + 1, 0)])
    await members.save([Mark(GARDEN, maria.id, AT + 2, 5)])
    assert await members.of_room(LOBBY, 0, 10) == [
        MemberRow(maria.id, "maria", AT + 1, 0),
        MemberRow(juan.id, "juan", AT, 7),
    ]
    assert await members.of_room(GARDEN, 0, 10) == [MemberRow(maria.id, "maria", AT + 2, 5)]
    assert await members.of_room(DIRECT, 0, 10) == []


async def test_nothing_goes_backwards(members: Members, people: list[User]) -> None:
    maria = people[0].id

    async def stored() -> tuple[int | None, int]:
        [row] = await members.of_room(LOBBY, 0, 10)
        return row.last_seen_at, row.last_read_seq

    for mark, expected in [
        (Mark(LOBBY, maria, AT, 5), (AT, 5)),
        (Mark(LOBBY, maria, AT + 1, 3), (AT + 1, 5)),
        (Mark(LOBBY, maria, AT - 1, 9), (AT + 1, 9)),
        (Mark(LOBBY, maria, AT, 0), (AT + 1, 9)),
        (Mark(LOBBY, maria, AT + 2, MAX_INTEGER), (AT + 2, MAX_INTEGER)),
    ]:
        await members.save([mark])
        assert await stored() == expected


async def test_a_batch_may_hold_new_and_known_members(members: Members, people: list[User]) -> None:
    maria, juan, ana, _ = people
    await members.save([Mark(LOBBY, juan.id, AT, 1)])
    await members.save([Mark(LOBBY, one.id, AT + 1, 2) for one in (ana, juan, maria)])
    rows = await members.of_room(LOBBY, 0, 10)
    assert [(row.id, row.last_seen_at, row.last_read_seq) for row in rows] == [
        (one.id, AT + 1, 2) for one in (maria, juan, ana)
    ]
    await members.save([])
    assert await members.of_room(LOBBY, 0, 10) == rows


async def test_large_batches_are_stored_whole(members: Members, people: list[User]) -> None:
    maria = people[0].id
    await members.save(Mark(room_id, maria, AT, room_id) for room_id in range(1, 3_001))
    found = await members.last_read(maria, range(1, 3_002))
    assert found == {room_id: room_id for room_id in range(1, 3_001)}


async def test_members_come_in_pages_by_id(members: Members, people: list[User]) -> None:
    await members.save([Mark(LOBBY, one.id, AT, 0) for one in people])
    ids = [one.id for one in people]
    first = await members.of_room(LOBBY, 0, 3)
    assert [row.id for row in first] == ids[:3]
    assert [row.id for row in await members.of_room(LOBBY, first[-1].id, 3)] == ids[3:]
    assert await members.of_room(LOBBY, ids[-1], 3) == []
    assert await members.of_room(LOBBY, MAX_INTEGER, 3) == []


async def test_a_direct_room_has_both_whether_they_entered_or_not(
    members: Members, people: list[User]
) -> None:
    maria, juan, ana, _ = people
    pair = (maria.id, juan.id)
    never = [MemberRow(maria.id, "maria", None, 0), MemberRow(juan.id, "juan", None, 0)]
    assert await members.of_direct(DIRECT, pair) == never
    await members.save([Mark(DIRECT, juan.id, AT, 4), Mark(GARDEN, maria.id, AT, 9)])
    await members.save([Mark(DIRECT, ana.id, AT, 1)])
    assert await members.of_direct(DIRECT, pair) == [never[0], MemberRow(juan.id, "juan", AT, 4)]


async def test_how_far_a_user_has_read_in_many_rooms(members: Members, people: list[User]) -> None:
    maria, juan, *_ = people
    await members.save([Mark(LOBBY, maria.id, AT, 7), Mark(GARDEN, maria.id, AT, 0)])
    await members.save([Mark(DIRECT, juan.id, AT, 9)])
    assert await members.last_read(maria.id, [LOBBY, GARDEN, DIRECT]) == {LOBBY: 7, GARDEN: 0}
    assert await members.last_read(maria.id, [LOBBY]) == {LOBBY: 7}
    assert await members.last_read(maria.id, []) == {}
    assert await members.last_read(juan.id, [LOBBY]) == {}


async def test_nodes_that_save_the_same_members_do_not_stand_in_each_others_way(
    database_url: str,
) -> None:
    async with opened(database_url) as one, opened(database_url) as other:
        nodes = [Members(one), Members(other)]
        user = await Users(one).site_user("maria")
        marks = [Mark(room_id, user.id, AT, room_id) for room_id in range(1, 301)]
        async with asyncio.timeout(LIMIT):
            for step in range(4):
                newer = [mark._replace(read_seq=mark.read_seq + step) for mark in marks]
                await asyncio.gather(nodes[0].save(newer), nodes[1].save(newer[::-1]))
        found = await nodes[0].last_read(user.id, range(1, 301))
        assert found == {room_id: room_id + 3 for room_id in range(1, 301)}


async def test_a_database_that_is_away_is_unavailable(own_postgres: PostgresServer) -> None:
    url = own_postgres.create_database()
    async with opened(url) as database:
        members = Members(database)
        own_postgres.kill()
        for use in (
            members.save([Mark(LOBBY, 1, AT, 1)]),
            members.of_room(LOBBY, 0, 10),
            members.of_direct(DIRECT, (1, 2)),
            members.last_read(1, [LOBBY]),
        ):
            with pytest.raises(Unavailable):
                await use
