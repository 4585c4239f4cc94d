"""Two nodes, and a Redis that fails in every way that a Redis fails.

Each time: messages are taken, and reach every member of both nodes at most a second late; nobody is
disconnected; `/readyz` says what is the matter, since when, and when all is well again; and then
messages come by the bell, not by the ticker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from chat.clock import now, rfc3339
from chat.live.tasks import stop
from tests.people import NO_LIMITS, Member, a_room, ask, lines_with, running, site, until
from tests.servers import ChatServer, ForeignPostgres, RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What the contract says, and a margin for shared cores, in seconds: that a message may be late
# while the relay is away; until `/readyz` says so, and says that it is back.
MARGIN = 0.5
LATENESS = 1.0 + MARGIN
NOTICED = 2.0 + MARGIN
RECOVERY = 5.0 + MARGIN
# Messages, one after the other, that must all come within so many seconds where the bell rings.
# The ticker alone looks twice a second, and would take four.
ROUNDS, BY_BELL = 8, 2.0
# Messages that are said, one after the other, while the relay is known to be lost.
WITHOUT = 3
# How it is said that a connection did not last: whatever side notices first.
CUT = ("the connection was cut", "connection reset by peer", "broken pipe")
# Seconds between two blows at a connection that must not stay up.
AGAIN = 0.05

# What ends when the fault does.
Fault = Callable[[RedisServer], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def admin(redis: RedisServer) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis.url)
    try:
        yield client
    finally:
        await client.aclose()


async def drop_all(client: Redis) -> None:
    """Cut all connections but this one."""
    for kind in ("pubsub", "normal"):
        await client.client_kill_filter(_type=kind, skipme=True)


@asynccontextmanager
async def gone(redis: RedisServer) -> AsyncIterator[None]:
    redis.kill()
    try:
        yield
    finally:
        redis.start()


@asynccontextmanager
async def frozen(redis: RedisServer) -> AsyncIterator[None]:
    redis.freeze()
    try:
        yield
    finally:
        redis.thaw()


@asynccontextmanager
async def full(redis: RedisServer) -> AsyncIterator[None]:
    """It lets nobody in any more."""
    async with admin(redis) as client:
        most = (await client.config_get("maxclients"))["maxclients"]
        await client.config_set("maxclients", 1)
        try:
            await drop_all(client)
            yield
        finally:
            await client.config_set("maxclients", most)


@asynccontextmanager
async def locked(redis: RedisServer) -> AsyncIterator[None]:
    """It has another password."""
    async with admin(redis) as client:
        await client.config_set("requirepass", "another one")
        try:
            await drop_all(client)
            yield
        finally:
            await client.config_set("requirepass", "")


@asynccontextmanager
async def dropping(redis: RedisServer) -> AsyncIterator[None]:
    """It cuts every subscription as soon as it is made."""

    async def drop(client: Redis) -> None:
        while True:
            await client.client_kill_filter(_type="pubsub")
            await asyncio.sleep(AGAIN)

    async with admin(redis) as client:
        dropper = asyncio.create_task(drop(client))
        try:
            yield
        finally:
            await stop([dropper])


@asynccontextmanager
async def out_of_memory(redis: RedisServer) -> AsyncIterator[None]:
    """It takes nothing that it would have to keep."""
    async with admin(redis) as client:
        await client.config_set("maxmemory", 1)
        try:
            with pytest.raises(OutOfMemoryError):
                await client.set("key", "value")
            yield
        finally:
            await client.config_set("maxmemory", 0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(
    breakable_redis: RedisServer,
    postgres_server: ForeignPostgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[list[ChatServer]]:
    """Two nodes; sends are counted in Redis, up to a number that nobody reaches."""
    database = postgres_server.create_database()
    settings = {
        **NO_LIMITS,
        "CHAT_SEND_RATE": "1000/second",
        "CHAT_DATABASE_URL": database,
        "CHAT_RELAY_URL": breakable_redis.url,
    }
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running(tmp_path_factory.mktemp(name), **settings))
            for name in ("a", "b")
        ]
    postgres_server.drop_database(database)


@asynccontextmanager
async def in_room(nodes: Sequence[ChatServer], room: str) -> AsyncIterator[list[Member]]:
    """Two members on each node, by turns."""
    maria, pepe = await site(nodes[0]), await site(nodes[1])
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(replace(person, server=node).enter(room, "?since=0"))
            for person in (maria, pepe)
            for node in nodes
        ]


class Talk:
    """Members who speak in turn, each when all have heard the one before."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.said = 0

    async def go_on(self) -> None:
        """Say something; see that it is taken, and comes to all, in time."""
        speaker = self.members[self.said % len(self.members)]
        self.said += 1
        async with asyncio.timeout(LATENESS):
            ack = await speaker.say(f"{self.said}")
            assert ack["seq"] == self.said
            await asyncio.gather(*[member.read_to(self.said) for member in self.members])

    async def is_by_bell(self) -> None:
        """See that messages come without the ticker."""
        async with asyncio.timeout(BY_BELL):
            for _ in range(ROUNDS):
                await self.go_on()


async def relay(node: ChatServer, status: str) -> dict[str, Any] | None:
    """What `/readyz` says of the relay; None where its status is another one."""
    answer = await ask(node, "GET", "/readyz")
    assert answer.status == 200
    check: dict[str, Any] = answer.json["checks"]["relay"]
    assert answer.json["status"] == {"ok": "ok", "lost": "degraded"}[check["status"]]
    return check if check["status"] == status else None


async def say_so(nodes: Sequence[ChatServer], status: str, limit: float) -> None:
    """Wait until all nodes say that the relay is in this state."""
    async with asyncio.timeout(limit):
        for node in nodes:
            await until(lambda node=node: relay(node, status))


async def explains(node: ChatServer, reasons: Sequence[str], began: str) -> bool:
    """Tell whether the node says why the relay is lost, and see that the rest is right."""
    check = await relay(node, "lost")
    if check is None:
        return False
    assert began <= check["since"] <= rfc3339(now())
    assert check["round_trip_ms"] is None
    return check["reason"] in reasons


@pytest.mark.parametrize(
    ("fault", "reasons"),
    [
        pytest.param(gone, ("connection refused",), id="gone"),
        pytest.param(frozen, ("no answer in time",), id="frozen"),
        pytest.param(full, CUT, id="full"),
        pytest.param(locked, ("the password or user was refused",), id="locked"),
        pytest.param(dropping, CUT, id="dropping subscriptions"),
    ],
)
async def test_messages_come_at_most_a_second_late_while_redis_is(
    nodes: list[ChatServer], breakable_redis: RedisServer, fault: Fault, reasons: tuple[str, ...]
) -> None:
    room = a_room()
    async with in_room(nodes, room) as members:
        talk = Talk(members)
        await say_so(nodes, "ok", RECOVERY)
        await talk.is_by_bell()
        began = rfc3339(now())
        async with fault(breakable_redis):
            noticing = asyncio.create_task(say_so(nodes, "lost", NOTICED))
            while not noticing.done():
                await talk.go_on()
            await noticing
            for node in nodes:
                await until(lambda node=node: explains(node, reasons, began))
            for _ in range(WITHOUT):
                await talk.go_on()
        await say_so(nodes, "ok", RECOVERY)
        await talk.is_by_bell()
        for node in nodes:
            check = await relay(node, "ok")
            assert check is not None and check["round_trip_ms"] > 0
            assert check.keys().isdisjoint({"since", "reason"})
            assert not lines_with(node, f"disconnected from room {room}")


async def test_a_redis_that_can_keep_nothing_more_still_rings_the_bells(
    nodes: list[ChatServer], breakable_redis: RedisServer
) -> None:
    async with in_room(nodes, a_room()) as members:
        talk = Talk(members)
        async with out_of_memory(breakable_redis):
            await say_so(nodes, "ok", RECOVERY)
            await talk.is_by_bell()
            await say_so(nodes, "ok", NOTICED)
        await talk.is_by_bell()
