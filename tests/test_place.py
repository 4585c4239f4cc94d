"""An address of the chat, and what a question to it comes back with."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from unittest.mock import Mock

import pytest

from chat.commands import Impossible
from chat.commands import place as module
from chat.commands.place import Failing, Place, ask
from tests.servers import free_port


@pytest.mark.parametrize(
    ("url", "at", "host", "room"),
    [
        ("http://a.example", ("a.example", 80), "a.example", "ws://a.example/ws/chat/r/"),
        ("https://a.example", ("a.example", 443), "a.example", "wss://a.example/ws/chat/r/"),
        ("http://b:81", ("b", 81), "b:81", "ws://b:81/ws/chat/r/"),
        ("http://0.0.0.0:81", ("127.0.0.1", 81), "127.0.0.1:81", "ws://127.0.0.1:81/ws/chat/r/"),
        ("http://[::]:81", ("::1", 81), "[::1]:81", "ws://[::1]:81/ws/chat/r/"),
        ("http://a/", ("a", 80), "a", "ws://a/ws/chat/r/"),
        ("http://a/talk/", ("a", 80), "a", "ws://a/talk/ws/chat/r/"),
        ("https://a/más/talk", ("a", 443), "a", "wss://a/m%C3%A1s/talk/ws/chat/r/"),
    ],
)
def test_an_address_is_read(url: str, at: tuple[str, int], host: str, room: str) -> None:
    place = Place.of(url)
    assert (place.at, place.host, place.room("r"), place.is_proxy) == (at, host, room, True)


@pytest.mark.parametrize(
    "url", ["lobby", "ftp://a", "http://", "http://a:b", "http://a:70000", "http://a..b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(Impossible, match="is no address such as"):
        Place.of(url)


def test_the_chat_is_asked_by_a_name_that_it_serves() -> None:
    for allowed, host in (
        (["127.0.0.1", "x"], "127.0.0.1:81"),
        (["x", "y"], "x:81"),
        (["x", "*"], "127.0.0.1:81"),
    ):
        place = Place.of("http://127.0.0.1:81", allowed)
        assert (place.host, place.at, place.is_proxy) == (host, ("127.0.0.1", 81), False)


def test_each_status_in_place_of_a_handshake_has_its_advice() -> None:
    chat, proxy = Place.of("http://127.0.0.1", ["127.0.0.1"]), Place.of("http://127.0.0.1")
    for place, status, advice in (
        (proxy, 502, "it does not reach the chat"),
        (proxy, 503, "it does not reach the chat"),
        (proxy, 504, "it does not reach the chat"),
        (chat, 503, "it is being stopped, or too many come at once"),
        (proxy, 426, "does not pass Upgrade on"),
        (proxy, 401, "it asks for a password"),
        (proxy, 404, "does it pass this path on"),
        (chat, 404, "is it Tertulia, and not a proxy"),
    ):
        assert advice in place.refusal(status)
    # A page that the chat says is not there: it was asked, but not for a socket.
    assert "does not pass Upgrade on" in proxy.refusal(404, no_page=True)


@asynccontextmanager
async def answering(raw: bytes) -> AsyncIterator[Place]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(raw)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield Place.of(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")


@pytest.mark.parametrize(
    ("raw", "advice"),
    [
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "answers 404 for /x: is that Tertulia"),
        (b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n", "does not reach the chat"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n", "does not serve the name 127.0.0.1"),
        (
            b"HTTP/1.1 301 No\r\nLocation: https://a.example/x\r\nContent-Length: 0\r\n\r\n",
            "The proxy sends on to https://a.example: give that address.",
        ),
        (
            b"HTTP/1.1 302 No\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n",
            r"The proxy sends on to http://127.0.0.1:\d+/login: is that Tertulia\?",
        ),
        (
            b"HTTP/1.1 302 No\r\nLocation: /\x9b1m\r\nContent-Length: 0\r\n\r\n",
            r"/\\x9b1m: is that Tertulia\?",
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
    ],
)
async def test_an_answer_that_is_not_the_chats_is_told(raw: bytes, advice: str) -> None:
    async with answering(raw) as place:
        with pytest.raises(Failing, match=advice):
            await ask(place, "/x")


async def test_a_body_is_returned_and_one_without_end_is_not_kept() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhola") as place:
        assert await ask(place, "/") == b"hola"
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000) as place:
        assert await ask(place, "/") == b""


async def test_where_nobody_is_to_be_found_it_says_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(Failing, match="Nobody listens at"):
        await ask(Place.of(f"http://127.0.0.1:{free_port()}"), "/")
    with monkeypatch.context() as patch:
        # What a name server answers, whether there is one here or not.
        patch.setattr(socket, "getaddrinfo", Mock(side_effect=socket.gaierror))
        with pytest.raises(Failing, match=r"chat\.example is not known: is it misspelled\?"):
            await ask(Place.of("http://chat.example"), "/")
    async with answering(b"hello") as place:
        secure = Place.of(place.url.replace("http", "https"))
        with pytest.raises(Failing, match="cannot be trusted: "):
            await ask(secure, "/")


async def test_who_takes_no_connection_is_told_from_who_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONNECT_LIMIT", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full, ExitStack() as stack:
        port = full.getsockname()[1]
        # Those that wait to be accepted fill it; from then on nobody gets in.
        for _ in range(3):
            waiting = stack.enter_context(closing(socket.socket()))
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        url = f"http://127.0.0.1:{port}"
        for place, who in ((Place.of(url), "The proxy"), (Place.of(url, ["127.0.0.1"]), "It")):
            with pytest.raises(Failing, match=f"^{who} does not take the connection"):
                await ask(place, "/")
