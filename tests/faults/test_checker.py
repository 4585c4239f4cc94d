"""Promises while things break: short schedules with known seeds, and one with a new seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.checker import Step, check, schedule
from tests.faults.house import NODES, house
from tests.servers import PostgresServer, RedisServer

# Seconds for one schedule: its faults, the recoveries from them and the start of two nodes.
LIMIT = 120


async def run(
    redis: RedisServer,
    postgres: PostgresServer,
    folder: Path,
    seed: int,
    steps: Sequence[Step],
    workers: Sequence[int] = (1, 2),
) -> None:
    print(f"seed {seed}:", *[" and ".join(map(str, step)) for step in steps], sep="\n  ")
    async with house(redis, postgres, folder, workers=workers) as opened:
        report = await check(opened, steps, seed)
    print(report.table)
    assert report.said > 0
    assert not report.findings, f"\n{report.table}"


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize(
    ("seed", "parts"),
    [(1, NODES), (2, ("redis",)), (3, ("postgres",))],
    ids=["nodes", "redis", "postgres"],
)
async def test_nothing_is_lost_or_repeated_while_one_part_breaks(
    breakable_redis: RedisServer,
    breakable_postgres: PostgresServer,
    tmp_path: Path,
    seed: int,
    parts: Sequence[str],
) -> None:
    steps = schedule(seed, 4, parts, pairs=0)
    await run(breakable_redis, breakable_postgres, tmp_path, seed, steps)


@pytest.mark.timeout(LIMIT)
async def test_nothing_is_lost_or_repeated_while_two_parts_break(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    steps = schedule(4, 4, pairs=1)
    await run(breakable_redis, breakable_postgres, tmp_path, 4, steps)


@pytest.mark.timeout(LIMIT)
async def test_nothing_is_lost_or_repeated_by_a_schedule_nobody_has_seen(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    # The seed is printed where the test fails: `schedule(seed, 3)` makes the same faults again.
    seed = random.SystemRandom().randrange(10**6)
    await run(breakable_redis, breakable_postgres, tmp_path, seed, schedule(seed, 3))
