"""`tail ROOM` and `say ROOM TEXT`: follow a room, or say something in it, from the terminal.

Both enter as a site user, by a token that they make with the key of the settings, through the
client for bots: what breaks meanwhile is mended. What `tail` prints was written by others, so
nothing of it may steer the terminal.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from chat.client import Message, Refused, Room, Welcome
from chat.commands import DEFAULT_URL, Impossible, closed_quietly, harmless, token_of
from chat.commands.place import Place
from chat.protocol import MAX_INTEGER, ROOM_NAME, CloseCode
from chat.settings import Settings

OPERATOR = "operator"  # the site user who talks where nobody else is named
ENTER_LIMIT = 10.0  # seconds to get in; a restart takes less
ACK_LIMIT = 30.0  # seconds; a database that restarts takes less

SENTENCES = {
    CloseCode.UNAUTHENTICATED: "The chat does not take our token: CHAT_SECRET_KEY and the database"
    " must be those that it was started with.",
    CloseCode.FORBIDDEN: "{user} may not enter {room}; --user names somebody else.",
    CloseCode.NOT_FOUND: "There is no room {room}: its two users must exist, the smaller number"
    " first.",
}


def register(commands: Any) -> None:
    """Add the commands to the parser's subparsers."""
    tail = commands.add_parser("tail", help="follow a room in the terminal; Ctrl-C ends it")
    say = commands.add_parser("say", help="say something in a room, and print its seq")
    for parser in (tail, say):
        parser.add_argument("room", metavar="ROOM")
        parser.add_argument("--url", default=DEFAULT_URL, help=f"of the chat ({DEFAULT_URL})")
        parser.add_argument("--user", default=OPERATOR, metavar="NAME", help=f"who ({OPERATOR})")
    tail.add_argument(
        "--since", type=int, metavar="SEQ", help="from after this seq on (default: the newest 50)"
    )
    tail.set_defaults(command=_tail)
    say.add_argument("text", metavar="TEXT")
    say.set_defaults(command=_say)


def line_of(message: Message) -> str:
    """Return the message as one line: seq, time, name, text."""
    whom = f" → {message.receiver.name}" if message.receiver else ""
    text = "(taken away)" if message.redacted is True else message.text
    return f"{message.seq}  {message.sent_at}  {harmless(f'{message.sender.name}{whom}: {text}')}"


def _tail(options: argparse.Namespace) -> int:
    if options.since is not None and not 0 <= options.since <= MAX_INTEGER:
        raise Impossible("--since takes a seq, or 0 for the beginning.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")

    async def run() -> None:
        beside = _Beside(options.room, options.since)
        wanted = {"on_welcome": beside.welcomed, "on_redacted": beside.redacted}
        async with _inside(options, since=options.since, **wanted) as room:
            async for message in room:
                print(line_of(message), flush=True)

    try:
        with _told():
            asyncio.run(run())
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        closed_quietly()  # whoever read it has left
    return 0


class _Beside:
    """What `tail` tells beside the messages, on standard error."""

    def __init__(self, room: str, since: int | None) -> None:
        self._room = room
        self._since = since
        self._again = False

    def welcomed(self, welcome: Welcome) -> None:
        if self._again and not welcome.resumed:
            _aside("The room starts afresh, with its newest messages: some may be shown again.")
        elif not self._again and welcome.last_seq == 0:
            _aside(f"Nobody has said anything in {self._room} yet.")
        elif not self._again and self._since is not None and not welcome.resumed:
            _aside(f"The log does not go on after {self._since}: here are its newest messages.")
        self._again = True

    def redacted(self, seq: int) -> None:
        _aside(f"The text of message {seq} was taken away.")


def _aside(sentence: str) -> None:
    print(harmless(sentence), file=sys.stderr, flush=True)


class _Harmless(logging.Formatter):
    """A line of the client may hold words of the server."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(record.getMessage())


@contextmanager
def _told() -> Iterator[None]:
    """Tell beside the messages that the connection is lost, and is there again."""
    logger, told = logging.getLogger("chat.client"), logging.StreamHandler()
    told.setFormatter(_Harmless())
    logger.setLevel(logging.INFO)
    logger.addHandler(told)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(told)


def _say(options: argparse.Namespace) -> int:
    async def run() -> int:
        async with _inside(options) as room:
            try:
                async with asyncio.timeout(ACK_LIMIT):
                    return (await room.send(options.text)).seq
            except TimeoutError as error:
                raise Impossible(
                    f"Nobody confirmed it within {ACK_LIMIT:.0f} s; it may be stored all the same."
                ) from error

    with _told():
        seq = asyncio.run(run())
    print(seq)
    if seq == 1:
        _aside(f"It is the first message in {options.room}.")
    return 0


@asynccontextmanager
async def _inside(options: argparse.Namespace, **wanted: Any) -> AsyncIterator[Room]:
    """Enter the room as the user; raise Impossible where that fails, or where we are sent away."""
    if not ROOM_NAME.fullmatch(options.room):
        raise Impossible(f"{options.room} is not a name of a room.")
    settings = Settings.load(os.environ)
    # Before all else: what is wrong with the database or the user is said at once.
    made = [await token_of(settings, options.user)]

    async def token() -> str:
        try:
            return made.pop() if made else await token_of(settings, options.user)
        except Impossible as error:  # disabled since
            raise Refused(CloseCode.UNAUTHENTICATED, str(error)) from error

    place = Place.of(options.url, settings.allowed_hosts)
    room = Room(place.room(options.room), at=place.at, token=token, **wanted)
    try:
        async with asyncio.timeout(ENTER_LIMIT) as patience, room:
            patience.reschedule(None)
            yield room
    except TimeoutError as error:
        raise Impossible(
            f"There is no way into the chat at {options.url}: {room.trouble}."
        ) from error
    except Refused as refused:
        if isinstance(refused.__cause__, Impossible):
            raise refused.__cause__ from refused
        sentence = SENTENCES.get(CloseCode(refused.code), "The chat sent us away: {reason}.")
        words = {"user": options.user, "room": options.room, "reason": refused}
        raise Impossible(sentence.format(**words)) from refused
