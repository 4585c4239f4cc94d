"""What drivers raise, in words and in kinds. How it comes about is in test_database.py."""

from __future__ import annotations

import sqlite3

import asyncpg
import pytest

from chat.errors import Unavailable
from chat.log.faults import BROKEN, FAULTS, connection_lost, describe, one_is_to_blame


def caused(cause: BaseException) -> Unavailable:
    error = Unavailable()
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "lost", "to_blame"),
    [
        (asyncpg.ConnectionDoesNotExistError("gone"), True, False),
        (asyncpg.AdminShutdownError("restart"), True, False),
        (asyncpg.IdleInTransactionSessionTimeoutError("frozen"), True, False),
        (ConnectionResetError(104, "reset"), True, False),
        (TimeoutError(), False, False),
        (asyncpg.DiskFullError("full"), False, False),
        (sqlite3.OperationalError("locked"), False, False),
        (asyncpg.DataError("a value"), False, True),
        (asyncpg.UniqueViolationError("a key"), False, True),
        (sqlite3.IntegrityError("a key"), False, True),
        (OverflowError("too large"), False, True),
    ],
)
def test_each_fault_is_of_its_kind(cause: Exception, lost: bool, to_blame: bool) -> None:
    assert isinstance(cause, FAULTS)
    assert connection_lost(caused(cause)) is lost
    assert one_is_to_blame(caused(cause)) is to_blame
    # A connection that is lost is in the middle of nothing that anybody knows.
    assert isinstance(cause, BROKEN) or not lost


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "it did not answer in time"),
        (asyncpg.InvalidPasswordError("for user x"), "it refused the user or password"),
        (asyncpg.InvalidCatalogNameError("database x"), "it has no database of that name"),
        (sqlite3.DatabaseError("file is not a database"), "file is not a database"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError("Multiple exceptions: 10.0.0.1:5432"), "it cannot be reached"),
        (
            ConnectionError('PostgreSQL server at "db" rejected SSL upgrade'),
            "it speaks no TLS, which ssl= asks for",
        ),
        (asyncpg.ReadOnlySQLTransactionError("x"), "it is read-only: a replica, or set so?"),
        (asyncpg.UndefinedTableError("table x"), "tables of the chat are missing in it"),
        (asyncpg.UndefinedColumnError("column x"), "its tables are not those of this version"),
        (asyncpg.InsufficientPrivilegeError("table x"), "its user lacks a permission"),
        (asyncpg.TooManyConnectionsError("host x"), "it takes no more connections"),
        (asyncpg.CannotConnectNowError("starting up"), "it is being started or stopped"),
        (asyncpg.AdminShutdownError("restart"), "it is being started or stopped"),
        (asyncpg.DiskFullError("file x"), "its disk is full"),
        (asyncpg.LockNotAvailableError("table x"), "somebody keeps its tables locked"),
        (asyncpg.QueryCanceledError("statement x"), "it took too long, or somebody ended it"),
        (asyncpg.ConnectionDoesNotExistError("gone"), "the connection was cut"),
        (asyncpg.DivisionByZeroError("value x"), "DivisionByZeroError"),
    ],
)
def test_a_fault_is_described_without_names_and_addresses(error: Exception, words: str) -> None:
    assert describe(error) == words
