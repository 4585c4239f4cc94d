"""The live layer under test, without HTTP; people.py talks to the whole program.

`node` is one process with all its real parts: log, writer, hub and relay. `Bells` stands between
nodes where a bell must be lost, doubled, late or out of order on demand. `Guest` is a member that
keeps what it was sent.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from chat.errors import Reset, Unavailable
from chat.live.cursor import Cursor
from chat.live.hub import Hub
from chat.live.relay import Relay
from chat.live.room import Room
from chat.live.tasks import Tasks, stop
from chat.log.database import Database
from chat.log.heads import Heads
from chat.log.repository import Repository, Stored
from chat.log.statements import Draft
from chat.log.writer import Writer
from chat.protocol import CloseCode, Entry, Person, SharedText
from tests.relays import LIMIT

MARIA = Person(1, "maria")
# Seconds between two looks at a log that was away; short, so that tests need not wait.
READ_PAUSE = 0.01

_ids = itertools.count(1)


def draft(room_id: int, text: str = "hola", *, sender: Person = MARIA) -> Draft:
    """Return a message that is not stored yet, with an id of its own."""
    return Draft(room_id, f"id-{next(_ids)}", sender, None, text)


def entry(seq: int, size: int = 160) -> Entry:
    """Return a message as logs and relays carry it, `size` bytes long."""
    head = (
        f'{{"seq":{seq},"id":"c-{seq}","sender":{{"id":1,"name":"maria"}},"receiver":null,"text":"'
    )
    tail = '","sent_at":"2026-11-24T10:00:00.000Z"}'
    text = head + "x" * (size - len(head) - len(tail)) + tail
    return Entry(seq, text, len(text))


def run(first: int, last: int) -> list[Entry]:
    """Return the messages `first` … `last`."""
    return [entry(seq) for seq in range(first, last + 1)]


def seqs_of(frame: str) -> list[int]:
    """Return the seqs of a `messages` frame."""
    content = json.loads(frame)
    assert content["type"] == "messages"
    return [message["seq"] for message in content["messages"]]


class Log(Repository):
    """A repository that counts its reads, can be away, and can answer late."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        # What was read: the seq after which, or before which, by the kind of the read.
        self.reads: list[int] = []
        self.reads_before: list[int | None] = []
        # The rooms of each `heads`, once it was read; while `gate` is cleared the answer waits.
        self.looks: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = False

    async def read(self, room_id: int, after: int, limit: int) -> list[Entry]:
        self.reads.append(after)
        self._check()
        return await super().read(room_id, after, limit)

    async def read_before(self, room_id: int, before: int | None, limit: int) -> list[Entry]:
        self.reads_before.append(before)
        self._check()
        return await super().read_before(room_id, before, limit)

    async def heads(self, room_ids: Sequence[int], since: int) -> Heads:
        self._check()
        answer = await super().heads(room_ids, since)
        self.looks.append(sorted(room_ids))
        await self.gate.wait()
        return answer

    def _check(self) -> None:
        if self.away:
            raise Unavailable from OSError("away")


class Bells:
    """What nodes announce to each other, kept until the test lets it ring."""

    def __init__(self) -> None:
        self.relays: list[HeldRelay] = []
        # Announcements in the order they came, as (channel, text), and control texts.
        self.held: list[tuple[str, str]] = []
        self.told: list[str] = []
        # What `lost` says of all relays, and whether they confirm subscriptions.
        self.lost = False
        self.confirming = asyncio.Event()
        self.confirming.set()

    def ring(self, *places: int) -> None:
        """Deliver these of the held announcements, in this order, to all nodes."""
        for place in places:
            self.send(*self.held[place])

    def tell_all(self) -> None:
        """Let all processes hear the control texts that were said so far."""
        told, self.told = self.told, []
        for text in told:
            for relay in self.relays:
                relay._on_control(text)

    def send(self, channel: str, text: str) -> None:
        for relay in self.relays:
            relay.hear(channel, text)


class HeldRelay(Relay):
    """A relay that keeps its announcements back; what it hears takes the usual way."""

    def __init__(
        self,
        bells: Bells,
        *,
        process: str,
        on_gap: Callable[[str], None],
        on_control: Callable[[str], None],
    ) -> None:
        super().__init__(
            "memory://", prefix="test", process=process, on_gap=on_gap, on_control=on_control
        )
        self._bells = bells
        bells.relays.append(self)

    @property
    def lost(self) -> bool:
        return self._bells.lost

    def publish(self, channel: str, text: str) -> None:
        self._bells.held.append((channel, text))

    def tell(self, text: str) -> None:
        self._bells.told.append(text)

    async def confirmed(self, channel: str) -> bool:
        await self._bells.confirming.wait()
        return await super().confirmed(channel)

    def hear(self, channel: str, text: str) -> None:
        super().publish(channel, text)


class Guest:
    """A member that takes frames as a connection does, and keeps them."""

    def __init__(
        self,
        hub: Hub,
        room: Room,
        since: int | None = None,
        epoch: str | None = None,
        *,
        user_id: int = MARIA.id,
        sid: str | None = None,
    ) -> None:
        self.user_id = user_id
        self.person = Person(user_id, f"user {user_id}")
        # Frames that may be missed, in the order they came.
        self.asides: list[dict[str, Any]] = []
        self.sid = sid
        self.cursor = Cursor(room, since, epoch)
        self.frames: list[SharedText] = []
        # The codes that it was ended with, in order; the first one counts.
        self.ended: list[CloseCode] = []
        # The loop times at which it was tended.
        self.tended: list[float] = []
        self._hub = hub
        self._bell = asyncio.Event()
        assert hub.enter(room, self)
        self._writing = asyncio.create_task(self._write(), name="guest")

    @property
    def seqs(self) -> list[int]:
        return [seq for frame in self.frames for seq in seqs_of(frame)]

    def wake(self) -> None:
        self._bell.set()

    def end(self, code: CloseCode, reason: str) -> None:
        self.ended.append(code)
        self._bell.set()

    def aside(self, key: str, text: str, *, replace: bool = False) -> bool:
        self.asides.append(json.loads(text))
        return True

    def tend(self, moment: float) -> int | None:
        self.tended.append(moment)
        return None

    async def leave(self) -> None:
        """Go, and raise what the writing task failed of, if it did."""
        self._hub.leave(self.cursor.room, self)
        await stop([self._writing])
        if not self._writing.cancelled():
            self._writing.result()

    async def _write(self) -> None:
        while not self.ended:
            self._bell.clear()
            try:
                frame = await self.cursor.take()
            except Reset:
                self.end(CloseCode.RESTART, "reset")
                return
            except Unavailable:
                await asyncio.sleep(READ_PAUSE)
                continue
            if frame is None:
                await self._bell.wait()
            else:
                self.frames.append(frame)


class Node:
    """One process' log and live layer, without HTTP. Made by `node`."""

    def __init__(self, log: Log, relay: Relay, hub: Hub, writer: Writer) -> None:
        self.log = log
        self.relay = relay
        self.hub = hub
        self.writer = writer
        self.tasks = Tasks()
        self.guests: list[Guest] = []

    async def room(self, name: str = "lobby") -> Room:
        """Return the open room, made if new."""
        return await self.hub.open(await self.log.make_room(name))

    async def join(self, name: str = "lobby", since: int | None = None, **more: Any) -> Guest:
        """Enter the room; the guest leaves with the node at the latest."""
        guest = Guest(self.hub, await self.room(name), since, **more)
        self.guests.append(guest)
        return guest

    async def say(self, *texts: str, name: str = "lobby") -> list[Stored]:
        """Store these messages by one commit, which announces them."""
        row = await self.log.make_room(name)
        futures = [self.writer.append(draft(row.id, text)) for text in texts]
        return list(await asyncio.gather(*futures))


@asynccontextmanager
async def node(
    database_url: str, relay: str | Bells = "memory://", process: str = "node-a"
) -> AsyncIterator[Node]:
    """Open the live layer of one process, its ticker included; close it as the app does."""
    database = Database(database_url)
    await database.open()
    log = Log(database)
    hub: Hub
    calls: dict[str, Any] = {
        "process": process,
        "on_gap": lambda channel: hub.on_gap(channel),
        "on_control": lambda text: hub.on_control(text),
    }
    if isinstance(relay, Bells):
        real: Relay = HeldRelay(relay, **calls)
    else:
        real = Relay(relay, prefix=await log.deployment(), **calls)
    hub = Hub(log, real, process)
    opened = Node(log, real, hub, Writer(log, hub.announce))
    await real.open()
    opened.tasks.start("writer", opened.writer.run)
    opened.tasks.start("ticker", hub.tick)
    try:
        yield opened
    finally:
        log.gate.set()
        async with asyncio.timeout(LIMIT):
            for guest in opened.guests:
                await guest.leave()
            await hub.close()
            await opened.tasks.close()
            await real.close()
            await database.close()
