"""The pings of all WebSockets of one server, sent by one timer.

Hypercorn keeps a sleeping task for every socket instead, 2 KiB each, which also holds on to a
socket that has ended until it wakes. `stream.py` joins a socket once it is accepted. Nobody looks
for the pongs here: silence ends a connection by `read_timeout`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

# Groups that take turns within one interval: each tick pings only one in so many sockets.
TURNS = 20


class Pinged(Protocol):
    """A socket that can send a ping without waiting."""

    def ping(self) -> None: ...


class Pulse:
    """Pings all sockets of one server, each once per interval, with one timer and no task."""

    def __init__(self, interval: float) -> None:
        self.interval = interval  # seconds
        self.turns: list[set[Pinged]] = [set() for _ in range(TURNS)]
        # The turn that is pinged next, and the one that the next socket joins: they differ, so
        # that a crowd that comes at once is spread over the interval.
        self.next_ping = self.next_join = 0
        self.members = 0
        self.timer: asyncio.TimerHandle | None = None

    def join(self, stream: Pinged) -> set[Pinged]:
        """Ping this socket from now on; the answer is for `leave`."""
        turn = self.turns[self.next_join]
        self.next_join = (self.next_join + 1) % TURNS
        turn.add(stream)
        self.members += 1
        if self.timer is None:
            self._arm()
        return turn

    def leave(self, stream: Pinged, turn: set[Pinged]) -> None:
        """Forget this socket."""
        turn.remove(stream)
        self.members -= 1
        if self.members == 0 and self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(self.interval / TURNS, self._tick)

    def _tick(self) -> None:
        self._arm()
        for stream in self.turns[self.next_ping]:
            stream.ping()
        self.next_ping = (self.next_ping + 1) % TURNS
