"""The client for bots, on real servers that restart, refuse, fall silent and are cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chat import client, link
from chat.client import Message, Patience, Refused, Rejected, Room, Welcome
from chat.clock import now, rfc3339
from tests.conftest import ChatServerFactory
from tests.lossy import Lossy, lossy
from tests.people import (
    API_KEY,
    NO_LIMITS,
    SOON,
    Person,
    a_name,
    a_room,
    direct_room,
    execute,
    guest,
    site,
    until,
)
from tests.servers import ChatServer
from tests.test_docs import README, block

pytest_plugins = ["tests.houses"]


def entering(person: Person, name: str, proxy: Lossy | None = None, **options: Any) -> Room:
    port = person.server.port if proxy is None else proxy.port
    options = {"token": person.token, **options}
    return Room(f"http://127.0.0.1:{port}/ws/chat/{name}/", **options)


async def take(room: Room, count: int) -> list[Message]:
    async with asyncio.timeout(SOON):
        return [await anext(room) for _ in range(count)]


async def texts(room: Room, count: int) -> list[str]:
    return [message.text for message in await take(room, count)]


@asynccontextmanager
async def asking(room: Room, *said: str) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Send these at once, without waiting."""
    tasks = [asyncio.create_task(room.send(text)) for text in said]
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def stored(person: Person, room: str) -> list[str]:
    return [one["text"] for one in (await person.read(room, "?limit=200")).json["messages"]]


async def test_what_is_said_is_acked_and_comes_to_all_in_order(server: ChatServer) -> None:
    maria, jon = await site(server), await site(server)
    name = a_room()
    async with entering(maria, name) as hers, entering(jon, name) as his:
        acks = await asyncio.gather(*[hers.send(f"hola {n}") for n in range(40)])
        assert [ack.seq for ack in acks] == list(range(1, 41))
        assert not any(ack.duplicate for ack in acks)
        for room in (hers, his):
            got = await take(room, 40)
            assert [message.text for message in got] == [f"hola {n}" for n in range(40)]
            assert {message.sender.name for message in got} == {maria.name}
        page = await his.history(before=20, limit=3)
        assert [message.seq for message in page.messages] == [17, 18, 19] and page.more


async def test_who_knows_a_seq_gets_what_lies_behind_it(server: ChatServer) -> None:
    maria, name = await site(server), a_room()
    for n in range(3):
        await maria.post(name, str(n))
    async with entering(maria, name, since=1) as room:
        assert await texts(room, 2) == ["1", "2"]
    async with entering(maria, name, since=0) as room:
        assert await texts(room, 3) == ["0", "1", "2"]


async def test_a_cookie_lets_a_guest_in(server: ChatServer) -> None:
    maria = await guest(server)
    url = f"{server.ws_url}/ws/chat/{a_room()}/"
    async with Room(url, headers=maria.headers) as room:
        assert room.welcome is not None and room.welcome.user.name == maria.name


async def test_no_log_line_holds_a_token_or_a_text(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    maria = await site(server)
    with caplog.at_level("DEBUG"):
        async with entering(maria, a_room()) as room:
            await room.send("a text of its own")
            await take(room, 1)
    assert maria.token not in caplog.text and "a text of its own" not in caplog.text


async def test_in_a_direct_room_the_other_one_is_the_receiver(server: ChatServer) -> None:
    maria, jon = await site(server), await site(server)
    async with entering(maria, await direct_room(maria, jon)) as room:
        await room.send("hola")
        [message] = await take(room, 1)
        assert message.receiver is not None and message.receiver.id == jon.id


async def test_what_cannot_be_sent_is_refused_and_ends_nothing(server: ChatServer) -> None:
    async with entering(await site(server), a_room()) as room:
        for text, code in (("x" * 100_000, "text_too_long"), ("  ", "text_empty")):
            with pytest.raises(Rejected) as refused:
                await room.send(text)
            assert refused.value.code == code
        with pytest.raises(Rejected) as refused:
            await room.send("hola", receiver_id=2**40)
        assert refused.value.code == "unknown_receiver"
        with pytest.raises(Rejected):
            await room.history(before=5, limit=1000)
        # What no database can keep is replaced.
        await room.send("a\0b\ud800c")
        assert await texts(room, 1) == ["a\ufffdb\ufffdc"]


async def test_restarts_between_messages_lose_and_double_nothing(
    chat_server: ChatServerFactory, relay_url: str
) -> None:
    server = await chat_server(CHAT_RELAY_URL=relay_url, **NO_LIMITS)
    maria, jon, name = await site(server), await site(server), a_room()
    said = [str(n) for n in range(30)]
    welcomes: list[Welcome] = []
    async with (
        entering(maria, name) as hers,
        entering(jon, name, on_welcome=welcomes.append) as his,
    ):
        sending = asyncio.gather(*[hers.send(text) for text in said[:10]])
        assert await server.stop() == 0
        # Typed while it is away.
        more = asyncio.gather(*[hers.send(text) for text in said[10:20]])
        await server.start()
        await asyncio.gather(sending, more)
        sending = asyncio.gather(*[hers.send(text) for text in said[20:]])
        await server.kill()
        await server.start()
        await sending
        assert await stored(jon, name) == said
        assert await texts(his, 30) == said
        assert await texts(hers, 30) == said
    assert [one.resumed for one in welcomes[:2]] == [False, True]


async def test_an_ack_that_was_lost_doubles_nothing(chat_server: ChatServerFactory) -> None:
    server = await chat_server(**NO_LIMITS)
    maria, name = await site(server), a_room()
    async with lossy(server) as proxy, entering(maria, name, proxy) as room:
        proxy.swallowing = True
        async with asking(room, "hola", "again") as tasks:
            await until(lambda: stored_has(maria, name, "again"))
            proxy.swallowing = False
            proxy.cut()
            acks = await asyncio.gather(*tasks)
        assert [(ack.seq, ack.id != "") for ack in acks] == [(1, True), (2, True)]
        assert await texts(room, 2) == ["hola", "again"] == await stored(maria, name)


async def stored_has(person: Person, room: str, text: str) -> bool:
    return text in await stored(person, room)


async def test_who_is_rate_limited_gets_all_through_in_order(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY, CHAT_SEND_RATE="6/second")
    async with entering(await site(server), a_room()) as room:
        said = [str(n) for n in range(14)]
        acks = await asyncio.gather(*[room.send(text) for text in said])
        assert [ack.seq for ack in acks] == list(range(1, 15))
        assert await texts(room, 14) == said


async def test_a_send_that_is_cancelled_is_not_repeated_and_can_be_made_sure_of(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(**NO_LIMITS)
    maria, name = await site(server), a_room()
    async with lossy(server) as proxy, entering(maria, name, proxy) as room:
        proxy.swallowing = True
        sending = asyncio.create_task(room.send("hola", id="c-1"))
        await until(lambda: stored_has(maria, name, "hola"))
        sending.cancel()
        # While there is no connection: it has not gone out, and never will.
        await server.kill()
        await until(lambda: room.trouble)
        withdrawn = asyncio.create_task(room.send("never"))
        await asyncio.sleep(0)
        withdrawn.cancel()
        proxy.swallowing = False
        await server.start()
        ack = await room.send("hola", id="c-1")
        assert ack.seq == 1
        assert (await room.send("more")).seq == 2
        assert await texts(room, 2) == ["hola", "more"]


async def test_an_id_of_another_message_is_refused(server: ChatServer) -> None:
    async with entering(await site(server), a_room()) as room:
        await room.send("hola", id="c-1")
        with pytest.raises(Rejected) as refused:
            await room.send("adios", id="c-1")
        assert refused.value.code == "id_conflict"


async def test_who_is_kicked_hears_it_and_stays_away(chat_server: ChatServerFactory) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY)
    maria = await site(server)
    async with lossy(server) as proxy, entering(maria, a_room(), proxy) as room:
        await room.send("hola")
        await server.says("user", "disable", maria.name)
        assert await texts(room, 1) == ["hola"]
        for again in (anext(room), anext(room), room.send("still there?"), room.history(1)):
            with pytest.raises(Refused) as refused:
                async with asyncio.timeout(SOON):
                    await again
            assert refused.value.code == 4401
        assert proxy.count == 1


async def test_who_may_not_enter_is_told_why(server: ChatServer) -> None:
    maria, jon, ana = [await site(server) for _ in range(3)]
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("lobby", {"token": "wrong"}, 4401),
        ("lobby", {"token": None}, 4401),
        (await direct_room(jon, ana), {}, 4403),
        ("not%20a%20room", {}, 4404),
    ]
    for name, options, code in cases:
        with pytest.raises(Refused) as refused:
            async with asyncio.timeout(SOON), entering(maria, name, **options):
                pass
        assert refused.value.code == code
    with pytest.raises(ValueError, match="begins with"):
        Room("lobby")


async def test_who_leaves_ends_what_waits_and_what_is_read(server: ChatServer) -> None:
    room = entering(await site(server), a_room())
    async with room:
        await room.send("hola")
        reading = asyncio.create_task(anext(room))
        assert (await reading).text == "hola"
        reading = asyncio.create_task(anext(room))
        await asyncio.sleep(0)
        sending = asyncio.create_task(room.send("too late"))
        await asyncio.sleep(0)
    with pytest.raises(Refused) as refused:
        await sending
    assert refused.value.code == 1000
    with pytest.raises(StopAsyncIteration):
        await reading
    assert [message async for message in room] == []


async def test_a_token_that_ends_is_followed_by_the_next(
    chat_server: ChatServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RENEW_SOONEST", 0.0)
    monkeypatch.setattr(link, "RENEW_PAUSE", 0.05)
    server = await chat_server(CHAT_API_KEY=API_KEY)
    name, given, lives = a_name(), 0, [2, 60]

    async def token() -> str:
        nonlocal given
        given += 1
        return (await site(server, name, ttl=lives[min(given, 2) - 1])).token

    welcomes: list[Welcome] = []
    url = f"{server.url}/ws/chat/{a_room()}/"
    async with Room(url, token=token, on_welcome=welcomes.append) as room:
        await until(lambda: given == 2)
        assert room.welcome is not None and isinstance(room.welcome.expires_at, str)
        end = room.welcome.expires_at
        await until(lambda: rfc3339(now()) > end)
        await room.send("still here")
        assert (len(welcomes), given) == (1, 2)


async def test_a_token_that_has_run_out_all_the_same_is_followed_by_another_connection(
    chat_server: ChatServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RENEW_SOONEST", 60.0)
    server = await chat_server(CHAT_API_KEY=API_KEY)
    maria, name = await site(server), a_room()

    async def token() -> str:
        return (await site(server, maria.name, ttl=1)).token

    welcomes: list[Welcome] = []
    async with entering(maria, name, token=token, on_welcome=welcomes.append) as room:
        await room.send("hola")
        await until(lambda: len(welcomes) == 2)
        await room.send("again")
        assert await texts(room, 2) == ["hola", "again"]


async def test_what_waits_does_not_go_out_under_another_name(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY)
    people = [await site(server), await site(server)]
    tokens = [person.token for person in people]

    async def token() -> str:
        return tokens.pop(0) if len(tokens) > 1 else tokens[0]

    name = a_room()
    async with lossy(server) as proxy, entering(people[0], name, proxy, token=token) as room:
        proxy.swallowing = True
        async with asking(room, "from the first") as [sending]:
            await until(lambda: stored_has(people[0], name, "from the first"))
            proxy.swallowing = False
            proxy.cut()
            with pytest.raises(Rejected) as refused:
                await sending
        assert refused.value.code == "other_user"
        assert len(await stored(people[0], name)) == 1


async def test_a_log_that_is_another_one_starts_afresh(chat_server: ChatServerFactory) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY)
    maria, name = await site(server), a_room()
    welcomes: list[Welcome] = []
    async with entering(maria, name, on_welcome=welcomes.append) as room:
        await room.send("before")
        await until(lambda: room._messages)
        execute(server, "UPDATE rooms SET epoch = 'restored-1-' || id")
        await until(lambda: len(welcomes) == 2)
        assert not welcomes[1].resumed
        await room.send("after")
        # The first is not there twice, though nobody had read it.
        assert await texts(room, 2) == ["before", "after"]


async def test_who_reads_slowly_or_never_keeps_little_and_gets_all(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "HELD_MOST", 5)
    # Nobody is to blame for it, so there is no pause either.
    never = Patience(backoff_first=1e6)
    maria, name = await site(server), a_room()
    welcomes: list[Welcome] = []
    async with entering(maria, name, on_welcome=welcomes.append, patience=never) as room:
        # Acks come, whether anybody reads or not.
        for n in range(23):
            await room.send(str(n))
        assert len(room._messages) == 5 and len(welcomes) == 1
        assert await texts(room, 23) == [str(n) for n in range(23)]
        assert len(welcomes) == 5
        await room.send("live")
        assert await texts(room, 1) == ["live"]


async def test_a_connection_that_fell_silent_is_noticed_and_another_made(
    chat_server: ChatServerFactory,
) -> None:
    hasty = Patience(ping_interval=0.1, ping=0.3, close=0.1)
    server = await chat_server(**NO_LIMITS)
    maria, name = await site(server), a_room()
    async with lossy(server) as proxy, entering(maria, name, proxy, patience=hasty) as room:
        proxy.swallowing = True
        await maria.post(name, "unheard")
        await until(lambda: room.trouble)
        proxy.swallowing = False
        assert await texts(room, 1) == ["unheard"]
        assert room.trouble is None


async def test_a_message_that_is_taken_away_before_it_is_read_is_empty(
    server: ChatServer,
) -> None:
    maria = await site(server)
    async with entering(maria, a_room()) as room:
        await room.send("secret")
        await until(lambda: room._messages)
        room._hear(link.parse('{"type":"redacted","room":"x","seq":1}') or pytest.fail())
        [message] = await take(room, 1)
        assert (message.text, message.redacted) == ("", True)


async def test_a_mistake_of_a_callback_is_not_passed_over_in_silence(server: ChatServer) -> None:
    def fail(welcome: Welcome) -> None:
        raise LookupError("a mistake")

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(SOON):
            async with entering(await site(server), a_room(), on_welcome=fail) as room:
                await anext(room)
    assert raised.group_contains(LookupError)


async def test_the_bot_of_the_readme_answers_what_is_said_once_it_is_there(
    server: ChatServer,
) -> None:
    maria, bot, name = await site(server), await site(server), a_room()
    names: dict[str, Any] = {}
    exec(block(README, "python", "chat.client"), names)
    url = f"{server.url}/ws/chat/{name}/"
    async with entering(maria, name) as room:
        await room.send("of yesterday")
        answering = asyncio.create_task(names["echo"](url, bot.token))
        await until(lambda: f"User {bot.name} connected to room {name}" in server.log)
        await room.send("hola")
        said = await texts(room, 3)
        assert said == ["of yesterday", "hola", f"{maria.name} says hola"]
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering


async def test_the_first_failure_is_a_warning_and_the_next_ones_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "chat.client")
    room = Room("http://127.0.0.1:9/ws/chat/lobby/", token="t", patience=Patience(backoff_most=0.0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1), room:
            pass
    levels = [one.levelname for one in caplog.records]
    assert levels[0] == "WARNING" and set(levels[1:]) == {"INFO"}
    assert "nobody listens there" in caplog.records[0].getMessage()


async def test_a_redaction_is_told_to_who_asked_for_it(server: ChatServer) -> None:
    maria, name = await site(server), a_room()
    gone: list[int] = []
    async with entering(maria, name, on_redacted=gone.append) as room:
        await room.send("a text")
        await take(room, 1)
        await server.says("redact", name, "1")
        await until(lambda: gone == [1])
