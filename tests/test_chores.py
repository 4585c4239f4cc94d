"""A chore is one process' at a time, and nobody's once its holder is gone."""

from __future__ import annotations

import asyncio

from chat.log.chores import HELD_FOR, hold
from chat.log.database import Database
from tests.storage import change, repositories


async def takes(database: Database, holder: str, name: str = "retention") -> bool:
    async with database.transaction() as raw:
        return await hold(database, raw, name, holder)


async def test_a_chore_is_one_process_at_a_time(database_url: str) -> None:
    async with repositories(database_url, 2) as [here, there]:
        assert await takes(here.database, "here")
        assert not await takes(there.database, "there")
        assert await takes(there.database, "there", "another chore")
        assert await takes(here.database, "here"), "its holder keeps it"


async def test_of_processes_that_want_a_chore_at_once_one_gets_it(database_url: str) -> None:
    async with repositories(database_url, 4) as logs:
        names = [f"node-{number}" for number in range(4)]
        wants = [takes(log.database, name) for log, name in zip(logs, names, strict=True)]
        assert sorted(await asyncio.gather(*wants)) == [False, False, False, True]


async def test_a_chore_that_is_not_kept_goes_to_another_one(database_url: str) -> None:
    async with repositories(database_url, 2) as [here, there]:
        assert await takes(here.database, "here")
        await change(here.database, f"UPDATE chores SET held_until = held_until - {HELD_FOR}")
        await asyncio.sleep(0.002)
        assert await takes(there.database, "there")
        assert not await takes(here.database, "here")
