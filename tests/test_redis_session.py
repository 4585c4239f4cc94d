"""One session with Redis: answers in their order, and reasons without secrets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace

import pytest
from redis import exceptions
from redis.asyncio import Redis

from chat.live import redis_session
from chat.live.redis_backend import SupervisedRedis
from chat.live.redis_session import Silence, reason_of
from tests.relays import LIMIT, listening, nodes, until
from tests.servers import RedisServer


class Valve:
    """A proxy in front of Redis that can keep its answers back."""

    def __init__(self) -> None:
        self.port = 0
        self._open = True
        # What Redis said while the valve was shut, by connection to the client.
        self._kept: dict[asyncio.StreamWriter, bytes] = {}

    def shut(self) -> None:
        self._open = False

    def open(self) -> None:
        """Let all through that was kept, and what comes."""
        self._open = True
        for writer, data in self._kept.items():
            writer.write(data)
        self._kept.clear()

    def let_through(self, answer: bytes) -> bool:
        """Let all through up to an answer that matches the pattern; say whether there is one."""
        for writer, data in self._kept.items():
            if found := re.search(answer, data, re.DOTALL):
                writer.write(data[: found.end()])
                self._kept[writer] = data[found.end() :]
                return True
        return False

    async def answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self._open:
                writer.write(data)
            else:
                self._kept[writer] = self._kept.get(writer, b"") + data


@asynccontextmanager
async def valve(port: int) -> AsyncIterator[Valve]:
    made = Valve()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection("127.0.0.1", port)
        answers = asyncio.create_task(made.answers(behind, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                before.write(data)
        answers.cancel()
        for one in (writer, before):
            one.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


async def test_an_old_answer_does_not_confirm_who_left_and_came_back(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The heartbeat is kept back too; that is not what this is about.
    monkeypatch.setattr(redis_session, "SILENCE_SECONDS", LIMIT)
    monkeypatch.setattr(redis_session, "ANSWER_SECONDS", LIMIT)
    redis = Redis.from_url(own_redis.url)

    async def subscribers(count: int) -> None:
        async with asyncio.timeout(LIMIT):
            while (await redis.pubsub_numsub("test/room"))[0][1] != count:
                await asyncio.sleep(0.005)

    async with (
        valve(own_redis.port) as proxy,
        nodes(f"redis://127.0.0.1:{proxy.port}", "a") as [node],
    ):
        backend = node.relay._backend
        assert isinstance(backend, SupervisedRedis)
        async with listening(node, "room"):
            await subscribers(1)
        # Three commands under way: UNSUBSCRIBE, SUBSCRIBE, UNSUBSCRIBE; then SUBSCRIBE.
        proxy.shut()
        await subscribers(0)
        async with node.relay.listen("room"):
            await subscribers(1)
        await subscribers(0)
        session = backend._session
        assert session is not None
        async with node.relay.listen("room"):
            await subscribers(1)
            confirmed = asyncio.create_task(node.relay.confirmed("room"))
            left = session._unanswered["test/room"]

            def counted(unanswered: int) -> bool:
                return session._unanswered["test/room"] == unanswered

            while left > 1:
                await until(lambda: proxy.let_through(rb"subscribe\r\n.*?:\d+\r\n"))
                left -= 1
                await until(functools.partial(counted, left))
                await asyncio.sleep(0)
                assert not confirmed.done()
            proxy.open()
            async with asyncio.timeout(LIMIT):
                assert await confirmed
    await redis.aclose()


async def test_thousands_of_channels_are_asked_for_in_several_commands(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_session, "SUBSCRIBE_CHANNELS", 7)
    channels = [f"room.{number}" for number in range(100)]
    async with nodes(redis_url, "a") as [node]:
        async with AsyncExitStack() as listeners:
            for channel in channels:
                await listeners.enter_async_context(node.relay.listen(channel))
            await until(lambda: sorted(node.gaps) == sorted(channels))
            assert all([await node.relay.confirmed(channel) for channel in channels])
        backend = node.relay._backend
        assert isinstance(backend, SupervisedRedis)
        session = backend._session
        assert session is not None
        # Nothing is kept of channels that were left.
        await until(lambda: not session._names and not session._unanswered)
        assert not session.confirmed


async def test_a_process_that_was_held_up_does_not_blame_redis(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(redis_url, "a") as [node]:
        # An hour passes between two ticks.
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 3_600)
        monkeypatch.setattr(redis_session, "time", later)
        first = node.relay.round_trip
        await until(lambda: node.relay.round_trip != first)
        assert node.relay.reconnects == 0
        assert not node.relay.lost


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__context__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Silence(), "no heartbeat for 2 s"),
        (ConnectionRefusedError(111, "Connect call failed ('10.1.2.3', 6379)"), "connection ref"),
        (chained(exceptions.ConnectionError("10.1.2.3"), OSError(113, "10.1.2.3")), "no route to"),
        (chained(exceptions.ConnectionError("10.1.2.3"), socket.gaierror(-2, "x")), "the host na"),
        (chained(exceptions.ConnectionError("x"), ssl.SSLError(1, "10.1.2.3")), "TLS failed"),
        (exceptions.ConnectionError("Error 10.1.2.3 secret"), "the connection was cut"),
        (OSError("Multiple exceptions: [10.1.2.3]"), "the connection was cut"),
        (exceptions.TimeoutError("Timeout connecting to 10.1.2.3"), "no answer in time"),
        (exceptions.BusyLoadingError("10.1.2.3"), "it is still loading its data"),
        (exceptions.ResponseError("secret"), "it answered with an error"),
        (ValueError("secret"), "unexpected ValueError"),
    ],
)
def test_reasons_name_the_cause_and_nothing_private(error: Exception, reason: str) -> None:
    words = reason_of(error)
    assert words.startswith(reason)
    assert not re.search(r"10\.1|secret|6379", words)
