"""The figures, each measured the same way for whatever server is given.

Sizes and aims are those of the benchmark's task; `README.md` says them in words. `__main__.py`
calls these, `load.py` does the talking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from time import perf_counter

from bench.load import Crowd, gather_crowd, until
from bench.search import Found, search
from bench.servers import Server
from bench.step import Step, speak

# Members of the one room, and the rate to begin with: below any yardstick's.
HALL = 200
HALL_FIRST_RATE = 100.0
# Rooms and members of each.
ROOMS, TABLE = 100, 10
ROOMS_FIRST_RATE = 500.0
# Members of the calm room, messages a second in it, and seconds of talk.
CALM, CALM_RATE, CALM_SECONDS = 50, 20.0, 10.0
# Messages a second before the first figure of a room: code paths and pools get warm.
WARM_RATE, WARM_SECONDS = 20.0, 0.5
# Idle connections: this many rooms with this many members.
IDLE_ROOMS, IDLE_TABLE = 100, 20
# Connections made and closed before memory is counted: imports, pools and arenas.
WARM_CONNECTIONS = 100
# Seconds that a member may take to hear the first word after the silence.
WORD_TIMEOUT = 10.0
# Memory counts as settled when two looks, this many seconds apart, differ by less than this.
SETTLE_PAUSE, SETTLE_KIB, SETTLE_TIMEOUT = 0.5, 64, 15.0

# Every crowd gets rooms of its own: nothing of a step before it can be counted in it.
numbers = count()


@dataclass(frozen=True)
class Rate:
    """The highest rate that held: messages and deliveries per second, latencies in seconds."""

    accepted: float
    deliveries: float
    p50: float
    p99: float
    lost: int
    faults: int
    steps: tuple[dict[str, object], ...]


@dataclass(frozen=True)
class Calm:
    p50: float
    p99: float
    # 99th percentile of how late the load itself was: it is part of the latencies above.
    behind: float
    complete: bool
    lost: int
    faults: int


@dataclass(frozen=True)
class Idle:
    connections: int
    connects_per_second: float
    # KiB of proportional set size per connection; None where the server's process is not ours.
    kib_per_connection: float | None
    silence: float
    # Sockets still open after the silence, and those of them that heard the first word after it.
    open: int
    left: int


async def connect(server: Server, rooms: int, size: int) -> Crowd:
    crowd = next(numbers)
    names = [f"b{crowd}.{room}" for room in range(rooms)]
    return await gather_crowd(server.url, server.member, server.cpu, names, size)


async def gather(server: Server, rooms: int, size: int) -> Crowd:
    """Connect a new crowd in new rooms and let it say a few words."""
    crowd = await connect(server, rooms, size)
    await speak(crowd, WARM_RATE, WARM_SECONDS)
    return crowd


async def one_room(server: Server, report: Callable[[Step], None]) -> Rate:
    """Deliveries per second into one room of 200."""
    return rate(await search(lambda: gather(server, 1, HALL), HALL_FIRST_RATE, report))


async def many_rooms(server: Server, report: Callable[[Step], None]) -> Rate:
    """Accepted messages per second over 100 rooms of 10."""
    return rate(await search(lambda: gather(server, ROOMS, TABLE), ROOMS_FIRST_RATE, report))


def rate(found: Found) -> Rate:
    steps = tuple(asdict(step) for step in found.steps)
    if found.best is None:
        return Rate(0.0, 0.0, float("inf"), float("inf"), found.lost, found.faults, steps)
    best = found.best
    return Rate(best.rate, best.deliveries, best.p50, best.p99, found.lost, found.faults, steps)


async def calm_room(server: Server, report: Callable[[Step], None]) -> Calm:
    """Latency at 20 messages a second into a room of 50."""
    crowd = await gather(server, 1, CALM)
    step = await speak(crowd, CALM_RATE, CALM_SECONDS)
    report(step)
    await crowd.close()
    return Calm(step.p50, step.p99, step.behind, step.complete, step.lost, step.faults)


async def idle_members(server: Server, silence: float, turn: asyncio.Lock) -> Idle:
    """Connects per second, memory per idle connection, and who is left after a silence.

    Holds `turn` while it measures the first two; silences of several servers may overlap.
    """
    async with turn:
        warm = await gather(server, WARM_CONNECTIONS // 10, 10)
        await warm.close()
        before = await settled(server)
        begin = perf_counter()
        crowd = await connect(server, IDLE_ROOMS, IDLE_TABLE)
        seconds = perf_counter() - begin
        after = await settled(server)
    connections = len(crowd.members)
    await asyncio.sleep(silence)
    still_open = sum(member.open for member in crowd.members)
    # An open socket may be deaf: one word in each room tells.
    for member in crowd.members[:IDLE_ROOMS]:
        if member.open:
            member.say(crowd.number, False)
        crowd.number += 1
    await until(lambda: heard(crowd) >= still_open, WORD_TIMEOUT)
    left = heard(crowd)
    await crowd.close()
    growth = None if before is None or after is None else (after - before) / connections
    return Idle(connections, connections / seconds, growth, silence, still_open, left)


def heard(crowd: Crowd) -> int:
    return sum(member.count == 1 for member in crowd.members)


async def settled(server: Server) -> int | None:
    """Wait until the server's memory stands still, and return it in KiB."""
    memory = server.memory()
    limit = perf_counter() + SETTLE_TIMEOUT
    while memory is not None and perf_counter() < limit:
        await asyncio.sleep(SETTLE_PAUSE)
        now = server.memory()
        if now is None or abs(now - memory) < SETTLE_KIB:
            return now
        memory = now
    return memory
