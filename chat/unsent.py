"""What a client has asked and nobody has answered: messages, and questions for older ones.

Owns which of them go out next and when, so that none is lost and their order stays; to repeat one
is safe, as it keeps its id. No I/O and no task: `client.py` asks what is due, and `link.py` sends
it. Each frame waits in the one who asked it, so there is no queue here to be bounded.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from chat.errors import ChatError
from chat.protocol import Ack, Error, Message

IN_FLIGHT = 16  # below what servers hold of one connection, so that none has to stop reading
ANSWER_LIMIT = 30.0  # seconds; what nobody has answered until then is sent once more
RETRY_DEFAULT = 1.0  # seconds, where a server does not say
RETRY_LEAST, RETRY_MOST = 0.1, 60.0  # seconds, whatever it says
TRY_AGAIN = ("rate_limited", "unavailable")


class Rejected(ChatError):
    """The server takes no such message or question; `code` is one of its error codes."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(eq=False)
class Asked:
    """A frame, and the answer that somebody waits for."""

    frame: dict[str, Any]
    answer: asyncio.Future[Any] = field(default_factory=asyncio.Future)
    # When it went out on this connection (loop time); None: it is to go out.
    sent_at: float | None = None


class Unsent:
    def __init__(self) -> None:
        # By id, in the order of asking.
        self._asked: dict[str, Asked] = {}
        # Loop time: the server asked to wait.
        self._held_until = 0.0
        # From a `rate_limited` until all is sent: one at a time, so that the order stays.
        self._slow = False

    def add(self, frame: dict[str, Any]) -> Asked:
        """Take a frame that has an `id`; ValueError where that is under way already."""
        if frame["id"] in self._asked:
            raise ValueError(f"a frame with the id {frame['id']} is under way already")
        asked = self._asked[frame["id"]] = Asked(frame)
        return asked

    def begin(self) -> None:
        """A connection begins: what was sent over another one may be lost."""
        for asked in self._asked.values():
            asked.sent_at = None

    def due(self, now: float) -> list[dict[str, Any]]:
        """Return what is to go out now, in order; from here on it is under way."""
        if now < self._held_until:
            return []
        first = islice(self._asked.values(), 1 if self._slow else IN_FLIGHT)
        ready = [one for one in first if one.sent_at is None or now - one.sent_at >= ANSWER_LIMIT]
        for asked in ready:
            asked.sent_at = now
        return [asked.frame for asked in ready]

    def wait(self, now: float) -> float | None:
        """Return the seconds until something may be due; None: not before something happens."""
        if not self._asked:
            return None
        if now < self._held_until:
            return self._held_until - now
        sent = [one.sent_at for one in self._asked.values() if one.sent_at is not None]
        return max(0.0, min(sent) + ANSWER_LIMIT - now) if sent else None

    def settle(self, id: str, answer: Any) -> None:
        """Give whoever asked the answer; one that nobody waits for is passed over."""
        if (asked := self.remove(id)) is not None and not asked.answer.done():
            asked.answer.set_result(answer)

    def found(self, message: Message) -> None:
        """One of ours lies in the log: that is as good as its ack, which may have been lost."""
        asked = self._asked.get(message.id)
        # Under the id of another message it will be refused.
        if asked is not None and asked.frame.get("text") == message.text:
            self.settle(message.id, Ack(message.id, message.seq, message.sent_at, False))

    def refuse(self, error: Error, now: float) -> bool:
        """Give up, or try again later where that helps; tell whether it was about one of ours."""
        id = error.id if isinstance(error.id, str) else ""
        asked = self._asked.get(id)
        if asked is None:
            return False
        if error.code in TRY_AGAIN:
            asked.sent_at = None
            self._slow |= error.code == "rate_limited"
            pause = error.retry_after if isinstance(error.retry_after, float) else RETRY_DEFAULT
            pause = min(max(pause, RETRY_LEAST), RETRY_MOST)
            # A little more than asked, and not the same for everybody who was told the same.
            self._held_until = max(self._held_until, now + pause * random.uniform(1, 1.25))
        else:
            self.remove(id)
            if not asked.answer.done():
                asked.answer.set_exception(Rejected(error.code, error.detail))
        return True

    def remove(self, id: str) -> Asked | None:
        asked = self._asked.pop(id, None)
        self._slow &= bool(self._asked)
        return asked

    def give_up(self, error: BaseException) -> None:
        """Tell all who wait that there will be no answer."""
        for asked in self._asked.values():
            if not asked.answer.done():
                asked.answer.set_exception(error)
        self._asked.clear()
        self._slow = False


def random_id() -> str:
    """Return an id for a frame, which nobody else has."""
    return f"c-{secrets.token_hex(16)}"
