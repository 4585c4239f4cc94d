"""The curves: how the chat does as a room grows, and as connections do. `plots.py` draws them.

Each point is measured as the figure of its kind (`figures.py`), on a process that did nothing else
before where memory is concerned.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from bench.figures import CALM_RATE, WARM_CONNECTIONS, Rate, connect, gather, rate, settled
from bench.search import search
from bench.servers import Server
from bench.step import Step, speak

# Members of the one room, and the rate to begin with for each: below what holds.
SIZES = {10: 2_000.0, 50: 1_000.0, 200: 500.0, 1_000: 100.0}
CALM_SECONDS = 5.0
# Open sockets at a time, twenty in each room.
CONNECTIONS = (250, 500, 1_000, 2_000)
TABLE = 20


@dataclass(frozen=True)
class Room:
    """How a room of so many members does."""

    members: int
    most: Rate  # the highest rate that holds
    p50: float  # seconds, at CALM_RATE messages a second
    p99: float


@dataclass(frozen=True)
class Memory:
    """What open sockets take, in KiB of proportional set size; None where it is not ours."""

    connections: int
    kib: int | None


async def rooms(server: Server, report: Callable[[Step], None]) -> list[Room]:
    found = []
    for members, first in SIZES.items():

        async def crowd(members: int = members) -> object:
            return await gather(server, 1, members)

        calm = await gather(server, 1, members)
        step = await speak(calm, CALM_RATE, CALM_SECONDS)
        report(step)
        await calm.close()
        most = rate(await search(crowd, first, report))  # type: ignore[arg-type]
        found.append(Room(members, most, step.p50, step.p99))
    return found


async def memory(start: Callable[[], AbstractAsyncContextManager[Server]]) -> list[Memory]:
    async with start() as server:
        warm = await gather(server, WARM_CONNECTIONS // 10, 10)
        await warm.close()
        before, found, crowds, total = await settled(server), [], [], 0
        for connections in CONNECTIONS:
            crowds.append(await connect(server, (connections - total) // TABLE, TABLE))
            total = connections
            after = await settled(server)
            grown = None if before is None or after is None else after - before
            found.append(Memory(connections, grown))
        for crowd in crowds:
            await crowd.close()
    return found
