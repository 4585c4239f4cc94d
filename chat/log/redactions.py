"""Texts that an operator took away: the row and its seq stay, the text is gone for good.

What was taken away is noted by the database's clock, and so found by the ticker of every node
(`log/heads.py`), whatever the relay does. Called by `chat.commands`; `live/taken_away.py` reads,
and `retention.py` trims.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

from chat.log.database import Database

MARGIN = 60_000  # ms; a ticker finds a redaction within half a second, where all is well
CHECKPOINT_TRIES = 10  # times that SQLite is asked to empty its write-ahead log …
CHECKPOINT_PAUSE = 0.2  # … and seconds between two of them: somebody reads in it


class Outcome(Enum):
    REDACTED = "taken away"
    REPEATED = "taken away before"
    MISSING = "there is no such message"


async def redact(database: Database, room_id: int, seq: int) -> Outcome:
    """Take a message's text away, and tell all nodes; raise Unavailable."""
    mark = "$1" if not database.sqlite else "?1", "$2" if not database.sqlite else "?2"
    at = f"room_id = {mark[0]} AND seq = {mark[1]}"
    find = f"SELECT redacted FROM messages WHERE {at}"
    take = f"UPDATE messages SET text = '', redacted = true WHERE {at}"
    # Anew, even where it was done before: who missed it is told.
    note = (
        f"INSERT INTO redactions (room_id, seq, redacted_at) VALUES ({mark[0]}, {mark[1]},"
        f" {database.clock}) ON CONFLICT (room_id, seq) DO UPDATE"
        " SET redacted_at = excluded.redacted_at"
    )
    async with database.transaction() as raw:
        if database.sqlite:
            found = await raw.execute_fetchall(find, (room_id, seq))
        else:
            found = await raw.fetch(find, room_id, seq)
        if not found:
            return Outcome.MISSING
        for statement in (take, note):
            if database.sqlite:
                await raw.execute(statement, (room_id, seq))
            else:
                await raw.execute(statement, room_id, seq)
    return Outcome.REPEATED if found[0][0] else Outcome.REDACTED


async def after_message(database: Database, room_id: int, seq: int, limit: int) -> list[int]:
    """Return at most `limit` seqs up to this one that were redacted after its message came.

    Who has that message was told of what went before, and MARGIN allows for the telling.
    """
    rows: list[Any] = await database.rows(
        "SELECT seq FROM redactions WHERE room_id = :room1 AND seq <= :seq1 AND redacted_at >="
        f" (SELECT sent_at - {MARGIN} FROM messages WHERE room_id = :room2 AND seq = :seq2)"
        " ORDER BY redacted_at DESC LIMIT :limit",
        {"room1": room_id, "seq1": seq, "room2": room_id, "seq2": seq, "limit": limit},
    )
    return [row[0] for row in rows][::-1]


async def trim(database: Database, room_id: int) -> None:
    """Let go of the notes on messages that the log does not hold any more; raise Unavailable."""
    await database.change(
        "DELETE FROM redactions WHERE room_id = :room1"
        " AND seq < (SELECT first_seq FROM rooms WHERE id = :room2) RETURNING seq",
        {"room1": room_id, "room2": room_id},
    )


async def forget(database: Database) -> bool:
    """Overwrite what SQLite's write-ahead log holds; False where somebody who reads hinders it.

    In the file itself nothing is left (`log/durable.py`). PostgreSQL has its own ways.
    """
    if not database.sqlite:
        return True
    for _ in range(CHECKPOINT_TRIES):
        [(busy, *_)] = await database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        if not busy:
            return True
        await asyncio.sleep(CHECKPOINT_PAUSE)
    return False


async def of_room(database: Database, room_id: int, limit: int) -> list[int]:
    """Return the seqs that were redacted last in this room, at most `limit`, the oldest first."""
    rows: list[Any] = await database.rows(
        "SELECT seq FROM redactions WHERE room_id = :room ORDER BY redacted_at DESC LIMIT :limit",
        {"room": room_id, "limit": limit},
    )
    return [row[0] for row in rows][::-1]
