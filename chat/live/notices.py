"""What processes tell each other over the relay's control channel about their people.

    here <process> <JSON>      who is in which room there
    typing <process> <JSON>    a user types
    read <process> <JSON>      a user has read up to a seq

Each is small, may get lost, and is told to all, its author included, who passes it over unread.
The JSON is versioned by its shape only: what another version says is passed over, and says so in
the log. `presence` and the hub write and read them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from chat.protocol import MAX_INTEGER, Person

logger = logging.getLogger(__name__)

# Users in one text. With the longest names and ids it stays below 256 KiB: a longer one would
# hold up the bells behind it.
SEATS_PER_TEXT = 1_000
COMPLAINT_PAUSE = 60.0  # seconds between two complaints about texts that nobody understands

Number = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Count = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]


class Seat(NamedTuple):
    """A user in a room of one process; without connections, one who has left it."""

    user_id: Number
    name: Annotated[str, Meta(max_length=64)]  # characters; twice what a name may have
    connections: Count


Rooms = list[tuple[Number, list[Seat]]]


class Hello(Struct, tag="hello", array_like=True, frozen=True):
    """A process came, or was cut off: it asks all the others to tell everything."""


class Bye(Struct, tag="bye", array_like=True, frozen=True):
    """A process goes."""


class Changes(Struct, tag="changes", array_like=True, frozen=True):
    """What is new in a process: these users as they are now; all else is as before."""

    rooms: Rooms


class Whole(Struct, tag="whole", array_like=True, frozen=True):
    """One part of everything that a process has; who is in none of the parts is not there."""

    part: Count  # 0 … parts - 1, told in this order
    parts: Number
    rooms: Rooms


class Types(Struct, array_like=True, frozen=True):
    room_id: Number
    user: Person


class HasRead(Struct, array_like=True, frozen=True):
    room_id: Number
    user: Person
    seq: Count


Notice = Hello | Bye | Changes | Whole | Types | HasRead

_encoder = msgspec.json.Encoder()
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    "here": msgspec.json.Decoder(Hello | Bye | Changes | Whole),
    "typing": msgspec.json.Decoder(Types),
    "read": msgspec.json.Decoder(HasRead),
}


class Notices:
    """The notices that one process writes and reads."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._complained_at = float("-inf")

    def write(self, notice: Notice) -> str:
        kind = {Types: "typing", HasRead: "read"}.get(type(notice), "here")
        return f"{kind} {self._process} {_encoder.encode(notice).decode()}"

    def read(self, text: str) -> tuple[str, Notice] | None:
        """Return which other process says what; None for one's own, and where it makes no sense."""
        kind, _, rest = text.partition(" ")
        process, _, body = rest.partition(" ")
        if process == self._process:
            return None
        try:
            return process, _decoders[kind].decode(body)
        except (KeyError, msgspec.DecodeError, RecursionError, UnicodeError):
            self.complain("Another process says what this one does not understand")
            return None

    def complain(self, sentence: str) -> None:
        """Log a warning, one a minute at most: what brings it may come twice a second."""
        if time.monotonic() - self._complained_at >= COMPLAINT_PAUSE:
            self._complained_at = time.monotonic()
            logger.warning("%s", sentence)


def portions(rooms: Iterable[tuple[int, Iterable[Seat]]]) -> Iterator[Rooms]:
    """Split rooms into lists that fit into one text each; a large room may be in several."""
    portion: dict[int, list[Seat]] = {}
    size = 0
    for room_id, seats in rooms:
        for seat in seats:
            if size == SEATS_PER_TEXT:
                yield list(portion.items())
                portion, size = {}, 0
            portion.setdefault(room_id, []).append(seat)
            size += 1
    if portion:
        yield list(portion.items())
