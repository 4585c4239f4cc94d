"""Times: milliseconds since 1970, UTC, in the log; RFC 3339 text on the wire."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
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


def milliseconds(text: str) -> int:
    """Return the time that `rfc3339` wrote so; raise ValueError for any other text."""
    # Counted in whole parts: a float would lose some milliseconds.
    with suppress(ValueError, TypeError, OverflowError):
        since = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
        moment = since // timedelta(milliseconds=1)
        if rfc3339(moment) == text:
            return moment
    raise ValueError(f"{text[:40]!r} is not a time such as 2026-11-24T10:00:00.123Z.")
