"""Epochs: a new one for each room that needs it, and for no other."""

from __future__ import annotations

import asyncio

from chat.log.epochs import new_epoch, renew
from chat.log.repository import Repository
from tests.storage import repositories


async def epochs_of(log: Repository, *names: str) -> list[str]:
    rooms = [await log.find_room(name) for name in names]
    return [room.epoch for room in rooms if room is not None]


def test_no_epoch_comes_twice() -> None:
    made = {new_epoch() for _ in range(1_000)}
    assert len(made) == 1_000
    # Announcements keep their words apart by spaces.
    assert not any(" " in one for one in made)


async def test_rooms_get_a_new_epoch_each_and_the_others_keep_theirs(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        first, second, other = [await log.make_room(name) for name in ("a", "b", "c")]
        await renew(log.database, [(first.id, first.epoch), (second.id, second.epoch)])
        epochs = await epochs_of(log, "a", "b", "c")
        assert len({first.epoch, second.epoch, *epochs}) == 5
        assert epochs[2] == other.epoch


async def test_an_epoch_that_is_new_already_stays(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        lobby = await log.make_room("lobby")
        await renew(log.database, [(lobby.id, "an older one")])
        await renew(log.database, [(lobby.id + 1, lobby.epoch)])
        assert await epochs_of(log, "lobby") == [lobby.epoch]


async def test_of_processes_that_notice_at_once_one_gives_the_epoch(database_url: str) -> None:
    async with repositories(database_url, 3) as logs:
        lobby = await logs[0].make_room("lobby")

        async def notice(log: Repository) -> list[str]:
            await renew(log.database, [(lobby.id, lobby.epoch)])
            return await epochs_of(log, "lobby")

        seen = await asyncio.gather(*map(notice, logs))
        assert seen == [await epochs_of(logs[0], "lobby")] * 3
        assert seen[0] != [lobby.epoch]
