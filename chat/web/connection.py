"""One member's conversation: its frames in, and the answers to them.

`receive` is called by the socket's reading task, one frame after the other; what is sent is the
matter of `delivery.py`. Errors become frames here, and close codes in `sockets.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time

import msgspec
from msgspec import UNSET

from chat.clock import now, rfc3339
from chat.errors import (
    BadFrame,
    BadJson,
    ChatError,
    Forbidden,
    RateLimited,
    Refused,
    Unauthenticated,
    Unavailable,
    UnknownType,
    WireError,
)
from chat.incoming import History, Read, Renew, Send, Typing, faulty_id, parse
from chat.live.cursor import Cursor
from chat.log.faults import describe
from chat.log.repository import Stored
from chat.ops import metrics
from chat.protocol import (
    Ack,
    CloseCode,
    Error,
    Person,
    Pong,
    Renewed,
    Welcome,
    encode,
    fitting,
    history_frame,
)
from chat.web.delivery import Delivery, Transmit
from chat.web.identity import Identity
from chat.web.rooms import new_id, submit
from chat.web.services import Services
from chat.web.signs import Signs

logger = logging.getLogger(__name__)

# Sends under way per connection; more are left in the socket. A thousand such connections still
# fit into the writer, and a commit takes milliseconds, so pings hardly wait.
MAX_IN_FLIGHT = 32
FAULTS_ALLOWED = 10  # bad frames …
FAULTS_WINDOW = 10.0  # … in so many seconds; one more ends the connection

# Tells the connections of this process apart.
_numbers = itertools.count(1)


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
        self._loop = asyncio.get_running_loop()
        self.delivery = Delivery(transmit, cursor, self._gate)
        self.wake = self.delivery.wake
        self.tend = self.delivery.tend
        self.end = self.delivery.end
        self.aside = self.delivery.aside
        # Set while the reading task may go on.
        self._free = asyncio.Event()
        self._free.set()
        # Set while the process drains.
        self._paused = False
        # Sends whose place in the log is not known yet.
        self._in_flight = 0
        # When bad frames came (monotonic seconds), the last few.
        self._faults: list[float] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._signs = Signs(services, self)
        # Its name in log lines, and the key of its own window of frames.
        self.number = next(_numbers)
        self._key = str(self.number)

    @property
    def person(self) -> Person:
        return self.identity.user.person

    @property
    def code(self) -> CloseCode | None:
        """The code that this side ends the connection with, once it does."""
        return self.delivery.ending[0] if self.delivery.ending else None

    @property
    def settled(self) -> bool:
        """Whether every send has its answer, and all that is there has been sent."""
        return self._in_flight == 0 and self.delivery.settled

    def pause(self) -> None:
        """Answer no more frames: what comes from now on, its client repeats elsewhere."""
        self._paused = True

    def release(self) -> None:
        """Let go of timers; the connection is over."""
        self._signs.close()
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
        if self._paused or self.delivery.ending is not None:
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
            elif isinstance(frame, Typing):
                self._signs.typing()
            elif isinstance(frame, Read):
                self._signs.read(frame.seq)
            else:
                self._answer_with(encode(Pong(rfc3339(now()))))
        except (BadJson, BadFrame, UnknownType) as error:
            if not isinstance(error, BadJson):
                message_id = message_id or faulty_id(raw)
            self._reply_error(error, message_id)
            self._count_fault()
        except WireError as error:
            self._reply_error(error, message_id)

    async def _send(self, frame: Send) -> None:
        room = self.cursor.room
        if frame.id is None:
            # Made here, so that `unavailable` can name it for the repeat.
            frame = msgspec.structs.replace(frame, id=new_id())
        message_id = str(frame.id)
        try:
            _, stored = await submit(self.services, self.identity, room.name, room.id, frame)
        except Unavailable as error:
            self._not_confirmed(error, message_id)
            return
        except (BadFrame, RateLimited):
            raise
        except WireError:
            # Nothing came of it, so the send rate did not count it.
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
            self._answer_with(encode(ack))
        elif isinstance(error, Unavailable):
            self._not_confirmed(error, message_id)
        elif isinstance(error, WireError):
            self._reply_error(error, message_id)

    def _not_confirmed(self, error: Unavailable, message_id: str) -> None:
        logger.error("Error saving message: %s", describe(error.__cause__ or error))
        self._reply_error(error, message_id)

    async def _history(self, frame: History) -> None:
        room = self.cursor.room
        entries = await self.services.repository.read_before(room.id, frame.before, frame.limit + 1)
        # One was asked beyond the limit, to know whether there is more.
        page = room.cleaned(entries[-frame.limit :])
        page = page[len(page) - fitting(page[::-1]) :]
        more = len(page) < len(entries)
        self._answer_with(history_frame(frame.id, room.name, page, more))

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
        self._answer_with(encode(Renewed(rfc3339(newer.expires_at))))

    def _count_frame(self) -> None:
        limits = self.services.limits
        limits.take_local(limits.frame, "frame", self._key)

    def _count_fault(self) -> None:
        moment = time.monotonic()
        self._faults = [one for one in self._faults if moment - one < FAULTS_WINDOW] + [moment]
        if len(self._faults) > FAULTS_ALLOWED:
            raise Refused(CloseCode.POLICY, "too many bad frames")

    def _reply_error(self, error: WireError, message_id: str | None) -> None:
        metrics.ERRORS.add(error.code)
        frame = Error(
            error.code,
            error.detail,
            UNSET if message_id is None else message_id,
            UNSET if error.retry_after is None else error.retry_after,
        )
        self._answer_with(encode(frame))

    def _answer_with(self, frame: str) -> None:
        self.delivery.answer(frame)
        self._gate()

    def _gate(self) -> None:
        """Stop the reading task while this client has too much under way."""
        busy = self._in_flight >= MAX_IN_FLIGHT or self.delivery.full
        if busy and self.delivery.ending is None:
            self._free.clear()
        else:
            self._free.set()

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
