"""What the checker holds against the product: findings, and the book of all that was said.

The book is shared by all clients of a run: they write into it, the verdict and the table read it.
Nothing here talks to a server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum

# Findings kept. One fault can show in each message after it: the first ones tell the cause.
MAX_FINDINGS = 200


class Kind(StrEnum):
    """What can be wrong, in the words of the report."""

    # Seen by a client, at once.
    GAP = "a seq was left out"
    REPEAT = "a message was shown twice"
    DISORDER = "a message came under a seq that had passed"
    STRANGER = "a message that nobody said"
    WRONG_ACK = "an ack that contradicts the screen or an earlier ack"
    NOT_RESUMED = "a cursor that the log holds was not honoured"
    UNANSWERED = "a frame was never answered"
    REFUSED = "an answer or a close code that nobody asked for"
    ORDER = "messages of one connection changed places"
    # Seen in the end, when log, screens and acks are laid side by side.
    LOST = "an acked message is not in the log under its seq"
    DOUBLED = "one message is in the log twice"
    HOLE = "the seqs of the log are not 1 to N"
    MISSING = "a screen does not show the whole log"
    UNACKED = "a message was never acked"
    # Seen by the checker while it breaks things.
    LATE = "a message came too late for what was broken"
    SLOW = "it did not get well again"
    CUT = "a connection ended that had no reason to"
    FAREWELL = "a close code that `closing` did not announce"
    EXIT = "a process did not end as it should"
    TRACE = "a stack trace in a log"


LOSSES = (Kind.LOST, Kind.HOLE, Kind.MISSING, Kind.UNACKED, Kind.GAP)
REPEATS = (Kind.REPEAT, Kind.DOUBLED, Kind.DISORDER)


@dataclass(frozen=True)
class Finding:
    at: float  # seconds since the run began
    kind: Kind
    who: str
    detail: str

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.kind}: {self.who}: {self.detail}"


@dataclass
class Said:
    """One message, from the moment it was due."""

    id: str
    text: str
    room: str
    sender: str
    due: float
    sent: float | None = None
    acked: float | None = None
    # How many screens show it, and since when the last one does, and the one before.
    screens: int = 0
    seen: float | None = None
    seen_before: float | None = None

    def delay(self, screens: int, now: float) -> float:
        """Seconds from the moment it was due until acked and on this many screens, or until now."""
        if self.acked is None or self.seen is None or self.screens < screens:
            return now - self.due
        return max(self.acked, self.seen) - self.due


@dataclass(frozen=True)
class Line:
    """One message on a screen, or one row of the log."""

    seq: int
    id: str
    text: str


@dataclass
class Book:
    """All that was said in a run, and all that was found."""

    began: float = field(default_factory=time.monotonic)
    said: dict[str, Said] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    # Findings beyond those that are kept.
    more: int = 0

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    def find(self, kind: Kind, who: str, detail: str, at: float | None = None) -> None:
        """Write a finding down, as of now or of `at`."""
        if len(self.findings) >= MAX_FINDINGS:
            self.more += 1
            return
        self.findings.append(Finding(self.now if at is None else at, kind, who, detail))

    def kinds(self) -> set[Kind]:
        return {one.kind for one in self.findings}
