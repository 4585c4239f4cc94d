"""Promises while things break: short schedules with known seeds, and one with a new seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.checker import Step, check, schedule
from tests.faults.house import NODES, WAYS, house
from tests.servers import PostgresServer, RedisServer

# Seconds for one schedule: its faults, the recoveries from them and the start of two nodes.
LIMIT = 120
STEPS = 4

# Seeds, the parts that they break one at a time, and the workers of the nodes.
ALONE: list[tuple[int, Sequence[str], Sequence[int]]] = [
    (4018, NODES, (1, 4)),
    (134, ("redis",), (1, 2)),
    (143, ("postgres",), (1, 2)),
]
# A seed that breaks two at a time.
TOGETHER = 8026


async def run(
    redis: RedisServer,
    postgres: PostgresServer,
    folder: Path,
    seed: int,
    steps: Sequence[Step],
    workers: Sequence[int],
) -> None:
    print(f"seed {seed}:", *[" and ".join(map(str, step)) for step in steps], sep="\n  ")
    async with house(redis, postgres, folder, workers=workers) as opened:
        report = await check(opened, steps, seed)
    print(report.table)
    assert report.said > 0
    assert not report.findings, f"\n{report.table}"


def test_the_known_seeds_break_everything_in_every_way() -> None:
    alone = [schedule(seed, STEPS, parts, pairs=0) for seed, parts, _ in ALONE]
    together = schedule(TOGETHER, 3, pairs=1)
    faults = [fault for steps in [*alone, together] for step in steps for fault in step]
    done = {(fault.part.split(" ")[0], fault.way) for fault in faults}
    assert done == {(part, way) for part, ways in WAYS.items() for way in ways}
    assert all(len(step) == 2 for step in together)


def test_a_seed_replays_its_schedule() -> None:
    assert schedule(7, 20) == schedule(7, 20)
    assert schedule(7, 20) != schedule(8, 20)


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize(("seed", "parts", "workers"), ALONE, ids=["nodes", "redis", "postgres"])
async def test_nothing_is_lost_or_repeated_while_one_part_breaks(
    breakable_redis: RedisServer,
    breakable_postgres: PostgresServer,
    tmp_path: Path,
    seed: int,
    parts: Sequence[str],
    workers: Sequence[int],
) -> None:
    steps = schedule(seed, STEPS, parts, pairs=0)
    await run(breakable_redis, breakable_postgres, tmp_path, seed, steps, workers)


@pytest.mark.timeout(LIMIT)
async def test_nothing_is_lost_or_repeated_while_two_parts_break(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    steps = schedule(TOGETHER, 3, pairs=1)
    await run(breakable_redis, breakable_postgres, tmp_path, TOGETHER, steps, (1, 2))


@pytest.mark.timeout(LIMIT)
async def test_nothing_is_lost_or_repeated_by_a_schedule_nobody_has_seen(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    # The seed is printed where the test fails: `schedule(seed, 2)` makes the same faults again.
    seed = random.SystemRandom().randrange(10**6)
    await run(breakable_redis, breakable_postgres, tmp_path, seed, schedule(seed, 2), (2, 1))
