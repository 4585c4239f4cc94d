"""All open rooms of this process, and what keeps them true to the log.

Rule 1: a room is subscribed first and read afterwards, so that nothing falls between.
Rule 2: every confirmed subscription, the first one included, is a gap report: read the log.
Rule 3: the ticker looks at all heads in one query, always, whatever the relay says.
Rule 4: a head never moves backwards, unless the log is another one: then its members start afresh.

`web/` enters and leaves rooms here, `log/writer.py` announces what it committed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from chat.clock import now
from chat.errors import Unavailable
from chat.live import announcement
from chat.live.announcement import channel_of, room_of
from chat.live.company import Companies
from chat.live.flights import Flights
from chat.live.hints import Hints
from chat.live.relay import Relay
from chat.live.room import Member, Room
from chat.live.tasks import stop
from chat.log import epochs, repository
from chat.log.faults import describe
from chat.log.repository import Repository
from chat.ops import metrics
from chat.protocol import CloseCode, Entry

logger = logging.getLogger(__name__)

TICK = 0.5  # seconds between two looks at the heads
CLOCK_SKEW = 600_000  # ms that the database's clock may be behind ours, at the first look
BELL_PATIENCE = 0.25  # seconds that a bell may be later than the head it announces
CONFIRM_LIMIT = 0.25  # seconds that joining waits for the relay's confirmation
ROOM_LINGER = 30.0  # seconds that an empty room stays open: reloading a page is cheap


class Hub:
    def __init__(self, log: Repository, relay: Relay, process: str) -> None:
        self._log = log
        self._relay = relay
        # Names this process in its announcements, which come back to it, too.
        self._process = process
        self._rooms: dict[int, Room] = {}
        self._names: dict[str, Room] = {}
        # Rooms that are being opened: one flight for all that want in.
        self._opening: Flights[int, Room] = Flights()
        self._rung: set[int] = set()  # of those, whose bell rang since they were read
        # The task that drains a room's subscription, by room id.
        self._listening: dict[int, asyncio.Task[None]] = {}
        # Rooms that were dropped, until their tasks have ended.
        self._closing: set[asyncio.Task[None]] = set()
        # Who is where, over all processes; typing and read markers.
        self._companies = Companies(process, relay)
        self.presence = self._companies.presence
        self.hints = Hints(process, self._rooms.get, relay.tell)
        # All members of all rooms.
        self.members: set[Member] = set()
        # Set while there is none.
        self.deserted = asyncio.Event()
        self.deserted.set()
        # Heads that were ahead and whose bell did not come, while the relay seemed well.
        self.missed = 0
        # When the ticker last looked, or tried to (loop time): health finds one that hangs.
        self.ticked_at = 0.0
        # Since when its looks fail, in ms; None: they do not.
        self.database_lost_since: int | None = None
        # The database's clock at the last look, in ms: what was revoked before is dealt with.
        self._clock = now() - CLOCK_SKEW

    # --- For web/: entering, leaving, announcing

    def find(self, name: str) -> Room | None:
        """Return the room if it is open in this process."""
        return self._names.get(name)

    async def open(self, row: repository.Room) -> Room:
        """Return the open room, opened if need be; raise Unavailable."""
        room = self._rooms.get(row.id)
        if room is not None:
            return room
        return await self._opening.join(row.id, lambda: self._open(row))

    def enter(self, room: Room, member: Member) -> bool:
        """Make the member one of the room's; False where the room was closed meanwhile."""
        if self._rooms.get(room.id) is not room:
            return False
        room.members.add(member)
        self.members.add(member)
        metrics.CONNECTIONS.set(len(self.members))
        self.deserted.clear()
        self._companies.enter(room, member)
        return True

    def leave(self, room: Room, member: Member) -> None:
        if member not in room.members:
            return
        room.members.remove(member)
        self.members.remove(member)
        metrics.CONNECTIONS.set(len(self.members))
        self._companies.leave(room, member)
        if not self.members:
            self.deserted.set()
        if not room.members:
            room.empty_since = asyncio.get_running_loop().time()

    def announce(self, room_id: int, epoch: str, entries: list[Entry]) -> None:
        """Ring the bell for what was just committed: here directly, elsewhere over the relay."""
        room = self._ringing(room_id)
        if room is not None:
            room.offer(epoch, entries)
        self._relay.publish(channel_of(room_id), announcement.write(self._process, epoch, entries))

    def revoke(self, sid: str) -> None:
        """End the open sockets of a session that was signed out, on every node."""
        self._end_revoked({sid}, set())
        self._relay.tell(f"revoked {sid}")

    async def close(self) -> None:
        """Close all rooms; the members are gone by then, or are ended with 1012."""
        rooms, self._rooms = list(self._rooms.values()), {}
        for member in list(self.members):
            member.end(CloseCode.RESTART, "restart")
        await stop([*self._opening.under_way.values(), *self._listening.values(), *self._closing])
        for room in rooms:
            self._companies.close(room)
            await room.close()

    # --- For the relay

    def on_gap(self, channel: str) -> None:
        room = self._ringing(room_of(channel))
        if room is not None:
            room.mend()

    def on_control(self, text: str) -> None:
        kind, _, rest = text.partition(" ")
        if kind == "revoked":
            self._end_revoked({rest}, set())
        elif kind == "here":
            self.presence.hear(text)
        elif kind in ("typing", "read"):
            self.hints.hear(text)

    # --- Opening and listening

    async def _open(self, row: repository.Room) -> Room:
        ready: asyncio.Future[Room] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._listen(row, ready), name=f"listen {row.name}")
        try:
            task.add_done_callback(lambda _: ready.done() or ready.cancel())
            await asyncio.wait([ready])
            if ready.cancelled():
                task.result()  # raises what stopped it
            room = ready.result()
        except BaseException:
            await stop([task])
            raise
        self._rooms[room.id] = self._names[room.name] = room
        metrics.ROOMS_OPEN.set(len(self._rooms))
        self._companies.open(room)
        self._listening[room.id] = task
        task.add_done_callback(lambda done: self._deaf(room, done))
        room.empty_since = asyncio.get_running_loop().time()
        if room.id in self._rung:
            self._rung.discard(room.id)
            room.mend()
        return room

    def _ringing(self, room_id: int) -> Room | None:
        """Return the room that a bell is for; one that is being opened will look again."""
        room = self._rooms.get(room_id)
        if room is None and room_id in self._opening.under_way:
            self._rung.add(room_id)
        return room

    async def _listen(self, row: repository.Room, ready: asyncio.Future[Room]) -> None:
        channel = channel_of(row.id)
        async with self._relay.listen(channel) as bells:
            with suppress(TimeoutError):  # the confirmation is a gap report when it comes
                async with asyncio.timeout(CONFIRM_LIMIT):
                    await self._relay.confirmed(channel)
                    await asyncio.sleep(0)  # its gap report comes now
            self._rung.discard(row.id)  # what rang until here is read now
            room = await Room.load(row, self._log)
            ready.set_result(room)
            async for text in bells:
                said = announcement.read(text, self._process)
                if said is not None:
                    room.hear(said)

    def _deaf(self, room: Room, listening: asyncio.Task[None]) -> None:
        """A room's listening ended: on purpose if the room is closed, else its members leave."""
        if self._rooms.get(room.id) is room:
            why = None if listening.cancelled() else listening.exception()
            logger.error(
                "Room %s lost its subscription; its members start afresh", room.name, exc_info=why
            )
            self._drop(room, CloseCode.RESTART, "the room starts afresh")

    def _drop(self, room: Room, code: CloseCode, reason: str) -> None:
        self._rooms.pop(room.id, None)
        self._names.pop(room.name, None)
        metrics.ROOMS_OPEN.set(len(self._rooms))
        self._companies.close(room)
        for member in room.members:
            member.end(code, reason)
        listening = self._listening.pop(room.id)
        closing = asyncio.create_task(_end(room, listening), name=f"close {room.name}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    # --- The ticker

    async def tick(self) -> None:
        """Look at the heads every TICK seconds, for ever."""
        while True:
            self.ticked_at = asyncio.get_running_loop().time()
            metrics.TICKED.set(time.monotonic())
            await asyncio.sleep(TICK)
            try:
                await self._look()
            except Unavailable as error:
                metrics.DATABASE_UP.set(0)
                if self.database_lost_since is None:
                    self.database_lost_since = now()
                    logger.error("Database lost: %s", describe(error.__cause__ or error))
            else:
                metrics.DATABASE_UP.set(1 - metrics.FAILING.value)
                if self.database_lost_since is not None:
                    away = (now() - self.database_lost_since) / 1000
                    logger.info("Database restored after %.1f s", away)
                    self.database_lost_since = None
                self._close_empty()

    def hangs(self, moment: float) -> bool:
        """Tell whether the ticker began, but has not looked since this loop time."""
        return 0 < self.ticked_at < moment

    async def _look(self) -> None:
        # The heads as they were before the question: an answer may be older than what is here now.
        known = {room.id: room.tail.last for room in self._rooms.values()}
        heads = await self._log.heads(list(known), self._clock)
        self._clock = heads.clock
        self._end_revoked(set(heads.sids), set(heads.users))
        ahead: list[tuple[Room, int]] = []
        back: list[tuple[int, str]] = []
        for room in [one for one in self._rooms.values() if one.id in known]:
            epoch, first_seq, last_seq = heads.rooms.get(room.id, ("", 0, 0))
            if epoch != room.epoch:
                logger.warning("Room %s has another log now; its members start afresh", room.name)
                self._drop(room, CloseCode.RESTART, "the room starts afresh")
            elif last_seq < known[room.id] or room.contradicted:
                back.append((room.id, epoch))
            else:
                room.first_seq = first_seq
                room.redact(heads.redacted.get(room.id, ()))
                if last_seq > room.tail.last:
                    ahead.append((room, last_seq))
        if ahead and self._relay.lost:
            self._mend_late(ahead)
        elif ahead:
            # Not waited for here: the next look must not come later for it.
            asyncio.get_running_loop().call_later(BELL_PATIENCE, self._mend_late, ahead)
        if back:
            # Put back under the old epoch: soon cursors of what is lost would seem to fit again.
            await epochs.renew(self._log.database, back)
            await self._look()

    def _mend_late(self, ahead: list[tuple[Room, int]]) -> None:
        for room, head in ahead:
            if room.tail.last < head:
                if not self._relay.lost:
                    self.missed += 1
                    metrics.MISSED.add()
                room.mend()

    def _close_empty(self) -> None:
        before = asyncio.get_running_loop().time() - ROOM_LINGER
        for room in list(self._rooms.values()):
            if not room.members and room.empty_since < before:
                self._drop(room, CloseCode.NORMAL, "")

    def _end_revoked(self, sids: set[str], users: set[int]) -> None:
        for member in list(self.members) if sids or users else []:
            if member.sid in sids or member.user_id in users:
                member.end(CloseCode.UNAUTHENTICATED, "signed out")


async def _end(room: Room, listening: asyncio.Task[None]) -> None:
    await stop([listening])
    await room.close()
