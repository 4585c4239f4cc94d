"""The lines of an export: how they are written, and what an import asks of them.

`checked` yields each line with its number, or says in one sentence which one is wrong and why. It
reads from any file and keeps no more than a line, so that a log of any length passes through.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, BinaryIO, Literal

import msgspec
from msgspec import Meta, Struct

from chat.clock import milliseconds
from chat.commands import Impossible
from chat.errors import WireError
from chat.incoming import MessageId, Positive, check_text, explain
from chat.log import users
from chat.protocol import ROOM_NAME, Person, direct_pair, is_reserved

VERSION = 1
# Bytes. A message takes 50,000 where each of its 4,000 characters is written as two escapes.
MAX_LINE = 256 * 1024
# A room that goes on from here will not come to the end of the contract's integers, 2^53 - 1.
MAX_SEQ = 2**52

Seq = Annotated[int, Meta(ge=0, le=MAX_SEQ)]
Name = Annotated[str, Meta(min_length=1, max_length=users.MAX_NAME)]


class RoomLine(Struct, tag="room", frozen=True):
    """The first line."""

    name: str
    first_seq: Positive
    last_seq: Seq
    epoch: str = ""  # for people to read; an import gives a new one
    exported_at: str = ""
    version: int = VERSION


class UserLine(Struct, tag="user", frozen=True):
    """Who a sender or receiver is, under the id that messages name."""

    id: Positive
    name: Name
    kind: Literal["site", "guest"]


class MessageLine(Struct, tag="message", frozen=True):
    """One message: the fields of an entry."""

    seq: Positive
    id: MessageId
    sender: Person
    receiver: Person | None
    text: str
    sent_at: str
    redacted: bool = False

    @property
    def milliseconds(self) -> int:
        return milliseconds(self.sent_at)


Line = RoomLine | UserLine | MessageLine

_lines: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_encoder = msgspec.json.Encoder()


def written(line: RoomLine | UserLine) -> bytes:
    return _encoder.encode(line) + b"\n"


def checked(
    lines: BinaryIO, name: str | None, copy: BinaryIO | None = None
) -> Iterator[tuple[int, Line]]:
    """Yield each line with its number, copied to `copy`; raise Impossible at the first bad one.

    `name` is what the room will be called, where it is not the name that it had.
    """
    check = _Check(name)
    for number, raw in enumerate(iter(lambda: lines.readline(MAX_LINE + 1), b""), 1):
        if len(raw) > MAX_LINE:
            raise Impossible(f"Line {number} is too long: it has more than {MAX_LINE} bytes.")
        try:
            line = _lines.decode(raw)
            check.take(line)
        except msgspec.ValidationError as error:
            raise Impossible(f"Line {number}: {explain(str(error))}") from error
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise Impossible(f"Line {number}: this is not valid JSON.") from error
        except (ValueError, WireError, users.NameRefused) as error:
            raise Impossible(f"Line {number}: {error}") from error
        if copy is not None:
            copy.write(raw)
        yield number, line
    check.end()


class _Check:
    """What was read so far, as far as the next line must fit to it."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._room: RoomLine | None = None
        self._pair: set[int] | None = None
        self._users: set[int] = set()
        # The names of site users, as keys.
        self._taken: set[str] = set()
        self._next = 0
        self._newest = 0

    def take(self, line: Line) -> None:
        """Raise ValueError, WireError or NameRefused where the line does not fit."""
        if isinstance(line, RoomLine):
            self._begin(line)
        elif self._room is None:
            raise ValueError("an export begins with its room.")
        elif isinstance(line, UserLine):
            self._user(line)
        else:
            self._message(line)

    def end(self) -> None:
        """Raise Impossible where something is missing at the end."""
        if self._room is None:
            raise Impossible("There is nothing to import.")
        if self._next <= self._room.last_seq:
            raise Impossible(
                f"The export was cut off: messages {self._next} to {self._room.last_seq} are"
                " missing."
            )
        if self._pair is not None and not self._pair <= self._users:
            raise Impossible("A user of this direct room is missing.")

    def _begin(self, line: RoomLine) -> None:
        if self._room is not None:
            raise ValueError("a second room.")
        if line.version != VERSION:
            raise ValueError(f"version {line.version} is not known here; this is {VERSION}.")
        pair = direct_pair(line.name)
        if pair is not None and self._name:
            raise ValueError("a direct room is named after its users, and not by --room.")
        name = self._name or line.name
        if not ROOM_NAME.fullmatch(name) or (is_reserved(name) and pair is None):
            raise ValueError(f"{name} is not a name of a room.")
        if line.last_seq < line.first_seq - 1:
            raise ValueError("last_seq is too small for first_seq.")
        self._room, self._next = line, line.first_seq
        self._pair = set(pair) if pair else None

    def _user(self, line: UserLine) -> None:
        _check_name(line.name)
        if line.id in self._users:
            raise ValueError(f"user {line.id} was there before.")
        key = users.key_of(line.name)
        if line.kind == "site":
            # They would become one, who would have a direct room with nobody else.
            if key in self._taken:
                raise ValueError("another site user has this name, but for its case.")
            self._taken.add(key)
        self._users.add(line.id)

    def _message(self, line: MessageLine) -> None:
        assert self._room is not None
        if line.seq != self._next or line.seq > self._room.last_seq:
            raise ValueError(f"seq {line.seq} comes where {self._next} should.")
        people = {one.id for one in (line.sender, line.receiver) if one is not None}
        if not people <= self._users:
            raise ValueError("a user who was not told of before.")
        if self._pair is not None and people != self._pair:
            raise ValueError("this is not a message between the two users of the room.")
        for one in (line.sender, line.receiver):
            if one is not None:
                _check_name(one.name)
        if line.milliseconds < self._newest:
            raise ValueError("sent_at goes backwards.")
        if not line.redacted:
            check_text(line.text)
        elif line.text:
            raise ValueError("a redacted message has no text.")
        self._next, self._newest = line.seq + 1, line.milliseconds


# Most messages of a room are of the same few people.
@lru_cache(maxsize=1024)
def _check_name(name: str) -> None:
    """Raise ValueError or NameRefused where nobody can have had this name."""
    if users.checked(name) != name:
        raise ValueError("the name is not in NFKC.")
