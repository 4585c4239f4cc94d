"""Two nodes, a Redis and a PostgreSQL, and every way to break one of them.

A `Fault` is one part, one way and how long; `House.breaking` is the context in which it lasts. The
checker runs schedules of them. Restarts run in threads: the clients must go on meanwhile. Without
servers, a house is what one gets without any setting: one node on SQLite.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from tests.people import API_KEY, ask, mint, until
from tests.servers import (
    ROOT,
    START_LIMIT,
    STOP_LIMIT,
    ChatServer,
    PostgresServer,
    RedisServer,
    free_port,
    launch,
)

# Threads that live as long as the process: a server ends with the thread that started it. As many
# as parts can come back at once.
_STARTERS = ThreadPoolExecutor(2, thread_name_prefix="starter")

Act = Callable[[], Coroutine[Any, Any, None]]
# What begins a fault and what ends it.
Way = tuple[Act, Act]

# Seconds that a node may take to end after a signal, or a worker after its parent.
DRAIN_PROMISE = 10.0
# Seconds that a token is good for: longer than any run.
TOKEN_LIFE = 86_400

# A variant of the program that tells how many tasks it has, and how it says so.
COUNTED = ("tests.faults.counted",)
TASKS = re.compile(r"^(\d+) tasks$", re.MULTILINE)

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
    tasks: int | None  # of asyncio; None where nobody counts them

    def __str__(self) -> str:
        tasks = "" if self.tasks is None else f", {self.tasks} tasks"
        return f"{self.megabytes:.1f} MB, {self.files} files, {self.threads} threads{tasks}"


class Node(ChatServer):
    """The program, or a variant of it: broken.py, counted.py."""

    # What Python runs as a module, with its arguments; without any, the product as it is.
    variant: Sequence[str] = ()

    def spawn(self, *arguments: str) -> None:
        if not self.variant:
            super().spawn(*arguments)
            return
        assert not self.running, "already started"
        env = {name: value for name, value in os.environ.items() if not name.startswith("CHAT_")}
        env |= {name: value for name, value in self.settings.items() if value is not None}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
        env["PYTHONUNBUFFERED"] = "1"
        command = [sys.executable, "-m", *self.variant, "serve"]
        command += ["--bind", f"127.0.0.1:{self.port}", "--workers", str(self.workers)]
        self.process = launch(
            [*command, *arguments],
            folder=self.folder,
            log=self.log_file,
            env=env,
            dies_by=signal.SIGTERM,
        )

    @property
    def family(self) -> list[psutil.Process]:
        """The parent first, then its workers."""
        return family(self.process)

    @property
    def crew(self) -> set[psutil.Process]:
        """The workers; without a parent, the process is the worker."""
        return set(self.family[1:] or self.family)

    async def come_back(self) -> None:
        """Start, and wait until all is there that it needs."""
        await self.start()
        await until(self._ready)

    async def _ready(self) -> bool:
        return (await ask(self, "GET", "/readyz")).status == 200

    async def tasks(self) -> int | None:
        """How many tasks its workers have; None where that cannot be asked (counted.py)."""
        if self.variant != COUNTED:
            return None
        crew, before = self.crew, len(TASKS.findall(self.log))
        for worker in crew:
            worker.send_signal(signal.SIGUSR1)
        await until(lambda: len(TASKS.findall(self.log)) == before + len(crew))
        return sum(map(int, TASKS.findall(self.log)[before:]))


class House:
    def __init__(
        self,
        nodes: Sequence[Node],
        database: str,
        redis: RedisServer | None,
        postgres: PostgresServer | None,
    ) -> None:
        self.nodes = nodes
        # The URL of the nodes' database.
        self.database = database
        self.redis = redis
        self.postgres = postgres
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

    async def rows(self, query: str) -> list[Any]:
        """Ask the database, past the nodes."""
        if self.postgres is None:
            with closing(sqlite3.connect(self.database.removeprefix("sqlite:///"))) as file:
                return file.execute(query).fetchall()
        connection = await asyncpg.connect(self.database)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    async def footprint(self, node: Node) -> Footprint:
        processes = node.family
        return Footprint(
            sum(one.memory_info().rss for one in processes) / 1e6,
            sum(one.num_fds() for one in processes),
            sum(one.num_threads() for one in processes),
            await node.tasks(),
        )

    async def ask_to_end(self, node: Node, number: signal.Signals = signal.SIGTERM) -> None:
        """End a node by a signal; it must end well, and in time."""
        began = time.monotonic()
        code = await node.stop(number)
        took = time.monotonic() - began
        if code != 0 or took > DRAIN_PROMISE:
            part = NODES[self.nodes.index(node)]
            self.complain(part, f"{number.name} ended it with {code} after {took:.1f} s")

    async def crash(self) -> None:
        """Kill every process at once, as where a machine loses its power."""
        processes = [one for node in self.nodes for one in node.family]
        for server in (self.redis, self.postgres):
            processes += family(server.process) if server is not None else []
        # All stand still before the first one dies: nobody sees another's end.
        for signal_all in (psutil.Process.suspend, psutil.Process.kill):
            for one in processes:
                with suppress(psutil.NoSuchProcess):
                    signal_all(one)
        for server in (self.redis, self.postgres):
            if server is not None:
                server.kill()
        for node in self.nodes:
            await node.kill()
        await until(lambda: not alive(processes))

    async def rise(self) -> None:
        """Start what `crash` ended."""
        for server in (self.postgres, self.redis):
            if server is not None:
                await _in_thread(server.start)()
        await asyncio.gather(*[node.start() for node in self.nodes])

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
        assert redis is not None, "this house has none"
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
        assert postgres is not None, "this house has none"
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

        killed: list[psutil.Process] = []

        async def kill_worker() -> None:
            killed[:] = node.family[1:2]
            for one in killed:
                one.kill()
            if not killed:  # the process is its own worker
                await node.kill()

        async def replaced() -> None:
            if not killed:
                await node.start()
                return
            try:
                await until(lambda: len(node.crew - set(killed)) == node.workers, START_LIMIT)
            except TimeoutError:
                self.complain(part, f"nobody took the place of worker {killed[0].pid}")

        async def stop() -> None:
            await self.ask_to_end(node)

        def each(action: str) -> Callable[[], None]:
            def act() -> None:
                for one in node.family:
                    with suppress(psutil.NoSuchProcess):
                        getattr(one, action)()

            return act

        match way:
            case "kill":
                return node.kill, node.start
            case "restart":
                return stop, node.start
            case "freeze":
                return _soon(each("suspend")), _soon(each("resume"))
            case "cut":
                return _soon(cut), _soon(cut)
            case "doze":
                return _soon(doze), _soon(self.wake)
            case _:
                return kill_worker, replaced

    async def _drop_redis(self) -> None:
        assert self.redis is not None
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


def family(process: subprocess.Popen[bytes] | None) -> list[psutil.Process]:
    """A process and all below it; nobody, where it is over."""
    if process is None or process.poll() is not None:
        return []
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run: one that nobody has buried yet is dead."""

    def runs(one: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(one.is_running() and one.status() != psutil.STATUS_ZOMBIE)
        return False

    return [one for one in processes if runs(one)]


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
    redis: RedisServer | None,
    postgres: PostgresServer | None,
    folder: Path,
    *,
    workers: Sequence[int] = (1, 1),
    broken: str | None = None,
    counted: bool = False,
) -> AsyncIterator[House]:
    """Open nodes on a new database of these servers, which may be broken meanwhile.

    Without servers all is left as it is without settings: SQLite, and no relay.
    """
    database = postgres.create_database() if postgres else f"sqlite:///{folder}/var/chat.db"
    settings: dict[str, str | None] = {
        "CHAT_DATABASE_URL": database if postgres else None,
        "CHAT_RELAY_URL": redis.url if redis else None,
        "CHAT_API_KEY": API_KEY,
        "CHAT_SEND_RATE": "off",
    }
    if postgres is None:
        settings["CHAT_SECRET_KEY"] = None
    ports: set[int] = set()
    while len(ports) < len(workers):
        ports.add(free_port())
    nodes = [
        Node(folder, settings, workers=count, port=port)
        for count, port in zip(workers, ports, strict=True)
    ]
    for node in nodes:
        node.variant = ("tests.faults.broken", broken) if broken else COUNTED if counted else ()
    try:
        await asyncio.gather(*[node.start() for node in nodes])
        yield House(nodes, database, redis, postgres)
        for node in nodes:
            code = await node.stop()
            assert code == 0, f"exit code {code}:\n{node.log}"
    finally:
        for node in nodes:
            if node.running:
                await node.kill()
        if postgres is not None:
            postgres.drop_database(database)
