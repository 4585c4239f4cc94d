"""A client that behaves as PROTOCOL.md asks, and holds the server to it.

It resumes with its cursor on any node, repeats what was not acked under the same id and in order,
comes back when it is told to, and gives up a socket that fell silent. Whatever it can see to be
wrong by itself goes into the book at once. The checker makes these, and reads their screens.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.faults.findings import Book, Kind, Line, Said

# Seconds between two pings, and without an answer until the socket is given up. Impatient: a
# frozen node should be left within the length of a freeze, at least sometimes.
PING_INTERVAL = 0.5
PING_PATIENCE = 2.5
# Seconds to connect, the welcome included, before another node is tried.
CONNECT_PATIENCE = 3.0
# Seconds that our own close may take; the server may be frozen.
CLOSE_PATIENCE = 0.2
# Seconds without an answer, on a socket that answers pings, that are a fault. A statement may
# take 5 s, and a batch waits for the one before it.
ANSWER_LIMIT = 20.0
# Frames that are read ahead: who dozes lets the rest wait in the network.
MAX_QUEUE = 2
# Messages under way on one connection; the rest waits here.
WINDOW = 8
# Seconds between two attempts, at random up to this: nodes come and go within a second.
PAUSE = 0.4
# Seconds of pause of a client that was told to come back later, without being told when.
LONG_PAUSE = 1.0

# Codes after which a client may come back, and which a fault around the server can cause.
NORMAL, GONE, ABNORMAL, FAULT, RESTART, LATER = 1000, 1001, 1006, 1011, 1012, 1013


class Talker:
    """One user in one room."""

    def __init__(
        self,
        name: str,
        room: str,
        token: str,
        nodes: Sequence[str],
        book: Book,
        *,
        home: int,
        seed: int,
    ) -> None:
        self.name = name
        self.room = room
        self.screen: list[Line] = []
        # Of the newest ack of each message.
        self.acks: dict[str, int] = {}
        # What was said and not acked, in order.
        self.unacked: dict[str, Said] = {}
        self.epoch: str | None = None
        # How often a socket was opened after the first time, and when.
        self.reconnects: list[float] = []
        # How sockets ended: when, and the code; those we ended on purpose are not here.
        self.closes: list[tuple[float, int]] = []
        self.connected = False
        # When it last began to doze: it reads no acks then, and soon says nothing more.
        self.dozed = -1.0
        # The node that it is connected to.
        self.at: str | None = None
        self._token = token
        self._nodes = nodes
        self._book = book
        # The node to try next; it changes when an attempt fails, or when the talker moves on.
        self._node = home
        self._random = random.Random(f"{seed}/{name}")
        self._socket: ClientConnection | None = None
        self._opened = False
        self._leaving = False
        # Set where we end the socket ourselves.
        self._on_purpose = False
        # Set while it reads.
        self._awake = asyncio.Event()
        self._awake.set()
        # Set where the connection breaks after the next send.
        self._cutting = False
        # Ids that await their answer on this connection, by the number of the frame.
        self._in_flight: dict[str, int] = {}
        self._frames = 0
        # The last message of this connection that was new to the log: its frame and seq.
        self._newest = (0, 0)
        # When the next send may go out (loop time), and the bell for it.
        self._not_before = 0.0
        self._bell = asyncio.Event()
        self._seqs: dict[str, int] = {}
        # Seconds after which the server wants us back.
        self._come_back: float | None = None
        # The code that `closing` announced on this connection.
        self._announced: int | None = None
        self._count = 0

    # --- What the checker calls

    @property
    def last(self) -> int:
        """The seq of the newest message on the screen."""
        return self.screen[-1].seq if self.screen else 0

    @property
    def port(self) -> int | None:
        """Our end of the connection."""
        return self._socket.local_address[1] if self._socket is not None else None

    def say(self, more: str = "") -> None:
        """Say something, soon and once."""
        self._count += 1
        id = f"{self.name}-{self._count}-{self._random.getrandbits(64):x}"
        text = f"{self.name} says {self._count}{more}"
        said = Said(id, text, self.room, self.name, self._book.now)
        self._book.said[id] = said
        self.unacked[id] = said
        self._bell.set()

    def move(self) -> None:
        """Leave, and come back at once at the next node."""
        if self._socket is not None:
            self._node += 1
            self._on_purpose = True
            self._socket.transport.abort()

    def cut(self) -> None:
        """Break the connection, as a network does, between a send and its ack."""
        if self._socket is not None:
            self._cutting = True
            self.say()

    def doze(self) -> None:
        """Read nothing more, until `wake`; a socket that takes no more pings is given up."""
        self.dozed = self._book.now
        self._awake.clear()
        if self._socket is not None:
            # Else it would still take in a frame or two, and one can hold all that is said.
            self._socket.transport.pause_reading()

    def wake(self) -> None:
        self._awake.set()
        if self._socket is not None:
            self._socket.transport.resume_reading()

    async def run(self) -> None:
        """Be there, until `leave`."""
        while not self._leaving:
            self._come_back = None
            try:
                await self._sit()
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
                self._node += 1
                self._come_back = self._random.uniform(0, PAUSE)
                if isinstance(error, InvalidStatus):
                    self._refused(error)
            if self._come_back and not self._leaving:
                # What the server asked for, or the pause between two attempts of a client.
                await asyncio.sleep(self._come_back)

    async def leave(self) -> None:
        self._leaving = True
        if self._socket is not None:
            self._on_purpose = True
            await self._socket.close()

    # --- One connection

    def _url(self, node: str) -> str:
        query = {"token": self._token, "since": str(self.last)}
        if self.epoch is not None:
            query["epoch"] = self.epoch
        return f"{node}/ws/chat/{self.room}/?{urlencode(query)}"

    async def _sit(self) -> None:
        node = self._nodes[self._node % len(self._nodes)]
        async with connect(
            self._url(node),
            compression=None,
            proxy=None,
            max_size=None,
            max_queue=MAX_QUEUE,
            open_timeout=CONNECT_PATIENCE,
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_PATIENCE,
            close_timeout=CLOSE_PATIENCE,
        ) as socket:
            self._on_purpose = self._cutting = False
            self._announced = None
            sending: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(CONNECT_PATIENCE):
                    first = json.loads(await socket.recv())
                self._socket, self.at = socket, node
                if first["type"] == "welcome":
                    self._welcome(first)
                    sending = asyncio.create_task(self._send(socket), name=f"{self.name} sends")
                else:
                    self._take(first)
                while True:
                    await self._awake.wait()
                    self._take(json.loads(await socket.recv()))
            except ConnectionClosed as closed:
                self._closed(closed)
            finally:
                self._socket = self.at = None
                self.connected = False
                if sending is not None:
                    sending.cancel()
                    await asyncio.wait([sending])

    def _welcome(self, frame: dict[str, Any]) -> None:
        if self._opened:
            self.reconnects.append(self._book.now)
        self._opened = True
        self.connected = True
        self._in_flight.clear()
        self._frames, self._newest, self._not_before = 0, (0, 0), 0.0
        if not frame["resumed"]:
            self._find(
                Kind.NOT_RESUMED,
                f"since={self.last} at node {self._node % len(self._nodes)}, whose welcome said"
                f" first_seq {frame['first_seq']}, last_seq {frame['last_seq']}, epoch"
                f" {'the same' if frame['epoch'] == self.epoch else 'another'}",
            )
            self.screen.clear()
            self._seqs.clear()
        self.epoch = frame["epoch"]
        self._bell.set()

    def _closed(self, closed: ConnectionClosed) -> None:
        code = closed.rcvd.code if closed.rcvd is not None else ABNORMAL
        if self._on_purpose:
            return
        self.closes.append((self._book.now, code))
        due = code if code in (RESTART, LATER) else None
        if code != ABNORMAL and self._announced != due:
            self._find(Kind.FAREWELL, f"closed with {code}, announced was {self._announced}")
        if code == LATER and self._come_back is None:
            self._come_back = LONG_PAUSE
        if code not in (NORMAL, GONE, ABNORMAL, FAULT, RESTART, LATER):
            self._find(Kind.REFUSED, f"closed with {code}")
            self._come_back = LONG_PAUSE
        if code in (ABNORMAL, FAULT, LATER):
            self._node += 1
            self._come_back = self._come_back or self._random.uniform(0, PAUSE)

    def _refused(self, error: InvalidStatus) -> None:
        status = error.response.status_code
        after = error.response.headers.get("Retry-After")
        if status == 503 and after is not None:
            self._come_back = float(after)
        else:
            self._find(Kind.REFUSED, f"the handshake got HTTP {status}")

    async def _send(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionClosed):
            while True:
                self._bell.clear()
                # In the order they were said: a repeat goes out before what is newer.
                waiting = [one for one in self.unacked.values() if one.id not in self._in_flight]
                pause = self._not_before - loop.time()
                if pause > 0:
                    await asyncio.sleep(pause)  # the server asked for it
                    continue
                for said in waiting[: WINDOW - len(self._in_flight)]:
                    self._frames += 1
                    self._in_flight[said.id] = self._frames
                    if said.sent is None:
                        said.sent = self._book.now
                    await socket.send(
                        json.dumps({"type": "send", "id": said.id, "text": said.text})
                    )
                if self._cutting:
                    socket.transport.abort()
                    return
                try:
                    async with asyncio.timeout(ANSWER_LIMIT):
                        await self._bell.wait()
                except TimeoutError:
                    if self._in_flight:
                        self._find(Kind.UNANSWERED, f"{sorted(self._in_flight)}")
                        socket.transport.abort()
                        return

    # --- Frames

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind == "messages":
            for entry in frame["messages"]:
                self._show(entry)
        elif kind == "ack":
            self._acked(frame)
        elif kind == "closing":
            self._announced, self._come_back = frame["code"], frame["reconnect_after"]
        elif kind == "error":
            self._error(frame)

    def _show(self, entry: dict[str, Any]) -> None:
        line = Line(entry["seq"], entry["id"], entry["text"])
        said = self._book.said.get(line.id)
        if said is None or (said.text, said.sender) != (line.text, entry["sender"]["name"]):
            self._find(Kind.STRANGER, f"{entry}")
            return
        if line.id in self._seqs:
            self._find(Kind.REPEAT, f"{line} was shown as {self._seqs[line.id]} before")
            return
        if line.seq <= self.last:
            self._find(Kind.DISORDER, f"{line} came after {self.last}")
        elif self.screen and line.seq > self.last + 1:
            self._find(Kind.GAP, f"{line} came after {self.last}")
        elif not self.screen and line.seq != 1 and self.epoch is None:
            self._find(Kind.GAP, f"{line} came first")
        # The same words as in the book: a long run shows each message to many.
        self.screen.append(Line(line.seq, said.id, said.text))
        self._seqs[said.id] = line.seq
        said.screens += 1
        said.seen_before, said.seen = said.seen, self._book.now
        if self.acks.get(said.id, line.seq) != line.seq:
            self._find(Kind.WRONG_ACK, f"{line} was acked as {self.acks[said.id]}")

    def _acked(self, frame: dict[str, Any]) -> None:
        id, seq = frame["id"], frame["seq"]
        said = self._book.said.get(id)
        if said is None or said.sender != self.name:
            self._find(Kind.STRANGER, f"an ack of {id}, which this user never said")
            return
        number = self._in_flight.pop(id, 0)
        if seq != self.acks.get(id, seq):
            self._find(Kind.WRONG_ACK, f"{id}: {seq}, and {self.acks[id]} before")
        elif seq != self._seqs.get(id, seq):
            self._find(Kind.WRONG_ACK, f"{id}: {seq}, and the screen says {self._seqs[id]}")
        elif id in self.acks and not frame["duplicate"]:
            self._find(Kind.WRONG_ACK, f"{id} was acked before, and now again as new")
        if number and not frame["duplicate"]:
            if (number > self._newest[0]) != (seq > self._newest[1]):
                self._find(
                    Kind.ORDER,
                    f"frame {number} became {seq}, frame {self._newest[0]} {self._newest[1]}",
                )
            self._newest = max(self._newest, (number, seq))
        self.acks[id] = seq
        if said.acked is None:
            said.acked = self._book.now
        self.unacked.pop(id, None)
        self._bell.set()

    def _error(self, frame: dict[str, Any]) -> None:
        if frame["code"] != "unavailable" or frame.get("retry_after") is None:
            self._find(Kind.REFUSED, f"{frame}")
        self._in_flight.pop(frame.get("id", ""), None)
        pause = frame.get("retry_after") or LONG_PAUSE
        self._not_before = asyncio.get_running_loop().time() + pause
        self._bell.set()

    def _find(self, kind: Kind, detail: str) -> None:
        self._book.find(kind, f"{self.name} in {self.room}", detail)
