"""Announcements between processes: the doorbell.

Owns Broadcaster: its subscriptions, its listener, the bounds on what waits in its queues, and the
names of channels on the wire. `redis_backend` keeps Redis; `memory://` is Broadcaster's own
backend, for one process. Lost, late and doubled announcements are mended by who listens: the hub
reads a room's head after each `on_gap`. The hub calls this, and `app` for control texts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

from broadcaster import Broadcast, BroadcastBackend, Event
from broadcaster._backends.memory import MemoryBackend
from broadcaster._base import Subscriber, Unsubscribed

from chat.live.outbox import OUTBOX_COMMANDS
from chat.live.redis_backend import SupervisedRedis
from chat.live.tasks import stop
from chat.ops import metrics

# What may wait for one listener, and in characters for all of them. A listener is never slow, so
# this is only reached by one that hangs; what comes above it is dropped and reported as a gap.
LISTENER_EVENTS = 4_096
LISTENERS_CHARACTERS = 32 * 1024 * 1024
# Seconds until a listener of Broadcaster that failed starts again.
RESTART_SECONDS = 0.5

logger = logging.getLogger(__name__)


class Relay:
    """Announcements between the processes of one deployment, over Broadcaster.

    A process hears its own announcements and control texts too. The callbacks are short and run
    in the event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        process: str,
        on_gap: Callable[[str], None],
        on_control: Callable[[str], None],
    ) -> None:
        """Read the URL (ValueError without its text where it is wrong); connect nothing yet."""
        self._prefix = f"{prefix}/"
        self._gap = on_gap
        self._heard = on_control
        scheme = url.partition("://")[0]
        self._backend: SupervisedRedis | Memory
        if scheme == "memory":
            self._backend = Memory(on_gap=self._on_gap, on_control=self._on_control)
        elif scheme in ("redis", "rediss"):
            self._backend = SupervisedRedis(
                url,
                process=process,
                control=f"{prefix}!control",
                on_gap=self._on_gap,
                on_control=self._on_control,
            )
        else:
            raise ValueError("the relay's URL must begin with memory://, redis:// or rediss://")
        self._broadcast = Doorbell(self._backend, self._on_gap)
        self._opened = False

    async def open(self) -> None:
        """Start; waits for Redis a second at most, and goes on without it."""
        await self._broadcast.connect()
        self._opened = True

    async def close(self) -> None:
        """End all tasks and connections within about two seconds; listeners come to their end."""
        if self._opened:
            self._opened = False
            await self._broadcast.disconnect()

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[AsyncIterator[str]]:
        """Hear a channel. `on_gap` follows each time that the subscription is confirmed."""
        assert self._opened, "open comes first"
        async with self._broadcast.subscribe(self._prefix + channel) as subscriber:
            try:
                yield Texts(subscriber, self._broadcast)
            finally:
                self._broadcast.forget(subscriber)

    async def confirmed(self, channel: str) -> bool:
        """Wait until nothing announced from now on is missed; False at once while lost.

        Bound it with `asyncio.timeout`. False too for a channel that nobody listens to.
        """
        return await self._backend.confirmed(self._prefix + channel)

    def publish(self, channel: str, text: str) -> None:
        """Announce, soon; never blocks, never raises, and is dropped where it cannot be sent."""
        self._backend.offer(self._prefix + channel, text)

    def tell(self, text: str) -> None:
        """Say something to `on_control` of every process, this one included."""
        self._backend.tell(text)

    async def flush(self) -> None:
        """Wait until all that was published so far is sent or dropped, a second at most."""
        await self._backend.flush()

    @property
    def lost(self) -> bool:
        """Whether announcements are not getting through. Never true of memory://."""
        return self._backend.lost

    @property
    def lost_since(self) -> float | None:
        """Unix time in seconds; None while not lost."""
        return self._backend.lost_since

    @property
    def reason(self) -> str:
        """Why it is lost, for people: no host name, no secret. Empty while not lost."""
        return self._backend.reason

    @property
    def round_trip(self) -> float | None:
        """Seconds that the last heartbeat took; None while lost, and of memory://."""
        return self._backend.round_trip

    @property
    def published(self) -> int:
        """Announcements and control texts that were sent."""
        return self._backend.published

    @property
    def dropped(self) -> int:
        """Those that were not, or that Redis never answered: the log mends them."""
        return self._backend.dropped

    @property
    def reconnects(self) -> int:
        """How often a lost relay came back."""
        return self._backend.reconnects

    def _on_gap(self, name: str) -> None:
        try:
            self._gap(name.removeprefix(self._prefix))
        except Exception:  # the callback's mistake must not end the session of all rooms
            logger.exception("A room could not be told of a gap")

    def _on_control(self, text: str) -> None:
        try:
            self._heard(text)
        except Exception:  # likewise
            logger.exception("A control text could not be handled")


class Texts(AsyncIterator[str]):
    """What one subscriber hears; ends when the relay closes."""

    def __init__(self, subscriber: Subscriber, doorbell: Doorbell) -> None:
        self._subscriber = subscriber
        self._doorbell = doorbell

    async def __anext__(self) -> str:
        try:
            event = await self._subscriber.get()
        except Unsubscribed:
            raise StopAsyncIteration from None
        self._doorbell.held -= len(event.message)
        return event.message


class Doorbell(Broadcast):
    """Broadcaster's face, with bounded queues and a listener that cannot die unheard."""

    def __init__(self, backend: BroadcastBackend, on_gap: Callable[[str], None]) -> None:
        super().__init__(backend=backend)
        self._on_gap = on_gap
        # Characters that wait in all subscribers' queues.
        self.held = 0

    async def connect(self) -> None:
        """Connect, and see to it that somebody listens."""
        await super().connect()
        self._closing = False
        self._listener_task.add_done_callback(lambda _: self._listener_ended())

    def _listener_ended(self) -> None:
        if self._closing:
            return
        logger.error("The relay's listener was ended by somebody else and starts again")
        metrics.RESTARTED.add("relay")
        self._listener_task = asyncio.create_task(self._listener(), name="relay listener")
        self._listener_task.add_done_callback(lambda _: self._listener_ended())
        for channel in list(self._subscribers):
            self._on_gap(channel)

    async def disconnect(self) -> None:
        """End the listener and the backend, and tell the subscribers that there is no more."""
        self._closing = True
        await stop([self._listener_task])
        await self._backend.disconnect()
        for queues in self._subscribers.values():
            for queue in queues:
                queue.put_nowait(None)

    def forget(self, subscriber: Subscriber) -> None:
        """Count what this subscriber leaves unread as gone."""
        while not subscriber._queue.empty():
            event = subscriber._queue.get_nowait()
            if event is not None:
                self.held -= len(event.message)

    async def _listener(self) -> NoReturn:
        while True:
            try:
                await self._spread()
            except Exception:  # Broadcaster's own would now be deaf for ever, and silent
                logger.exception("The relay's listener failed and starts again")
                metrics.RESTARTED.add("relay")
                for channel in list(self._subscribers):
                    self._on_gap(channel)
                await asyncio.sleep(RESTART_SECONDS)

    async def _spread(self) -> NoReturn:
        while True:
            event = await self._backend.next_published()
            size = len(event.message)
            for queue in self._subscribers.get(event.channel, ()):
                if queue.qsize() < LISTENER_EVENTS and self.held + size <= LISTENERS_CHARACTERS:
                    queue.put_nowait(event)
                    self.held += size
                else:
                    self._on_gap(event.channel)


class Memory(MemoryBackend):
    """Broadcaster's backend for one process, with the face of `SupervisedRedis`: never lost."""

    lost = False
    lost_since = None
    reason = ""
    round_trip = None
    reconnects = 0

    def __init__(
        self,
        *,
        on_gap: Callable[[str], None],
        on_control: Callable[[str], None],
    ) -> None:
        super().__init__("memory://")
        self._on_gap = on_gap
        self._on_control = on_control
        self._connected = False
        self.published = 0
        self.dropped = 0

    async def connect(self) -> None:
        """Make the one queue."""
        await super().connect()
        self._connected = True
        metrics.RELAY_UP.set(1)

    async def disconnect(self) -> None:
        """Take no more."""
        self._connected = False

    async def subscribe(self, channel: str) -> None:
        """Hear the channel; confirmed, and so a gap, as soon as the caller is ready for it."""
        await super().subscribe(channel)
        asyncio.get_running_loop().call_soon(self._on_gap, channel)

    def offer(self, channel: str, text: str) -> None:
        """Put it before this process' own listener."""
        if not self._connected or self._published.qsize() >= OUTBOX_COMMANDS:
            self.dropped += 1
            return
        self.published += 1
        self._published.put_nowait(Event(channel, text))

    def tell(self, text: str) -> None:
        """Tell this process, not before the loop's next turn, as with Redis."""
        self.published += 1
        asyncio.get_running_loop().call_soon(self._on_control, text)

    async def confirmed(self, channel: str) -> bool:
        """True for every channel that somebody listens to."""
        return channel in self._subscribed

    async def flush(self) -> None:
        """All is sent at once."""
