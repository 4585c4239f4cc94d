"""What processes tell each other about their people: read as written, whatever else is said."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.live import notices as module
from chat.live.notices import (
    SEATS_PER_TEXT,
    Bye,
    Changes,
    HasRead,
    Hello,
    Notice,
    Notices,
    Seat,
    Types,
    Whole,
    portions,
)
from chat.log.users import MAX_NAME
from chat.protocol import MAX_INTEGER, Person

HERE, THERE = Notices("node-a"), Notices("node-b")
MARIA = Person(7, "maria")
MOST_BYTES = 256 * 1024

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=MAX_NAME)
numbers = st.integers(1, MAX_INTEGER)
seats = st.builds(Seat, numbers, names, st.integers(0, MAX_INTEGER))
rooms = st.lists(st.tuples(numbers, st.lists(seats, max_size=5)), max_size=5)
people = st.builds(Person, numbers, names)


@given(
    st.one_of(
        st.builds(Hello),
        st.builds(Bye),
        st.builds(Changes, rooms),
        st.builds(Whole, st.integers(0, 5), st.integers(1, 5), rooms),
        st.builds(Types, numbers, people),
        st.builds(HasRead, numbers, people, st.integers(0, MAX_INTEGER)),
    )
)
def test_another_process_reads_what_was_written(notice: Notice) -> None:
    text = THERE.write(notice)
    assert HERE.read(text) == ("node-b", notice)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("notice", "text"),
    [
        (Hello(), 'here node-b ["hello"]'),
        (Bye(), 'here node-b ["bye"]'),
        (Changes([(3, [Seat(7, "maria", 2)])]), 'here node-b ["changes",[[3,[[7,"maria",2]]]]]'),
        (Whole(0, 1, []), 'here node-b ["whole",0,1,[]]'),
        (Types(3, MARIA), 'typing node-b [3,{"id":7,"name":"maria"}]'),
        (HasRead(3, MARIA, 813), 'read node-b [3,{"id":7,"name":"maria"},813]'),
    ],
)
def test_the_first_word_says_what_it_is_about(notice: Notice, text: str) -> None:
    assert THERE.write(notice) == text


def test_ones_own_are_passed_over_unread() -> None:
    assert HERE.read(HERE.write(Hello())) is None
    assert HERE.read("here node-a nonsense") is None
    assert HERE.read(Notices("node-ab").write(Hello())) == ("node-ab", Hello())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "here",
        "here node-b",
        "here node-b ",
        "here node-b {}",
        "here node-b []",
        'here node-b ["goodbye"]',
        'here node-b ["changes"]',
        'here node-b ["changes",[[0,[]]]]',
        'here node-b ["changes",[[3,[[7,"maria"]]]]]',
        'here node-b ["changes",[[3,[[7,"maria",-1]]]]]',
        'here node-b ["changes",[[3,[[7,7,1]]]]]',
        'here node-b ["changes",[[9007199254740992,[]]]]',
        'here node-b ["changes",[[3,[[7,"' + "x" * 65 + '",1]]]]]',
        'here node-b ["whole",0,0,[]]',
        "here node-b " + "[" * 100_000,
        'here node-b ["hello"',
        "typing node-b [3]",
        "read node-b [3,7]",
        'read node-b [3,{"id":7,"name":"maria"},-1]',
        "shout node-b []",
    ],
)
def test_what_makes_no_sense_is_passed_over_and_said(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Notices("node-a").read(text) is None
    assert len(caplog.records) == 1
    assert "maria" not in caplog.text


def test_what_a_newer_version_adds_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    here = Notices("node-a")
    assert here.read('here node-b ["hello","and more"]') == ("node-b", Hello())
    assert here.read('typing node-b [3,{"id":7,"name":"maria","age":5},0]') == (
        "node-b",
        Types(3, MARIA),
    )
    assert not caplog.records


def test_the_log_is_not_filled_with_complaints(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Notices("node-a")
    for _ in range(100):
        here.read("here node-b nonsense")
    assert len(caplog.records) == 1
    monkeypatch.setattr(module, "COMPLAINT_PAUSE", 0.0)
    here.read("here node-b nonsense")
    assert len(caplog.records) == 2


def test_no_text_clogs_the_relay() -> None:
    longest = [Seat(MAX_INTEGER, name * MAX_NAME, 1_000) for name in ("😀", "\\", '"', "ﷺ")]
    for seat in longest:
        spread = [(MAX_INTEGER, [seat]) for _ in range(SEATS_PER_TEXT)]
        for rooms in ([(MAX_INTEGER, [seat] * SEATS_PER_TEXT)], spread):
            assert len(HERE.write(Whole(99, 100, rooms)).encode()) < MOST_BYTES


@given(st.lists(st.integers(0, 25), max_size=10))
def test_portions_hold_every_seat_once_in_order(sizes: list[int]) -> None:
    rooms = [
        (room_id, [Seat(user_id, "u", 1) for user_id in range(1, size + 1)])
        for room_id, size in enumerate(sizes, 1)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SEATS_PER_TEXT", 7)
        found = list(portions(rooms))
    assert all(sum(len(seats) for _, seats in portion) <= 7 for portion in found)
    flat = [(id, seat) for portion in found for id, seats in portion for seat in seats]
    assert flat == [(id, seat) for id, seats in rooms for seat in seats]
    assert len(found) == -(-sum(sizes) // 7)
