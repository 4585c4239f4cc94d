"""Trimming: messages older than CHAT_RETENTION_DAYS leave the log, the oldest first.

Rule 1: `first_seq` moves first, and the rows vanish only once every node has heard of it.
Rule 2: the head never moves: a seq is never used twice, in a room that is empty now neither.
Rule 3: what holds a lock is small, and is followed by a longer pause: sends go on.

One process of the deployment does it for all (`log/chores.py`). Whatever it is broken off in, the
next sweep goes on from the log itself. The app owns the task.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from chat.errors import Unavailable
from chat.log import chores, redactions
from chat.log.database import Database

logger = logging.getLogger(__name__)

DAY = 86_400_000  # ms
SWEEP = 60.0  # seconds between two looks at all rooms
ROOMS = 200  # rooms in one look: some milliseconds
TOLD = 2.0  # seconds from a new `first_seq` to the first row that vanishes; tickers take half one
BATCH = 500  # messages that vanish in one transaction: some milliseconds of SQLite's one lock
IDLE_SHARE = 4  # times as long as a batch took, it is left alone …
IDLE_LEAST = 0.02  # … and so many seconds at least


class Lost(Exception):
    """Another process has the chore."""


class Oldest(NamedTuple):
    """A room, and where its log begins."""

    room_id: int
    epoch: str
    first_seq: int
    last_seq: int
    lowest: int | None  # seq of the oldest row; below `first_seq` where it is about to vanish
    sent_at: int | None  # of the message at `first_seq`


class Retention:
    def __init__(self, database: Database, days: int, process: str) -> None:
        self._database = database
        self._days = days
        self._process = process
        # Messages that this process trimmed.
        self.trimmed = 0

    async def run(self) -> None:
        """Trim what has become too old, for ever."""
        while True:
            before = self.trimmed
            try:
                await self.sweep()
            except Unavailable as error:
                logger.warning("Trimming has to wait: %s", type(error.__cause__).__name__)
            except Lost:
                pass
            if self.trimmed > before:
                logger.info("Trimmed %d messages", self.trimmed - before)
            await asyncio.sleep(SWEEP)

    async def sweep(self) -> None:
        """Look at all rooms once, and trim them; raise Lost, Unavailable."""
        clock = await self._database.row(f"SELECT {self._database.clock}")
        assert clock is not None
        before = int(clock[0]) - self._days * DAY
        after = 0
        while rooms := await self._look(after):
            await self._take()
            after = rooms[-1].room_id
            if any([await self._advance(room, before) for room in rooms]):
                await asyncio.sleep(TOLD)
                rooms = await self._look(rooms[0].room_id - 1, until=after)
            # Also what is left from a sweep that was broken off.
            for room in rooms:
                if room.lowest is not None and room.lowest < room.first_seq:
                    await self._delete(room)

    async def _take(self) -> None:
        async with self._database.transaction() as raw:
            if not await chores.hold(self._database, raw, "retention", self._process):
                raise Lost

    async def _look(self, after: int, until: int = 2**62) -> list[Oldest]:
        rows = await self._database.rows(
            "SELECT id, epoch, first_seq, last_seq,"
            " (SELECT min(seq) FROM messages WHERE room_id = r.id),"
            " (SELECT sent_at FROM messages WHERE room_id = r.id AND seq = r.first_seq)"
            f" FROM rooms r WHERE id > :after AND id <= :until ORDER BY id LIMIT {ROOMS}",
            {"after": after, "until": until},
        )
        return [Oldest(*row) for row in rows]

    async def _advance(self, room: Oldest, before: int) -> bool:
        """Let the room's log begin behind what is too old; tell whether it moved."""
        if room.sent_at is None or room.sent_at >= before:
            return False
        # A log's times never go backwards, so halving finds the place in twenty questions.
        low, high = room.first_seq + 1, room.last_seq + 1
        while low < high:
            middle = (low + high) // 2
            if await self._is_old(room.room_id, middle, before):
                low = middle + 1
            else:
                high = middle
        moved = await self._database.change(
            "UPDATE rooms SET first_seq = :first1 WHERE id = :id AND epoch = :epoch"
            # Not where it was put back to an older state meanwhile.
            " AND first_seq < :first2 AND last_seq >= :first3 - 1 RETURNING id",
            {
                "first1": low,
                "first2": low,
                "first3": low,
                "id": room.room_id,
                "epoch": room.epoch,
            },
        )
        return bool(moved)

    async def _is_old(self, room_id: int, seq: int, before: int) -> bool:
        row = await self._database.row(
            "SELECT sent_at FROM messages WHERE room_id = :id AND seq = :seq",
            {"id": room_id, "seq": seq},
        )
        return row is not None and int(row[0]) < before

    async def _delete(self, room: Oldest) -> None:
        """Let the rows below the log's beginning vanish, in small batches."""
        loop = asyncio.get_running_loop()
        assert room.lowest is not None
        delete = (
            "DELETE FROM messages WHERE room_id = {0} AND seq >= {1} AND seq < {2}"
            " AND seq < (SELECT first_seq FROM rooms WHERE id = {0})"
        )
        for lowest in range(room.lowest, room.first_seq, BATCH):
            began = loop.time()
            values = (room.room_id, lowest, lowest + BATCH)
            async with self._database.transaction() as raw:
                if not await chores.hold(self._database, raw, "retention", self._process):
                    raise Lost
                if self._database.sqlite:
                    cursor = await raw.execute(delete.format("?1", "?2", "?3"), values)
                    gone = cursor.rowcount
                else:
                    status = await raw.execute(delete.format("$1", "$2", "$3"), *values)
                    gone = int(status.rpartition(" ")[2])
            self.trimmed += gone
            await asyncio.sleep(max(IDLE_LEAST, IDLE_SHARE * (loop.time() - began)))
        await redactions.trim(self._database, room.room_id)
