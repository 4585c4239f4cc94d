"""What keeps one fault from filling the disk: of equal warnings only the first ones are written.

A database that is away has one line for each message that cannot be saved. The first lines say it
all; what is left out is told in one line, once its time is over. Used by `logging.py`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable

ALLOWED = 10  # equal lines …
WINDOW = 10.0  # … in so many seconds, from the first one on
# Texts that are remembered: some hold what strangers send, so there is no end of them.
KINDS = 1_000

Kind = tuple[str, int, str]  # logger, level, text


class Repeats:
    """Counts equal warnings and errors; `emit` writes the line about those left out."""

    def __init__(
        self,
        emit: Callable[[logging.LogRecord], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._emit = emit
        self._clock = clock
        # When the window of each kind began, and how many there were since; the oldest first.
        self._kinds: dict[Kind, tuple[float, int]] = {}

    def allow(self, record: logging.LogRecord) -> bool:
        """Tell whether this line is to be written."""
        moment = self._clock()
        self.tell(moment - WINDOW)
        if record.levelno < logging.WARNING:
            return True
        kind = (record.name, record.levelno, record.getMessage())
        began, count = self._kinds.get(kind, (moment, 0))
        if count == 0 and len(self._kinds) >= KINDS:
            self._end(next(iter(self._kinds)))
        self._kinds[kind] = (began, count + 1)
        if count == ALLOWED:
            self._remind(began + WINDOW - moment)
        return count < ALLOWED

    def tell(self, before: float | None = None) -> None:
        """End the windows that began before this time, or all, and say what was left out."""
        for kind, (began, _) in list(self._kinds.items()):
            if before is not None and began > before:
                break
            self._end(kind)

    def _end(self, kind: Kind) -> None:
        _, count = self._kinds.pop(kind)
        if count > ALLOWED:
            name, level, text = kind
            left_out = count - ALLOWED
            self._emit(
                logging.LogRecord(
                    name, level, "", 0, "Left out %d more of: %s", (left_out, text), None
                )
            )

    def _remind(self, seconds: float) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the next line, of whatever kind, or the end of the process brings it
        # Of no request: what was left out may be of many.
        loop.call_later(
            seconds,
            lambda: self.tell(self._clock() - WINDOW),
            context=contextvars.Context(),
        )
