"""One TCP connection, its tasks, and what its app has not received yet.

Subclasses of the Hypercorn classes under a stream, put in their place by `stream.install`. They
bound what Hypercorn leaves open: a put that waits for an app that is gone, an error that a stranger
causes and that ends as a stack trace. Frames and close codes are not known here (`stream.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import h11
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Scope

# Bytes. asyncio's and uvloop's high-water mark of a transport: above it a write has to wait.
HIGH_WATER = 64 * 1024

# The connections of this process, from the accept to the end of the last task.
connected: set[Peer] = set()


class Inbox:
    """The messages that an app has not received yet; holds `limit` of them.

    Rule 1: a disconnect never waits for room. Hypercorn reports it from within the app's own send,
    and an app that waits for itself is stuck for ever.
    Rule 2: after the app's end a put waits for nothing and keeps nothing.
    """

    # Two lists instead of asyncio.Queue's four deques: 3 KiB less for every idle connection.
    __slots__ = ("ended", "limit", "messages", "waiters")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.messages: list[ASGIReceiveEvent] = []
        # No more messages are taken: a disconnect is among them, or the app is gone.
        self.ended = False
        # Gets and puts that wait; each change wakes all, and they look again.
        self.waiters: list[asyncio.Future[None]] = []

    async def put(self, message: ASGIReceiveEvent) -> None:
        """Add a message, after waiting for room if need be."""
        if message["type"].endswith(".disconnect"):
            if not self.ended:
                self.messages.append(message)
                self.end()
            return
        while not self.ended and 0 < self.limit <= len(self.messages):
            await self._change()
        if not self.ended:
            self.messages.append(message)
            self._wake()

    async def get(self) -> ASGIReceiveEvent:
        """Take the oldest message, after waiting for one if need be."""
        while not self.messages:
            await self._change()
        message = self.messages.pop(0)
        self._wake()
        return message

    def end(self) -> None:
        """Let go of every put that waits, and take nothing more."""
        self.ended = True
        self._wake()

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self.waiters:  # cancelled before any change
                self.waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Tasks(TaskGroup):
    """The tasks of one connection; each app has an `Inbox`."""

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start the app; the answer puts messages into its inbox."""
        inbox = Inbox(config.max_app_queue_size)
        self.spawn(self._run_app, app, config, scope, inbox, send)
        return inbox.put

    async def _run_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        inbox: Inbox,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> None:
        def call_soon(function: Callable[..., Any], *args: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(function(*args), self._loop).result()

        in_thread = partial(self._loop.run_in_executor, None)
        try:
            await app(scope, inbox.get, send, in_thread, call_soon)
        except Exception:
            # The app's own fault is its line in the log; the connection ends in order.
            await config.log.exception("Error in ASGI Framework")
        finally:
            inbox.end()
            await send(None)


class Peer(TCPServer):
    """One TCP connection; `connected` holds it while it lives."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.transport = self.writer.transport
        # Writes that wait for their turn or for the transport to drain. Above 0 a new one queues
        # up behind them, or a close frame could overtake the frames before it.
        self.queued = 0
        # When the read under way began (loop time); None while what it brought is handled.
        self.listening_since: float | None = None
        self.silence: asyncio.TimerHandle | None = None
        connected.add(self)

    async def run(self) -> None:
        """Serve the connection to its end, which never is an exception."""
        try:
            await super().run()
        except asyncio.CancelledError:
            # Only the end of the process cancels a connection, and nothing comes after this.
            # Passed on, asyncio 3.11 logs a trace for each of them.
            pass
        except Exception as error:
            # A hole in one of the parsers, found by what a stranger sent: one line.
            await self.config.log.warning("Connection ended by %s", _describe(error))
            await self.config.log.debug("Its trace:", exc_info=error)
        finally:
            connected.discard(self)

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self.write(event.data)
            return
        if isinstance(event, Updated) and event.idle and self.reader.at_eof():
            # Answered, and the peer has already left: nothing to keep alive.
            event = Closed()
        await super().protocol_send(event)

    async def write(self, data: bytes) -> None:
        """Write, and wait while the transport is above its high-water mark.

        A peer that is gone is no error: the app learns it from its disconnect message.
        """
        transport = self.transport
        if transport.is_closing():
            await self.protocol.handle(Closed())
            return
        if not self.queued:
            transport.write(data)
            if transport.get_write_buffer_size() <= HIGH_WATER:
                return
            data = b""
        self.queued += 1
        try:
            async with self.send_lock:
                if data:
                    self.writer.write(data)
                await self.writer.drain()
        except (OSError, RuntimeError):
            # OSError, not only ConnectionError: TCP_USER_TIMEOUT ends as a TimeoutError.
            await self.protocol.handle(Closed())
        finally:
            self.queued -= 1

    def abort(self) -> None:
        """End the connection now; what is still unsent is lost."""
        self.transport.abort()

    async def _read_data(self) -> None:
        # Hypercorn's wait_for swallows cancellations on Python 3.11, and starts a task for every
        # read. Here a read costs the time of day: one lazy timer looks for silence.
        self._watch()
        while not self.reader.at_eof():
            self.listening_since = self.loop.time()
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:  # TimeoutError and SSLError are among them
                break
            self.listening_since = None
            await self.protocol.handle(RawData(data))
        if self.silence is not None:
            self.silence.cancel()
        await self.protocol.handle(Closed())
        # Else a connection that its peer has left stays until the keep-alive timeout.
        await self.idle_task.stop()

    def _watch(self) -> None:
        # Ends a read that has lasted for read_timeout; else looks again when that may be so.
        limit, since = self.config.read_timeout, self.listening_since
        if limit is None:
            return
        left = limit if since is None else since + limit - self.loop.time()
        if left <= 0:
            self.reader.set_exception(TimeoutError())
        else:
            self.silence = self.loop.call_later(left, self._watch)

    async def _close(self) -> None:
        # OSError: the peer never read what we wrote before our close, until TCP_USER_TIMEOUT.
        with contextlib.suppress(OSError):
            await super()._close()


class Http1(H11Protocol):
    """HTTP/1.1, which turns into HTTP/2 only where that is offered.

    Hypercorn takes up h2c for everybody, and its HTTP/2 is not fit for strangers.
    """

    async def _check_protocol(self, event: h11.Request) -> None:
        if "h2" in self.config.alpn_protocols:
            await super()._check_protocol(event)


def _describe(error: BaseException) -> str:
    # Never its text, which may hold a stranger's bytes.
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" in {trace.tb_frame.f_code.co_qualname}" if trace is not None else ""
    return f"{type(error).__name__}{place}"
