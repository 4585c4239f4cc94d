"""What a member shows without saying anything: that it types, and how far it has read.

Passed on seldom enough that nobody can flood a room with it. Owned by `web/connection.py`; what is
told to whom is the matter of `live/hints.py`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from chat.live.cursor import Cursor
from chat.live.fold import Fold
from chat.live.room import Member
from chat.web.services import Services

TYPING_INTERVAL = 2.0  # seconds between two signs of typing that are passed on
READ_INTERVAL = 1.0  # seconds between two read markers that are told; the newest is


class Reader(Member, Protocol):
    """The connection that shows it."""

    cursor: Cursor


class Signs:
    def __init__(self, services: Services, member: Reader) -> None:
        self._services = services
        self._member = member
        # When typing was last passed on (loop time).
        self._typed_at = -TYPING_INTERVAL
        # The newest seq that was read over this connection, and its telling.
        self._read_up_to = 0
        self._telling = Fold(READ_INTERVAL, self._tell)

    def typing(self) -> None:
        """Pass it on, at most once in TYPING_INTERVAL."""
        moment = asyncio.get_running_loop().time()
        if moment - self._typed_at >= TYPING_INTERVAL:
            self._typed_at = moment
            self._services.hub.hints.typing(self._member.cursor.room, self._member.person)

    def read(self, seq: int) -> None:
        """Store and tell that the user has read up to here; it never goes backwards."""
        room = self._member.cursor.room
        seq = min(seq, room.tail.last)
        if seq > self._read_up_to:
            self._read_up_to = seq
            self._services.marks.read(room.id, self._member.user_id, seq)
            self._telling.ring()

    def close(self) -> None:
        """The connection is over; what was read is stored all the same."""
        self._telling.close()

    def _tell(self) -> None:
        member = self._member
        self._services.hub.hints.read(member.cursor.room, member.person, self._read_up_to, member)
