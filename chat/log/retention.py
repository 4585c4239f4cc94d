"""Trimming: messages older than CHAT_RETENTION_DAYS leave the log, the oldest first.

Rule 1: `first_seq` moves first, and the rows vanish only once every node has heard of it.
Rule 2: the head never moves: a seq is never used twice, in a room that is empty now neither.
Rule 3: what holds a lock is small, and is followed by a longer pause: sends go on.

One process of the deployment does it for all (`log/chores.py`). Whatever it is broken off in, the
next sweep goes on from the log itself, as long as the setting stays. The app owns the task. Without
the setting it trims what health checks leave, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from chat.errors import Unavailable
from chat.log import chores, redactions
from chat.log.database import Database
from chat.log.faults import describe

logger = logging.getLogger(__name__)

DAY = 86_400_000  # ms
SWEEP = 60.0  # seconds between two looks at all rooms
ROOMS = 200  # rooms in one look: some milliseconds
TOLD = 2.0  # seconds from a new `first_seq` to the first row that vanishes; tickers take half one
BATCH = 500  # messages that vanish in one transaction: some milliseconds of SQLite's one lock
IDLE_SHARE = 4  # times as long as a batch took, it is left alone …
IDLE_LEAST = 0.02  # … and so many seconds at least
# Site users of `python -m chat healthcheck`. A container says thousands of messages a day in their
# direct room, and nobody reads them.
CHECKERS = ("healthcheck", "healthcheck-peer")
CHECKS_DAYS = 1  # what is older there is trimmed, whatever the setting


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

    @property
    def is_left_over(self) -> bool:
        """Whether rows lie below the beginning of the log."""
        return self.lowest is not None and self.lowest < self.first_seq

    def is_old(self, limit: int) -> bool:
        return self.sent_at is not None and self.sent_at < limit


class Retention:
    def __init__(self, database: Database, days: int, process: str) -> None:
        self._database = database
        self._days = days
        self._process = process
        # The room of the health checks, once there is one.
        self._checks: int | None = None
        # Messages that this process trimmed, those of health checks left out.
        self.trimmed = 0

    async def run(self) -> None:
        """Trim what has become too old, for ever."""
        while True:
            before = self.trimmed
            try:
                await self.sweep()
            except Unavailable as error:
                logger.warning("Trimming has to wait: %s", describe(error.__cause__ or error))
            except Lost:
                pass
            if self.trimmed > before:
                logger.info("Trimmed %d messages", self.trimmed - before)
            await asyncio.sleep(SWEEP)

    async def sweep(self) -> None:
        """Look at all rooms once, and trim them; raise Lost, Unavailable.

        Where nothing is too old nothing is written.
        """
        self._checks = await self._find_checks()
        if self._days:
            after, last = 0, 2**62
        elif self._checks is not None:
            after, last = self._checks - 1, self._checks
        else:
            return
        clock = await self._database.row(f"SELECT {self._database.clock}")
        assert clock is not None
        while rooms := await self._look(after, last):
            after = rooms[-1].room_id
            limits = {room: self._limit(room, int(clock[0])) for room in rooms}
            rooms = [room for room in rooms if room.is_left_over or room.is_old(limits[room])]
            if not rooms:
                continue
            await self._take()
            if any([await self._advance(room, limits[room]) for room in rooms]):
                await asyncio.sleep(TOLD)
            # Also what is left from a sweep that was broken off.
            for room in await self._look(rooms[0].room_id - 1, rooms[-1].room_id):
                if room.is_left_over:
                    await self._delete(room)

    async def _find_checks(self) -> int | None:
        one, other = CHECKERS
        row = await self._database.row(
            "SELECT r.id FROM users a JOIN users b ON b.name_key = :other AND b.kind = 'site'"
            " JOIN rooms r ON r.name = 'dm.' || a.id || '.' || b.id"
            " OR r.name = 'dm.' || b.id || '.' || a.id"
            " WHERE a.name_key = :one AND a.kind = 'site'",
            {"one": one, "other": other},
        )
        return None if row is None else int(row[0])

    def _limit(self, room: Oldest, moment: int) -> int:
        """Return the time before which the room's messages are too old."""
        return moment - (CHECKS_DAYS if room.room_id == self._checks else self._days) * DAY

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
        if not room.is_old(before):
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
            self.trimmed += gone if room.room_id != self._checks else 0
            await asyncio.sleep(max(IDLE_LEAST, IDLE_SHARE * (loop.time() - began)))
        await redactions.trim(self._database, room.room_id)
