"""Whatever bytes arrive: the right answer, one line of the log at most, no trace, nothing stored.

All of it runs against PostgreSQL and Redis, while somebody else sits in the room (`undisturbed`)
and must still be served at the end.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from tests.people import (
    API_KEY,
    HANDSHAKE,
    TRACE,
    Member,
    Person,
    a_name,
    a_room,
    ask,
    exchange,
    form,
    guest,
    masked,
    parsed,
    raw_socket,
    refused,
    request,
    shake,
    site,
)
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

MAX_INTEGER = 2**53 - 1
MIB = 1024 * 1024
# Memory that a server may take for a stranger's 64 MiB.
MEMORY_BOUND = 24 * MIB
# What every connection writes, however well it behaves.
ORDINARY = re.compile(
    r" hypercorn\.access: | User \S+ (connecting to|connected to|disconnected from) room "
)


class Witness:
    """Somebody in a room who must not notice anything."""

    def __init__(self, server: ChatServer, person: Person, room: str, member: Member) -> None:
        self.server, self.person, self.room, self.member = server, person, room, member
        # How many lines the test may leave in the log, beside the ordinary ones.
        self.lines = 1
        # Messages that the test stores on purpose.
        self.stored = 0


@asynccontextmanager
async def undisturbed(server: ChatServer) -> AsyncIterator[Witness]:
    """A person who may misbehave in a room, while another one sits in it."""
    person, other, room = await site(server), await site(server), a_room()
    async with other.enter(room) as member:
        await member.say("before")
        mark = len(server.log)
        witness = Witness(server, person, room, member)
        yield witness
        ack = await member.say("after")
        assert ack["seq"] == witness.stored + 2, "something was stored"
        await member.read_to(ack["seq"])
        assert (member.texts[0], member.texts[-1]) == ("before", "after")
        # All that was written is there once the line of this request is.
        last = f"/static/{a_name()}"
        await ask(server, "GET", last)
        await server.wait_for_log(last)
    written = server.log[mark:]
    assert TRACE not in written, written[-5000:]
    unusual = [line for line in written.splitlines() if not ORDINARY.search(line)]
    assert len(unusual) <= witness.lines, unusual


# --- Frames

DEEP = "[" * 10_000 + "]" * 10_000
DEEP_OBJECT = '{"a":' * 6_000 + "1" + "}" * 6_000
DIGITS = "9" * 5_000

BAD_FRAMES = [
    # The frame, and its answer: the code of an error, or the type of what is no error.
    (DEEP, "bad_json"),
    ("[" * 30_000, "bad_json"),
    (DEEP_OBJECT, "bad_json"),
    ('{"type":"ping","x":' + DEEP + "}", "bad_json"),
    ('{"type":' + DEEP + "}", "bad_json"),
    ('{"type":"send","text":' + DEEP + "}", "bad_json"),
    ('{"type":"no such","x":' + DEEP + "}", "bad_json"),
    (DIGITS, "bad_json"),
    ('{"type":' + DIGITS + "}", "bad_frame"),
    ('{"type":"send","text":' + DIGITS + "}", "bad_frame"),
    ('{"type":"send","text":"a","receiver_id":' + DIGITS + "}", "bad_frame"),
    ('{"type":"send","text":"a","receiver_id":-' + DIGITS + "}", "bad_frame"),
    ('{"type":"send","text":"a","receiver_id":0.' + DIGITS + "}", "bad_frame"),
    ('{"type":"send","text":"a","receiver_id":1e' + DIGITS + "}", None),
    ('{"type":"send","text":"a","id":' + DIGITS + "}", "bad_frame"),
    ('{"type":"history","before":' + DIGITS + "}", "bad_frame"),
    ('{"type":"history","limit":' + DIGITS + "}", "bad_frame"),
    ('{"type":"ping","n":' + DIGITS + "}", "pong"),
    ('{"type":"no such","n":' + DIGITS + "}", "unknown_type"),
    ('{"type":"send","text":"\\ud800"}', "bad_json"),
    ('{"type":"send","text":"\\udc00\\ud800"}', "bad_json"),
    ('{"type":"send","text":"a","id":"\\ud800"}', "bad_json"),
    ('{"type":"\\ud800"}', "bad_json"),
    ('{"type":"ping","\\ud800":1}', "bad_json"),
    ('{"type":"send","text":"a\\u0000b"}', "bad_frame"),
    ('{"type":"send","text":"\\u0000"}', "bad_frame"),
    ('{"type":"send","text":"a","id":"\\u0000"}', "bad_frame"),
    ('{"type":"send","text":"a\0b"}', "bad_json"),
    ('{"type":"token","token":"\\u0000"}', "forbidden"),
    ('{"type":"token","token":"' + "x" * 60_000 + '"}', "forbidden"),
    ('{"type":"token","token":"..."}', "forbidden"),
    ('{"type":"\\u0000"}', "unknown_type"),
    ('{"type":"' + "x" * 60_000 + '"}', "unknown_type"),
    ('{"type":"a\\nERROR fake","id":"a"}', "unknown_type"),
    ('{"type":"send","text":"a","id":"' + "x" * 60_000 + '"}', "bad_frame"),
    ('{"' + "x" * 60_000 + '":1}', "bad_frame"),
    ("{" + ",".join(f'"k{n}":{n}' for n in range(5_000)) + "}", "bad_frame"),
    ('{"type":"send","text":"' + "\\u00e9" * 9_000 + '"}', "text_too_long"),
    ('{"type":"send","text":"' + " " * 60_000 + '"}', "text_too_long"),
    ('{"type":"send","text":{"$ne":null}}', "bad_frame"),
    ('{"type":"send","text":["a"]}', "bad_frame"),
    ('{"type":"history","before":1.0e2,"limit":5.0}', None),
    ('{"type":"ping","type":"history"}', None),
    ("\0", "bad_json"),
    ("\x00\x01\x02\x03", "bad_json"),
    ("\u202e{}", "bad_json"),
    (" " * 60_000, "bad_json"),
    ('{"__class__":"os"}', "bad_frame"),
    ("<xml/>", "bad_json"),
    ("GET / HTTP/1.1\r\n\r\n", "bad_json"),
]


@pytest.mark.parametrize(("raw", "expected"), BAD_FRAMES, ids=lambda one: ascii(one)[:48])
async def test_a_bad_frame_gets_its_error_and_the_next_is_handled(
    big_server: ChatServer, raw: str, expected: str | None
) -> None:
    async with undisturbed(big_server) as witness, witness.person.enter(witness.room) as member:
        answer = await member.asks_raw(raw)
        if expected is not None:
            assert answer.get("code", answer["type"]) == expected
        else:
            assert answer["type"] in ("error", "history", "pong")
        assert len(json.dumps(answer)) < 1_000 or answer["type"] == "history"
        await member.is_well()


BAD_BYTES = {
    "bad utf-8": masked(1, b'{"type":"\xff"}'),
    "a surrogate in utf-8": masked(1, b'{"type":"\xed\xa0\x80"}'),
    "utf-8 that is too long": masked(1, b"\xc0\xaf"),
    "utf-8 that ends early": masked(1, b"\xf0\x9f"),
    "a frame without a mask": b"\x81\x02{}",
    "a reserved opcode": masked(3, b"x"),
    "a reserved control opcode": masked(11, b"x"),
    "reserved bits": b"\xf1\x80\0\0\0\0",
    "a long ping": masked(9, b"x" * 126),
    "a ping in pieces": masked(9, b"x", fin=False),
    "a piece of nothing": masked(0, b"x"),
    "a frame within a frame": masked(1, b"a", fin=False) + masked(1, b"b"),
    "a length of 2**63": b"\x81\xff" + b"\x80" + bytes(7) + bytes(4) + b"x",
    "a length of 2**64 - 1": b"\x81\xff" + b"\xff" * 8 + bytes(4) + b"x",
    "a close of one byte": masked(8, b"x"),
    "a close of no code": masked(8, (999).to_bytes(2)),
    "a close that may not be sent": masked(8, (1006).to_bytes(2)),
    "a close that is too long": masked(8, bytes(126)),
    "a close in bad utf-8": masked(8, (1000).to_bytes(2) + b"\xff\xfe"),
    "http": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "tls": bytes.fromhex("16030100f8010000f40303") + bytes(240),
    "zeros": bytes(10_000),
    "ones": b"\xff" * 10_000,
    "a binary frame": masked(2, b"\0\1\2"),
    "many empty pieces": masked(1, fin=False) + masked(0, fin=False) * 5_000 + masked(0, b"\xff"),
    "a length that does not fit": b"\x81\xfe\x00\x05" + bytes(4) + b"hello" + b"\xff" * 20,
}


@pytest.mark.parametrize("what", BAD_BYTES)
async def test_bytes_that_are_no_frames_end_their_own_connection_only(
    big_server: ChatServer, what: str
) -> None:
    async with undisturbed(big_server) as witness:
        headers = witness.person.headers
        async with raw_socket(big_server, witness.room, headers) as socket:
            await socket.write(BAD_BYTES[what])
            # A code of the protocol's, or a cut; 1000 and the like where it was a close after all.
            assert await socket.end() in (None, 1000, 1002, 1003, 1005, 1006, 1007, 1008, 1009)


async def test_a_connection_that_is_cut_within_a_frame_leaves_nothing(
    big_server: ChatServer,
) -> None:
    frame = masked(1, b'{"type":"send","text":"half"}')
    async with undisturbed(big_server) as witness:
        for length in (1, 2, 5, 6, len(frame) - 1):
            headers = witness.person.headers
            async with raw_socket(big_server, witness.room, headers) as socket:
                await socket.write(frame[:length])
                socket.writer.transport.abort()


async def test_a_frame_cut_into_single_bytes_is_a_frame(big_server: ChatServer) -> None:
    async with undisturbed(big_server) as witness:
        headers = witness.person.headers
        async with raw_socket(big_server, witness.room, headers) as socket:
            for byte in masked(1, b'{"type":"ping"}'):
                await socket.write(bytes((byte,)))
            opcode, payload = await socket.frame()
            while b"pong" not in payload:
                opcode, payload = await socket.frame()
            assert opcode == 1


def memory(server: ChatServer) -> int:
    """Resident bytes of the server and its children."""
    process = psutil.Process(server.pid)
    family = [process, *process.children(recursive=True)]
    return sum(int(one.memory_info().rss) for one in family)


@pytest.mark.parametrize("pieces", [False, True], ids=["one frame", "in pieces"])
async def test_a_frame_of_64_mib_is_1009_and_takes_no_memory(
    big_server: ChatServer, pieces: bool
) -> None:
    size, step = 64 * MIB, 60_000
    async with undisturbed(big_server) as witness:
        before = highest = memory(big_server)
        async with raw_socket(big_server, witness.room, witness.person.headers) as socket:
            ending = asyncio.create_task(socket.end())
            head = b"\x81\xff" + size.to_bytes(8) + bytes(4)
            chunk = masked(0, b"x" * step, fin=False) if pieces else b"x" * step
            await socket.write(masked(1, b"x", fin=False) if pieces else head)
            for sent in range(0, size, step):
                if socket.writer.transport.is_closing():
                    break
                await socket.write(chunk)
                if sent % (step * 16) == 0:
                    highest = max(highest, memory(big_server))
            assert await ending in (1009, None)
        assert highest - before < MEMORY_BOUND


async def test_a_64_mib_frame_through_a_client_is_1009(big_server: ChatServer) -> None:
    async with undisturbed(big_server) as witness, witness.person.enter(witness.room) as member:
        with suppress(ConnectionClosed):
            await member.socket.send("x" * (64 * MIB))
        assert await member.end() == 1009


async def test_a_body_of_64_mib_is_refused_and_takes_no_memory(big_server: ChatServer) -> None:
    async with undisturbed(big_server) as witness:
        before = highest = memory(big_server)
        cookie = (await guest(big_server)).headers
        witness.lines += 1  # the guest's own
        loop = asyncio.get_running_loop()
        for path, kind in (
            (f"/api/rooms/{witness.room}/messages", "application/json"),
            ("/login", "application/x-www-form-urlencoded"),
        ):
            headers = {**cookie, "Content-Type": kind, "Content-Length": str(64 * MIB)}
            # A bare socket: asyncio's streams forget what came when a write fails.
            with socket.create_connection(("127.0.0.1", big_server.port)) as bare:
                bare.setblocking(False)
                with suppress(ConnectionError, TimeoutError):
                    await loop.sock_sendall(bare, request(big_server, "POST", path, headers))
                    for _ in range(64):
                        async with asyncio.timeout(5):
                            await loop.sock_sendall(bare, b"x" * MIB)
                        highest = max(highest, memory(big_server))
                async with asyncio.timeout(10):
                    answer = await loop.sock_recv(bare, 1000)
            assert answer.split()[1] in (b"413", b"400")
        assert highest - before < MEMORY_BOUND


# --- Requests


def get(path: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    head = [f"{method} {path} HTTP/{version}", "Host: 127.0.0.1", "Connection: close", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")


def post(*lines: str) -> bytes:
    return get("/login", *lines, method="POST")


BAD_REQUESTS = {
    (400, "no http"): b"hello\r\n\r\n",
    (400, "nothing but lines"): b"\r\n\r\n\r\n\r\n",
    (400, "zeros"): bytes(1_000),
    (400, "tls"): bytes.fromhex("16030100f8010000f40303") + bytes(240),
    (303, "an unknown version"): get("/", version="9.9"),
    (200, "an old version"): get("/healthz", version="1.0"),
    (400, "no path"): b"GET\r\nHost: 127.0.0.1\r\n\r\n",
    (404, "a path without a slash"): get("healthz"),
    (404, "another site's address"): get("http://evil.example/"),
    (404, "a bare star"): get("*", method="OPTIONS"),
    (404, "a tunnel"): get("evil.example:443", method="CONNECT"),
    (405, "an unknown method"): get("/", method="BREW"),
    (303, "a method in small letters"): get("/", method="get"),
    (405, "a very long method"): get("/", method="A" * 10_000),
    (405, "a method with signs"): get("/", method="G!#$%&'*+-.^_`|~"),
    (405, "trace"): get("/", method="TRACE"),
    (431, "a very long path"): get("/" + "a" * 100_000),
    (404, "a long path"): get("/" + "a" * 30_000),
    (303, "many headers"): get("/", *(f"X-{n}: y" for n in range(2_000))),
    (431, "a very long header"): get("/", "X: " + "y" * 100_000),
    (400, "a header without a colon"): get("/", "nonsense"),
    (400, "a header without a name"): get("/", ": x"),
    (400, "a header with a space"): get("/", "X Y: z"),
    (400, "a header with a zero"): get("/", "X: a\0b"),
    (303, "a header on two lines"): get("/", "X: a\r\n b"),
    (400, "a carriage return alone"): get("/", "X: a\rSet-Cookie: b"),
    (400, "a length below zero"): post("Content-Length: -1"),
    (400, "a length that is no number"): post("Content-Length: x"),
    (400, "a length too large"): post("Content-Length: " + "9" * 40),
    (400, "two lengths"): post("Content-Length: 1", "Content-Length: 2") + b"ab",
    (400, "length and chunks"): post("Content-Length: 3", "Transfer-Encoding: chunked")
    + b"0\r\n\r\n",
    (501, "an unknown coding"): post("Transfer-Encoding: gzip"),
    (400, "a chunk that is none"): post("Transfer-Encoding: chunked") + b"zz\r\n",
    (400, "a chunk below zero"): post("Transfer-Encoding: chunked") + b"-1\r\n",
    (400, "the start of http/2"): b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
    (200, "an upgrade to http/2"): get("/healthz", "Upgrade: h2c", "HTTP2-Settings: !!!"),
    (200, "an upgrade to something"): get("/healthz", "Upgrade: foo"),
}


@pytest.mark.parametrize(("status", "what"), BAD_REQUESTS)
async def test_a_bad_request_is_answered_and_nothing_more(
    big_server: ChatServer, status: int, what: str
) -> None:
    async with undisturbed(big_server):
        raw = BAD_REQUESTS[status, what]
        reader, writer = await asyncio.open_connection("127.0.0.1", big_server.port)
        try:
            writer.write(raw)
            if writer.can_write_eof():
                writer.write_eof()
            async with asyncio.timeout(10):
                answer = await reader.read()
        finally:
            writer.close()
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:100]


BAD_HANDSHAKES = [
    {"Sec-WebSocket-Key": None},
    {"Sec-WebSocket-Key": "x"},
    {"Sec-WebSocket-Key": "\xff" * 16},
    {"Sec-WebSocket-Version": None},
    {"Sec-WebSocket-Version": "12"},
    {"Sec-WebSocket-Version": "x"},
    {"Upgrade": None, "Connection": "close"},
    {"Connection": "close"},
    {"Sec-WebSocket-Protocol": ",,,"},
    {"Sec-WebSocket-Extensions": "permessage-deflate; server_max_window_bits=99"},
    {"Sec-WebSocket-Extensions": ";;;,,,"},
]


@pytest.mark.parametrize("change", BAD_HANDSHAKES, ids=str)
async def test_a_bad_handshake_is_refused_or_passed_over(
    big_server: ChatServer, change: dict[str, str | None]
) -> None:
    fields: dict[str, str | None] = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **change,
    }
    async with undisturbed(big_server) as witness:
        headers = {name: value for name, value in fields.items() if value is not None}
        path = f"/ws/chat/{witness.room}/"
        raw = request(big_server, "GET", path, {**witness.person.headers, **headers})
        # The close is for a server that took it for a handshake all the same.
        answer = await exchange(big_server, raw + masked(8))
        assert not answer or int(answer.split()[1]) in (101, 400, 404, 405, 426), answer


async def test_a_socket_s_address_asked_for_by_http_is_404(big_server: ChatServer) -> None:
    async with undisturbed(big_server) as witness:
        witness.lines = 0
        for method in ("GET", "POST", "PUT", "OPTIONS"):
            answer = await ask(big_server, method, f"/ws/chat/{witness.room}/")
            assert answer.status in (404, 405, 426)


async def test_a_handshake_elsewhere_is_refused(big_server: ChatServer) -> None:
    async with undisturbed(big_server) as witness:
        witness.lines = 0
        for path in ("/", "/ws", "/ws/chat", "/ws/other/a/", "/api/session", "/static/chat.css"):
            raw = request(big_server, "GET", path, {**witness.person.headers, **HANDSHAKE})
            assert parsed(await exchange(big_server, raw)).status in (403, 404)


BAD_PATHS = [
    *("/%", "/%z", "/%zz", "/%2", "/%ff", "/%c3%28", "/%00", "/%0a", "/%0d%0aSet-Cookie:%20a=b"),
    *("/%u0041", "//", "///", "//evil.example/", "/..", "/../../etc/passwd", "/%2e%2e/%2e%2e/"),
    *("/a\x80b", "/;", "/?", "/#", "/?%", "/?%zz=%ff", "/?a=%00", "/?&&&===", "/\\", "/<script>"),
    *("/?room=%", "/?room=%ff", "/?room=%00", "/?room=%0d%0aX:y", "/?room=a&room=b"),
    *("/login?next=%ff", "/login?next=%", "/login?next=%0d%0aX:y", "/login?next=a&next=b"),
]
BAD_ROOMS = [
    *("%", "%zz", "%ff", "%00", "%0a", "a%2Fb", "%2e%2e", "..", "a%2F..%2Fb", "'", "%22", "%5c"),
    *("a%20or%201=1", "%D0%B0", "%E2%80%AE", "%F0%9F%98%80", "%C3", "x" * 5_000, "%0d%0aX:y"),
    *("%2525", "a;b", "a=b&c", "a+b", "$", "`id`", "{{7*7}}", "<b>", "dm.1", "dm.%ff"),
]


@pytest.mark.parametrize("path", BAD_PATHS, ids=ascii)
async def test_a_bad_path_is_an_ordinary_answer(big_server: ChatServer, path: str) -> None:
    async with undisturbed(big_server) as witness:
        for method, proof in (("GET", {}), ("GET", witness.person.headers), ("POST", {})):
            answer = await ask(big_server, method, path, proof)
            assert answer.status < 500
            assert "x" not in answer.headers
            assert not answer.headers.get("location", "/").startswith(("//", "http"))


@pytest.mark.parametrize("room", BAD_ROOMS, ids=lambda room: room[:24])
async def test_a_bad_name_of_a_room_is_4404_and_404(big_server: ChatServer, room: str) -> None:
    async with undisturbed(big_server) as witness:
        person = witness.person
        assert await person.refused(room) == 4404
        for path in (f"/api/rooms/{room}/messages", f"/test-chat/{room}/"):
            assert (await ask(big_server, "GET", path, person.headers)).status == 404
        answer = await person.post(room, "hola")
        assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(
    "query",
    [
        *("since=-1", f"since={DIGITS}", "since=%00", "since=%ff", "since=%", "since[]=1"),
        *("since=1&since=2", "since=x&since=0", "since", "&&&", "since=1;epoch=2", "a=%0d%0ab"),
        *("epoch=%00&since=0", "epoch=" + "x" * 10_000 + "&since=0", "epoch=%ff&since=0"),
        "&".join(f"k{n}=v" for n in range(2_000)),
    ],
    ids=lambda query: query[:24],
)
async def test_a_bad_query_of_a_socket_is_passed_over(big_server: ChatServer, query: str) -> None:
    async with undisturbed(big_server) as witness:
        witness.lines = 0
        async with witness.person.enter(witness.room, f"?{query}") as member:
            await member.read_to(1)
            await member.is_well()


# --- Proofs

BAD_COOKIES = [
    *(
        "session",
        "session=",
        "session=;",
        "=",
        ";;;",
        "session=\xff\xfe",
        'session="',
        "session=a=b",
    ),
    *("session=" + "A" * 12_000, "session=.", "session=..", "session=e30=..", "session=null"),
    *("session=" + "." * 5_000, "$Version=1; session=x", "session=%00"),
    "; ".join(f"c{n}=v" for n in range(1_000)),
]
BAD_TOKENS = [
    *(
        "",
        "%",
        "%zz",
        "%00",
        "%ff",
        ".",
        "..",
        "...",
        "a.b.c",
        "null",
        "x" * 12_000,
        "%F0%9F%98%80",
    ),
    *("eyJ1c2VyIjoxfQ.x.y", "eyJhbGciOiJub25lIn0.eyJ1c2VyIjoxfQ.", "-1", "e30", ".eJw.x.y", "'--"),
]


@pytest.mark.parametrize("cookie", BAD_COOKIES, ids=lambda one: ascii(one)[:24])
async def test_a_bad_cookie_proves_nothing(big_server: ChatServer, cookie: str) -> None:
    async with undisturbed(big_server) as witness:
        headers = {"Cookie": cookie}
        assert (await ask(big_server, "GET", "/api/session", headers)).status == 401
        assert (await ask(big_server, "GET", "/", headers)).status == 303
        assert await refused(big_server, witness.room, headers=headers) == 4401


@pytest.mark.parametrize("token", BAD_TOKENS, ids=lambda one: one[:24])
async def test_a_bad_token_proves_nothing(big_server: ChatServer, token: str) -> None:
    async with undisturbed(big_server) as witness:
        assert await refused(big_server, witness.room, f"?token={token}") == 4401
        headers = {"Authorization": f"Bearer {token}"}
        assert (await ask(big_server, "GET", "/api/session", headers)).status == 401


async def test_of_two_proofs_in_two_headers_none_breaks_anything(big_server: ChatServer) -> None:
    one, two = await guest(big_server), await guest(big_server)
    async with undisturbed(big_server) as witness:
        witness.lines = 0
        for name, first, second in (
            ("Cookie", one.headers["Cookie"], two.headers["Cookie"]),
            ("Authorization", "Bearer x", f"Bearer {witness.person.token}"),
            ("Chat-User", "a", "b"),
        ):
            pairs = [(name, first), (name, second)]
            answer = await ask(big_server, "GET", "/api/session", pairs)
            assert answer.status in (200, 401)


@pytest.mark.parametrize(
    "name", ["%", "%zz", "%E0%A4", "%ff", "%00", "%0d%0aX:y", "\xff", "\xe9", "a" * 5_000, "%2525"]
)
async def test_a_bad_chat_user_is_401_or_a_name_as_it_stands(
    big_server: ChatServer, name: str
) -> None:
    async with undisturbed(big_server):
        headers = {"Authorization": f"Bearer {API_KEY}", "Chat-User": name}
        answer = await ask(big_server, "GET", "/api/session", headers)
        assert answer.status in (200, 401)
        if answer.status == 200:
            assert re.fullmatch(r"[\w%é]{1,32}", answer.json["user"]["name"])


# --- Bodies and forms

FORM = "application/x-www-form-urlencoded"
BAD_FORMS = {
    "nothing": (FORM, b""),
    "huge": (FORM, b"username=" + b"x" * MIB),
    "many fields": (FORM, b"&".join(b"f%d=x" % number for number in range(20_000))),
    "many names": (FORM, b"&".join([b"username=x"] * 20)),
    "signs": (FORM, b"&&&===&=&%&%%"),
    "broken escapes": (FORM, b"username=%zz%"),
    "bytes": (FORM, b"username=\xff\xfe"),
    "escaped bytes": (FORM, b"username=%ff%fe"),
    "a zero": (FORM, b"username=%00"),
    "json": ("application/json", b'{"username":"maria"}'),
    "files": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="username"\r\n\r\nmaria\r\n--x--\r\n',
    ),
    "an odd boundary": ("multipart/form-data; boundary=" + "x" * 500, b"--"),
    "no type": ("", b"username=%20"),
}


@pytest.mark.parametrize("what", BAD_FORMS)
async def test_a_bad_form_is_400_and_signs_nobody_in(big_server: ChatServer, what: str) -> None:
    kind, body = BAD_FORMS[what]
    async with undisturbed(big_server):
        headers = {"Content-Type": kind} if kind else {}
        answer = await ask(big_server, "POST", "/login", headers, body)
        # Escapes that are none stand for themselves, as in every browser's own form.
        if answer.status == 303:
            assert what in ("broken escapes", "escaped bytes", "many names")
        else:
            assert answer.status in (400, 409, 413)
            assert answer.cookie() is None


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (DEEP.encode(), 400),
        (b'{"text":"a","x":' + DEEP.encode() + b"}", 400),
        (b'{"text":"a","receiver_id":' + DIGITS.encode() + b"}", 400),
        (b'{"text":"\\ud800"}', 400),
        (b'{"text":"\\u0000"}', 400),
        (b'{"text":"\xed\xa0\x80"}', 400),
        (b'{"text":"\xff"}', 400),
        (b"\xff\xfe", 400),
        (b"", 400),
        (gzip.compress(b'{"text":"a"}', mtime=0), 400),
        (b"x" * 70_000, 413),
    ],
    ids=lambda one: ascii(one)[:24],
)
async def test_a_bad_body_is_400_or_413_and_stores_nothing(
    big_server: ChatServer, raw: bytes, status: int
) -> None:
    async with undisturbed(big_server) as witness:
        headers = {**witness.person.headers, "Content-Type": "application/json"}
        path = f"/api/rooms/{witness.room}/messages"
        assert (await ask(big_server, "POST", path, headers, raw)).status == status


async def test_a_body_that_never_comes_whole_leaves_nothing(big_server: ChatServer) -> None:
    async with undisturbed(big_server) as witness:
        path = f"/api/rooms/{witness.room}/messages"
        headers = {
            **witness.person.headers,
            "Content-Type": "application/json",
            "Content-Length": "1000",
        }
        for target in (path, "/login"):
            _, writer = await asyncio.open_connection("127.0.0.1", big_server.port)
            writer.write(request(big_server, "POST", target, headers) + b'{"text":"half"}')
            await writer.drain()
            writer.transport.abort()


async def test_names_and_texts_that_look_like_code_are_just_text(big_server: ChatServer) -> None:
    texts = [
        "'; DROP TABLE messages; --",
        '"); DELETE FROM users; --',
        "%s %d %n {0} {x} $1 ?1 :a",
        "\\'; \\x00 \\u0000",
        "${7*7} {{7*7}} <%= 7*7 %>",
        "../../../etc/passwd",
    ]
    async with undisturbed(big_server) as witness:
        async with witness.person.enter(witness.room) as member:
            for text in texts:
                await member.say(text)
                witness.stored += 1
            await member.read_to(witness.stored + 1)
            assert member.texts[1:] == texts
        for name in ("'; DROP TABLE users; --", "%s{0}:a$1?1", "a\\' OR 1=1"):
            kind, body = form(username=name)
            answer = await ask(big_server, "POST", "/login", kind, body)
            assert answer.status in (303, 409)
            assert quote(name) not in str(answer.headers)
        witness.lines = 4


async def test_strangers_who_knock_in_every_way_at_once_disturb_nobody(
    big_server: ChatServer,
) -> None:
    async with undisturbed(big_server) as witness:
        witness.lines = 100
        room, headers = witness.room, witness.person.headers

        async def frames(raw: bytes) -> None:
            async with raw_socket(big_server, room, headers) as socket:
                await socket.write(raw)
                await socket.end()

        async def talk() -> None:
            for number in range(20):
                await witness.member.say(f"during {number}")

        witness.stored = 20
        quick = [raw for (_, what), raw in BAD_REQUESTS.items() if what in QUICK]
        await asyncio.gather(
            talk(),
            *(frames(raw) for raw in BAD_BYTES.values()),
            *(exchange(big_server, raw) for raw in quick),
            *(shake(big_server, room, {"Origin": "https://evil.example"}) for _ in range(10)),
        )
        await witness.member.read_to(21)


# Requests that are answered without waiting for more of them.
QUICK = ("no http", "zeros", "an unknown method", "a very long path", "a header with a zero")


# --- Anything at all

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2**53 - 1, 2**53, 2**63, 2**64, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
    st.sampled_from(["", " ", "\0", "c-1", "x" * 64, "x" * 65, "\ud800", "😀" * 4001]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
TYPES = st.sampled_from(["send", "history", "token", "ping", "welcome", "no such"])
FIELDS = st.sampled_from(["id", "text", "receiver_id", "before", "limit", "token", "seq", "x"])
FRAMES = st.one_of(
    st.builds(
        lambda kind, rest: json.dumps({**rest, "type": kind}),
        TYPES | SCALARS,
        st.dictionaries(FIELDS, VALUES, max_size=4),
    ),
    VALUES.map(json.dumps),
    # Well-formed frames that are cut or have something in them.
    st.builds(
        lambda kind, place, bit: (
            (text := json.dumps({"type": kind, "id": "c"}))[:place] + bit + text[place:]
        ),
        TYPES,
        st.integers(0, 25),
        st.sampled_from(["", ",", '"', "{", "}", "\\", "\0", "é", "[" * 50]),
    ),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40),
)
CODES = {
    *("bad_json", "bad_frame", "unknown_type", "text_too_long", "text_empty", "unknown_receiver"),
    *("forbidden", "id_conflict"),
}


@given(frames=st.lists(FRAMES, max_size=12))
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
async def test_whatever_frames_come_the_answers_are_legal(
    big_server: ChatServer, frames: list[str]
) -> None:
    person = await fuzzer(big_server)
    async with person.enter(FUZZ_ROOM) as member:
        try:
            for raw in frames:
                await member.socket.send(raw)
                is_legal(await member.next("ack", "error", "history", "pong", "token"))
            await member.is_well()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            assert closed.rcvd.code == 1008 and len(frames) > 10
    assert TRACE not in big_server.log


FUZZ_ROOM = a_room()
_fuzzers: dict[str, Person] = {}


async def fuzzer(server: ChatServer) -> Person:
    """One person for all examples."""
    if server.url not in _fuzzers:
        _fuzzers[server.url] = await site(server)
    return _fuzzers[server.url]


def is_legal(answer: dict[str, Any]) -> None:
    kind = answer["type"]
    if kind == "error":
        assert answer["code"] in CODES
        assert answer["detail"] and answer.keys() <= {"type", "code", "detail", "id"}
    elif kind == "ack":
        assert answer.keys() == {"type", "id", "seq", "sent_at", "duplicate"}
    elif kind == "history":
        assert {"room", "messages", "more"} <= answer.keys()
    else:
        assert kind == "pong"
