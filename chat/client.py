"""One member of one room, for bots, load and tests: a cursor that outlives lost connections.

    async with Room("http://127.0.0.1:8000/ws/chat/lobby/", token=token) as room:
        await room.send("hola")
        async for message in room:
            print(message.sender.name, message.text)

Does as chat-client.js does: comes back with its cursor, repeats under the same id and in order
what was not acked, and stays away where it is told to. The contract is docs/protocol.md; one
connection is `link.py`'s, what waits for an answer `unsent.py`'s. Of what comes in, HELD_MOST
messages are kept: the room is a log, and what does not fit is asked for again once it does.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlencode, urlsplit, urlunsplit

from msgspec import UNSET

from chat.errors import Refused
from chat.link import Link, Token
from chat.outgoing import Frame, History, Messages
from chat.patience import PATIENCE, Backoff, Patience
from chat.protocol import Ack, CloseCode, Error, Message, Redacted, Welcome, direct_pair
from chat.unsent import Rejected, Unsent, random_id

__all__ = ["Ack", "History", "Message", "Patience", "Refused", "Rejected", "Room", "Welcome"]

logger = logging.getLogger(__name__)

HELD_MOST = 5_000  # messages that nobody has read yet
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Room:
    """A member of the room at `url`, over as many connections as it takes.

    `token` is a text, or a coroutine function that is called before each connection and before a
    token ends; `headers` may hold a cookie instead. `since` is the last seq that is known, 0 for
    the beginning; without it the newest 50 messages come first. `on_welcome` is called with each
    welcome: one that is not `resumed` means that what came before is to be forgotten; `on_redacted`
    with each seq whose text was taken away after it may have been read. `at` is the
    host and port to connect to, where they are not those of the url. `patience` is how long it
    waits for what.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        headers: Mapping[str, str] | None = None,
        since: int | None = None,
        epoch: str | None = None,
        on_welcome: Callable[[Welcome], None] | None = None,
        on_redacted: Callable[[int], None] | None = None,
        at: tuple[str, int] | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
            raise ValueError("the address of a room begins with http://, https://, ws:// or wss://")
        self._url = urlunsplit(parts._replace(scheme=parts.scheme.replace("http", "ws")))
        self._token = token
        self._headers = headers or {}
        self._on_welcome = on_welcome
        self._on_redacted = on_redacted
        self._at = at
        self._patience = patience
        # Seq of the newest message that was kept; None until the first is known.
        self._cursor = since
        self._epoch = epoch
        # The newest one; None before the first.
        self.welcome: Welcome | None = None
        # Why there is no connection, in words; None while there is one.
        self.trouble: str | None = "there was no time to connect"
        # Messages that nobody has read yet, up to the cursor.
        self._messages: deque[Message] = deque()
        # There was no place for what lies behind the cursor; the server left something out.
        self._full = self._gap = False
        self._unsent = Unsent()
        # Why there is no next connection; None while there is one.
        self._end: Exception | None = None
        self._running: asyncio.Task[None] | None = None
        # Rings for who enters or reads.
        self._news = asyncio.Event()
        # Rings for `_talk`.
        self._bell = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Enter, however long that takes; raise Refused where we may not."""
        assert self._running is None, "a Room is entered once"
        self._running = asyncio.create_task(self._run(), name="room")
        try:
            while self.welcome is None:
                await self._something_new()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave for good: the iteration ends, and a send that waits raises Refused with 1000."""
        self._finish(Refused(CloseCode.NORMAL, "The room was left."))
        while self._running is not None and not self._running.done():
            self._running.cancel()  # again where it got lost: Python 3.11 may swallow one
            await asyncio.wait([self._running], timeout=2 * self._patience.close)

    async def send(
        self, text: str, *, receiver_id: int | None = None, id: str | None = None
    ) -> Ack:
        """Append a message, and return its ack once it is stored; raise Rejected, Refused.

        In a direct room the other one is the receiver. A send that is cancelled is not repeated,
        and may or may not be stored: to make sure, send it again under an `id` of your own.
        """
        welcome = self._member()
        # Half a surrogate pair or a NUL would be refused without naming the message, and a frame
        # that is too long would end the connection.
        text = UNSTORABLE.sub("\ufffd", text)
        if len(text) > welcome.limits.text:
            most = f"A message has at most {welcome.limits.text} characters."
            raise Rejected("text_too_long", most)
        frame: dict[str, Any] = {"type": "send", "id": id or random_id(), "text": text}
        if receiver_id is None:
            pair = direct_pair(welcome.room) or ()
            receiver_id = next((one for one in pair if one != welcome.user.id), None)
        if receiver_id is not None:
            frame["receiver_id"] = receiver_id
        ack: Ack = await self._ask(frame)
        return ack

    async def history(self, before: int, limit: int = 50) -> History:
        """Return the newest of the messages before a seq; raise Rejected, Refused."""
        self._member()
        frame = {"type": "history", "id": random_id(), "before": before, "limit": limit}
        page: History = await self._ask(frame)
        return page

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """Return the next message, each once and in order; raise Refused where we are sent away."""
        while not self._messages:
            if isinstance(self._end, Refused) and self._end.code == CloseCode.NORMAL:
                raise StopAsyncIteration
            if self._full:
                self._bell.set()  # there is a place now
            await self._something_new()
        return self._messages.popleft()

    # --- In here only

    def _member(self) -> Welcome:
        assert self.welcome is not None, "enter the room first"
        if self._end is not None:
            raise self._end
        return self.welcome

    async def _ask(self, frame: dict[str, Any]) -> Any:
        asked = self._unsent.add(frame)
        self._bell.set()
        try:
            return await asked.answer
        finally:
            # Answered or cancelled: it is not said again, and the next may go out.
            self._unsent.remove(frame["id"])
            self._bell.set()

    async def _something_new(self) -> None:
        if self._end is not None:
            raise self._end
        self._news.clear()
        await self._news.wait()

    def _finish(self, end: Exception) -> None:
        if self._end is None:
            self._end = end
            self._unsent.give_up(end)
            self._news.set()

    # --- Staying connected

    async def _run(self) -> None:
        try:
            self._finish(await self._stay())
        except Exception as fault:  # a mistake of ours: whoever waits must hear of it
            self._finish(fault)

    async def _stay(self) -> Refused:
        """Connect again and again; return what keeps us away."""
        backoff, level = Backoff(self._patience), logging.WARNING
        while True:
            link = self._link()
            code, reason = await link.run(self._address())
            if link.keeps_away(code):
                return Refused(code, reason)
            if link.hurried and link.told is None:
                continue  # nothing went wrong
            pause = backoff.pause(link.stood, link.told)
            self.trouble = reason
            # Once aloud, as nobody may look at what a bot says beyond warnings.
            level = logging.WARNING if link.joined_at is not None else level
            logger.log(level, "No connection (%s); again in %.1f s", reason, pause)
            level = logging.INFO
            await asyncio.sleep(pause)

    def _link(self) -> Link:
        return Link(self._token, self._headers, self._hear, self._talk, self._at, self._patience)

    def _address(self) -> str:
        if self._cursor is None:
            return self._url
        known = {"since": self._cursor} | ({"epoch": self._epoch} if self._epoch else {})
        return f"{self._url}{'&' if '?' in self._url else '?'}{urlencode(known)}"

    async def _talk(self, link: Link) -> None:
        """Say what is to be said on this connection, and end it where another one must follow."""
        clock = asyncio.get_running_loop().time
        self._unsent.begin()
        while not self._gap:
            if self._full and not self._messages:
                link.hurried = True  # all that there was a place for has been read
                break
            self._bell.clear()
            for frame in self._unsent.due(clock()):
                await link.say(frame)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._unsent.wait(clock())):
                    await self._bell.wait()
        await link.close()

    # --- What the server says

    def _hear(self, frame: Frame) -> None:
        match frame:
            case Welcome():
                self._begin(frame)
            case Messages():
                self._take(frame.messages)
            case Ack() | History():
                self._unsent.settle(frame.id, frame)
            case Error():
                ours = self._unsent.refuse(frame, asyncio.get_running_loop().time())
                if not ours and frame.id is UNSET:
                    logger.warning("The server refused a frame (%s)", frame.code)
            case Redacted():
                for message in self._messages:
                    if message.seq == frame.seq:
                        message.text, message.redacted = "", True
                if self._on_redacted is not None:
                    self._on_redacted(frame.seq)
        self._bell.set()

    def _begin(self, welcome: Welcome) -> None:
        if self.welcome is not None and welcome.user.id != self.welcome.user.id:
            # What waits must not go out under the name of somebody else.
            self._unsent.give_up(Rejected("other_user", "The token is somebody else's now."))
        if welcome.epoch != self._epoch or not welcome.resumed:
            self._messages.clear()  # of a log that is no more, or some come once more
        if not welcome.resumed:
            # The newest follow, and the first of them sets the cursor, unless there is none.
            self._cursor = welcome.last_seq if welcome.last_seq < welcome.first_seq else None
        self._epoch = welcome.epoch
        self._full = self._gap = False
        if self.trouble is not None and self.welcome is not None:
            logger.info("Connected again")
        self.trouble = None
        self.welcome = welcome
        self._news.set()
        if self._on_welcome is not None:
            self._on_welcome(welcome)

    def _take(self, messages: list[Message]) -> None:
        assert self.welcome is not None
        for message in messages:
            if self._cursor is None:
                self._cursor = message.seq - 1
            if message.seq == self._cursor + 1 and len(self._messages) < HELD_MOST:
                self._messages.append(message)
                self._cursor = message.seq
            elif message.seq > self._cursor:
                self._full |= message.seq == self._cursor + 1
                self._gap |= not self._full
            if message.sender.id == self.welcome.user.id:
                self._unsent.found(message)
        self._news.set()
