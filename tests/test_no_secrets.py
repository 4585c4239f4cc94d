"""No line of the log holds a token, a cookie, a key, a password or a message's text.

One run uses every kind of secret, rightly and wrongly, while all parts fail one after the other;
then the log, with everything that DEBUG adds, is searched for each of them.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from contextlib import suppress
from urllib.parse import quote

import psutil
import pytest
from redis.asyncio import Redis
from websockets import ConnectionClosed, WebSocketException

from tests.conftest import ChatServerFactory
from tests.people import (
    NO_LIMITS,
    SOON,
    a_room,
    acted_for,
    an_id,
    ask,
    ask_json,
    dial,
    guest,
    refused,
    shake,
    sign_in,
    signed,
    unsigned,
    until,
    whose,
)
from tests.servers import ChatServer, PostgresServer, RedisServer

# The shortest part of a token or cookie that counts as a secret; what is before is a user's id.
PART = 16  # characters


class Secrets:
    """All secrets of a run, by what they are."""

    def __init__(self) -> None:
        self.of: dict[str, list[str]] = {}

    def new(self, what: str) -> str:
        return self.add(what, f"{what}-{secrets.token_hex(16)}")

    def add(self, what: str, secret: str) -> str:
        self.of.setdefault(what, []).append(secret)
        return secret

    def found_in(self, log: str) -> set[str]:
        """Return the kinds of which one is in the log, as a whole or a good part of it."""
        return {
            what
            for what, found in self.of.items()
            for secret in found
            for part in {secret, *(one for one in secret.split(".") if len(one) >= PART)}
            for form in {part, quote(part), quote(part, safe=""), json.dumps(part)[1:-1]}
            if form in log
        }


async def use_all(server: ChatServer, known: Secrets, api_key: str, secret_key: str) -> None:
    """Let people talk, in every way that there is, with what is right and what is wrong."""
    room = a_room()
    backend = {"Authorization": f"Bearer {api_key}"}

    def token(answer: str) -> str:
        return known.add("token", answer)

    made = await ask_json(server, "POST", "/api/tokens", {"user": "maria"}, backend)
    mine = {"Authorization": f"Bearer {token(made.json['token'])}"}
    short = await ask_json(server, "POST", "/api/tokens", {"user": "maria", "ttl": 1}, backend)
    maria, juan = await whose(server, mine), await guest(server)
    known.add("cookie", juan.cookie)
    known.add("session", unsigned(juan.cookie, secret_key)["sid"])
    foreign = known.add("cookie", signed({"user": "pedro"}, secret_key))
    await whose(server, {"Cookie": f"session={foreign}"})
    wrong = [known.new("wrong-token"), f"{token(made.json['token'])}x", maria.token[:-2]]

    async with maria.enter(room) as one, juan.enter(room) as other:
        for _ in range(3):
            await one.say(known.new("text"), id=an_id())
        await one.asks("send", text=known.new("text") * 500)
        await one.asks("send", text=known.new("text"), receiver_id=999_999)
        await one.say(known.new("text"), id="the-same")
        await one.asks("send", text=known.new("text"), id="the-same")
        await one.asks_raw(f'{{"type":"send","text":"{known.new("text")}')
        await one.asks_raw(f'{{"type":"{known.new("text")}"}}')
        await one.asks("send", text={"not": known.new("text")})
        await other.asks("token", token=wrong[0])
        renewed = await one.asks("token", token=token(short.json["token"]))
        assert renewed["type"] == "token"
        await one.asks("history")
        assert await one.end() == 4401, "its new token has run out"

    await maria.post(room, known.new("text"))
    await maria.post(room, known.new("text") * 500)
    await maria.ask("POST", f"/api/rooms/{room}/messages", {"txt": known.new("text")})
    await ask(server, "POST", f"/api/rooms/{room}/messages", mine, known.new("text").encode())
    acting = acted_for("maria")["Chat-User"]
    await ask(server, "GET", "/api/session", {**backend, "Chat-User": acting})
    for one_wrong in wrong:
        assert await refused(server, room, f"?token={quote(one_wrong)}") == 4401
        with_it = {"Authorization": f"Bearer {one_wrong}", "Cookie": f"session={one_wrong}"}
        for path in ("/api/session", "/metrics", "/", f"/api/rooms/{room}/messages"):
            assert (await ask(server, "GET", path, with_it)).status in (303, 401)
        await sign_in(server, "", next=f"/?token={one_wrong}")
    in_query = quote(maria.token)
    async with dial(server, f"/ws/chat/{room}/?token={in_query}") as socket:
        await socket.recv()
    await shake(server, f"{room}/?token={in_query}", {"Origin": "https://evil.example"})
    for path in ("/", "/nowhere", "/static/nothing.js", "/api/nothing"):
        headers = {"Referer": f"http://x/?token={in_query}", "X-Request-ID": maria.token[:64]}
        await ask(server, "GET", f"{path}?token={in_query}", {**headers, **mine})
    await ask(server, "POST", "/logout", juan.headers)
    assert (await ask(server, "GET", "/api/session", juan.headers)).status == 401


async def say_through(server: ChatServer, known: Secrets, headers: dict[str, str]) -> None:
    """Send messages while something is away, over a socket and HTTP."""
    person = await whose(server, headers)
    with suppress(OSError, WebSocketException, TimeoutError):
        async with asyncio.timeout(SOON), person.enter(a_room()) as member:
            for _ in range(3):
                await member.asks("send", text=known.new("text"), id=an_id())


@pytest.mark.parametrize("form", ["text", "json"])
async def test_the_log_of_a_run_holds_none_of_the_secrets_that_were_used_in_it(
    chat_server: ChatServerFactory, own_postgres: PostgresServer, own_redis: RedisServer, form: str
) -> None:
    known = Secrets()
    api_key, secret_key = known.new("api-key"), known.new("secret-key")
    of_database, of_redis = known.new("database-password"), known.new("redis-password")
    async with Redis.from_url(own_redis.url) as redis:
        await redis.config_set("requirepass", of_redis)
    server = await chat_server(
        workers=2,
        **{
            **NO_LIMITS,
            "CHAT_API_KEY": api_key,
            "CHAT_SECRET_KEY": f"{secret_key},{known.new('old-secret-key')}",
            "CHAT_DATABASE_URL": own_postgres.create_database().replace(
                "postgres@", f"postgres:{of_database}@"
            ),
            "CHAT_RELAY_URL": own_redis.url.replace("redis://", f"redis://:{of_redis}@"),
            "CHAT_LOG_FORMAT": form,
            "CHAT_LOG_LEVEL": "DEBUG",
            "CHAT_SEND_RATE": "1000/second",
        },
    )
    await use_all(server, known, api_key, secret_key)

    made = await ask_json(
        server,
        "POST",
        "/api/tokens",
        {"user": "maria"},
        {"Authorization": f"Bearer {api_key}"},
    )
    mine = {"Authorization": f"Bearer {known.add('token', made.json['token'])}"}
    maria = await whose(server, mine)
    async with maria.enter(a_room()) as member:
        own_redis.stop()
        await server.wait_for_log("Relay lost: ")
        await say_through(server, known, mine)
        own_postgres.stop()
        await server.wait_for_log("Database lost: ")
        answer = await member.asks("send", text=known.new("text"), id=an_id())
        assert answer["code"] == "unavailable"
        assert (await maria.post(a_room(), known.new("text"))).status == 503
        with pytest.raises(ConnectionClosed, match="1013"):
            async with dial(server, f"/ws/chat/{a_room()}/?token={quote(maria.token)}") as socket:
                while True:
                    await socket.recv()
        own_postgres.start()
        own_redis.start()  # … without the password: it is refused now
        await server.wait_for_log("Database restored after")
        worker = psutil.Process(server.pid).children()[0]
        worker.send_signal(signal.SIGKILL)
        await server.wait_for_log("another starts in")
        with suppress(ConnectionClosed):
            await member.asks("send", text=known.new("text"), id=an_id())
    await until(lambda: len(psutil.Process(server.pid).children()) == 2)
    await server.stop()

    assert "Error saving message: " in server.log
    assert "disconnected from room" in server.log and "hypercorn" in server.log
    kinds = {"token", "wrong-token", "cookie", "text", "api-key", "secret-key", "old-secret-key"}
    kinds |= {"session", "database-password", "redis-password"}
    assert set(known.of) == kinds
    assert known.found_in(server.log) == set()


def test_a_secret_is_found_whole_quoted_or_in_part() -> None:
    known = Secrets()
    token = known.add("token", "abc.Zm9vYmFyYmF6Zm9vYmFy.sig=/sig=/sig=/sig")
    for log in (
        f"x {token} y",
        quote(token, safe=""),
        "Zm9vYmFyYmF6Zm9vYmFy",
        "sig=/sig=/sig=/sig",
    ):
        assert known.found_in(log) == {"token"}, log
    assert not known.found_in("abc")
