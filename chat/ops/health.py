"""Whether this process can do its work: the answer of `/readyz`.

`ok`: everything. `degraded`: messages are taken and delivered, but later than they should be.
`unavailable`: the database is away or takes no messages, or a task of ours died or hangs.
No addresses, no error texts.
"""

from __future__ import annotations

import asyncio
from typing import Any

from chat.clock import now, rfc3339
from chat.errors import Unavailable
from chat.live.hub import Hub
from chat.live.relay import Relay
from chat.live.tasks import Tasks
from chat.log.database import Database
from chat.log.writer import Writer

DATABASE_PATIENCE = 1.5  # seconds; the answer is due within two
# Seconds since the ticker's last look. One may take five, and closes empty rooms besides.
TICKER_PATIENCE = 15.0


async def readiness(
    database: Database, writer: Writer, relay: Relay, tasks: Tasks, hub: Hub
) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the report."""
    checks = {
        "database": await _database(database, writer, hub),
        "relay": _relay(relay),
        "tasks": _tasks(tasks, hub),
    }
    status = "ok"
    if relay.lost:
        status = "degraded"
    if "unavailable" in (checks["database"]["status"], checks["tasks"]["status"]):
        status = "unavailable"
    return (503 if status == "unavailable" else 200), {"status": status, "checks": checks}


async def _database(database: Database, writer: Writer, hub: Hub) -> dict[str, Any]:
    failing_since = writer.failing_since
    try:
        if failing_since is None:
            if await database.reads_only(DATABASE_PATIENCE):
                raise Unavailable("It is read-only.")
        else:
            # A full disk still answers, and nobody may send until we say that all is well.
            await writer.check(DATABASE_PATIENCE)
    except Unavailable as error:
        if isinstance(error.__cause__, TimeoutError):
            reason = "it does not answer in time"
        elif error.__cause__ is None:
            reason = "it is read-only"
        elif hub.database_lost_since is None and failing_since is not None:
            reason = "it answers, but takes no messages: is its disk full, or a table locked?"
        else:
            reason = "it cannot be reached"
        since = rfc3339(hub.database_lost_since or failing_since or now())
        return {"status": "unavailable", "since": since, "reason": reason}
    return {"status": "ok"}


def _relay(relay: Relay) -> dict[str, Any]:
    trip = relay.round_trip
    report: dict[str, Any] = {
        "status": "lost" if relay.lost else "ok",
        "round_trip_ms": None if trip is None else round(trip * 1000, 1),
    }
    if relay.lost_since is not None:
        report["since"] = rfc3339(int(relay.lost_since * 1000))
        report["reason"] = relay.reason
    return report


def _tasks(tasks: Tasks, hub: Hub) -> dict[str, Any]:
    failed = set(tasks.failed)
    if hub.hangs(asyncio.get_running_loop().time() - TICKER_PATIENCE):
        failed.add("ticker")
    return {"status": "unavailable" if failed else "ok", "failed": sorted(failed)}
