"""Who is typing, and how far somebody has read: told to those whom it concerns, on every node.

Nothing of it is in the log, and a slow reader may miss it; what was read is stored by
`log/marks.py`. Owned by the hub; `web/signs.py` says how often.
"""

from __future__ import annotations

from collections.abc import Callable

from chat.live.notices import HasRead, Notices, Types
from chat.live.room import Member, Room
from chat.protocol import Person, Read, SharedText, Typing, direct_pair, encode


class Hints:
    def __init__(
        self, process: str, find: Callable[[int], Room | None], tell: Callable[[str], None]
    ) -> None:
        self._notices = Notices(process)
        # Returns an open room of this process by its id.
        self._find = find
        # Says a text to all processes, soon or never.
        self._tell = tell

    def typing(self, room: Room, user: Person) -> None:
        """Show for a while that this user types, to everybody else in the room."""
        self._show_typing(room, user)
        self._tell(self._notices.write(Types(room.id, user)))

    def read(self, room: Room, user: Person, seq: int, by: Member) -> None:
        """Tell the user's other connections, and the other one of a direct room."""
        self._show_read(room, user, seq, by)
        self._tell(self._notices.write(HasRead(room.id, user, seq)))

    def hear(self, text: str) -> None:
        """Take what another process tells, a text that begins with "typing " or "read "."""
        said = self._notices.read(text)
        if said is None:
            return
        _, notice = said
        if isinstance(notice, Types) and (room := self._find(notice.room_id)):
            self._show_typing(room, notice.user)
        elif isinstance(notice, HasRead) and (room := self._find(notice.room_id)):
            self._show_read(room, notice.user, notice.seq, None)

    def _show_typing(self, room: Room, user: Person) -> None:
        frame = SharedText(encode(Typing(room.name, user)))
        for member in room.members:
            if member.user_id != user.id:
                member.aside(f"typing {user.id}", frame, replace=True)

    def _show_read(self, room: Room, user: Person, seq: int, by: Member | None) -> None:
        frame = SharedText(encode(Read(room.name, user, seq)))
        concerned = {user.id, *(direct_pair(room.name) or ())}
        for member in room.members:
            if member is not by and member.user_id in concerned:
                member.aside(f"read {user.id}", frame, replace=True)
