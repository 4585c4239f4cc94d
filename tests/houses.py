"""Fixtures: servers that many tests share, because a start costs more than a test.

A test module that wants one says `pytest_plugins = ["tests.houses"]`. Users and rooms of each test
have names of their own, so that tests never meet.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

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
