"""Ends that were asked for: nodes that drain under traffic, whatever does not answer, and a
rolling restart. Everybody is told, with `closing` and 1012, and comes back to all that was said.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

from tests.faults.checker import running
from tests.faults.client import RESTART
from tests.faults.house import Fault, house
from tests.people import until
from tests.servers import PostgresServer, RedisServer

# Seconds for one test.
LIMIT = 90
# One worker without a parent, and four under one.
WORKERS = (1, 4)
# The signal that each node gets, and what is frozen meanwhile.
ENDS = [
    ((SIGTERM, SIGTERM), None),
    ((SIGINT, SIGINT), None),
    ((SIGTERM, SIGINT), "redis"),
    ((SIGINT, SIGTERM), "postgres"),
]


@pytest.mark.timeout(LIMIT)
async def test_a_signal_sends_everybody_home_in_time_whatever_is_said_and_does_not_answer(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    async with (
        house(breakable_redis, breakable_postgres, tmp_path, workers=WORKERS) as opened,
        running(opened, 1, moving=False) as run,
    ):
        everybody = {talker.name for talker in run.talkers}
        for signals, frozen in ENDS:
            name = "+".join(one.name for one in signals)
            async with run.row(f"{name}, {frozen} frozen" if frozen else name) as row:
                async with AsyncExitStack() as ice:
                    if frozen:
                        fault = Fault(frozen, "freeze", 0.0)
                        await ice.enter_async_context(opened.breaking(fault))
                    await run.burst(acked=frozen != "postgres")
                    assert all(talker.connected for talker in run.talkers)
                    # A late or a bad end is a finding, and so is 1012 without `closing`.
                    async with asyncio.TaskGroup() as ends:
                        for node, number in zip(opened.nodes, signals, strict=True):
                            ends.create_task(opened.ask_to_end(node, number))
                    await until(lambda row=row: {who for who, _ in run.closes(row)} == everybody)
                await asyncio.gather(*[node.come_back() for node in opened.nodes])
    print(run.report.table)
    assert not run.report.findings, f"\n{run.report.table}"
    assert [run.codes(row) for row in run.report.rows] == [{RESTART}] * len(ENDS)


@pytest.mark.timeout(LIMIT)
async def test_a_rolling_restart_ends_sockets_with_1012_alone_and_loses_nothing(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    async with (
        house(breakable_redis, breakable_postgres, tmp_path, workers=WORKERS) as opened,
        running(opened, 1) as run,
        run.row("rolling restart") as row,
    ):
        for node in opened.nodes:
            await run.burst()
            await opened.ask_to_end(node)
            await node.come_back()
    print(run.report.table)
    assert not run.report.findings, f"\n{run.report.table}"
    # A handshake may be refused meanwhile, and is tried again; an open socket has one good end.
    assert run.codes(row) == {RESTART}
