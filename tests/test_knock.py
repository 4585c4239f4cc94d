"""A socket that is tried as members do: who is let in, what goes round, and what is in the way."""

from __future__ import annotations

import asyncio
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chat.commands.at_hand import AtHand
from chat.commands.knock import Knock
from chat.commands.place import Failing, Place
from tests.checking import ALL_OK, Check, answer, pretender, proxy, words
from tests.conftest import ChatServerFactory
from tests.people import (
    API_KEY,
    NO_LIMITS,
    ask,
    execute,
    lines_with,
    site,
    until,
)
from tests.servers import SECRET_KEY, ChatServer

pytest_plugins = ["tests.houses"]

ONLY_WEBSOCKET_FAILS = (1, ALL_OK | {"websocket": "fail"})
WELCOME = {
    "type": "welcome",
    "room": "healthcheck",
    "epoch": "e",
    "first_seq": 1,
    "last_seq": 0,
    "resumed": False,
    "user": {"id": 7, "name": "maria"},
    "expires_at": None,
    "server_time": "2026-11-24T10:00:00.123Z",
}


async def without_key(url: str) -> str:
    """Knock where no key is at hand, at a proxy's address; return what there is to say."""
    own = asyncio.create_task(asyncio.sleep(0, AtHand(False, None)))
    return await Knock(Place.of(url), "proxy http").run(own)


# --- Who is let in


async def test_who_has_no_token_must_be_closed_with_4401() -> None:
    for closes, says, sentence in (
        (1013, "", "It closes with 1013 who has no token, and not with 4401"),
        (4403, "", "It closes with 4403"),
        (1000, json.dumps(WELCOME), "It lets in who has no token and no cookie"),
        # That is not the close of somebody who was refused.
        (4401, json.dumps(WELCOME), "It lets in who has no token and no cookie"),
    ):
        async with pretender(closes=closes, says=says) as port:
            with pytest.raises(Failing, match=sentence):
                await without_key(f"http://127.0.0.1:{port}")
    async with pretender() as port:
        said = await without_key(f"http://127.0.0.1:{port}")
    assert said.startswith("who has no token is closed with 4401; no message sent: no key")


async def test_where_there_is_no_place_for_it_the_limit_is_named(
    chat_server: ChatServerFactory, check: Check
) -> None:
    server = await chat_server(**NO_LIMITS | {"CHAT_MAX_CONNECTIONS_PER_ADDRESS": "1"})
    maria = await site(server)
    async with maria.enter("lobby"):
        code, said = await check(server)
        assert (code, words(said)) == ONLY_WEBSOCKET_FAILS
        assert "CHAT_MAX_CONNECTIONS_PER_ADDRESS leaves no place for it" in said["websocket"]
    assert (await check(server))[0] == 0


async def test_where_it_says_too_much_the_rate_is_named(
    chat_server: ChatServerFactory, check: Check
) -> None:
    server = await chat_server(CHAT_SEND_RATE="1/minute")
    assert (await check(server))[0] == 0
    code, said = await check(server)
    assert (code, words(said)) == ONLY_WEBSOCKET_FAILS
    assert "CHAT_SEND_RATE is too low for so many health checks" in said["websocket"]


async def test_a_disabled_user_is_told_and_not_taken_for_another_key(
    chat_server: ChatServerFactory, check: Check
) -> None:
    server = await chat_server()
    assert (await check(server))[0] == 0
    execute(server, "UPDATE users SET disabled_at = 1 WHERE name = 'healthcheck'")
    code, said = await check(server)
    assert (code, words(said)) == ONLY_WEBSOCKET_FAILS
    assert "the user healthcheck is disabled; `user enable healthcheck`" in said["websocket"]
    await server.says("user", "enable", "healthcheck")  # the advice
    assert (await check(server))[0] == 0


async def test_the_users_of_another_database_are_not_taken_for_ours(
    server: ChatServer, chat_server: ChatServerFactory, check: Check
) -> None:
    """The key is the same: there our numbers are nobody's, or other people's."""
    maria, jon = await site(server), await site(server)
    other = await chat_server(CHAT_SECRET_KEY=SECRET_KEY)
    nobody = 1_000_000
    for ours in ((nobody, nobody + 1), (maria.id, nobody), (maria.id, jon.id)):
        execute(other, "DELETE FROM users")
        for id, name in zip(ours, ("healthcheck", "healthcheck-peer"), strict=True):
            execute(
                other,
                "INSERT INTO users (id, name, name_key, kind, created_at)"
                " VALUES (?, ?, ?, 'site', 0)",
                *(id, name, name),
            )
        code, said = await check(other, "--url", server.url)
        assert (code, words(said)) == ONLY_WEBSOCKET_FAILS
        assert "CHAT_SECRET_KEY and CHAT_DATABASE_URL must be those" in said["websocket"]
    page = await maria.read(f"dm.{maria.id}.{jon.id}")
    assert page.json["messages"] == []


# --- What a proxy answers in the place of a handshake


async def test_what_a_proxy_answers_to_a_socket_is_told_by_its_status(server: ChatServer) -> None:
    for status, sentence in (
        (200, r"does not pass Upgrade on \(HTTP 200\)"),
        (426, r"does not pass Upgrade on \(HTTP 426\)"),
        (401, "answers 401 to a WebSocket handshake: it asks for a password of its own"),
        (403, "answers 403 to a WebSocket handshake: a rule there or in a firewall forbids that"),
        (404, "answers 404 to a WebSocket handshake: does it pass this path on"),
        (413, "answers 413 to a WebSocket handshake: it takes the request for too large"),
        (500, "answers 500 to a WebSocket handshake: it fails at it; look at its log"),
        (418, "answers 418 to a WebSocket handshake: look at its log"),
        (502, "it does not reach the chat"),
        (503, "it does not reach the chat"),
    ):
        async with proxy(server, lambda head, status=status: answer(status)) as url:
            with pytest.raises(Failing, match=f"The proxy .*{sentence}|The proxy {sentence}"):
                await without_key(url)


async def test_a_400_is_of_a_name_that_is_not_served_or_of_headers_that_got_lost(
    server: ChatServer,
) -> None:
    async with proxy(server, lambda head: answer(400)) as url:
        with pytest.raises(Failing, match=r"does not serve the name .* CHAT_ALLOWED_HOSTS"):
            await without_key(url)

    def refuse_sockets(head: bytes) -> bytes:
        return answer(400) if b"Upgrade" in head else head

    async with proxy(server, refuse_sockets) as url:
        with pytest.raises(Failing, match=r"does not pass Upgrade on \(HTTP 400\)"):
            await without_key(url)


# --- What it leaves


async def test_a_check_counts_as_one_member_who_says_one_thing_and_warns_of_nothing(
    chat_server: ChatServerFactory, check: Check
) -> None:
    server = await chat_server(**NO_LIMITS)
    assert (await check(server))[0] == 0

    async def counted() -> dict[str, float]:
        key = {"Authorization": f"Bearer {API_KEY}"}
        page = (await ask(server, "GET", "/metrics", key)).text
        return {
            one.name + "".join(one.labels.values()): one.value
            for family in text_string_to_metric_families(page)
            for one in family.samples
            if family.type == "counter" and one.name.endswith("_total")
        }

    async def gone() -> bool:
        return (await counted())["chat_closes_total1000"] == before["chat_closes_total1000"] + 1

    # Everything of the first one is over, too.
    await until(lambda: len(lines_with(server, "User healthcheck disconnected")) == 1)
    before = await counted()
    assert (await check(server))[0] == 0
    await until(gone)
    after = await counted()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "chat_messages_accepted_total": 1,
        "chat_messages_delivered_total": 1,
        "chat_message_frames_total": 1,
        "chat_closes_total1000": 1,
        "chat_handshakes_refused_totalunauthenticated": 1,
    }
