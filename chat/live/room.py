"""One open room of this process: its tail, its members, and the mending of its gaps.

Bells come from `hub` (this process committed) and from the relay (another one did); either may be
lost, doubled, late or out of order. What does not continue the tail makes `mend` read the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from chat.clock import milliseconds, now
from chat.errors import Reset, Unavailable
from chat.live.announcement import Announcement
from chat.live.flights import Flights
from chat.live.tail import Offer, Tail
from chat.live.taken_away import TakenAway
from chat.live.tasks import stop
from chat.log import repository
from chat.ops import metrics
from chat.protocol import (
    PAGE_MAX,
    CloseCode,
    Entry,
    Person,
    Redacted,
    SharedText,
    decoded,
    encode,
    fitting,
    messages_frame,
)

logger = logging.getLogger(__name__)

# Seconds that a gap may close by itself: the other process's bell is under way.
GAP_PATIENCE = 0.03
# Seconds between two looks at a log that could not be read.
RETRY_PAUSE = 0.5
# Frames kept to be shared: the crowd at the head, and a few that are catching up.
MAX_FRAMES = 4
RINGS = 64  # bells whose time is kept
TAIL_LOAD = PAGE_MAX  # messages read when a room opens: more than newcomers are sent


class Member(Protocol):
    """What a room knows of a connection."""

    user_id: int
    sid: str | None

    @property
    def person(self) -> Person:
        """Who it is, as others see them."""

    def aside(self, key: str, text: str, *, replace: bool = False) -> bool:
        """Take a frame that may be missed; False where one of this key still waits."""

    def wake(self) -> None:
        """There may be something after your cursor."""

    def end(self, code: CloseCode, reason: str) -> None:
        """Say goodbye with this close code."""

    @property
    def settled(self) -> bool:
        """Whether everything was sent that is there for this member."""

    def pause(self) -> None:
        """Read no more from this member: the process is about to end."""

    def tend(self, moment: float) -> int | None:
        """It is this loop time: give up on what takes too long.

        Returns how many messages behind it is, if it is slow.
        """


class Room:
    def __init__(
        self,
        row: repository.Room,
        entries: Sequence[Entry],
        log: repository.Repository,
        taken_away: TakenAway | None = None,
    ) -> None:
        self.id = row.id
        self.name = row.name
        self.epoch = row.epoch
        # The oldest seq in the log; retention moves it, the ticker tells.
        self.first_seq = row.first_seq
        head = entries[-1].seq if entries else row.last_seq
        self.taken_away = taken_away or TakenAway()
        self.cleaned = self.taken_away.cleaned
        self.tail = Tail(head, self.cleaned(entries))
        self.members: set[Member] = set()
        # When the last member left (loop time); the hub closes rooms that stay empty.
        self.empty_since = 0.0
        # Announcements of another epoch, dropped.
        self.strangers = 0
        # Set where a seq that is held came with another message: the log went back under its epoch.
        self.contradicted = False
        self._log = log
        # Frames by the seq they start after: members at the same place share one.
        self._frames: dict[int, tuple[SharedText, int]] = {}
        # The newest bells: the first seq that each brought, and when (monotonic; the loop's own
        # clock stands still within one turn).
        self._rings: deque[tuple[int, float]] = deque(maxlen=RINGS)
        self._mending: asyncio.Task[None] | None = None
        # Set where the log may hold more than the tail.
        self._doubt = False
        # Set at the end: its queries are cancelled then.
        self._closed = False
        # The newest seq seen behind a gap: the log holds it, unless the bell was another log's.
        self._announced = 0
        # Page reads in flight, by the seq they start after: a crowd that is behind reads once.
        self._pages: Flights[int, list[Entry]] = Flights()

    @classmethod
    async def load(cls, row: repository.Room, log: repository.Repository) -> Room:
        """Return the room as the log has it now; raise Unavailable."""
        entries = await log.read_before(row.id, None, TAIL_LOAD)
        fresh = await log.find_room(row.name)
        if fresh is None or fresh[:3] != row[:3]:  # `entries` may be another epoch's
            raise Unavailable("This room is being set up again.")
        if not entries or entries[-1].seq < fresh.last_seq:
            # Committed between the two looks, or all trimmed: the ticker would find it, too.
            entries = await log.read_before(row.id, None, TAIL_LOAD)
        return cls(fresh, entries, log, await TakenAway.load(log.database, row.id))

    def offer(self, epoch: str, entries: Sequence[Entry], age: float = 0.0) -> None:
        """Take an announcement, `age` seconds after it could have come; wake the members."""
        if epoch != self.epoch:
            # Another log under the same name: a database put back, or a second deployment.
            self.strangers += 1
            metrics.STRANGERS.add()
            return
        entries = self.cleaned(entries)
        self.contradicted = self.contradicted or self.tail.contradicts(entries)
        known = self.tail.last
        match self.tail.offer(entries):
            case Offer.APPENDED:
                self._ring(known + 1, age)
            case Offer.GAP:
                self.mend(entries[-1].seq)
            case Offer.DUPLICATE:
                pass

    def hear(self, said: Announcement) -> None:
        """Take what another process announced."""
        if not said.entries and said.epoch == self.epoch:
            self.mend(said.last)
        else:
            self.offer(said.epoch, said.entries)

    def redact(self, seqs: Sequence[int]) -> None:
        """Let go of the texts that were taken away lately, and tell the members of new ones."""
        if not (new := self.taken_away.add(seqs)):
            return
        self.tail.redact(new)
        self._frames.clear()
        frames = [(f"redacted {seq}", self.gone(seq)) for seq in new]
        for member in self.members:
            if not all(member.aside(*one) for one in frames):
                member.end(CloseCode.RESTART, "too much to tell")  # comes back, and is told

    def gone(self, seq: int) -> str:
        """Return the frame that says so of this message's text."""
        return encode(Redacted(self.name, seq))

    def frame_after(self, seq: int) -> tuple[SharedText, int] | None:
        """Return the frame of what follows `seq` and its last seq, or None: read the log.

        There must be something after `seq`.
        """
        found = self._frames.get(seq)
        if found is None:
            entries = self.tail.after(seq)
            if entries is None:
                return None
            entries = entries[: fitting(entries)]
            found = (messages_frame(self.name, entries), entries[-1].seq)
            if len(self._frames) >= MAX_FRAMES:
                del self._frames[next(iter(self._frames))]
            self._frames[seq] = found
        return found

    async def page_after(self, seq: int) -> Sequence[Entry]:
        """Read the next page of the log; members at the same place share the query.

        Raises Reset where the room is closed meanwhile, Unavailable.
        """
        try:
            return self.cleaned(await self._pages.join(seq, lambda: self._read(seq)))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                # It was the query that was cancelled, not who waits for it.
                raise Reset("The room was closed.") from None
            raise

    async def _read(self, seq: int) -> list[Entry]:
        metrics.CATCH_UP.add()
        return await self._log.read(self.id, seq, PAGE_MAX)

    def rung_at(self, seq: int) -> float | None:
        """Return when this message came, or could have (monotonic); None: too long ago."""
        for first, moment in reversed(self._rings):
            if first <= seq:
                return moment
        return None

    async def reach(self, seq: int) -> None:
        """Bring the tail up to `seq`, if the log has it; raise Unavailable.

        A client that comes from another process may have seen more than this one has heard of.
        """
        while self.tail.last < seq:
            try:
                page = await self.page_after(self.tail.last)
            except Reset:
                return  # nobody can enter it any more
            self._take(page)
            if not page:
                return

    def mend(self, head: int | None = None) -> None:
        """Bring the tail up to the log; up to `head`, if given, it may come by itself yet."""
        if head is None:
            self._doubt = True
        else:
            self._announced = max(self._announced, head)
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mend(), name=f"mend {self.name}")

    async def close(self) -> None:
        """Stop mending and reading."""
        self._closed = True
        await stop([*self._pages.under_way.values(), *([self._mending] if self._mending else [])])

    def _ring(self, first: int, age: float = 0.0) -> None:
        """Wake the members for what is new from this seq on, for `age` seconds already."""
        self._rings.append((first, time.monotonic() - age))
        self._frames.clear()
        for member in self.members:
            member.wake()

    async def _mend(self) -> None:
        if not self._doubt:
            await asyncio.sleep(GAP_PATIENCE)
        while self._doubt or self._announced > self.tail.last:
            self._doubt = False
            try:
                page = await self._log.read(self.id, self.tail.last, PAGE_MAX)
            except Unavailable:
                # The ticker says so in the log; the room only tries again.
                self._doubt = True
                await asyncio.sleep(RETRY_PAUSE)
                continue
            self._take(page)
            self._doubt = self._doubt or len(page) == PAGE_MAX

    def _take(self, page: Sequence[Entry]) -> None:
        """Continue the tail with a page of the log that was read after its last message."""
        if not page:
            self._announced = self.tail.last
        elif page[0].seq > self.tail.last + 1:
            # Trimmed, all that lay between: members who miss it start afresh (`Reset`).
            self.first_seq = page[0].seq
            self.tail = Tail(page[-1].seq, self.cleaned(page))
            self._ring(page[0].seq)
        else:
            # No bell brought it: so late it is, as far as our clock and the database's agree.
            new = next((one for one in page if one.seq > self.tail.last), page[-1])
            age = (now() - milliseconds(decoded(new).sent_at)) / 1000
            self.offer(self.epoch, page, max(0.0, age))
