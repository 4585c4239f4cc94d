"""One step: a crowd speaks at one rate for some seconds, and everything is waited for.

Open loop: message n is due at start + n / rate, whatever the server does meanwhile. Latency
counts from that moment, also where this process itself was late to send, so that a stall shows
in every message that was due during it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from time import perf_counter

from bench.load import Crowd, until

# Latencies kept per second: enough for a p99, few enough not to slow the load.
SAMPLES_PER_SECOND = 20_000
# Seconds that what was sent may take to arrive after the last message was due.
DRAIN_TIMEOUT = 10.0
# Seconds without any arrival after which what is missing counts as lost, not as late.
QUIET = 5.0
# Seconds between two looks at the schedule at high rates: a shorter pause would burn the core
# that PostgreSQL and Redis share with the load.
TICK = 0.001
# Messages per second up to which each message gets its exact moment. The event loop's timers
# have whole milliseconds, so the last of them is spent turning the loop.
EXACT_UP_TO = 200.0


@dataclass(frozen=True)
class Step:
    """What a crowd saw while it spoke at one rate."""

    rate: float
    seconds: float
    sent: int
    delivered: int
    acked: int
    # Deliveries per second, from the first due moment to the last arrival.
    deliveries: float
    p50: float
    p99: float
    # Seconds of latency gained per second of the step's second half: above zero, a queue grows.
    growth: float
    # 99th percentile of how late the load itself was to send.
    behind: float
    # Share of a core that the server used: near 1, it is the server that ends the rise.
    busy: float
    complete: bool
    # Deliveries that never came, though nothing was refused or under way any more.
    lost: int
    # Frames with entries out of order, missing in between, or seen before.
    faults: int
    refused: int
    errors: tuple[str, ...]
    gone: int


async def speak(crowd: Crowd, rate: float, seconds: float) -> Step:
    """Let the members speak in turn, `rate` messages a second, and wait until all is heard."""
    members, turns = crowd.members, len(crowd.members)
    count = max(1, round(rate * seconds))
    every = max(1, int(rate * crowd.size / SAMPLES_PER_SECOND))
    # With a common divisor, always the same few members or rooms would be sampled.
    while gcd(every, turns) > 1:
        every += 1
    crowd.latencies, crowd.dues = [], []
    crowd.faults = crowd.refused = crowd.acked = 0
    crowd.errors = []
    delivered, cpu = crowd.delivered, crowd.cpu()
    late = []
    crowd.rate, crowd.base = rate, crowd.number
    # A moment ahead, so that the first message is not late already.
    crowd.start = perf_counter() + 0.05
    end = crowd.base + count
    while crowd.number < end:
        now = perf_counter()
        ready = min(
            end, crowd.base + int((now - crowd.start) * rate) + 1 if now >= crowd.start else 0
        )
        if crowd.number < ready:
            late.append(now - crowd.due(crowd.number))
        while crowd.number < ready:
            n = crowd.number
            members[n % turns].say(n, n % every == 0)
            crowd.number += 1
        if rate > EXACT_UP_TO:
            await asyncio.sleep(TICK)
        else:
            left = crowd.due(crowd.number) - perf_counter()
            await asyncio.sleep(left - 2 * TICK if left > 2 * TICK else 0)
    expected = crowd.expected
    await until(
        lambda: crowd.delivered >= expected or crowd.gone > 0,
        crowd.due(end) + DRAIN_TIMEOUT - perf_counter(),
    )
    cpu_after = crowd.cpu()
    quiet = perf_counter() - crowd.last_arrival > QUIET
    lost = max(0, expected - crowd.refused * crowd.size - crowd.delivered) if quiet else 0
    # One more turn for a copy too many, and for the last acks.
    await asyncio.sleep(50 * TICK)
    whole = all(member.count == member.room.sent for member in members)
    heard = crowd.delivered - delivered
    took = max(crowd.last_arrival - crowd.start, seconds)
    return Step(
        rate=rate,
        seconds=seconds,
        sent=count,
        delivered=heard,
        acked=crowd.acked,
        deliveries=heard / took,
        p50=percentile(crowd.latencies, 0.50),
        p99=percentile(crowd.latencies, 0.99),
        growth=growth(crowd, seconds),
        behind=percentile(late, 0.99),
        busy=(cpu_after - cpu) / took,
        complete=whole and crowd.delivered == expected,
        lost=lost,
        faults=crowd.faults,
        refused=crowd.refused,
        errors=tuple(crowd.errors),
        gone=crowd.gone,
    )


def growth(crowd: Crowd, seconds: float) -> float:
    """Compare the third and the last quarter of a step: seconds of latency gained per second."""
    quarters: tuple[list[float], list[float]] = ([], [])
    for due, latency in zip(crowd.dues, crowd.latencies, strict=True):
        quarter = int((due - crowd.start) / seconds * 4)
        if quarter >= 2:
            quarters[min(quarter, 3) - 2].append(latency)
    if not all(quarters):
        return 0.0
    third, last = (percentile(quarter, 0.5) for quarter in quarters)
    return (last - third) / (seconds / 4)


def percentile(values: Sequence[float], share: float) -> float:
    if not values:
        return float("inf")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
