"""Whether this process can do its work: the answer of `/readyz`.

`ok`: everything. `degraded`: messages are taken and delivered, but later than they should be.
`unavailable`: the database is away, or a task of ours died. No addresses, no error texts.
"""

from __future__ import annotations

from typing import Any

from chat.clock import rfc3339
from chat.errors import Unavailable
from chat.live.relay import Relay
from chat.live.tasks import Tasks
from chat.log.database import Database

DATABASE_PATIENCE = 1.5  # seconds; the answer is due within two


async def readiness(database: Database, relay: Relay, tasks: Tasks) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the report."""
    reached = await _reached(database)
    alive = not tasks.failed
    status = "ok"
    if relay.lost:
        status = "degraded"
    if not reached or not alive:
        status = "unavailable"
    checks = {
        "database": {"status": "ok" if reached else "unavailable"},
        "relay": _relay(relay),
        "tasks": {"status": "ok" if alive else "unavailable", "failed": sorted(tasks.failed)},
    }
    return (503 if status == "unavailable" else 200), {"status": status, "checks": checks}


async def _reached(database: Database) -> bool:
    try:
        async with database.connection(DATABASE_PATIENCE) as connection:
            await connection.fetch_one("SELECT 1")
    except Unavailable:
        return False
    return True


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
