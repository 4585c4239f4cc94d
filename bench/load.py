"""The load: many members of some rooms, in one process, checking all.

It owns the sockets and the bookkeeping of what arrived; it does not know which server it talks
to beyond the two ways of checking below. `step.py` has the schedule, `figures.py` the sizes.

Every frame is looked at, but cheaply. Members at the same place get the very same bytes, so a
frame is read once per room and afterwards only compared; and of a frame only the first and the
last seq, the number of entries, and the ids of marked messages are read, nothing is parsed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

# About a line of talk. Both servers get the same.
TEXT = "It is past nine and nobody wants to go home; somebody orders another round of coffee."
# Handshakes under way at once: keeps the server busy and is far below any listen backlog.
HANDSHAKES_AT_ONCE = 32
# Seconds for one handshake with its welcome: generous, for a server that is still digesting.
JOIN_TIMEOUT = 30.0
# Seconds between two looks at whether everything has arrived.
LOOK_INTERVAL = 0.005
# Different `error` texts kept for the report.
ERRORS_KEPT = 3
# Frames remembered per room for comparing; members rarely spread over more.
KNOWN_FRAMES = 64
# Bytes that tell frames of a room apart, mostly: type, room and first seq.
HEAD = 80

SEQ, MARK, ID = b'"seq":', b'"id":"m', b'"id":"'
DIGITS = 9


async def until(happened: Callable[[], bool], seconds: float) -> bool:
    """Wait until it happened, `seconds` at most; say whether it did."""
    limit = perf_counter() + seconds
    while not happened():
        if perf_counter() > limit:
            return False
        await asyncio.sleep(LOOK_INTERVAL)
    return True


class Batch(NamedTuple):
    """What one `messages` frame holds."""

    payload: bytes
    first: int
    last: int
    entries: int
    # Moments at which the marked messages in it were due.
    due: tuple[float, ...]


@dataclass
class Room:
    name: str
    sent: int = 0
    known: dict[tuple[int, bytes], Batch] = field(default_factory=dict)


@dataclass
class Crowd:
    """Members of some rooms, and what they sent and heard."""

    rooms: list[Room]
    # Seconds of processor time that the server has used so far.
    cpu: Callable[[], float]
    members: list[Member] = field(default_factory=list)
    # Messages numbered so far, over all steps.
    number: int = 0
    # Schedule of the step under way: message n is due at start + (n - base) / rate.
    start: float = 0.0
    base: int = 0
    rate: float = 1.0
    delivered: int = 0
    acked: int = 0
    last_arrival: float = 0.0
    latencies: list[float] = field(default_factory=list)
    dues: list[float] = field(default_factory=list)
    # Entries out of order, missing in between, or seen twice.
    faults: int = 0
    # The different texts of `error` frames, and how many there were.
    errors: list[str] = field(default_factory=list)
    refused: int = 0
    # Sockets that ended without being asked to.
    gone: int = 0
    closing: bool = False

    def due(self, number: int) -> float:
        return self.start + (number - self.base) / self.rate

    @property
    def expected(self) -> int:
        """Deliveries that make it whole: each message of a room, to each of its members."""
        return sum(room.sent for room in self.rooms) * self.size

    @property
    def size(self) -> int:
        return len(self.members) // len(self.rooms)

    async def close(self) -> None:
        self.closing = True
        for member in self.members:
            if member.transport is not None:
                member.transport.disconnect()
        for member in self.members:
            if member.transport is not None:
                await member.transport.wait_disconnected()


class Member(WSListener):
    """One socket in one room. Subclasses know how a server's frames are checked."""

    def __init__(self, crowd: Crowd, room: Room) -> None:
        self.crowd = crowd
        self.room = room
        # Entries received, over all steps.
        self.count = 0
        self.joined = asyncio.get_running_loop().create_future()
        # Set by the handshake.
        self.transport: WSTransport | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if not self.crowd.closing:
            self.crowd.gone += 1
        if not self.joined.done():
            # The handshake is None, whatever its stub says, where the peer just hung up.
            received = getattr(transport.close_handshake, "recv", None)
            why = f"{received.code} {received.reason}" if received else "no close frame"
            self.joined.set_exception(ConnectionError(f"refused before welcome: {why}"))

    def say(self, number: int, marked: bool) -> None:
        assert self.transport is not None
        mark = "m" if marked else "-"
        frame = f'{{"type":"send","id":"{mark}{number:0{DIGITS}}","text":"{TEXT}"}}'
        self.transport.send(WSMsgType.TEXT, frame.encode())
        self.room.sent += 1

    @property
    def open(self) -> bool:
        return self.transport is not None and not self.transport.is_disconnected


class LogMember(Member):
    """A member of the chat: joined with `welcome`, checked by seq (PROTOCOL, `messages`)."""

    last = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is not WSMsgType.TEXT:
            return
        now = perf_counter()
        payload = frame.get_payload_as_bytes()
        if payload.startswith(b'{"type":"messages"'):
            self.on_messages(payload, now)
        elif payload.startswith(b'{"type":"ack"'):
            self.crowd.acked += 1
        else:
            self.on_other(payload, now)

    def on_messages(self, payload: bytes, now: float) -> None:
        room, crowd = self.room, self.crowd
        key = (len(payload), payload[:HEAD])
        batch = room.known.get(key)
        if batch is None or batch.payload != payload:
            batch = read(payload, crowd)
            if len(room.known) >= KNOWN_FRAMES:
                room.known.clear()
            room.known[key] = batch
        whole = batch.first == self.last + 1 and batch.last - batch.first + 1 == batch.entries
        if not whole:
            crowd.faults += 1
        self.last = batch.last
        self.count += batch.entries
        crowd.delivered += batch.entries
        crowd.last_arrival = now
        if batch.due:
            crowd.dues += batch.due
            crowd.latencies += [now - due for due in batch.due]

    def on_other(self, payload: bytes, now: float) -> None:
        fields = json.loads(payload)
        match fields["type"]:
            case "welcome":
                # Only fresh rooms are used, but a room may also be one that spoke before.
                self.last = fields["last_seq"]
                self.joined.set_result(None)
            case "messages":
                self.on_messages(payload, now)
            case "ack":
                self.crowd.acked += 1
            case "error":
                self.crowd.refused += 1
                text = f"{fields['code']}: {fields['detail']}"
                if text not in self.crowd.errors and len(self.crowd.errors) < ERRORS_KEPT:
                    self.crowd.errors.append(text)


class EchoMember(Member):
    """A member of the yardstick: joined with the handshake; each sender's numbers must rise."""

    def __init__(self, crowd: Crowd, room: Room) -> None:
        super().__init__(crowd, room)
        # The last number heard, by the sender's place in the room.
        self.heard: dict[int, int] = {}

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        self.joined.set_result(None)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is not WSMsgType.TEXT:
            return
        now = perf_counter()
        payload = frame.get_payload_as_bytes()
        crowd = self.crowd
        at = payload.index(ID) + len(ID)
        number = int(payload[at + 1 : at + 1 + DIGITS])
        turns = len(crowd.members)
        # The members speak in turn, so each speaks every `turns` numbers.
        speaker = number % turns
        if number != self.heard.get(speaker, speaker - turns) + turns:
            crowd.faults += 1
        self.heard[speaker] = number
        self.count += 1
        crowd.delivered += 1
        crowd.last_arrival = now
        if payload[at] == ord("m"):
            due = crowd.due(number)
            crowd.dues.append(due)
            crowd.latencies.append(now - due)


def read(payload: bytes, crowd: Crowd) -> Batch:
    """Read what matters of a `messages` frame. TEXT is ours, so it cannot hold these marks."""
    first = payload.index(SEQ) + len(SEQ)
    last = payload.rindex(SEQ) + len(SEQ)
    due = []
    at = payload.find(MARK)
    while at >= 0:
        at += len(MARK)
        due.append(crowd.due(int(payload[at : at + DIGITS])))
        at = payload.find(MARK, at)
    return Batch(
        payload,
        int(payload[first : payload.index(b",", first)]),
        int(payload[last : payload.index(b",", last)]),
        payload.count(SEQ),
        tuple(due),
    )


async def gather_crowd(
    urls: Callable[[str, int], str],
    member: type[Member],
    cpu: Callable[[], float],
    names: Sequence[str],
    size: int,
) -> Crowd:
    """Connect `size` members to each room; returns when the last one has joined."""
    crowd = Crowd([Room(name) for name in names], cpu)
    slots = asyncio.Semaphore(HANDSHAKES_AT_ONCE)

    async def join(place: int) -> None:
        room = crowd.rooms[place % len(crowd.rooms)]
        listener = member(crowd, room)
        crowd.members.append(listener)
        async with slots, asyncio.timeout(JOIN_TIMEOUT):
            await ws_connect(
                lambda: listener,
                urls(room.name, place),
                websocket_handshake_timeout=JOIN_TIMEOUT,
            )
            await listener.joined

    async with asyncio.TaskGroup() as group:
        for place in range(len(names) * size):
            group.create_task(join(place))
    return crowd
