"""What one member is sent: answers to its own frames first, then what lies after its cursor.

One task writes to the socket. Answers wait in an outbox whose bound stops the reading; messages
wait nowhere, the cursor fetches them. Owned by `web/connection.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from chat.errors import Reset, Unavailable
from chat.live.cursor import Cursor
from chat.ops import metrics
from chat.protocol import CloseCode, Closing, encode

OUTBOX_COUNT = 256  # answers that wait; from then on no more frames are read
OUTBOX_CHARACTERS = 512 * 1024  # of them: two of the largest frames
ASIDES = 64  # frames that may be missed, and wait; what comes above is missed
SEND_LIMIT = 45.0  # seconds that one frame may take: then the peer is dead or as good as
READ_PAUSE = 0.5  # seconds between two tries to read a log that is away
SLOW = 1.0  # seconds that a frame may take before its member counts as slow
RECONNECT_SPREAD = 3.0  # seconds over which clients come back after a restart

# Sends one ASGI event to the client.
Transmit = Callable[[dict[str, Any]], Awaitable[None]]


class Delivery:
    def __init__(self, transmit: Transmit, cursor: Cursor, on_change: Callable[[], None]) -> None:
        self.cursor = cursor
        # Why the connection ends, once it does.
        self.ending: tuple[CloseCode, str] | None = None
        self._transmit = transmit
        # Called where the outbox got shorter, and at the end.
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        # By the monotonic clock, as rings are: what came before is no delay of ours.
        self._began = time.monotonic()
        self._outbox: deque[str] = deque()
        self._characters = 0
        # What may be missed and changes by itself (who is here, who types), the newest by key.
        self._asides: dict[str, str] = {}
        # Set where there may be something to send.
        self._bell = asyncio.Event()
        self.wake = self._bell.set
        # When the frame that is being sent was begun (loop time); None while none is.
        self._sending_since: float | None = None
        self._writing: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Tell whether so many answers wait that no more frames should be read."""
        return len(self._outbox) >= OUTBOX_COUNT or self._characters >= OUTBOX_CHARACTERS

    @property
    def settled(self) -> bool:
        """Whether the client was sent everything that is there for it."""
        return self._sending_since is None and not self._outbox and not self.cursor.behind

    def answer(self, frame: str) -> None:
        """Queue a frame that answers one of the client's own."""
        self._outbox.append(frame)
        self._characters += len(frame)
        self._bell.set()

    def aside(self, key: str, text: str, *, replace: bool = False) -> bool:
        """Queue a frame that may be missed, or return False.

        False where one of this key still waits, unless it is to be replaced, or too many do.
        """
        waits = key in self._asides
        if (waits and not replace) or (not waits and len(self._asides) >= ASIDES):
            return False
        self._asides[key] = text
        self._bell.set()
        return True

    def end(self, code: CloseCode, reason: str) -> None:
        """Close soon with this code; the first reason counts."""
        self.ending = self.ending or (code, reason)
        self._bell.set()
        self._on_change()

    def start(self) -> asyncio.Task[None]:
        """Start the writing task, which ends when the connection is closed; the socket owns it."""
        self._writing = self._loop.create_task(self._write(), name="socket writer")
        return self._writing

    def tend(self, moment: float) -> int | None:
        """Give up on a frame that, at this loop time, has been under way for too long.

        Returns how many messages a slow member is behind, None for others.
        """
        since, writing = self._sending_since, self._writing
        if since is None or moment - since <= SLOW:
            return None
        if moment - since > SEND_LIMIT and writing is not None:
            writing.cancel()
        return self.cursor.room.tail.last - self.cursor.seq

    async def send(self, text: str) -> None:
        """Send one text frame; `tend` ends what takes longer than SEND_LIMIT."""
        # A timer of its own for each frame would cost a fifth of the sending.
        self._sending_since = self._loop.time()
        await self._transmit({"type": "websocket.send", "text": text})
        self._sending_since = None

    async def _write(self) -> None:
        sent = metrics.sent
        while self.ending is None:
            self._bell.clear()
            await self._send_answers()
            if self._asides:
                await self._send_asides()
            before = self.cursor.seq
            try:
                frame = await self.cursor.take()
            except Reset:
                self.end(CloseCode.RESTART, "the room starts afresh")
                continue
            except Unavailable:
                await asyncio.sleep(READ_PAUSE)
                continue
            if frame is not None:
                await self.send(frame)
                sent.messages += self.cursor.seq - before
                sent.frames += 1
                if sent.frames == 1:
                    self._count(self.cursor.room.rung_at(before + 1))
            elif not self._outbox and not self._asides:
                # Whatever came since the bell was cleared has set it again.
                await self._bell.wait()
        await self._send_answers()  # what was decided before the end is still said
        await self._close(*self.ending)

    def _count(self, since: float | None) -> None:
        """Hand over what is counted, once the others have their frames that this bell woke."""

        def hand_over() -> None:
            took = None if since is None else time.monotonic() - max(since, self._began)
            metrics.sent.hand_over(took)

        self._loop.call_soon(hand_over)

    async def _send_answers(self) -> None:
        while self._outbox:
            frame = self._outbox.popleft()
            self._characters -= len(frame)
            await self.send(frame)
            self._on_change()

    async def _send_asides(self) -> None:
        for key in list(self._asides):
            await self.send(self._asides.pop(key))

    async def _close(self, code: CloseCode, reason: str) -> None:
        if code in (CloseCode.RESTART, CloseCode.TRY_LATER):
            await self.send(closing_frame(code, reason))
        self._sending_since = self._loop.time()
        await self._transmit({"type": "websocket.close", "code": int(code), "reason": reason})


def closing_frame(code: CloseCode, reason: str) -> str:
    """Return the frame before a close that asks to come back; when is random for each client."""
    return encode(Closing(code, reason, round(random.uniform(0, RECONNECT_SPREAD), 3)))
