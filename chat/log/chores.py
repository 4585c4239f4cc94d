"""Work that one process of a deployment does for all of them.

A chore is held for a while by the database's clock, and each step of the work prolongs it in its
own transaction: who lost it does nothing more. A process that dies leaves it to run out.
"""

from __future__ import annotations

from typing import Any

from chat.log.database import Database

HELD_FOR = 30_000  # ms; far more than a step and the pause behind it take


async def hold(database: Database, raw: Any, name: str, holder: str) -> bool:
    """Take the chore, or keep it, within the transaction of `raw`; False where another has it."""
    marks = ("?1", "?2") if database.sqlite else ("$1", "$2")
    sql = (
        f"INSERT INTO chores AS c (name, holder, held_until)"
        f" VALUES ({marks[0]}, {marks[1]}, {database.clock} + {HELD_FOR})"
        " ON CONFLICT (name) DO UPDATE"
        " SET holder = excluded.holder, held_until = excluded.held_until"
        f" WHERE c.holder = excluded.holder OR c.held_until < {database.clock} RETURNING 1"
    )
    if database.sqlite:
        return bool(await raw.execute_fetchall(sql, (name, holder)))
    return bool(await raw.fetch(sql, name, holder))
