"""The WebSocket endpoint `/ws/chat/{room}/`: who may come in, and the life of a socket.

The socket's own task reads; a second one writes. Whichever ends first ends the other, and every
end is bounded: after our close the rest is read off until the peer's, for CLOSE_PATIENCE at most.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from starlette.endpoints import WebSocketEndpoint
from starlette.websockets import WebSocket, WebSocketState

from chat.errors import (
    Forbidden,
    NotFound,
    RateLimited,
    Refused,
    Unauthenticated,
    Unavailable,
)
from chat.live.cursor import Cursor
from chat.live.tasks import stop
from chat.ops import metrics
from chat.ops.logging import about
from chat.protocol import MAX_INTEGER, CloseCode
from chat.web.connection import Connection
from chat.web.delivery import SEND_LIMIT, closing_frame
from chat.web.guard import client_of
from chat.web.identity import Identity
from chat.web.rooms import admit, enter_room
from chat.web.services import services

logger = logging.getLogger(__name__)

HANDSHAKE_LIMIT = 10.0  # seconds to look up who it is and where it may go
CLOSE_PATIENCE = 2.0  # seconds that a peer has to answer our close frame
# Why a socket is refused after the upgrade, as the metric tells it.
REASONS = {
    CloseCode.UNAUTHENTICATED: "unauthenticated",
    CloseCode.FORBIDDEN: "forbidden",
    CloseCode.NOT_FOUND: "not_found",
    CloseCode.TOO_MANY: "too_many",
    CloseCode.TRY_LATER: "database",
    CloseCode.RESTART: "restart",
}
INTEGER = re.compile(r"[0-9]{1,16}")


class RoomSocket(WebSocketEndpoint):
    """One member of one room."""

    encoding = "text"
    # The user and address that were counted for the limits, once they were.
    counted: tuple[int, str] | None = None
    # The conversation, once it is let in.
    connection: Connection | None = None

    async def dispatch(self) -> None:
        websocket = WebSocket(self.scope, self.receive, self.send)
        self.services = services(websocket)
        await websocket.accept()
        self.room_name = websocket.path_params["room"].removesuffix("/")
        try:
            with self._handshake():
                async with asyncio.timeout(HANDSHAKE_LIMIT):
                    await self.on_connect(websocket)
        except TimeoutError:
            logger.warning("Connection refused: looking it up took too long")
            await self._refuse(websocket, Refused(CloseCode.TRY_LATER, "the database is slow"))
        except Refused as refusal:
            await self._refuse(websocket, refusal)
        else:
            await self._talk(websocket)
        finally:
            if self.counted is not None:
                self._count(-1)

    async def on_connect(self, websocket: WebSocket) -> None:
        """Check who it is and where it may go, in this order; raise Refused."""
        name = self.room_name
        try:
            identity = await self.services.identities.identify(
                websocket, websocket.query_params.get("token")
            )
        except Unauthenticated as error:
            logger.warning("Unauthenticated user trying to connect to chat")
            raise Refused(CloseCode.UNAUTHENTICATED, "no valid session or token") from error
        except Unavailable as error:
            raise self._away(error) from error
        user = identity.user.name
        try:
            await admit(self.services, identity, name)
            logger.info("User %s connecting to room %s", user, name)
            self._check_limits(websocket, identity)
            room = await enter_room(self.services, identity, name)
            since, epoch = _since(websocket), websocket.query_params.get("epoch")
            taken_away: list[int] = []
            if since is not None and epoch in (None, room.epoch):
                await room.reach(since)
                database = self.services.repository.database
                taken_away = await room.taken_away.missed(database, room.id, since)
        except NotFound as error:
            logger.warning("User %s refused: %s is not a room", user, name[:200])
            raise Refused(CloseCode.NOT_FOUND, error.detail) from error
        except Forbidden as error:
            logger.warning("User %s refused: may not enter room %s", user, name)
            raise Refused(CloseCode.FORBIDDEN, error.detail) from error
        except RateLimited as error:
            logger.warning("User %s refused: too many new rooms", user)
            raise Refused(CloseCode.TOO_MANY, "too many new rooms") from error
        except Unavailable as error:
            raise self._away(error) from error
        cursor = Cursor(room, since, epoch)
        self.connection = self._enter(identity, cursor)
        if cursor.resumed:
            for seq in taken_away:
                self.connection.delivery.answer(room.gone(seq))  # after the welcome

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        assert self.connection is not None
        await self.connection.receive(data)

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        assert self.connection is not None
        connection = self.connection
        self.services.hub.leave(connection.cursor.room, connection)
        self.services.marks.seen(connection.cursor.room.id, connection.user_id)
        connection.release()
        metrics.CLOSES.add(str(int(close_code)))
        logger.info(
            "User %s disconnected from room %s (%s)",
            connection.identity.user.name,
            self.room_name,
            close_code,
        )

    # --- Coming in

    @contextmanager
    def _handshake(self) -> Iterator[None]:
        self.services.handshakes += 1
        try:
            yield
        finally:
            self.services.handshakes -= 1

    def _check_limits(self, websocket: WebSocket, identity: Identity) -> None:
        settings, user, address = self.services.settings, identity.user, client_of(websocket)
        limits = (
            (settings.max_connections_per_user, self.services.by_user[user.id], "user"),
            (settings.max_connections_per_address, self.services.by_address[address], "address"),
        )
        for limit, open_now, whose in limits:
            if limit and open_now >= limit:
                logger.warning("User %s refused: too many connections of this %s", user.name, whose)
                raise Refused(CloseCode.TOO_MANY, f"too many connections of this {whose}")
        self.counted = (user.id, address)
        self._count(1)

    def _count(self, change: int) -> None:
        assert self.counted is not None
        user_id, address = self.counted
        by_user, by_address = self.services.by_user, self.services.by_address
        by_user[user_id] += change
        by_address[address] += change
        if not by_user[user_id]:
            del by_user[user_id]
        if not by_address[address]:
            del by_address[address]

    def _enter(self, identity: Identity, cursor: Cursor) -> Connection:
        room = cursor.room
        connection = Connection(self.services, self.scope["chat.send"], identity, cursor)
        # No await since the cursor was made, and what was taken away was asked: nothing can fall
        # between these and the membership.
        if self.services.draining or not self.services.hub.enter(room, connection):
            raise Refused(CloseCode.RESTART, "restart")
        self.services.marks.seen(room.id, identity.user.id)
        about(connection_id=connection.number)
        return connection

    def _away(self, error: Unavailable) -> Refused:
        cause = type(error.__cause__ or error).__name__
        logger.warning("Connection refused: the database is away (%s)", cause)
        return Refused(CloseCode.TRY_LATER, "the database is away")

    async def _refuse(self, websocket: WebSocket, refusal: Refused) -> None:
        code = CloseCode(refusal.code)
        metrics.REFUSED.add(REASONS[code])
        async with asyncio.timeout(SEND_LIMIT):
            if code in (CloseCode.RESTART, CloseCode.TRY_LATER):
                await websocket.send(
                    {"type": "websocket.send", "text": closing_frame(code, str(refusal))}
                )
            await websocket.close(code, str(refusal))
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_PATIENCE):
                await _read_off(websocket)

    # --- Being in

    async def _talk(self, websocket: WebSocket) -> None:
        connection = self.connection
        assert connection is not None
        code: int = CloseCode.FAULT
        try:
            async with asyncio.timeout(SEND_LIMIT):
                await connection.delivery.send(connection.welcome())
            logger.info(
                "User %s connected to room %s", connection.identity.user.name, self.room_name
            )
            code = await self._converse(websocket, connection)
        finally:
            await self.on_disconnect(websocket, code)

    async def _converse(self, websocket: WebSocket, connection: Connection) -> int:
        writing = connection.delivery.start()
        reading = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as patience:

                    def hurry(_: asyncio.Task[None]) -> None:
                        if reading:
                            patience.reschedule(asyncio.get_running_loop().time() + CLOSE_PATIENCE)

                    writing.add_done_callback(hurry)
                    return await self._read(websocket, connection)
        finally:
            reading = False
            await stop([writing])
            fault = None if writing.cancelled() else writing.exception()
            if fault is not None and not isinstance(fault, TimeoutError):
                logger.error("A socket's writer failed", exc_info=fault)
        return connection.code or CloseCode.FAULT

    async def _read(self, websocket: WebSocket, connection: Connection) -> int:
        """Take frames until the peer leaves; return the code it left with."""
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return connection.code or int(message.get("code") or CloseCode.NORMAL)
            if message.get("text") is None:
                connection.end(CloseCode.BINARY, "only text frames")
                continue
            try:
                await self.on_receive(websocket, message["text"])
            except Refused as refusal:
                connection.end(CloseCode(refusal.code), str(refusal))


def _since(websocket: WebSocket) -> int | None:
    """Return the last seq that the client says it has; what is no such number counts as absent."""
    raw = websocket.query_params.get("since", "")
    return int(raw) if INTEGER.fullmatch(raw) and int(raw) <= MAX_INTEGER else None


async def _read_off(websocket: WebSocket) -> None:
    """Read until the disconnect comes, so that the server below can let go of the socket."""
    while websocket.client_state is not WebSocketState.DISCONNECTED:
        await websocket.receive()
