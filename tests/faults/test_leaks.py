"""Whatever a peer does with its connection, nothing of it is left afterwards.

The first half abuses a real server process and counts its open files and sockets, and its memory.
What the system ends only after a minute is seen in the second half, within the test's own process:
there the time limits are short, and connections and tasks are counted.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from chat.live import tending
from chat.ops import config, stream
from chat.ops.peer import connected
from chat.protocol import CloseCode
from chat.web import delivery, sockets
from tests.conftest import ChatServerFactory
from tests.faults.inside import Inside, inside
from tests.people import (
    HANDSHAKE,
    NO_LIMITS,
    Person,
    RawSocket,
    lines_with,
    masked,
    request,
    site,
    until,
)
from tests.servers import ChatServer

TEXT, BINARY, CONTINUED = 1, 2, 0  # opcodes
PING = masked(TEXT, b'{"type":"ping"}')
# The largest answer that one frame can ask for.
HISTORY = masked(TEXT, b'{"type":"history","id":"h","limit":200}')

ROOM, PATH = "lobby", "/ws/chat/lobby/"
LONG, LONGEST = "x" * 1_000, "x" * 4_000

# How many do the same at once, and what each may cost in bytes while it does it: ten frames that
# the app has not taken, two answers that wait, what the transport and its buffers hold.
PEERS = 10
COST = 3 * 1024 * 1024
# Bytes that one pushes as a single message, in pieces of which the first is above the limit.
PUSHED, PIECE = 8 * 1024 * 1024, 70_000
# Seconds without progress after which a peer's bytes are stuck.
STUCK = 0.3


class Books:
    """What a server process has open, and how much memory it holds."""

    def __init__(self, server: ChatServer) -> None:
        self.process = psutil.Process(server.pid)
        self.files = self.process.num_fds()
        self.memory = self.process.memory_info().rss

    @property
    def sockets(self) -> int:
        """TCP connections, in whatever state."""
        found = self.process.net_connections("tcp")
        return sum(one.status != psutil.CONN_LISTEN for one in found)

    @property
    def grown(self) -> int:
        """Bytes of memory more than at first."""
        return int(self.process.memory_info().rss) - self.memory


async def dialled(server: ChatServer, *, small: bool = False) -> RawSocket:
    """A connection; `small`: that takes little before its peer has to wait."""
    sock = socket.socket()
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    return RawSocket(*await asyncio.open_connection(sock=sock, limit=4_096 if small else 2**16))


async def upgraded(
    server: ChatServer, path: str, headers: Mapping[str, str], *, small: bool = False
) -> RawSocket:
    """A socket after the server's 101, of which no frame has been read."""
    raw = await dialled(server, small=small)
    raw.writer.write(request(server, "GET", path, {**headers, **HANDSHAKE}))
    head = await raw.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101"), head
    return raw


async def flooded(raw: RawSocket, bytes_: bytes) -> None:
    """Write until nothing goes any more: both directions are full."""
    with suppress(TimeoutError, ConnectionError):
        while True:
            raw.writer.write(bytes_)
            async with asyncio.timeout(STUCK):
                await raw.writer.drain()


def reset(raw: RawSocket) -> None:
    """Leave without a word."""
    sock = raw.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.writer.transport.abort()


async def is_cut(raw: RawSocket) -> None:
    """Wait until the server ends the connection; a close frame of its own is not answered."""
    with suppress(ConnectionError):
        while await raw.reader.read(2**16):
            pass


# What one does: it comes as `person`, and the server is to be rid of it afterwards.
Abuse = Callable[[Person], Awaitable[RawSocket]]


async def kicked_in_a_flood(person: Person) -> RawSocket:
    """Breaks a rule, with hundreds of frames behind that, and never answers the close."""
    raw = await upgraded(person.server, PATH, person.headers)
    raw.writer.write(masked(BINARY, b"x") + PING * 500)
    await is_cut(raw)
    return raw


async def hasty(person: Person) -> RawSocket:
    """Does not wait for the answer to its handshake."""
    raw = await dialled(person.server)
    shake = request(person.server, "GET", PATH, {**person.headers, **HANDSHAKE})
    raw.writer.write(shake + PING * 20)
    assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
    await is_cut(raw)
    return raw


async def flooding_without_reading(person: Person) -> RawSocket:
    """Asks for more than it will ever read, until nothing goes any more, and is gone."""
    raw = await upgraded(person.server, PATH, person.headers, small=True)
    await flooded(raw, HISTORY * 100)
    reset(raw)
    return raw


async def pushing_on_after_a_frame_that_is_too_large(person: Person) -> RawSocket:
    """Is told 1009, and goes on with the same frame as if it had not heard."""
    raw = await upgraded(person.server, PATH, person.headers)
    await raw.write(masked(TEXT, b"x" * PIECE, fin=False))
    for _ in range(PUSHED // PIECE):
        await raw.write(masked(CONTINUED, b"x" * PIECE, fin=False))
    return raw


@pytest.mark.parametrize(
    "abuse",
    [
        kicked_in_a_flood,
        hasty,
        flooding_without_reading,
        pushing_on_after_a_frame_that_is_too_large,
    ],
)
async def test_nothing_is_left_of_one_who_is(chat_server: ChatServerFactory, abuse: Abuse) -> None:
    server = await chat_server(**NO_LIMITS)
    maria, pepe = await site(server), await site(server)
    entered, left = (
        f"User {pepe.name} {did} room" for did in ("connected to", "disconnected from")
    )
    async with maria.enter(ROOM) as member:
        await member.say_all([LONG] * 250)
        await member.read_to(250)
        async with pepe.enter(ROOM):
            pass  # so that what is made but once is there
        await until(lambda: lines_with(server, left))
        books = Books(server)
        peers = await asyncio.gather(*[abuse(pepe) for _ in range(PEERS)])
        print(f"{books.grown / PEERS / 1024:.0f} KiB each")
        assert books.grown < PEERS * COST
        # The server is rid of them while they still hold on.
        await until(lambda: books.sockets == 1)
        # Of each of them a file would be left; SQLite keeps one or two of its own for a while.
        await until(lambda: books.process.num_fds() < books.files + PEERS)
        await member.is_well()
    for raw in peers:
        raw.writer.close()
    await until(lambda: len(lines_with(server, left)) == len(lines_with(server, entered)))


# Within this process

# The same limits as in chat/, in what a test can wait for: milliseconds, and seconds.
USER_TIMEOUT, BRIEF, READ_TIMEOUT = 500, 0.3, 1.0

Neglect = Callable[[Inside, Person], Awaitable[RawSocket]]


async def stuck(here: Inside, person: Person) -> RawSocket:
    """A member for whom more is there than it will ever read."""
    raw = await upgraded(here.server, f"{PATH}?since=0", person.headers, small=True)
    await until(lambda: any(peer.queued for peer in connected))
    return raw


async def sent_away(here: Inside, person: Person) -> RawSocket:
    """Is to be closed by us, but does not even take what comes before the close."""
    raw = await stuck(here, person)
    for member in here.services.hub.members:
        member.end(CloseCode.UNAUTHENTICATED, "signed out")
    return raw


async def sent_away_in_a_flood(here: Inside, person: Person) -> RawSocket:
    """The same, with more of its frames under way than are ever taken."""
    raw = await stuck(here, person)
    await flooded(raw, HISTORY * 100)
    for member in here.services.hub.members:
        member.end(CloseCode.UNAUTHENTICATED, "signed out")
    return raw


async def half_closed(here: Inside, person: Person) -> RawSocket:
    """Says that it will send no more, and goes on reading nothing."""
    raw = await stuck(here, person)
    raw.writer.write_eof()
    return raw


async def silent(here: Inside, person: Person) -> RawSocket:
    """Answers no pings either."""
    return await stuck(here, person)


async def asking_over_http(here: Inside, person: Person) -> RawSocket:
    """Asks for a long answer, and reads nothing of it."""
    raw = await dialled(here.server, small=True)
    path = f"/api/rooms/{ROOM}/messages?limit=200"
    raw.writer.write(request(here.server, "GET", path, person.headers))
    await until(lambda: any(peer.queued for peer in connected))
    return raw


async def nothing_is_left(
    folder: Path, neglect: Neglect, read_timeout: float | None = None
) -> None:
    async with inside(folder, read_timeout=read_timeout) as here:
        maria = await site(here.server)
        async with maria.enter(ROOM) as member:
            await member.say_all([LONGEST] * 500)
        await until(lambda: not connected)
        before = asyncio.all_tasks()
        raw = await neglect(here, maria)
        await until(lambda: not connected)
        await until(lambda: asyncio.all_tasks() <= before)
        assert not here.services.hub.members
        raw.writer.close()


@pytest.mark.parametrize("neglect", [sent_away, sent_away_in_a_flood])
async def test_nothing_is_left_of_one_who_reads_nothing_and_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neglect: Neglect
) -> None:
    for module, name in (
        (delivery, "SEND_LIMIT"),
        (sockets, "CLOSE_PATIENCE"),
        (stream, "CLOSE_LIMIT"),
        (tending, "TEND"),
    ):
        monkeypatch.setattr(module, name, BRIEF)
    await nothing_is_left(tmp_path, neglect)


@pytest.mark.parametrize("neglect", [half_closed, silent, asking_over_http])
async def test_the_system_lets_go_of_one_who_reads_nothing_and_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neglect: Neglect
) -> None:
    monkeypatch.setattr(config, "USER_TIMEOUT", USER_TIMEOUT)
    await nothing_is_left(tmp_path, neglect, READ_TIMEOUT)
