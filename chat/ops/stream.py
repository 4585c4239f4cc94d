"""WebSockets under Hypercorn, bounded on every side.

`Stream` replaces Hypercorn's `WSStream` (`install`, called by `server.py`). It tells the app
`websocket.disconnect` in every case, once, with the code of whoever closed first: the peer's code
and reason (1005: a close without a code), or the code that we closed with, whatever the peer
answers (1009, 1002 and 1007 are ours too), or 1006 where the connection just ended. It counts
messages in bytes, refuses permessage-deflate, and frames a shared text once for all who get it.
"""

from __future__ import annotations

import asyncio
import struct
from io import BytesIO, StringIO
from typing import Any
from weakref import WeakKeyDictionary

import hypercorn.asyncio.run
import hypercorn.asyncio.tcp_server
import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
from hypercorn.protocol.events import Body, Data, EndData, Event, StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import (
    ASGIWebsocketState,
    FrameTooLargeError,
    WebsocketBuffer,
    WSStream,
)
from hypercorn.typing import ASGISendEvent, WebsocketAcceptEvent, WorkerContext
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.events import Event as FrameEvent
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from chat.ops.peer import Http1, Peer, Tasks
from chat.ops.pulse import Pinged, Pulse

# Seconds that a peer has to answer our close frame, then its TCP connection is cut. Long enough
# for a slow reader to take what lies before the frame, short enough for a stop of the server.
CLOSE_LIMIT = 4.0

PING = b"\x89\x00"
TEXT = 0x81  # FIN and the opcode of a text frame


def install() -> None:
    """Put these classes in the place of Hypercorn's; a second call changes nothing."""
    for module, name, ours in (
        (hypercorn.protocol.h11, "WSStream", Stream),
        (hypercorn.protocol.h2, "WSStream", Stream),
        (hypercorn.protocol, "H11Protocol", Http1),
        (hypercorn.asyncio.run, "TCPServer", Peer),
        (hypercorn.asyncio.tcp_server, "TaskGroup", Tasks),
    ):
        assert hasattr(module, name), f"Hypercorn has no {module.__name__}.{name} any more"
        setattr(module, name, ours)


def frame(text: str) -> bytes:
    """The text as one unmasked WebSocket frame (RFC 6455, 5.2)."""
    payload = text.encode()
    length = len(payload)
    if length < 126:
        return bytes((TEXT, length)) + payload
    if length < 2**16:
        return struct.pack("!BBH", TEXT, 126, length) + payload
    return struct.pack("!BBQ", TEXT, 127, length) + payload


class ByteBuffer(WebsocketBuffer):
    """The message under way, counted in bytes of UTF-8."""

    def extend(self, event: Message[Any]) -> None:
        """Add a piece; above the limit raise FrameTooLargeError and keep nothing."""
        data: Any = event.data
        if isinstance(data, str):
            self.length += len(data) if data.isascii() else len(data.encode())
        else:
            self.length += len(data)
        if self.length > self.max_length:
            self.value = None
            raise FrameTooLargeError
        if self.value is None:
            self.value = StringIO() if isinstance(data, str) else BytesIO()
        self.value.write(data)


# One pulse for each running server.
pulses: WeakKeyDictionary[WorkerContext, Pulse] = WeakKeyDictionary()


class Stream(WSStream):
    """One WebSocket. The app's side is `app_send`, the peer's is `handle`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.buffer = ByteBuffer(self.config.websocket_max_message_size)
        # What the app's disconnect message says: abnormal, until somebody closes.
        self.code = int(CloseReason.ABNORMAL_CLOSURE)
        self.reason = ""
        # The TCP connection where it carries this socket alone (HTTP/1.1, not HTTP/2).
        protocol = getattr(self.send, "__self__", None)
        peer = getattr(getattr(protocol, "send", None), "__self__", None)
        alone = isinstance(protocol, H11Protocol) and isinstance(peer, Peer)
        self.peer: Peer | None = peer if alone else None
        # The app has been told `websocket.disconnect`.
        self.told = False
        # Cuts the connection where our close is not answered. Set by our close.
        self.cut: asyncio.TimerHandle | None = None
        # The socket's place among the pings. Set once the socket is accepted.
        self.turn: set[Pinged] | None = None

    # From the app

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Send what the app says; silently nothing once the socket is closed."""
        if self.closed:
            return
        if message is None:
            await self._app_ended()
        elif self.state is ASGIWebsocketState.CONNECTED:
            said: Any = message
            kind, text = said["type"], said.get("text")
            if kind == "websocket.send" and isinstance(text, str):
                if self.connection.state is not ConnectionState.OPEN:
                    return
                # None: a shared text that nobody was sent yet. Absent: a text like any other.
                wire: bytes | None = getattr(text, "wire", b"")
                if not wire:
                    framed = frame(text)
                    if wire is None:
                        said["text"].wire = framed
                    wire = framed
                await self._write(wire)
                return
            if kind == "websocket.close":
                self._close_begins(said.get("code", CloseReason.NORMAL_CLOSURE), said.get("reason"))
            await super().app_send(message)
        elif self.state is not ASGIWebsocketState.CLOSED:
            await super().app_send(message)
        # else: we closed (1009) while the app was about to send. It learns it from its disconnect.

    async def _app_ended(self) -> None:
        if self.state is ASGIWebsocketState.HANDSHAKE:
            self.state = ASGIWebsocketState.HTTPCLOSED
            await self._send_error_response(500)
        elif self.state is ASGIWebsocketState.CONNECTED:
            await self._close(CloseReason.INTERNAL_ERROR)
        if (
            self.state is ASGIWebsocketState.CLOSED
            and self.connection.state is ConnectionState.LOCAL_CLOSING
        ):
            # A TCP connection closed with unread bytes is a reset, which may overtake our close
            # frame and its code. So the reading goes on until the peer's answer or the cut.
            return
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        # permessage-deflate costs three times the work and 100 to 200 kB per socket, and a send
        # that is cancelled garbles all that follow it.
        self.handshake.extensions = None
        await super()._accept(message)

    # From the peer

    async def handle(self, event: Event) -> None:
        """Take what the connection brings."""
        if self.closed:
            return
        if isinstance(event, (Body, Data)):
            if self.handshake.accepted:
                self.connection.receive_data(event.data)
                await self._handle_events()
            elif self.state is ASGIWebsocketState.HANDSHAKE:
                await self._refuse_haste()
        elif isinstance(event, StreamClosed):
            self.closed = True
            if self.cut is not None:
                self.cut.cancel()
            if self.turn is not None:
                pulses[self.context].leave(self, self.turn)
            await self._tell_app()
        else:
            await super().handle(event)
            if self.app_put is None:  # not a valid handshake, and answered: nothing to wait for
                await self.send(StreamClosed(stream_id=self.stream_id))

    async def _refuse_haste(self) -> None:
        # Bytes before our answer to the handshake. The app runs already: it must be told.
        self.closed = True
        self.state = ASGIWebsocketState.HTTPCLOSED
        await self._tell_app()
        await self._send_error_response(400)
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if isinstance(event, Message):
                await self._take(event)
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                await self._peer_closed(event)

    async def _take(self, event: Message[Any]) -> None:
        if self.state is not ASGIWebsocketState.CONNECTED:
            return  # closed by us: read on for the answer, keep nothing
        try:
            self.buffer.extend(event)
        except FrameTooLargeError:
            await self._close(CloseReason.MESSAGE_TOO_BIG)
            return
        if event.message_finished:
            message = self.buffer.to_message()
            self.buffer.clear()
            assert self.app_put is not None
            await self.app_put(message)

    async def _peer_closed(self, event: CloseConnection) -> None:
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            self.code, self.reason = int(event.code), event.reason or ""
            await self._send_wsproto_event(event.response())
        elif self.connection.state is ConnectionState.OPEN:
            # Not a close frame: bytes that are no WebSocket. They get the code, but no patience.
            await self._close(event.code)
        await self.send(StreamClosed(stream_id=self.stream_id))

    # Both

    async def _tell_app(self) -> None:
        if self.app_put is not None and not self.told:
            self.told = True
            message = {"type": "websocket.disconnect", "code": self.code, "reason": self.reason}
            await self.app_put(message)

    async def _close(self, code: int) -> None:
        # The stream's own close. The app is told first: the frame may have to wait for the peer.
        self._close_begins(code, None)
        await self._tell_app()
        await self._send_wsproto_event(CloseConnection(code=code))
        await self.send(EndData(stream_id=self.stream_id))

    def _close_begins(self, code: int, reason: str | None) -> None:
        self.state = ASGIWebsocketState.CLOSED
        if self.connection.state is ConnectionState.OPEN:
            self.code, self.reason = int(code), reason or ""
        if self.cut is None:
            self.cut = asyncio.get_running_loop().call_later(CLOSE_LIMIT, self._cut)

    def _cut(self) -> None:
        if self.peer is not None:
            self.peer.abort()
        else:
            self.task_group.spawn(self.send, StreamClosed(stream_id=self.stream_id))

    async def _write(self, data: bytes) -> None:
        if self.peer is not None:
            await self.peer.write(data)
        else:
            await self.send(Data(stream_id=self.stream_id, data=data))

    async def _send_wsproto_event(self, event: FrameEvent) -> None:
        try:
            data = self.connection.send(event)
        except LocalProtocolError:
            return  # too late for this frame: one side has closed
        await self._write(data)

    # Pings

    async def _send_pings(self) -> None:
        # Called by Hypercorn in a task of its own. The pulse needs none.
        interval = self.config.websocket_ping_interval
        if self.peer is None or interval is None:
            await super()._send_pings()
        elif not self.closed:
            pulse = pulses.setdefault(self.context, Pulse(interval))
            self.turn = pulse.join(self)

    def ping(self) -> None:
        """Send a ping, without waiting: two bytes more in a full buffer do no harm."""
        peer = self.peer
        if (
            peer is not None
            and self.connection.state is ConnectionState.OPEN
            and not peer.transport.is_closing()
        ):
            peer.transport.write(PING)
