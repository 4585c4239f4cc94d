"""Several nodes and workers on one database and one Redis: one log, whoever holds the socket."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import ChatServerFactory
from tests.people import SOON, Member, Person, ask, guest
from tests.servers import ChatServer, ForeignPostgres, RedisServer

# Seconds that the contract gives a sign-out to end the sockets on every node.
SIGN_OUT_LIMIT = 2.0
# Seconds that a message may be late while the relay is down.
OUTAGE_LATENESS = 1.0

UNLIMITED: dict[str, str | None] = {"CHAT_SEND_RATE": "off", "CHAT_SIGN_IN_RATE": "off"}


def at(server: ChatServer, person: Person) -> Person:
    """Return the same person, with the same cookie, at another node."""
    return replace(person, server=server)


@asynccontextmanager
async def in_room(people: Sequence[Person], room: str = "lobby") -> AsyncIterator[list[Member]]:
    """Let them all enter."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(person.enter(room, "?since=0")) for person in people]


async def all_read(members: Sequence[Member], seq: int) -> None:
    """Wait until all have read up to `seq`, and see that all read the same log from its start."""
    logs = await asyncio.gather(*[member.read_to(seq) for member in members])
    assert [one["seq"] for one in logs[0]] == list(range(1, seq + 1))
    assert all(log == logs[0] for log in logs)


async def sign_out(person: Person) -> None:
    answer = await ask(person.server, "POST", "/logout", person.headers)
    assert answer.status == 303


@pytest.mark.parametrize("database", ["postgres_url", "sqlite_url"])
async def test_messages_of_two_nodes_come_in_one_order_everywhere(
    chat_server: ChatServerFactory,
    request: pytest.FixtureRequest,
    redis_url: str,
    database: str,
) -> None:
    url: str = request.getfixturevalue(database)
    settings = {**UNLIMITED, "CHAT_DATABASE_URL": url, "CHAT_RELAY_URL": redis_url}
    a, b = [await chat_server(**settings) for _ in range(2)]
    maria, jon = await guest(a), await guest(b)
    async with in_room([maria, at(b, maria), jon, at(a, jon)]) as members:
        texts = [[f"{place}-{number}" for number in range(40)] for place in range(len(members))]
        acks = await asyncio.gather(
            *[member.say_all(own) for member, own in zip(members, texts, strict=True)]
        )
        await all_read(members, 160)
        for own, said in zip(texts, acks, strict=True):
            # Each member's sends got their seqs in the order in which they were sent.
            assert [text for text in members[0].texts if text in own] == own
            seqs = [ack["seq"] for ack in said]
            assert seqs == sorted(seqs)
    # Who comes back on the other node gets exactly the rest.
    async with at(b, maria).enter("lobby", "?since=150") as again:
        assert again.welcome["resumed"] is True
        assert [one["seq"] for one in await again.read_to(160)] == list(range(151, 161))


async def test_workers_of_one_node_serve_one_log(
    chat_server: ChatServerFactory, postgres_url: str, redis_url: str
) -> None:
    settings = {**UNLIMITED, "CHAT_DATABASE_URL": postgres_url, "CHAT_RELAY_URL": redis_url}
    server = await chat_server(workers=2, CHAT_MAX_CONNECTIONS_PER_USER="0", **settings)
    maria = await guest(server)

    def workers() -> set[str]:
        return set(re.findall(r"INFO (\d+) \S+ User \S+ connected to room lobby", server.log))

    async with AsyncExitStack() as stack:
        members: list[Member] = []
        async with asyncio.timeout(SOON):
            # The kernel chooses the worker.
            while len(workers()) < 2 or len(members) < 4:
                members.append(await stack.enter_async_context(maria.enter("lobby", "?since=0")))
        await asyncio.gather(*[member.say_all(["hola"] * 10) for member in members])
        await all_read(members, 10 * len(members))


async def test_signing_out_on_one_node_ends_the_sockets_on_the_other(
    chat_server: ChatServerFactory, postgres_url: str, redis_url: str
) -> None:
    settings = {"CHAT_DATABASE_URL": postgres_url, "CHAT_RELAY_URL": redis_url}
    a, b = [await chat_server(**settings) for _ in range(2)]
    maria, jon = await guest(a), await guest(a)
    async with in_room([at(b, maria), at(b, jon), maria]) as [there, other, here]:
        async with asyncio.timeout(SIGN_OUT_LIMIT):
            await sign_out(maria)
            assert list(await asyncio.gather(there.end(), here.end())) == [4401, 4401]
        await other.is_well()
    # The old cookie opens nothing more, on neither node.
    assert [await person.refused("lobby") for person in (maria, at(b, maria))] == [4401, 4401]


async def test_signing_out_reaches_the_other_node_without_a_relay_too(
    chat_server: ChatServerFactory, postgres_url: str, own_redis: RedisServer
) -> None:
    settings = {"CHAT_DATABASE_URL": postgres_url, "CHAT_RELAY_URL": own_redis.url}
    a, b = [await chat_server(**settings) for _ in range(2)]
    maria = await guest(a)
    async with in_room([at(b, maria)]) as [there]:
        own_redis.stop()
        await asyncio.gather(*[node.wait_for_log("Relay lost") for node in (a, b)])
        async with asyncio.timeout(SIGN_OUT_LIMIT):
            await sign_out(maria)
            assert await there.end() == 4401


@pytest.mark.parametrize("database", ["postgres_url", "sqlite_url"])
async def test_without_redis_messages_are_taken_and_delivered_everywhere(
    chat_server: ChatServerFactory,
    request: pytest.FixtureRequest,
    own_redis: RedisServer,
    database: str,
) -> None:
    url: str = request.getfixturevalue(database)
    settings = {**UNLIMITED, "CHAT_DATABASE_URL": url, "CHAT_RELAY_URL": own_redis.url}
    nodes = [await chat_server(**settings) for _ in range(2)]
    maria, jon = await guest(nodes[0]), await guest(nodes[1])
    async with in_room([maria, jon]) as members:

        async def both_say(text: str) -> None:
            await asyncio.gather(*[member.say_all([text] * 5) for member in members])

        await both_say("with Redis")
        await all_read(members, 10)
        own_redis.stop()
        await both_say("while it goes down")
        await all_read(members, 20)
        await asyncio.gather(*[node.wait_for_log("Relay lost") for node in nodes])
        for node in nodes:
            answer = await ask(node, "GET", "/readyz")
            assert (answer.status, answer.json["status"]) == (200, "degraded")
        await members[0].say("without Redis")
        async with asyncio.timeout(OUTAGE_LATENESS):
            await members[1].read_to(21)
        # Joining does not wait for it either.
        async with jon.enter("lobby", "?since=0") as newcomer:
            await both_say("still without")
            await all_read([*members, newcomer], 31)
            own_redis.start()
            await asyncio.gather(*[node.wait_for_log("Relay restored after") for node in nodes])
            await both_say("with Redis again")
            await all_read([*members, newcomer], 41)
    for node in nodes:
        assert (await ask(node, "GET", "/readyz")).json["status"] == "ok"


async def test_two_deployments_on_one_redis_never_see_each_other(
    chat_server: ChatServerFactory, postgres_server: ForeignPostgres, redis_url: str
) -> None:
    urls = [postgres_server.create_database() for _ in range(2)]
    try:
        ours, theirs = [
            await chat_server(CHAT_DATABASE_URL=url, CHAT_RELAY_URL=redis_url) for url in urls
        ]
        maria, anna = await guest(ours, "maria"), await guest(theirs, "anna")
        # Ids and names are the same in both: first user, first room.
        assert maria.id == anna.id
        async with in_room([maria, anna]) as [one, other]:
            assert one.welcome["epoch"] != other.welcome["epoch"]
            for number in range(3):
                await one.say(f"ours {number}")
                await other.say(f"theirs {number}")
            await asyncio.gather(one.read_to(3), other.read_to(3))
            assert one.texts == ["ours 0", "ours 1", "ours 2"]
            assert other.texts == ["theirs 0", "theirs 1", "theirs 2"]
            # A sign-out of one ends nobody of the other.
            await sign_out(maria)
            assert await one.end() == 4401
            await other.is_well()
        await ours.stop()
        await theirs.stop()
    finally:
        for url in urls:
            postgres_server.drop_database(url)


async def test_a_node_that_is_killed_loses_nothing_that_was_acked(
    chat_server: ChatServerFactory, postgres_url: str, redis_url: str
) -> None:
    settings = {**UNLIMITED, "CHAT_DATABASE_URL": postgres_url, "CHAT_RELAY_URL": redis_url}
    a, b = [await chat_server(**settings) for _ in range(2)]
    maria, jon = await guest(a), await guest(b)
    async with in_room([maria, jon]) as [mine, other]:
        for number in range(200):
            await mine.send("send", id=f"m-{number}", text=f"{number}")
        acked = await mine.next("ack")
        for _ in range(20):
            acked = await mine.next("ack")
        await a.kill()
        with pytest.raises(ConnectionClosed):
            while True:
                await mine.receive()
        await other.read_to(acked["seq"])
        assert other.texts[: acked["seq"]] == [f"{number}" for number in range(acked["seq"])]
    # On the other node the whole is said again, with the same ids: nothing is there twice.
    async with at(b, maria).enter("lobby", "?since=0") as again:
        for number in range(200):
            await again.send("send", id=f"m-{number}", text=f"{number}")
        acks = [await again.next("ack") for _ in range(200)]
        assert [ack["seq"] for ack in acks] == list(range(1, 201))
        assert acks[acked["seq"] - 1]["duplicate"] is True
        await again.read_to(200)
        assert again.texts == [f"{number}" for number in range(200)]


async def test_who_has_seen_more_than_a_node_has_heard_of_goes_on_there_where_it_was(
    chat_server: ChatServerFactory, postgres_url: str, own_redis: RedisServer
) -> None:
    settings = {**UNLIMITED, "CHAT_DATABASE_URL": postgres_url, "CHAT_RELAY_URL": own_redis.url}
    a, b = [await chat_server(**settings) for _ in range(2)]
    maria = await guest(a)
    # Without bells, b's open room learns of a's messages by its ticker only: often too late here.
    async with in_room([maria, at(b, maria)]) as [here, there]:
        own_redis.stop()
        await asyncio.gather(*[node.wait_for_log("Relay lost") for node in (a, b)])
        epoch = here.welcome["epoch"]
        for number in range(10):
            seq = (await here.say(f"{number}"))["seq"]
            async with at(b, maria).enter("lobby", f"?since={seq}&epoch={epoch}") as again:
                assert again.welcome["resumed"] is True
                assert again.welcome["last_seq"] == seq
                after = await again.say("there")
                await again.read_to(after["seq"])
                assert [one["seq"] for one in again.messages] == [after["seq"]]
        await all_read([here, there], after["seq"])


async def test_a_since_that_no_node_knows_is_not_resumed(
    chat_server: ChatServerFactory, sqlite_url: str
) -> None:
    node = await chat_server(CHAT_DATABASE_URL=sqlite_url)
    maria = await guest(node)
    async with in_room([maria]) as [first]:
        await first.say("hola")
        async with maria.enter("lobby", "?since=2") as again:
            assert again.welcome["resumed"] is False
            assert [one["seq"] for one in await again.read_to(1)] == [1]
