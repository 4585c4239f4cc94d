"""People for the tests: they sign in, ask over HTTP and sit in rooms, over real sockets.

`ask` is a small HTTP client that sends what it is told, broken or not; `Member` is a socket in a
room that remembers what came; `RawSocket` speaks bytes. Every wait has SOON as its outer limit.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import secrets
import sqlite3
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from itsdangerous import TimestampSigner
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.servers import LOOK_INTERVAL, SECRET_KEY, ChatServer

# Seconds. What must come comes long before; only a failing test waits for so long.
SOON = 15.0

API_KEY = "an-api-key-for-tests-only"
FRIEND = "https://friend.example"  # the one allowed origin of the shared server
# What no log of a server may hold.
TRACE = "Traceback (most recent call last)"
MAX_SERVER_FRAME = 256 * 1024  # bytes

# Frames that answer one of the client's own.
ANSWERS = ("ack", "error", "history", "pong", "token")

Pairs = Mapping[str, str] | Sequence[tuple[str, str]]


def a_name() -> str:
    """A user name that nobody has."""
    return f"user-{secrets.token_hex(5)}"


def a_room() -> str:
    """A room name that nobody used."""
    return f"room-{secrets.token_hex(5)}"


def an_id() -> str:
    return f"c-{secrets.token_hex(8)}"


# --- HTTP


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def code(self) -> str:
        """The `code` of a problem, after a look at the rest of it."""
        assert self.headers["content-type"] == "application/problem+json", self
        problem = self.json
        assert {"type", "title", "status", "detail", "code"} <= problem.keys()
        assert problem["status"] == self.status
        return str(problem["code"])

    def cookie(self, name: str = "session") -> str | None:
        """The value that this answer sets the cookie to."""
        for header in self.headers.get_all("set-cookie", []):
            key, _, value = header.partition(";")[0].partition("=")
            if key == name:
                return str(value)
        return None


class _Bytes:
    """What http.client takes for a socket."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.raw)


async def exchange(server: ChatServer, raw: bytes, source: str | None = None) -> bytes:
    """Send these bytes, and return all that comes until the server closes."""
    local = (source, 0) if source else None
    async with asyncio.timeout(SOON):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=local)
        received = b""
        try:
            with suppress(ConnectionError):
                writer.write(raw)
                await writer.drain()
            with suppress(ConnectionError):
                while piece := await reader.read(65536):
                    received += piece
        finally:
            writer.close()
        return received


def request(
    server: ChatServer, method: str, path: str, headers: Pairs = (), body: bytes = b""
) -> bytes:
    """Return the bytes of a request; `Host` and lengths are added where they are not given."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    given = {name.lower() for name, _ in pairs}
    if "host" not in given:
        pairs.insert(0, ("Host", f"127.0.0.1:{server.port}"))
    if "connection" not in given:
        pairs.append(("Connection", "close"))
    if body and not given & {"content-length", "transfer-encoding"}:
        pairs.append(("Content-Length", str(len(body))))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def parsed(raw: bytes, method: str = "GET") -> Answer:
    assert raw, "the server closed without an answer"
    response = http.client.HTTPResponse(_Bytes(raw), method=method)  # type: ignore[arg-type]
    response.begin()
    return Answer(response.status, response.msg, response.read())


async def ask(
    server: ChatServer,
    method: str,
    path: str,
    headers: Pairs = (),
    body: bytes = b"",
    *,
    source: str | None = None,
) -> Answer:
    """Send one request, from the address `source` where it is given."""
    raw = await exchange(server, request(server, method, path, headers, body), source)
    return parsed(raw, method)


def form(**fields: str) -> tuple[dict[str, str], bytes]:
    """The header and body of a form post."""
    return {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(fields).encode()


async def sign_in(
    server: ChatServer,
    name: str,
    next: str = "",
    headers: Mapping[str, str] | None = None,
    source: str | None = None,
) -> Answer:
    kind, body = form(username=name, next=next)
    return await ask(server, "POST", "/login", {**kind, **(headers or {})}, body, source=source)


# --- Cookies and tokens


def signed(content: Mapping[str, Any], key: str = SECRET_KEY, made: int | None = None) -> str:
    """A session cookie's value as Starlette makes it, as of `made` (seconds since 1970)."""

    class Signer(TimestampSigner):
        def get_timestamp(self) -> int:
            return super().get_timestamp() if made is None else made

    return Signer(key).sign(base64.b64encode(json.dumps(content).encode())).decode()


def unsigned(cookie: str, key: str = SECRET_KEY) -> dict[str, Any]:
    """What a session cookie says; raises where `key` did not sign it."""
    content: dict[str, Any] = json.loads(base64.b64decode(TimestampSigner(key).unsign(cookie)))
    return content


@dataclass(frozen=True)
class Person:
    """A user, and the header that proves it."""

    server: ChatServer
    id: int
    name: str
    headers: Mapping[str, str] = field(repr=False)

    @property
    def cookie(self) -> str:
        return self.headers["Cookie"].partition("=")[2]

    @property
    def token(self) -> str:
        return self.headers["Authorization"].removeprefix("Bearer ")

    @property
    def person(self) -> dict[str, Any]:
        """As frames name it."""
        return {"id": self.id, "name": self.name}

    async def ask(
        self,
        method: str,
        path: str,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask the API; `content` goes as JSON."""
        return await ask_json(
            self.server, method, path, content, {**self.headers, **(headers or {})}
        )

    async def post(self, room: str, text: str, **fields: Any) -> Answer:
        return await self.ask("POST", f"/api/rooms/{room}/messages", {"text": text, **fields})

    async def read(self, room: str, query: str = "") -> Answer:
        return await self.ask("GET", f"/api/rooms/{room}/messages{query}")

    @asynccontextmanager
    async def enter(self, room: str, query: str = "") -> AsyncIterator[Member]:
        async with entering(self.server, room, query, self.headers) as member:
            yield member

    async def refused(self, room: str, query: str = "") -> int:
        return await refused(self.server, room, query, self.headers)


async def ask_json(
    server: ChatServer,
    method: str,
    path: str,
    content: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    sent = dict(headers or {})
    body = b""
    if content is not None:
        sent["Content-Type"] = "application/json"
        body = json.dumps(content).encode()
    return await ask(server, method, path, sent, body)


async def guest(server: ChatServer, name: str | None = None, source: str | None = None) -> Person:
    """Sign in at the page, as a browser does."""
    answer = await sign_in(server, name or a_name(), source=source)
    assert answer.status == 303, answer.text
    headers = {"Cookie": f"session={answer.cookie()}"}
    return await whose(server, headers)


async def whose(server: ChatServer, headers: Mapping[str, str]) -> Person:
    """The person that these headers prove."""
    answer = await ask(server, "GET", "/api/session", headers)
    assert answer.status == 200, answer.text
    user = answer.json["user"]
    return Person(server, user["id"], user["name"], headers)


async def mint(server: ChatServer, **order: Any) -> Answer:
    """Ask for a token as a backend."""
    backend = {"Authorization": f"Bearer {API_KEY}"}
    return await ask_json(server, "POST", "/api/tokens", order, backend)


async def site(server: ChatServer, name: str | None = None, **order: Any) -> Person:
    """A site user with a token; `room` and `ttl` as for `POST /api/tokens`."""
    answer = await mint(server, user=name or a_name(), **order)
    assert answer.status == 201, answer.text
    user = answer.json["user"]
    headers = {"Authorization": f"Bearer {answer.json['token']}"}
    return Person(server, user["id"], user["name"], headers)


def acted_for(name: str) -> dict[str, str]:
    """The headers of a backend that acts for a user."""
    return {"Authorization": f"Bearer {API_KEY}", "Chat-User": quote(name)}


async def direct_room(one: Person, other: Person) -> str:
    answer = await one.ask("POST", "/api/direct", {"user_id": other.id})
    assert answer.status == 200, answer.text
    return str(answer.json["room"])


# --- Sockets


def dial(
    server: ChatServer,
    path: str,
    headers: Mapping[str, str] | None = None,
    source: str | None = None,
) -> connect:
    """A connection to be opened by `async with` or `await`."""
    return connect(
        f"{server.ws_url}{path}",
        additional_headers=dict(headers or {}),
        compression=None,
        proxy=None,
        max_size=None,
        open_timeout=SOON,
        local_addr=(source, 0) if source else None,
    )


class Member:
    """A socket in a room, and what came over it."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        # The frames in the order they came, as text; all of them.
        self.raw: list[str] = []
        # Frames that nobody asked for yet.
        self._waiting: deque[dict[str, Any]] = deque()
        # Entries of `messages` frames, each checked to follow the one before.
        self.messages: list[dict[str, Any]] = []
        self.welcome: dict[str, Any] = {}

    @property
    def texts(self) -> list[str]:
        return [one["text"] for one in self.messages]

    async def receive(self) -> dict[str, Any]:
        """Take the next frame from the socket; entries of `messages` are kept, too."""
        async with asyncio.timeout(SOON):
            raw = await self.socket.recv()
        assert isinstance(raw, str)
        assert len(raw.encode()) <= MAX_SERVER_FRAME
        self.raw.append(raw)
        frame: dict[str, Any] = json.loads(raw)
        if frame["type"] == "messages":
            assert frame["messages"], "an empty frame"
            for entry in frame["messages"]:
                if self.messages:
                    assert entry["seq"] == self.messages[-1]["seq"] + 1
                self.messages.append(entry)
        return frame

    async def next(self, *kinds: str) -> dict[str, Any]:
        """The next frame of one of these types; others wait for their own turn."""
        for frame in self._waiting:
            if frame["type"] in kinds:
                self._waiting.remove(frame)
                return frame
        while (frame := await self.receive())["type"] not in kinds:
            self._waiting.append(frame)
        return frame

    async def send(self, type: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": type, **fields}))

    async def asks(self, type: str, **fields: Any) -> dict[str, Any]:
        """Send a frame and return its answer, an error included."""
        await self.send(type, **fields)
        return await self.next(*ANSWERS)

    async def asks_raw(self, raw: str) -> dict[str, Any]:
        await self.socket.send(raw)
        return await self.next(*ANSWERS)

    async def say(self, text: str, **fields: Any) -> dict[str, Any]:
        """Send a message and return its ack."""
        answer = await self.asks("send", text=text, **fields)
        assert answer["type"] == "ack", answer
        return answer

    async def say_all(self, texts: Iterable[str]) -> list[dict[str, Any]]:
        """Send messages without waiting between them; return their acks."""
        count = 0
        for text in texts:
            await self.send("send", id=an_id(), text=text)
            count += 1
        return [await self.next("ack") for _ in range(count)]

    async def read_to(self, seq: int) -> list[dict[str, Any]]:
        """Wait until the message of this seq came; return all that came so far."""
        while not self.messages or self.messages[-1]["seq"] < seq:
            self._waiting.append(await self.receive())
        return self.messages

    async def is_well(self) -> None:
        """See that the connection stands and is served, and that nothing else was answered."""
        answer = await self.asks("ping")
        assert answer["type"] == "pong", answer

    async def end(self) -> int:
        """Read until the server closes; return its code. What came before stays in `raw`."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, "the connection broke without a close frame"
            return int(closed.rcvd.code)


@asynccontextmanager
async def entering(
    server: ChatServer,
    room: str,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    source: str | None = None,
) -> AsyncIterator[Member]:
    """Enter a room; the first frame must be a welcome."""
    async with dial(server, f"/ws/chat/{room}/{query}", headers, source) as socket:
        member = Member(socket)
        member.welcome = await member.receive()
        assert member.welcome["type"] == "welcome", member.welcome
        yield member


async def refused(
    server: ChatServer,
    room: str,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    source: str | None = None,
) -> int:
    """Try to enter a room; return the code that closes the socket, before any frame."""
    async with dial(server, f"/ws/chat/{room}/{query}", headers, source) as socket:
        member = Member(socket)
        code = await member.end()
        assert not member.raw, member.raw
        return code


HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def shake(server: ChatServer, room: str, headers: Pairs = ()) -> Answer:
    """Send a handshake that is refused before the upgrade; return the HTTP answer."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    raw = request(server, "GET", f"/ws/chat/{room}/", [*pairs, *HANDSHAKE.items()])
    answer = parsed(await exchange(server, raw))
    assert answer.status != 101
    return answer


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """One frame as a client sends it; the mask is zeros, which leaves the payload readable."""
    head = bytes(((0x80 if fin else 0) | opcode,))
    if len(payload) < 126:
        return head + bytes((0x80 | len(payload),)) + bytes(4) + payload
    return head + struct.pack("!BQ", 0x80 | 127, len(payload)) + bytes(4) + payload


class RawSocket:
    """A socket after its handshake, as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def frame(self) -> tuple[int, bytes]:
        """The next frame of the server: opcode and payload."""
        async with asyncio.timeout(SOON):
            first, second = await self.reader.readexactly(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(length)

    async def write(self, raw: bytes) -> None:
        """Send bytes; a server that closed meanwhile is no error."""
        with suppress(ConnectionError):
            self.writer.write(raw)
            async with asyncio.timeout(SOON):
                await self.writer.drain()

    async def end(self) -> int | None:
        """Read to the server's close; return its code, None where it cuts the connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                opcode, payload = await self.frame()
                if opcode == 8:
                    return int.from_bytes(payload[:2]) if payload else 1005
        return None


@asynccontextmanager
async def raw_socket(
    server: ChatServer, room: str, headers: Mapping[str, str]
) -> AsyncIterator[RawSocket]:
    """Enter a room by hand; its welcome is read off."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request(server, "GET", f"/ws/chat/{room}/", {**headers, **HANDSHAKE}))
        async with asyncio.timeout(SOON):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        raw = RawSocket(reader, writer)
        opcode, payload = await raw.frame()
        while opcode != 1:
            opcode, payload = await raw.frame()
        assert json.loads(payload)["type"] == "welcome"
        yield raw
    finally:
        writer.close()


# --- Behind the scenes


def execute(server: ChatServer, sql: str, *values: Any) -> list[Any]:
    """Run a statement on the server's SQLite file."""
    with closing(sqlite3.connect(server.folder / "var" / "chat.db", timeout=SOON)) as database:
        rows = database.execute(sql, values).fetchall()
        database.commit()
    return rows


async def until(condition: Any, limit: float = SOON) -> None:
    """Wait until the condition, a function or coroutine function, holds."""
    async with asyncio.timeout(limit):
        while True:
            holds = condition()
            if asyncio.iscoroutine(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(LOOK_INTERVAL)


def lines_with(server: ChatServer, text: str) -> list[str]:
    return [line for line in server.log.splitlines() if text in line]


# --- Servers

NO_LIMITS = {
    "CHAT_API_KEY": API_KEY,
    "CHAT_SEND_RATE": "off",
    "CHAT_FRAME_RATE": "off",
    "CHAT_SIGN_IN_RATE": "off",
    "CHAT_ROOM_RATE": "off",
    "CHAT_MAX_CONNECTIONS_PER_USER": "0",
}


@asynccontextmanager
async def running(folder: Path, **settings: str | None) -> AsyncIterator[ChatServer]:
    """A started server, which at the end must stop well and without a stack trace."""
    server = ChatServer(folder, settings)
    await server.start()
    try:
        yield server
    except BaseException:
        await server.kill()
        raise
    assert await server.stop() == 0, server.log[-5000:]
    _, trace, rest = server.log.partition(TRACE)
    assert server.traceback_expected or not trace, rest[:5000]
