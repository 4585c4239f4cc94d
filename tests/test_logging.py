"""Log lines: one form, one line each, whatever strangers are called."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.ops.logging import QUIET, JsonLines, TextFormatter, about, begin, one_line, set_up
from chat.ops.repeats import ALLOWED

AT = 1_795_514_400.123
AT_WRITTEN = "2026-11-24T10:00:00.123Z"


def record(message: str, *args: object, fault: Exception | None = None) -> logging.LogRecord:
    info = (type(fault), fault, fault.__traceback__) if fault else None
    one = logging.LogRecord("chat.web.sockets", logging.INFO, "x.py", 1, message, args, info)
    one.created = AT
    one.process = 4711
    return one


def caught() -> Exception:
    try:
        raise ValueError("a fault\nof two lines")
    except ValueError as error:
        return error


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    logger = logging.getLogger()
    before = (logger.handlers[:], logger.level)
    levels = {name: logging.getLogger(name).level for name in QUIET}
    logger.handlers = []
    yield logger
    logger.handlers, logger.level = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_line_has_time_level_process_module_and_message() -> None:
    line = TextFormatter().format(record("User %s connected to room %s", "maria", "lobby"))
    assert line == f"{AT_WRITTEN} INFO 4711 chat.web.sockets: User maria connected to room lobby"


def test_times_are_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        assert TextFormatter().format(record("x")).startswith(f"{AT_WRITTEN} ")
        assert json.loads(JsonLines().format(record("x")))["time"] == AT_WRITTEN
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_json_line_is_one_object_with_the_same_fields() -> None:
    line = JsonLines().format(record("User %s connected", "maría 😀"))
    assert json.loads(line) == {
        "time": AT_WRITTEN,
        "level": "INFO",
        "process": 4711,
        "module": "chat.web.sockets",
        "message": "User maría 😀 connected",
    }


STRANGERS = {
    "a newline": ("a\nb", r"a\nb"),
    "a carriage return": ("a\rb", r"a\rb"),
    "an escape sequence": ("\x1b[2Jb", r"\x1b[2Jb"),
    "a NUL": ("a\0b", r"a\x00b"),
    "a DEL": ("a\x7fb", r"a\x7fb"),
    "a next line of C1": ("a\x85b", r"a\x85b"),
    "a CSI of C1": ("a\x9bb", r"a\x9bb"),
    "a line separator": ("a\u2028b", r"a\u2028b"),
    "a paragraph separator": ("a\u2029b", r"a\u2029b"),
    "text turned around": ("a\u202eb", r"a\u202eb"),
    "an isolate": ("a\u2066b", r"a\u2066b"),
    "nothing to see": ("a\u200bb", r"a\u200bb"),
    "a byte order mark": ("a\ufeffb", r"a\ufeffb"),
    "a tag": ("a\U000e0041b", r"a\U000e0041b"),
    "a lone surrogate": ("a\ud800b", r"a\ud800b"),
    "letters of many scripts": ("Zoë 李 😀 é", "Zoë 李 😀 é"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_strangers_send_cannot_begin_a_line_nor_deceive(name: str) -> None:
    sent, shown = STRANGERS[name]
    assert one_line(sent) == shown
    line = TextFormatter().format(record("User %s connected", sent))
    assert line.endswith(f": User {shown} connected")


@given(st.text(st.characters()))
def test_no_message_becomes_two_lines(message: str) -> None:
    for formatter in (TextFormatter(), JsonLines()):
        line = formatter.format(record("%s", message))
        assert len(line.splitlines()) == 1
        line.encode()
    assert json.loads(line)["message"] == message


def test_a_stack_trace_stays_readable_in_text_and_one_line_in_json() -> None:
    lines = TextFormatter().format(record("a\nb", fault=caught())).splitlines()
    assert lines[0].endswith(r": a\nb")
    assert lines[1] == "Traceback (most recent call last):"
    assert any(line.startswith("ValueError: a fault") for line in lines)
    line = JsonLines().format(record("a\nb", fault=caught()))
    assert "\n" not in line
    assert json.loads(line)["exc_info"].startswith("Traceback (most recent call last):\n")


def test_all_lines_go_to_standard_error_in_one_form(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up("text", "INFO")
    set_up("text", "INFO")
    logging.getLogger("chat.live").info("hola")
    logging.getLogger("chat.live").debug("not shown")
    logging.getLogger("another.library").warning("careful")
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    pid = os.getpid()
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"{time} INFO {pid} chat\.live: hola", first)
    assert re.fullmatch(rf"{time} WARNING {pid} another\.library: careful", second)


def test_json_lines_are_chosen_by_the_setting(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up("json", "ERROR")
    logging.getLogger("chat.live").warning("not shown")
    logging.getLogger("chat.live").error("hola")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "hola"
    assert json.loads(line)["level"] == "ERROR"


async def test_the_lines_of_a_request_have_its_id_and_what_is_known_of_it(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    async def request(number: int) -> None:
        begin(f"id-{number}")
        logging.getLogger("chat").info("first")
        about(user=f"user {number}", room="lobby")
        # A task of the request's own knows what is found out later, too.
        later = asyncio.create_task(one_more())
        about(connection_id=number)
        await later

    async def one_more() -> None:
        logging.getLogger("chat").info("second")

    set_up("json", "INFO")
    logging.getLogger("chat").info("of none")
    await asyncio.gather(*(asyncio.create_task(request(number)) for number in (1, 2)))
    none, *lines = map(json.loads, capsys.readouterr().err.splitlines())
    assert not {"request_id", "user", "room", "connection_id", "trace"} & set(none)
    for number in (1, 2):
        first, second = [one for one in lines if one["request_id"] == f"id-{number}"]
        assert not {"user", "room", "connection_id", "trace"} & set(first)
        known = {"user": f"user {number}", "room": "lobby", "connection_id": number}
        assert known.items() <= second.items()


def test_a_text_line_has_the_id_of_its_request_at_the_end(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    def request() -> None:
        about(user="nobody asked")
        begin("3f2a9c1b")
        about(user="maria")
        logging.getLogger("chat").info("User maria connected")

    set_up("text", "INFO")
    contextvars.copy_context().run(request)
    logging.getLogger("chat").info("of none")
    with_id, without = capsys.readouterr().err.splitlines()
    assert with_id.endswith(" chat: User maria connected [3f2a9c1b]")
    assert without.endswith(" chat: of none")


def test_repeats_are_left_out_and_told_of_at_the_end(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up("text", "INFO")
    for _ in range(1_000):
        logging.getLogger("chat").error("Error saving message: %s", "TimeoutError")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == ALLOWED
    root.handlers[0].close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" chat: Left out 990 more of: Error saving message: TimeoutError")


def test_libraries_that_talk_too_much_are_kept_quiet(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up("text", "DEBUG")
    for name in QUIET:
        # `databases` writes each statement with its values, passwords and texts included.
        logging.getLogger(name).info("SELECT %s", "text of a message")
        logging.getLogger(f"{name}.core").debug("SELECT %s", "text of a message")
    assert capsys.readouterr().err == ""
    assert sys.stderr is not None
