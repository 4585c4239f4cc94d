"""Moving windows in memory: who did a thing how often of late.

Not the memory storage of `limits`, which keeps every key for ever and looks through all of them
in a thread. Here a key is gone once its window has passed, and each use pays for itself.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque

SWEEP = 2  # stale keys that a use takes away: more than it can add


class Windows:
    """At most `amount` uses in any `seconds`, for each key."""

    def __init__(self, amount: int, seconds: float) -> None:
        self.amount = amount
        self.seconds = seconds
        # When each key was used (monotonic seconds), oldest first; the key last used comes last.
        self._uses: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uses)

    def take(self, key: str) -> float:
        """Count a use and return 0; or, where it is one too many, the seconds to wait for one."""
        moment = time.monotonic()
        self._sweep(moment)
        uses = self._uses.setdefault(key, deque())
        self._uses.move_to_end(key)
        while uses and uses[0] <= moment - self.seconds:
            uses.popleft()
        if len(uses) >= self.amount:
            return uses[0] + self.seconds - moment
        uses.append(moment)
        return 0.0

    def _sweep(self, moment: float) -> None:
        for _ in range(SWEEP):
            key = next(iter(self._uses), None)
            if key is None or self._uses[key][-1] > moment - self.seconds:
                return
            del self._uses[key]
