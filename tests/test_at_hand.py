"""What the settings name, tried without a server: the database, and the key."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chat.commands.at_hand import at_hand
from chat.commands.place import Failing
from chat.log.database import Database
from chat.log.migrations import upgrade
from chat.protocol import direct_pair
from chat.settings import Settings
from tests.servers import SECRET_KEY, ChatServer, free_port
from tests.storage import change, draft, opened, repositories

KEY = {"CHAT_SECRET_KEY": SECRET_KEY}


async def made(url: str) -> None:
    database = Database(url)
    await database.open()
    await database.close()


async def altered(url: str, sql: str) -> None:
    async with opened(url) as database, database.transaction() as raw:
        await raw.execute(sql)


@contextmanager
def somebody_else(folder: Path) -> Iterator[None]:
    """Be a user for a while who may not look into the folder."""
    if os.geteuid() != 0:
        folder.chmod(0)
    else:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o700)


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


async def test_a_database_that_takes_no_writes_is_told(database_url: str) -> None:
    await made(database_url)
    # Only messages: everything else about it is well.
    for sql in (
        ["CREATE TRIGGER full BEFORE INSERT ON messages BEGIN SELECT RAISE(ABORT, 'full'); END"]
        if database_url.startswith("sqlite")
        else [
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE EXCEPTION 'full'; END $$",
            'CREATE TRIGGER "full" BEFORE INSERT ON messages EXECUTE FUNCTION refuse()',
        ]
    ):
        await altered(database_url, sql)
    environ = {"CHAT_DATABASE_URL": database_url, **KEY}
    with pytest.raises(Failing, match="From here it takes no messages: "):
        await at_hand(Settings.load(environ), environ)


async def test_a_user_that_is_disabled_and_the_end_of_its_room_are_told(database_url: str) -> None:
    await made(database_url)
    environ = {"CHAT_DATABASE_URL": database_url, **KEY}
    entry = (await at_hand(Settings.load(environ), environ)).entry
    assert entry is not None
    assert (entry.since, entry.epoch, entry.disabled) == (None, None, False)
    async with repositories(database_url, 1) as [log]:
        room = await log.make_room(entry.room)
        await log.append([draft(room), draft(room)])
    await altered(database_url, "UPDATE users SET disabled_at = 1 WHERE name = 'healthcheck'")
    entry = (await at_hand(Settings.load(environ), environ)).entry
    assert entry is not None
    assert (entry.since, entry.epoch, entry.disabled) == (2, room.epoch, True)


async def test_a_key_in_another_users_folder_is_not_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Not below pytest's own folders, into which nobody else may look.
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.chdir(name)
        await made("sqlite:///chat.db")
        Path("var").mkdir(mode=0o700)
        Path("var/secret_key").write_text("a-key-that-is-long-enough")
        for path in (Path(), *Path().glob("*.db*")):
            path.chmod(0o777)
        environ = {"CHAT_DATABASE_URL": "sqlite:///chat.db"}
        with somebody_else(Path("var")):
            assert await at_hand(Settings.load(environ), environ) == (True, None)
        monkeypatch.undo()
