"""Times: milliseconds since 1970, UTC, in the log; RFC 3339 text on the wire."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache


def now() -> int:
    """Return the time as the log keeps it, in milliseconds."""
    return time.time_ns() // 1_000_000


# All messages of a batch have one time, and their acks name it again.
@lru_cache(maxsize=1024)
def rfc3339(milliseconds: int) -> str:
    """Return the time as the contract writes it: UTC, with milliseconds and `Z`."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"
