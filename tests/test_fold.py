"""Folding: the first ring acts at once, the others once at the end of the interval."""

from __future__ import annotations

import asyncio
import time

import pytest

from chat.live.fold import Fold
from tests.relays import until

LONG = 3_600.0  # seconds: what waits for its end is never run in a test
SHORT = 0.03


async def turns() -> None:
    """Let the loop do all that is due now."""
    for _ in range(3):
        await asyncio.sleep(0)


class Acts:
    """When the fold acted (loop time)."""

    def __init__(self, interval: float) -> None:
        self.at: list[float] = []
        self.fold = Fold(interval, lambda: self.at.append(asyncio.get_running_loop().time()))


async def test_the_first_ring_acts_at_once_but_not_within_the_call() -> None:
    acts = Acts(LONG)
    acts.fold.ring()
    assert acts.at == []
    await turns()
    assert len(acts.at) == 1


async def test_rings_before_the_act_are_one() -> None:
    acts = Acts(LONG)
    for _ in range(5):
        acts.fold.ring()
    await turns()
    assert len(acts.at) == 1


async def test_a_ring_within_the_interval_waits_for_its_end() -> None:
    acts = Acts(LONG)
    acts.fold.ring()
    await turns()
    acts.fold.ring()
    await turns()
    assert len(acts.at) == 1


async def test_rings_within_an_interval_act_once_at_its_end() -> None:
    acts = Acts(SHORT)
    acts.fold.ring()
    await turns()
    for _ in range(5):
        acts.fold.ring()
    await until(lambda: len(acts.at) > 1)
    assert acts.at[1] - acts.at[0] >= SHORT - time.get_clock_info("monotonic").resolution
    await turns()
    assert len(acts.at) == 2


async def test_a_ring_after_the_interval_acts_at_once_again() -> None:
    acts = Acts(SHORT)
    acts.fold.ring()
    await turns()
    end = asyncio.Event()
    asyncio.get_running_loop().call_at(acts.at[0] + SHORT * 2, end.set)
    await end.wait()
    acts.fold.ring()
    await turns()
    assert len(acts.at) == 2


@pytest.mark.parametrize(("interval", "expected"), [(LONG, 1), (SHORT, 3)])
async def test_a_ring_from_within_the_act_is_for_the_next_one(
    interval: float, expected: int
) -> None:
    runs: list[int] = []

    def act() -> None:
        runs.append(len(runs))
        if len(runs) < 3:
            fold.ring()

    fold = Fold(interval, act)
    fold.ring()
    await until(lambda: len(runs) == expected)
    await turns()
    assert len(runs) == expected


async def test_an_act_that_fails_does_not_end_the_folding() -> None:
    runs: list[int] = []

    def act() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise RuntimeError("this act fails")

    said: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(str(context["exception"])))
    fold = Fold(SHORT, act)
    fold.ring()
    await turns()
    assert said == ["this act fails"]
    fold.ring()
    await until(lambda: len(runs) == 2)


async def test_after_the_close_nothing_is_run_not_even_what_was_due() -> None:
    at_once, later = Acts(SHORT), Acts(SHORT)
    later.fold.ring()
    await turns()
    later.fold.ring()
    at_once.fold.ring()
    for acts in (at_once, later):
        acts.fold.close()
        acts.fold.ring()
    witness = Acts(SHORT * 2)
    witness.fold.ring()
    await turns()
    witness.fold.ring()
    await until(lambda: len(witness.at) == 2)
    assert (len(at_once.at), len(later.at)) == (0, 1)
