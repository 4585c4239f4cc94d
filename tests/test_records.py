"""`rooms` and `redact`, as operators type them, beside servers on both databases."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from chat.clock import now
from chat.log.redactions import MARGIN
from tests.conftest import ChatServerFactory
from tests.people import (
    NO_LIMITS,
    Member,
    a_name,
    a_room,
    direct_room,
    execute,
    guest,
    site,
    until,
    whose,
)
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

# Seconds within which members must learn it: tickers look every half second.
TOLD = 1.0

SECRET = "the number of her house is 17"


@pytest.fixture(params=["server", "big_server"])
def house(request: pytest.FixtureRequest) -> ChatServer:
    """SQLite without a relay, and PostgreSQL."""
    server: ChatServer = request.getfixturevalue(request.param)
    return server


async def is_told(member: Member, room: str, seq: int) -> None:
    async with asyncio.timeout(TOLD):
        told = await member.next("redacted")
    assert told == {"type": "redacted", "room": room, "seq": seq}


async def test_a_redacted_text_is_gone_everywhere_and_members_are_told(house: ChatServer) -> None:
    maria, juan, room = await site(house), await site(house), a_room()
    async with maria.enter(room) as member, juan.enter(room) as other:
        await member.say_all(["one", SECRET, "three"])
        await other.read_to(3)
        said = await house.says("redact", room, "2")
        assert said == f"The text of message 2 in {room} was taken away.\n"
        await asyncio.gather(is_told(member, room, 2), is_told(other, room, 2))
        await member.is_well()
        history = await member.asks("history", limit=50)
        async with juan.enter(room, "?since=0") as newcomer:
            await newcomer.read_to(3)
    pages = [history["messages"], newcomer.messages, (await maria.read(room)).json["messages"]]
    for page in pages:
        assert [one["text"] for one in page] == ["one", "", "three"]
        assert [one.get("redacted") for one in page] == [None, True, None]


async def test_what_was_redacted_while_one_was_away_is_told_when_one_resumes(
    server: ChatServer,
) -> None:
    maria, room = await site(server), a_room()
    async with maria.enter(room) as member:
        await member.say_all(["one", SECRET, "three"])
    for seq in ("1", "3"):
        await server.says("redact", room, seq)
    said = await server.says("redact", room, "3")
    assert said == f"The text of message 3 in {room} was taken away before.\n"
    async with maria.enter(room, "?since=2") as member:
        await is_told(member, room, 1)
        assert [one["text"] for one in await member.read_to(3)] == [""]
    async with maria.enter(room, "?since=99") as member:
        await member.read_to(3)
        await member.is_well()
        assert not [raw for raw in member.raw if raw.startswith('{"type":"redacted"')]


async def test_who_could_not_be_told_of_all_at_once_comes_back_and_is(server: ChatServer) -> None:
    maria, room, count = await site(server), a_room(), 200
    async with maria.enter(room) as member:
        await member.say_all([SECRET] * count)
        # All at once, as a command of the database does it.
        at = f"room_id = (SELECT id FROM rooms WHERE name = '{room}') AND seq <= {count - 1}"
        execute(server, f"UPDATE messages SET text = '', redacted = true WHERE {at}")
        execute(
            server,
            "INSERT INTO redactions (room_id, seq, redacted_at)"
            f" SELECT room_id, seq, {now()} FROM messages WHERE {at}",
        )
        assert await member.end() == 1012
    async with maria.enter(room, f"?since={count}") as member:
        assert member.welcome["resumed"] is True
        await member.is_well()
        gone = [json.loads(raw)["seq"] for raw in member.raw if '"redacted"' in raw[:20]]
        assert sorted(gone) == list(range(1, count))
    # That is over once the next message is there: who has it was told before.
    execute(server, f"UPDATE redactions SET redacted_at = redacted_at - {2 * MARGIN}")
    async with maria.enter(room, f"?since={count}") as member:
        await member.is_well()
        assert not any('"redacted"' in raw[:20] for raw in member.raw)


async def test_a_crash_before_anybody_is_told_loses_no_redaction(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(**NO_LIMITS)
    maria = await guest(server)
    async with maria.enter("lobby") as member:
        await member.say_all(["one", SECRET])
        server_id = server.pid
        await server.kill()
    await server.says("redact", "lobby", "2")
    await server.start()
    assert server.pid != server_id
    maria = await whose(server, maria.headers)
    async with maria.enter("lobby", "?since=2") as member:
        await is_told(member, "lobby", 2)
    async with maria.enter("lobby", "?since=0") as member:
        assert [one["text"] for one in await member.read_to(2)] == ["one", ""]
    for file in (server.folder / "var").iterdir():
        assert SECRET.encode() not in file.read_bytes(), file


async def test_what_is_not_there_is_not_redacted(server: ChatServer) -> None:
    maria, room = await site(server), a_room()
    assert (
        await server.fails("redact", room, "1") == f"There is no room {room}; `rooms` lists them."
    )
    await maria.post(room, "one")
    sentence = f"There is no message 2 in {room}: it has 1 to 1."
    assert await server.fails("redact", room, "2") == sentence
    ended = await server.command("redact", room, "two")
    assert ended.returncode == 2 and "invalid int value: 'two'" in ended.stderr


async def test_the_rooms_are_listed_the_latest_first(house: ChatServer) -> None:
    maria, juan = await site(house), await site(house, a_name())
    rooms = [a_room(), a_room(), await direct_room(maria, juan), a_room()]
    async with maria.enter(rooms[0]) as member, juan.enter(rooms[0]), maria.enter(rooms[3]):
        await member.say_all(["one", "two"])
        await maria.post(rooms[1], "three")
        await maria.post(rooms[2], "four", receiver_id=juan.id)
    line = re.compile(r" *(\d+) messages from (\d+) +newest (20\S+Z|-{24}) +(\d+) members  (\S+)\n")

    async def all_are_counted() -> bool:
        said = await house.says("rooms")
        return f" 2 members  {rooms[0]}\n" in said and f" 1 members  {rooms[3]}\n" in said

    await until(all_are_counted)  # who was where is stored a little later
    found = {}
    lines = (await house.says("rooms")).splitlines(keepends=True)
    for place, text in enumerate(lines):
        match = line.fullmatch(text)
        assert match, text
        found[match[5]] = (place, int(match[1]), int(match[2]), match[3], int(match[4]))
    assert len(found) == len(lines)
    newest = [one[3] for one in found.values()]
    assert newest == sorted(newest, reverse=True)
    assert found[rooms[0]][1:3] == (2, 1) and found[rooms[0]][4] == 2
    assert found[rooms[2]][0] < found[rooms[1]][0] < found[rooms[0]][0] < found[rooms[3]][0]
    assert found[rooms[3]][1:] == (0, 1, "-" * 24, 1)
