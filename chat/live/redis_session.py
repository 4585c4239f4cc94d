"""One session with Redis: two connections (one to hear, one to speak), up to their first fault.

It asks for the channels that are wanted, counts the answers, writes what the outbox holds and
beats. It never reconnects and never waits without a limit: whatever is wrong ends the session as
an exception. `redis_backend` starts one after the other. Nothing here knows Broadcaster.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import NoReturn, Protocol

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from chat.live.outbox import Outbox, pack
from chat.live.tasks import stop

# Seconds between heartbeats, and without one until the session is given up.
BEAT_SECONDS = 0.5
SILENCE_SECONDS = 2.0
# Seconds for connecting, TLS and AUTH together: a frozen Redis accepts and never answers.
CONNECT_SECONDS = 2.0
# Seconds for writing a command or pipeline and reading its answers: with the beat before it, a
# frozen Redis is known well within SILENCE_SECONDS, and the reason given is the cause.
ANSWER_SECONDS = 1.25
# Channels in one SUBSCRIBE, so that thousands of rooms do not hold up the heartbeat.
SUBSCRIBE_CHANNELS = 500


class Silence(Exception):
    """Our own heartbeat did not come back."""


# The reason shown to people: the first of these in an error's chain. Never the error's own text,
# which names hosts and may quote what Redis was sent.
REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (Silence, f"no heartbeat for {SILENCE_SECONDS:g} s"),
    (exceptions.AuthenticationError, "the password or user was refused"),
    (exceptions.NoPermissionError, "the user lacks a permission"),
    (exceptions.BusyLoadingError, "it is still loading its data"),
    (ssl.SSLCertVerificationError, "the TLS certificate was not accepted"),
    (ssl.SSLError, "TLS failed"),
    (socket.gaierror, "the host name was not found"),
    (ConnectionRefusedError, "connection refused"),
    (exceptions.TimeoutError, "no answer in time"),
    (TimeoutError, "no answer in time"),
    (exceptions.ResponseError, "it answered with an error"),
)


def reason_of(error: BaseException) -> str:
    """Say what went wrong in words that hold no host name, no address and no secret."""
    link: BaseException | None = error
    while link is not None:
        for kind, words in REASONS:
            if isinstance(link, kind):
                return words
        if isinstance(link, OSError) and isinstance(link.errno, int) and link.errno > 0:
            return os.strerror(link.errno).lower()
        link = link.__cause__ or link.__context__
    if isinstance(error, (exceptions.ConnectionError, OSError)):
        return "the connection was cut"
    return f"unexpected {type(error).__name__}"


class Owner(Protocol):
    """What a session tells; all of it is short and does not raise."""

    def heard(self, channel: str, payload: bytes) -> None: ...
    def heard_control(self, payload: bytes) -> None: ...
    def subscribed(self, channel: str) -> None: ...
    def beat(self) -> None: ...


class RedisSession:
    """Serves from `run` until something is wrong."""

    def __init__(
        self,
        owner: Owner,
        make: Callable[[], AbstractConnection],
        control: bytes,
        wanted: set[str],
        outbox: Outbox,
    ) -> None:
        self._owner = owner
        self._make = make
        self._control = control
        # Shared with the owner, who edits it and then calls `notice`.
        self._wanted = wanted
        self._outbox = outbox
        # Channels with all commands answered, the newest of which was SUBSCRIBE.
        self.confirmed: set[str] = set()
        # Channels to compare with what was asked of Redis, and the bell for it.
        self._changed: set[str] = set(wanted)
        self._noticed = asyncio.Event()
        # Channels whose newest command was SUBSCRIBE, and all names that may come back.
        self._asked: set[str] = set()
        self._names: dict[bytes, str] = {}
        # Commands without an answer yet, by channel. Redis answers in order, so only the last
        # answer is about the newest command: who leaves and rejoins is not fooled by an old one.
        self._unanswered: dict[str, int] = {}
        # Seconds without our heartbeat, counted in ticks that this process was awake.
        self._silence = 0.0

    def notice(self, channel: str) -> None:
        """The channel came into or went out of the wanted ones."""
        self._changed.add(channel)
        self._noticed.set()

    def revive(self) -> None:
        """Our own heartbeat came back."""
        self._silence = 0.0

    async def run(self) -> NoReturn:
        """Connect, serve, and raise what ended it."""
        async with AsyncExitStack() as closing:
            async with asyncio.timeout(CONNECT_SECONDS):
                ears = await self._connect(closing)
                mouth = await self._connect(closing)
                await ears.send_packed_command(pack(b"SUBSCRIBE", self._control), False)
            duties = (self._hear(ears), self._ask(ears), self._speak(mouth))
            tasks = [asyncio.create_task(duty, name="relay session") for duty in duties]
            for task in tasks:
                # Only one error is raised; asyncio would print the others, host names and all.
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                await self._watch(tasks)
            finally:
                await stop(tasks)

    async def _connect(self, closing: AsyncExitStack) -> AbstractConnection:
        connection = self._make()
        closing.push_async_callback(connection.disconnect, nowait=True)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        finally:
            # Before the polite close, which waits until all is written: with a frozen Redis, for
            # ever.
            if connection._writer is not None:
                closing.callback(connection._writer.transport.abort)
        return connection

    async def _watch(self, tasks: list[asyncio.Task[NoReturn]]) -> NoReturn:
        """Beat; raise when a task ended or no beat came back."""
        ticked = time.monotonic()
        while True:
            done, _ = await asyncio.wait(
                tasks, timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if not task.cancelled():
                    task.result()
                raise RuntimeError("a task of the relay was ended by somebody else")
            now = time.monotonic()
            # A process that was itself held up did not listen either: a tick counts at most
            # twice its length, so that Redis is not blamed for it.
            self._silence += min(now - ticked, 2 * BEAT_SECONDS)
            ticked = now
            if self._silence >= SILENCE_SECONDS:
                raise Silence
            self._owner.beat()

    async def _hear(self, ears: AbstractConnection) -> NoReturn:
        while True:
            kind, channel, payload = await ears.read_response(disable_decoding=True)
            if kind == b"message":
                if channel == self._control:
                    self._owner.heard_control(payload)
                elif channel in self._names:
                    self._owner.heard(self._names[channel], payload)
            elif channel == self._control:
                # Our ears are open: the first heartbeat proves the mouth too.
                self._owner.beat()
            else:
                self._answered(channel)

    def _answered(self, channel: bytes) -> None:
        """Redis answered one SUBSCRIBE or UNSUBSCRIBE."""
        name = self._names[channel]
        self._unanswered[name] -= 1
        if self._unanswered[name]:
            return
        del self._unanswered[name]
        if name in self._asked:
            self.confirmed.add(name)
            self._owner.subscribed(name)
        else:
            del self._names[channel]

    async def _ask(self, ears: AbstractConnection) -> NoReturn:
        """Make Redis' subscriptions the wanted ones."""
        while True:
            self._noticed.clear()
            for command in self._compare():
                async with asyncio.timeout(ANSWER_SECONDS):
                    await ears.send_packed_command(command, False)
            await self._noticed.wait()

    def _compare(self) -> list[bytes]:
        """The commands that are missing, already counted as asked.

        Counted before the first is written: an older answer that comes meanwhile must find them.
        """
        joining: list[bytes] = []
        leaving: list[bytes] = []
        changed, self._changed = self._changed, set()
        for name in changed:
            if name in self._wanted:
                if name not in self._asked:
                    self._asked.add(name)
                    self._count(name, joining)
                elif name in self.confirmed:
                    # Left and joined again between two looks: subscribed all the while.
                    self._owner.subscribed(name)
            elif name in self._asked:
                self._asked.discard(name)
                self.confirmed.discard(name)
                self._count(name, leaving)
        return [
            pack(verb, *channels[start : start + SUBSCRIBE_CHANNELS])
            for verb, channels in ((b"UNSUBSCRIBE", leaving), (b"SUBSCRIBE", joining))
            for start in range(0, len(channels), SUBSCRIBE_CHANNELS)
        ]

    def _count(self, name: str, channels: list[bytes]) -> None:
        channel = name.encode()
        channels.append(channel)
        self._names[channel] = name
        self._unanswered[name] = self._unanswered.get(name, 0) + 1

    async def _speak(self, mouth: AbstractConnection) -> NoReturn:
        while True:
            pipeline = await self._outbox.take()
            async with asyncio.timeout(ANSWER_SECONDS):
                await mouth.send_packed_command(b"".join(pipeline), False)
                for _ in pipeline:
                    await mouth.read_response(disable_decoding=True)
            self._outbox.sent()
