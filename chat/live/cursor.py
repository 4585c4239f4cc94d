"""A member's place in the log, and the frames that bring it further.

One read path for all: resuming, live delivery and a slow reader differ only in how far behind the
cursor is. There is no queue per member; being slow costs an integer.
"""

from __future__ import annotations

from chat.errors import Reset
from chat.live.room import Room
from chat.protocol import PAGE_DEFAULT, SharedText, fitting, messages_frame


class Cursor:
    def __init__(self, room: Room, since: int | None, epoch: str | None) -> None:
        self.room = room
        head = room.tail.last
        fits = epoch is None or epoch == room.epoch
        # True where the client keeps what it has and gets exactly what follows it.
        self.resumed = since is not None and fits and room.first_seq - 1 <= since <= head
        newest = max(room.first_seq - 1, head - PAGE_DEFAULT)
        # Seq of the newest message that the member was sent, or has.
        self.seq = since if self.resumed and since is not None else newest

    @property
    def behind(self) -> bool:
        return self.seq < self.room.tail.last

    async def take(self) -> SharedText | None:
        """Return the next frame and move on, or None where the member has everything.

        Raises Reset where the next message is not in the log any more, Unavailable.
        """
        if not self.behind:
            return None
        shared = self.room.frame_after(self.seq)
        if shared is not None:
            frame, self.seq = shared
            return frame
        page = await self.room.page_after(self.seq)
        if not page or page[0].seq != self.seq + 1:
            raise Reset("The next message is not in the log any more.")
        page = page[: fitting(page)]
        self.seq = page[-1].seq
        return messages_frame(self.room.name, page)
