"""Hosts, origins, proxies and the headers that keep browsers safe, over real sockets."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from starlette.types import Receive, Scope, Send

from chat.settings import Settings
from chat.web.guard import Guard
from tests.people import (
    API_KEY,
    FRIEND,
    HANDSHAKE,
    NO_LIMITS,
    TRACE,
    Answer,
    Pairs,
    Person,
    a_name,
    a_room,
    acted_for,
    ask,
    dial,
    entering,
    exchange,
    form,
    guest,
    lines_with,
    masked,
    parsed,
    raw_socket,
    refused,
    request,
    running,
    shake,
    sign_in,
    signed,
    site,
)
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

EVIL = "https://evil.example"
JSON = {"Content-Type": "application/json"}
PROXIES = "127.0.0.9,10.0.0.0/8"
PATHS = ["/", "/login", "/test-chat/lobby/", "/api/session", "/static/chat.css", "/healthz", "/no"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    """Behind a proxy at 127.0.0.9, any host name, few connections of one address."""
    settings = {
        **NO_LIMITS,
        "CHAT_ALLOWED_HOSTS": "*",
        "CHAT_TRUSTED_PROXIES": PROXIES,
        "CHAT_MAX_CONNECTIONS_PER_ADDRESS": "1",
    }
    async with running(tmp_path_factory.mktemp("proxied"), **settings) as server:
        yield server


# --- Host


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1:1", "[::1]", "[::1]:8000"])
async def test_the_allowed_hosts_are_served_whatever_their_port(
    server: ChatServer, host: str
) -> None:
    assert (await ask(server, "GET", "/healthz", {"Host": host})).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "",
        "localhost.",
        "xlocalhost",
        "localhost@evil.example",
        "[::2]",
        "::1",
        "127.0.0.1, evil.example",
        "localhost:80:80",
        "localhost:x",
        "*",
        "127.0.0.1/",
    ],
)
async def test_other_hosts_are_400_everywhere(server: ChatServer, host: str) -> None:
    headers = {"Host": host}
    for path in ("/", "/api/session", "/static/chat.css", "/healthz"):
        assert (await ask(server, "GET", path, headers)).status == 400, path
    assert (await shake(server, a_room(), headers)).status == 400


async def test_a_request_without_a_host_or_with_two_is_400(server: ChatServer) -> None:
    raw = b"GET /healthz HTTP/1.1\r\nConnection: close\r\n"
    two = b"Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n"
    for lines in (b"", two):
        assert parsed(await exchange(server, raw + lines + b"\r\n")).status == 400


async def test_a_star_allows_every_host(proxied: ChatServer) -> None:
    headers = {"Host": "chat.example.org"}
    assert (await ask(proxied, "GET", "/healthz", headers)).status == 200


# --- Origin of sockets

OWN = [
    # Host, and an Origin that is the site's own.
    ("127.0.0.1:8000", "http://127.0.0.1:8000"),
    ("127.0.0.1:8000", "https://127.0.0.1:8000"),
    ("localhost", "http://localhost"),
    ("localhost", "https://localhost"),
    ("localhost:80", "http://localhost"),
    ("localhost", "http://localhost:80"),
    ("localhost:443", "https://localhost"),
    ("localhost", "https://localhost:443"),
    ("localhost:80", "https://localhost:443"),
    ("LocalHost", "http://localhost"),
    ("[::1]:8000", "http://[::1]:8000"),
    ("[::1]", "http://[::1]:80"),
]
FOREIGN = [
    ("127.0.0.1:8000", "http://127.0.0.1:8001"),
    ("127.0.0.1:8000", "http://127.0.0.1"),
    ("127.0.0.1:8000", "http://localhost:8000"),
    ("127.0.0.1", EVIL),
    ("127.0.0.1", "http://127.0.0.1.evil.example"),
    ("127.0.0.1", "null"),
    ("127.0.0.1", ""),
    ("127.0.0.1", "127.0.0.1"),
    ("127.0.0.1", "http://evil.example@127.0.0.1"),
    ("127.0.0.1", "http://127.0.0.1/"),
    ("127.0.0.1", "file://127.0.0.1"),
    ("127.0.0.1", "http://127.0.0.1, http://evil.example"),
    ("127.0.0.1", f"{FRIEND}/"),
    ("127.0.0.1", f"{FRIEND}:443"),
    ("127.0.0.1", FRIEND.replace("https", "http")),
    ("127.0.0.1", FRIEND.replace("friend", "my.friend")),
    ("[::1]:8000", "http://[::1]"),
]


async def login(server: ChatServer, headers: Pairs, name: str) -> Answer:
    kind, body = form(username=name)
    return await ask(server, "POST", "/login", [*dict(headers).items(), *kind.items()], body)


@pytest.mark.parametrize(("host", "origin"), [*OWN, ("127.0.0.1", FRIEND)])
async def test_the_site_s_own_and_allowed_origins_come_in(
    server: ChatServer, host: str, origin: str
) -> None:
    headers = {"Host": host, "Origin": origin}
    person = await guest(server)
    answer = await ask(server, "POST", "/api/direct", {**headers, **person.headers, **JSON}, b"{}")
    assert answer.code == "bad_frame"  # it got as far as to its body
    assert (await login(server, headers, a_name())).status == 303
    assert (await ask(server, "POST", "/logout", {**headers, **person.headers})).status == 303


@pytest.mark.parametrize(("host", "origin"), OWN)
async def test_a_socket_of_the_site_s_own_origin_is_upgraded(
    server: ChatServer, host: str, origin: str
) -> None:
    person = await site(server)
    headers = {"Host": host, "Origin": origin, **person.headers}
    async with raw_socket(server, a_room(), headers) as socket:
        await socket.write(masked(8))
        assert await socket.end() in (1000, 1005)


@pytest.mark.parametrize(("host", "origin"), FOREIGN)
async def test_another_origin_is_403_for_sockets_forms_and_requests_with_a_cookie(
    server: ChatServer, host: str, origin: str
) -> None:
    headers = {"Host": host, "Origin": origin}
    person, name = await guest(server), a_name()
    with_cookie = {**headers, **person.headers}
    assert (await shake(server, a_room(), headers)).status == 403
    assert (await shake(server, a_room(), with_cookie)).status == 403
    assert (await login(server, headers, name)).status == 403
    assert (await login(server, with_cookie, name)).status == 403
    assert (await ask(server, "POST", "/logout", headers)).status == 403
    assert (await ask(server, "POST", "/logout", with_cookie)).status == 403
    foreign = {**headers, "Cookie": f"session={signed({'user': a_name()})}"}
    for path in ("/api/direct", f"/api/rooms/{a_room()}/messages"):
        for proof in (with_cookie, foreign):
            answer = await ask(server, "POST", path, {**proof, **JSON}, b'{"text":"a"}')
            assert answer.code == "forbidden"
    # Nothing of it happened: the session still is, and the name is free.
    assert (await ask(server, "GET", "/api/session", person.headers)).status == 200
    assert (await sign_in(server, name)).status == 303


async def test_another_origin_may_get_with_a_cookie_and_post_with_a_token(
    server: ChatServer,
) -> None:
    origin = {"Origin": EVIL}
    person, visitor, room = await site(server), await guest(server), a_room()
    assert (await visitor.ask("GET", "/api/session", headers=origin)).status == 200
    assert (await ask(server, "GET", "/", {**origin, **visitor.headers})).status == 200
    assert (await ask(server, "GET", "/login", origin)).status == 200
    assert (await ask(server, "HEAD", "/login", origin)).status == 200
    answer = await person.ask("POST", f"/api/rooms/{room}/messages", {"text": "hola"}, origin)
    assert answer.status == 201
    backend = {**acted_for(a_name()), **origin, **JSON}
    answer = await ask(server, "POST", f"/api/rooms/{room}/messages", backend, b'{"text":"a"}')
    assert answer.status == 201


async def test_a_request_without_an_origin_passes(server: ChatServer) -> None:
    visitor, room = await guest(server), a_room()
    assert (await visitor.post(room, "hola")).status == 201
    async with visitor.enter(room) as member:
        await member.is_well()


async def test_two_origins_are_refused_if_one_of_them_is_foreign(server: ChatServer) -> None:
    own = f"http://127.0.0.1:{server.port}"
    for pair in ((own, EVIL), (EVIL, own)):
        assert (await shake(server, a_room(), [("Origin", one) for one in pair])).status == 403


# --- CORS


def grants(answer: Answer) -> tuple[str | None, str | None]:
    headers = answer.headers
    return headers["access-control-allow-origin"], headers["access-control-allow-credentials"]


@pytest.mark.parametrize("path", ["/api/session", "/api/rooms", "/static/chat-client.js"])
async def test_an_allowed_origin_may_read_api_and_static_with_credentials(
    server: ChatServer, path: str
) -> None:
    person = await guest(server)
    answer = await ask(server, "GET", path, {**person.headers, "Origin": FRIEND})
    assert answer.status == 200
    assert grants(answer) == (FRIEND, "true")
    assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize("path", ["/api/session", "/api/rooms/lobby/messages"])
async def test_an_allowed_origin_may_read_errors_too(server: ChatServer, path: str) -> None:
    answer = await ask(server, "GET", path, {"Origin": FRIEND})
    assert answer.code == "unauthenticated"
    assert grants(answer) == (FRIEND, "true")
    answer = await (await site(server)).ask("GET", "/api/rooms?after=%22", None, {"Origin": FRIEND})
    assert answer.code == "bad_frame"
    assert grants(answer) == (FRIEND, "true")


async def test_an_allowed_origin_may_post_after_asking(server: ChatServer) -> None:
    for path in ("/api/direct", "/api/tokens", f"/api/rooms/{a_room()}/messages"):
        answer = await ask(
            server,
            "OPTIONS",
            path,
            {
                "Origin": FRIEND,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,chat-user",
            },
        )
        assert answer.status == 200
        assert grants(answer) == (FRIEND, "true")
        assert "POST" in answer.headers["access-control-allow-methods"]
        allowed = answer.headers["access-control-allow-headers"].lower()
        assert {"authorization", "content-type"} <= {one.strip() for one in allowed.split(",")}
    visitor, room = await guest(server), a_room()
    answer = await visitor.ask(
        "POST", f"/api/rooms/{room}/messages", {"text": "hola"}, {"Origin": FRIEND}
    )
    assert answer.status == 201
    assert grants(answer) == (FRIEND, "true")


@pytest.mark.parametrize("origin", [EVIL, "null", f"{FRIEND}.evil.example"])
async def test_no_other_origin_may_read(server: ChatServer, origin: str) -> None:
    person = await guest(server)
    for path in ("/api/session", "/static/chat.css"):
        answer = await ask(server, "GET", path, {**person.headers, "Origin": origin})
        assert grants(answer)[0] is None
    answer = await ask(
        server,
        "OPTIONS",
        "/api/direct",
        {"Origin": origin, "Access-Control-Request-Method": "POST"},
    )
    assert grants(answer)[0] is None


async def test_pages_and_health_are_read_by_no_other_origin(server: ChatServer) -> None:
    person = await guest(server)
    for path in ("/", "/login", "/test-chat/lobby/", "/healthz", "/readyz"):
        answer = await ask(server, "GET", path, {**person.headers, "Origin": FRIEND})
        assert grants(answer) == (None, None)


async def test_without_allowed_origins_nobody_is_granted_anything(proxied: ChatServer) -> None:
    answer = await ask(proxied, "GET", "/static/chat.css", {"Origin": FRIEND})
    assert (answer.status, grants(answer)) == (200, (None, None))


# --- Headers that keep browsers safe


def is_safe(answer: Answer) -> None:
    policy = answer.headers["content-security-policy"]
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] in ("'none'", "'self'")
    assert rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == "'self'" == rules["style-src"]
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] in ("same-origin", "no-referrer", "strict-origin")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("accept", ["text/html", "*/*"])
async def test_every_answer_carries_them(server: ChatServer, path: str, accept: str) -> None:
    person = await guest(server)
    for proof in ({}, person.headers):
        is_safe(await ask(server, "GET", path, {**proof, "Accept": accept}))


async def test_refusals_carry_them_too(server: ChatServer) -> None:
    html = {"Accept": "text/html"}
    for answer in (
        await ask(server, "GET", "/", {"Host": "evil.example", **html}),
        await login(server, {"Origin": EVIL, **html}, a_name()),
        await login(server, html, ""),
        await ask(server, "PUT", "/login", html),
    ):
        assert answer.status >= 400
        is_safe(answer)


async def test_pages_and_answers_about_people_are_not_kept_by_caches(server: ChatServer) -> None:
    person = await guest(server)
    for path in ("/", "/login", "/test-chat/lobby/", "/api/session", "/api/rooms", "/readyz"):
        proof = {} if path == "/login" else person.headers
        answer = await ask(server, "GET", path, proof)
        assert "no-store" in answer.headers.get("cache-control", ""), path


# --- Proxies


async def address_taken(server: ChatServer, person: Person, source: str, chain: str) -> bool:
    """Whether the one connection that an address may have is taken."""
    headers: Mapping[str, str] = {**person.headers, "X-Forwarded-For": chain}
    try:
        async with entering(server, a_room(), headers=headers, source=source):
            return False
    except AssertionError:
        raise
    except Exception as error:
        assert getattr(getattr(error, "rcvd", None), "code", None) == 4429
        return True


async def believed(peer: str, *headers: tuple[str, str], kind: str = "http") -> tuple[str, str]:
    """The client's address and the scheme that the app gets to see behind the proxies."""
    settings = Settings.load({"CHAT_TRUSTED_PROXIES": PROXIES, "CHAT_ALLOWED_HOSTS": "*"})
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    services = SimpleNamespace(draining=False, handshakes=0)
    scope: Scope = {
        "type": kind,
        "method": "GET",
        "path": "/",
        "scheme": {"http": "http", "websocket": "ws"}[kind],
        "client": (peer, 50_000),
        "headers": [(b"host", b"chat.example"), *raw],
        "app": SimpleNamespace(state=SimpleNamespace(services=services)),
    }
    await Guard(app, settings)(scope, nothing, nothing)
    return seen[0]["client"][0], seen[0]["scheme"]


async def nothing(*_: Any) -> Any:
    raise AssertionError("nobody sends or receives here")


async def test_a_trusted_proxy_tells_the_client_s_address_and_nobody_else(
    proxied: ChatServer,
) -> None:
    person = await site(proxied)
    first = {**person.headers, "X-Forwarded-For": "6.6.6.6, 192.0.2.1"}
    async with entering(proxied, a_room(), headers=first, source="127.0.0.9"):
        # The nearest address that is not a proxy of ours counts; what stands before is hearsay.
        for source, chain, taken in (
            ("127.0.0.9", "192.0.2.1", True),
            ("127.0.0.9", "1.2.3.4, 192.0.2.1, 10.1.1.1", True),
            ("127.0.0.9", "6.6.6.6", False),
            ("127.0.0.9", "192.0.2.1, 6.6.6.6", False),
            ("127.0.0.9", "", False),
            ("127.0.0.9", "nonsense", False),
            # Not a proxy of ours.
            ("127.0.0.8", "192.0.2.1", False),
        ):
            assert await address_taken(proxied, person, source, chain) is taken, chain


async def test_a_proxy_s_address_may_be_told_as_one_of_ipv6() -> None:
    """As a socket for both families tells it."""
    header = ("X-Forwarded-For", "192.0.2.1")
    for peer in ("127.0.0.9", "::ffff:127.0.0.9", "::ffff:10.3.2.1"):
        assert await believed(peer, header) == ("192.0.2.1", "http"), peer
    for peer in ("::ffff:127.0.0.8", "::127.0.0.9", "2001:db8::9", "127.0.0.9%lo"):
        assert await believed(peer, header) == (peer, "http"), peer


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        (["6.6.6.6", "192.0.2.1"], "192.0.2.1"),
        (["6.6.6.6, 7.7.7.7", "192.0.2.1, 10.1.1.1"], "192.0.2.1"),
        (["192.0.2.1", "10.1.1.1", "10.2.2.2"], "192.0.2.1"),
        (["192.0.2.1", "::ffff:10.1.1.1"], "192.0.2.1"),
        (["192.0.2.1", "nonsense"], "127.0.0.9"),
        (["nonsense", "192.0.2.1"], "192.0.2.1"),
        (["6.6.6.6", ""], "127.0.0.9"),
    ],
)
async def test_addresses_in_several_headers_are_one_list(lines: list[str], address: str) -> None:
    headers = [("X-Forwarded-For", line) for line in lines]
    assert await believed("127.0.0.9", *headers) == (address, "http")
    assert await believed("127.0.0.8", *headers) == ("127.0.0.8", "http")


async def test_of_several_forwarded_schemes_the_nearest_proxy_s_counts() -> None:
    async def scheme(*lines: str, kind: str = "http") -> str:
        headers = [("X-Forwarded-Proto", line) for line in lines]
        return (await believed("127.0.0.9", *headers, kind=kind))[1]

    assert await scheme("http", "https") == "https"
    assert await scheme("https", "http") == "http"
    assert await scheme("http, http", "http, HTTPS ") == "https"
    assert await scheme("https", "gopher") == "http"
    assert await scheme("http", "https", kind="websocket") == "wss"


# --- The id of a request

MADE = re.compile(r"[0-9a-f]{16}")


async def test_each_request_and_handshake_has_an_id_of_its_own(server: ChatServer) -> None:
    person = await site(server)
    mine = {**person.headers, "X-Request-ID": "of-a-stranger"}
    answers = [
        await ask(server, "GET", "/healthz", mine),
        await ask(server, "GET", "/nowhere", mine),
        await ask(server, "GET", "/static/chat.css", mine),
        await ask(server, "GET", "/api/session", {"X-Request-ID": "of-a-stranger"}),
        await login(server, {"Host": "evil.example"}, a_name()),
        await shake(server, a_room(), {"Origin": "https://evil.example"}),
    ]
    ids = [answer.headers["X-Request-ID"] for answer in answers]
    async with dial(server, f"/ws/chat/{a_room()}/", mine) as socket:
        assert socket.response is not None
        ids.append(socket.response.headers["X-Request-ID"])
    assert all(MADE.fullmatch(one) for one in ids), ids
    assert len(set(ids)) == len(ids)


async def test_the_id_of_a_trusted_proxy_is_taken_where_it_is_well_formed(
    proxied: ChatServer,
) -> None:
    for source, given, taken in (
        ("127.0.0.9", ["8f14e45f-ceea-467f"], True),
        ("127.0.0.9", ["Root=1-67891233"], False),
        ("127.0.0.9", ["x" * 64], True),
        ("127.0.0.9", ["x" * 65], False),
        ("127.0.0.9", ["a b"], False),
        ("127.0.0.9", [""], False),
        ("127.0.0.9", ["one", "two"], False),
        ("127.0.0.8", ["8f14e45f-ceea-467f"], False),
    ):
        headers = [("X-Request-ID", one) for one in given]
        answer = await ask(proxied, "GET", "/healthz", headers, source=source)
        told = answer.headers["X-Request-ID"]
        assert (told == given[0]) is taken, given
        assert taken or MADE.fullmatch(told)


async def test_the_lines_that_a_request_causes_have_its_id(proxied: ChatServer) -> None:
    given, person, room = a_name(), await site(proxied), a_room()
    headers = {**person.headers, "X-Request-ID": given}
    async with dial(proxied, f"/ws/chat/{room}/", headers, source="127.0.0.9") as socket:
        await socket.recv()
        await socket.close(1001)
    await proxied.wait_for_log(f"User {person.name} disconnected from room {room} (1001)")
    lines = [line for line in proxied.log.splitlines() if line.endswith(f" [{given}]")]
    access = [line for line in lines if " hypercorn.access: " in line]
    assert len(access) == 1 and f"/ws/chat/{room}/" in access[0]
    mine = [line for line in lines if f"User {person.name} " in line]
    assert len(mine) == 3 and len(lines) == 4


async def test_the_host_that_a_trusted_proxy_tells_is_the_one_that_counts(
    proxied: ChatServer,
) -> None:
    async def status(source: str, host: str, *lines: str) -> int:
        kind, body = form(username=a_name())
        pairs = [("Host", "10.1.1.1:8000"), ("Origin", f"https://{host}"), *kind.items()]
        pairs += [("X-Forwarded-Host", line) for line in lines]
        return (await ask(proxied, "POST", "/login", pairs, body, source=source)).status

    ours = "chat.example.org"
    assert await status("127.0.0.9", ours, ours) == 303
    # The nearest proxy's word is the last one; what stands before it is hearsay.
    assert await status("127.0.0.9", ours, f"evil.example, {ours}") == 303
    assert await status("127.0.0.9", ours, "evil.example", ours) == 303
    assert await status("127.0.0.9", "evil.example", "evil.example", ours) == 403
    assert await status("127.0.0.9", ours) == 403
    assert await status("127.0.0.9", ours, "") == 403
    # Not a proxy of ours.
    assert await status("127.0.0.8", ours, ours) == 403


# --- What is written about it


async def test_a_refused_origin_and_host_are_logged_in_full(server: ChatServer) -> None:
    origin, host = f"https://{a_name()}.example", f"{a_name()}.example"
    await shake(server, a_room(), {"Origin": origin})
    await login(server, {"Host": host}, a_name())
    await server.wait_for_log(f"Origin {origin} refused")
    await server.wait_for_log(f"Host {host} refused")
    for text in (f"Origin {origin} refused", f"Host {host} refused"):
        assert all(" WARNING " in line for line in lines_with(server, text))


@pytest.mark.parametrize(
    "end", ["\x85", "\x1b[2J", "\x7f", "\x0b", "\x0c", "\x1c", "\xad"], ids=ascii
)
async def test_nothing_that_a_stranger_sends_begins_a_new_line_of_the_log(
    server: ChatServer, end: str
) -> None:
    mark = a_name()
    fake = f"{end}2026-11-24T10:00:00.000Z ERROR 1 fake: {mark}"
    quoted = "".join(f"%{byte:02X}" for byte in f"{end}\n\r\u2028{fake}".encode())
    person = await site(server)
    for header in ("Origin", "Host", "User-Agent", "Referer", "Chat-User", "X-Forwarded-For"):
        headers = {header: f"http://a.example{fake}"}
        raw = request(server, "GET", f"/ws/chat/{a_room()}/", {**headers, **HANDSHAKE})
        await exchange(server, raw + masked(8))
        await ask(server, "POST", "/login", headers)
        await ask(server, "GET", "/", headers)
    await refused(server, quoted, headers=person.headers)
    await refused(server, a_room(), f"?token={quoted}")
    for path in (f"/{quoted}", f"/test-chat/{quoted}/", f"/api/rooms/{quoted}/messages"):
        await ask(server, "GET", path, person.headers)
    await sign_in(server, f"a{fake}")
    await ask(server, "GET", f"/?room={quoted}", person.headers)
    await refused(server, f"{mark}%22", headers=person.headers)
    await server.wait_for_log(f'{mark}" is not a room')
    # Bytes, and every line end that any reader of logs may know.
    for line in server.log_file.read_bytes().decode().splitlines():
        assert " ERROR 1 fake" not in line[:60], line
        assert "\x1b" not in line and "\x7f" not in line
    assert TRACE not in server.log
    assert API_KEY not in server.log


async def test_the_access_log_has_no_query_and_no_header(server: ChatServer) -> None:
    secret = a_name()
    await ask(
        server,
        "GET",
        f"/static/chat.css?token={secret}",
        {"Referer": f"http://x/{secret}", "User-Agent": secret, "Cookie": f"session={secret}"},
    )
    path = f"/static/{a_name()}"
    await ask(server, "GET", f"{path}?q={secret}")
    await server.wait_for_log(path)
    assert secret not in server.log
    assert '"GET ' + path + " " in lines_with(server, path)[0]


async def test_json_logs_are_one_object_a_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {**NO_LIMITS, "CHAT_LOG_FORMAT": "json"}
    async with running(tmp_path_factory.mktemp("json"), **settings) as server:
        await shake(server, a_room(), {"Origin": "http://a\x85b.example"})
        await server.wait_for_log("refused")
        lines = [line for line in server.log.splitlines() if line.startswith("{")]
    entries = [json.loads(line) for line in lines]
    assert all({"time", "level", "process", "module", "message"} <= one.keys() for one in entries)
    (entry,) = [one for one in entries if "refused" in one["message"]]
    assert entry["level"] == "WARNING"
    assert MADE.fullmatch(entry["request_id"])


async def test_json_lines_say_whose_connection_it_is_and_where(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = {**NO_LIMITS, "CHAT_LOG_FORMAT": "json"}
    async with running(tmp_path_factory.mktemp("json"), **settings) as server:
        person, room = await site(server), a_room()
        async with person.enter(room):
            pass
        assert (await person.read(room)).status == 200
        await server.wait_for_log("disconnected")
        entries = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    # Hypercorn's line among them: when the socket is accepted, nobody knows yet who it is.
    upgrade, connecting, connected, over = [
        one
        for one in entries
        if f"/ws/chat/{room}/" in one["message"] or f"room {room}" in one["message"]
    ]
    assert upgrade["module"] == "hypercorn.access"
    assert len({one["request_id"] for one in (upgrade, connecting, connected, over)}) == 1
    assert (connecting["user"], connecting["room"]) == (person.name, room)
    assert "connection_id" not in connecting
    for one in (connected, over):
        assert (one["user"], one["room"], one["connection_id"]) == (person.name, room, 1)
    (reading,) = [one for one in entries if f"/api/rooms/{room}/messages" in one["message"]]
    assert (reading["user"], reading["room"]) == (person.name, room)
    assert "connection_id" not in reading
