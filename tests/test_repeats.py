"""Equal warnings: the first ones are written, the others are counted."""

from __future__ import annotations

import asyncio
import logging

import pytest

from chat.ops import repeats
from chat.ops.repeats import ALLOWED, KINDS, WINDOW, Repeats


class Log:
    """Where lines are written, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[logging.LogRecord] = []
        self.repeats = Repeats(self.told.append, lambda: self.now)

    def says(self, text: str, *args: object, level: int = logging.ERROR, name: str = "a") -> bool:
        """Say whether the line is written."""
        return self.repeats.allow(logging.LogRecord(name, level, "x.py", 1, text, args, None))

    @property
    def told_texts(self) -> list[str]:
        return [record.getMessage() for record in self.told]


def test_ten_of_a_kind_are_written_and_then_no_more() -> None:
    log = Log()
    written = [log.says("Error saving message: %s", "OSError") for _ in range(1_000)]
    assert written == [True] * ALLOWED + [False] * (1_000 - ALLOWED)
    assert not log.told


def test_what_was_left_out_is_one_line_once_the_window_is_over() -> None:
    log = Log()
    for _ in range(ALLOWED + 7):
        log.says("away")
    log.now = WINDOW + 1
    # Whatever is said next brings it.
    assert log.says("something else", level=logging.INFO)
    (record,) = log.told
    assert record.getMessage() == "Left out 7 more of: away"
    assert (record.name, record.levelno) == ("a", logging.ERROR)
    assert [log.says("away") for _ in range(ALLOWED + 1)] == [True] * ALLOWED + [False]


def test_nothing_is_told_where_nothing_was_left_out() -> None:
    log = Log()
    for _ in range(ALLOWED):
        log.says("away")
    log.now = WINDOW + 1
    log.says("away")
    log.repeats.tell()
    assert not log.told


def test_only_the_same_text_of_the_same_logger_and_level_is_a_repeat() -> None:
    log = Log()
    for number in range(ALLOWED * 2):
        assert log.says("Origin %s refused", number)
    for _ in range(ALLOWED):
        assert log.says("away")
        assert log.says("away", level=logging.WARNING)
        assert log.says("away", name="b")


def test_lines_of_people_who_come_and_go_are_never_left_out() -> None:
    log = Log()
    assert all(log.says("User maria connected", level=logging.INFO) for _ in range(1_000))


def test_texts_of_strangers_do_not_fill_the_memory() -> None:
    log = Log()
    for _ in range(ALLOWED + 1):
        log.says("the first")
    for number in range(3 * KINDS):
        log.says("Origin %s refused", number)
    assert len(log.repeats._kinds) == KINDS
    # It was forgotten before its time, but not in silence.
    assert log.told_texts == ["Left out 1 more of: the first"]


async def test_in_a_process_with_a_loop_nobody_has_to_say_anything_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repeats, "WINDOW", 0.05)
    told: asyncio.Queue[logging.LogRecord] = asyncio.Queue()
    here = Repeats(told.put_nowait)
    for _ in range(ALLOWED + 3):
        here.allow(logging.LogRecord("a", logging.ERROR, "x.py", 1, "away", (), None))
    async with asyncio.timeout(10):
        assert (await told.get()).getMessage() == "Left out 3 more of: away"
