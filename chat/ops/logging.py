"""How log lines look: time, level, process, module, message; as text or as JSON.

What strangers send is in some messages (names, origins); it can never begin a new line, nor move
the cursor of a terminal. Imports nothing of ours; set up by `__main__.py`.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

logger = logging.getLogger(__name__)

# Libraries that say more than people who run a chat want to read.
QUIET = ("databases", "alembic", "aiosqlite", "asyncio", "websockets")
# Unicode categories that are escaped: controls, formats (which turn text around), separators.
UNSAFE = ("Cc", "Cf", "Zl", "Zp", "Cs")


class TextFormatter(logging.Formatter):
    """2026-11-24T10:00:00.123Z INFO 4711 chat.web.sockets: User maria connected to room lobby"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return timestamp(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)


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


def set_up(format: str, level: str) -> None:
    """Send all log lines to standard error, once and in one form."""
    handler = logging.StreamHandler(sys.stderr)
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
