"""One flight for all who ask for the same."""

from __future__ import annotations

import asyncio
import gc

import pytest

from chat.errors import Unavailable
from chat.live.flights import Flights


class Source:
    """Answers when it is let, and counts who asked."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer = asyncio.Event()
        self.fault: Exception | None = None

    async def ask(self) -> int:
        self.calls += 1
        await self.answer.wait()
        if self.fault is not None:
            raise self.fault
        return self.calls


async def test_all_who_ask_meanwhile_get_one_answer() -> None:
    flights, source = Flights[str, int](), Source()
    asking = [asyncio.create_task(flights.join("lobby", source.ask)) for _ in range(50)]
    await asyncio.sleep(0)
    source.answer.set()
    assert await asyncio.gather(*asking) == [1] * 50
    assert flights.under_way == {}


async def test_who_asks_later_or_for_something_else_asks_anew() -> None:
    flights, source = Flights[str, int](), Source()
    source.answer.set()
    assert await flights.join("lobby", source.ask) == 1
    assert await flights.join("lobby", source.ask) == 2
    both = await asyncio.gather(flights.join("a", source.ask), flights.join("b", source.ask))
    assert sorted(both) == [3, 4] or both == [4, 4]
    assert source.calls == 4


async def test_a_fault_is_everybodys_and_the_next_one_tries_again() -> None:
    flights, source = Flights[str, int](), Source()
    source.fault = Unavailable()
    asking = [asyncio.create_task(flights.join("lobby", source.ask)) for _ in range(3)]
    await asyncio.sleep(0)
    source.answer.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 3
    source.fault = None
    assert await flights.join("lobby", source.ask) == 2


async def test_one_who_gives_up_leaves_the_others_their_flight() -> None:
    flights, source = Flights[str, int](), Source()
    one, other = (asyncio.create_task(flights.join("lobby", source.ask)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.wait([one])
    source.answer.set()
    assert await other == 1


async def test_a_fault_that_nobody_waits_for_any_more_is_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flights, source = Flights[str, int](), Source()
    source.fault = Unavailable()
    asking = asyncio.create_task(flights.join("lobby", source.ask))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    flight = flights.under_way["lobby"]
    source.answer.set()
    await asyncio.wait([flight])
    del flight
    gc.collect()
    assert caplog.records == []
