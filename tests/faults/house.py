"""Two nodes, a Redis and a PostgreSQL, and every way to break one of them.

A `Fault` is one part, one way and how long; `House.breaking` is the context in which it lasts. The
checker runs schedules of them. Restarts run in threads: the clients must go on meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from tests.people import API_KEY, mint
from tests.servers import (
    ROOT,
    STOP_LIMIT,
    ChatServer,
    PostgresServer,
    RedisServer,
    launch,
)

# Threads that live as long as the process: a server ends with the thread that started it. As many
# as parts can come back at once.
_STARTERS = ThreadPoolExecutor(2, thread_name_prefix="starter")

Act = Callable[[], Coroutine[Any, Any, None]]
# What begins a fault and what ends it.
Way = tuple[Act, Act]

# Seconds that a node may take to end after SIGTERM.
DRAIN_PROMISE = 10.0
# Seconds that a token is good for: longer than any run.
TOKEN_LIFE = 86_400

NODES = ("node a", "node b")
WAYS: dict[str, tuple[str, ...]] = {
    "node": ("kill", "restart", "freeze", "cut", "doze", "kill a worker"),
    "redis": ("kill", "restart", "freeze", "drop"),
    "postgres": ("kill", "restart", "freeze", "drop"),
}
# The parts in the order in which they come back: a node does not start without a database.
ORDER = ("postgres", "redis", *NODES)


@dataclass(frozen=True)
class Fault:
    part: str  # of ORDER
    way: str  # of WAYS
    seconds: float  # that it lasts, or that the part stays away

    def __str__(self) -> str:
        return f"{self.part}: {self.way}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class Footprint:
    """What the processes of a node take."""

    megabytes: float  # of resident memory
    files: int
    threads: int
    processes: int

    def __str__(self) -> str:
        return f"{self.megabytes:.1f} MB, {self.files} files, {self.threads} threads"


class Node(ChatServer):
    """The program, or a broken variant of it (broken.py)."""

    # The name of the break; None is the product as it is.
    broken: str | None = None

    def spawn(self, *arguments: str) -> None:
        if self.broken is None:
            super().spawn(*arguments)
            return
        assert not self.running, "already started"
        env = {name: value for name, value in os.environ.items() if not name.startswith("CHAT_")}
        env |= {name: value for name, value in self.settings.items() if value is not None}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
        env["PYTHONUNBUFFERED"] = "1"
        command = [sys.executable, "-m", "tests.faults.broken", self.broken, "serve"]
        command += ["--bind", f"127.0.0.1:{self.port}", "--workers", str(self.workers)]
        self.process = launch(
            [*command, *arguments],
            folder=self.folder,
            log=self.log_file,
            env=env,
            dies_by=signal.SIGTERM,
        )

    def family(self) -> list[psutil.Process]:
        """The parent first, then its workers."""
        if not self.running:
            return []
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.pid)
            return [parent, *parent.children()]
        return []


class House:
    def __init__(
        self, redis: RedisServer, postgres: PostgresServer, database: str, nodes: Sequence[Node]
    ) -> None:
        self.redis = redis
        self.postgres = postgres
        # The URL of the nodes' database.
        self.database = database
        self.nodes = nodes
        # Called where a process did not end as it should, with the node and the complaint.
        self.complain: Callable[[str, str], None] = lambda who, detail: None
        # What happens to the clients of the node with this URL: their connections break, as a
        # network breaks them; or one in each room stops reading while the others say a lot.
        self.cut: Callable[[str], None] = lambda url: None
        self.doze: Callable[[str], None] = lambda url: None
        self.wake: Callable[[], None] = lambda: None

    @property
    def urls(self) -> list[str]:
        return [node.ws_url for node in self.nodes]

    async def token(self, name: str) -> str:
        """Make a user, and return a token that all nodes take."""
        answer = await mint(self.nodes[0], user=name, ttl=TOKEN_LIFE)
        assert answer.status == 201, answer.text
        return str(answer.json["token"])

    def node(self, part: str) -> Node:
        return self.nodes[NODES.index(part)]

    def footprint(self, node: Node) -> Footprint:
        processes = node.family()
        return Footprint(
            sum(one.memory_info().rss for one in processes) / 1e6,
            sum(one.num_fds() for one in processes),
            sum(one.num_threads() for one in processes),
            len(processes),
        )

    @asynccontextmanager
    async def breaking(self, fault: Fault) -> AsyncIterator[None]:
        """Break the part; on leaving, it is well again as far as it knows."""
        part, way = fault.part, fault.way
        if part == "redis":
            begin, end = self._redis(way)
        elif part == "postgres":
            begin, end = self._postgres(way)
        else:
            begin, end = self._node(part, way)
        await begin()
        try:
            yield
        finally:
            await end()

    # --- The ways: what begins and what ends each

    def _redis(self, way: str) -> Way:
        redis = self.redis
        match way:
            case "kill":
                return _soon(redis.kill), _in_thread(redis.start)
            case "restart":
                return _in_thread(lambda: _ask_to_end(redis)), _in_thread(redis.start)
            case "freeze":
                return _soon(redis.freeze), _soon(redis.thaw)
            case _:
                return self._drop_redis, self._drop_redis

    def _postgres(self, way: str) -> Way:
        postgres = self.postgres
        match way:
            case "kill":
                return _soon(postgres.kill), _in_thread(postgres.start)
            case "restart":
                return _in_thread(postgres.stop), _in_thread(postgres.start)
            case "freeze":
                return _soon(postgres.freeze), _soon(postgres.thaw)
            case _:
                return self._drop_postgres, self._drop_postgres

    def _node(self, part: str, way: str) -> Way:
        node = self.node(part)

        def cut() -> None:
            self.cut(node.ws_url)

        def doze() -> None:
            self.doze(node.ws_url)

        async def kill_worker() -> None:
            workers = node.family()[1:]
            # Without workers of its own, the process is the worker.
            for one in workers[:1]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            if not workers:
                await node.kill()

        async def stop() -> None:
            began = time.monotonic()
            code = await node.stop()
            took = time.monotonic() - began
            if code != 0 or took > DRAIN_PROMISE:
                self.complain(part, f"SIGTERM ended it with {code} after {took:.1f} s")

        async def start() -> None:
            if not node.running:
                await node.start()

        def each(action: str) -> Callable[[], None]:
            def act() -> None:
                for one in node.family():
                    with suppress(psutil.NoSuchProcess):
                        getattr(one, action)()

            return act

        match way:
            case "kill":
                return node.kill, start
            case "restart":
                return stop, start
            case "freeze":
                return _soon(each("suspend")), _soon(each("resume"))
            case "cut":
                return _soon(cut), _soon(cut)
            case "doze":
                return _soon(doze), _soon(self.wake)
            case _:
                return kill_worker, start

    async def _drop_redis(self) -> None:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.redis.port)
            writer.write(b"CLIENT KILL TYPE pubsub\r\nCLIENT KILL TYPE normal\r\n")
            await reader.readline()
            writer.close()

    async def _drop_postgres(self) -> None:
        with suppress(OSError, asyncpg.PostgresError, TimeoutError):
            connection = await asyncpg.connect(self.database, timeout=1)
            try:
                await connection.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
                    timeout=1,
                )
            finally:
                connection.terminate()


def _soon(act: Callable[[], None]) -> Act:
    """What takes no time."""

    async def run() -> None:
        act()

    return run


def _in_thread(act: Callable[[], None]) -> Act:
    """What takes time: the clients go on meanwhile."""

    async def run() -> None:
        await asyncio.get_running_loop().run_in_executor(_STARTERS, act)

    return run


def _ask_to_end(redis: RedisServer) -> None:
    assert redis.process is not None
    redis.process.terminate()
    with suppress(subprocess.TimeoutExpired):
        redis.process.wait(STOP_LIMIT)
    redis.kill()


@asynccontextmanager
async def house(
    redis: RedisServer,
    postgres: PostgresServer,
    folder: Path,
    *,
    workers: Sequence[int] = (1, 1),
    broken: str | None = None,
) -> AsyncIterator[House]:
    """Open two nodes on a new database of these servers, which may be broken meanwhile."""
    database = postgres.create_database()
    settings: dict[str, str | None] = {
        "CHAT_DATABASE_URL": database,
        "CHAT_RELAY_URL": redis.url,
        "CHAT_API_KEY": API_KEY,
        "CHAT_SEND_RATE": "off",
    }
    nodes = [Node(folder, settings, workers=count) for count in workers]
    for node in nodes:
        node.broken = broken
    try:
        await asyncio.gather(*[node.start() for node in nodes])
        yield House(redis, postgres, database, nodes)
        for node in nodes:
            code = await node.stop()
            assert code == 0, f"exit code {code}:\n{node.log}"
    finally:
        for node in nodes:
            if node.running:
                await node.kill()
        postgres.drop_database(database)
