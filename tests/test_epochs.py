"""Epochs: a new one for each room that needs it, and for no other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chat.log.epochs import are_connected, holds_open, new_epoch, renew, renew_all
from chat.log.members import Mark, Members
from chat.log.repository import Repository
from tests.servers import ChatServer, ForeignPostgres
from tests.storage import draft, repositories


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


async def test_all_rooms_get_a_new_epoch_and_markers_end_at_the_heads(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        rooms = [await log.make_room(name) for name in ("a", "b", "c")]
        await log.append([draft(rooms[0]) for _ in range(3)])
        members = Members(log.database)
        marks = [(rooms[0], 7, 3), (rooms[0], 8, 9), (rooms[1], 7, 2), (rooms[2], 7, 0)]
        await members.save([Mark(room.id, user, 0, seq) for room, user, seq in marks])
        assert await renew_all(log.database) == (3, 2)
        epochs = await epochs_of(log, "a", "b", "c")
        assert len({*epochs, *[room.epoch for room in rooms]}) == 6
        assert await members.last_read(8, [rooms[0].id]) == {rooms[0].id: 3}
        read = {rooms[0].id: 3, rooms[1].id: 0, rooms[2].id: 0}
        assert await members.last_read(7, [room.id for room in rooms]) == read
        assert await renew_all(log.database) == (3, 0)
        assert not set(epochs) & set(await epochs_of(log, "a", "b", "c"))


async def test_a_sqlite_file_that_somebody_has_open_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "chat.db"
    assert not holds_open(file) and not file.exists()
    async with repositories(f"sqlite:///{file}", 1) as [log]:
        assert holds_open(file), "though it does nothing"
        await log.make_room("lobby")
        assert holds_open(file)
    assert not holds_open(file)


@pytest.mark.parametrize("bits", [0o000, 0o400])
async def test_a_file_that_is_not_ours_to_write_is_not_taken_for_an_open_one(
    tmp_path: Path, bits: int
) -> None:
    file = tmp_path / "var" / "chat.db"
    async with repositories(f"sqlite:///{file}", 1):
        pass
    server = ChatServer(tmp_path, {})
    server.obeys = True
    for place in (file, file.parent):
        mode = place.stat().st_mode
        place.chmod(bits)
        try:
            sentence = await server.fails("new-epoch")
        finally:
            place.chmod(mode)
        name = place.relative_to(tmp_path)
        assert sentence == f"The database cannot be opened: this user cannot write {name}."


async def test_a_file_that_is_no_database_is_not_taken_for_an_open_one(tmp_path: Path) -> None:
    file = tmp_path / "chat.db"
    file.write_text("not a database, though long enough to be one " * 100)
    assert not holds_open(file)


async def test_others_at_a_postgresql_database_are_noticed(
    postgres_url: str, postgres_server: ForeignPostgres
) -> None:
    elsewhere = postgres_server.create_database()
    async with repositories(postgres_url, 1) as [log], repositories(elsewhere, 1) as [stranger]:
        await stranger.make_room("lobby")
        assert not await are_connected(log.database)
        async with repositories(postgres_url, 1) as [other]:
            await other.make_room("lobby")
            assert await are_connected(log.database)
    postgres_server.drop_database(elsewhere)
