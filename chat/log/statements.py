"""The statements of an append, for each database: one a step, whatever the number of messages.

PostgreSQL takes its lists as arrays, SQLite as JSON or row by row. Only `repository.append` runs
them, in this order: lock, known, insert, advance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from chat.protocol import Person


class Draft(Struct, frozen=True):
    """A message that is not yet committed."""

    room_id: int
    id: str
    sender: Person
    receiver: Person | None
    text: str

    @property
    def key(self) -> tuple[int, int, str]:
        return (self.room_id, self.sender.id, self.id)

    def says(self, text: str, receiver_id: int | None) -> bool:
        mine = self.receiver.id if self.receiver else None
        return self.text == text and mine == receiver_id


@dataclass(slots=True)
class Head:
    """A locked room, while an append counts on."""

    room_id: int
    epoch: str
    last_seq: int
    at: int


_COLUMNS = (
    "room_id, seq, message_id, sender_id, sender_name, receiver_id, receiver_name, text, sent_at"
)


def _row(draft: Draft, seq: int, at: int) -> tuple[Any, ...]:
    receiver = draft.receiver
    return (
        draft.room_id,
        seq,
        draft.id,
        draft.sender.id,
        draft.sender.name,
        receiver.id if receiver else None,
        receiver.name if receiver else None,
        draft.text,
        at,
    )


class PostgreSQL:
    """Over asyncpg."""

    @staticmethod
    async def lock(raw: Any, room_ids: list[int]) -> dict[int, Head]:
        rows = await raw.fetch(
            "SELECT id, epoch, last_seq, coalesce(last_message_at, 0) FROM rooms"
            " WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE",
            room_ids,
        )
        return {row[0]: Head(*row) for row in rows}

    @staticmethod
    async def known(raw: Any, keys: list[tuple[int, int, str]]) -> dict[Any, Any]:
        rows = await raw.fetch(
            "SELECT m.room_id, m.sender_id, m.message_id, seq, sent_at, text, receiver_id, redacted"
            " FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS k(room_id, sender_id, id)"
            # OFFSET 0 keeps it a look into the index for each key. A plan made while the table
            # was small would read all of it, and be kept while the table grows.
            " CROSS JOIN LATERAL (SELECT * FROM messages m WHERE m.room_id = k.room_id"
            " AND m.sender_id = k.sender_id AND m.message_id = k.id OFFSET 0) AS m",
            *map(list, zip(*keys, strict=True)),
        )
        return {(row[0], row[1], row[2]): tuple(row[3:]) for row in rows}

    @staticmethod
    async def insert(raw: Any, new: list[tuple[Draft, int, int]]) -> None:
        await raw.execute(
            f"INSERT INTO messages ({_COLUMNS}) SELECT * FROM unnest($1::bigint[], $2::bigint[],"
            " $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::text[], $8::text[],"
            " $9::bigint[])",
            *map(list, zip(*(_row(*one) for one in new), strict=True)),
        )

    @staticmethod
    async def advance(raw: Any, heads: list[Head]) -> None:
        await raw.execute(
            "UPDATE rooms SET last_seq = h.last_seq, last_message_at = h.at"
            " FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS h(id, last_seq, at)"
            " WHERE rooms.id = h.id",
            [head.room_id for head in heads],
            [head.last_seq for head in heads],
            [head.at for head in heads],
        )


class SQLite:
    """Over aiosqlite."""

    @staticmethod
    async def lock(raw: Any, room_ids: list[int]) -> dict[int, Head]:
        # BEGIN IMMEDIATE holds the lock already, for all rooms.
        rows = await raw.execute_fetchall(
            "SELECT id, epoch, last_seq, coalesce(last_message_at, 0) FROM rooms"
            " WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(room_ids),),
        )
        return {row[0]: Head(*row) for row in rows}

    @staticmethod
    async def known(raw: Any, keys: list[tuple[int, int, str]]) -> dict[Any, Any]:
        rows = await raw.execute_fetchall(
            "SELECT m.room_id, m.sender_id, m.message_id, seq, sent_at, text, receiver_id, redacted"
            " FROM json_each(?) AS k CROSS JOIN messages m"
            " ON m.room_id = json_extract(k.value, '$[0]')"
            " AND m.sender_id = json_extract(k.value, '$[1]')"
            " AND m.message_id = json_extract(k.value, '$[2]')",
            (json.dumps(keys),),
        )
        return {(row[0], row[1], row[2]): tuple(row[3:]) for row in rows}

    @staticmethod
    async def insert(raw: Any, new: list[tuple[Draft, int, int]]) -> None:
        await raw.executemany(
            f"INSERT INTO messages ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [_row(*one) for one in new],
        )

    @staticmethod
    async def advance(raw: Any, heads: list[Head]) -> None:
        await raw.executemany(
            "UPDATE rooms SET last_seq = ?, last_message_at = ? WHERE id = ?",
            [(head.last_seq, head.at, head.room_id) for head in heads],
        )
