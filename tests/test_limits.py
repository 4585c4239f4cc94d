"""How often and how many: rates, connections and rooms, on one server and on two that share Redis.

The windows are hours long, so that no test waits for one to pass, but where it is asked how long
one must wait. Addresses are told apart by the loopback address that a client comes from.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import pytest_asyncio

from tests.people import (
    API_KEY,
    NO_LIMITS,
    Answer,
    Member,
    Person,
    a_name,
    a_room,
    acted_for,
    an_id,
    ask,
    ask_json,
    direct_room,
    entering,
    guest,
    lines_with,
    refused,
    running,
    sign_in,
    site,
    until,
)
from tests.servers import ChatServer, RedisServer

SENDS, FRAMES, SIGN_INS, ROOMS, PER_USER, PER_ADDRESS = 4, 5, 3, 2, 3, 4
HOUR = 3600  # seconds

STRICT: dict[str, str | None] = {
    "CHAT_API_KEY": API_KEY,
    "CHAT_SEND_RATE": f"{SENDS}/hour",
    "CHAT_FRAME_RATE": f"{FRAMES}/hour",
    "CHAT_SIGN_IN_RATE": f"{SIGN_INS}/hour",
    "CHAT_ROOM_RATE": f"{ROOMS}/hour",
    "CHAT_MAX_CONNECTIONS_PER_USER": str(PER_USER),
    "CHAT_MAX_CONNECTIONS_PER_ADDRESS": str(PER_ADDRESS),
}

_addresses = (f"127.0.7.{number}" for number in count(1))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    async with running(tmp_path_factory.mktemp("strict"), **STRICT) as server:
        yield server


@pytest.fixture
def address() -> str:
    """An address that nobody came from yet."""
    return next(_addresses)


async def made_room(server: ChatServer) -> str:
    """A room that is there already; a backend made it."""
    room = a_room()
    headers = acted_for(a_name())
    answer = await ask_json(server, "POST", f"/api/rooms/{room}/messages", {"text": "1"}, headers)
    assert answer.status == 201
    return room


def is_limited(error: dict[str, Any], message_id: str | None = None) -> None:
    assert (error["type"], error["code"]) == ("error", "rate_limited")
    assert 0 < error["retry_after"] <= HOUR
    assert error.get("id") == message_id


def is_429(answer: Answer) -> None:
    assert (answer.status, answer.code) == (429, "rate_limited")
    assert 1 <= int(answer.headers["retry-after"]) <= HOUR


# --- Sends


async def test_sends_over_sockets_and_http_count_together_per_user(
    strict: ChatServer, address: str
) -> None:
    person, other, room = await site(strict), await site(strict), await made_room(strict)
    async with (
        entering(strict, room, "", person.headers, address) as one,
        entering(strict, room, "", person.headers, address) as two,
        entering(strict, room, "", other.headers, address) as third,
    ):
        await one.say("1")
        await two.say("2")
        assert (await person.post(room, "3")).status == 201
        await one.say("4")
        is_limited(await one.asks("send", id="c-5", text="5"), "c-5")
        is_limited(await two.asks("send", text="5"))
        is_429(await person.post(room, "5"))
        # Another user is not touched, and nothing of it was stored.
        assert (await third.say("5"))["seq"] == 6
        await third.read_to(6)
        assert third.texts[1:] == ["1", "2", "3", "4", "5"]
        await one.is_well()


async def test_repeats_count_as_sends(strict: ChatServer, address: str) -> None:
    person, room = await site(strict), await made_room(strict)
    async with entering(strict, room, "", person.headers, address) as member:
        message_id = an_id()
        for _ in range(SENDS):
            await member.say("again", id=message_id)
        is_limited(await member.asks("send", id=message_id, text="again"), message_id)


async def test_a_user_may_send_again_after_retry_after(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = {**NO_LIMITS, "CHAT_SEND_RATE": "3/second"}
    async with running(tmp_path_factory.mktemp("brisk"), **settings) as server:
        person = await site(server)
        async with person.enter(a_room()) as member:
            answers = [await member.asks("send", text=str(number)) for number in range(4)]
            assert [answer["type"] for answer in answers] == ["ack"] * 3 + ["error"]
            wait = answers[-1]["retry_after"]
            assert 0 < wait <= 1.1
            await asyncio.sleep(wait)
            await member.say("after")


async def test_a_backend_acting_for_a_user_is_not_limited(strict: ChatServer) -> None:
    name, room = a_name(), await made_room(strict)
    for number in range(SENDS + 3):
        headers = acted_for(name)
        path = f"/api/rooms/{room}/messages"
        answer = await ask_json(strict, "POST", path, {"text": str(number)}, headers)
        assert answer.status == 201
    # What it sent does not count for the user either.
    person = await site(strict, name)
    assert (await person.post(room, "mine")).status == 201


async def test_refused_messages_are_not_half_stored(strict: ChatServer, address: str) -> None:
    person, room = await site(strict), await made_room(strict)
    async with entering(strict, room, "", person.headers, address) as member:
        for _ in range(SENDS):
            await member.send("send", text="x")
        for _ in range(10):
            await member.send("send", text="y")
        answers = [await member.next("ack", "error") for _ in range(SENDS + 10)]
        assert sum(answer["type"] == "ack" for answer in answers) == SENDS
        await member.read_to(SENDS + 1)
    read = (await person.read(room)).json
    assert read["last_seq"] == SENDS + 1
    assert "y" not in [one["text"] for one in read["messages"]]


# --- Other frames


async def test_other_frames_are_limited_per_connection(strict: ChatServer, address: str) -> None:
    person, room = await site(strict), await made_room(strict)
    async with (
        entering(strict, room, "", person.headers, address) as member,
        entering(strict, room, "", person.headers, address) as second,
    ):
        await member.is_well()
        assert (await member.asks("history", id="h1"))["type"] == "history"
        assert (await member.asks("token", token="x"))["code"] == "forbidden"
        await member.is_well()
        await member.is_well()
        is_limited(await member.asks("history", id="h2"), "h2")
        is_limited(await member.asks("ping"))
        # Sends have a rate of their own, and the other connection a window of its own.
        await member.say("still")
        await second.is_well()


async def test_a_new_connection_has_a_new_window(strict: ChatServer, address: str) -> None:
    person, room = await site(strict), await made_room(strict)
    for _ in range(3):
        async with entering(strict, room, "", person.headers, address) as member:
            for _ in range(FRAMES):
                await member.is_well()
            is_limited(await member.asks("ping"))


async def test_a_flood_of_frames_is_answered_and_kept_within_bounds(
    strict: ChatServer, address: str
) -> None:
    person, room = await site(strict), await made_room(strict)
    async with entering(strict, room, "", person.headers, address) as member:
        for _ in range(2000):
            await member.send("ping")
        answers = [await member.next("pong", "error") for _ in range(2000)]
        assert [answer["type"] for answer in answers].count("pong") == FRAMES
        await member.say("still here")


# --- Sign-ins


async def test_sign_ins_are_limited_per_address(strict: ChatServer, address: str) -> None:
    for _ in range(SIGN_INS):
        assert (await sign_in(strict, a_name(), source=address)).status == 303
    answer = await sign_in(strict, a_name(), source=address)
    assert answer.status == 429
    assert answer.cookie() is None
    assert 'role="alert"' in answer.text
    assert (await sign_in(strict, a_name(), source=next(_addresses))).status == 303


# --- Rooms


async def test_new_rooms_are_limited_per_user(strict: ChatServer, address: str) -> None:
    person, there = await site(strict), await made_room(strict)
    for _ in range(ROOMS):
        async with entering(strict, a_room(), "", person.headers, address):
            pass
    late = a_room()
    assert await refused(strict, late, "", person.headers, address) == 4429
    is_429(await person.post(late, "hola"))
    assert (await person.read(late)).status == 404
    # A room that is there is open, and another user may make one.
    async with entering(strict, there, "", person.headers, address) as member:
        await member.is_well()
    other = await site(strict)
    async with entering(strict, late, "", other.headers, address):
        pass
    (line,) = lines_with(strict, f"User {person.name} refused: too many new rooms")
    assert " WARNING " in line


async def test_a_backend_makes_as_many_rooms_as_it_likes(strict: ChatServer) -> None:
    headers = acted_for(a_name())
    for _ in range(ROOMS + 2):
        path = f"/api/rooms/{a_room()}/messages"
        assert (await ask_json(strict, "POST", path, {"text": "a"}, headers)).status == 201


# --- Connections


async def test_connections_are_limited_per_user(strict: ChatServer) -> None:
    person, room = await site(strict), await made_room(strict)
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(
                entering(strict, room, "", person.headers, next(_addresses))
            )
            for _ in range(PER_USER)
        ]
        address = next(_addresses)
        assert await refused(strict, room, "", person.headers, address) == 4429
        # The name and the right to enter are looked at before.
        assert await refused(strict, "%22", "", person.headers, address) == 4404
        one, two = await site(strict), await site(strict)
        theirs = await direct_room(one, two)
        assert await refused(strict, theirs, "", person.headers, address) == 4403
        for member in members:
            await member.is_well()
        text = f"User {person.name} refused: too many connections of this user"
        (line,) = lines_with(strict, text)
        assert " WARNING " in line
        await members[0].socket.close()
        await free_again(strict, room, person, address)


async def free_again(strict: ChatServer, room: str, person: Person, address: str) -> None:
    """Wait until a place is free again."""

    async def enters() -> bool:
        try:
            async with entering(strict, room, "", person.headers, address):
                return True
        except Exception as error:
            assert getattr(getattr(error, "rcvd", None), "code", None) == 4429
            return False

    await until(enters)


async def test_connections_are_limited_per_address(strict: ChatServer, address: str) -> None:
    room = await made_room(strict)
    people = [await site(strict) for _ in range(PER_ADDRESS + 1)]
    async with AsyncExitStack() as stack:
        for person in people[:-1]:
            await stack.enter_async_context(entering(strict, room, "", person.headers, address))
        assert await refused(strict, room, "", people[-1].headers, address) == 4429
        elsewhere = next(_addresses)
        async with entering(strict, room, "", people[-1].headers, elsewhere) as member:
            await member.is_well()
    await free_again(strict, room, people[-1], address)


async def test_a_refused_socket_is_not_counted(strict: ChatServer, address: str) -> None:
    person, room = await site(strict, room=await made_room(strict)), await made_room(strict)
    for _ in range(PER_ADDRESS + 1):
        assert await refused(strict, room, "", person.headers, address) == 4403
        assert await refused(strict, room, "", {}, address) == 4401
    other = await site(strict)
    async with entering(strict, room, "", other.headers, address) as member:
        await member.is_well()


# --- Two servers on one Redis


@dataclass
class Pair:
    """Two servers on one database file and one Redis, which a test may stop and freeze."""

    one: ChatServer
    two: ChatServer
    redis: RedisServer

    async def relay_is(self, status: str) -> None:
        """Wait until both servers say so."""
        for server in (self.one, self.two):

            async def says(server: ChatServer = server) -> bool:
                report = (await ask(server, "GET", "/readyz")).json
                return bool(report["checks"]["relay"]["status"] == status)

            await until(says)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    redis = RedisServer()
    redis.start()
    settings = {**NO_LIMITS, "CHAT_SEND_RATE": f"{SENDS}/hour", "CHAT_RELAY_URL": redis.url}
    folder = tmp_path_factory.mktemp("pair")
    async with running(folder, **settings) as one, running(folder, **settings) as two:
        yield Pair(one, two, redis)
    redis.remove()


@pytest.fixture
async def pair(_pair: Pair) -> Pair:
    if _pair.redis.process is None:
        _pair.redis.start()
    await _pair.relay_is("ok")
    return _pair


async def test_the_send_rate_is_shared_over_redis_and_kept_in_memory_without_it(
    pair: Pair,
) -> None:
    one, two, redis = pair.one, pair.two, pair.redis
    room = a_room()

    async def told(member: Member, sends: int) -> list[str]:
        answers = [await member.asks("send", text=str(number)) for number in range(sends)]
        return [answer["type"] for answer in answers]

    people = [await site(one) for _ in range(3)]
    first, second, third = people
    async with AsyncExitStack() as stack:

        async def enter(server: ChatServer, person: Person) -> Member:
            return await stack.enter_async_context(entering(server, room, "", person.headers))

        here, there = await enter(one, first), await enter(two, first)
        assert await told(here, SENDS - 1) == ["ack"] * (SENDS - 1)
        assert await told(there, 1) == ["ack"]
        for member in (here, there):
            is_limited(await member.asks("send", text="x"))
        answer = await ask_json(
            two, "POST", f"/api/rooms/{room}/messages", {"text": "x"}, first.headers
        )
        is_429(answer)

        # Frozen, Redis answers nothing: no message waits for it for long, and each process counts.
        here, there = await enter(one, second), await enter(two, second)
        redis.freeze()
        for member in (here, there):
            async with asyncio.timeout(5):
                assert await told(member, SENDS) == ["ack"] * SENDS
            is_limited(await member.asks("send", text="x"))
        await pair.relay_is("lost")
        (line,) = lines_with(one, "Relay lost: ")
        assert " WARNING " in line
        redis.thaw()
        await pair.relay_is("ok")
        (line,) = lines_with(one, "Relay restored after ")
        assert re.search(r" INFO .* Relay restored after \d+\.\d s$", line)

        here, there = await enter(one, third), await enter(two, third)
        redis.stop()
        for member in (here, there):
            assert await told(member, SENDS) == ["ack"] * SENDS
            is_limited(await member.asks("send", text="x"))
        # All of it reached everybody, on both servers.
        last = (await people[0].read(room)).json["last_seq"]
        assert last == 5 * SENDS
        for member in (here, there):
            await member.read_to(last)


async def test_signing_out_ends_sockets_on_the_other_server(
    pair: Pair,
) -> None:
    one, two, redis = pair.one, pair.two, pair.redis
    for relay in ("well", "lost"):
        person = await guest(one)
        async with entering(two, a_room(), "", person.headers) as member:
            if relay == "lost":
                redis.stop()
            assert (await person.ask("POST", "/logout")).status == 303
            async with asyncio.timeout(2):
                assert await member.end() == 4401
        assert await refused(two, a_room(), "", person.headers) == 4401


async def test_a_message_reaches_the_other_server_with_redis_and_without(
    pair: Pair,
) -> None:
    one, two, redis = pair.one, pair.two, pair.redis
    person, room = await site(one), a_room()
    async with (
        entering(one, room, "", person.headers) as here,
        entering(two, room, "", person.headers) as there,
    ):
        await here.say("with")
        await there.read_to(1)
        redis.stop()
        await here.say("without")
        async with asyncio.timeout(2):
            await there.read_to(2)
        assert json.loads(there.raw[-1])["messages"][0]["text"] == "without"
