"""The farewell: its order, its limits, and that nobody can hold it up. See also test_app.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chat.protocol import CloseCode
from chat.web import draining as module
from chat.web.draining import drain
from chat.web.services import Services

LIMIT = 10  # seconds; far more than the steps together may take


class Member:
    def __init__(self, house: House, *, settles: bool = True, leaves: bool = True) -> None:
        self.house = house
        self.settles = settles
        self.leaves = leaves
        house.hub.members.add(self)

    @property
    def settled(self) -> bool:
        self.house.steps.append("look")
        return self.settles

    def pause(self) -> None:
        assert self.house.chat.draining
        self.house.steps.append("pause")

    def end(self, code: CloseCode, reason: str) -> None:
        assert code == CloseCode.RESTART
        self.house.steps.append("end")
        if self.leaves:
            self.house.hub.members.discard(self)
            if not self.house.hub.members:
                self.house.hub.deserted.set()


class House:
    """Services that write down what is asked of them, in order."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.hub: Any = SimpleNamespace(
            members=set(),
            deserted=asyncio.Event(),
            presence=SimpleNamespace(bye=lambda: self.steps.append("bye")),
        )
        self.hub.deserted.set()
        self.chat: Any = SimpleNamespace(
            draining=False,
            hub=self.hub,
            writer=SimpleNamespace(flush=self.flush),
            relay=SimpleNamespace(flush=self.ring),
            marks=SimpleNamespace(flush=self.mark),
        )
        self.stored = asyncio.Event()
        self.stored.set()

    async def flush(self) -> None:
        self.steps.append("flush")
        await self.stored.wait()

    async def mark(self) -> None:
        self.steps.append("mark")

    async def ring(self) -> None:
        self.steps.append("ring")

    async def drain(self) -> list[str]:
        """Drain, and return the steps, each once."""
        if self.hub.members:
            self.hub.deserted.clear()
        async with asyncio.timeout(LIMIT):
            await drain(cast(Services, self.chat))
        return list(dict.fromkeys(self.steps))


async def test_reading_stops_then_all_is_stored_sent_and_announced_before_the_good_bye() -> None:
    house = House()
    for _ in range(3):
        Member(house)
    assert await house.drain() == ["pause", "flush", "look", "ring", "end", "bye", "mark"]
    assert house.steps.count("end") == 3


async def test_an_empty_house_drains_at_once() -> None:
    assert await House().drain() == ["flush", "ring", "bye", "mark"]


async def test_members_that_are_behind_are_waited_for() -> None:
    house = House()
    member = Member(house, settles=False)
    draining = asyncio.create_task(house.drain())
    async with asyncio.timeout(LIMIT):
        while house.steps.count("look") < 3:
            await asyncio.sleep(0)
    assert "end" not in house.steps
    member.settles = True
    assert (await draining)[-3:] == ["end", "bye", "mark"]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("FLUSH_LIMIT", "store the last messages"),
        ("SETTLE_LIMIT", "send the last messages"),
        ("FAREWELL_LIMIT", "say good-bye"),
    ],
)
async def test_no_step_is_waited_for_longer_than_its_limit(
    limit: str, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, limit, 0.01)
    house = House()
    Member(house, settles=limit != "SETTLE_LIMIT", leaves=limit != "FAREWELL_LIMIT")
    if limit == "FLUSH_LIMIT":
        house.stored.clear()
    assert (await house.drain())[-3:] == ["end", "bye", "mark"]
    assert [one.getMessage() for one in caplog.records] == [
        f"Draining: 0.01 s were not enough to {words}"
    ]


async def test_a_crowd_is_sent_home_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 2)
    monkeypatch.setattr(module, "SLICE_PAUSE", 0)
    house = House()
    for _ in range(5):
        Member(house)
    loop = asyncio.get_running_loop()
    turns: list[int] = []

    def turn() -> None:
        turns.append(house.steps.count("end"))
        if turns[-1] < 5:
            loop.call_soon(turn)

    loop.call_soon(turn)
    await house.drain()
    assert {2, 4} <= set(turns)
