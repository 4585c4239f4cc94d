"""A room's epoch names its log: under another epoch no cursor into the old log is good any more.

`log/repository.py` gives each new room one. `live/hub.py` renews those of rooms whose log went
back to an older state without it, since nobody else would ever know.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

from chat.log.database import Database

EPOCH_BYTES = 9  # random bytes: never twice


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
