"""`new-epoch`, on databases that were put back to an older state."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.conftest import ChatServerFactory
from tests.people import NO_LIMITS, site
from tests.servers import ChatServer


@dataclass
class House:
    """A server, and how its database is copied and put back while it is stopped."""

    server: ChatServer
    copy: Callable[[], Any]
    put_back: Callable[[], Any]


@pytest.fixture(params=["sqlite", "postgresql"])
async def house(
    request: pytest.FixtureRequest, chat_server: ChatServerFactory, tmp_path: Path
) -> House:
    if request.param == "sqlite":
        file, kept = tmp_path / "var" / "chat.db", tmp_path / "kept.db"

        async def copy() -> None:
            # The server is stopped, and so the file is whole.
            assert not file.with_name("chat.db-wal").exists()
            shutil.copy(file, kept)

        async def put_back() -> None:
            shutil.copy(kept, file)

        return House(await chat_server(**NO_LIMITS), copy, put_back)
    url: str = request.getfixturevalue("postgres_url")
    name = urlsplit(url).path[1:]
    admin = urlsplit(url)._replace(path="/postgres").geturl()

    async def run(*statements: str) -> None:
        connection = await asyncpg.connect(admin)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    async def copy() -> None:
        await run(f"CREATE DATABASE {name}_copy TEMPLATE {name}")

    async def put_back() -> None:
        await run(f"DROP DATABASE {name}", f"ALTER DATABASE {name}_copy RENAME TO {name}")

    return House(await chat_server(**NO_LIMITS, CHAT_DATABASE_URL=url), copy, put_back)


async def test_who_is_ahead_of_a_restored_database_starts_afresh(house: House) -> None:
    server = house.server
    maria = await site(server)
    async with maria.enter("lobby") as member:
        await member.say_all(["one", "two", "three"])
        epoch = member.welcome["epoch"]
        sentence = await server.fails("new-epoch")
        assert sentence.startswith("Somebody is connected to the database: stop all nodes first")
        await member.is_well()
    await server.stop()
    await house.copy()
    await server.start()
    async with maria.enter("lobby") as member:
        await member.say_all(["four, lost", "five, lost"])
        await member.send("read", seq=5)
        await member.is_well()
    await server.stop()
    await house.put_back()
    said = await server.says("new-epoch")
    assert said.startswith("Rooms with a new epoch: 1. Read markers taken back: ")
    await server.start()
    async with maria.enter("lobby") as member:
        assert member.welcome["epoch"] != epoch
        await member.say_all(["four", "five", "six"])
    # As many as it had: without the new epoch it would take `six` for what follows.
    async with maria.enter("lobby", f"?since=5&epoch={epoch}") as member:
        assert member.welcome["resumed"] is False
        await member.read_to(6)
        assert member.texts == ["one", "two", "three", "four", "five", "six"]
        # With a node that runs, for who wants it so.
        said = await server.says("new-epoch", "--anyway")
        assert said == "Rooms with a new epoch: 1. Read markers taken back: 0.\n"
        assert await member.end() == 1012
    [listed] = (await maria.ask("GET", "/api/rooms")).json["rooms"]
    assert listed["last_read_seq"] <= 3
