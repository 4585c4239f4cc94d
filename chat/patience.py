"""How long a client waits for what, and how long it stays away before it tries again.

Called by `link.py` and `client.py`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

STEADY = 10.0  # seconds; a connection that stood so long starts the back-off anew
TOLD_MOST = 600.0  # seconds; whatever a server says, it is asked again after so long


@dataclass(frozen=True)
class Patience:
    """How many seconds a client waits for what; who must know of a dead server soon waits less."""

    # From asking for a token to the welcome; from `closing` to the close; for the answer to ours.
    welcome: float = 15.0
    closing: float = 10.0
    close: float = 2.0
    # Between two pings, and for an answer: most proxies cut what is silent for 60 s, and a pong
    # waits behind the frames before it.
    ping_interval: float = 20.0
    ping: float = 20.0
    # Before the next try: a random part of a limit that doubles, from the first to the most.
    backoff_first: float = 0.5
    backoff_most: float = 30.0


PATIENCE = Patience()


class Backoff:
    """How long to stay away: what the server said, or a random part of a limit that doubles."""

    def __init__(self, patience: Patience = PATIENCE) -> None:
        self._patience = patience
        self._limit = patience.backoff_first

    def pause(self, stood: float, told: float | None) -> float:
        """Return the seconds until the next try, after a connection that stood so long."""
        if stood > STEADY:
            self._limit = self._patience.backoff_first
        limit, self._limit = self._limit, min(2 * self._limit, self._patience.backoff_most)
        # Told or not, it tries ever more rarely where nothing comes of it.
        return min(max(random.uniform(0, limit), told or 0.0), TOLD_MOST)
