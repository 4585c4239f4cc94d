"""A SQLite file that is replaced while it is open: who holds it can tell, and clears the way."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chat.log.durable import DurableConnection


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
