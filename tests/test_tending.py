"""A look at all members: who is given up, and who counts as slow."""

from __future__ import annotations

import asyncio

import pytest

from chat.live import tending
from chat.ops import metrics
from tests.live import Bells, node
from tests.relays import until

OFTEN = 0.02


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tending, "TEND", OFTEN)


async def test_members_are_tended_that_cannot_be_sent_to(sqlite_url: str) -> None:
    async with node(sqlite_url, Bells()) as here:
        here.tasks.start("tending", lambda: tending.tend(here.hub.members))
        guests = [await here.join(), await here.join("elsewhere")]
        await until(lambda: all(len(guest.tended) > 1 for guest in guests))
        assert guests[0].tended[0] < guests[0].tended[1]


async def test_slow_members_are_counted_and_how_far_the_slowest_is_behind(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(sqlite_url, Bells()) as here:
        one, two, _ = [await here.join() for _ in range(3)]
        looking = asyncio.create_task(tending.tend(here.hub.members))
        behind = {one: 7, two: 3}
        for guest, messages in behind.items():
            monkeypatch.setattr(guest, "tend", lambda moment, messages=messages: messages)
        await until(lambda: metrics.SLOW.value == 2)
        assert metrics.SLOW_BEHIND.value == 7
        monkeypatch.undo()
        monkeypatch.setattr(tending, "TEND", OFTEN)
        await until(lambda: metrics.SLOW.value == 0)
        assert metrics.SLOW_BEHIND.value == 0
        looking.cancel()
