"""What a bell says to other processes: who committed, to which log, and the new messages.

    <process> <epoch> <seq of the first message>
    <one encoded message a line>

The messages are the very text of their frames, so neither side encodes or parses them. Without
any line, the seq is the last one, and the log must be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chat.protocol import Entry

# Bytes of the messages. What is longer is left to the log: it would only clog Redis.
MAX_ANNOUNCEMENT = 512 * 1024


class Announcement(NamedTuple):
    epoch: str
    last: int  # seq of the newest message that it tells of
    entries: list[Entry]  # in order, up to `last`; empty where the log must be read


def write(process: str, epoch: str, entries: Sequence[Entry]) -> str:
    """Return the announcement of what was just committed, at least one message."""
    if sum(one.size for one in entries) > MAX_ANNOUNCEMENT:
        return f"{process} {epoch} {entries[-1].seq}"
    head = f"{process} {epoch} {entries[0].seq}"
    return "\n".join([head, *[one.json for one in entries]])


def read(text: str, process: str) -> Announcement | None:
    """Return what another process announced; None for this one's own."""
    if text.startswith(process):
        return None
    head, *lines = text.split("\n")
    _, epoch, seq = head.split(" ")
    first = int(seq)
    if not lines:
        return Announcement(epoch, first, [])
    entries = [
        Entry(first + place, line, len(line) if line.isascii() else len(line.encode()))
        for place, line in enumerate(lines)
    ]
    return Announcement(epoch, entries[-1].seq, entries)


def channel_of(room_id: int) -> str:
    return f"room.{room_id}"


def room_of(channel: str) -> int:
    return int(channel.removeprefix("room."))
