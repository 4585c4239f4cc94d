"""A whole room, read for an export and written for an import.

An import is all or nothing: its messages are stored under the id of a room that nobody has, in
small batches that never block sending, and the last step alone makes them a room. Called by
`chat.commands`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from chat.clock import now
from chat.log.database import Database
from chat.log.epochs import new_epoch
from chat.log.statements import Draft, PostgreSQL, SQLite
from chat.log.users import User
from chat.protocol import direct_pair

BATCH = 500  # messages in one transaction: some milliseconds
PAUSE = 0.01  # seconds between two batches, in which others store theirs


class Old(NamedTuple):
    """A message that has its place already."""

    draft: Draft
    seq: int
    sent_at: int  # ms
    redacted: bool


async def people(database: Database, ids: Iterable[int]) -> list[User]:
    """Return these users as they are now, by id; raise Unavailable."""
    listed = "SELECT value FROM json_each(:ids)"
    if not database.sqlite:
        listed = "SELECT CAST(json_array_elements_text(CAST(:ids AS json)) AS bigint)"
    rows = await database.rows(
        f"SELECT id, name, kind, disabled_at FROM users WHERE id IN ({listed}) ORDER BY id",
        {"ids": json.dumps(sorted(ids))},
    )
    return [User(*row) for row in rows]


async def stage(database: Database, batch: Sequence[Old]) -> None:
    """Store messages of a room that is not there yet; raise Unavailable."""
    if not batch:
        return
    statements = SQLite if database.sqlite else PostgreSQL
    async with database.transaction() as raw:
        await statements.insert(raw, [(one.draft, one.seq, one.sent_at) for one in batch])
        for one in batch:
            if one.redacted:
                await raw.execute(
                    "UPDATE messages SET redacted = true"
                    f" WHERE room_id = {one.draft.room_id:d} AND seq = {one.seq:d}"
                )
    await asyncio.sleep(PAUSE)


async def publish(
    database: Database, room_id: int, name: str, first_seq: int, last_seq: int, newest: int | None
) -> bool:
    """Make what was staged the room of this name; False where one has messages already.

    An empty room of this name becomes this one: who is in it starts afresh.
    """
    low, high = direct_pair(name) or (None, None)
    values = {
        "id": room_id,
        "name": name,
        "epoch": new_epoch(),
        "first": first_seq,
        "last": last_seq,
        "newest": newest,
        "at": now(),
        "low": low,
        "high": high,
    }
    made = await database.change(
        "INSERT INTO rooms (id, name, epoch, first_seq, last_seq, last_message_at, created_at,"
        " low_user, high_user)"
        " VALUES (:id, :name, :epoch, :first, :last, :newest, :at, :low, :high)"
        # Under another id than before: what is still said in the empty one is not confirmed.
        " ON CONFLICT (name) DO UPDATE SET id = excluded.id, epoch = excluded.epoch,"
        " first_seq = excluded.first_seq, last_seq = excluded.last_seq,"
        " last_message_at = excluded.last_message_at WHERE rooms.last_seq = 0 RETURNING id",
        values,
    )
    return bool(made)


async def discard(database: Database, room_id: int) -> None:
    """Take away what was staged, unless it is a room by now; raise Unavailable."""
    # Where the last step was not confirmed, it may have been made all the same.
    staged = "room_id = :id AND NOT EXISTS (SELECT 1 FROM rooms WHERE id = :id)"
    while True:
        rows = await database.rows(f"SELECT min(seq) FROM messages WHERE {staged}", {"id": room_id})
        if rows[0][0] is None:
            return
        await database.change(
            f"DELETE FROM messages WHERE {staged} AND seq < :seq RETURNING seq",
            {"id": room_id, "seq": rows[0][0] + BATCH},
        )
        await asyncio.sleep(PAUSE)
