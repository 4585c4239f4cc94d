"""Fixtures: servers that many tests share, because a start costs more than a test; and `check`.

A test module that wants one says `pytest_plugins = ["tests.houses"]`. Users and rooms of each test
have names of their own, so that tests never meet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from chat.__main__ import main
from tests.checking import Check, lines
from tests.people import FRIEND, NO_LIMITS, running
from tests.servers import ChatServer, ForeignPostgres


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    """SQLite, no relay, no limits; FRIEND's origin is allowed."""
    settings = {**NO_LIMITS, "CHAT_ALLOWED_ORIGINS": FRIEND}
    async with running(tmp_path_factory.mktemp("server"), **settings) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def big_server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: ForeignPostgres,
) -> AsyncIterator[ChatServer]:
    """PostgreSQL and Redis, no limits."""
    relay = os.environ.get("CHAT_TEST_REDIS_URL") or request.getfixturevalue("_redis").url
    database = postgres_server.create_database()
    settings = {**NO_LIMITS, "CHAT_DATABASE_URL": database, "CHAT_RELAY_URL": relay}
    async with running(tmp_path_factory.mktemp("server"), **settings) as server:
        yield server
    postgres_server.drop_database(database)


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
