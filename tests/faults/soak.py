"""The checker for longer: `make soak MINUTES=30`, or `python -m tests.faults.soak --seed S`.

Node b takes every kind of fault; node a is never ended, so that what it takes of memory, files,
threads and tasks can be compared over the whole time. Exits with 1 where a message was lost or
repeated, where anything else was found, or where node a grew.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.checker import Report, Run, Step, running, schedule
from tests.faults.house import NODES, Fault, Footprint, House, house
from tests.servers import PostgresServer, RedisServer

MINUTE = 60.0  # seconds
# Share of the time after which the first footprint is taken: tails, pools and caches are full.
WARM = 0.2
# Steps made at a time; each kind of fault comes once before any comes again.
DEALT = 32
# Seconds of the longest fault: beyond what a statement may take, and a heartbeat, and a client.
LONGEST = 8.0
# What node a may grow by, beyond its first footprint. Memory is not given back to the system piece
# by piece; a leak of one connection or task in each fault would be above it within minutes.
MAX_MEGABYTES = 12.0
MAX_FILES = 12
MAX_THREADS = 4
# A socket takes a handful of tasks, and talkers walk from node to node.
MAX_TASKS = 60

# Ways to break node a that it survives.
GENTLE = ("freeze", "cut", "doze")


def endless(seed: int, until: float) -> Iterator[Step]:
    """Make steps until this time (monotonic); node a is never ended."""
    for number in itertools.count():
        for step in schedule(seed + number, DEALT, longest=LONGEST):
            if time.monotonic() > until:
                return
            # One fault for each part: what would end node a happens to node b.
            yield tuple({fault.part: fault for fault in map(_spared, step)}.values())


def _spared(fault: Fault) -> Fault:
    if fault.part == NODES[0] and fault.way not in GENTLE:
        return Fault(NODES[1], fault.way, fault.seconds)
    return fault


class Watch:
    """Prints a line a minute, and keeps the footprints."""

    def __init__(self, opened: House, seconds: float) -> None:
        self.began = time.monotonic()
        self.opened = opened
        self.seconds = seconds
        # Of node a: when it was warm, and the newest.
        self.first: Footprint | None = None
        self.last: Footprint | None = None
        self._steps = 0
        self._minute = 0

    async def look(self, run: Run) -> None:
        """After each step: all is well, so that footprints can be compared."""
        self._steps += 1
        passed, book = time.monotonic() - self.began, run.book
        self.last = await self.opened.footprint(self.opened.nodes[0])
        if self.first is None and passed >= self.seconds * WARM:
            self.first = self.last
        if passed < (self._minute + 1) * MINUTE:
            return
        self._minute = int(passed / MINUTE)
        acked = sum(one.acked is not None for one in book.said.values())
        other = await self.opened.footprint(self.opened.nodes[1])
        print(
            f"minute {self._minute}: {self._steps} steps, {acked} messages acked,"
            f" {len(book.findings) + book.more} findings; node a {self.last}; node b {other}",
            flush=True,
        )
        for finding in book.findings:
            print(f"  {finding}", flush=True)

    @property
    def grew(self) -> str:
        """What grew too much, in words; empty where nothing did."""
        if self.first is None or self.last is None:
            return "too short to tell"
        first, last = self.first, self.last
        assert first.tasks is not None and last.tasks is not None, "they are counted"
        grown = (
            ("memory", last.megabytes - first.megabytes, MAX_MEGABYTES),
            ("open files", last.files - first.files, MAX_FILES),
            ("threads", last.threads - first.threads, MAX_THREADS),
            ("tasks", last.tasks - first.tasks, MAX_TASKS),
        )
        return ", ".join(f"{name} by {by:.1f}" for name, by, limit in grown if by > limit)


async def soak(minutes: float, seed: int) -> int:
    """Run for so long; print what happened, and return the exit code."""
    print(f"soaking for {minutes:g} minutes, seed {seed}", flush=True)
    redis, postgres = RedisServer(), PostgresServer()
    try:
        redis.start()
        postgres.start()
        with tempfile.TemporaryDirectory(prefix="tertulia-soak-") as folder:
            async with house(redis, postgres, Path(folder), workers=(1, 2), counted=True) as opened:
                watch = Watch(opened, minutes * MINUTE)
                print(f"start: node a {await opened.footprint(opened.nodes[0])}", flush=True)
                async with running(opened, seed) as run:
                    for step in endless(seed, time.monotonic() + minutes * MINUTE):
                        await run.step(step)
                        await watch.look(run)
    finally:
        redis.remove()
        postgres.remove()
    return _verdict(run.report, watch)


def _verdict(report: Report, watch: Watch) -> int:
    print(report.table)
    print(f"{len(report.rows)} steps, {report.said} messages, {len(report.findings)} findings")
    print(f"node a, warm:       {watch.first}\nnode a, at the end: {watch.last}")
    grew = watch.grew
    print(f"GREW: {grew}" if grew else "nothing grew")
    print("FOUND FAULTS" if report.findings else "nothing lost, nothing repeated, nothing found")
    return 1 if report.findings or grew else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    return asyncio.run(soak(options.minutes, seed))


if __name__ == "__main__":
    sys.exit(main())
