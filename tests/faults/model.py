"""What the state machine moves: a process, its database and a member, in the machine's hands.

The log, the writer, the hub and the deliveries are real. Between them, faults: the database is
away or late, bells are kept back, a socket takes a frame when it is told to, and the clock stands
still until it is moved. `world.py` puts two processes together and judges them.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any, TypeVar

import pytest
from databases.core import Connection

from chat.errors import IdConflict, Unavailable
from chat.live.cursor import Cursor
from chat.live.hub import Hub
from chat.live.room import Room
from chat.live.tasks import Tasks
from chat.log import repository
from chat.log.database import Database, Row
from chat.log.heads import Heads
from chat.log.repository import Repository, Stored
from chat.log.statements import Draft
from chat.log.writer import Writer
from chat.protocol import Entry, Person, fitting
from chat.web.delivery import Delivery
from tests.live import Bells, HeldRelay

# The bounds of the product, so small that a few messages reach beyond each of them.
PAGE = 4  # messages in a page of the log
TAIL_LOAD = 5  # messages read when a room opens
TAIL_COUNT = 6  # messages in a tail
NEWEST = 3  # messages that a newcomer gets
LINGER = 2.0  # seconds that an empty room stays open
ANNOUNCEMENT = 1_400  # bytes: ten short messages, or two that are long
FRAME = 700  # bytes of messages in a frame: one that is long, or five that are short

SENDERS = (Person(1, "maria"), Person(2, "juan"))

T = TypeVar("T")


def use_small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "room.PAGE_MAX": PAGE,
        "room.TAIL_LOAD": TAIL_LOAD,
        "hub.ROOM_LINGER": LINGER,
        "announcement.MAX_ANNOUNCEMENT": ANNOUNCEMENT,
        "tail.TAIL_COUNT": TAIL_COUNT,
        "cursor.PAGE_DEFAULT": NEWEST,
    }.items():
        monkeypatch.setattr(f"chat.live.{name}", value)
    for name in ("room", "cursor"):
        monkeypatch.setattr(f"chat.live.{name}.fitting", lambda entries: fitting(entries, FRAME))


class Clockwork(asyncio.SelectorEventLoop):
    """A loop whose clock stands still until it is moved: no time limit ever meets by chance."""

    def __init__(self) -> None:
        self.moment = 1_000.0
        super().__init__()

    def time(self) -> float:
        return self.moment

    @property
    def resting(self) -> bool:
        """Whether nothing is to be done but to wait for timers and for the database."""
        ready: Sequence[Any] = self._ready  # type: ignore[attr-defined]
        return not ready

    @property
    def next_timer(self) -> float | None:
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return min((one.when() for one in timers if not one.cancelled()), default=None)


class Traffic:
    """What is under way between all processes and the database."""

    def __init__(self) -> None:
        self.count = 0
        self.moved = asyncio.Event()
        # Held while SQLite is used: threads would have their own, ever changing order.
        self.turn = asyncio.Lock()
        # How often something was written, so that nobody reads what cannot have changed.
        self.changes = 0


class Watched(Database):
    """A database whose uses are counted, so that the machine knows when they are over."""

    def __init__(self, url: str, traffic: Traffic) -> None:
        super().__init__(url)
        self._traffic = traffic

    async def open(self) -> None:
        async with self._used():
            await super().open()

    async def close(self) -> None:
        async with self._used():
            await super().close()

    @asynccontextmanager
    async def connection(self, *limit: float) -> AsyncIterator[Connection]:
        async with self._used(), super().connection(*limit) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self, *limit: float) -> AsyncIterator[Any]:
        try:
            async with self._used(), super().transaction(*limit) as raw:
                yield raw
        finally:
            self._traffic.changes += 1

    async def change(self, sql: str, values: dict[str, Any] | None = None) -> list[Row]:
        try:
            async with self._used():
                return await super().change(sql, values)
        finally:
            self._traffic.changes += 1

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        # Only entering and leaving go to the database.
        async with self._used(), super().held():
            self._end_use()
            try:
                yield
            finally:
                await self._begin_use()

    @asynccontextmanager
    async def _used(self) -> AsyncIterator[None]:
        await self._begin_use()
        try:
            yield
        finally:
            self._end_use()

    async def _begin_use(self) -> None:
        if self.sqlite:
            await self._traffic.turn.acquire()
        self._traffic.count += 1

    def _end_use(self) -> None:
        if self.sqlite:
            self._traffic.turn.release()
        self._traffic.count -= 1
        self._traffic.moved.set()


class Op(Enum):
    """What a process asks of the log."""

    FIND = "find"
    OPEN = "open"
    READ = "read"
    LOOK = "look"
    APPEND = "append"


class Fault(Enum):
    """What becomes of one such question."""

    AWAY = "never asked: the database is away"
    UNHEARD = "done, but the answer is lost"
    BROKEN = "done, but the answer is lost with the connection"


class Log(Repository):
    """A log that can be away for one operation, or answer late."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.faults: dict[Op, Fault] = {}
        # Answers that are late, until they are released.
        self.late: dict[Op, asyncio.Event] = {}
        # How often each operation failed, and when it did last (loop time).
        self.failures: Counter[Op] = Counter()
        self.failed_at: dict[Op, float] = {}

    async def find_room(self, name: str) -> repository.Room | None:
        return await self._ask(Op.FIND, lambda: super(Log, self).find_room(name))

    async def read(self, room_id: int, after: int, limit: int) -> list[Entry]:
        return await self._ask(Op.READ, lambda: super(Log, self).read(room_id, after, limit))

    async def read_before(self, room_id: int, before: int | None, limit: int) -> list[Entry]:
        return await self._ask(
            Op.OPEN, lambda: super(Log, self).read_before(room_id, before, limit)
        )

    async def heads(self, room_ids: Sequence[int], since: int) -> Heads:
        return await self._ask(Op.LOOK, lambda: super(Log, self).heads(room_ids, since))

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | IdConflict | Unavailable]:
        return await self._ask(Op.APPEND, lambda: super(Log, self).append(drafts))

    def answer_late(self, op: Op) -> None:
        """From now on, answers to this are under way until they are released."""
        self.late.setdefault(op, asyncio.Event())

    def release(self, *ops: Op) -> None:
        """Let the late answers to these through, or to all."""
        for op in ops or Op:
            if op in self.late:
                self.late.pop(op).set()

    def recover(self) -> None:
        """Let no fault and no late answer be left."""
        self.faults.clear()
        self.release()

    async def _ask(self, op: Op, question: Callable[[], Awaitable[T]]) -> T:
        fault = self.faults.pop(op, None)
        if fault is Fault.AWAY:
            raise self._failure(op, OSError("away"))
        answer = await question()
        if op in self.late:
            await self.late[op].wait()
        if fault is Fault.BROKEN:
            raise self._failure(op, ConnectionResetError("cut"))
        if fault is Fault.UNHEARD:
            raise self._failure(op, OSError("unheard"))
        return answer

    def _failure(self, op: Op, cause: OSError) -> Unavailable:
        self.failures[op] += 1
        self.failed_at[op] = asyncio.get_running_loop().time()
        error = Unavailable()
        error.__cause__ = cause
        return error


# Called where a process commits: with the room's id, the epoch and the newest seq.
Told = Callable[["Process", int, str, int], None]


class Line(HeldRelay):
    """A relay that keeps its bells back, and drops them while it is lost."""

    def publish(self, channel: str, text: str) -> None:
        if not self.lost:
            super().publish(channel, text)


class Process:
    """One process' log and live layer, all real but for the faults in between."""

    def __init__(self, url: str, name: str, traffic: Traffic, bells: Bells, on_told: Told) -> None:
        self.name = name
        self.database = Watched(url, traffic)
        self.log = Log(self.database)
        self.relay = Line(
            bells,
            process=name,
            on_gap=lambda channel: self.hub.on_gap(channel),
            on_control=lambda text: self.hub.on_control(text),
        )
        self.hub = Hub(self.log, self.relay, name)
        self.writer = Writer(self.log, self._announce)
        self.tasks = Tasks()
        self.alive = False
        self._on_told = on_told

    async def start(self) -> None:
        await self.database.open()
        await self.relay.open()
        self.tasks.start("writer", self.writer.run)
        self.tasks.start("ticker", self.hub.tick)
        self.alive = True

    async def end(self) -> None:
        """Vanish: what was not committed or said by now never will be."""
        self.alive = False
        await self.tasks.close()
        await self.hub.close()
        await self.relay.close()
        await self.database.close()

    def _announce(self, room_id: int, epoch: str, entries: list[Entry]) -> None:
        self._on_told(self, room_id, epoch, entries[-1].seq)
        self.hub.announce(room_id, epoch, entries)


class Member:
    """A member whose socket takes a frame whenever the machine lets it."""

    def __init__(
        self, process: Process, room: Room, since: int | None, epoch: str | None, eager: bool
    ) -> None:
        self.person = SENDERS[0]
        self.user_id = self.person.id
        self.sid: str | None = None
        self.process = process
        self.cursor = Cursor(room, since, epoch)
        # As its welcome says.
        self.first_seq, self.last_seq = room.first_seq, room.tail.last
        self.start = self.cursor.seq
        self.delivery = Delivery(self._transmit, self.cursor, lambda: None)
        self.wake = self.delivery.wake
        self.end = self.delivery.end
        self.tend = self.delivery.tend
        self.aside = self.delivery.aside
        self.seen: list[dict[str, Any]] = []
        # How many of these were compared with the log.
        self.compared = 0
        # The code that its socket was closed with, once it was.
        self.code: int | None = None
        self.eager = eager
        self._turns = asyncio.Semaphore(0)
        self.writing = self.delivery.start()

    @property
    def settled(self) -> bool:
        return self.delivery.settled

    def pause(self) -> None:
        pass

    def read(self, eager: bool = False) -> None:
        """Take the next frame, or from now on all of them."""
        self.eager = self.eager or eager
        if self._turns.locked():
            self._turns.release()

    async def _transmit(self, event: dict[str, Any]) -> None:
        frame = json.loads(event.get("text", "{}"))
        told = frame.get("messages", [])
        if not self.eager and (told or "text" not in event):
            await self._turns.acquire()
        self.code = event.get("code")
        # At once, so that nobody who never gets further is sent the same for ever.
        seqs = [message["seq"] for message in told]
        last = self.start + len(self.seen)
        assert seqs == list(range(last + 1, last + 1 + len(seqs))), f"after {last} comes {seqs}"
        self.seen += told
