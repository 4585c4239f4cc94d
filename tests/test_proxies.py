"""Behind nginx, Apache, HAProxy and Caddy, with the files of deploy/: real proxies, real chats."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus

from tests.people import (
    API_KEY,
    NO_LIMITS,
    SOON,
    Member,
    a_name,
    a_room,
    ask_json,
    lines_with,
    running,
    site,
    until,
)
from tests.proxies import FILES, NAME, PROGRAMS, Proxy, an_address
from tests.servers import ROOT, ChatServer

SETTINGS = {
    **NO_LIMITS,
    "CHAT_ALLOWED_HOSTS": f"{NAME},127.0.0.1",
    "CHAT_TRUSTED_PROXIES": "127.0.0.1",
    "CHAT_COOKIE_SECURE": "1",
    "CHAT_MAX_CONNECTIONS_PER_ADDRESS": "2",
}
# The page of the metrics, in words that a node takes for the same.
METRICS = ("/metrics", "/metrics?all", "/%6detrics")
PAGE = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
MALLORY = "6.6.6.6"  # an address that nobody here has


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    """The chat behind all of the proxies: two connections of an address, no more."""
    async with running(tmp_path_factory.mktemp("behind"), **SETTINGS) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def talk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    """A chat under the prefix /talk that pings ten times a second."""
    folder = tmp_path_factory.mktemp("talk")
    text = (ROOT / "hypercorn.toml").read_text(encoding="utf-8")
    text = text.replace("websocket_ping_interval = 20.0", "websocket_ping_interval = 0.1")
    (folder / "hypercorn.toml").write_text(f'root_path = "/talk"\n{text}', encoding="utf-8")
    async with running(folder, **SETTINGS) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[list[ChatServer]]:
    """Two nodes of one chat."""
    relay = os.environ.get("CHAT_TEST_REDIS_URL") or request.getfixturevalue("_redis").url
    settings = {**SETTINGS, "CHAT_RELAY_URL": relay, "CHAT_MAX_CONNECTIONS_PER_ADDRESS": "0"}
    folder = tmp_path_factory.mktemp("nodes")
    async with running(folder, **settings) as one, running(folder, **settings) as two:
        yield [one, two]


@pytest.fixture(scope="module", params=PROGRAMS)
def proxy(request: pytest.FixtureRequest, chat: ChatServer) -> Iterator[Proxy]:
    """Each of them in turn, in front of one chat."""
    server = Proxy(request.param, [chat])
    server.start()
    yield server
    server.remove()


async def token_of(chat: ChatServer, prefix: str = "") -> str:
    key = {"Authorization": f"Bearer {API_KEY}"}
    answer = await ask_json(chat, "POST", f"{prefix}/api/tokens", {"user": a_name()}, key)
    return str(answer.json["token"])


# --- All of it works


async def test_pages_files_and_forms_work(proxy: Proxy) -> None:
    name = a_name()
    answer = await proxy.sign_in(name)
    assert (answer.status, answer.headers["location"]) == (303, "/"), answer.text
    assert "secure" in answer.headers["set-cookie"].lower()
    cookie = {"Cookie": f"session={answer.cookie()}"}
    page = await proxy.ask("GET", "/", cookie)
    assert (page.status, name in page.text) == (200, True)
    script = await proxy.ask("GET", "/static/chat-client.js")
    assert (script.status, "class ChatClient" in script.text) == (200, True)
    answer = await proxy.ask("POST", "/logout", {**cookie, "Origin": f"https://{NAME}"})
    assert answer.headers["location"] == "/login"


async def test_a_frame_comes_at_once_in_both_directions(proxy: Proxy, chat: ChatServer) -> None:
    maria, room = await site(chat), a_room()
    async with (
        proxy.enter(f"/ws/chat/{room}/", maria.headers, an_address()) as behind,
        maria.enter(room) as direct,
    ):
        # Nothing follows that could push it out of a buffer.
        for seq in range(1, 4):
            await (direct, behind)[seq % 2].say("hola")
            assert (await behind.read_to(seq))[-1]["seq"] == seq
        text = "ñ" * 4_000
        await behind.say(text)
        assert (await behind.read_to(4))[-1]["text"] == text


async def test_a_close_code_and_a_refusal_arrive(proxy: Proxy) -> None:
    async with proxy.dial("/ws/chat/lobby/") as socket:
        assert await Member(socket).end() == 4401
    with pytest.raises(InvalidStatus) as refusal:
        async with proxy.dial("/ws/chat/lobby/", {"Origin": "https://evil.example"}):
            pass
    assert refusal.value.response.status_code == 403


async def test_without_tls_one_is_sent_on(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.plain)
    writer.write(f"GET /login HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
    head = (await reader.read(-1)).decode().lower()
    writer.close()
    assert re.match(r"http/1.1 30[18]", head)
    assert re.search(rf"location: https://{NAME}(:{proxy.port})?/login\r\n", head)


# --- Who the client is


async def test_the_client_s_own_address_is_in_the_log_and_counts_for_limits(
    proxy: Proxy, chat: ChatServer
) -> None:
    address, room = an_address(), a_room()
    path = f"/ws/chat/{room}/?token={await token_of(chat)}"
    async with proxy.enter(path, source=address), proxy.enter(path, source=address):
        for fake in (None, MALLORY, f"{MALLORY}, 7.7.7.7"):
            headers = {"X-Forwarded-For": fake, "Forwarded": f"for={fake}"} if fake else {}
            async with proxy.dial(path, headers, address) as socket:
                assert await Member(socket).end() == 4429
        async with proxy.enter(path, {"X-Forwarded-For": address}, an_address()) as member:
            await member.is_well()
    await until(lambda: len(lines_with(chat, f"/ws/chat/{room}/")) >= 6)
    lines = "\n".join(lines_with(chat, f"/ws/chat/{room}/"))
    assert address in lines
    assert MALLORY not in lines and " 127.0.0.1" not in lines


async def test_a_client_cannot_say_another_host_or_scheme(proxy: Proxy) -> None:
    evil = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    answer = await proxy.ask("POST", "/login", {**evil, "Origin": "https://evil.example"})
    assert answer.status == 403
    # Nor does the chat send it to where it says that it came from.
    answer = await proxy.ask("GET", "/login/", evil)
    assert (answer.status, answer.headers["location"]) == (307, f"https://{NAME}/login")


async def test_the_metrics_are_not_for_the_world(proxy: Proxy, chat: ChatServer) -> None:
    key = {"Authorization": f"Bearer {API_KEY}"}
    assert "chat_connections" in (await ask_json(chat, "GET", "/metrics", headers=key)).text
    for path in METRICS:
        answer = await proxy.ask("GET", path, key)
        assert (answer.status, "chat_connections" in answer.text) == (404, False), path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def distrustful(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    """A chat that believes no proxy."""
    settings = {**SETTINGS, "CHAT_TRUSTED_PROXIES": ""}
    async with running(tmp_path_factory.mktemp("distrustful"), **settings) as server:
        yield server


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_a_chat_that_trusts_no_proxy_knows_its_name_all_the_same(
    kind: str, distrustful: ChatServer
) -> None:
    proxy = Proxy(kind, [distrustful])
    proxy.start()
    try:
        answer = await proxy.ask("GET", "/login/")
        assert (answer.status, answer.headers["location"]) == (307, f"http://{NAME}/login")
    finally:
        proxy.remove()


# --- What is written about it


async def test_no_log_of_the_proxy_holds_a_token_even_where_no_chat_answers(
    proxy: Proxy, chat: ChatServer, tmp_path: Path
) -> None:
    token, secret = await token_of(chat), a_name()
    room = a_room()
    async with proxy.enter(f"/ws/chat/{room}/?token={token}", source=an_address()):
        pass
    await proxy.ask("GET", f"/static/{room}?token={token}", {"Referer": f"https://x/?{secret}"})
    await until(lambda: proxy.logs.count(room) >= 2)
    # Nor the place that only sends people on.
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.plain)
    writer.write(
        f"GET /?token={token} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()
    )
    assert token in (await reader.read(-1)).decode()
    writer.close()
    nowhere = ChatServer(tmp_path, {})
    lonely = Proxy(proxy.kind, [nowhere])
    lonely.start()
    try:
        headers = {"Referer": f"https://x/?{secret}", "Authorization": f"Bearer {secret}"}
        answer = await lonely.ask("GET", f"/ws/chat/{room}/?token={token}", headers)
        assert answer.status in (502, 503)
        await until(lambda: f"/ws/chat/{room}/" in lonely.logs)
        for logs in (proxy.logs, lonely.logs):
            assert token not in logs and secret not in logs
    finally:
        lonely.remove()


# --- Silence

IDLE = {
    "nginx": {"proxy_read_timeout 60s": "proxy_read_timeout 400ms"},
    "apache": {"Timeout 60": "Timeout 1"},
    "haproxy": {"timeout tunnel 60s": "timeout tunnel 400ms"},
}


@pytest.mark.parametrize("kind", IDLE)
async def test_the_ping_keeps_a_member_that_says_nothing(
    kind: str, chat: ChatServer, talk: ChatServer
) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        sockets = []
        for server, prefix in ((talk, "/talk"), (chat, "")):
            proxy = Proxy(kind, [server], IDLE[kind])
            stack.callback(proxy.remove)
            proxy.start()
            path = f"{prefix}/ws/chat/{a_room()}/?token={await token_of(server, prefix)}"
            sockets.append(await stack.enter_async_context(proxy.dial(path, source=an_address())))
        kept, cut = sockets
        began = loop.time()
        # This one is pinged every 20 s, which is too late.
        async with asyncio.timeout(SOON):
            await cut.wait_closed()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(loop.time() - began):
                await kept.wait_closed()
        assert kept.close_code is None


# --- What it does with a node


class Node:
    """A little node: it falls silent at a POST, and answers `/slow` in two halves."""

    def __init__(self, port: int) -> None:
        self.port = port
        # Set by `behind`.
        self.server: asyncio.Server | None = None
        self.ready = 200
        self.posts: list[bytes] = []
        self.heads: list[str] = []
        # What else it was asked, and by which connection.
        self.asked: list[tuple[str, asyncio.StreamWriter]] = []
        # The first half of an answer has arrived.
        self.arrived = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    def end(self) -> None:
        assert self.server is not None
        self.server.close()
        for _, writer in self.asked:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        method, path, _ = head.split(" ", 2)
        if method == "post":
            length = re.search(r"content-length: (\d+)", head)
            assert length
            self.posts.append(await reader.readexactly(int(length[1])))
            return False
        self.heads.append(head)
        status = self.ready if path == "/readyz" else 200
        if path != "/readyz":
            self.asked.append((path, writer))
        writer.write(f"HTTP/1.1 {status} So\r\nContent-Length: 4\r\n\r\nho".encode())
        if path == "/slow":
            await self.arrived.wait()
        writer.write(b"la")
        return "connection: close" not in head


@asynccontextmanager
async def behind(
    kind: str, folder: Path, changes: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Proxy, Node, Node]]:
    """A proxy in front of two little nodes."""
    places = [ChatServer(folder, {}), ChatServer(folder, {})]
    one, two = (Node(place.port) for place in places)
    proxy = Proxy(kind, places, changes)
    async with AsyncExitStack() as stack:
        for node in (one, two):
            node.server = await asyncio.start_server(node.serve, "127.0.0.1", node.port)
            await stack.enter_async_context(node.server)
        stack.callback(proxy.remove)
        proxy.start()
        yield proxy, one, two


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_a_message_whose_node_falls_silent_is_not_sent_again(
    kind: str, tmp_path: Path
) -> None:
    async with behind(kind, tmp_path) as (proxy, one, two):
        answer = await proxy.ask("POST", "/api/rooms/lobby/messages", body=b'{"text":"hola"}')
        assert answer.status in (502, 503)
        assert one.posts + two.posts == [b'{"text":"hola"}']


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_what_a_client_says_about_itself_goes_no_further(kind: str, tmp_path: Path) -> None:
    async with behind(kind, tmp_path) as (proxy, one, two):
        fakes = {"Host": "evil.example", "Proto": "gopher", "For": MALLORY}
        lies = {f"X-Forwarded-{name}": fake for name, fake in fakes.items()}
        await proxy.ask("GET", "/", lies, source="127.0.0.1")
        [head] = [head for head in one.heads + two.heads if head.startswith("get / ")]
        told = dict(re.findall(r"^x-forwarded-(host|proto|for): (.*)\r$", head, re.MULTILINE))
        assert told == {"host": NAME, "proto": "https", "for": "127.0.0.1"}


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_an_answer_is_passed_on_as_it_comes(kind: str, tmp_path: Path) -> None:
    async with behind(kind, tmp_path) as (proxy, one, two):
        reader, writer = await proxy.connected()
        writer.write(f"GET /slow HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        async with asyncio.timeout(SOON):
            assert (await reader.readuntil(b"\r\n\r\nho")).startswith(b"HTTP/1.1 200")
            one.arrived.set()
            two.arrived.set()
            assert await reader.readexactly(2) == b"la"
        writer.transport.abort()


@pytest.mark.parametrize("kind", ["haproxy", "caddy"])
async def test_a_node_that_is_not_ready_is_left_alone(kind: str, tmp_path: Path) -> None:
    async with behind(kind, tmp_path, HASTE[kind]) as (proxy, one, two):
        one.ready = 503

        async def left_alone() -> bool:
            before = len(one.asked)
            for _ in range(4):
                await proxy.ask("GET", "/")
            return len(one.asked) == before

        await until(left_alone)
        one.ready, two.ready = 200, 503
        await until(lambda: serves_from(proxy, one))


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_who_meets_a_node_that_is_gone_gets_the_other_one(kind: str, tmp_path: Path) -> None:
    async with behind(kind, tmp_path) as (proxy, one, _two):
        await until(lambda: serves_from(proxy, one))
        one.end()
        for _ in range(4):
            answer = await proxy.ask("GET", "/")
            assert (answer.status, answer.body) == (200, b"hola")


async def serves_from(proxy: Proxy, node: Node) -> bool:
    before = len(node.asked)
    await proxy.ask("GET", "/")
    return len(node.asked) > before


async def test_nginx_keeps_its_connections_to_the_nodes(tmp_path: Path) -> None:
    async with behind("nginx", tmp_path) as (proxy, one, two):
        for _ in range(8):
            await proxy.ask("GET", "/")
        asked = one.asked + two.asked
        assert len(asked) == 8 and len({writer for _, writer in asked}) <= 4
        assert "\nconnection:" not in "".join(one.heads + two.heads)


@pytest.mark.parametrize("kind", ["haproxy", "caddy"])
async def test_who_comes_is_given_to_the_node_that_has_fewer(kind: str, tmp_path: Path) -> None:
    async with behind(kind, tmp_path) as (proxy, one, two):
        _, writer = await proxy.connected()
        writer.write(f"GET /slow HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        await until(lambda: one.asked or two.asked)
        busy, other = (one, two) if one.asked else (two, one)
        for _ in range(8):
            await proxy.ask("GET", "/")
        assert (len(busy.asked), len(other.asked)) == (1, 8)
        writer.transport.abort()
        busy.arrived.set()


async def test_haproxy_misses_no_timeout_and_waits_for_no_half_request(chat: ChatServer) -> None:
    proxy = Proxy("haproxy", [chat], {"http-request 10s": "http-request 200ms"})
    proxy.start()
    try:
        assert "[WARNING]" not in proxy.log
        reader, writer = await proxy.connected()
        writer.write(b"GET / HTTP/1.1\r\n")
        async with asyncio.timeout(SOON):
            assert (await reader.read()).startswith(b"HTTP/1.1 408")
        writer.transport.abort()
    finally:
        proxy.remove()


# --- A prefix

PREFIX = {
    "nginx": {
        "location / {": "location /talk/ {",
        "location = /metrics {": "location = /talk/metrics {",
    },
    "apache": {
        'ProxyPass "/" "balancer://tertulia/"': 'ProxyPass "/talk/" "balancer://tertulia/talk/"',
        'ProxyPass "/metrics" "!"': 'ProxyPass "/talk/metrics" "!"',
        'Redirect 404 "/metrics"': 'Redirect 404 "/talk/metrics"',
    },
    "haproxy": {"url_dec /metrics": "url_dec /metrics /talk/metrics"},
    "caddy": {"respond /metrics 404": "respond /metrics 404\n\trespond /talk/metrics 404"},
}


def test_the_page_shows_each_line_that_a_prefix_changes() -> None:
    shown = {line.split("  ")[0] for line in PAGE.splitlines()}
    for kind, changes in PREFIX.items():
        text = FILES[kind].read_text(encoding="utf-8")
        for old, new in changes.items():
            [line] = [line.strip() for line in text.splitlines() if old in line]
            assert set(line.replace(old, new).replace("\t", "").split("\n")) - {line} <= shown


@pytest.mark.parametrize("kind", PREFIX)
async def test_under_a_prefix_all_of_it_works(kind: str, talk: ChatServer) -> None:
    proxy = Proxy(kind, [talk], PREFIX[kind])
    proxy.start()
    try:
        answer = await proxy.sign_in(a_name(), "/talk")
        assert (answer.status, answer.headers["location"]) == (303, "/talk/")
        cookie = {"Cookie": f"session={answer.cookie()}"}
        page = await proxy.ask("GET", "/talk/test-chat/lobby/", cookie)
        addresses = re.findall(r'(?:src|href|action)="([^"]+)"', page.text)
        assert addresses and all(one.startswith("/talk/") for one in addresses)
        for address in addresses:
            if "/static/" in address:
                assert (await proxy.ask("GET", address)).status == 200
        async with proxy.enter("/talk/ws/chat/lobby/", cookie) as member:
            await member.say("hola")
        evil = {**cookie, "Origin": "https://evil.example"}
        assert (await proxy.ask("POST", "/talk/logout", evil)).status == 403
        answer = await proxy.ask("GET", "/talk/api/no", {**cookie, "Accept": "text/html"})
        assert answer.code == "not_found"
        key = {"Authorization": f"Bearer {API_KEY}"}
        direct = await ask_json(talk, "GET", "/talk/metrics", headers=key)
        assert direct.status == 200
        for path in (*METRICS, *(f"/talk{path}" for path in METRICS)):
            assert (await proxy.ask("GET", path, key)).status == 404, path
    finally:
        proxy.remove()


# --- Two nodes

# Sooner than on a machine of its own, where a test need not wait for it.
HASTE = {
    "nginx": {"fail_timeout=2s": "fail_timeout=1s"},
    "apache": {"retry=2": "retry=1"},
    "haproxy": {"inter 2s": "inter 200ms"},
    "caddy": {
        "health_interval 2s": "health_interval 200ms",
        "fail_duration 2s": "fail_duration 200ms",
    },
}
CROWD = 4
# These give a newcomer to the other node where one says 503; the others say it to the client.
HIDE_503 = ("nginx", "haproxy")


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_a_node_restarts_and_its_members_go_on_at_the_other(
    kind: str, nodes: list[ChatServer]
) -> None:
    proxy = Proxy(kind, nodes, HASTE[kind])
    proxy.start()
    try:
        await until(lambda: serves(proxy, nodes))
        path = f"/ws/chat/{a_room()}/?token={await token_of(nodes[0])}"
        async with AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(proxy.enter(path)) for _ in range(CROWD)]
            seq, epoch = (await crowd[0].say("hola"))["seq"], crowd[0].welcome["epoch"]
            for member in crowd:
                await member.read_to(seq)
            ends = [asyncio.create_task(member.socket.wait_closed()) for member in crowd]
            stopping = asyncio.create_task(nodes[0].stop())
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for _ in crowd:
                await come_back(proxy, f"{path}&since={seq - 1}&epoch={epoch}", seq)
            assert await stopping == 0
            for end, member in zip(ends, crowd, strict=True):
                if end.done():
                    assert await member.end() == 1012
                else:
                    end.cancel()
                    await member.is_well()
        await nodes[0].start()
        # It is given requests again.
        await until(lambda: serves(proxy, nodes))
    finally:
        proxy.remove()


async def serves(proxy: Proxy, nodes: list[ChatServer]) -> bool:
    """Whether the proxy gives requests to each of the nodes."""
    path = f"/static/{a_name()}"
    for _ in range(2 * len(nodes)):
        await proxy.ask("GET", path)
    return all(path in node.log for node in nodes)


async def come_back(proxy: Proxy, path: str, seq: int) -> None:
    """Enter again, as a client does, and read to this seq."""
    while True:
        try:
            async with proxy.enter(path) as member:
                assert member.welcome["resumed"] is True
                assert [one["seq"] for one in await member.read_to(seq)] == [seq]
                return
        except InvalidStatus as refusal:
            assert proxy.kind not in HIDE_503 and refusal.response.status_code in (502, 503)
