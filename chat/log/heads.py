"""One look at all that may have changed behind a process' back: what its ticker asks for.

Heads of rooms, sessions and users that were revoked, and texts that were taken away, in a single
query. `Repository.heads` asks it twice a second in each process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from chat.log.database import Database

# ms; longer than any transaction that revokes or takes away may take to commit, and than any
# answer of the database that is older than that may be under way.
REVOCATION_OVERLAP = 30_000


class Heads(NamedTuple):
    """One look at all open rooms: id to (epoch, first_seq, last_seq), and what was revoked."""

    rooms: dict[int, tuple[str, int, int]]
    sids: list[str]
    users: list[int]
    redacted: dict[int, list[int]]  # by room: seqs whose text was taken away lately
    clock: int  # ms by the database's clock


async def look(database: Database, room_ids: Sequence[int], since: int) -> Heads:
    """Look once at all these rooms, and at what was revoked or redacted after `since` (ms)."""
    since -= REVOCATION_OVERLAP
    async with database.connection() as connection:
        raw: Any = connection.raw_connection
        if database.sqlite:
            ids = "IN (SELECT value FROM json_each(?1))"
            sql = _PARTS.format(ids=ids, since="?2", clock=database.clock)
            rows = await raw.execute_fetchall(sql, (json.dumps(room_ids), since))
        else:
            sql = _PARTS.format(ids="= ANY($1::bigint[])", since="$2", clock=database.clock)
            rows = await raw.fetch(sql, room_ids, since)
    redacted: dict[int, list[int]] = {}
    for row in rows:
        if row[0] == 3:
            redacted.setdefault(row[1], []).append(row[3])
    return Heads(
        {row[1]: (row[2], row[3], row[4]) for row in rows if row[0] == 0},
        [row[2] for row in rows if row[0] == 1],
        [row[1] for row in rows if row[0] == 2],
        redacted,
        next(row[1] for row in rows if row[0] == 4),
    )


_PARTS = (
    "SELECT 0 AS kind, id, epoch AS text, first_seq, last_seq FROM rooms WHERE id {ids}"
    " UNION ALL SELECT 1, 0, sid, 0, 0 FROM sessions WHERE revoked_at > {since}"
    " UNION ALL SELECT 2, id, '', 0, 0 FROM users WHERE disabled_at > {since}"
    " UNION ALL SELECT 3, room_id, '', seq, 0 FROM redactions"
    " WHERE redacted_at > {since} AND room_id {ids}"
    " UNION ALL SELECT 4, {clock}, '', 0, 0"
)
