"""The texts of one room that an operator took away lately, and who must be told of which.

A message may be under way, read or announced, when its text goes: `cleaned` sees to it that none
gets out any more. Who comes back may hold texts that went meanwhile, and is told of each. Owned by
`room.py`; `web/sockets.py` asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chat.log import redactions
from chat.log.database import Database
from chat.protocol import Entry, redacted

KNOWN = 50  # redactions of a room that are remembered; beyond these the log is asked
TOLD = 10_000  # redactions that who resumes is told of, the newest, each a small frame


class TakenAway:
    def __init__(self, seqs: Iterable[int] = ()) -> None:
        # Those of the last look, and before these KNOWN and one more of earlier ones.
        self._seqs = dict.fromkeys(seqs)

    @classmethod
    async def load(cls, database: Database, room_id: int) -> TakenAway:
        """Return what is noted in the log; raise Unavailable."""
        return cls(await redactions.of_room(database, room_id, KNOWN + 1))

    def add(self, seqs: Sequence[int]) -> list[int]:
        """Note what the ticker found, again and again for a while; return what is new."""
        new = [seq for seq in seqs if seq not in self._seqs]
        if new:
            # Those that are still told of must stay, or they would be new each time.
            found = set(seqs)
            earlier = [seq for seq in self._seqs if seq not in found][-KNOWN - 1 :]
            self._seqs = dict.fromkeys([*earlier, *seqs])
        return new

    def cleaned(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries as they are now: an answer or bell may be older than a redaction."""
        if not self._seqs or self._seqs.keys().isdisjoint(one.seq for one in entries):
            return entries
        return [redacted(one) if one.seq in self._seqs else one for one in entries]

    async def missed(self, database: Database, room_id: int, seq: int) -> list[int]:
        """Return what went since a client that has all up to `seq` was told.

        Right until the next await of the caller. Raises Unavailable.
        """
        known = self._up_to(seq)
        if len(self._seqs) <= KNOWN:
            return known
        missed = await redactions.after_message(database, room_id, seq, TOLD)
        # And what the ticker found in the meantime.
        told = {*known, *missed}
        return missed + [one for one in self._up_to(seq) if one not in told]

    def _up_to(self, seq: int) -> list[int]:
        return [one for one in self._seqs if one <= seq]
