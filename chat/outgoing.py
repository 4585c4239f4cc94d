"""The frames of the wire contract (docs/protocol.md) that come from servers, as clients parse them.

The counterpart of `incoming.py`; no I/O here. Called by `link.py`, which hands them to `client.py`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chat.protocol import Ack, Closing, Error, Message, Redacted, Renewed, Welcome


class Messages(msgspec.Struct, tag="messages"):
    messages: list[Message]


class History(msgspec.Struct, tag="history"):
    """A page of older messages, oldest first; `more`: there are still older ones."""

    id: str
    messages: list[Message]
    more: bool


class _Kind(msgspec.Struct):
    type: str


Frame = Welcome | Messages | Ack | Error | History | Closing | Renewed | Redacted
KINDS = (Welcome, Messages, Ack, Error, History, Closing, Renewed, Redacted)
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    str(kind.__struct_config__.tag): msgspec.json.Decoder(kind) for kind in KINDS
}
_kind = msgspec.json.Decoder(_Kind)


def parse(raw: str | bytes) -> Frame | None:
    """Return the frame; None for what we do not know, which is passed over."""
    try:
        decoder = _decoders.get(_kind.decode(raw).type)
        frame: Frame | None = decoder.decode(raw) if decoder is not None else None
        return frame
    except msgspec.MsgspecError:
        return None
