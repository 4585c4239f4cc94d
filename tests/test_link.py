"""One connection, against a server that says what each test lets it say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from chat import link
from chat.errors import Refused
from chat.link import Link
from chat.outgoing import Frame, Messages
from chat.patience import PATIENCE, Patience
from chat.protocol import Renewed, Welcome
from tests.people import SOON, until

Talk = Callable[[ServerConnection], Awaitable[None]]


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def welcome(**fields: Any) -> str:
    return json.dumps(
        {
            "type": "welcome",
            "protocol": 1,
            "room": "lobby",
            "epoch": "e1",
            "first_seq": 1,
            "last_seq": 0,
            "resumed": False,
            "user": {"id": 7, "name": "maria"},
            "expires_at": None,
            "server_time": in_seconds(0),
            **fields,
        }
    )


class Heard:
    """What came over a link; it says nothing by itself."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def hear(self, frame: Frame) -> None:
        self.frames.append(frame)

    async def talk(self, link: Link) -> None:
        await asyncio.Event().wait()

    def link(
        self, token: link.Token | None = None, patience: Patience = PATIENCE, **headers: str
    ) -> Link:
        return Link(token, headers, self.hear, self.talk, patience=patience)


@asynccontextmanager
async def server(talk: Talk, **options: Any) -> AsyncIterator[str]:
    async with serve(talk, "127.0.0.1", 0, **options) as listening:
        yield f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/ws/chat/lobby/"


async def end_of(link: Link, url: str) -> tuple[int, str]:
    async with asyncio.timeout(SOON):
        return await link.run(url)


@pytest.mark.parametrize("joined", [True, False])
async def test_the_close_code_and_its_reason_are_returned(joined: bool) -> None:
    async def talk(socket: ServerConnection) -> None:
        if joined:
            await socket.send(welcome())
        await socket.close(4403, "not for you")

    heard = Heard()
    async with server(talk) as url:
        one = heard.link()
        assert await end_of(one, url) == (4403, "not for you")
        assert (one.joined_at is not None, one.told) == (joined, None)
        assert [type(frame) for frame in heard.frames] == [Welcome] * joined


async def test_when_to_come_back_is_noted_and_a_server_that_does_not_close_is_left() -> None:
    left = asyncio.Event()

    async def talk(socket: ServerConnection) -> None:
        await socket.send(welcome())
        await socket.send('{"type":"closing","code":1012,"reason":"restart","reconnect_after":4.5}')
        await socket.wait_closed()
        assert socket.close_code == 1000
        left.set()

    one = Heard().link(patience=Patience(closing=0.05))
    async with server(talk) as url:
        assert (await end_of(one, url))[0] == 0
        await left.wait()
    assert one.told == 4.5


async def test_a_server_that_says_no_welcome_is_left() -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send('{"type":"redacted","room":"lobby","seq":1}')
        await socket.wait_closed()

    async with server(talk) as url:
        one = Heard().link(patience=Patience(welcome=0.2))
        assert await end_of(one, url) == (0, "the server does not answer")


async def test_a_connection_that_answers_no_ping_is_dead() -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send(welcome())
        socket.transport.pause_reading()
        await over.wait()
        socket.transport.abort()

    over = asyncio.Event()
    async with server(talk) as url:
        one = Heard().link(patience=Patience(ping_interval=0.05, ping=0.05, close=0.05))
        assert await end_of(one, url) == (0, "the connection broke")
        over.set()


async def test_a_refusal_by_http_says_when_to_come_back() -> None:
    def refuse(socket: ServerConnection, request: Request) -> Response:
        answer = socket.respond(HTTPStatus.SERVICE_UNAVAILABLE, "later")
        answer.headers["Retry-After"] = "7"
        return answer

    async with server(lambda socket: asyncio.sleep(0), process_request=refuse) as url:
        one = Heard().link()
        assert await end_of(one, url) == (0, "the server answers HTTP 503")
        assert one.told == 7.0


async def test_where_nobody_listens_it_ends_at_once() -> None:
    async with server(lambda socket: asyncio.sleep(0)) as url:
        pass
    code, reason = await end_of(Heard().link(), url)
    assert (code, reason) == (0, "nobody listens there")


async def test_what_is_not_known_is_passed_over() -> None:
    async def talk(socket: ServerConnection) -> None:
        for raw in ('{"type":"confetti"}', "{", '{"type":"messages","messages":7}', "[]", b"\0"):
            await socket.send(raw)
        await socket.send(welcome(more="fields"))
        await socket.send('{"type":"messages","room":"lobby","messages":[]}')

    heard = Heard()
    async with server(talk) as url:
        await end_of(heard.link(), url)
    assert [type(frame) for frame in heard.frames] == [Welcome, Messages]


async def test_headers_and_the_token_are_shown_and_the_token_not_in_the_address() -> None:
    shown = []

    async def talk(socket: ServerConnection) -> None:
        assert socket.request is not None
        shown.append((socket.request.path, socket.request.headers))

    async def token() -> str:
        return "t2"

    async with server(talk) as url:
        await end_of(Heard().link("t1", cookie="session=x"), url)
        await end_of(Heard().link(token), url)
    assert [path for path, _ in shown] == ["/ws/chat/lobby/"] * 2
    assert [headers["Authorization"] for _, headers in shown] == ["Bearer t1", "Bearer t2"]
    assert shown[0][1]["cookie"] == "session=x"


async def test_a_function_that_has_no_token_ends_it_without_its_words() -> None:
    async def token() -> str:
        raise LookupError("a secret")

    code, reason = await end_of(Heard().link(token), "ws://127.0.0.1:9/")
    assert (code, reason) == (0, "there is no token to be had (LookupError)")


async def test_the_next_token_is_shown_before_this_one_ends_by_the_servers_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "RENEW_SOONEST", 0.0)
    monkeypatch.setattr(link, "RENEW_PAUSE", 0.01)
    given = 0

    async def token() -> str:
        nonlocal given
        given += 1
        if given == 2:
            raise LookupError("a secret")
        return f"t{given}"

    async def talk(socket: ServerConnection) -> None:
        # Five hours ahead of us, both.
        ahead = 5 * 3600
        await socket.send(
            welcome(server_time=in_seconds(ahead), expires_at=in_seconds(ahead + 0.1))
        )
        assert json.loads(await socket.recv()) == {"type": "token", "token": "t3"}
        # No answer, or a refusal: another one is shown.
        assert json.loads(await socket.recv()) == {"type": "token", "token": "t4"}
        await socket.send(json.dumps({"type": "token", "expires_at": in_seconds(ahead + 0.1)}))
        # Those that were on their way are followed by one of the next life.
        while json.loads(await socket.recv())["token"] == "t4":
            pass
        await socket.close(4404, "all is well")

    async with server(talk) as url:
        assert await end_of(Heard().link(token), url) == (4404, "all is well")


async def test_a_token_that_is_a_text_is_not_renewed() -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send(welcome(expires_at=in_seconds(0.01)))
        await socket.send('{"type":"redacted","room":"lobby","seq":1}')
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await socket.recv()
        await socket.close(4404, "all is well")

    async with server(talk) as url:
        assert await end_of(Heard().link("t1"), url) == (4404, "all is well")


async def test_it_is_left_in_good_order_where_it_is_cancelled() -> None:
    left = asyncio.Event()
    heard = Heard()

    async def talk(socket: ServerConnection) -> None:
        await socket.send(welcome())
        await socket.wait_closed()
        assert socket.close_code == 1000
        left.set()

    async with server(talk) as url:
        task = asyncio.create_task(heard.link().run(url))
        await until(lambda: heard.frames)
        task.cancel()
        async with asyncio.timeout(SOON):
            await left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_no_other_address_is_gone_to() -> None:
    def elsewhere(socket: ServerConnection, request: Request) -> Response:
        answer = socket.respond(HTTPStatus.MOVED_PERMANENTLY, "there")
        answer.headers["Location"] = "ws://127.0.0.1:1/evil"
        return answer

    async with server(lambda socket: asyncio.sleep(0), process_request=elsewhere) as url:
        one = Heard().link()
        code, reason = await end_of(one, url)
    assert (code, one.status) == (0, 301)
    assert reason == "the server answers HTTP 301 and sends us on to ws://127.0.0.1:1/evil"


async def test_times_that_are_none_and_frames_before_the_welcome_end_nothing() -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send('{"type":"messages","room":"lobby","messages":[]}')
        await socket.send(welcome(server_time="yesterday", expires_at="x"))
        await socket.send('{"type":"token","expires_at":"tomorrow"}')
        await socket.close(4404, "all is well")

    async def token() -> str:
        return "t"

    heard = Heard()
    async with server(talk) as url:
        assert await end_of(heard.link(token), url) == (4404, "all is well")
    assert [type(frame) for frame in heard.frames] == [Welcome, Renewed]


async def test_a_function_that_will_have_no_token_ends_it_for_good() -> None:
    async def token() -> str:
        raise Refused(4401, "disabled")

    with pytest.raises(Refused, match="disabled"):
        await end_of(Heard().link(token), "ws://127.0.0.1:9/")


async def test_where_there_is_no_next_token_any_more_it_ends_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "RENEW_SOONEST", 0.0)
    given = 0

    async def token() -> str:
        nonlocal given
        given += 1
        if given > 1:
            raise Refused(4401, "disabled")
        return "t"

    async def talk(socket: ServerConnection) -> None:
        await socket.send(welcome(expires_at=in_seconds(0.1)))
        await socket.wait_closed()

    async with server(talk) as url:
        with pytest.raises(Refused, match="disabled"):
            await end_of(Heard().link(token), url)


async def test_a_reason_that_could_steer_a_terminal_is_one_line() -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.close(4404, "\x1b[2Jall ok\nñ\x9b")

    async with server(talk) as url:
        assert await end_of(Heard().link(), url) == (4404, r"\x1b[2Jall ok\nñ\x9b")
