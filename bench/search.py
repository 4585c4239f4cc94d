"""The search for the highest rate that a server keeps up with.

Steps at rising rates: doubled while they hold, then halved in between. A step holds when every
member got every message once and in order, nothing was refused, the p99 is below a second, and
latency did not go on growing: a queue that grows is a rate that does not last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.load import Crowd
from bench.step import Step, speak

# Seconds of a step while doubling, and of one that may become the figure.
PROBE_SECONDS = 1.5
STEP_SECONDS = 4.0
# Steps between the last rate that held and the first that did not: 2 ** (1 / 16) is 4 percent.
REFINEMENTS = 4
# Seconds of p99 above which a chat is not one any more.
P99_LIMIT = 1.0
# Seconds of latency per second: what batches make it waver, and far from a server that is behind.
# A short step has short quarters, which waver more; at twice what a server can do it is 0.5.
GROWTH_LIMIT, PROBE_GROWTH_LIMIT = 0.05, 0.25
# Tries of a step, and the share of its core above which the server had its chance: then it is not
# tried again. Below it, something else took the core, or the load's core held the server up.
TRIES, BUSY = 2, 0.9
# Where even the rate that held while doubling does not last: so many steps down, 16 percent each.
STEPS_DOWN = 8
# Messages per second: where doubling ends, whatever happens.
RATE_LIMIT = 50_000.0


@dataclass(frozen=True)
class Found:
    # The best step that held, or None where even the first rate was too much.
    best: Step | None
    steps: tuple[Step, ...]

    @property
    def lost(self) -> int:
        """Deliveries that never came, over all steps: must be 0."""
        return sum(step.lost for step in self.steps)

    @property
    def faults(self) -> int:
        """Frames that did not fit what the member had, over all steps: must be 0."""
        return sum(step.faults for step in self.steps)


def holds(step: Step) -> bool:
    return (
        step.complete
        and not (step.faults or step.refused or step.gone)
        and step.p99 < P99_LIMIT
        and step.growth < (GROWTH_LIMIT if step.seconds >= STEP_SECONDS else PROBE_GROWTH_LIMIT)
    )


async def search(
    gather: Callable[[], Awaitable[Crowd]], first: float, report: Callable[[Step], None]
) -> Found:
    """Find the highest sustained rate in messages per second, beginning at `first`."""
    steps: list[Step] = []
    best: Step | None = None
    crowd = await gather()

    async def lasts(rate: float, seconds: float) -> bool:
        nonlocal crowd, best
        for _ in range(TRIES):
            step = await speak(crowd, rate, seconds)
            steps.append(step)
            report(step)
            if not step.complete or step.refused or step.gone:
                # What is still under way must not be counted in the next step.
                await crowd.close()
                crowd = await gather()
            if holds(step):
                # Short steps only point the way.
                if seconds >= STEP_SECONDS and (best is None or rate > best.rate):
                    best = step
                return True
            if step.busy > BUSY:
                break
        return False

    low, high = first / 8, first
    while high < RATE_LIMIT and await lasts(high, PROBE_SECONDS):
        low, high = high, high * 2
    for _ in range(REFINEMENTS):
        rate = (low * high) ** 0.5
        if await lasts(rate, STEP_SECONDS):
            low = rate
        else:
            high = rate
    for _ in range(STEPS_DOWN):
        if best is not None:
            break
        await lasts(low, STEP_SECONDS)
        low /= 2**0.25
    await crowd.close()
    return Found(best, tuple(steps))
