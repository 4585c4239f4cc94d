"""Marks that are not stored yet: who was where, and has read how far.

Folded by user and room, written in one statement for all that waits, twice a second at most. While
the database is away they wait, and are written when it is back. The hub and `web/connection.py`
leave them here; the app owns the task.
"""

from __future__ import annotations

import asyncio
import logging

from chat.clock import now
from chat.errors import Unavailable
from chat.log.members import Mark, Members

logger = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two writes; markers are promised over HTTP within 2
BATCH = 2_000  # marks in one statement: on SQLite, messages wait for it, some tens of ms
# Marks that wait, some 20 MB. Above it the oldest are lost: the next one makes up for them.
MAX_WAITING = 50_000


class Marks:
    def __init__(self, members: Members) -> None:
        self._members = members
        # What waits, by room and user, the oldest first; also while it is being written.
        self._waiting: dict[tuple[int, int], Mark] = {}
        # Set where there is something to write.
        self._bell = asyncio.Event()
        # Held while writing: who flushes meanwhile writes only what is left.
        self._writing = asyncio.Lock()
        # Writes that failed since the last one that did not.
        self._failures = 0
        # Marks that were lost because too many waited.
        self.dropped = 0

    def seen(self, room_id: int, user_id: int) -> None:
        """Mark that the user is in the room now."""
        self.read(room_id, user_id, 0)

    def read(self, room_id: int, user_id: int, seq: int) -> None:
        """Mark that the user is in the room now, and has read up to this seq."""
        earlier = self._waiting.get((room_id, user_id))
        if earlier is None and len(self._waiting) >= MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
            self.dropped += 1
        seq = max(seq, earlier.read_seq) if earlier else seq
        self._waiting[room_id, user_id] = Mark(room_id, user_id, now(), seq)
        self._bell.set()

    async def run(self) -> None:
        """Write what waits, for ever."""
        while True:
            await self._bell.wait()
            await self.flush()
            await asyncio.sleep(INTERVAL)

    async def flush(self) -> bool:
        """Write all that waits, what is being written included; False where it has to wait on."""
        failures = self._failures
        async with self._writing:
            if self._failures > failures:
                return False  # a crowd that waited for a database that hangs waits only once
            self._bell.clear()
            marks = list(self._waiting.values())
            try:
                for start in range(0, len(marks), BATCH):
                    await self._write(marks[start : start + BATCH])
            except Unavailable as error:
                self._bell.set()
                if self._failures == 0:
                    logger.warning("Marks wait to be stored: %s", type(error.__cause__).__name__)
                self._failures += 1
                return False
            self._failures = 0
            return True

    async def _write(self, batch: list[Mark]) -> None:
        await self._members.save(batch)
        for mark in batch:
            key = (mark.room_id, mark.user_id)
            if self._waiting.get(key) is mark:  # nothing newer came meanwhile
                del self._waiting[key]
