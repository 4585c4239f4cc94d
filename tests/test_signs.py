"""Presence, typing and read markers as clients see them, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.people import Member, Person, a_room, direct_room, site
from tests.servers import LOOK_INTERVAL, ChatServer

pytest_plugins = ["tests.houses"]

# Seconds within which a read marker must show over HTTP.
PROMISE = 2.0


@pytest.fixture
async def maria(server: ChatServer) -> Person:
    return await site(server)


@pytest.fixture
async def pepe(server: ChatServer) -> Person:
    return await site(server)


@pytest.fixture
async def room() -> AsyncIterator[str]:
    yield a_room()


async def hints(member: Member, kind: str) -> list[dict[str, Any]]:
    """Return the frames of this kind that came so far: those sent before the next pong."""
    await member.is_well()
    return [frame for frame in member._waiting if frame["type"] == kind]


# --- Who is there


async def test_the_picture_has_oneself_and_the_others_are_told_who_came_and_went(
    maria: Person, pepe: Person, room: str
) -> None:
    async with maria.enter(room) as first:
        picture = await first.next("presence")
        assert picture == {
            "type": "presence",
            "room": room,
            "count": 1,
            "users": [maria.person],
        }
        async with pepe.enter(room) as second:
            seen = await second.next("presence")
            assert seen["count"] == 2
            assert sorted(seen["users"], key=lambda one: one["id"]) == [maria.person, pepe.person]
            change = await first.next("presence")
            assert (change["count"], change["joined"], change["left"]) == (2, [pepe.person], [])
        change = await first.next("presence")
        assert (change["count"], change["joined"], change["left"]) == (1, [], [pepe.person])


async def test_two_tabs_are_one_user(maria: Person, pepe: Person, room: str) -> None:
    async with pepe.enter(room) as watching:
        await watching.next("presence")
        async with maria.enter(room) as tab:
            assert (await tab.next("presence"))["count"] == 2
            assert (await watching.next("presence"))["joined"] == [maria.person]
            async with maria.enter(room) as other:
                assert (await other.next("presence"))["count"] == 2
                members = (await maria.ask("GET", f"/api/rooms/{room}/members")).json["members"]
                assert {one["id"]: one["connections"] for one in members} == {
                    maria.id: 2,
                    pepe.id: 1,
                }
        # Had the second tab told of anything, it would have come before this.
        assert (await watching.next("presence"))["left"] == [maria.person]


async def test_lists_know_how_many_are_there(maria: Person, pepe: Person, room: str) -> None:
    async with maria.enter(room) as member, pepe.enter(room):
        await member.say("hola")
        rooms = (await maria.ask("GET", "/api/rooms")).json["rooms"]
        assert {one["name"]: one["online"] for one in rooms}[room] == 2


# --- Typing


async def test_typing_is_told_to_others_and_not_more_than_once_in_two_seconds(
    maria: Person, pepe: Person, room: str
) -> None:
    async with maria.enter(room) as typing, maria.enter(room) as tab, pepe.enter(room) as other:
        for _ in range(3):
            await typing.send("typing")
        await typing.is_well()
        frame = await other.next("typing")
        assert frame == {"type": "typing", "room": room, "user": maria.person}
        assert await hints(other, "typing") == []
        assert await hints(tab, "typing") == await hints(typing, "typing") == []


# --- Reading


async def marker(person: Person, room: str) -> int:
    rooms = (await person.ask("GET", "/api/rooms")).json["rooms"]
    return int(next(one for one in rooms if one["name"] == room)["last_read_seq"])


async def test_a_marker_is_stored_and_told_to_the_other_tabs_and_never_goes_back(
    maria: Person, pepe: Person, room: str
) -> None:
    async with maria.enter(room) as reading, maria.enter(room) as tab, pepe.enter(room) as other:
        for text in ("one", "two", "three"):
            await other.say(text)
        assert await marker(maria, room) == 0
        await reading.send("read", seq=1)
        assert await tab.next("read") == {
            "type": "read",
            "room": room,
            "user": maria.person,
            "seq": 1,
        }
        for seq in (2, 3, 2, 0):
            await reading.send("read", seq=seq)
        # The newest, a second later.
        assert (await tab.next("read"))["seq"] == 3
        async with asyncio.timeout(PROMISE):
            while await marker(maria, room) != 3:
                await asyncio.sleep(LOOK_INTERVAL)
        assert await marker(pepe, room) == 0
        assert await hints(reading, "read") == await hints(other, "read") == []


async def test_a_marker_above_the_newest_message_counts_as_that(maria: Person, room: str) -> None:
    async with maria.enter(room) as reading, maria.enter(room) as tab:
        await reading.say("hola")
        await reading.send("read", seq=2**53 - 1)
        assert (await tab.next("read"))["seq"] == 1


async def test_in_a_direct_room_the_other_one_is_told(maria: Person, pepe: Person) -> None:
    direct = await direct_room(maria, pepe)
    async with maria.enter(direct) as reading, pepe.enter(direct) as other:
        await other.say("hola", receiver_id=maria.id)
        await reading.read_to(1)
        await reading.send("read", seq=1)
        assert (await other.next("read"))["user"] == maria.person


@pytest.mark.parametrize("seq", [-1, "1", None, 1.5, 2**53])
async def test_a_marker_that_is_no_seq_is_refused(maria: Person, room: str, seq: Any) -> None:
    async with maria.enter(room) as member:
        answer = await member.asks("read", seq=seq)
        assert (answer["type"], answer["code"]) == ("error", "bad_frame")
        assert "seq" in answer["detail"]


# --- Members over HTTP


async def test_members_are_all_who_ever_entered(maria: Person, pepe: Person, room: str) -> None:
    async with maria.enter(room) as member:
        await member.say("hola")
        async with pepe.enter(room) as other:
            await other.read_to(1)
            await other.send("read", seq=1)
            await other.is_well()
        answer = (await maria.ask("GET", f"/api/rooms/{room}/members")).json
        assert answer["more"] is False
        first, second = answer["members"]
        assert (first["id"], first["name"]) == (maria.id, maria.name)
        assert (first["online"], first["connections"]) == (True, 1)
        assert (second["id"], second["last_read_seq"]) == (pepe.id, 1)
        page = (await maria.ask("GET", f"/api/rooms/{room}/members?after={maria.id}")).json
        assert [one["id"] for one in page["members"]] == [pepe.id]


async def test_both_users_of_a_direct_room_are_its_members(maria: Person, pepe: Person) -> None:
    direct = await direct_room(maria, pepe)
    async with maria.enter(direct):
        members = (await maria.ask("GET", f"/api/rooms/{direct}/members")).json["members"]
    assert [one["id"] for one in members] == sorted([maria.id, pepe.id])
    absent = next(one for one in members if one["id"] == pepe.id)
    assert absent == {
        **pepe.person,
        "online": False,
        "connections": 0,
        "last_seen_at": None,
        "last_read_seq": 0,
    }


async def test_a_room_that_nobody_entered_has_no_members(maria: Person) -> None:
    assert (await maria.ask("GET", f"/api/rooms/{a_room()}/members")).status == 404
    assert (await maria.ask("GET", "/api/rooms/x/members?after=-1")).status == 400


async def test_a_list_names_the_other_one_of_a_direct_room(maria: Person, pepe: Person) -> None:
    direct = await direct_room(maria, pepe)
    assert (await maria.post(direct, "hola", receiver_id=pepe.id)).status == 201
    for one, other in ((maria, pepe), (pepe, maria)):
        rooms = (await one.ask("GET", "/api/rooms")).json["rooms"]
        assert next(room for room in rooms if room["name"] == direct)["with"] == other.person
