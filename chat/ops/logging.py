"""How log lines look: time, level, process, module, message; as text or as JSON.

A request or handshake has an id, which is in all lines that it causes (`begin`); as JSON they also
have the user, the room and the connection, once it is known (`about`). What strangers send is in
some messages (names, origins); it can never begin a new line, nor move the cursor of a terminal.
Equal warnings are written a few times only (`repeats.py`). Set up by `__main__.py`.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from chat.ops.repeats import Repeats

logger = logging.getLogger(__name__)

# Libraries that say more than people who run a chat want to read.
QUIET = ("databases", "alembic", "aiosqlite", "asyncio", "websockets")
# Unicode categories that are escaped: controls, formats (which turn text around), separators.
UNSAFE = ("Cc", "Cf", "Zl", "Zp", "Cs")

# What the lines of a request are about: shared by all tasks that it starts.
_trace: ContextVar[dict[str, str | int] | None] = ContextVar("trace", default=None)


def begin(request_id: str) -> None:
    """Put this id into all lines of this task, and of the tasks that it starts."""
    _trace.set({"request_id": request_id})


def about(**fields: str | int) -> None:
    """Say more of what the lines of this request are about: JSON lines have it from now on."""
    trace = _trace.get()
    if trace is not None:
        trace.update(fields)


class TextFormatter(logging.Formatter):
    """2026-11-24T10:00:00.123Z INFO 4711 chat.web.sockets: User maria connected to room lobby

    At the end stands the request's id in brackets, where there is one.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return timestamp(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        line = super().formatMessage(record)
        trace = getattr(record, "trace", None)
        return f"{line} [{trace['request_id']}]" if trace else line


class JsonLines(JsonFormatter):
    """The same, one JSON object a line."""

    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(process)d %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "module"},
        )

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        log_data["time"] = timestamp(record)
        super().add_fields(log_data, record, message_dict)
        # Set by `Lines`; of a record it is an attribute like others.
        log_data.update(log_data.pop("trace", None) or {})


class Lines(logging.StreamHandler[TextIO]):
    """Standard error, with the trace added and repeats left out."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.repeats = Repeats(self.emit)

    def handle(self, record: logging.LogRecord) -> bool:
        record.trace = _trace.get()
        return self.repeats.allow(record) and super().handle(record)

    def close(self) -> None:
        """Say what was left out, and write no more."""
        self.repeats.tell()
        super().close()


def set_up(format: str, level: str) -> None:
    """Send all log lines to standard error, once and in one form."""
    handler = Lines()
    handler.setFormatter(JsonLines() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def one_line(text: str) -> str:
    """Escape what could begin a line or deceive a reader."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in UNSAFE else one
        for one in text
    )
