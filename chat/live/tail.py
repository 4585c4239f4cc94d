"""The newest messages of one room, held in memory.

Rule 1: a tail never holds a gap. What does not fit is refused, and the caller reads the log.
Rule 2: no clock, no task, no I/O here, so every order of arrival can be tested.
Rule 3: it is bounded by count and by bytes, but always holds the newest message that it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto

from chat.protocol import Entry, redacted, same

TAIL_COUNT = 1_000  # messages: some seconds of a busy room
TAIL_BYTES = 1024 * 1024  # bytes of their JSON


class Offer(Enum):
    APPENDED = auto()
    DUPLICATE = auto()
    GAP = auto()


class Tail:
    def __init__(self, last: int, entries: Sequence[Entry] = ()) -> None:
        # Seq of the newest message known here. Starts at the log's head, and only ever grows.
        self.last = last
        # Entries (last - len + 1) … last, oldest first.
        self._entries: list[Entry] = list(entries)
        self._size = sum(one.size for one in entries)
        assert not entries or entries[-1].seq == last
        self._trim()

    @property
    def first(self) -> int:
        """Seq of the oldest message held; last + 1 where none is."""
        return self.last - len(self._entries) + 1

    def offer(self, entries: Sequence[Entry]) -> Offer:
        """Take a run of messages if it continues the tail; what is known already is passed over."""
        if entries[-1].seq <= self.last:
            return Offer.DUPLICATE
        if entries[0].seq > self.last + 1:
            # Two processes committed back to back and the second bell won the race.
            return Offer.GAP
        new = entries[self.last + 1 - entries[0].seq :]
        self._entries.extend(new)
        self._size += sum(one.size for one in new)
        self.last = new[-1].seq
        self._trim()
        return Offer.APPENDED

    def contradicts(self, entries: Sequence[Entry]) -> bool:
        """Tell whether one of these is another message than the one held under its seq."""
        held = self.after(entries[0].seq - 1) or ()
        return not all(same(mine, other) for mine, other in zip(held, entries, strict=False))

    def redact(self, seqs: Iterable[int]) -> None:
        """Let these messages, where they are held, have no text any more."""
        for seq in seqs:
            if self.first <= seq <= self.last:
                place = seq - self.first
                bare = redacted(self._entries[place])
                self._size += bare.size - self._entries[place].size
                self._entries[place] = bare

    def after(self, seq: int) -> Sequence[Entry] | None:
        """Return all messages after `seq`, or None where the tail does not reach back so far."""
        if seq + 1 < self.first:
            return None
        return self._entries[seq + 1 - self.first :]

    def _trim(self) -> None:
        drop = max(0, len(self._entries) - TAIL_COUNT)
        size = self._size - sum(one.size for one in self._entries[:drop])
        while size > TAIL_BYTES and drop < len(self._entries) - 1:
            size -= self._entries[drop].size
            drop += 1
        if drop:
            del self._entries[:drop]
            self._size = size
