"""The ground that other tests stand on: real servers, and no test passed over in silence."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from tests.servers import ROOT, STOP_LIMIT, ChatServer, ForeignPostgres, PostgresServer, RedisServer

# Seconds after which a frozen server counts as silent.
SILENCE = 0.2

# A test run in which every way to pass a test over is tried.
LAZY_TESTS = """
import pytest
from tests.conftest import unavailable

@pytest.fixture
def browser():
    raise unavailable("no browser here")

def test_in_need(browser): ...
def test_done(): ...
def test_skipping(): pytest.skip("lazy")
@pytest.mark.skip
def test_skipped(): ...
@pytest.mark.xfail
def test_expected_to_fail(): assert False
"""


async def silent(question: asyncio.Future[object]) -> bool:
    done, _ = await asyncio.wait([question], timeout=SILENCE)
    return not done


async def test_each_postgres_database_is_empty_and_apart(postgres_server: ForeignPostgres) -> None:
    urls = [postgres_server.create_database() for _ in range(2)]
    for url in urls:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE message (seq bigint)")
        await connection.close()
        postgres_server.drop_database(url)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(urls[0])


async def test_a_frozen_postgres_is_silent_and_a_crashed_one_keeps_what_was_committed(
    own_postgres: PostgresServer,
) -> None:
    connection = await asyncpg.connect(own_postgres.url)
    await connection.execute("CREATE TABLE message AS SELECT 41 AS seq")
    own_postgres.freeze()
    answer = asyncio.ensure_future(connection.fetchval("SELECT seq FROM message"))
    assert await silent(answer)
    own_postgres.thaw()
    assert await answer == 41
    connection.terminate()
    own_postgres.kill()
    own_postgres.start()
    connection = await asyncpg.connect(own_postgres.url)
    assert await connection.fetchval("SELECT seq FROM message") == 41
    await connection.close()


async def test_a_frozen_redis_is_silent_and_a_restarted_one_is_empty(
    own_redis: RedisServer,
) -> None:
    async with Redis(port=own_redis.port) as redis:
        await redis.set("key", "value")
        own_redis.freeze()
        answer = asyncio.ensure_future(redis.get("key"))
        assert await silent(answer)
        own_redis.thaw()
        assert await answer == b"value"
        await redis.aclose()
        own_redis.restart()
        assert await redis.get("key") is None


async def test_a_program_that_does_not_start_is_an_error_with_its_log(
    tmp_path: Path,
) -> None:
    server = ChatServer(tmp_path, {"CHAT_SEND_RATE": "much"})
    with pytest.raises(RuntimeError, match="CHAT_SEND_RATE"):
        await server.start()
    assert await server.wait() == 2


def test_servers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    code = "from tests.servers import RedisServer as R; r = R(); r.start(); print(r.process.pid)"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", f"{code}; input()"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as run:
        assert run.stdout is not None
        server = psutil.Process(int(run.stdout.readline()))
        run.kill()
    server.wait(STOP_LIMIT)


@pytest.mark.parametrize("ci", ["", "1", "true"])
def test_no_test_is_passed_over_in_silence(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(LAZY_TESTS)
    result = pytester.runpytest_subprocess("-p", "tests.conftest", "-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 1
    assert outcomes["failed"] + outcomes["errors"] == (4 if ci else 3)
    assert outcomes.get("skipped", 0) == (0 if ci else 1)
    result.stdout.fnmatch_lines(["*this machine cannot run*", "*::test_in_need: no browser here"])
