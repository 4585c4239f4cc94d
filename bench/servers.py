"""The servers under load, each a process pinned to a core of its own.

It starts and ends them and says how to connect; what is measured is in `figures.py`. PostgreSQL
and Redis come from the wheels that the tests use, and run on the load's core.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from json import dumps, loads
from pathlib import Path
from urllib.parse import quote, urlsplit

from bench.load import EchoMember, LogMember, Member
from tests.servers import (
    LOOK_INTERVAL,
    ROOT,
    START_LIMIT,
    ChatServer,
    PostgresServer,
    RedisServer,
    free_port,
    launch,
)

# Read before anything is pinned; the same one twice where there is only one.
SERVER_CORE, *_, LOAD_CORE = sorted(os.sched_getaffinity(0)) * 2
# The members of the largest figure each are a user of their own.
USERS = 2_000
# Requests for tokens under way at once.
TOKEN_REQUESTS = 8
# No limits, as the yardstick has none: one machine stands for all members here.
CHAT_SETTINGS: dict[str, str | None] = {
    "CHAT_SEND_RATE": "off",
    "CHAT_FRAME_RATE": "off",
    "CHAT_ROOM_RATE": "off",
    "CHAT_MAX_CONNECTIONS_PER_USER": "0",
    "CHAT_ALLOWED_HOSTS": "*",
    "CHAT_LOG_LEVEL": "WARNING",
}


@dataclass
class Server:
    """A server that listens, and what the load must know to talk to it."""

    name: str
    address: str
    member: type[Member]
    # The root of its processes; None where somebody else started it.
    pid: int | None = None
    tokens: list[str] = field(default_factory=list)

    def url(self, room: str, place: int) -> str:
        """Return where the member at `place` of a crowd connects."""
        query = f"?token={quote(self.tokens[place % len(self.tokens)])}" if self.tokens else ""
        return f"ws://{self.address}/ws/chat/{room}/{query}"

    def cpu(self) -> float:
        """Return the seconds of processor time of all its processes; 0 where they are not ours."""
        return 0.0 if self.pid is None else sum(map(cpu_seconds, family(self.pid)))

    def memory(self) -> int | None:
        """Return the proportional set size of all its processes in KiB."""
        return None if self.pid is None else sum(map(proportional_set_size, family(self.pid)))


@asynccontextmanager
async def bare(name: str, member: type[Member]) -> AsyncIterator[Server]:
    """Run `bench.yardstick` or `bench.mirror`."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, on_core(SERVER_CORE):
        child = launch(
            [sys.executable, "-m", f"bench.{name}", address],
            folder=ROOT,
            log=Path(folder) / "log",
            dies_by=signal.SIGTERM,
        )
    try:
        await listens(address, child)
        yield Server(name, address, member, child.pid)
    finally:
        # Nothing of it is worth an orderly end, and bare Hypercorn may wait for its sockets.
        child.kill()
        child.wait()


def yardstick() -> AbstractAsyncContextManager[Server]:
    return bare("yardstick", EchoMember)


def mirror() -> AbstractAsyncContextManager[Server]:
    return bare("mirror", LogMember)


class Chat:
    """The chat on PostgreSQL and Redis: both are started once, the chat itself for each use."""

    def __init__(self, stack: ExitStack) -> None:
        self.key = secrets.token_urlsafe(16)
        # Made at the first use; they outlive it, as the secret key stays the same.
        self.tokens: list[str] = []
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        # With fsync: an ack of the chat says that it is on disk.
        databases = PostgresServer(fsync="on"), RedisServer()
        for database in databases:
            stack.callback(database.remove)
            database.start()
        self.settings = CHAT_SETTINGS | {
            "CHAT_DATABASE_URL": databases[0].create_database(),
            "CHAT_RELAY_URL": databases[1].url,
            "CHAT_API_KEY": self.key,
        }

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Server]:
        """Run the chat, one worker, on the server's core."""
        chat = ChatServer(self.folder, self.settings)
        with on_core(SERVER_CORE):
            await chat.start()
        try:
            address = f"127.0.0.1:{chat.port}"
            if not self.tokens:
                self.tokens = mint(address, self.key)
            yield Server("chat", address, LogMember, chat.pid, self.tokens)
        finally:
            await chat.stop()


@asynccontextmanager
async def running_chat(url: str, key: str) -> AsyncIterator[Server]:
    """Use a chat that somebody else started."""
    address = urlsplit(url).netloc or url
    yield Server("chat", address, LogMember, tokens=mint(address, key))


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started in here stays on this core; this process itself goes back to the load's."""
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {LOAD_CORE})


async def listens(address: str, child: subprocess.Popen[bytes]) -> None:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(START_LIMIT):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                if child.poll() is not None:
                    raise RuntimeError(f"{child.args!r} ended with {child.returncode}") from None
                await asyncio.sleep(LOOK_INTERVAL)
            else:
                writer.close()
                return


def mint(address: str, key: str) -> list[str]:
    """Get a token for each user of the benchmark from `POST /api/tokens`."""

    def some(start: int) -> list[str]:
        connection = HTTPConnection(address, timeout=START_LIMIT)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        found = []
        for user in range(start, USERS, TOKEN_REQUESTS):
            body = dumps({"user": f"bench-{user}", "ttl": 86_400})
            connection.request("POST", "/api/tokens", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 201:
                raise SystemExit(f"POST /api/tokens: {answer.status} {text[:200]!r}")
            found.append(loads(text)["token"])
        connection.close()
        return found

    with ThreadPoolExecutor(TOKEN_REQUESTS) as pool:
        return [token for part in pool.map(some, range(TOKEN_REQUESTS)) for token in part]


def family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def proportional_set_size(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("smaps_rollup without Pss")


def cpu_seconds(pid: int) -> float:
    # After the name in brackets, which may hold anything, utime and stime are the 12th and 13th.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
