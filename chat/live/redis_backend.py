"""Broadcaster's Redis backend, supervised.

Broadcaster's own goes deaf for ever at the first lost connection, and tells nobody. Here one task
runs sessions with Redis (redis_session.py), one after the other, with growing pauses between them,
and keeps what outlives a session: the wanted channels, the outbox, and whether the relay is lost.
Each confirmed subscription is reported as a gap; nothing is ever repeated: the log mends what was
lost. Only `relay` makes one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from broadcaster import Event
from broadcaster._backends.redis import RedisBackend
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from chat.live.outbox import Outbox, pack_publish
from chat.live.redis_session import CONNECT_SECONDS, RedisSession, Silence, reason_of
from chat.live.tasks import stop
from chat.ops import metrics

# Seconds between attempts: at random up to a ceiling that doubles. The longest pause and one
# attempt end within 5 s of Redis' return.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
# A session that lasted this long (seconds) ends the growth: one that is cut again and again must
# not come back ten times a second.
STEADY_SECONDS = 10.0
# How long the start waits for Redis' first word (seconds), so that a healthy one is not "lost".
OPEN_SECONDS = 1.0
# What may wait for Broadcaster's listener. redis-py parses up to 128 KiB without a pause, which
# can be 2,000 of the shortest announcements.
INBOX_EVENTS = 4_096

# What a payload on the control channel begins with.
BEAT = b"beat "
TELL = b"tell "

logger = logging.getLogger(__name__)


class SupervisedRedis(RedisBackend):
    """A `BroadcastBackend` that survives whatever happens to Redis, and says so."""

    def __init__(
        self,
        url: str,
        *,
        process: str,
        control: str,
        on_gap: Callable[[str], None],
        on_control: Callable[[str], None],
    ) -> None:
        # Not RedisBackend's own: it makes one client for all its life, and that is its fault.
        self._make = connections(url)
        self._control = control.encode()
        # Our heartbeats, up to the time; everybody else's are none of ours.
        self._beat = BEAT + process.encode() + b" "
        self._on_gap = on_gap
        self._on_control = on_control
        # Read from outside.
        self.outbox = Outbox()
        self.lost = True
        self.lost_since: float | None = None
        self.reason = "not connected yet"
        self.round_trip: float | None = None
        self.reconnects = 0
        # Channels somebody listens to.
        self._wanted: set[str] = set()
        # Who waits for a confirmation, by channel; each is set when there is something new.
        self._waiters: dict[str, asyncio.Event] = {}
        # What Broadcaster's `next_published` reads.
        self._queue: asyncio.Queue[Event] = asyncio.Queue(INBOX_EVENTS)
        # The session under way, set by the supervisor.
        self._session: RedisSession | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = False
        # Set when the first session stands or the first attempt failed.
        self._verdict = asyncio.Event()
        # When the relay was lost (monotonic), and whether that was logged.
        self._lost_at = 0.0
        self._logged = False

    # What Broadcaster calls. Subscribing never suspends: two first subscribers of a channel would
    # overwrite each other in Broadcaster's `subscribe`.

    async def connect(self) -> None:
        """Start supervising; wait for Redis' first word, OPEN_SECONDS at most."""
        self.lost_since, self._lost_at = time.time(), time.monotonic()
        self._begin()
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._verdict.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            # Nobody will close what was never opened.
            await self.disconnect()
            raise

    def _begin(self) -> None:
        self._supervisor = asyncio.create_task(self._supervise(), name="relay supervisor")
        self._supervisor.add_done_callback(lambda _: self._supervisor_ended())

    def _supervisor_ended(self) -> None:
        if not self._closing:
            logger.error("The relay's supervisor was ended by somebody else and starts again")
            metrics.RESTARTED.add("relay")
            self._lose("its supervisor ended")
            self._begin()

    async def disconnect(self) -> None:
        """End all tasks and connections, in about a second at most."""
        self._closing = True
        if self._supervisor is not None:
            await stop([self._supervisor])
        self._shut("closed")

    async def subscribe(self, channel: str) -> None:
        """Want the channel."""
        self._wanted.add(channel)
        if self._session is not None:
            self._session.notice(channel)

    async def unsubscribe(self, channel: str) -> None:
        """Want the channel no more."""
        self._wanted.discard(channel)
        self._wake(channel)
        if self._session is not None:
            self._session.notice(channel)

    async def publish(self, channel: str, message: str) -> None:
        """Queue an announcement; for Broadcaster's callers, `offer` is the same at once."""
        self.offer(channel, message)

    # What relay.py calls.

    def offer(self, channel: str, text: str) -> None:
        """Queue an announcement, or drop and count it."""
        self._put(channel.encode(), b"", text)

    def tell(self, text: str) -> None:
        """Queue a text for `on_control` of every process."""
        self._put(self._control, TELL, text)

    def _put(self, channel: bytes, head: bytes, text: str) -> None:
        try:
            payload = head + text.encode()
        except UnicodeEncodeError:  # a lone surrogate: nobody could read it
            self.outbox.dropped += 1
            return
        self.outbox.put(pack_publish(channel, payload))

    @property
    def published(self) -> int:
        """How many Redis answered."""
        return self.outbox.published

    @property
    def dropped(self) -> int:
        """How many it did not."""
        return self.outbox.dropped

    async def confirmed(self, channel: str) -> bool:
        """Wait until Redis answered all that was asked for the channel; False once lost."""
        while not self.lost and channel in self._wanted and self._session is not None:
            if channel in self._session.confirmed:
                return True
            await self._waiters.setdefault(channel, asyncio.Event()).wait()
        return False

    async def flush(self) -> None:
        """Wait until all that was queued so far is sent or dropped, for a bounded time."""
        await self.outbox.flush()

    # What a session calls.

    def heard(self, channel: str, payload: bytes) -> None:
        """Pass an announcement on to Broadcaster; what cannot be kept or read is a gap."""
        try:
            self._queue.put_nowait(Event(channel, payload.decode()))
        except (asyncio.QueueFull, UnicodeDecodeError):
            self._on_gap(channel)

    def heard_control(self, payload: bytes) -> None:
        """Take a heartbeat of ours, or what some process told."""
        try:
            if payload.startswith(self._beat):
                self._restore(time.monotonic() - float(payload.removeprefix(self._beat)))
            elif payload.startswith(TELL):
                self._on_control(payload.removeprefix(TELL).decode())
        except ValueError:  # not UTF-8, or no time
            logger.warning("The relay heard something that no process of ours said")

    def subscribed(self, channel: str) -> None:
        """The channel's subscription is effective from here on; what was before may be missing."""
        self._wake(channel)
        if channel in self._wanted:
            self._on_gap(channel)

    def beat(self) -> None:
        """Say that we live, and when."""
        payload = self._beat + repr(time.monotonic()).encode()
        self.outbox.put_beat(pack_publish(self._control, payload))

    # The supervisor.

    async def _supervise(self) -> None:
        attempts = 0
        while not self._closing:
            began = time.monotonic()
            try:
                self._session = RedisSession(
                    self, self._make, self._control, self._wanted, self.outbox
                )
                await self._session.run()
            except (RedisError, OSError, Silence) as error:
                self._lose(reason_of(error))
            except Exception as error:  # our own mistake: said aloud, and survived as a loss
                logger.exception("The relay failed unexpectedly")
                self._lose(reason_of(error))
            attempts = 0 if time.monotonic() - began > STEADY_SECONDS else attempts + 1
            ceiling = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(attempts, 16))
            # Full jitter, or all processes would come back in the same moment.
            await asyncio.sleep(random.uniform(0, ceiling))

    def _restore(self, round_trip: float) -> None:
        """Our heartbeat came back: both directions are proven."""
        self.round_trip = round_trip
        metrics.RELAY_UP.set(1)
        metrics.ROUND_TRIP.set(round_trip)
        if self._session is not None:
            self._session.revive()
        if not self.lost:
            return
        self.lost, self.lost_since, self.reason = False, None, ""
        self.outbox.open = True
        self._verdict.set()
        if self._logged:
            self._logged = False
            self.reconnects += 1
            logger.info("Relay restored after %.1f s", time.monotonic() - self._lost_at)

    def _lose(self, reason: str) -> None:
        if not self.lost:
            self.lost_since, self._lost_at = time.time(), time.monotonic()
        self._shut(reason)
        self._verdict.set()
        if not self._logged:
            self._logged = True
            logger.warning("Relay lost: %s", reason)

    def _shut(self, reason: str) -> None:
        self.lost, self.reason, self.round_trip = True, reason, None
        metrics.RELAY_UP.set(0)
        metrics.ROUND_TRIP.set(0)
        self._session = None
        self.outbox.shut()
        for channel in list(self._waiters):
            self._wake(channel)

    def _wake(self, channel: str) -> None:
        waiter = self._waiters.pop(channel, None)
        if waiter is not None:
            waiter.set()


def connections(url: str) -> Callable[[], AbstractConnection]:
    """Read the URL; what is returned makes a connection of it that is not open yet."""
    try:
        options: dict[str, Any] = dict(parse_url(url))
        make: type[AbstractConnection] = options.pop("connection_class", Connection)
        for of_a_pool in ("max_connections", "timeout"):
            options.pop(of_a_pool, None)
        # Whatever the version and the URL say: RESP2; no second attempts (ours are supervised);
        # and no `socket_timeout`, for with one redis-py waits by `wait_for`. We limit each wait.
        options |= {
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": CONNECT_SECONDS,
            "health_check_interval": 0,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
        }
        make(**options)
    except (TypeError, ValueError, RedisError):
        # `from None`: the error may quote the URL.
        raise ValueError("the relay's URL is not one that redis-py understands") from None
    return lambda: make(**options)
