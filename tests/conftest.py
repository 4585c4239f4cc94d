"""Fixtures for all tests, and the rule that no test is passed over in silence.

Storage tests take `database_url` and run on SQLite and PostgreSQL; relay tests take `relay_url`
and run on memory and Redis. `CHAT_TEST_DATABASE_URL` and `CHAT_TEST_REDIS_URL` put servers of
one's own in the place of those from servers.py.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import ChatServer, ForeignPostgres, PostgresServer, RedisServer

# Runs pytest on made-up tests, for test_servers.py.
pytest_plugins = ["pytester"]

ChatServerFactory = Callable[..., Awaitable[ChatServer]]

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")

# What a developer has set must not change what a test sees.
for _name in [name for name in os.environ if name.startswith("CHAT_")]:
    if not _name.startswith("CHAT_TEST_"):
        del os.environ[_name]

# The property of a report that says why this machine cannot run the test. Reports travel from the
# processes that run tests to the one that prints the summary.
UNAVAILABLE = "unavailable"


class Unavailable(pytest.skip.Exception):
    """A test needs something that cannot be had on this machine."""


def unavailable(reason: str) -> Unavailable:
    """Return what a fixture raises where the machine lacks something that it needs.

    The test is named with the reason at the end of the run; where CI is set, it fails.
    """
    return Unavailable(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, Unavailable):
        report.user_properties.append((UNAVAILABLE, str(error)))
        if IN_CI:
            report.outcome = "failed"
            report.longrepr = f"cannot run here, and CI is set: {error}"
    elif report.skipped:
        report.outcome = "failed"
        report.longrepr = f"tests are never skipped or expected to fail here: {error}"
    return report  # type: ignore[return-value]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report: pytest.CollectReport = yield  # type: ignore[assignment]
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"tests are never skipped: {report.longrepr}"
    return report  # type: ignore[return-value]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = {
        report.nodeid: reason
        for outcome in ("skipped", "failed", "error")
        for report in terminalreporter.stats.get(outcome, [])
        for name, reason in getattr(report, "user_properties", [])
        if name == UNAVAILABLE
    }
    if missing:
        verdict = "failed, as CI is set" if IN_CI else "not run"
        terminalreporter.section(f"this machine cannot run ({verdict})", yellow=True)
        for name, reason in missing.items():
            terminalreporter.line(f"{name}: {reason}")


@pytest.fixture(scope="session")
def _redis() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """A Redis, empty where it is our own. It is shared: do not stop it (`own_redis`)."""
    if url := os.environ.get("CHAT_TEST_REDIS_URL"):
        return url
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


@pytest.fixture
def redis_server(_redis: RedisServer) -> RedisServer:
    """The Redis that all tests share, emptied."""
    _redis.flush()
    return _redis


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A started Redis that the test may stop, freeze and restart."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[ForeignPostgres]:
    """The PostgreSQL that all tests share; take `postgres_url` for a database on it."""
    if url := os.environ.get("CHAT_TEST_DATABASE_URL"):
        yield ForeignPostgres(url)
        return
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A started PostgreSQL that the test may stop, freeze and restart."""
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def postgres_url(postgres_server: ForeignPostgres) -> Iterator[str]:
    """An empty database on PostgreSQL."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A database file that is not there yet."""
    return f"sqlite:///{tmp_path}/chat.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database, on each backend in turn."""
    url: str = request.getfixturevalue(
        {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    )
    return url


@pytest.fixture(params=["memory", "redis"])
def relay_url(request: pytest.FixtureRequest) -> str:
    """A relay, of each kind in turn."""
    if request.param == "memory":
        return "memory://"
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture
def chat_server(request: pytest.FixtureRequest, tmp_path: Path) -> ChatServerFactory:
    """Start the program: `server = await chat_server(CHAT_SEND_RATE="off", workers=2)`.

    All servers of a test share a folder, so that a second one finds the first one's data. At the
    end those that still run are stopped, and must end well and without a stack trace.
    """
    servers: list[ChatServer] = []

    async def start(*, workers: int = 1, port: int = 0, **settings: str | None) -> ChatServer:
        if not servers:
            # By the running test, not by this fixture: so it comes before the end of each fixture,
            # and no server outlives its database.
            request.node.addfinalizer(functools.partial(_end, servers))
        server = ChatServer(tmp_path, settings, workers=workers, port=port)
        servers.append(server)
        await server.start()
        return server

    return start


def _end(servers: list[ChatServer]) -> None:
    codes = [server.end() for server in servers]
    for server, code in zip(servers, codes, strict=True):
        assert code in (0, None), f"exit code {code}:\n{server.log}"
        if not server.traceback_expected:
            assert "Traceback (most recent call last)" not in server.log, server.log
