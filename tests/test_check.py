"""`check`, as operators type it: against good and broken set-ups."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import redis.asyncio

from chat.commands import check
from chat.commands.check import masked
from chat.log.repository import Repository
from tests.checking import names_that_hang
from tests.servers import ROOT, SECRET_KEY, START_LIMIT, ChatServer, PostgresServer, RedisServer
from tests.storage import change, opened

PASSWORD = "correct-horse"


class Checked:
    """What `check` said of these settings, in this folder."""

    def __init__(self, code: int, text: str, errors: str) -> None:
        assert errors == ""
        self.code = code
        self.text = text

    def words(self, about: str) -> list[str]:
        """The word, ok, warn or fail, of each line about this part."""
        return re.findall(rf"^(ok|warn|fail) +{about}: .+\.$", self.text, re.MULTILINE)


async def checked(
    folder: Path, settings: Mapping[str, str | None], *options: str, obeys: bool = False
) -> Checked:
    server = ChatServer(folder, settings)
    server.obeys = obeys
    ended = await server.command("check", *options)
    return Checked(ended.returncode, ended.stdout, ended.stderr)


async def test_a_fresh_machine_is_fine_and_nothing_is_made_there(tmp_path: Path) -> None:
    said = await checked(tmp_path, {"CHAT_SECRET_KEY": None})
    assert said.code == 0
    assert said.words("database") == said.words("relay") == said.words("secret key") == ["ok"]
    assert "warn" not in said.text
    assert os.listdir(tmp_path) == []


async def test_every_setting_is_told_with_where_it_comes_from(tmp_path: Path) -> None:
    said = await checked(tmp_path, {"CHAT_SIGN_IN": "off"})
    assert "setting  CHAT_SIGN_IN = off  (environment)" in said.text
    assert "setting  CHAT_SEND_RATE = 10/second  (default)" in said.text
    assert re.search(r"^versions tertulia \d.*, Python 3\.\d+\.\d+, SQLite 3\.", said.text)


async def test_what_is_secret_is_not_told(tmp_path: Path) -> None:
    said = await checked(
        tmp_path,
        {
            "CHAT_DATABASE_URL": f"postgresql://chat:{PASSWORD}@127.0.0.1:9/chat",
            "CHAT_RELAY_URL": f"redis://:{PASSWORD}@127.0.0.1:9",
            "CHAT_API_KEY": f"{PASSWORD}-{PASSWORD}",
        },
    )
    assert "CHAT_DATABASE_URL = postgresql://chat:***@127.0.0.1:9/chat" in said.text
    assert PASSWORD not in said.text and SECRET_KEY not in said.text
    assert (said.code, said.words("database"), said.words("relay")) == (1, ["fail"], ["fail"])


@pytest.mark.parametrize(
    ("variable", "raw", "shown"),
    [
        ("CHAT_SECRET_KEY", "", "none"),
        ("CHAT_SECRET_KEY", "a" * 16, "***"),
        ("CHAT_SECRET_KEY", "a" * 16 + "," + "b" * 16, "*** (2 keys)"),
        ("CHAT_RELAY_URL", "redis://h/0?password=p&ssl=1", "redis://h/0?password=***&ssl=1"),
        ("CHAT_RELAY_URL", "rediss://h?ssl_password=p", "rediss://h?ssl_password=***"),
        ("CHAT_RELAY_URL", "redis://h?db=1&%70ASSwort=a=b", "redis://h?db=1&%70ASSwort=***"),
        ("CHAT_RELAY_URL", "redis://u:p@ss@h", "redis://u:***@h"),
        ("CHAT_RELAY_URL", "redis://:p@h", "redis://:***@h"),
        ("CHAT_RELAY_URL", "redis:/u:p@h", "redis:/u:***@h"),
        ("CHAT_RELAY_URL", "u:p@h", "u:***@h"),
        ("CHAT_DATABASE_URL", "postgresql://postgres@h/db", "postgresql://postgres@h/db"),
        ("CHAT_DATABASE_URL", "postgresql://h:5432/db", "postgresql://h:5432/db"),
        ("CHAT_LOGIN_URL", "https://u:p@www.example.org", "https://u:***@www.example.org"),
        ("CHAT_DATABASE_URL", "sqlite:///var/chat.db", "sqlite:///var/chat.db"),
    ],
)
def test_secrets_are_masked(variable: str, raw: str, shown: str) -> None:
    assert masked(variable, raw) == shown


async def test_a_wrong_setting_is_a_sentence_and_not_the_end_of_the_list(tmp_path: Path) -> None:
    said = await checked(tmp_path, {"CHAT_SIGN_IN": "perhaps", "CHAT_SINGIN": "off"})
    assert said.code == 1
    assert said.words("settings") == ["warn", "fail"]
    assert "CHAT_SIGN_IN is wrong: it must be one of guest, off." in said.text
    assert "setting  CHAT_SIGN_IN = perhaps" in said.text


async def test_settings_that_do_not_fit_together_are_warned_of(tmp_path: Path) -> None:
    said = await checked(tmp_path, {"CHAT_LOGIN_URL": "/sign-in"})
    assert (said.code, said.words("settings")) == (0, ["warn"])


# --- How it listens


async def test_where_it_listens_is_told_with_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "hypercorn.toml"
    file.write_text('bind = ["127.0.0.1:8001"]\n')
    said = await checked(tmp_path, {})
    assert f"setting  hypercorn.toml = {file}  (default)" in said.text
    assert "setting  bind = 127.0.0.1:8001  (hypercorn.toml)" in said.text
    assert "setting  workers = 1  (default)" in said.text
    options = ("--bind", "127.0.0.1:1", "--bind", "[::1]:1", "--workers", "2", "--config", "other")
    shutil.copy(file, tmp_path / "other")
    said = await checked(tmp_path, {"CHAT_RELAY_URL": "redis://127.0.0.1:9"}, *options)
    assert f"setting  hypercorn.toml = {tmp_path}/other  (--config)" in said.text
    assert "setting  bind = 127.0.0.1:1, [::1]:1  (--bind)" in said.text
    assert "setting  workers = 2  (--workers)" in said.text


async def test_what_would_not_listen_fails(tmp_path: Path) -> None:
    for option, value, sentence in (
        ("--bind", "host:port", "bind must be like 127.0.0.1:8000"),
        ("--workers", "2", "memory:// reaches one process only; with 2 workers"),
        ("--config", "nowhere.toml", "nowhere.toml cannot be read"),
    ):
        said = await checked(tmp_path, {}, option, value)
        assert (said.code, said.words("settings")) == (1, ["fail"])
        assert sentence in said.text


async def test_settings_that_do_not_fit_where_it_listens_are_warned_of(tmp_path: Path) -> None:
    said = await checked(tmp_path, {}, "--bind", "0.0.0.0:8000")
    assert (said.code, said.words("settings")) == (0, ["warn"])
    assert "only this machine's own names, but it listens to others" in said.text


async def test_make_passes_on_where_it_listens() -> None:
    line = subprocess.run(
        ["make", "--dry-run", "check-config", "HOST=0.0.0.0", "PORT=1", "WORKERS=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert "-m chat check --bind '0.0.0.0:1' --workers '2'\n" in line


# --- The database


async def test_a_database_at_the_newest_step_takes_writes(
    tmp_path: Path, database_url: str
) -> None:
    async with opened(database_url):
        pass
    said = await checked(tmp_path, {"CHAT_DATABASE_URL": database_url})
    assert (said.code, said.words("database")[0]) == (0, "ok")
    assert re.search(r"database: reachable, at step \w+, and takes writes \(\d+ ms\)\.", said.text)


async def test_an_empty_postgresql_is_fine_and_stays_empty(
    tmp_path: Path, postgres_url: str
) -> None:
    for _ in range(2):
        said = await checked(tmp_path, {"CHAT_DATABASE_URL": postgres_url})
        assert (said.code, said.words("database")) == (0, ["ok"])
        assert "it is empty" in said.text


async def test_a_postgresql_that_may_lose_what_it_acked_is_warned_of(
    tmp_path: Path, postgres_url: str
) -> None:
    async with opened(postgres_url) as database:
        name = (await database.rows("SELECT current_database()"))[0][0]
        await database.change(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    said = await checked(tmp_path, {"CHAT_DATABASE_URL": postgres_url})
    assert said.code == 0
    assert "PostgreSQL's synchronous_commit is off" in said.text


async def test_tables_at_another_step_are_told(tmp_path: Path, sqlite_url: str) -> None:
    async with opened(sqlite_url):
        pass
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
    database.close()
    said = await checked(tmp_path, {"CHAT_DATABASE_URL": sqlite_url})
    assert (said.code, said.words("database")[-1]) == (0, "warn")
    assert "its tables are at step 0001" in said.text


async def test_tables_of_a_newer_version_fail(tmp_path: Path, database_url: str) -> None:
    async with opened(database_url) as database:
        await change(database, "UPDATE alembic_version SET version_num = '9999'")
    said = await checked(tmp_path, {"CHAT_DATABASE_URL": database_url})
    assert (said.code, said.words("database")) == (1, ["fail"])
    assert "at step 9999" in said.text and "a newer version made them" in said.text


async def test_a_database_that_takes_no_writes_fails(tmp_path: Path, postgres_url: str) -> None:
    async with opened(postgres_url) as database:
        name = (await database.rows("SELECT current_database()"))[0][0]
        await database.change(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    said = await checked(tmp_path, {"CHAT_DATABASE_URL": postgres_url})
    assert (said.code, said.words("database")) == (1, ["fail"])
    assert "takes no messages: it is read-only: a replica, or set so?." in said.text


@pytest.mark.parametrize("name", ["chat.db", "chat.db-wal", "chat.db-shm", ""])
async def test_what_this_user_cannot_write_is_named(
    tmp_path: Path, sqlite_url: str, name: str
) -> None:
    async with opened(sqlite_url) as database:
        place = tmp_path / name
        mode = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode & ~0o222)
        try:
            said = await checked(tmp_path, {"CHAT_DATABASE_URL": sqlite_url}, obeys=True)
        finally:
            place.chmod(mode)
        assert await database.rows("SELECT 1") == [(1,)]
    assert (said.code, said.words("database")) == (1, ["fail"])
    assert f"this user cannot write {place}, and" in said.text


async def test_a_folder_that_this_user_cannot_enter_is_named(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir(mode=0)
    said = await checked(tmp_path, {"CHAT_SECRET_KEY": None}, obeys=True)
    assert (said.code, said.words("database"), said.words("secret key")) == (1, ["fail"], ["fail"])
    assert "this user cannot write var, and" in said.text
    assert "var/secret_key cannot be read: Permission denied" in said.text


async def test_a_file_that_is_no_database_fails(tmp_path: Path) -> None:
    file = tmp_path / "chat.db"
    file.write_text("not a database, though long enough to be one " * 100)
    file.chmod(0o600)
    said = await checked(tmp_path, {"CHAT_DATABASE_URL": f"sqlite:///{file}"})
    assert (said.code, said.words("database")) == (1, ["fail"])


async def test_files_that_others_can_read_are_told(tmp_path: Path, sqlite_url: str) -> None:
    async with opened(sqlite_url):
        pass
    Path(sqlite_url.removeprefix("sqlite:///")).chmod(0o644)
    key = tmp_path / "var" / "secret_key"
    key.parent.mkdir()
    key.write_text(SECRET_KEY)
    key.chmod(0o644)
    said = await checked(tmp_path, {"CHAT_DATABASE_URL": sqlite_url, "CHAT_SECRET_KEY": None})
    assert (said.code, said.words("secret key")) == (1, ["fail"])
    assert said.words("database") == ["warn", "ok"]
    key.chmod(0o600)
    said = await checked(tmp_path, {"CHAT_DATABASE_URL": sqlite_url, "CHAT_SECRET_KEY": None})
    assert (said.code, said.words("secret key")) == (0, ["ok"])


@pytest.mark.parametrize("content", ["", "short"])
async def test_a_key_that_the_start_refuses_fails(tmp_path: Path, content: str) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "secret_key").write_text(content)
    said = await checked(tmp_path, {"CHAT_SECRET_KEY": None})
    assert (said.code, said.words("secret key")) == (1, ["fail"])
    assert "the key in var/secret_key is too short" in said.text


async def test_a_key_that_could_be_neither_read_nor_kept_fails(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    folder.mkdir()
    folder.chmod(0o500)
    said = await checked(tmp_path, {"CHAT_SECRET_KEY": None}, obeys=True)
    assert (said.code, said.words("secret key")) == (1, ["fail"])
    assert "this user cannot write var to keep one" in said.text
    folder.chmod(0o700)
    (folder / "secret_key").write_text(SECRET_KEY)
    (folder / "secret_key").chmod(0)
    said = await checked(tmp_path, {"CHAT_SECRET_KEY": None}, obeys=True)
    assert (said.code, said.words("secret key")) == (1, ["fail"])
    assert "var/secret_key cannot be read: Permission denied" in said.text


def test_a_disk_that_is_nearly_full_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A disk cannot be filled for a test.
    usage = shutil.disk_usage(tmp_path)._replace(free=10 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.chdir(tmp_path)
    settings = check.Settings.load({})
    assert [line for line in check._files(settings) if "only 10 MB are free" in line.sentence]


# --- The relay


async def test_a_redis_that_answers_is_fine_and_one_that_does_not_fails(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    settings = {"CHAT_RELAY_URL": own_redis.url}
    said = await checked(tmp_path, settings)
    assert (said.code, said.words("relay")) == (0, ["ok"])
    own_redis.stop()
    said = await checked(tmp_path, settings)
    assert (said.code, said.words("relay")) == (1, ["fail"])
    assert "connection refused" in said.text


@pytest.mark.parametrize("may", ["+@connection +publish", "+@connection +subscribe", "-@all"])
async def test_a_user_of_redis_who_may_not_announce_fails(
    tmp_path: Path, own_redis: RedisServer, may: str
) -> None:
    async with redis.asyncio.Redis.from_url(own_redis.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "chat", "on", ">pw", "&*", *may.split())
    url = own_redis.url.replace("redis://", "redis://chat:pw@")
    said = await checked(tmp_path, {"CHAT_RELAY_URL": url})
    assert (said.code, said.words("relay")) == (1, ["fail"])
    assert "the user lacks a permission" in said.text


async def test_a_user_of_redis_needs_the_channels_of_the_deployment_only(
    tmp_path: Path, own_redis: RedisServer, sqlite_url: str
) -> None:
    async with opened(sqlite_url) as database:
        deployment = await Repository(database).deployment()
    async with redis.asyncio.Redis.from_url(own_redis.url) as admin:
        rights = ["on", ">pw", "resetchannels", f"&{deployment}/*", "+@all"]
        await admin.execute_command("ACL", "SETUSER", "chat", *rights)
    url = own_redis.url.replace("redis://", "redis://chat:pw@")
    said = await checked(tmp_path, {"CHAT_RELAY_URL": url, "CHAT_DATABASE_URL": sqlite_url})
    assert (said.code, said.words("relay")) == (0, ["ok"])
    said = await checked(tmp_path, {"CHAT_RELAY_URL": url})
    assert (said.code, said.words("relay")) == (1, ["fail"])


async def test_a_relay_that_the_start_refuses_is_a_sentence(tmp_path: Path) -> None:
    said = await checked(tmp_path, {"CHAT_RELAY_URL": "redis://127.0.0.1:9?nonsense=1"})
    assert (said.code, said.words("relay")) == (1, ["fail"])
    assert "CHAT_RELAY_URL is wrong: the relay's URL is not one" in said.text


async def test_a_name_server_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    database = {"CHAT_DATABASE_URL": "postgresql://chat.example/chat"}
    began = time.monotonic()
    said = await checked(tmp_path, {**names_that_hang(tmp_path), **database})
    assert time.monotonic() - began < START_LIMIT / 2
    assert (said.code, said.words("database")) == (1, ["fail"])
    assert "it did not answer in time" in said.text


async def test_what_hangs_ends_in_a_sentence(
    tmp_path: Path, own_redis: RedisServer, own_postgres: PostgresServer
) -> None:
    settings = {"CHAT_RELAY_URL": own_redis.url, "CHAT_DATABASE_URL": own_postgres.url}
    own_redis.freeze()
    own_postgres.freeze()
    try:
        said = await checked(tmp_path, settings)
    finally:
        own_redis.thaw()
        own_postgres.thaw()
    assert said.code == 1
    assert said.words("database") == said.words("relay") == ["fail"]
    assert said.text.count("did not answer in time") + said.text.count("no answer in time") == 2
