"""`healthcheck` against a chat that is well, and with each of its parts away or hanging."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import psutil
import pytest

from chat.__main__ import main
from tests.conftest import ChatServerFactory
from tests.people import API_KEY, execute, guest
from tests.servers import ChatServer, PostgresServer, RedisServer, free_port

pytest_plugins = ["tests.houses"]

Check = Callable[..., Awaitable[tuple[int, dict[str, str]]]]

# Seconds from the start of the command to its end, whatever hangs.
MOST = 10.0


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run it beside a server, in this process: a start costs more than all that it looks at.

    Return the exit code, and what each line says, without the time.
    """

    async def run(server: ChatServer, *arguments: str) -> tuple[int, dict[str, str]]:
        monkeypatch.chdir(server.folder)
        for name in [name for name in os.environ if name.startswith("CHAT_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        arguments = ("healthcheck", "--url", server.url, *arguments)
        code = await asyncio.to_thread(main, arguments)
        said = capsys.readouterr()
        assert said.err == ""
        return code, lines(said.out)

    return run


def lines(text: str) -> dict[str, str]:
    """Return what is said of each check, after a look at its form."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([a-z ]+?) +(ok|fail) +\d+ ms  (\S.*)", line)
        assert match, line
        found[match[1]] = f"{match[2]}: {match[3]}"
    return found


def words(said: dict[str, str]) -> dict[str, str]:
    return {name: sentence.partition(":")[0] for name, sentence in said.items()}


ALL_OK = {"http": "ok", "websocket": "ok", "database": "ok", "relay": "ok"}


async def test_a_chat_that_is_well(server: ChatServer, check: Check) -> None:
    code, said = await check(server)
    assert (code, words(said)) == (0, ALL_OK)
    assert re.search(r"closed with 4401; a message went round in \d+ ms$", said["websocket"])
    assert said["database"] == "ok: reachable, migrated and writable"
    assert said["relay"] == "ok: in memory, for one process"


async def test_on_redis_the_round_trip_of_the_relay_is_told(
    big_server: ChatServer, check: Check
) -> None:
    code, said = await check(big_server)
    assert (code, words(said)) == (0, ALL_OK)
    assert re.search(r"came back in \d+\.\d ms$", said["relay"])


async def test_its_room_is_seen_by_nobody_and_each_message_is_a_new_one(
    server: ChatServer, check: Check
) -> None:
    maria = await guest(server)
    messages = "SELECT count(*) FROM messages m JOIN users u ON u.id = m.sender_id WHERE u.name = ?"
    before = execute(server, messages, "healthcheck")[0][0]
    for more in (1, 2):
        assert (await check(server))[0] == 0
        assert execute(server, messages, "healthcheck")[0][0] == before + more
    [name] = execute(server, "SELECT name FROM rooms WHERE name LIKE 'dm.%' ORDER BY id LIMIT 1")[0]
    rooms = (await maria.ask("GET", "/api/rooms")).json["rooms"]
    assert name not in [room["name"] for room in rooms]
    assert (await maria.read(name)).status == 403


async def test_without_key_and_database_no_message_is_sent_and_nothing_made(
    server: ChatServer, check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = ChatServer(tmp_path, {"CHAT_SECRET_KEY": None}, port=server.port)
    code, said = await check(elsewhere)
    assert (code, words(said)) == (0, ALL_OK)
    assert said["websocket"].endswith("no message sent: no key and database are at hand")
    assert list(tmp_path.iterdir()) == []


async def test_for_programs_there_is_json(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(server.folder)
    arguments = ["healthcheck", "--json", "--url", server.url]
    assert await asyncio.to_thread(main, arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == "ok"
    assert {one["name"]: one["status"] for one in report["checks"]} == ALL_OK
    assert all(set(one) == {"name", "status", "ms", "detail"} for one in report["checks"])


async def test_where_nobody_listens(server: ChatServer, check: Check) -> None:
    gone = ChatServer(server.folder, server.settings, port=free_port())
    code, said = await check(gone)
    assert code == 1
    assert said["http"].startswith(f"fail: Nobody listens at {gone.url}: does the chat run")
    assert words(said) == ALL_OK | {"http": "fail", "websocket": "fail", "relay": "fail"}
    assert said["database"].startswith("ok: reachable, migrated and writable from here")


async def test_an_address_that_is_none_is_one_sentence(
    server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(main, ["healthcheck", "--url", "lobby"]) == 1
    assert capsys.readouterr().err == "lobby is no address such as http://127.0.0.1:8000.\n"


async def test_a_key_that_is_not_the_chats_is_found(
    server: ChatServer, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**server.settings, "CHAT_SECRET_KEY": "another-key-than-the-one-of-the-server"}
    code, said = await check(ChatServer(server.folder, settings, port=server.port))
    assert (code, words(said)) == (1, ALL_OK | {"websocket": "fail"})
    assert "CHAT_SECRET_KEY and CHAT_DATABASE_URL must be those" in said["websocket"]


async def test_a_chat_that_serves_another_name_is_asked_by_that_name(
    chat_server: ChatServerFactory, check: Check
) -> None:
    server = await chat_server(CHAT_ALLOWED_HOSTS="chat.example.org")
    code, said = await check(server)
    assert (code, words(said)) == (0, ALL_OK)
    # A proxy is asked by its own name, as people ask it.
    code, said = await check(server, "--proxy-url", server.url)
    assert code == 1 and "does not serve the name 127.0.0.1" in said["proxy http"]
    assert "does not serve the name 127.0.0.1" in said["proxy websocket"]


async def test_a_database_and_a_relay_that_are_away(
    chat_server: ChatServerFactory,
    own_postgres: PostgresServer,
    own_redis: RedisServer,
    check: Check,
) -> None:
    server = await chat_server(
        CHAT_DATABASE_URL=own_postgres.url, CHAT_RELAY_URL=own_redis.url, CHAT_API_KEY=API_KEY
    )
    assert (await check(server))[0] == 0
    own_redis.stop()
    await server.wait_for_log("Relay lost")
    code, said = await check(server)
    assert (code, words(said)) == (1, ALL_OK | {"relay": "fail"})
    assert re.match(r"fail: The chat has lost it \(.+\): messages arrive up to", said["relay"])
    own_redis.start()
    await server.wait_for_log("Relay restored")
    own_postgres.stop()
    code, said = await check(server)
    assert (code, words(said)) == (1, ALL_OK | {"database": "fail"})
    assert said["database"].startswith("fail: From here it cannot be opened: ")
    assert said["websocket"].endswith("no message sent: see the line database")
    # As the chat itself sees it, where none is at hand.
    elsewhere = ChatServer(server.folder, {"CHAT_SECRET_KEY": None}, port=server.port)
    code, said = await check(elsewhere)
    assert (code, words(said)) == (1, ALL_OK | {"database": "fail"})
    assert said["database"].startswith("fail: The chat says of it: it cannot be reached. Does it")


async def test_a_chat_that_hangs_is_given_up_in_time(chat_server: ChatServerFactory) -> None:
    server = await chat_server()
    began = time.monotonic()
    process = psutil.Process(server.pid)
    process.suspend()
    try:
        ended = await server.command("healthcheck", "--url", server.url)
    finally:
        process.resume()
    assert time.monotonic() - began < MOST
    said = lines(ended.stdout)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert words(said) == ALL_OK | {"http": "fail", "websocket": "fail", "relay": "fail"}
    assert "does not answer: the process hangs" in said["http"]


async def test_tables_that_somebody_locks_are_given_up_in_time(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server()
    with closing(sqlite3.connect(server.folder / "var" / "chat.db")) as database:
        database.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        ended = await server.command("healthcheck", "--url", server.url)
        assert time.monotonic() - began < MOST
    assert ended.returncode == 1
    assert "does somebody lock its tables?" in lines(ended.stdout)["database"]


# --- Through a proxy


@asynccontextmanager
async def proxy(server: ChatServer, pass_on: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """A proxy that changes each request's head as it likes; an answer of its own ends in b""."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = pass_on(await reader.readuntil(b"\r\n\r\n"))
        behind, before = await asyncio.open_connection("127.0.0.1", server.port)
        before.write(head)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
            target.close()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(copy(reader, before))
                tasks.create_task(copy(behind, writer))
        except* ConnectionError:
            pass
        finally:
            writer.close()
            before.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def without_upgrade(head: bytes) -> bytes:
    kept = [
        line
        for line in head.split(b"\r\n")
        if not line.lower().startswith((b"upgrade:", b"connection:", b"sec-websocket"))
    ]
    return b"\r\n".join([*kept[:-2], b"Connection: close", b"", b""])


async def test_a_proxy_that_passes_all_on(server: ChatServer, check: Check) -> None:
    async with proxy(server, lambda head: head) as url:
        code, said = await check(server, "--proxy-url", url)
    assert (code, words(said)) == (0, ALL_OK | {"proxy http": "ok", "proxy websocket": "ok"})
    assert "a message went round" in said["proxy websocket"]


async def test_a_proxy_that_drops_upgrade_is_told_from_one_that_is_away(
    server: ChatServer, check: Check
) -> None:
    async with proxy(server, without_upgrade) as url:
        code, said = await check(server, "--proxy-url", url)
    assert (code, words(said)) == (1, ALL_OK | {"proxy http": "ok", "proxy websocket": "fail"})
    assert "The proxy answers, but does not pass Upgrade on" in said["proxy websocket"]
    code, said = await check(server, "--proxy-url", url)
    assert (code, words(said)) == (1, ALL_OK | {"proxy http": "fail", "proxy websocket": "fail"})
    assert "does the proxy run, and is this its address?" in said["proxy http"]
