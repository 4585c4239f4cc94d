"""Who was ever in a room, when last, and how far they have read; none of it goes backwards.

What is to be stored comes in batches from `log/marks.py`; `web/api.py` reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from chat.log.database import Database


class Mark(NamedTuple):
    """That a user was in a room at a time, and has read up to a seq there."""

    room_id: int
    user_id: int
    seen_at: int  # ms
    read_seq: int  # 0: nothing is said about it


class MemberRow(NamedTuple):
    id: int
    name: str
    last_seen_at: int | None  # ms; None: never entered
    last_read_seq: int


class Members:
    def __init__(self, database: Database) -> None:
        self.database = database

    async def save(self, marks: Iterable[Mark]) -> None:
        """Store the marks, each only as far as it goes beyond what is stored; raise Unavailable.

        At most one for each user in a room.
        """
        # In order: two nodes that save the same members must not wait for each other.
        rows = sorted(marks)
        if not rows:
            return
        if self.database.sqlite:
            async with self.database.transaction() as raw:
                await raw.executemany(f"{_SAVE} VALUES (?, ?, ?, ?) {_ADVANCE_SQLITE}", rows)
            return
        columns = [list(column) for column in zip(*rows, strict=True)]
        async with self.database.connection() as connection:
            postgresql: Any = connection.raw_connection
            await postgresql.execute(
                f"{_SAVE} SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[],"
                f" $4::bigint[]) {_ADVANCE_POSTGRESQL}",
                *columns,
            )

    async def of_room(self, room_id: int, after: int, limit: int) -> list[MemberRow]:
        """Return at most `limit` who ever entered, with ids above `after`, in their order."""
        rows = await self.database.rows(
            "SELECT u.id, u.name, m.last_seen_at, m.last_read_seq"
            " FROM members m JOIN users u ON u.id = m.user_id"
            " WHERE m.room_id = :room AND m.user_id > :after ORDER BY m.user_id LIMIT :n",
            {"room": room_id, "after": after, "n": limit},
        )
        return [MemberRow(*row) for row in rows]

    async def of_direct(self, room_id: int, pair: tuple[int, int]) -> list[MemberRow]:
        """Return both users of a direct room, whether they ever entered or not, by id."""
        rows = await self.database.rows(
            "SELECT u.id, u.name, m.last_seen_at, COALESCE(m.last_read_seq, 0)"
            " FROM users u LEFT JOIN members m ON m.room_id = :room AND m.user_id = u.id"
            " WHERE u.id IN (:low, :high) ORDER BY u.id",
            {"room": room_id, "low": pair[0], "high": pair[1]},
        )
        return [MemberRow(*row) for row in rows]

    async def last_read(self, user_id: int, room_ids: Sequence[int]) -> dict[int, int]:
        """Return how far the user has read, for those of the rooms that they ever entered."""
        what = "SELECT room_id, last_read_seq FROM members WHERE user_id"
        async with self.database.connection() as connection:
            raw: Any = connection.raw_connection
            if self.database.sqlite:
                sql = f"{what} = ?1 AND room_id IN (SELECT value FROM json_each(?2))"
                rows = await raw.execute_fetchall(sql, (user_id, json.dumps(list(room_ids))))
            else:
                sql = f"{what} = $1 AND room_id = ANY($2::bigint[])"
                rows = await raw.fetch(sql, user_id, list(room_ids))
        return {row[0]: row[1] for row in rows}


_SAVE = "INSERT INTO members AS m (room_id, user_id, last_seen_at, last_read_seq)"
_ADVANCE = (
    "ON CONFLICT (room_id, user_id) DO UPDATE SET"
    " last_seen_at = {greatest}(m.last_seen_at, excluded.last_seen_at),"
    " last_read_seq = {greatest}(m.last_read_seq, excluded.last_read_seq)"
)
_ADVANCE_SQLITE = _ADVANCE.format(greatest="max")
_ADVANCE_POSTGRESQL = _ADVANCE.format(greatest="GREATEST")
