"""A room's epoch names its log: under another epoch no cursor into the old log is good any more.

`log/repository.py` gives each new room one. `live/hub.py` renews those of rooms whose log went
back to an older state without it, since nobody else would ever know. `chat.commands` renews all:
the last step of each restore.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from chat.log.database import Database

EPOCH_BYTES = 9  # random bytes: never twice
RENEWAL_LIMIT = 600.0  # seconds for all rooms and members of a deployment


def new_epoch() -> str:
    return secrets.token_urlsafe(EPOCH_BYTES)


async def renew(database: Database, rooms: Sequence[tuple[int, str]]) -> None:
    """Give these rooms a new epoch, by id and old epoch; raise Unavailable.

    Where another process was faster, its epoch stays.
    """
    keys = "SELECT value FROM json_each(:keys)"
    if not database.sqlite:
        keys = "SELECT json_array_elements_text(CAST(:keys AS json))"
    await database.change(
        "UPDATE rooms SET epoch = CAST(:new AS text) || CAST(id AS text)"
        f" WHERE CAST(id AS text) || ' ' || epoch IN ({keys}) RETURNING id",
        {"new": new_epoch(), "keys": json.dumps([f"{id} {epoch}" for id, epoch in rooms])},
    )


async def renew_all(database: Database) -> tuple[int, int]:
    """Give every room a new epoch and cap read markers at the heads; raise Unavailable.

    Returns how many rooms there are, and how many markers were ahead of what is there.
    """
    rooms = "UPDATE rooms SET epoch = CAST({} AS text) || CAST(id AS text)"
    markers = (
        "UPDATE members SET last_read_seq = r.last_seq FROM rooms r"
        " WHERE r.id = room_id AND last_read_seq > r.last_seq"
    )
    async with database.transaction(RENEWAL_LIMIT) as raw:
        if database.sqlite:
            renewed = await raw.execute(rooms.format("?1"), (new_epoch(),))
            capped = await raw.execute(markers)
            return renewed.rowcount, capped.rowcount
        limit = RENEWAL_LIMIT
        renewed = await raw.execute(rooms.format("$1"), new_epoch(), timeout=limit)
        capped = await raw.execute(markers, timeout=limit)
        return _count(renewed), _count(capped)


def _count(status: str) -> int:
    """Return the number in PostgreSQL's answer to an UPDATE."""
    return int(status.rpartition(" ")[2])


def holds_open(path: Path) -> bool:
    """Tell whether another process has this SQLite file open; before one does so oneself.

    What is wrong with the file besides, who opens it is told.
    """
    if not os.path.exists(path):
        return False
    try:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            # To have a file for oneself, nobody else may even be connected.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what SQLite adds to it
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return False


async def are_connected(database: Database) -> bool:
    """Tell whether other processes of ours are connected to this PostgreSQL database."""
    row = await database.row(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tertulia'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    return row is not None and row[0] > 0
