"""The client for bots, as a talker who holds the server, and the client itself, to the protocol.

It does what `chat/client.py` does: resumes with its cursor, repeats what was not acked, comes back
when it is told to. Here it is watched while it does: what comes over a connection is judged frame
by frame, before the client sees it, and `screen` is what the client gave to its reader. Whatever
can be seen to be wrong goes into the book at once. The checker makes these, and compares screens.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from msgspec import UNSET

from chat.client import Patience, Refused, Room
from chat.link import GIVEN_UP, Link
from chat.outgoing import Frame, Messages
from chat.protocol import Ack, CloseCode, Closing, Error, Message, Welcome
from tests.faults.findings import Book, Kind, Line, Said

# Impatient: a frozen node should be left within the length of a freeze, at least sometimes, and
# nodes come and go within a second.
HASTY = Patience(
    welcome=3.0, close=0.2, ping_interval=0.5, ping=2.5, backoff_first=0.4, backoff_most=0.4
)
# Seconds without an answer, on a socket that answers pings, that are a fault. A statement may
# take 5 s, and a batch waits for the one before it.
ANSWER_LIMIT = 20.0

# How a socket ends that nobody closes; and the codes after which a client may come back, and which
# a fault around the server can cause.
ABNORMAL = 1006
RESTART, LATER = CloseCode.RESTART, CloseCode.TRY_LATER
BEARABLE = (CloseCode.NORMAL, CloseCode.GOING_AWAY, ABNORMAL, CloseCode.FAULT, RESTART, LATER)


class Talker(Room):
    """One user in one room, who goes from node to node."""

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
        super().__init__(nodes[0], token=token, since=0, patience=HASTY)
        if home % 2:
            # As simpler clients, which repeat also what they could find in the log.
            self._unsent.found = lambda message: None  # type: ignore[method-assign]
        self.name = name
        self.room = room
        self.screen: list[Line] = []
        # Of the newest ack of each message.
        self.acks: dict[str, int] = {}
        # What was said and not acked, in order.
        self.unacked: dict[str, Said] = {}
        # How often a socket was opened after the first time, and when.
        self.reconnects: list[float] = []
        # How sockets ended: when, and the code; those we ended on purpose are not here.
        self.closes: list[tuple[float, int]] = []
        # When it last began to doze: it reads no acks then, and soon says nothing more.
        self.dozed = -1.0
        self._dozing = False
        # The node that it is connected to.
        self.at: str | None = None
        self._nodes = nodes
        self._book = book
        # The node to try next; it changes when an attempt fails, or when the talker moves on.
        self._node = home
        self._random = random.Random(f"{seed}/{name}")
        self._count = 0
        # What was said before there was a room to say it in, and what is being sent.
        self._words: deque[Said] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        # The connection that there is, or is being made.
        self._watched: Watched | None = None
        # Where each message was when it was heard first.
        self._seqs: dict[str, int] = {}
        # The newest that was heard; None: the next one may be any.
        self._heard: int | None = 0

    # --- What the checker calls

    @property
    def last(self) -> int:
        """The seq of the newest message on the screen."""
        return self.screen[-1].seq if self.screen else 0

    @property
    def connected(self) -> bool:
        return self.at is not None

    @property
    def port(self) -> int | None:
        """Our end of the connection."""
        return self._watched.port if self._watched is not None else None

    def say(self, more: str = "") -> None:
        """Say something, soon and once."""
        self._count += 1
        id = f"{self.name}-{self._count}-{self._random.getrandbits(64):x}"
        text = f"{self.name} says {self._count}{more}"
        said = Said(id, text, self.room, self.name, self._book.now)
        self._book.said[id] = self.unacked[id] = said
        self._words.append(said)
        self._speak()

    def move(self) -> None:
        """Leave, and come back at once at the next node."""
        if self._watched is not None and self._watched.transport is not None:
            self._node += 1
            self._watched.hurried = self._watched.on_purpose = True
            self._watched.transport.abort()

    def cut(self) -> None:
        """Break the connection, as a network does, between a send and its ack."""
        if self._watched is not None:
            self._watched.cutting = True
            self.say()

    def doze(self) -> None:
        """Read nothing more, until `wake`; a socket that takes no more pings is given up."""
        self.dozed, self._dozing = self._book.now, True
        if self._watched is not None and self._watched.transport is not None:
            self._watched.transport.pause_reading()

    def wake(self) -> None:
        self._dozing = False
        if self._watched is not None and self._watched.transport is not None:
            self._watched.transport.resume_reading()

    async def run(self) -> None:
        """Be there, until `leave`."""
        with suppress(Refused):  # which `_ended` found, or we left
            async with self:
                async for message in self:
                    self._show(message)
        await asyncio.gather(*self._sending)

    async def leave(self) -> None:
        if self._watched is not None:
            self._watched.on_purpose = True
        await self.close()

    # --- What is said and read

    def _speak(self) -> None:
        while self._words and self.welcome is not None:
            sending = asyncio.create_task(self._send(self._words.popleft()), name=self.name)
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)

    async def _send(self, said: Said) -> None:
        try:
            ack = await self.send(said.text, id=said.id)
        except Refused:
            return  # there are no more connections; the verdict finds what was not acked
        except Exception as error:  # whatever it is: all that is said here can be stored
            self._find(Kind.REFUSED, f"{said.id}: {error!r}")
            return
        if self.acks.get(said.id, self._seqs.get(said.id)) != ack.seq:
            self._find(Kind.WRONG_ACK, f"{said.id}: the client made it {ack.seq}")
        said.acked = self._book.now
        del self.unacked[said.id]

    def _show(self, message: Message) -> None:
        said = self._book.said.get(message.id)
        if said is None:
            return  # `_judge` found it
        # The same words as in the book: a long run shows each message to many.
        text = said.text if said.text == message.text else message.text
        self.screen.append(Line(message.seq, said.id, text))
        said.screens += 1
        said.seen_before, said.seen = said.seen, self._book.now

    # --- One connection after the other

    def _address(self) -> str:
        self._url = f"{self._nodes[self._node % len(self._nodes)]}/ws/chat/{self.room}/"
        return super()._address()

    def _link(self) -> Link:
        self._watched = Watched(
            self._find,
            self._book,
            self._ended,
            self._token,
            {},
            self._hear,
            self._talk,
            None,
            HASTY,
        )
        return self._watched

    def _ended(self, link: Watched, code: int) -> None:
        self._watched = self.at = None
        if link.status == 503 and link.told is not None:
            return
        if link.status is not None:
            self._find(Kind.REFUSED, f"the handshake got HTTP {link.status}")
        if link.on_purpose:
            return
        code = code if code != GIVEN_UP else ABNORMAL
        if code != RESTART:
            self._node += 1
        if code != ABNORMAL or link.joined_at is not None:
            self.closes.append((self._book.now, code))
        due = code if code in (RESTART, LATER) else None
        if code != ABNORMAL and link.announced != due:
            self._find(Kind.FAREWELL, f"closed with {code}, announced was {link.announced}")
        if code not in BEARABLE:
            self._find(Kind.REFUSED, f"closed with {code}")

    # --- What is heard

    def _hear(self, frame: Frame) -> None:
        assert self._watched is not None
        match frame:
            case Welcome():
                self._come(frame)
            case Messages():
                for message in frame.messages:
                    self._judge(message)
            case Ack():
                self._watched.acked(frame)
                self._judge_ack(frame)
            case Error():
                self._watched.answered(frame.id)
                if frame.code != "unavailable" or frame.retry_after is UNSET:
                    self._find(Kind.REFUSED, f"{frame}")
            case Closing():
                self._watched.announced = frame.code
        super()._hear(frame)
        self._speak()

    def _come(self, welcome: Welcome) -> None:
        node = self._node % len(self._nodes)
        self.at = self._nodes[node]
        if self._dozing:
            self.doze()  # on this connection, too
        if self.welcome is not None:
            self.reconnects.append(self._book.now)
        if welcome.resumed:
            self._heard = self._cursor
            return
        same = "the same" if welcome.epoch == self._epoch else "another"
        self._find(
            Kind.NOT_RESUMED,
            f"since={self._cursor} at node {node}, whose welcome said first_seq"
            f" {welcome.first_seq}, last_seq {welcome.last_seq}, epoch {same}",
        )
        self.screen.clear()
        self._seqs.clear()
        self._heard = None

    def _judge(self, message: Message) -> None:
        line = Line(message.seq, message.id, message.text)
        said = self._book.said.get(line.id)
        if said is None or (said.text, said.sender) != (line.text, message.sender.name):
            self._find(Kind.STRANGER, f"{message}")
            return
        if line.id in self._seqs:
            self._find(Kind.REPEAT, f"{line} was heard as {self._seqs[line.id]} before")
            self._heard = max(line.seq, self._heard or 0)
            return
        before = line.seq - 1 if self._heard is None else self._heard
        if line.seq != before + 1:
            kind = Kind.GAP if line.seq > before else Kind.DISORDER
            self._find(kind, f"{line} came after {before}")
        self._heard = max(line.seq, before)
        self._seqs[said.id] = line.seq
        if self.acks.get(said.id, line.seq) != line.seq:
            self._find(Kind.WRONG_ACK, f"{line} was acked as {self.acks[said.id]}")

    def _judge_ack(self, ack: Ack) -> None:
        id, seq = ack.id, ack.seq
        said = self._book.said.get(id)
        if said is None or said.sender != self.name:
            self._find(Kind.STRANGER, f"an ack of {id}, which this user never said")
            return
        if seq != self.acks.get(id, seq):
            self._find(Kind.WRONG_ACK, f"{id}: {seq}, and {self.acks[id]} before")
        elif seq != self._seqs.get(id, seq):
            self._find(Kind.WRONG_ACK, f"{id}: {seq}, and heard as {self._seqs[id]}")
        elif id in self.acks and not ack.duplicate:
            self._find(Kind.WRONG_ACK, f"{id} was acked before, and now again as new")
        self.acks[id] = seq

    def _find(self, kind: Kind, detail: str) -> None:
        self._book.find(kind, f"{self.name} in {self.room}", detail)


class Watched(Link):
    """One connection of a talker: who sends what on it, and in which order it is answered."""

    def __init__(
        self,
        find: Callable[[Kind, str], None],
        book: Book,
        ended: Callable[[Watched, int], None],
        *rest: Any,
    ) -> None:
        super().__init__(*rest)
        self._find = find
        self._book = book
        self._report = ended
        # Set where we end it, and where it is to break after the next send.
        self.on_purpose = self.cutting = False
        # The code that `closing` announced.
        self.announced: int | None = None
        # What awaits its answer: the number of the frame, and when it went out.
        self._in_flight: dict[str, tuple[int, float]] = {}
        self._frames = 0
        # The last message of this connection that was new to the log: its frame and seq.
        self._newest = (0, 0)

    async def run(self, url: str) -> tuple[int, str]:
        code, reason = await super().run(url)
        self._look_for_answers()
        self._report(self, code)
        return code, reason

    async def say(self, frame: Any) -> None:
        self._look_for_answers()
        self._frames += 1
        self._in_flight[frame["id"]] = (self._frames, self._book.now)
        said = self._book.said[frame["id"]]
        said.sent = said.sent or self._book.now
        await super().say(frame)
        if self.cutting and self.transport is not None:
            self.transport.abort()

    def acked(self, ack: Ack) -> None:
        """Note the answer: what went out first has the lower seq."""
        number = self.answered(ack.id)
        if number and not ack.duplicate:
            if (number > self._newest[0]) != (ack.seq > self._newest[1]):
                self._find(
                    Kind.ORDER,
                    f"frame {number} became {ack.seq}, frame {self._newest[0]} {self._newest[1]}",
                )
            self._newest = max(self._newest, (number, ack.seq))

    def answered(self, id: Any) -> int:
        """Return the number of the frame that is answered; 0 where none is known."""
        return self._in_flight.pop(id, (0, 0.0))[0]

    def _look_for_answers(self) -> None:
        for id, (_, at) in self._in_flight.items():
            if self._book.now - at > ANSWER_LIMIT:
                self._find(Kind.UNANSWERED, id)

    @property
    def transport(self) -> asyncio.Transport | None:
        """What it is made of, for those who break it; None before there is one."""
        return self._socket.transport if self._socket is not None else None

    @property
    def port(self) -> int | None:
        """Our end of it."""
        return self._socket.local_address[1] if self._socket is not None else None
