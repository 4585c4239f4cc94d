"""What the members of one open room are told about who else is there.

Newcomers get the picture, the others what changed since the last time, at once and then at most
two times a second. A frame is made once and shared. Who is there, `presence` knows; what a member
still has to be sent, the member knows. The hub owns `Companies`, one for each open room.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from chat.live.fold import Fold
from chat.live.presence import Here, Presence
from chat.live.relay import Relay
from chat.live.room import Member, Room
from chat.protocol import Changed, Person, Present, SharedText, encode

INTERVAL = 0.5  # seconds between two frames to a member
PICTURE_USERS = 100  # in a picture: at most some 20 KB
MAX_CHANGES = 100  # users in a change; where more came and went, the picture is shorter
KEY = "presence"  # of what waits for a member: one frame at most


class Listener(Protocol):
    """What is needed of a member."""

    @property
    def person(self) -> Person:
        """Who it is, as others see them."""

    def aside(self, key: str, text: str, *, replace: bool = False) -> bool:
        """Take a frame that may be missed; False where one of this key still waits."""


class Company:
    def __init__(
        self, room: str, who: Callable[[], Mapping[int, Here]], members: Collection[Listener]
    ) -> None:
        self._room = room
        self._who = who
        # All members of the room in this process: the room's own set.
        self._members = members
        # Whom the members know of who are no newcomers.
        self._told: Mapping[int, Here] = {}
        # Members that must get the picture next.
        self._newcomers: set[Listener] = set()
        self._fold = Fold(INTERVAL, self.flush)

    def enter(self, member: Listener) -> None:
        """Show a new member the picture, soon."""
        self._newcomers.add(member)
        self._fold.ring()

    def leave(self, member: Listener) -> None:
        self._newcomers.discard(member)

    def ring(self) -> None:
        """Somebody came or went, here or elsewhere."""
        self._fold.ring()

    def close(self) -> None:
        """Tell nothing more."""
        self._fold.close()

    def flush(self) -> None:
        """Tell all members what is new to them."""
        told, self._told = self._told, self._who()
        here = self._told
        joined = [one.person for user_id, one in here.items() if user_id not in told]
        left = [one.person for user_id, one in told.items() if user_id not in here]
        # Who must get the picture: a change cannot be added to a frame that still waits.
        behind = list(self._newcomers)
        if len(joined) + len(left) > MAX_CHANGES:
            behind = list(self._members)
        elif joined or left:
            change = SharedText(encode(Changed(self._room, len(here), joined, left)))
            others = (one for one in self._members if one not in self._newcomers)
            behind += [one for one in others if not one.aside(KEY, change)]
        self._newcomers.clear()
        for start in range(0, len(behind), PICTURE_USERS):
            self._show(behind[start : start + PICTURE_USERS])
        if self._newcomers:
            self._fold.ring()

    def _show(self, members: list[Listener]) -> None:
        """Send the picture to at most as many members as it may show: each finds itself in it."""
        here = self._told
        first = {one.person.id: one.person for one in members if one.person.id in here}
        shown = first | {user_id: one.person for user_id, one in here.items()}
        users = list(shown.values())[:PICTURE_USERS]
        picture = SharedText(encode(Present(self._room, len(here), users)))
        for member in members:
            if not member.aside(KEY, picture, replace=True):
                # Too much else waits for it: later.
                self._newcomers.add(member)


class Companies:
    """Those of all open rooms, and who is there."""

    def __init__(self, process: str, relay: Relay) -> None:
        self.presence = Presence(process, relay.tell, self._ring, lambda: relay.lost)
        self._open: dict[int, Company] = {}

    def open(self, room: Room) -> None:
        who = functools.partial(self.presence.who, room.id)
        self._open[room.id] = Company(room.name, who, room.members)

    def close(self, room: Room) -> None:
        self._open.pop(room.id).close()

    def enter(self, room: Room, member: Member) -> None:
        self._open[room.id].enter(member)
        self.presence.join(room.id, member.person)

    def leave(self, room: Room, member: Member) -> None:
        """The room may be closed by now, or open anew."""
        if room.id in self._open:
            self._open[room.id].leave(member)
        self.presence.leave(room.id, member.person)

    def _ring(self, room_id: int) -> None:
        if room_id in self._open:
            self._open[room_id].ring()
