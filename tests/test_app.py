"""The app as a whole: how it starts, says how it is, and drains."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import pytest
from starlette.applications import Starlette
from websockets.exceptions import ConnectionClosed

from chat.app import create_app
from chat.errors import SettingsError, Unauthenticated, Unavailable
from chat.settings import Settings
from chat.web import guard
from tests.conftest import ChatServerFactory
from tests.people import ask, guest
from tests.relays import LIMIT, until
from tests.servers import SECRET_KEY, ChatServer, PostgresServer, RedisServer, free_port


def app_for(**environ: str) -> Starlette:
    return create_app(Settings.load({"CHAT_SECRET_KEY": SECRET_KEY, **environ}))


async def live(app: Starlette) -> None:
    """Start the app and stop it again."""
    async with asyncio.timeout(LIMIT), app.router.lifespan_context(app):
        pass


def leftovers(before: set[asyncio.Task[object]]) -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() - before]


# --- How it is


async def test_healthz_and_readyz_of_a_process_that_is_well(
    chat_server: ChatServerFactory, database_url: str, relay_url: str
) -> None:
    server = await chat_server(CHAT_DATABASE_URL=database_url, CHAT_RELAY_URL=relay_url)
    health = await ask(server, "GET", "/healthz")
    assert health.status == 200
    ready = await ask(server, "GET", "/readyz")
    assert (ready.status, ready.json["status"]) == (200, "ok")
    assert ready.headers["content-type"] == "application/json"
    assert ready.headers["cache-control"] == "no-store"
    assert {"database", "relay"} <= ready.json["checks"].keys()


async def test_readyz_says_degraded_without_redis_and_ok_after(
    chat_server: ChatServerFactory, own_redis: RedisServer
) -> None:
    server = await chat_server(CHAT_RELAY_URL=own_redis.url)
    own_redis.stop()
    await server.wait_for_log("WARNING")
    await server.wait_for_log("Relay lost: ")
    ready = await ask(server, "GET", "/readyz")
    assert (ready.status, ready.json["status"]) == (200, "degraded")
    own_redis.start()
    await server.wait_for_log("Relay restored after ")
    assert (await ask(server, "GET", "/readyz")).json["status"] == "ok"


async def test_readyz_says_unavailable_without_the_database_while_healthz_stays_well(
    chat_server: ChatServerFactory, own_postgres: PostgresServer
) -> None:
    server = await chat_server(CHAT_DATABASE_URL=own_postgres.url)
    maria = await guest(server)
    async with maria.enter("lobby") as member:
        await member.say("before")
        own_postgres.stop()
        ready = await ask(server, "GET", "/readyz")
        assert (ready.status, ready.json["status"]) == (503, "unavailable")
        assert (await ask(server, "GET", "/healthz")).status == 200
        assert "127.0.0.1" not in ready.text
        # The member stays, is told, and goes on where it was.
        answer = await member.asks("send", id="m-1", text="meanwhile")
        assert (answer["type"], answer["code"]) == ("error", "unavailable")
        own_postgres.start()
        async with asyncio.timeout(LIMIT):
            while (await ask(server, "GET", "/readyz")).status != 200:
                await asyncio.sleep(0.02)
        ack = await member.asks("send", id="m-1", text="meanwhile")
        assert (ack["type"], ack["seq"]) == ("ack", 2)
        await member.read_to(2)


# --- Starting


async def refusal(server: ChatServer) -> tuple[int, str]:
    """Start a program that cannot start; return its exit code and its last line."""
    server.spawn()
    code = await server.wait()
    assert "Traceback" not in server.log
    return code, server.log.splitlines()[-1]


async def test_a_database_that_is_away_at_the_start_is_one_sentence(tmp_path: Path) -> None:
    port = free_port()
    url = f"postgresql://chat:password@127.0.0.1:{port}/chat"
    server = ChatServer(tmp_path, {"CHAT_DATABASE_URL": url})
    code, sentence = await refusal(server)
    assert code == 1
    assert sentence.startswith("The database cannot be opened: ")
    assert "password" not in server.log and str(port) not in server.log


async def test_a_database_that_is_away_at_the_start_stops_all_workers(
    tmp_path: Path, redis_url: str
) -> None:
    url = f"postgresql://chat:password@127.0.0.1:{free_port()}/chat"
    settings = {"CHAT_DATABASE_URL": url, "CHAT_RELAY_URL": redis_url}
    server = ChatServer(tmp_path, settings, workers=2)
    code, sentence = await refusal(server)
    assert code == 1
    assert sentence.startswith("The database cannot be opened: ")
    assert server.log.count("The database cannot be opened: ") == 1


async def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_text("not a database, but quite long enough to look like one")
    server = ChatServer(tmp_path, {"CHAT_DATABASE_URL": f"sqlite:///{tmp_path}/chat.db"})
    code, sentence = await refusal(server)
    assert code == 1
    assert sentence == "The database cannot be opened: file is not a database."


async def test_redis_that_is_away_at_the_start_keeps_nobody_from_talking(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(CHAT_RELAY_URL=f"redis://127.0.0.1:{free_port()}")
    maria = await guest(server)
    async with maria.enter("lobby") as member:
        await member.say("hola")
        await member.read_to(1)
    assert (await ask(server, "GET", "/readyz")).json["status"] == "degraded"


async def test_a_start_that_fails_leaves_no_task_behind(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(Unavailable):
        await live(app_for(CHAT_DATABASE_URL=f"sqlite:///{tmp_path}"))
    assert leftovers(before) == []


async def test_a_relay_that_cannot_be_meant_is_a_wrong_setting_and_leaves_no_task_behind(
    sqlite_url: str,
) -> None:
    before = asyncio.all_tasks()
    app = app_for(CHAT_DATABASE_URL=sqlite_url, CHAT_RELAY_URL="redis://:secret@host?no_such=1")
    with pytest.raises(SettingsError, match=r"^CHAT_RELAY_URL is wrong: .*\.$") as wrong:
        await live(app)
    assert "secret" not in str(wrong.value)
    assert leftovers(before) == []


async def test_a_start_that_fails_half_way_leaves_no_thread_to_keep_the_process(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    monkeypatch.setattr("chat.app.Limits", Mock(side_effect=RuntimeError))
    with pytest.raises(RuntimeError):
        await live(app_for(CHAT_DATABASE_URL=sqlite_url))
    assert leftovers(tasks) == []
    left = set(threading.enumerate()) - threads
    assert [one for one in left if not one.name.startswith("asyncio_")] == []


@pytest.mark.parametrize("url", ["redis://localhost", "redis://:secret@[::1]/1", "rediss://:6379"])
async def test_an_address_of_redis_needs_neither_name_nor_port(sqlite_url: str, url: str) -> None:
    await live(app_for(CHAT_DATABASE_URL=sqlite_url, CHAT_RELAY_URL=url))


async def test_a_task_of_the_app_that_dies_is_told_by_readyz(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.hub.TICK", 0.01)
    app = app_for(CHAT_DATABASE_URL=sqlite_url)
    async with asyncio.timeout(LIMIT), app.router.lifespan_context(app):

        async def fail() -> None:
            raise LookupError("a mistake of ours")

        monkeypatch.setattr(app.state.services.hub, "_look", fail)
        while app.state.tasks.failed != {"ticker"}:
            await asyncio.sleep(0.01)


async def test_living_and_ending_leaves_no_task_behind(database_url: str, relay_url: str) -> None:
    before = asyncio.all_tasks()
    await live(app_for(CHAT_DATABASE_URL=database_url, CHAT_RELAY_URL=relay_url))
    assert leftovers(before) == []


async def test_two_nodes_may_start_at_once_on_an_empty_database(
    database_url: str, redis_url: str
) -> None:
    apps = [app_for(CHAT_DATABASE_URL=database_url, CHAT_RELAY_URL=redis_url) for _ in range(3)]
    await asyncio.gather(*map(live, apps))


# --- Draining


async def test_draining_says_good_bye_with_1012_and_a_time_to_come_back(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server()
    maria = await guest(server)
    async with maria.enter("lobby") as one, maria.enter("elsewhere") as two:
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert list(await asyncio.gather(one.end(), two.end())) == [1012, 1012]
        for member in (one, two):
            assert '"type":"closing"' in member.raw[-1]
            assert '"code":1012' in member.raw[-1]
            assert '"reconnect_after":' in member.raw[-1]
        assert await server.wait() == 0


async def test_who_drains_is_not_ready(chat_server: ChatServerFactory) -> None:
    server = await chat_server()
    maria = await guest(server)
    async with maria.enter("lobby") as silent:
        # It never answers the good-bye, which is waited for a second.
        silent.socket.transport.pause_reading()
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        while (answer := await ask(server, "GET", "/readyz")).status != 503:
            assert answer.json["status"] == "ok"
        assert answer.json["status"] == "unavailable"
        assert answer.json["checks"]["database"]["status"] == "ok"
        assert await server.wait() == 0
        silent.socket.transport.abort()


async def test_what_is_stored_while_it_drains_is_acked_seen_and_comes_after_the_restart(
    chat_server: ChatServerFactory, tmp_path: Path
) -> None:
    server = await chat_server(CHAT_SEND_RATE="off")
    maria = await guest(server)
    async with maria.enter("lobby") as mine, maria.enter("lobby") as other:
        assert server.process is not None

        async def send_until_the_end() -> None:
            with suppress(ConnectionClosed):
                for number in itertools.count():
                    await mine.send("send", id=f"m-{number}", text=f"{number}")
                    # Some are always under way, so the signal comes into the midst of them.
                    await until(lambda: len(mine.messages) > number - 30 or codes.done())  # noqa: B023

        async def stop_in_the_midst() -> int:
            await other.read_to(50)
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            return await other.end()

        codes = asyncio.gather(mine.end(), stop_in_the_midst())
        await asyncio.gather(send_until_the_end(), codes)
        assert list(codes.result()) == [1012, 1012]
        frames = [json.loads(raw) for raw in mine.raw]
        acked = [(one["seq"], one["id"]) for one in frames if one["type"] == "ack"]
    assert await server.wait() == 0
    with closing(sqlite3.connect(tmp_path / "var" / "chat.db")) as connection:
        rows = connection.execute("SELECT seq, message_id FROM messages ORDER BY seq").fetchall()
    assert rows == [(number + 1, f"m-{number}") for number in range(len(rows))]
    # Reading stops first: what was stored has its ack, and everybody who reads has seen it.
    assert acked == rows
    assert [(one["seq"], one["id"]) for one in mine.messages] == rows
    await server.start()
    async with maria.enter("lobby", "?since=0") as again:
        assert [(one["seq"], one["id"]) for one in await again.read_to(len(rows))] == rows
        last = await again.say(f"{len(rows) - 1}", id=f"m-{len(rows) - 1}")
        assert (last["seq"], last["duplicate"]) == (len(rows), True)


async def knock(app: Starlette) -> list[dict[str, Any]]:
    """Ask for a socket without credentials; return what the app sends."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.disconnect" if sent else "websocket.connect", "code": 1005}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/ws/chat/lobby/",
        "headers": [(b"host", b"localhost")],
        "query_string": b"",
        "extensions": {"websocket.http.response": {}},
    }
    await app(scope, receive, send)
    return sent


def is_refused_for_now(sent: list[dict[str, Any]]) -> bool:
    start = sent[0]
    return (
        start["type"] == "websocket.http.response.start"
        and start["status"] == 503
        and dict(start["headers"])[b"retry-after"].isdigit()
    )


async def test_nobody_is_let_in_while_it_drains(sqlite_url: str) -> None:
    app = app_for(CHAT_DATABASE_URL=sqlite_url)
    async with asyncio.timeout(LIMIT), app.router.lifespan_context(app):
        assert not is_refused_for_now(await knock(app))
        await app.state.drain()
        assert is_refused_for_now(await knock(app))


async def test_of_too_many_half_done_handshakes_the_rest_may_come_again(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MAX_HANDSHAKES", 3)
    app = app_for(CHAT_DATABASE_URL=sqlite_url)
    async with asyncio.timeout(LIMIT), app.router.lifespan_context(app):
        chat = app.state.services
        asked, answered = asyncio.Semaphore(0), asyncio.Event()

        async def identify(*_: Any) -> NoReturn:
            asked.release()
            await answered.wait()
            raise Unauthenticated("Nobody.")

        monkeypatch.setattr(chat.identities, "identify", identify)
        waiting = [asyncio.create_task(knock(app)) for _ in range(3)]
        for _ in waiting:
            await asked.acquire()
        assert is_refused_for_now(await knock(app))
        answered.set()
        for task in waiting:
            assert (await task)[-1] == {
                "type": "websocket.close",
                "code": 4401,
                "reason": "no valid session or token",
            }
        assert chat.handshakes == 0
        assert not is_refused_for_now(await knock(app))
