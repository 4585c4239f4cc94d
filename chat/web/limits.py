"""How often one may do a thing: moving windows, by the `limits` package.

Shared over Redis where there is one, so that a user's tabs on several nodes count together; kept
in memory while the relay is lost or Redis takes too long, because a limit never delays a message.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from limits import RateLimitItem, parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter as SharedWindow
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from chat.errors import RateLimited
from chat.ops import metrics
from chat.settings import Settings
from chat.web.windows import Windows

logger = logging.getLogger(__name__)

REDIS_PATIENCE = 0.05  # seconds that a question to Redis may take
SHORTEST_WAIT = 0.1  # seconds; what a client is told at least


class Limits:
    def __init__(self, settings: Settings, prefix: str, relay_lost: Callable[[], bool]) -> None:
        self.send = _rate(settings.send_rate)
        self.frame = _rate(settings.frame_rate)
        self.sign_in = _rate(settings.sign_in_rate)
        self.room = _rate(settings.room_rate)
        self._relay_lost = relay_lost
        # By what is limited.
        self._local: dict[str, Windows] = {}
        self._pool: ConnectionPool | None = None
        self._shared: SharedWindow | None = None
        if settings.relay_url != "memory://":
            # Read as the relay reads it: `limits` by itself wants a port in an address.
            self._pool = ConnectionPool.from_url(settings.relay_url)
            options: dict[str, Any] = {"connection_pool": self._pool}
            storage = RedisStorage(
                "async+redis://",
                implementation="redispy",
                key_prefix=f"{prefix}.limit",
                **options,
            )
            self._shared = SharedWindow(storage)

    async def take(self, rate: RateLimitItem | None, what: str, who: str) -> None:
        """Count one use over all nodes; raise RateLimited where it is one too many."""
        if rate is None:
            return
        if self._shared is not None:
            try:
                if self._relay_lost():
                    raise ConnectionError("the relay is lost")
                async with asyncio.timeout(REDIS_PATIENCE):
                    if await self._shared.hit(rate, what, who):
                        return
                    stats = await self._shared.get_window_stats(rate, what, who)
                raise _refusal(rate, stats.reset_time - time.time())
            except (RedisError, TimeoutError, OSError) as error:
                metrics.FALLBACKS.add()
                logger.debug("Limits are kept in memory for now: %s", type(error).__name__)
        self.take_local(rate, what, who)

    def take_local(self, rate: RateLimitItem | None, what: str, who: str) -> None:
        """Count one use in this process only; raise RateLimited where it is one too many."""
        if rate is None:
            return
        windows = self._local.get(what)
        if windows is None:
            windows = self._local[what] = Windows(rate.amount, rate.get_expiry())
        wait = windows.take(who)
        if wait:
            raise _refusal(rate, wait)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()


def _rate(text: str | None) -> RateLimitItem | None:
    return parse(text) if text else None


def _refusal(rate: RateLimitItem, wait: float) -> RateLimited:
    wait = max(SHORTEST_WAIT, math.ceil(wait * 10) / 10)
    return RateLimited(
        f"That was too often: at most {rate.amount} per {_window(rate)}. "
        f"Try again in {math.ceil(wait)} s.",
        retry_after=wait,
    )


def _window(rate: RateLimitItem) -> str:
    return str(rate.GRANULARITY.name)
