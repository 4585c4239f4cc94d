"""Who may enter which room, and how a message gets into its log.

The same rules for sockets and HTTP: `admit` and `enter_room` before entering, `submit` for each
message. Called by `web/sockets.py`, `web/connection.py` and `web/api.py`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Any

from starlette.convertors import PathConvertor, register_url_convertor

from chat.clock import rfc3339
from chat.errors import Forbidden, MissingReceiver, NotFound, UnknownReceiver
from chat.incoming import Post, Send, check_text
from chat.live import room as live
from chat.log.repository import Room, RoomSummary, Stored
from chat.log.statements import Draft
from chat.ops.logging import about
from chat.protocol import (
    ROOM_NAME,
    Person,
    direct_pair,
    is_reserved,
)
from chat.web.identity import Identity
from chat.web.services import Services

logger = logging.getLogger(__name__)

MESSAGE_ID_BYTES = 12  # random bytes of an id that the server makes


class WholePath(PathConvertor):
    """`{room:whole}`: a path to its very end. Starlette's `path` stops at a newline, and the
    answer to a socket is then a bare 403."""

    regex = "(?s:.*)"


register_url_convertor("whole", WholePath())


async def admit(services: Services, identity: Identity, name: str) -> None:
    """Raise NotFound for what is no room, Forbidden where this user may not enter."""
    if not ROOM_NAME.fullmatch(name):
        raise NotFound("This is not a valid room name.")
    if is_reserved(name):
        pair = direct_pair(name)
        if pair is None:
            raise NotFound("A direct room is named dm.A.B, with A below B.")
        for user_id in pair:
            if user_id != identity.user.id and await services.users.find(user_id) is None:
                raise NotFound("A user of this direct room does not exist.")
        if identity.user.id not in pair:
            raise Forbidden("Only its two users may enter a direct room.")
    if identity.room not in (None, name):
        raise Forbidden("This token is for another room.")
    about(room=name)


async def enter_room(services: Services, identity: Identity, name: str) -> live.Room:
    """Return the open room, made if new; raise RateLimited, Unavailable."""
    room = services.hub.find(name)
    if room is None:
        # Found and opened in one flight: of a crowd that comes back, nobody looks by itself.
        room = await services.opening_rooms.join(name, lambda: _open(services, name))
    return room or await services.hub.open(await _row(services, identity, name))


async def _open(services: Services, name: str) -> live.Room | None:
    row = await services.repository.find_room(name)
    return None if row is None else await services.hub.open(row)


async def _row(services: Services, identity: Identity, name: str) -> Room:
    """Return the room's row, made if new; raise RateLimited where one makes too many."""
    repository = services.repository
    found = await repository.find_room(name)
    if found is not None:
        return found
    if not identity.by_backend:
        limits = services.limits
        await limits.take(limits.room, "room", str(identity.user.id))
    return await repository.make_room(name)


def listed(services: Services, found: Sequence[RoomSummary]) -> list[dict[str, Any]]:
    """Return the rooms as lists show them; a direct one with the other user."""
    return [
        {
            "name": room.name,
            "last_seq": room.last_seq,
            "last_message_at": rfc3339(room.last_message_at),
            "online": services.hub.presence.count(room.id),
            "last_read_seq": room.last_read_seq,
            **({} if room.other is None else {"with": room.other}),
        }
        for room in found
    ]


async def submit(
    services: Services, identity: Identity, name: str, room_id: int | None, frame: Send | Post
) -> tuple[str, asyncio.Future[Stored]]:
    """Queue the message of a checked frame; return its id, and the future of where it is stored.

    A room without an id yet is made, once all else is right. Raises a WireError where the message
    may not be sent, or not now.
    """
    check_text(frame.text)
    receiver = await _receiver(services, identity, name, frame.receiver_id)
    if not identity.by_backend:
        limits = services.limits
        await limits.take(limits.send, "send", str(identity.user.id))
    if room_id is None:
        room_id = (await _row(services, identity, name)).id
    message_id = frame.id or new_id()
    draft = Draft(room_id, message_id, identity.user.person, receiver, frame.text)
    return message_id, services.writer.append(draft)


def new_id() -> str:
    """Return an id for a message whose sender gave none."""
    return secrets.token_urlsafe(MESSAGE_ID_BYTES)


async def _receiver(
    services: Services, identity: Identity, room: str, receiver_id: int | None
) -> Person | None:
    pair = direct_pair(room)
    if receiver_id is None:
        if pair is None:
            return None
        logger.error("Missing receiver_id in message")
        raise MissingReceiver("A direct room needs the field `receiver_id`.")
    user = await services.users.find(receiver_id)
    if user is None:
        logger.error("Receiver %s does not exist", receiver_id)
        raise UnknownReceiver(f"There is no user {receiver_id}.")
    if pair is not None and (receiver_id not in pair or receiver_id == identity.user.id):
        raise Forbidden("In a direct room the receiver is the other one.")
    return user.person
