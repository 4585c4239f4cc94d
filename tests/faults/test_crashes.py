"""Processes that are killed, without a word: a node, a worker, all that there is at once.

What comes up again finds all that was acked, each message once, under the seq that the ack said.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.faults.checker import Run, running
from tests.faults.client import ABNORMAL, RESTART, Talker
from tests.faults.house import DRAIN_PROMISE, House, alive, house
from tests.people import until
from tests.servers import START_LIMIT, PostgresServer, RedisServer

# Seconds for one test; all of it but a crash and a start is waiting for what must come.
LIMIT = 90
# Crashes in a row, where a start is cheap.
CRASHES = 3


def seated(run: Run, worker: psutil.Process) -> set[Talker]:
    """Whose sockets this process holds: the kernel chose."""
    ports = {link.raddr.port for link in worker.net_connections("tcp") if link.raddr}
    return {talker for talker in run.talkers if talker.port in ports}


async def crash(opened: House, run: Run, name: str) -> None:
    """Kill all that runs, in the middle of things, and start it again."""
    async with run.row(name):
        await run.burst()
        await opened.crash()
        await opened.rise()


def is_clean(run: Run) -> None:
    print(run.report.table)
    assert not run.report.findings, f"\n{run.report.table}"
    assert run.report.total.acked == run.report.said > 0


@pytest.mark.timeout(LIMIT)
async def test_a_parent_that_is_killed_takes_its_workers_along_and_loses_nothing(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    async with (
        house(breakable_redis, breakable_postgres, tmp_path, workers=(4, 1)) as opened,
        running(opened, 1, moving=False) as run,
        run.row("node a: kill the parent") as row,
    ):
        node = opened.nodes[0]
        crew = node.crew
        sitting = set().union(*[seated(run, worker) for worker in crew])
        assert len(crew) == 4 and sitting
        await run.burst()
        os.kill(node.pid, signal.SIGKILL)
        try:
            await until(lambda: not alive(crew), DRAIN_PROMISE)
        finally:
            for orphan in alive(crew):
                orphan.kill()
        assert await node.wait() == -signal.SIGKILL
        await node.start()
        assert node.crew.isdisjoint(crew)
    is_clean(run)
    # The orphans said good-bye to theirs before they ended.
    assert set(run.closes(row)) == {(one.name, RESTART) for one in sitting}


@pytest.mark.timeout(LIMIT)
async def test_a_worker_that_is_killed_is_replaced_and_costs_nobody_else_the_socket(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    async with (
        house(breakable_redis, breakable_postgres, tmp_path, workers=(4, 1)) as opened,
        running(opened, 1, moving=False) as run,
        run.row("node a: kill a worker") as row,
    ):
        node = opened.nodes[0]
        before = node.crew
        victim = max(before, key=lambda worker: len(seated(run, worker)))
        sitting = seated(run, victim)
        assert len(before) == 4 and sitting
        await run.burst()
        victim.kill()
        await until(lambda: len(node.crew - {victim}) == 4, START_LIMIT)
        assert len(node.crew - before) == 1, "one new pid, and the others as before"
    is_clean(run)
    assert set(run.closes(row)) == {(one.name, ABNORMAL) for one in sitting}


@pytest.mark.timeout(LIMIT)
async def test_nothing_is_lost_or_repeated_where_a_whole_machine_dies_at_once(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    async with (
        house(breakable_redis, breakable_postgres, tmp_path, workers=(2, 2)) as opened,
        running(opened, 1) as run,
    ):
        await crash(opened, run, "everything: kill")
    is_clean(run)
    assert [run.codes(row) for row in run.report.rows] == [{ABNORMAL}]


@pytest.mark.timeout(LIMIT)
async def test_one_node_without_any_setting_loses_nothing_by_crashes_amid_traffic(
    tmp_path: Path,
) -> None:
    async with house(None, None, tmp_path, workers=(1,)) as opened, running(opened, 1) as run:
        for number in range(CRASHES):
            await crash(opened, run, f"SQLite, crash {number + 1}")
    is_clean(run)
    assert [run.codes(row) for row in run.report.rows] == [{ABNORMAL}] * CRASHES
