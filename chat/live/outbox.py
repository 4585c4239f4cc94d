"""What waits to be written to Redis: bounded, first in, first out, packed once.

Knows neither connections nor Broadcaster. `redis_backend` puts in, the speaking task of
`redis_session` takes pipelines out and says what became of them.
"""

from __future__ import annotations

import asyncio
from collections import deque

# About a second's worth of the busiest process. Above it bells are dropped, never sends.
OUTBOX_COMMANDS = 10_000
OUTBOX_BYTES = 16 * 1024 * 1024
# One pipeline: small enough to be answered well within redis_session.ANSWER_SECONDS.
PIPELINE_COMMANDS = 1_000
PIPELINE_BYTES = 256 * 1024
# How long draining waits for what was put in before it.
FLUSH_SECONDS = 1.0


def pack(*words: bytes) -> bytes:
    """Write one command as Redis reads it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def pack_publish(channel: bytes, payload: bytes) -> bytes:
    """The same for PUBLISH, in one step: it is the hot one."""
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        len(channel),
        channel,
        len(payload),
        payload,
    )


class Outbox:
    """Commands on their way to Redis, and the count of what became of them."""

    def __init__(self) -> None:
        # False while the relay is lost: then nothing is queued.
        self.open = False
        # Answered by Redis; not queued, or queued and never answered.
        self.published = 0
        self.dropped = 0
        self._commands: deque[bytes] = deque()
        self._bytes = 0
        # In the pipeline that is being written.
        self._under_way = 0
        # The heartbeat, outside the bounds and the counts. Only the newest is of use.
        self._beat: bytes | None = None
        self._filled = asyncio.Event()
        # Commands put in and settled since the start, and the bell for flush.
        self._taken = 0
        self._settled = 0
        self._settling = asyncio.Event()

    def put(self, command: bytes) -> None:
        """Queue a command, or drop and count it."""
        size = self._bytes + len(command)
        if not self.open or len(self._commands) >= OUTBOX_COMMANDS or size > OUTBOX_BYTES:
            self.dropped += 1
            return
        self._commands.append(command)
        self._bytes = size
        self._taken += 1
        self._filled.set()

    def put_beat(self, command: bytes) -> None:
        """Write this with the next pipeline."""
        self._beat = command
        self._filled.set()

    async def take(self) -> list[bytes]:
        """Wait for commands; the next pipeline of them."""
        while not self._commands and self._beat is None:
            self._filled.clear()
            await self._filled.wait()
        pipeline: list[bytes] = []
        size = 0
        while self._commands and len(pipeline) < PIPELINE_COMMANDS and size < PIPELINE_BYTES:
            command = self._commands.popleft()
            pipeline.append(command)
            size += len(command)
        self._bytes -= size
        self._under_way = len(pipeline)
        if self._beat is not None:
            pipeline.append(self._beat)
            self._beat = None
        return pipeline

    def sent(self) -> None:
        """Redis answered the pipeline taken last."""
        self.published += self._under_way
        self._settle(self._under_way)
        self._under_way = 0

    def shut(self) -> None:
        """Drop all that waits or is under way; until `open` is set again, what comes too."""
        self.open = False
        lost = len(self._commands) + self._under_way
        self.dropped += lost
        self._commands.clear()
        self._bytes = self._under_way = 0
        self._beat = None
        self._settle(lost)

    async def flush(self) -> None:
        """Wait until all that was put in so far is sent or dropped, FLUSH_SECONDS at most."""
        target = self._taken
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                while self._settled < target:
                    self._settling.clear()
                    await self._settling.wait()
        except TimeoutError:
            pass

    def _settle(self, count: int) -> None:
        self._settled += count
        self._settling.set()
