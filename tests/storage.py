"""A log under test: open databases, drafts, and what the log holds afterwards."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from chat.errors import IdConflict, Unavailable
from chat.log.database import Database
from chat.log.repository import Repository, Room, Stored
from chat.log.statements import Draft
from chat.protocol import Person

# Seconds after which a test that waits has failed. Far above every limit of chat.log.
LIMIT = 25.0

MARIA = Person(7, "maria")
JUAN = Person(12, "juan")

_ids = itertools.count(1)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """Open the database for as long as the context lasts."""
    database = Database(url)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def repositories(url: str, count: int = 2) -> AsyncIterator[list[Repository]]:
    """Repositories with connections of their own, as those of several processes are."""
    async with AsyncExitStack() as stack:
        yield [Repository(await stack.enter_async_context(opened(url))) for _ in range(count)]


def draft(
    room: Room,
    text: str = "hola",
    *,
    id: str | None = None,
    sender: Person = MARIA,
    receiver: Person | None = None,
) -> Draft:
    """Make a draft, with an id that no other has unless one is given."""
    return Draft(room.id, id or f"c-{next(_ids)}", sender, receiver, text)


def stored(result: Stored | IdConflict | Unavailable) -> Stored:
    """Return the result if it says that the draft is in the log."""
    assert isinstance(result, Stored), repr(result)
    return result


def seqs(results: Sequence[Stored | IdConflict | Unavailable]) -> list[int]:
    return [stored(one).seq for one in results]


async def log_of(repository: Repository, room: Room) -> list[dict[str, Any]]:
    """Return the whole log of the room, decoded, oldest first."""
    return [json.loads(one.json) for one in await repository.read(room.id, 0, 1_000_000)]


async def change(database: Database, sql: str, **values: Any) -> None:
    """Change rows behind the back of the code under test."""
    # Without a result, `databases` cannot read the answer of SQLite.
    await database.rows(f"{sql} RETURNING 1", values)
