"""What the settings name, tried without a server: the database, and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat.commands.at_hand import at_hand
from chat.commands.place import Failing
from chat.log.database import Database
from chat.log.migrations import upgrade
from chat.protocol import direct_pair
from chat.settings import Settings
from tests.servers import SECRET_KEY, ChatServer, free_port
from tests.storage import change, opened

KEY = {"CHAT_SECRET_KEY": SECRET_KEY}


async def made(url: str) -> None:
    database = Database(url)
    await database.open()
    await database.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_with_database_and_key_there_is_a_way_into_the_same_room_each_time(
    database_url: str,
) -> None:
    await made(database_url)
    environ = {"CHAT_DATABASE_URL": database_url, **KEY}
    ways = [await at_hand(Settings.load(environ), environ) for _ in range(2)]
    assert all(way.database and way.entry for way in ways)
    rooms = {way.entry.room for way in ways if way.entry}
    assert len(rooms) == 1 and direct_pair(rooms.pop())


async def test_where_there_is_nothing_nothing_is_made(folder: Path) -> None:
    assert await at_hand(Settings(), {}) == (False, None)
    assert list(folder.iterdir()) == []


async def test_without_a_key_the_database_is_tried_all_the_same(
    sqlite_url: str, folder: Path
) -> None:
    await made(sqlite_url)
    environ = {"CHAT_DATABASE_URL": sqlite_url}
    assert await at_hand(Settings.load(environ), environ) == (True, None)
    assert not (folder / "var").exists()


async def test_a_database_that_is_not_well_is_told_with_what_to_do(
    sqlite_url: str, folder: Path
) -> None:
    gone = f"postgresql://chat@127.0.0.1:{free_port()}/chat"
    for url, sentence in (
        (gone, "From here it cannot be opened: .* Does it run where CHAT_DATABASE_URL says"),
        (sqlite_url, "There is no file .*: is this the folder that the chat runs in"),
    ):
        environ = {"CHAT_DATABASE_URL": url, **KEY}
        with pytest.raises(Failing, match=sentence):
            await at_hand(Settings.load(environ), environ)
    assert list(folder.iterdir()) == []


async def test_tables_that_are_old_are_told_and_left_as_they_are(sqlite_url: str) -> None:
    await upgrade(sqlite_url, "0001")
    environ = {"CHAT_DATABASE_URL": sqlite_url, **KEY}
    for _ in range(2):
        with pytest.raises(Failing, match="Its tables are at step 0001, not "):
            await at_hand(Settings.load(environ), environ)


async def test_tables_of_a_newer_version_are_told(sqlite_url: str) -> None:
    async with opened(sqlite_url) as database:
        await change(database, "UPDATE alembic_version SET version_num = '9999'")
    environ = {"CHAT_DATABASE_URL": sqlite_url, **KEY}
    with pytest.raises(Failing, match="at step 9999, which a newer version made"):
        await at_hand(Settings.load(environ), environ)


async def test_a_folder_that_this_user_cannot_enter_is_told(folder: Path) -> None:
    (folder / "var").mkdir(mode=0)
    server = ChatServer(folder, {"CHAT_SECRET_KEY": None})
    server.obeys = True
    ended = await server.command("healthcheck", "--url", server.url)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "From here it cannot be opened: Permission denied." in ended.stdout


async def test_a_database_that_takes_no_writes_is_told(
    postgres_url: str,
) -> None:
    await made(postgres_url)
    database = Database(postgres_url)
    await database.open()
    name = postgres_url.rpartition("/")[2]
    await database.change(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await database.close()
    environ = {"CHAT_DATABASE_URL": postgres_url, **KEY}
    with pytest.raises(Failing, match="From here it "):
        await at_hand(Settings.load(environ), environ)
