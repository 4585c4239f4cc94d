"""One flight for all who ask for the same: a crowd that comes back at once reads once."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Flights(Generic[K, V]):
    def __init__(self) -> None:
        # The calls that are under way, by what they ask for.
        self.under_way: dict[K, asyncio.Task[V]] = {}

    async def join(self, key: K, call: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return what `call()` brings, or the call for this key that is under way already.

        Who is cancelled leaves the others their flight.
        """
        task = self.under_way.get(key)
        if task is None:
            # In no context: it is everybody's, and so are the lines of what it starts.
            task = asyncio.create_task(call(), name=f"flight {key}", context=contextvars.Context())
            self.under_way[key] = task
            task.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(task)

    def _landed(self, key: K, task: asyncio.Task[V]) -> None:
        del self.under_way[key]
        if not task.cancelled():
            # Those who waited may all be gone; then nobody needs to hear of a fault.
            task.exception()
