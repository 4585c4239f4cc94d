"""Many rings, few runs: at once the first time, then at most one run per interval.

What is folded is the caller's: it gathers what changed and looks at all of it in each run. No
task, only a timer of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Fold:
    def __init__(self, interval: float, act: Callable[[], None]) -> None:
        self._interval = interval  # seconds
        self._act = act
        # When the last run began (loop time).
        self._ran_at = float("-inf")
        # The run that is due; None while none is.
        self._due: asyncio.Handle | None = None
        self._closed = False

    def ring(self) -> None:
        """Run soon if the last run is an interval ago, else once at the interval's end."""
        if self._closed or self._due is not None:
            return
        loop = asyncio.get_running_loop()
        moment = self._ran_at + self._interval
        late = moment <= loop.time()
        self._due = loop.call_soon(self._run) if late else loop.call_at(moment, self._run)

    def close(self) -> None:
        """Run no more, not even what is due."""
        self._closed = True
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _run(self) -> None:
        # Both before the act: it may ring for the next run, and it may fail.
        self._due = None
        self._ran_at = asyncio.get_running_loop().time()
        self._act()
