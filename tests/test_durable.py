"""A SQLite file that is replaced while it is open: who holds it can tell, and clears the way."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from chat.log.durable import DurableConnection
from tests.servers import ROOT, obeying


def made(path: Path, text: str) -> Path:
    """Make a database that says this, and close it: nothing lies beside it then."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE said (text)")
        database.execute("INSERT INTO said VALUES (?)", (text,))
        database.commit()
    assert os.listdir(path.parent).count(f"{path.name}-wal") == 0
    return path


def said(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in database.execute("SELECT text FROM said")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return made(tmp_path / "chat.db", "old")


@pytest.fixture
def connection(file: Path) -> Iterator[DurableConnection]:
    with closing(DurableConnection(str(file), isolation_level=None)) as connection:
        yield connection


def looked(file: Path) -> str:
    """Return what `unwritable` says to a process for which modes hold."""
    script = (
        "import pathlib, sys; from chat.log.durable import unwritable;"
        "print(unwritable(pathlib.Path(sys.argv[1])))"
    )
    command = obeying([sys.executable, "-c", script, str(file)])
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


@contextmanager
def mode(place: Path, bits: int) -> Iterator[None]:
    before = stat.S_IMODE(place.stat().st_mode)
    place.chmod(bits)
    try:
        yield
    finally:
        place.chmod(before)


def test_what_sqlite_could_not_write_is_found(connection: DurableConnection, file: Path) -> None:
    connection.execute("INSERT INTO said VALUES ('more')")
    assert looked(file) == "None"
    for suffix in ("", "-wal", "-shm"):
        place = file.with_name(file.name + suffix)
        with mode(place, 0o400):
            assert looked(file) == str(place)
    for bits in (0o500, 0o600, 0o000):
        with mode(file.parent, bits):
            assert looked(file) == str(file.parent)
    assert looked(file) == "None"
    # And nobody's locks were taken away by that.
    assert said(file) == ["old", "more"]


def test_of_a_link_the_file_that_it_leads_to_counts(tmp_path: Path) -> None:
    named, real = tmp_path / "named" / "chat.db", tmp_path / "real" / "chat.db"
    for one in (named, real):
        one.parent.mkdir()
    real.touch()
    named.symlink_to(real)
    with mode(named.parent, 0o500):
        assert looked(named) == "None"
    with mode(real.parent, 0o500):
        assert looked(named) == str(real.parent)


def test_where_there_is_no_file_yet_its_nearest_folder_counts(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "er" / "chat.db"
    assert looked(file) == "None"
    with mode(tmp_path, 0o500):
        assert looked(file) == str(tmp_path)


def test_commits_are_on_disk(connection: DurableConnection) -> None:
    assert connection.execute("PRAGMA synchronous").fetchall() == [(2,)]


def test_a_file_that_stays_is_not_replaced(connection: DurableConnection) -> None:
    assert not connection.replaced()
    connection.execute("INSERT INTO said VALUES ('more')")
    assert not connection.replaced()


def test_another_file_in_its_place_is_noticed(
    connection: DurableConnection, file: Path, tmp_path: Path
) -> None:
    os.replace(made(tmp_path / "other.db", "new"), file)
    assert connection.replaced()
    with closing(DurableConnection(str(file))) as newer:
        assert not newer.replaced()


def test_what_the_old_file_left_is_no_part_of_the_new_one(
    connection: DurableConnection, file: Path, tmp_path: Path
) -> None:
    connection.execute("INSERT INTO said VALUES ('more')")
    assert not connection.replaced()
    os.replace(made(tmp_path / "other.db", "new"), file)
    assert connection.replaced()
    connection.execute("INSERT INTO said VALUES ('still more')")
    assert said(file) == ["new"]


def test_what_belongs_to_the_new_file_stays(
    connection: DurableConnection, file: Path, tmp_path: Path
) -> None:
    connection.execute("INSERT INTO said VALUES ('more')")
    assert not connection.replaced()
    other = made(tmp_path / "other.db", "new")
    with closing(sqlite3.connect(other, isolation_level=None)) as database:
        database.execute("INSERT INTO said VALUES ('newer')")
        # As after a crash: what was written last is in the log only.
        for suffix in ("-wal", "-shm", ""):
            os.replace(f"{other}{suffix}", f"{file}{suffix}")
        assert connection.replaced()
        assert connection.replaced()
    assert said(file) == ["new", "newer"]


def test_a_file_that_is_gone_is_an_error_and_none_is_made(
    connection: DurableConnection, file: Path
) -> None:
    file.unlink()
    with pytest.raises(FileNotFoundError):
        connection.replaced()
    with pytest.raises(FileNotFoundError):
        DurableConnection(str(file))
    assert not file.exists()
