"""A SQLite connection that holds what an ack promises: it is on disk, in the file that is there.

A database may be put back to an older state by moving another file into its place. Who has it open
does not notice, and goes on with one that nobody will ever read again; who opens the new one takes
the old write-ahead log for a part of it. Made by `log/database.py`.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from typing import Any

BESIDE = ("-wal", "-shm")  # what SQLite keeps beside a file while it is open


class DurableConnection(sqlite3.Connection):
    """A connection whose commits are on disk, and that can tell whether its file was replaced."""

    def __init__(self, path: str, **options: Any) -> None:
        self._path = path
        # Before it is opened: one that is put there just now counts as replaced, and is opened
        # again. And where the file is gone, no empty one is made in its place.
        self._file = _identity(path)
        # The write-ahead log of this very file; None until `replaced` has seen it.
        self._log: tuple[int, int] | None = None
        super().__init__(path, **options)
        self.execute("PRAGMA synchronous=FULL")
        # What is taken away or trimmed leaves nothing to read in the file's free places.
        self.execute("PRAGMA secure_delete=ON")

    def replaced(self) -> bool:
        """Tell whether another file has taken the place of this one; raise OSError where none has.

        What it left beside itself is then moved out of the way of the other one.
        """
        replaced = _identity(self._path) != self._file
        with suppress(FileNotFoundError):
            log = _identity(self._path + "-wal")
            if not replaced:
                self._log = log
            elif log == self._log:
                for suffix in BESIDE:
                    os.replace(self._path + suffix, f"{self._path}{suffix}.replaced")
        return replaced


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
