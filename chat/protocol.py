"""The words of the wire contract (docs/protocol.md), and the frames of the server; no I/O here.

Frames are Structs that `encode` turns into text, but for `messages`: its entries are encoded once,
when they are read or committed, and from then on only joined (`messages_frame`). What clients
send is in `incoming.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

VERSION = 1
MAX_INTEGER = 2**53 - 1  # what JavaScript's numbers hold exactly
MAX_TEXT = 4_000  # characters in a message
MAX_CLIENT_FRAME = 64 * 1024  # bytes of UTF-8
# Bytes of UTF-8. PROTOCOL.md allows 256 KiB; the envelope around the entries is far below 1 KiB.
MAX_ENTRIES = 255 * 1024
PAGE_DEFAULT = 50  # messages: what a newcomer and a history frame without `limit` get
PAGE_MAX = 200  # messages

ROOM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
DIRECT_ROOM = re.compile(r"dm\.(0|[1-9][0-9]{0,15})\.(0|[1-9][0-9]{0,15})")


class CloseCode(IntEnum):
    """Why a socket ends, and so whether its client should come back."""

    NORMAL = 1000
    GOING_AWAY = 1001
    BINARY = 1003
    POLICY = 1008
    TOO_BIG = 1009
    FAULT = 1011
    RESTART = 1012
    TRY_LATER = 1013
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    NOT_FOUND = 4404
    TOO_MANY = 4429


class Person(Struct, frozen=True):
    """A user as others see it."""

    id: int
    name: str


class Entry(NamedTuple):
    """One message of a log, encoded: `json` is its object in a `messages` frame."""

    seq: int
    json: str
    size: int  # bytes of `json` in UTF-8


class SharedText(str):
    """A frame's text that many members are sent; `wire` keeps its bytes once one was."""

    wire: bytes | None = None


# --- Frames from the server


class Limits(Struct, frozen=True):
    text: int = MAX_TEXT  # characters
    frame: int = MAX_CLIENT_FRAME  # bytes


class Welcome(Struct, tag="welcome"):
    room: str
    epoch: str
    first_seq: int
    last_seq: int
    resumed: bool
    user: Person
    expires_at: str | None
    server_time: str
    protocol: int = VERSION
    limits: Limits = Limits()


class Ack(Struct, tag="ack"):
    id: str
    seq: int
    sent_at: str
    duplicate: bool


class Error(Struct, tag="error"):
    code: str
    detail: str
    id: str | UnsetType = UNSET
    retry_after: float | UnsetType = UNSET


class Pong(Struct, tag="pong"):
    server_time: str


class Renewed(Struct, tag="token"):
    expires_at: str


class Closing(Struct, tag="closing"):
    code: int
    reason: str
    reconnect_after: float


class Present(Struct, tag="presence"):
    """Who is there: the picture."""

    room: str
    count: int
    users: list[Person]


class Changed(Struct, tag="presence"):
    """Who is there: what changed since the last one."""

    room: str
    count: int
    joined: list[Person]
    left: list[Person]


class Typing(Struct, tag="typing"):
    room: str
    user: Person


class Read(Struct, tag="read"):
    room: str
    user: Person
    seq: int


class Redacted(Struct, tag="redacted"):
    room: str
    seq: int


class Message(Struct):
    """One entry of a `messages` frame."""

    seq: int
    id: str
    sender: Person
    receiver: Person | None
    text: str
    sent_at: str
    redacted: bool | UnsetType = UNSET


_encoder = msgspec.json.Encoder()
_messages = msgspec.json.Decoder(Message)
_REDACTED = '"redacted":true}'  # how such an entry ends; within a text, quotes are escaped


def encode(frame: Struct) -> str:
    return _encoder.encode(frame).decode()


def entry(message: Message) -> Entry:
    """Encode one message, once for all that it is sent to."""
    encoded = _encoder.encode(message)
    return Entry(message.seq, encoded.decode(), len(encoded))


def decoded(one: Entry) -> Message:
    return _messages.decode(one.json)


def redacted(one: Entry) -> Entry:
    """Return the message without its text, as the log has it once an operator took it away."""
    message = decoded(one)
    message.text, message.redacted = "", True
    return entry(message)


def same(one: Entry, other: Entry) -> bool:
    """Tell whether both are one message; a text that is there no more says nothing else."""
    if one == other:
        return True
    if not any(each.json.endswith(_REDACTED) for each in (one, other)):
        return False
    return redacted(one) == redacted(other)


def messages_frame(room: str, entries: Iterable[Entry]) -> SharedText:
    """Return the `messages` frame of these entries; a room's name needs no escapes."""
    joined = ",".join([one.json for one in entries])
    return SharedText(f'{{"type":"messages","room":"{room}","messages":[{joined}]}}')


def history_frame(id: str | None, room: str, entries: Sequence[Entry], more: bool) -> str:
    joined = ",".join([one.json for one in entries])
    head = f'"id":{_encoder.encode(id).decode()},' if id is not None else ""
    flag = "true" if more else "false"
    return f'{{"type":"history",{head}"room":"{room}","messages":[{joined}],"more":{flag}}}'


def fitting(entries: Sequence[Entry], limit: int = MAX_ENTRIES) -> int:
    """Return how many of the first entries fit into one frame; at least one."""
    total = 0
    for count, one in enumerate(entries):
        total += one.size + 1
        if total > limit and count:
            return count
    return len(entries)


# --- Names of rooms


def direct_pair(room: str) -> tuple[int, int] | None:
    """Return both user ids of a direct room's name, or None where it is not one."""
    match = DIRECT_ROOM.fullmatch(room) if room.startswith("dm.") else None
    if match is None:
        return None
    low, high = int(match[1]), int(match[2])
    return (low, high) if 0 < low < high <= MAX_INTEGER else None


def is_reserved(room: str) -> bool:
    """Tell whether only a direct room may have this name."""
    return room[:3].lower() == "dm."
