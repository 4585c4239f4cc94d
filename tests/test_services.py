"""What the endpoints share, seen from outside: who is online, and all without a database."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from tests.people import (
    NO_LIMITS,
    Member,
    Person,
    a_name,
    a_room,
    ask,
    ask_json,
    dial,
    guest,
    lines_with,
    mint,
    refused,
    running,
    sign_in,
    site,
    until,
)
from tests.servers import ChatServer, PostgresServer, RedisServer

pytest_plugins = ["tests.houses"]


async def online(person: Person, room: str) -> int:
    rooms = (await person.ask("GET", "/api/rooms")).json["rooms"]
    return next(int(one["online"]) for one in rooms if one["name"] == room)


async def test_a_user_with_two_tabs_is_online_once_until_the_last_one_closes(
    server: ChatServer,
) -> None:
    maria, pepe, room = await site(server), await site(server), a_room()
    async with maria.enter(room) as member:
        await member.say("hola")
        assert await online(maria, room) == 1
        async with maria.enter(room), pepe.enter(room):
            assert await online(maria, room) == 2

        async def alone() -> bool:
            return await online(maria, room) == 1

        await until(alone)

    async def nobody() -> bool:
        return await online(maria, room) == 0

    await until(nobody)


async def closing_1013(server: ChatServer, room: str, headers: dict[str, str]) -> None:
    async with dial(server, f"/ws/chat/{room}/", headers) as socket:
        member = Member(socket)
        assert await member.end() == 1013
    (frame,) = map(json.loads, member.raw)
    assert frame.keys() == {"type", "code", "reason", "reconnect_after"}
    assert (frame["type"], frame["code"]) == ("closing", 1013)
    assert frame["reconnect_after"] >= 0


async def test_without_the_database_all_is_refused_with_a_word_and_nothing_breaks(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    settings = {**NO_LIMITS, "CHAT_DATABASE_URL": own_postgres.url}
    async with running(tmp_path, **settings) as server:
        # The driver writes one of its own when it cannot refill its pool.
        server.traceback_expected = True
        person, visitor, room = await site(server), await guest(server), a_room()
        async with person.enter(room) as member:
            await member.say("before", id="c-0")
            own_postgres.stop()

            # An open socket stays, and is told to try again.
            error = await member.asks("send", id="c-1", text="hola")
            assert (error["type"], error["code"], error["id"]) == ("error", "unavailable", "c-1")
            assert error["retry_after"] > 0
            error = await member.asks("send", text="hola")
            # The frame had no id: the error carries the one that the server made.
            made = error["id"]
            assert error["code"] == "unavailable" and made
            error = await member.asks("history", id="h1")
            assert (error["code"], error["id"]) == ("unavailable", "h1")
            assert error["retry_after"] > 0
            await member.is_well()
            assert " ERROR " in lines_with(server, "Error saving message: ")[0]

            # New ones are accepted, told and closed; 1013 takes the place of what needs it.
            for headers in (person.headers, visitor.headers):
                for name in (room, a_room(), "dm.1.2"):
                    await closing_1013(server, name, dict(headers))
            assert await refused(server, room) == 4401
            assert lines_with(server, "the database is away")

            # HTTP says 503, and when to come back.
            for answer in (
                await person.ask("GET", "/api/session"),
                await visitor.ask("GET", "/api/rooms"),
                await person.post(room, "hola", id="c-2"),
                await mint(server, user=a_name()),
            ):
                assert (answer.status, answer.code) == (503, "unavailable")
                assert int(answer.headers["retry-after"]) >= 1
            for page in (
                await ask(server, "GET", "/", {**visitor.headers, "Accept": "text/html"}),
                await sign_in(server, a_name(), headers={"Accept": "text/html"}),
            ):
                assert page.status == 503
                assert page.headers["content-type"].startswith("text/html")
                assert "The chat cannot look anything up just now." in page.text
            spanish = {**visitor.headers, "Accept": "text/html", "Accept-Language": "es"}
            page = await ask(server, "GET", "/", spanish)
            assert page.status == 503 and "no puede consultar sus datos" in page.text
            assert (await ask(server, "GET", "/healthz")).status == 200
            ready = await ask(server, "GET", "/readyz")
            assert (ready.status, ready.json["status"]) == (503, "unavailable")
            for secret in (str(own_postgres.port), "127.0.0.1", "postgres", "Error", "refused"):
                assert secret not in ready.text

            # It comes back, and so does everything; the same ids store the messages once.
            own_postgres.start()

            async def stored(message_id: str) -> bool:
                answer = await member.asks("send", id=message_id, text="hola")
                return bool(answer["type"] == "ack")

            for message_id in ("c-1", made, "c-1"):
                await until(lambda message_id=message_id: stored(message_id))
            ack = await member.say("after", id="c-3")
            await member.read_to(ack["seq"])
            assert [entry["id"] for entry in member.messages] == ["c-0", "c-1", made, "c-3"]

        async def ready_again() -> bool:
            return (await ask(server, "GET", "/readyz")).status == 200

        await until(ready_again)
        assert not re.search(r'File ".*/chat/\w+/\w+\.py"', server.log)


async def test_a_frozen_database_holds_up_no_pings_and_no_strangers(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    settings = {**NO_LIMITS, "CHAT_DATABASE_URL": own_postgres.url}
    async with running(tmp_path, **settings) as server:
        person, room = await site(server), a_room()
        async with person.enter(room) as member:
            await member.say("before")
            own_postgres.freeze()
            await member.send("send", id="c-1", text="hola")
            await member.is_well()
            assert (await ask(server, "GET", "/healthz")).status == 200
            async with asyncio.timeout(2):
                ready = await ask(server, "GET", "/readyz")
            assert (ready.status, ready.json["status"]) == (503, "unavailable")
            assert await refused(server, room) == 4401
            own_postgres.thaw()
            answer = await member.next("ack", "error")
            assert answer["type"] == "ack" or answer["code"] == "unavailable"

            async def stored() -> bool:
                again = await member.asks("send", id="c-1", text="hola")
                return bool(again["type"] == "ack")

            await until(stored)
            await member.read_to(2)
            assert member.texts == ["before", "hola"]


async def test_a_lost_relay_is_degraded_and_says_no_host(tmp_path: Path) -> None:
    redis = RedisServer()
    redis.start()
    try:
        settings = {**NO_LIMITS, "CHAT_RELAY_URL": redis.url}
        async with running(tmp_path, **settings) as server:
            person = await site(server)

            async def status_is(status: str) -> bool:
                answer = await ask(server, "GET", "/readyz")
                assert answer.status == 200
                return bool(answer.json["status"] == status)

            await until(lambda: status_is("ok"))
            redis.stop()
            await until(lambda: status_is("degraded"))
            text = (await ask(server, "GET", "/readyz")).text
            for secret in (str(redis.port), "127.0.0.1", "redis", "Connect call"):
                assert secret not in text
            async with person.enter(a_room()) as member:
                await member.say("still")
                await member.read_to(1)
            answer = await ask_json(server, "GET", "/api/rooms", None, dict(person.headers))
            assert answer.status == 200
    finally:
        redis.remove()
