"""The HTTP API of docs/protocol.md, section 4: sessions, tokens, rooms, messages.

Errors are raised as WireErrors and answered by `web/problems.py`.
"""

from __future__ import annotations

import logging
import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chat.clock import now, rfc3339
from chat.errors import (
    UNAVAILABLE_RETRY_AFTER,
    BadFrame,
    BadJson,
    Forbidden,
    NotFound,
    Unauthenticated,
    Unavailable,
    WireError,
)
from chat.incoming import Positive, Post, check_object, explain
from chat.log.repository import Room
from chat.log.users import NameRefused
from chat.protocol import (
    MAX_CLIENT_FRAME,
    MAX_INTEGER,
    PAGE_DEFAULT,
    PAGE_MAX,
    ROOM_NAME,
    Ack,
    direct_pair,
)
from chat.web.guard import origin_allowed
from chat.web.identity import MAX_TOKEN_TTL, TOKEN_TTL, Identity
from chat.web.rooms import admit, listed, new_id, submit
from chat.web.services import Services, services

logger = logging.getLogger(__name__)

ROOMS_PAGE = 200  # rooms in one answer
MEMBERS_PAGE = 200  # members in one answer
MAX_BODY = MAX_CLIENT_FRAME  # bytes
SAFE_METHODS = ("GET", "HEAD")
T = TypeVar("T", bound=Struct)
INTEGER = re.compile(r"[0-9]{1,16}")


class TooLarge(WireError):
    code = "too_large"
    status = 413


class NotJson(WireError):
    code = "not_json"
    status = 415


class TokenOrder(Struct, frozen=True):
    user: str
    room: str | None = None
    ttl: Annotated[int, Meta(ge=1, le=MAX_TOKEN_TTL)] = TOKEN_TTL


class DirectOrder(Struct, frozen=True):
    user_id: Positive


async def session(request: Request) -> Response:
    identity = await who(request)
    return answer({"user": identity.user.person})


async def tokens(request: Request) -> Response:
    chat = services(request)
    if chat.settings.api_key is None:
        raise NotFound("Tokens are made with CHAT_API_KEY, and none is set.")
    if not chat.identities.is_backend(request):
        raise Unauthenticated("This needs `Authorization: Bearer` with the value of CHAT_API_KEY.")
    order = await body(request, TokenOrder)
    if order.room is not None and not ROOM_NAME.fullmatch(order.room):
        raise BadFrame("Field `room`: this is not a valid room name.")
    try:
        user = await chat.users.site_user(order.user)
    except NameRefused as error:
        raise BadFrame(f"Field `user`: {error}") from error
    token, expires_at = chat.identities.mint(user, order.room, order.ttl)
    made = {"token": token, "expires_at": rfc3339(expires_at), "user": user.person}
    return answer(made, 201)


async def rooms(request: Request) -> Response:
    identity = await who(request)
    chat = services(request)
    if identity.room is not None:
        raise Forbidden("This token is for one room only.")
    after = request.query_params.get("after")
    if after is not None and not ROOM_NAME.fullmatch(after):
        raise BadFrame("Query parameter `after` is not a room name.")
    found, more = await chat.repository.rooms_of(identity.user.id, after, ROOMS_PAGE)
    return answer({"rooms": listed(chat, found), "more": more})


async def messages(request: Request) -> Response:
    """A room's log over HTTP: pages of it, and new messages for it."""
    # Not an HTTPEndpoint: what that raises is answered outside of the CORS headers.
    return await (post_message if request.method == "POST" else read_messages)(request)


async def read_messages(request: Request) -> Response:
    identity = await who(request)
    chat, name = services(request), request.path_params["room"]
    await admit(chat, identity, name)
    before, after = number(request, "before", 1), number(request, "after", 0)
    limit = number(request, "limit", 1, PAGE_MAX) or PAGE_DEFAULT
    if before is not None and after is not None:
        raise BadFrame("Give `before` or `after`, not both.")
    room = await existing_room(chat, name)
    log = chat.repository
    if after is not None:
        page = await log.read(room.id, after, limit + 1)
        kept = page[:limit]
    else:
        page = await log.read_before(room.id, before, limit + 1)
        kept = page[-limit:]
    # The room once more: it may have grown between, and an answer must not contradict itself.
    room = await existing_room(chat, name)
    head = {
        "room": room.name,
        "epoch": room.epoch,
        "first_seq": room.first_seq,
        "last_seq": room.last_seq,
        "messages": [msgspec.Raw(one.json.encode()) for one in kept],
        "more": len(page) > len(kept),
    }
    return answer(head)


async def post_message(request: Request) -> Response:
    identity = await who(request)
    chat, name = services(request), request.path_params["room"]
    await admit(chat, identity, name)
    post = await body(request, Post)
    if post.id is None:
        post = msgspec.structs.replace(post, id=new_id())
    try:
        message_id, future = await submit(chat, identity, name, None, post)
        stored = await future
    except Unavailable as error:
        # An error of its own: that of the writer is shared by its whole batch.
        mine = Unavailable(error.detail, retry_after=error.retry_after or UNAVAILABLE_RETRY_AFTER)
        mine.message_id = post.id
        raise mine from error.__cause__
    ack = Ack(message_id, stored.seq, rfc3339(stored.sent_at), stored.duplicate)
    fields = msgspec.structs.asdict(ack)
    return answer(fields, 200 if stored.duplicate else 201)


async def members(request: Request) -> Response:
    """Who ever entered a room, and both users of a direct one."""
    identity = await who(request)
    chat, name = services(request), request.path_params["room"]
    await admit(chat, identity, name)
    after = number(request, "after", 0) or 0
    room = await existing_room(chat, name)
    await chat.marks.flush()  # who just came in is there, too
    pair = direct_pair(name)
    if pair is None:
        page = await chat.members.of_room(room.id, after, MEMBERS_PAGE + 1)
    else:
        page = [one for one in await chat.members.of_direct(room.id, pair) if one.id > after]
    here, moment = chat.hub.presence.who(room.id), now()
    found = [
        {
            "id": one.id,
            "name": one.name,
            "online": one.id in here,
            "connections": here[one.id].connections if one.id in here else 0,
            "last_seen_at": _seen(moment if one.id in here else one.last_seen_at),
            "last_read_seq": one.last_read_seq,
        }
        for one in page[:MEMBERS_PAGE]
    ]
    return answer({"members": found, "more": len(page) > MEMBERS_PAGE})


def _seen(at: int | None) -> str | None:
    return None if at is None else rfc3339(at)


async def direct(request: Request) -> Response:
    identity = await who(request)
    order = await body(request, DirectOrder)
    mine = identity.user.id
    if order.user_id == mine:
        raise BadFrame("Field `user_id`: a direct room needs somebody else.")
    if await services(request).users.find(order.user_id) is None:
        raise NotFound(f"There is no user {order.user_id}.")
    low, high = sorted((mine, order.user_id))
    name = f"dm.{low}.{high}"
    if identity.room not in (None, name):
        raise Forbidden("This token is for another room.")
    return answer({"room": name})


# --- What the endpoints share


async def who(request: Request) -> Identity:
    """Return who is asking; raise Unauthenticated, or Forbidden for a foreign page's request."""
    chat = services(request)
    identity = await chat.identities.identify(request)
    guarded = identity.by_cookie and request.method not in SAFE_METHODS
    if guarded and not origin_allowed(request.headers, chat.settings):
        logger.warning("Origin %s refused", ", ".join(request.headers.getlist("origin"))[:200])
        raise Forbidden("This origin is not allowed.")
    return identity


async def existing_room(chat: Services, name: str) -> Room:
    room = await chat.repository.find_room(name)
    if room is None:
        raise NotFound("Nobody ever entered this room.")
    return room


async def body(request: Request, kind: type[T]) -> T:
    """Return the JSON body; raise NotJson, TooLarge, BadJson or BadFrame."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise NotJson("The body must be application/json.")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise TooLarge(f"The body has more than {MAX_BODY} bytes.")
    try:
        return msgspec.json.decode(raw.decode(), type=kind)
    except msgspec.ValidationError as error:
        check_object(bytes(raw))
        raise BadFrame(explain(str(error))) from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BadJson("The body is not valid JSON.") from error


def number(request: Request, name: str, low: int, high: int = MAX_INTEGER) -> int | None:
    """Return a query parameter as an integer, None where it is absent; raise BadFrame."""
    raw = request.query_params.get(name)
    if raw is None:
        return None
    if not INTEGER.fullmatch(raw) or not low <= int(raw) <= high:
        raise BadFrame(f"Query parameter `{name}` must be an integer of {low} to {high}.")
    return int(raw)


def answer(content: Any, status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(content),
        status,
        {"Cache-Control": "no-store"},
        media_type="application/json",
    )


ROUTES = [
    Route("/session", session),
    Route("/tokens", tokens, methods=["POST"]),
    Route("/rooms", rooms),
    Route("/rooms/{room:whole}/members", members),
    Route("/rooms/{room:whole}/messages", messages, methods=["GET", "POST"]),
    Route("/direct", direct, methods=["POST"]),
]
