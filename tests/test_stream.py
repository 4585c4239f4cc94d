"""WebSockets over a real Hypercorn and real sockets, and how the original class fails."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import h2.connection
import h2.events
import hypercorn.asyncio
import hypercorn.asyncio.run
import hypercorn.asyncio.tcp_server
import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import pytest
from hypercorn.config import Config
from hypercorn.protocol.ws_stream import ASGIWebsocketState
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from chat.ops import stream
from chat.ops.peer import connected

SEAMS = (
    (hypercorn.protocol.h11, "WSStream"),
    (hypercorn.protocol.h2, "WSStream"),
    (hypercorn.protocol, "H11Protocol"),
    (hypercorn.asyncio.run, "TCPServer"),
    (hypercorn.asyncio.tcp_server, "TaskGroup"),
)
OURS, ORIGINAL = True, False
# Seconds. What must come gets the first; what the original never does is not waited for so long.
SOON = 10.0
NEVER = 0.6

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

App = Callable[[Any, Any, Any], Awaitable[None]]


class SharedText(str):
    wire: bytes | None = None


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    head = (0x80 if fin else 0) | opcode
    if len(payload) < 126:
        return bytes((head, 0x80 | len(payload))) + bytes(4) + payload
    if len(payload) < 2**16:
        return struct.pack("!BBH", head, 0x80 | 126, len(payload)) + bytes(4) + payload
    return struct.pack("!BBQ", head, 0x80 | 127, len(payload)) + bytes(4) + payload


@pytest.fixture(autouse=True)
def seams(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever is installed by a test, or by another one before it, is undone after it.
    for module, name in SEAMS:
        original = next(
            cls for cls in getattr(module, name).__mro__ if cls.__module__.startswith("hypercorn.")
        )
        monkeypatch.setattr(module, name, original)


@asynccontextmanager
async def serving(app: App, *, ours: bool = OURS, **settings: Any) -> AsyncIterator[int]:
    """A running Hypercorn; its port."""
    if ours:
        stream.install()
    sock = socket.create_server(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    values = {
        "errorlog": None,
        "graceful_timeout": 0.2,
        "websocket_max_message_size": 65536,
    }
    config = Config.from_mapping({**values, **settings})
    config.bind = [f"fd://{sock.detach()}"]
    stop, up = asyncio.Event(), asyncio.Event()

    async def until_stop() -> None:
        up.set()
        await stop.wait()

    async def lifespan_or(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
        await app(scope, receive, send)

    task = asyncio.create_task(
        hypercorn.asyncio.serve(lifespan_or, config, shutdown_trigger=until_stop, mode="asgi")
    )
    await up.wait()
    try:
        yield port
    finally:
        stop.set()
        leaked = [task for task in asyncio.all_tasks() if "_server_callback" in repr(task)]
        for peer in list(connected):
            peer.abort()
        if not ours:
            for one in leaked:
                one.cancel()
            task.cancel()
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout(SOON):
                await task


def connections() -> int:
    """Connections that still have a task in the server."""
    return sum("_server_callback" in repr(task) for task in asyncio.all_tasks())


def tasks() -> str:
    """The names of the coroutines that wait in any task."""
    names = []
    for task in asyncio.all_tasks():
        inner: Any = task.get_coro()
        while inner is not None:
            if hasattr(inner, "cr_await"):
                names.append(inner.__qualname__)
                inner = inner.cr_await
            elif type(inner).__name__ == "coroutine_wrapper":  # behind an object's __await__
                (inner,) = gc.get_referents(inner)
            else:
                break
    return " ".join(names)


async def until(condition: Callable[[], bool], limit: float = SOON) -> None:
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.005)


class Witness:
    """An app that accepts and receives, and keeps what it was told."""

    def __init__(self, *, accept: bool = True) -> None:
        self.accept = accept
        self.received: list[Any] = []
        self.disconnects: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.accepted = asyncio.Event()
        self.send: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        self.send = send
        if self.accept:
            await send({"type": "websocket.accept"})
            self.accepted.set()
        while (message := await receive())["type"] == "websocket.receive":
            self.received.append(message)
        await self.disconnects.put(message)

    async def disconnect(self, limit: float = SOON) -> dict[str, Any]:
        async with asyncio.timeout(limit):
            return await self.disconnects.get()


async def raw(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def upgraded(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await raw(port)
    writer.write(HANDSHAKE)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    return reader, writer


def url(port: int) -> str:
    return f"ws://127.0.0.1:{port}/"


def only_stream() -> stream.Stream:
    (peer,) = connected
    found = peer.protocol.protocol.stream  # type: ignore[union-attr]
    assert isinstance(found, stream.Stream)
    return found


# Disconnects


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
async def test_bytes_before_the_101_are_refused_and_the_app_is_told(ours: bool) -> None:
    witness = Witness()
    async with serving(witness, ours=ours) as port:
        reader, writer = await raw(port)
        writer.write(HANDSHAKE + masked(1, b"hasty"))
        if ours:
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
            assert (await witness.disconnect())["code"] == 1006
            await until(lambda: connections() == 0)
        else:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            with pytest.raises(TimeoutError):
                await witness.disconnect(NEVER)
            assert connections() == 1
        assert not witness.received


async def test_bytes_after_a_denial_has_begun_are_ignored() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def denies(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        head = [(b"content-length", b"4")]
        await send({"type": "websocket.http.response.start", "status": 503, "headers": head})
        await send({"type": "websocket.http.response.body", "body": b"no", "more_body": True})
        begun.set()
        await go_on.wait()
        await send({"type": "websocket.http.response.body", "body": b"w!"})

    async with serving(denies) as port:
        reader, writer = await raw(port)
        writer.write(HANDSHAKE)
        await begun.wait()
        writer.write(b"more")
        head = await reader.readuntil(b"no")
        go_on.set()
        assert head.startswith(b"HTTP/1.1 503") and await reader.read() == b"w!"


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        (masked(8, struct.pack("!H", 4123) + b"bye"), 4123, "bye"),
        (masked(8, struct.pack("!H", 1000)), 1000, ""),
        (masked(8), 1005, ""),
        (b"", 1006, ""),
    ],
)
async def test_the_app_is_told_the_peers_close_code_and_reason(
    ours: bool, frame: bytes, code: int, reason: str
) -> None:
    witness = Witness()
    async with serving(witness, ours=ours) as port:
        reader, writer = await upgraded(port)
        writer.write(frame)
        if not frame:
            writer.close()
        told = await witness.disconnect()
        if ours:
            assert (told["code"], told["reason"]) == (code, reason)
            answer = await reader.read() if frame else b""
            assert answer == (b"" if not frame else bytes((0x88, len(frame) - 6)) + frame[6:])
        else:
            assert told["code"] == 1006 and not told.get("reason")


async def test_a_reset_tells_the_app_1006() -> None:
    witness = Witness()
    async with serving(witness) as port:
        _, writer = await upgraded(port)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        assert (await witness.disconnect())["code"] == 1006


async def test_after_our_close_the_code_is_ours_whatever_the_peer_answers() -> None:
    witness = Witness()
    async with serving(witness) as port:
        reader, writer = await upgraded(port)
        await witness.accepted.wait()
        await witness.send({"type": "websocket.close", "code": 4408, "reason": "why"})
        assert await reader.readexactly(7) == b"\x88\x05" + struct.pack("!H", 4408) + b"why"
        writer.write(masked(8, struct.pack("!H", 1000)))
        told = await witness.disconnect()
        assert (told["code"], told["reason"]) == (4408, "why")
        assert await reader.read() == b""


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
async def test_a_peer_that_never_answers_our_close_is_cut(
    ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CLOSE_LIMIT", 0.2)
    witness = Witness()
    async with serving(witness, ours=ours) as port:
        reader, _ = await upgraded(port)
        await witness.accepted.wait()
        await witness.send({"type": "websocket.close", "code": 1012})
        if ours:
            assert (await witness.disconnect())["code"] == 1012
            with suppress(ConnectionResetError):
                await reader.read()
            await until(lambda: connections() == 0)
        else:
            with pytest.raises(TimeoutError):
                await witness.disconnect(NEVER)


async def test_an_app_that_ends_without_a_close_is_1011_and_the_answer_is_awaited() -> None:
    async def careless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    async with serving(careless) as port, connect(url(port)) as client:
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1011
        await until(lambda: connections() == 0)


async def test_an_app_that_ends_before_accepting_is_one_500() -> None:
    async def absent(scope: Any, receive: Any, send: Any) -> None:
        return

    async with serving(absent) as port:
        reader, writer = await raw(port)
        writer.write(HANDSHAKE)
        assert (await reader.read()).startswith(b"HTTP/1.1 500")


async def test_an_invalid_handshake_is_400_and_the_end_of_the_connection() -> None:
    async with serving(Witness()) as port:
        reader, writer = await raw(port)
        writer.write(HANDSHAKE.replace(b"Version: 13", b"Version: 12"))
        assert (await reader.read()).startswith(b"HTTP/1.1 400")


# What is not WebSocket


@pytest.mark.parametrize(
    ("garbage", "code"),
    [
        (masked(3), 1002),  # a reserved opcode
        (b"\x81\x02hi", 1002),  # not masked
        (masked(9, fin=False), 1002),  # a control frame in pieces
        (masked(1, b"\xff\xfe"), 1007),  # not UTF-8
        (masked(0, b"x"), 1002),  # a continuation of nothing
        (b"\xc1\x80\0\0\0\0", 1002),  # a compressed frame
    ],
)
async def test_bytes_that_are_no_websocket_end_it_with_a_code(garbage: bytes, code: int) -> None:
    witness = Witness()
    async with serving(witness) as port:
        reader, writer = await upgraded(port)
        writer.write(garbage)
        assert (await reader.read()) == b"\x88\x02" + struct.pack("!H", code)
        assert (await witness.disconnect())["code"] == code


# Size


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
async def test_a_message_over_the_limit_is_1009_for_both_sides(ours: bool) -> None:
    witness = Witness()
    async with serving(witness, ours=ours) as port, connect(url(port), compression=None) as client:
        await client.send("x" * 65536)
        with suppress(ConnectionClosed):
            await client.send("x" * 65537)
        await until(lambda: len(witness.received) == 1)
        if ours:
            assert (await witness.disconnect())["code"] == 1009
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_code == 1009
            await until(lambda: connections() == 0)
        else:  # only because this client answers the close frame
            assert (await witness.disconnect())["code"] == 1006


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
async def test_the_limit_counts_bytes_of_utf8(ours: bool) -> None:
    witness = Witness()
    async with serving(witness, ours=ours) as port, connect(url(port), compression=None) as client:
        await client.send("🙂" * 16384)
        await client.send("🙂" * 16385)
        if ours:
            assert (await witness.disconnect())["code"] == 1009
            assert len(witness.received) == 1
        else:
            await until(lambda: len(witness.received) == 2)


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
async def test_nothing_is_kept_of_what_comes_after_the_limit(
    ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CLOSE_LIMIT", 0.5)
    original = hypercorn.protocol.h11.WSStream
    made: list[Any] = []
    init = original.__init__
    monkeypatch.setattr(
        original, "__init__", lambda self, *args: (init(self, *args), made.append(self))[0]
    )
    witness = Witness()
    async with serving(witness, ours=ours) as port:
        reader, writer = await upgraded(port)
        writer.write(masked(1, b"x" * 70_000, fin=False))
        await reader.readexactly(4)
        for _ in range(20):
            writer.write(masked(0, b"x" * 70_000, fin=False))
            await writer.drain()
        await until(lambda: made[0].connection._proto._frame_decoder.buffer.buffer == b"")
        kept = made[0].buffer.value
        if ours:
            assert kept is None
            # It never answers our close frame and never stops: it is cut.
            with pytest.raises(OSError):
                while True:
                    writer.write(masked(0, b"x" * 1_000, fin=False))
                    await writer.drain()
                    await asyncio.sleep(0)
            await until(lambda: connections() == 0)
        else:
            await until(lambda: made[0].buffer.value.tell() > 1_000_000)


async def test_sends_after_our_1009_are_silently_nothing() -> None:
    witness = Witness()
    async with serving(witness) as port:
        reader, writer = await upgraded(port)
        writer.write(masked(2, b"x" * 70_000))
        await reader.readexactly(4)
        assert (await witness.disconnect())["code"] == 1009
        await witness.send({"type": "websocket.send", "text": "late"})
        await witness.send({"type": "websocket.send", "bytes": b"late"})
        await witness.send({"type": "websocket.close", "code": 1000})
        writer.write(masked(8, struct.pack("!H", 1009)))
        assert await reader.read() == b""


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
async def test_compression_is_refused(ours: bool) -> None:
    async with serving(Witness(), ours=ours) as port, connect(url(port)) as client:
        assert client.response is not None
        offered = client.response.headers.get("Sec-WebSocket-Extensions")
        assert (offered is None) == ours


# Leaks


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
@pytest.mark.parametrize("close", [True, False])
async def test_an_app_that_ends_with_messages_unread_leaves_nothing_behind(
    ours: bool, close: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CLOSE_LIMIT", 0.2)
    full = asyncio.Event()

    async def kicks(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await full.wait()
        if close:
            await send({"type": "websocket.close", "code": 1008})

    async with serving(kicks, ours=ours) as port:
        _, writer = await upgraded(port)
        writer.write(masked(1, b"x") * 30)
        await until(lambda: "Inbox.put" in tasks() or "Queue.put" in tasks())
        full.set()
        writer.close()
        if ours:
            await until(lambda: connections() == 0)
        else:
            with pytest.raises(TimeoutError):
                await until(lambda: connections() == 0, NEVER)


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
async def test_an_echo_whose_flooding_peer_leaves_is_told(ours: bool) -> None:
    ended = asyncio.Event()

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        ended.set()

    async with serving(echo, ours=ours) as port:
        _, writer = await upgraded(port)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.transport.pause_reading()
        flood = masked(1, b"x" * 60_000) * 4
        # Until both directions are full: the echo waits to send, the reading waits for the echo.
        with suppress(TimeoutError):
            while True:
                writer.write(flood)
                async with asyncio.timeout(0.3):
                    await writer.drain()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        if ours:
            async with asyncio.timeout(SOON):
                await ended.wait()
            await until(lambda: connections() == 0)
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(NEVER):
                    await ended.wait()


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
async def test_an_upload_that_the_app_never_reads_leaves_nothing_behind(ours: bool) -> None:
    full = asyncio.Event()

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await full.wait()
        head = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 413, "headers": head})
        await send({"type": "http.response.body", "body": b""})

    async with serving(refuses, ours=ours) as port:
        _, writer = await raw(port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"1\r\nx\r\n" * 30)
        await until(lambda: "Inbox.put" in tasks() or "Queue.put" in tasks())
        full.set()
        if ours:
            await until(lambda: connections() == 0)
        else:
            writer.close()
            with pytest.raises(TimeoutError):
                await until(lambda: connections() == 0, NEVER)


# Sending


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536, 200_000])
async def test_a_shared_text_is_framed_once_for_all_who_get_it(length: int) -> None:
    text = SharedText("x" * length)
    senders: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        senders.append(send)
        await receive()

    async with (
        serving(app) as port,
        connect(url(port), max_size=None) as one,
        connect(url(port), max_size=None) as two,
    ):
        await until(lambda: len(senders) == 2)
        await senders[0]({"type": "websocket.send", "text": text})
        wire = text.wire
        await senders[1]({"type": "websocket.send", "text": text})
        assert wire is not None and text.wire is wire
        assert await one.recv() == await two.recv() == str(text)


async def test_texts_of_all_kinds_keep_their_order_and_the_close_comes_last() -> None:
    texts = [SharedText("é" * 9_000), "plain", SharedText("z"), "🙂" * 20_000] * 30

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for text in texts:
            await send({"type": "websocket.send", "text": text})
        await send({"type": "websocket.send", "bytes": b"\0\1"})
        await send({"type": "websocket.close", "code": 1000})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async with serving(app) as port, connect(url(port), max_size=None) as client:
        got = [message async for message in client]
        assert got == [*texts, b"\0\1"] and client.close_code == 1000


async def test_a_close_waits_behind_the_sends_of_other_tasks() -> None:
    big = SharedText("x" * 100_000)
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent

        async def sender() -> None:
            nonlocal sent
            await send({"type": "websocket.send", "text": big})
            sent += 1

        await receive()
        await send({"type": "websocket.accept"})
        async with asyncio.TaskGroup() as group:
            for _ in range(40):
                group.create_task(sender())
            await asyncio.sleep(0)
            group.create_task(send({"type": "websocket.close", "code": 1000}))
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async with serving(app) as port:
        async with connect(url(port), max_size=None, max_queue=1) as client:
            got = [len(message) async for message in client]
        assert got == [100_000] * 40 and sent == 40


async def test_a_send_waits_while_the_peer_does_not_read() -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await receive()
        await send({"type": "websocket.accept"})
        text = SharedText("x" * 50_000)
        for _ in range(100):  # 5 MB
            await send({"type": "websocket.send", "text": text})
            sent += 1
        await receive()

    async with serving(app) as port:
        reader, writer = await upgraded(port)
        writer.transport.pause_reading()
        await until(lambda: any(peer.queued for peer in connected))
        assert 0 < sent < 80
        (peer,) = connected
        assert peer.transport.get_write_buffer_size() < 64 * 1024 + 60_000
        writer.transport.resume_reading()
        received = 0
        while received < 100 * 50_004:
            received += len(await reader.read(2**20))
        assert sent == 100


@pytest.mark.parametrize("ours", [OURS, ORIGINAL])
async def test_a_send_to_a_peer_that_is_gone_is_no_error(ours: bool) -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while not ended.is_set():
            await send({"type": "websocket.send", "text": "x" * 1000})
            await asyncio.sleep(0)
            if connections() == 0 or not any("_read_data" in name for name in tasks().split()):
                ended.set()

    async with serving(app, ours=ours) as port:
        _, writer = await upgraded(port)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        async with asyncio.timeout(SOON):
            await ended.wait()


# Pings


async def test_every_socket_is_pinged_in_every_interval_and_no_task_waits_for_it() -> None:
    witness = Witness()
    async with serving(witness, websocket_ping_interval=0.1) as port:
        sockets = [await upgraded(port) for _ in range(5)]
        for reader, _ in sockets:
            assert await reader.readexactly(6) == b"\x89\0" * 3
        assert "_send_pings" not in tasks()
        (pulse,) = [pulse for pulse in stream.pulses.values() if pulse.members]
        for _, writer in sockets:
            writer.close()
        await until(lambda: pulse.members == 0)
        assert pulse.timer is None


async def test_pings_are_spread_over_the_sockets_turns() -> None:
    async with serving(Witness(), websocket_ping_interval=20.0) as port:
        sockets = [await upgraded(port) for _ in range(5)]
        await until(lambda: any(pulse.members == 5 for pulse in stream.pulses.values()))
        (pulse,) = [pulse for pulse in stream.pulses.values() if pulse.members == 5]
        assert max(map(len, pulse.turns)) == 1
        assert len(sockets) == 5


async def test_a_peer_that_answers_no_pings_is_ended_by_the_read_timeout() -> None:
    witness = Witness()
    async with serving(witness, websocket_ping_interval=0.1, read_timeout=0.4) as port:
        reader, _ = await upgraded(port)
        async with connect(url(port)) as client:  # answers them
            assert (await witness.disconnect())["code"] == 1006
            assert (await reader.read()).startswith(b"\x89\0")
            assert await (await client.ping()) >= 0
            await witness.send({"type": "websocket.send", "text": "still here"})
            assert await client.recv() == "still here"


async def test_a_ping_is_answered() -> None:
    async with serving(Witness()) as port:
        reader, writer = await upgraded(port)
        writer.write(masked(9, b"hello"))
        assert await reader.readexactly(7) == b"\x8a\x05hello"


# Installing, and HTTP/2


async def test_installing_twice_changes_nothing() -> None:
    stream.install()
    first = [getattr(module, name) for module, name in SEAMS]
    stream.install()
    assert first == [getattr(module, name) for module, name in SEAMS]
    assert first[0] is stream.Stream


async def test_http2_is_not_taken_up_where_it_is_not_offered() -> None:
    async def hello(scope: Any, receive: Any, send: Any) -> None:
        head = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"hi"})

    upgrade = (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    async with serving(hello, alpn_protocols=["http/1.1"]) as port:
        reader, writer = await raw(port)
        writer.write(upgrade)
        writer.write_eof()  # and with that the connection ends, without a keep-alive time
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"hi")
        await until(lambda: connections() == 0, 2.0)


async def test_a_socket_over_http2_has_the_same_limits_and_codes() -> None:
    witness = Witness()
    async with serving(witness, websocket_ping_interval=5.0) as port:
        reader, writer = await raw(port)
        client = h2.connection.H2Connection()
        client.initiate_connection()
        writer.write(client.data_to_send())
        got, answered, opened = b"", False, False
        while len(got) < 6:
            data = await reader.read(65536)
            assert data, got
            for event in client.receive_data(data):
                if isinstance(event, h2.events.RemoteSettingsChanged) and not opened:
                    opened = True
                    client.send_headers(
                        1,
                        [
                            (":method", "CONNECT"),
                            (":protocol", "websocket"),
                            (":scheme", "http"),
                            (":path", "/"),
                            (":authority", "x"),
                            ("sec-websocket-version", "13"),
                            ("sec-websocket-extensions", "permessage-deflate"),
                        ],
                    )
                elif isinstance(event, h2.events.ResponseReceived):
                    answered = True
                    assert "extensions" not in str(event.headers)
                    client.send_data(1, masked(1, b"x" * 10_000, fin=False))
                    for _ in range(4):
                        client.send_data(1, masked(0, b"x" * 10_000, fin=False))
                elif isinstance(event, h2.events.DataReceived):
                    got += event.data or b""
                elif isinstance(event, h2.events.WindowUpdated) and answered:
                    while client.local_flow_control_window(1) > 11_000 and len(got) < 3:
                        client.send_data(1, masked(0, b"x" * 10_000, fin=False))
            writer.write(client.data_to_send())
        assert got == b"\x89\0\x88\x02" + struct.pack("!H", 1009)
        assert (await witness.disconnect())["code"] == 1009
        writer.close()


def test_the_states_that_the_stream_compares_still_exist() -> None:
    assert {state.name for state in ASGIWebsocketState} >= {"CONNECTED", "CLOSED", "HTTPCLOSED"}
