"""A SQLite connection that holds what an ack promises: it is on disk, in the file that is there.

A database may be put back to an older state by moving another file into its place. Who has it open
does not notice, and goes on with one that nobody will ever read again; who opens the new one takes
the old write-ahead log for a part of it. Made by `log/database.py`.

And what SQLite needs to be able to write, before it tells so at somebody's message.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
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


def unwritable(file: Path, beside: Sequence[str] = BESIDE) -> Path | None:
    """Return the first of the file, what lies beside it, and its folder that we may not write.

    Of what is not there its nearest folder counts, where it would be made. Nothing is opened: to
    close a file that SQLite has open, too, takes SQLite's locks away.
    """
    if os.path.islink(file):
        file = Path(os.path.realpath(file))  # SQLite looks there, too
    for one in (file, *(file.with_name(file.name + suffix) for suffix in beside)):
        # Looked at twice: it may go in between, when another process closes the database.
        if os.path.exists(one) and not os.access(one, os.W_OK) and os.path.exists(one):
            return one
    folder = next(one for one in file.absolute().parents if os.path.exists(one))
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        # As it was named, where it was.
        return next((one for one in file.parents if one.absolute() == folder), folder)
    return None


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
