"""The verdict itself: a log, a screen and acks that do not fit are each told by their name.

And the table that a run prints.
"""

from __future__ import annotations

import re

from tests.faults.checker import HEAD, Log, Report, Row, verdict
from tests.faults.client import Talker
from tests.faults.findings import Book, Finding, Kind, Line

ROOM = "lobby"


def spoken(count: int = 3) -> tuple[Book, Talker, list[Line]]:
    """Somebody said a few things, each was acked, and the screen shows the log."""
    book = Book()
    talker = Talker("maria", ROOM, "a-token", ["ws://127.0.0.1:1"], book, home=0, seed=1)
    for _ in range(count):
        talker.say()
    lines = [Line(seq, said.id, said.text) for seq, said in enumerate(book.said.values(), 1)]
    talker.screen = list(lines)
    talker.acks = {line.id: line.seq for line in lines}
    talker.unacked.clear()
    return book, talker, lines


def log_of(lines: list[Line]) -> Log:
    return {ROOM: [("maria", line) for line in lines]}


def kinds(book: Book, talker: Talker, log: Log) -> set[Kind]:
    verdict(book, [talker], log)
    return {one.kind for one in book.findings}


def test_what_fits_brings_no_finding() -> None:
    book, talker, lines = spoken()
    assert kinds(book, talker, log_of(lines)) == set()


def test_an_acked_message_that_the_log_does_not_have_is_lost() -> None:
    book, talker, lines = spoken()
    talker.screen = lines[:2]
    assert kinds(book, talker, log_of(lines[:2])) == {Kind.LOST}


def test_an_acked_message_under_another_seq_is_lost() -> None:
    book, talker, lines = spoken()
    talker.acks[lines[1].id] = 3
    assert kinds(book, talker, log_of(lines)) == {Kind.LOST}


def test_a_message_that_is_in_the_log_twice_is_doubled() -> None:
    book, talker, lines = spoken()
    again = [*lines, Line(4, lines[2].id, lines[2].text)]
    talker.screen = again
    talker.acks[lines[2].id] = 4
    assert kinds(book, talker, log_of(again)) == {Kind.DOUBLED}


def test_a_log_that_leaves_out_a_seq_has_a_hole() -> None:
    book, talker, lines = spoken()
    moved = [*lines[:2], Line(4, lines[2].id, lines[2].text)]
    talker.screen = moved
    talker.acks[lines[2].id] = 4
    assert kinds(book, talker, log_of(moved)) == {Kind.HOLE}


def test_a_screen_that_ends_early_or_changed_places_is_missing_something() -> None:
    for screen in (slice(0, 2), slice(1, 3), slice(None, None, -1)):
        book, talker, lines = spoken()
        talker.screen = lines[screen]
        assert kinds(book, talker, log_of(lines)) == {Kind.MISSING}


def test_a_message_without_an_ack_is_told() -> None:
    book, talker, lines = spoken()
    talker.say()
    assert kinds(book, talker, log_of(lines)) == {Kind.UNACKED}


def test_words_that_changed_in_the_log_are_strange() -> None:
    book, talker, lines = spoken()
    lines[0] = Line(1, lines[0].id, "something else")
    assert Kind.STRANGER in kinds(book, talker, log_of(lines))


def test_the_table_has_a_line_for_each_row_and_ends_with_the_whole_run() -> None:
    rows = [Row("redis: kill, 0.3 s", "1+2", acked=7, reconnects=2, worst=0.25, recovery=1.5)]
    total = Row("total", "1+2", acked=9, reconnects=2, lost=1, worst=0.5, recovery=1.5)
    told = Finding(1.0, Kind.LOST, "maria", "hola")
    table = Report(7, rows, total, [told]).table.splitlines()
    assert [re.split(r" {2,}", line) for line in table[1:4]] == [
        list(HEAD),
        ["redis: kill, 0.3 s", "1+2", "7", "2", "0", "0", "0.25 s", "1.50 s"],
        ["total", "1+2", "9", "2", "1", "0", "0.50 s", "1.50 s"],
    ]
    assert table[0] == "seed 7" and table[4:] == [str(told)]
