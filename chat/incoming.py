"""The frames of the wire contract (docs/protocol.md) that come from clients; no I/O here.

`parse` reads and checks a frame in one step; the bodies of HTTP requests are checked by the same
rules. Called by `web/connection.py`, `web/rooms.py` and `web/api.py`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from chat.errors import BadFrame, BadJson, TextEmpty, TextTooLong, UnknownType
from chat.protocol import MAX_INTEGER, MAX_TEXT, PAGE_DEFAULT, PAGE_MAX

Positive = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
MessageId = Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,64}\Z")]


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


class Typing(Struct, tag="typing", frozen=True):
    pass


class Read(Struct, tag="read", frozen=True):
    seq: Annotated[int, Meta(ge=0, le=MAX_INTEGER)]


class Ping(Struct, tag="ping", frozen=True):
    pass


ClientFrame = Send | History | Renew | Typing | Read | Ping
CLIENT_TYPES = frozenset({"send", "history", "token", "typing", "read", "ping"})


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
