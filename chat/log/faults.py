"""What the drivers of both databases raise, and what it means.

Every fault of a driver is an `Unavailable` outside; here it is told whether another connection may
serve at once, whether a message's own values are to blame, and what to call it in words.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import ssl

import asyncpg

from chat.errors import Unavailable

# What a driver raises when the database, and not our SQL alone, is in trouble.
FAULTS = (
    sqlite3.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    # From SQLite's driver, for a value that does not fit into a column; asyncpg has a DataError.
    OverflowError,
    UnicodeError,
)
# After one of these nobody knows what the connection is in the middle of.
BROKEN = (
    asyncio.CancelledError,
    asyncpg.InterfaceError,
    # A statement met the very moment in which the server ended the connection.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    # The server ended a transaction that we had left alone: this process was frozen in the midst.
    asyncpg.IdleInTransactionSessionTimeoutError,
    OSError,
    TimeoutError,
)


# What to call them: the first one that fits.
WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "it did not answer in time"),
    (asyncpg.InvalidAuthorizationSpecificationError, "it refused the user or password"),
    (asyncpg.InvalidCatalogNameError, "it has no database of that name"),
    (asyncpg.InsufficientPrivilegeError, "its user lacks a permission"),
    (asyncpg.ReadOnlySQLTransactionError, "it is read-only: a replica, or set so?"),
    (asyncpg.UndefinedTableError, "tables of the chat are missing in it"),
    (asyncpg.UndefinedColumnError, "its tables are not those of this version"),
    (asyncpg.InvalidSchemaNameError, "it has no schema to make tables in"),
    (asyncpg.DiskFullError, "its disk is full"),
    (asyncpg.OutOfMemoryError, "it is out of memory"),
    (asyncpg.TooManyConnectionsError, "it takes no more connections"),
    (asyncpg.CannotConnectNowError, "it is being started or stopped"),
    (asyncpg.AdminShutdownError, "it is being started or stopped"),
    (asyncpg.CrashShutdownError, "it is being started or stopped"),
    (asyncpg.LockNotAvailableError, "somebody keeps its tables locked"),
    (asyncpg.DeadlockDetectedError, "somebody keeps its tables locked"),
    (asyncpg.QueryCanceledError, "it took too long, or somebody ended it"),
    (asyncpg.PostgresConnectionError, "the connection was cut"),
)


def connection_lost(error: Unavailable) -> bool:
    """Tell whether another connection may serve at once: a restart of the database ends them."""
    lost = (
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        asyncpg.PostgresConnectionError,
        asyncpg.AdminShutdownError,
        asyncpg.IdleInTransactionSessionTimeoutError,
        ConnectionError,
    )
    return isinstance(error.__cause__, lost)


def one_is_to_blame(error: Unavailable) -> bool:
    """Tell whether the fault lies in the values of a statement, not in the database."""
    cause = error.__cause__
    return isinstance(
        cause,
        asyncpg.DataError
        | asyncpg.IntegrityConstraintViolationError
        | sqlite3.DataError
        | sqlite3.IntegrityError
        | OverflowError
        | UnicodeError,
    )


def describe(error: BaseException) -> str:
    """Say in words what is wrong, without addresses, names or SQL."""
    for kind, meaning in WORDS:
        if isinstance(error, kind):
            return meaning
    if isinstance(error, sqlite3.Error):
        return str(error)
    if isinstance(error, OSError):
        if "rejected SSL" in str(error):  # asyncpg has no class for it
            return "it speaks no TLS, which ssl= asks for"
        # In other errors' `strerror`, asyncio writes addresses.
        worded = isinstance(error, socket.gaierror | ssl.SSLError)
        words = error.strerror if worded else error.errno and os.strerror(error.errno)
        return words or "it cannot be reached"
    return type(error).__name__
