"""The frames of the wire contract (docs/protocol.md), typed; no I/O here.

Client frames are parsed and checked in one step by `parse`. Server frames are Structs that
`encode` turns into text, but for `messages`: its entries are encoded once, when they are read or
committed, and from then on only joined (`messages_frame`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from chat.errors import BadFrame, BadJson, TextEmpty, TextTooLong, UnknownType

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

Positive = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
MessageId = Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,64}\Z")]


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


# --- Frames from the client


class Send(Struct, tag="send", frozen=True):
    text: str
    id: MessageId | None = None
    receiver_id: Positive | None = None


class History(Struct, tag="history", frozen=True):
    id: MessageId | None = None
    before: Positive | None = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT


class Renew(Struct, tag="token", frozen=True):
    token: str


class Ping(Struct, tag="ping", frozen=True):
    pass


ClientFrame = Send | History | Renew | Ping
CLIENT_TYPES = frozenset({"send", "history", "token", "ping"})


class Post(Struct, frozen=True):
    """The body of `POST /api/rooms/{room}/messages`."""

    text: str
    id: MessageId | None = None
    receiver_id: Positive | None = None


_frames: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Named(Struct):
    """The little of a faulty frame that its error still names."""

    type: Any = None
    id: Any = None


def parse(raw: str) -> ClientFrame:
    """Return the frame in `raw`; raise BadJson, BadFrame or UnknownType."""
    try:
        return _frames.decode(raw)
    except msgspec.ValidationError as error:
        fault = str(error)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BadJson("The frame is not valid JSON.") from error
    check_object(raw)
    kind = named(raw).type
    if not isinstance(kind, str):
        raise BadFrame("Field `type` must be a string.")
    if kind not in CLIENT_TYPES:
        raise UnknownType(f"There is no frame of type {kind[:64]!r}.")
    raise BadFrame(explain(fault))


def check_object(raw: str | bytes) -> None:
    """Raise BadJson unless `raw` is one JSON object, whatever its fields hold."""
    try:
        _objects.decode(raw)
        # A number that is out of range is valid JSON: the field's reader refuses it.
        with suppress(msgspec.ValidationError):
            msgspec.json.decode(raw)
    except msgspec.ValidationError as error:
        raise BadJson("The JSON is not an object.") from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BadJson("This is not valid JSON.") from error


def named(raw: str) -> _Named:
    """Return `type` and `id` of a frame that is an object but not a valid frame."""
    try:
        return msgspec.json.decode(raw, type=_Named)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return _Named()


def faulty_id(raw: str) -> str | None:
    """Return the `id` of a faulty frame, if it has one that could be answered."""
    found = named(raw).id
    fits = isinstance(found, str) and re.fullmatch(r"[\x21-\x7e]{1,64}", found)
    return found if fits else None


def explain(fault: str) -> str:
    """Turn msgspec's fault into a sentence that names the field."""
    what, _, where = fault.partition(" - at `$")
    field = where.rstrip("`").lstrip(".")
    if "matching regex" in what:
        what = "Expected 1 to 64 printable ASCII characters"
    elif field and what.startswith("Integer value out of range"):
        what = f"Expected an integer of 1 to {MAX_INTEGER}"
    return f"Field `{field}`: {what}." if field else f"{what}."


def check_text(text: str) -> None:
    """Raise BadFrame, TextEmpty or TextTooLong for a text that no log takes."""
    if "\0" in text:
        # PostgreSQL cannot store it.
        raise BadFrame("Field `text` must not hold a NUL character.")
    if len(text) > MAX_TEXT:
        raise TextTooLong(f"A message has at most {MAX_TEXT} characters; this one has {len(text)}.")
    if not text or text.isspace():
        raise TextEmpty("A message needs some text.")


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


def encode(frame: Struct) -> str:
    return _encoder.encode(frame).decode()


def entry(message: Message) -> Entry:
    """Encode one message, once for all that it is sent to."""
    encoded = _encoder.encode(message)
    return Entry(message.seq, encoded.decode(), len(encoded))


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
