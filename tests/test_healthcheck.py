"""`healthcheck` against a chat that is well, and with each of its parts away or hanging."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import asyncpg
import psutil
import pytest

from chat.__main__ import main
from tests.checking import (
    ALL_OK,
    WELL,
    Check,
    answer,
    lines,
    names_that_hang,
    pretender,
    proxy,
    without_upgrade,
    words,
)
from tests.conftest import ChatServerFactory
from tests.people import API_KEY, execute, guest, until
from tests.servers import ROOT, ChatServer, PostgresServer, RedisServer, free_port
from tests.tls import tls_proxy

pytest_plugins = ["tests.houses"]

# Seconds from the start of the command to its end, whatever hangs.
MOST = 10.0


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
    # As the chat itself sees it, where none is at hand.
    elsewhere = ChatServer(server.folder, {"CHAT_SECRET_KEY": None}, port=server.port)
    admin = await asyncpg.connect(own_postgres.url)
    for state in ("on", "off"):
        await admin.execute(f"ALTER DATABASE postgres SET default_transaction_read_only = {state}")
        # As a server that became a replica's does.
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        if state == "on":

            async def is_told() -> bool:
                code, said = await check(elsewhere)
                assert (code, words(said)) == (1, ALL_OK | {"database": "fail"})
                return said["database"] == (
                    "fail: The chat says of it: it is read-only."
                    " Is it a replica, or set to read-only?"
                )

            await until(is_told)  # a first look may meet a connection that was ended
    await admin.close()
    own_postgres.stop()
    code, said = await check(server)
    assert (code, words(said)) == (1, ALL_OK | {"database": "fail"})
    assert said["database"].startswith("fail: From here it cannot be opened: ")
    assert said["websocket"].endswith("no message sent: see the line database")
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


async def test_a_name_server_that_hangs_is_given_up_in_time(tmp_path: Path) -> None:
    server = ChatServer(tmp_path, names_that_hang(tmp_path))
    began = time.monotonic()
    ended = await server.command("healthcheck", "--url", "http://chat.example")
    assert time.monotonic() - began < MOST
    assert (ended.returncode, ended.stderr) == (1, "")
    sentence = "fail: The name in http://chat.example is not found in time"
    assert lines(ended.stdout)["http"].startswith(sentence)


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


# --- Something else, or only half of it


def without_key(folder: Path, port: int) -> ChatServer:
    """What a check has at hand that runs elsewhere: nothing but the address."""
    return ChatServer(folder, {"CHAT_SECRET_KEY": None}, port=port)


@pytest.mark.parametrize(
    ("path", "page", "line", "sentence"),
    [
        ("/healthz", "", "http", "It answers 404 for /healthz: is that Tertulia?"),
        ("/healthz", "hello", "http", "Something answers, but not as Tertulia does"),
        ("/readyz", "hello", "http", "/healthz answers, but /readyz not as Tertulia's does."),
        ("/readyz", '{"checks":{}}', "http", "/healthz answers, but /readyz not as Tertulia's"),
        (
            "/readyz",
            WELL["/readyz"].replace('"failed":[]', '"failed":["ticker","writer"]'),
            "http",
            "It answers, but its tasks died or hang (ticker, writer): look for ERROR lines",
        ),
        (
            "/readyz",
            WELL["/readyz"].replace('"ok"', '"unavailable","reason":"is its disk full?"', 1),
            "database",
            "The chat says of it: is its disk full?",
        ),
    ],
)
async def test_pages_that_are_not_those_of_a_chat_that_is_well(
    path: str, page: str, line: str, sentence: str, check: Check, tmp_path: Path
) -> None:
    async with pretender(WELL | {path: page}) as port:
        code, said = await check(without_key(tmp_path, port))
    assert code == 1
    assert said[line].startswith(f"fail: {sentence}")


async def test_a_worker_that_does_not_say_how_it_is_fails_though_another_one_answers(
    server: ChatServer, check: Check
) -> None:
    async with proxy(server, lambda head: None if b" /readyz " in head else head) as url:
        code, said = await check(server, "--url", url)
    assert (code, words(said)) == (1, ALL_OK | {"http": "fail", "relay": "fail"})
    assert said["http"] == (
        "fail: /healthz answers, /readyz does not within 3 s: does one of several workers hang?"
    )
    assert said["relay"].endswith("see the line http.")


# --- Under a path


async def test_a_chat_under_a_path_is_asked_there_also_through_a_proxy_of_that_path_only(
    chat_server: ChatServerFactory, check: Check, tmp_path: Path
) -> None:
    text = (ROOT / "hypercorn.toml").read_text(encoding="utf-8")
    (tmp_path / "hypercorn.toml").write_text(f'root_path = "/talk"\n{text}', encoding="utf-8")
    server = await chat_server()

    def only_talk(head: bytes) -> bytes:
        return head if head.startswith(b"GET /talk/") else answer(404)

    async with proxy(server, only_talk) as url:
        at_path = ("--url", f"{server.url}/talk", "--proxy-url")
        code, said = await check(server, *at_path, f"{url}/talk/")
        assert (code, words(said)) == (0, ALL_OK | {"proxy http": "ok", "proxy websocket": "ok"})
        for line in ("websocket", "proxy websocket"):
            assert "a message went round" in said[line]
        code, said = await check(server, *at_path, url)
    # The node itself answers without it, too.
    assert (await check(server))[0] == 0
    both = {"proxy http": "fail", "proxy websocket": "fail"}
    assert (code, words(said)) == (1, ALL_OK | both)
    assert "The proxy answers 404 for /healthz" in said["proxy http"]
    assert said["proxy websocket"].endswith("handshake: does it pass this path on?")


async def test_a_path_that_the_chat_is_not_served_under_is_no_chat(
    server: ChatServer, check: Check
) -> None:
    code, said = await check(server, "--url", f"{server.url}/talk")
    assert code == 1
    assert said["http"].startswith("fail: It answers 404 for /talk/healthz: is that Tertulia?")
    assert said["websocket"].startswith("fail: It answers HTTP 403 to a WebSocket handshake")


# --- Through a proxy


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


async def test_a_proxy_that_does_not_reach_the_chat_is_told_from_one_that_hangs(
    server: ChatServer, check: Check
) -> None:
    async with proxy(server, lambda head: answer(502)) as url:
        code, said = await check(server, "--proxy-url", url)
    both = {"proxy http": "fail", "proxy websocket": "fail"}
    assert (code, words(said)) == (1, ALL_OK | both)
    for line in both:
        assert said[line].startswith("fail: The proxy answers 502: it does not reach the chat.")
    async with proxy(server, lambda head: None) as url:
        code, said = await check(server, "--proxy-url", url)
    assert (code, words(said)) == (1, ALL_OK | both)
    assert said["proxy http"].startswith("fail: The proxy takes the connection and does not")
    assert "see the lines proxy http and database" in said["proxy websocket"]


async def test_a_proxy_that_sends_on_to_another_address_is_told_by_that_one(
    server: ChatServer, check: Check
) -> None:
    def send_on(head: bytes) -> bytes:
        path = head.split()[1].decode()
        return answer(308, Location=f"https://chat.example.org{path}")

    async with proxy(server, send_on) as url:
        code, said = await check(server, "--proxy-url", url)
    assert code == 1
    for line in ("proxy http", "proxy websocket"):
        assert said[line] == (
            "fail: The proxy sends on to https://chat.example.org: give that address."
        )


async def test_a_certificate_that_nobody_knows_is_taken_once_its_signer_is_named(
    server: ChatServer, check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    async with tls_proxy(server.port, tmp_path) as front:
        url = f"https://127.0.0.1:{front.port}"
        code, said = await check(server, "--proxy-url", url)
        assert code == 1
        for line in ("proxy http", "proxy websocket"):
            assert said[line].startswith("fail: The proxy cannot be trusted: ")
            assert "SSL_CERT_FILE may name the file" in said[line]
        monkeypatch.setenv("SSL_CERT_FILE", str(front.authority))
        code, said = await check(server, "--proxy-url", url)
    assert (code, words(said)) == (0, ALL_OK | {"proxy http": "ok", "proxy websocket": "ok"})
    assert "a message went round" in said["proxy websocket"]
