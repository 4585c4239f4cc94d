"""`bench`, as operators type it, against a server that runs."""

from __future__ import annotations

import asyncio

import pytest

from chat.commands.bench import Impossible, measure
from chat.settings import Settings
from tests.conftest import ChatServerFactory
from tests.people import NO_LIMITS, execute, until
from tests.servers import ChatServer, free_port

pytest_plugins = ["tests.houses"]


async def test_each_size_is_a_line_and_nothing_is_missing(server: ChatServer) -> None:
    said = await server.says(
        *("bench", "--url", server.url, "--members", "1,12", "--rate", "40", "--seconds", "0.5")
    )
    head, *lines = said.splitlines()
    assert head.split()[0] == "members"
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows] == ["1", "12"]
    for members, _, sent, refused, deliveries, p50, p99, missing in rows:
        assert (sent, refused, missing) == ("20", "0", "0")
        assert float(deliveries) > 0 and 0 < float(p50) <= float(p99)
        [[stored]] = execute(
            server,
            "SELECT max(last_seq) FROM rooms WHERE name LIKE 'bench-%' AND id IN"
            " (SELECT room_id FROM members GROUP BY room_id HAVING count(*) = ?)",
            min(int(members), 8),  # users: forty messages per second, five of each
        )
        assert stored == 20


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--members", "0"], "--members, --rate and --seconds take numbers above 0."),
        (["--rate", "0"], "--members, --rate and --seconds take numbers above 0."),
        (["--url", "ftp://127.0.0.1"], "ftp://127.0.0.1 is no address such as"),
    ],
)
async def test_what_cannot_be_measured_is_a_sentence(
    server: ChatServer, arguments: list[str], sentence: str
) -> None:
    ended = await server.command("bench", *arguments)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0].startswith(sentence)


async def test_where_nobody_gets_in_it_says_so(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process: the limit is shortened.
    monkeypatch.setattr("chat.commands.bench.ENTER_LIMIT", 0.5)
    for name, value in server.environment.items():
        if name.startswith("CHAT_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(server.folder)
    settings = Settings.load({k: v for k, v in server.environment.items() if k[:5] == "CHAT_"})
    with pytest.raises(Impossible, match=r"Not all of 2 members .*: nobody listens there\."):
        await measure(settings, f"http://127.0.0.1:{free_port()}", 2, 10, 0.1)


async def test_where_no_chat_runs_it_says_so_at_once(server: ChatServer) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ended = await server.command("bench", "--url", url)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"Nobody listens at {url}: does the chat run")


async def test_a_chat_that_dies_meanwhile_ends_it(
    chat_server: ChatServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.commands.bench.ARRIVE_LIMIT", 0.5)
    server = await chat_server(**NO_LIMITS)
    monkeypatch.chdir(server.folder)
    for name, value in server.environment.items():
        if name.startswith("CHAT_"):
            monkeypatch.setenv(name, value)
    settings = Settings.load({k: v for k, v in server.environment.items() if k[:5] == "CHAT_"})
    measuring = asyncio.create_task(measure(settings, server.url, 2, 10, 1))
    await until(lambda: execute(server, "SELECT count(*) FROM messages") > [(0,)])
    await server.kill()
    found = await measuring
    assert 0 < found.sent < 10 and found.sent + found.refused == 10
