"""Peers that do not read, do not answer, or are gone without a word: they harm nobody."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import ChatServerFactory
from tests.people import NO_LIMITS, RawSocket, entering, lines_with, raw_socket, site, until

# Members that read nothing, and bytes that each of them may cost.
SLOW = 20
COST = 1024 * 1024

MESSAGES = 1_500
TEXT = "x" * 4_000  # so that they are 6 MB: far above every buffer on the way

# The same rules as in hypercorn.toml, but in seconds that a test can wait for.
IMPATIENT = "websocket_ping_interval = 0.2\nread_timeout = 1\n"
SOON = 15.0  # seconds for what those limits bring about


async def entries(raw: RawSocket, last: int) -> list[int]:
    """Read `messages` frames up to this seq; return the seqs in the order they came."""
    seqs: list[int] = []
    while not seqs or seqs[-1] < last:
        opcode, payload = await raw.frame()
        if opcode == 1:
            frame = json.loads(payload)
            if frame["type"] == "presence":
                continue
            assert frame["type"] == "messages"
            assert len(payload) <= 256 * 1024
            seqs += [one["seq"] for one in frame["messages"]]
    return seqs


async def test_members_that_do_not_read_cost_little_and_get_everything_on_the_same_socket(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(**NO_LIMITS)
    maria = await site(server)
    process = psutil.Process(server.pid)
    async with AsyncExitStack() as stack:
        sender = await stack.enter_async_context(maria.enter("lobby"))
        # The same volume once with nobody slow: what the log and the tail cost is not theirs.
        await sender.say_all([TEXT] * MESSAGES)
        await sender.read_to(MESSAGES)
        slow = [
            await stack.enter_async_context(raw_socket(server, "lobby", maria.headers))
            for _ in range(SLOW)
        ]
        before = process.memory_info().rss
        await sender.say_all([TEXT] * MESSAGES)
        await sender.read_to(2 * MESSAGES)
        assert process.memory_info().rss - before < SLOW * COST
        for raw in slow:
            seqs = await entries(raw, 2 * MESSAGES)
            assert seqs == list(range(seqs[0], 2 * MESSAGES + 1))
            assert seqs[0] == MESSAGES - 49  # the newest 50 when it came, then all


async def impatient(tmp_path: Path, chat_server: ChatServerFactory) -> Any:
    (tmp_path / "hypercorn.toml").write_text(IMPATIENT)
    return await chat_server(**NO_LIMITS)


async def test_one_that_neither_reads_nor_answers_is_closed_and_resumes_with_its_cursor(
    tmp_path: Path, chat_server: ChatServerFactory
) -> None:
    server = await impatient(tmp_path, chat_server)
    maria, pepe = await site(server, "maria"), await site(server, "pepe")
    async with maria.enter("lobby") as sender:
        await sender.say("before")
        async with raw_socket(server, "lobby", pepe.headers):
            gone = "User pepe disconnected from room lobby"
            await until(lambda: lines_with(server, gone), SOON)
        await sender.say_all(["one", "two"])
        async with entering(server, "lobby", "?since=1", pepe.headers) as again:
            assert [one["text"] for one in await again.read_to(3)] == ["one", "two"]
        await sender.is_well()


class Proxy:
    """Passes bytes on both ways, until the network goes dark: then nothing, no close either."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.dark = False
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers += [writer, other_writer]
        await asyncio.gather(self.pump(reader, other_writer), self.pump(other_reader, writer))

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if not self.dark:
                    writer.write(data)


async def test_one_whose_network_went_dark_is_closed_and_resumes_with_its_cursor(
    tmp_path: Path, chat_server: ChatServerFactory
) -> None:
    server = await impatient(tmp_path, chat_server)
    maria, pepe = await site(server, "maria"), await site(server, "pepe")
    proxy = Proxy(server.port)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    real, server.port = server.port, listening.sockets[0].getsockname()[1]
    try:
        async with raw_socket(server, "lobby", {**pepe.headers, "Host": f"127.0.0.1:{real}"}):
            server.port = real
            proxy.dark = True
            gone = "User pepe disconnected from room lobby"
            await until(lambda: lines_with(server, gone), SOON)
    finally:
        server.port = real
        for writer in proxy.writers:
            writer.close()
        listening.close()
    async with maria.enter("lobby") as sender:
        await sender.say_all(["one", "two"])
        async with entering(server, "lobby", "?since=0", pepe.headers) as again:
            assert [one["text"] for one in await again.read_to(2)] == ["one", "two"]


async def test_a_thousand_connections_that_say_nothing_keep_nobody_out_and_are_dropped(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(**NO_LIMITS)
    maria = await site(server)
    silent = await asyncio.gather(
        *[asyncio.open_connection("127.0.0.1", server.port) for _ in range(1_000)]
    )
    halves = silent[:100]
    for _, writer in halves:
        writer.write(b"GET /ws/chat/lobby/ HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    async with maria.enter("lobby") as member:
        await member.say("nobody is kept out")
        # Half a handshake, or none: dropped after 10 s at most.
        async with asyncio.timeout(SOON):
            for reader, _ in silent:
                with suppress(ConnectionError):
                    await reader.read()
        await member.is_well()
    for _, writer in silent:
        writer.close()
