"""The chat from within, for `healthcheck.py`: the database and the key, where they are at hand.

The tables are left as they are. Where the key is there, too, two site users are made, and a token
for their direct room, which nobody else may enter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from chat.commands.place import Failing
from chat.errors import SettingsError, Unavailable
from chat.log.database import Database
from chat.log.faults import FAULTS, describe
from chat.log.migrations import NEWEST, is_newer, standing
from chat.log.repository import Repository
from chat.log.retention import CHECKERS
from chat.log.users import Users
from chat.log.writer import Writer
from chat.ops.secret import kept_key, with_secret_key
from chat.settings import Settings
from chat.web.identity import Identities

WRITE_LIMIT = 3.0  # seconds; the check has four for everything
TOKEN_TTL = 60  # seconds

SILENT = "is it overloaded, or does somebody lock its tables?"


class Entry(NamedTuple):
    """A token, and the one room that it is good for."""

    token: str
    room: str
    # Where its log ends, of which epoch; None where nobody was there yet.
    since: int | None
    epoch: str | None
    # Whether the user of the token may not enter.
    disabled: bool


class AtHand(NamedTuple):
    # Whether there was a database to be tried; it is well then.
    database: bool
    # None where there is no key.
    entry: Entry | None


async def at_hand(settings: Settings, environ: Mapping[str, str]) -> AtHand:
    """Try the database, where there is one; return what it and the key are good for.

    Raises Failing where the database cannot be reached, is not migrated, or takes no writes.
    """
    file = settings.sqlite_file
    try:
        if settings.on_sqlite and not await asyncio.to_thread(file.exists):
            if not environ.get("CHAT_DATABASE_URL"):
                return AtHand(False, None)
            raise Failing(f"There is no file {file}: is this the folder that the chat runs in?")
        current = await standing(settings.database_url)
    except FAULTS as error:
        raise Failing(
            f"From here it cannot be opened: {describe(error)}. Does it run where"
            " CHAT_DATABASE_URL says?"
        ) from error
    if current is not None and is_newer(current):
        raise Failing(
            f"Its tables are at step {current}, which a newer version made: install that one here."
        )
    if current != NEWEST:
        raise Failing(
            f"Its tables are at step {current or 'none'}, not {NEWEST}: the next start of a node"
            " with this version brings them up to date."
        )
    database = Database(settings.database_url)
    try:
        await database.open()
        await Writer(Repository(database), lambda *_: None).check(WRITE_LIMIT)
        return AtHand(True, await _entry(settings, database))
    except Unavailable as error:
        reason = describe(error.__cause__ or error)
        ending = f": {SILENT}" if isinstance(error.__cause__, TimeoutError) else "."
        raise Failing(f"From here it takes no messages: {reason}{ending}") from error
    finally:
        await database.close()


async def _entry(settings: Settings, database: Database) -> Entry | None:
    try:
        if not settings.secret_key and kept_key() is None:
            return None  # one that is made now would be of no use
        settings = with_secret_key(settings)
    except SettingsError:
        return None  # it is somebody else's
    users = Users(database)
    one, other = [await users.site_user(name) for name in CHECKERS]
    low, high = sorted((one.id, other.id))
    room = f"dm.{low}.{high}"
    token, _ = Identities(settings, users).mint(one, room, TOKEN_TTL)
    found = await Repository(database).find_room(room)
    since, epoch = (found.last_seq, found.epoch) if found else (None, None)
    return Entry(token, room, since, epoch, one.disabled_at is not None)
