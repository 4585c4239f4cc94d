"""The background tasks of a process: none of them ever dies in silence.

A task that ends unexpectedly is an ERROR line and fails readiness, and is started again after a
pause. Started by `app.py`; `ops/health.py` asks for `failed`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from chat.ops import metrics

logger = logging.getLogger(__name__)

RESTART_PAUSE = 0.5  # seconds; a task that dies at once must not spin
STOP_STEP = 0.2  # seconds between two cancels: Python 3.11 may swallow one
STOP_LIMIT = 3.0  # seconds for all tasks to end
PROVEN = 5.0  # seconds that a restarted task must live until readiness trusts it again


class Tasks:
    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        # Names of the tasks that died and have not proved themselves since.
        self.failed: set[str] = set()

    def start(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `run()` for ever, again and again if need be."""
        task = asyncio.create_task(self._watch(name, run), name=name)
        self._tasks.append(task)
        task.add_done_callback(lambda _: self._ended(name, run))

    async def close(self) -> None:
        """Cancel all tasks, the newest first, and wait for them."""
        self._closing = True
        await stop(reversed(self._tasks))

    def _ended(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if not self._closing:
            # Only a cancel gets this far, and only we may send one.
            logger.error("Task %s was cancelled by somebody else; it is started again", name)
            self._died(name)
            self._tasks = [task for task in self._tasks if not task.done()]
            self.start(name, run)

    async def _watch(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        this = asyncio.current_task()
        assert this is not None
        while not self._closing:
            proven = asyncio.get_running_loop().call_later(PROVEN, self.failed.discard, name)
            try:
                await run()
                if this.cancelling():
                    return
                logger.error("Task %s ended though it should not; it is started again", name)
            except (Exception, asyncio.CancelledError):
                if this.cancelling():
                    raise
                # A cancel that was not meant for us: something that it waited for was cancelled.
                logger.exception("Task %s failed; it is started again", name)
            finally:
                proven.cancel()
            self._died(name)
            await asyncio.sleep(RESTART_PAUSE)

    def _died(self, name: str) -> None:
        self.failed.add(name)
        metrics.RESTARTED.add(name)


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel until done, STOP_LIMIT at most."""
    left = {task for task in tasks if not task.done()}
    deadline = asyncio.get_running_loop().time() + STOP_LIMIT
    while left and asyncio.get_running_loop().time() < deadline:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=STOP_STEP)
