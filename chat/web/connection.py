"""One member's conversation: its frames in, its replies, and what lies after its cursor.

`receive` is called by the socket's reading task, one frame after the other; `start` begins its
writing task. Replies wait in a bounded outbox, messages wait nowhere: the cursor fetches them.
Errors become frames here, and close codes in `sockets.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import UNSET

from chat.errors import (
    BadFrame,
    BadJson,
    ChatError,
    Forbidden,
    Refused,
    Reset,
    Unauthenticated,
    Unavailable,
    UnknownType,
    WireError,
)
from chat.live.cursor import Cursor
from chat.log.repository import Stored
from chat.protocol import (
    Ack,
    CloseCode,
    Closing,
    Error,
    History,
    Pong,
    Renew,
    Renewed,
    Send,
    Welcome,
    encode,
    faulty_id,
    fitting,
    history_frame,
    now,
    parse,
    rfc3339,
)
from chat.web.identity import Identity
from chat.web.rooms import submit
from chat.web.services import Services

logger = logging.getLogger(__name__)

# Sends under way per connection; more are left in the socket. 150 such connections fill the
# writer, and a commit takes milliseconds, so Hypercorn's pings hardly wait.
MAX_IN_FLIGHT = 64
MAX_OUTBOX = 256  # replies that wait to be sent; then we stop reading
SEND_LIMIT = 45.0  # seconds that one frame may take: then the peer is dead or as good as
READ_PAUSE = 0.5  # seconds between two tries to read a log that is away
FAULTS_ALLOWED = 10  # bad frames …
FAULTS_WINDOW = 10.0  # … in so many seconds; one more ends the connection
# Seconds over which clients spread their return after a restart.
RECONNECT_SPREAD = 3.0


# Sends one ASGI event to the client.
Transmit = Callable[[dict[str, Any]], Awaitable[None]]


class Connection:
    def __init__(
        self, services: Services, transmit: Transmit, identity: Identity, cursor: Cursor
    ) -> None:
        self.services = services
        self.identity = identity
        self.cursor = cursor
        self.user_id = identity.user.id
        # The session that it began with; signing out ends it even if a token renewed it since.
        self.sid = identity.session.sid if identity.session else None
        self._transmit = transmit
        self._loop = asyncio.get_running_loop()
        # Frames that answer this client's own; sent before messages.
        self._outbox: deque[str] = deque()
        # Set where there may be something to send.
        self._bell = asyncio.Event()
        # Set while the reading task may go on.
        self._free = asyncio.Event()
        self._free.set()
        self._in_flight = 0
        # When the frame that is being sent was begun (loop time); None while none is.
        self._sending_since: float | None = None
        self._writing: asyncio.Task[None] | None = None
        # Why the connection ends, once it does.
        self._ending: tuple[CloseCode, str] | None = None
        # When bad frames came (monotonic seconds), the last few.
        self._faults: list[float] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        # Key of this connection's own window of frames.
        self._key = str(id(self))

    @property
    def code(self) -> CloseCode | None:
        """The code that this side ends the connection with, once it does."""
        return self._ending[0] if self._ending else None

    def wake(self) -> None:
        self._bell.set()

    def tend(self, moment: float) -> None:
        """Give up on a frame that, at this loop time, has been under way for too long."""
        since, writing = self._sending_since, self._writing
        if since is not None and moment - since > SEND_LIMIT and writing is not None:
            writing.cancel()

    def end(self, code: CloseCode, reason: str) -> None:
        """Close soon with this code; the first reason counts."""
        self._ending = self._ending or (code, reason)
        self._bell.set()
        self._free.set()

    def release(self) -> None:
        """Let go of timers and windows; the connection is over."""
        limits = self.services.limits
        limits.forget(limits.frame, "frame", self._key)
        if self._expiry is not None:
            self._expiry.cancel()
        if self._renewing is not None:
            self._renewing.cancel()

    def welcome(self) -> str:
        """Return the first frame, and begin to watch the end of the identity."""
        room, identity = self.cursor.room, self.identity
        self._watch_expiry()
        return encode(
            Welcome(
                room=room.name,
                epoch=room.epoch,
                first_seq=room.first_seq,
                last_seq=room.tail.last,
                resumed=self.cursor.resumed,
                user=identity.user.person,
                expires_at=rfc3339(identity.expires_at) if identity.expires_at else None,
                server_time=rfc3339(now()),
            )
        )

    # --- Reading

    async def receive(self, raw: str) -> None:
        """Handle one frame; raise Refused where the client has gone too far."""
        await self._free.wait()
        if self._ending is not None:
            return
        message_id = None
        try:
            frame = parse(raw)
            message_id = getattr(frame, "id", None)
            if isinstance(frame, Send):
                await self._send(frame)
                return
            self._count_frame()
            if isinstance(frame, History):
                await self._history(frame)
            elif isinstance(frame, Renew):
                await self._renew(frame)
            else:
                self._reply(encode(Pong(rfc3339(now()))))
        except (BadJson, BadFrame, UnknownType) as error:
            if not isinstance(error, BadJson):
                message_id = message_id or faulty_id(raw)
            self._reply_error(error, message_id)
            self._count_fault()
        except WireError as error:
            self._log_refused_send(error)
            self._reply_error(error, message_id)

    async def _send(self, frame: Send) -> None:
        try:
            message_id, stored = await submit(self.services, self.identity, self.cursor.room, frame)
        except (BadFrame, Unavailable):
            raise
        except WireError as error:
            if error.code != "rate_limited":
                self._count_frame()
            raise
        self._in_flight += 1
        self._gate()
        stored.add_done_callback(lambda done: self._answer(message_id, done))

    def _answer(self, message_id: str, done: asyncio.Future[Stored]) -> None:
        self._in_flight -= 1
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            where = done.result()
            ack = Ack(message_id, where.seq, rfc3339(where.sent_at), where.duplicate)
            self._reply(encode(ack))
        elif isinstance(error, WireError):
            if isinstance(error, Unavailable):
                cause = type(error.__cause__ or error).__name__
                logger.error("Error saving message: %s", cause)
            self._reply_error(error, message_id)

    async def _history(self, frame: History) -> None:
        room = self.cursor.room
        entries = await self.services.repository.read_before(room.id, frame.before, frame.limit + 1)
        # One was asked beyond the limit, to know whether there is more.
        page = entries[-frame.limit :]
        page = page[len(page) - fitting(page[::-1]) :]
        more = len(page) < len(entries)
        self._reply(history_frame(frame.id, room.name, page, more))

    async def _renew(self, frame: Renew) -> None:
        try:
            newer = await self.services.identities.from_token(frame.token)
        except Unauthenticated as error:
            raise Forbidden(error.detail) from error
        if newer.user.id != self.user_id or newer.room not in (None, self.cursor.room.name):
            raise Forbidden("The token is for another user or room.")
        self.identity = newer
        self._watch_expiry()
        assert newer.expires_at is not None, "every token ends"
        self._reply(encode(Renewed(rfc3339(newer.expires_at))))

    def _count_frame(self) -> None:
        limits = self.services.limits
        limits.take_local(limits.frame, "frame", self._key)

    def _count_fault(self) -> None:
        moment = time.monotonic()
        self._faults = [one for one in self._faults if moment - one < FAULTS_WINDOW] + [moment]
        if len(self._faults) > FAULTS_ALLOWED:
            raise Refused(CloseCode.POLICY, "too many bad frames")

    def _log_refused_send(self, error: WireError) -> None:
        if error.code == "missing_receiver":
            logger.error("Missing receiver_id in message")
        elif error.code == "unknown_receiver":
            logger.error("Receiver %s does not exist", error.detail.split()[-1].rstrip("."))

    # --- Writing

    def start(self) -> asyncio.Task[None]:
        """Start the writing task, which ends when the connection is closed; the socket owns it."""
        self._writing = self._loop.create_task(self._write(), name="socket writer")
        return self._writing

    async def _write(self) -> None:
        while self.code is None:
            self._bell.clear()
            while self._outbox:
                await self.send(self._outbox.popleft())
                self._gate()
            try:
                frame = await self.cursor.take()
            except Reset:
                self.end(CloseCode.RESTART, "the room starts afresh")
                break
            except Unavailable:
                await asyncio.sleep(READ_PAUSE)
                continue
            if frame is not None:
                await self.send(frame)
            elif not self._outbox:
                await self._bell.wait()
        await self._close()

    async def send(self, text: str) -> None:
        """Send one text frame; `tend` ends what takes longer than SEND_LIMIT."""
        # A timer of its own for each frame would cost a fifth of the sending.
        self._sending_since = self._loop.time()
        await self._transmit({"type": "websocket.send", "text": text})
        self._sending_since = None

    async def _close(self) -> None:
        assert self._ending is not None
        code, reason = self._ending
        if code in (CloseCode.RESTART, CloseCode.TRY_LATER):
            await self.send(closing_frame(code, reason))
        self._sending_since = self._loop.time()
        await self._transmit({"type": "websocket.close", "code": int(code), "reason": reason})

    def _reply(self, frame: str) -> None:
        self._outbox.append(frame)
        self._gate()
        self._bell.set()

    def _reply_error(self, error: WireError, message_id: str | None) -> None:
        frame = Error(
            error.code,
            error.detail,
            UNSET if message_id is None else message_id,
            UNSET if error.retry_after is None else error.retry_after,
        )
        self._reply(encode(frame))

    def _gate(self) -> None:
        """Stop the reading task while this client has too much under way."""
        if self._in_flight < MAX_IN_FLIGHT and len(self._outbox) < MAX_OUTBOX:
            self._free.set()
        else:
            self._free.clear()

    # --- The end of the identity

    def _watch_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self.identity.expires_at is not None:
            left = max(0.0, (self.identity.expires_at - now()) / 1000)
            self._expiry = self._loop.call_later(left, self._expire)

    def _expire(self) -> None:
        if self.identity.session is None:
            self.end(CloseCode.UNAUTHENTICATED, "the token ran out")
        else:
            self._renewing = self._loop.create_task(self._look_again(), name="session expiry")

    async def _look_again(self) -> None:
        """A session that runs out may have been renewed by a page."""
        try:
            renewed = await self.services.identities.renewed(self.identity)
        except ChatError:
            renewed = None
        if renewed is None:
            self.end(CloseCode.UNAUTHENTICATED, "the session ran out")
        else:
            self.identity = renewed
            self._watch_expiry()


def closing_frame(code: CloseCode, reason: str) -> str:
    return encode(Closing(code, reason, round(random.uniform(0, RECONNECT_SPREAD), 3)))
