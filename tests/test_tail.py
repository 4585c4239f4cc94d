"""The tail: every order in which runs of messages may arrive."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat import protocol
from chat.live.tail import TAIL_BYTES, TAIL_COUNT, Offer, Tail
from chat.protocol import Entry, Message, Person, redacted
from tests.live import entry, run

NEWEST = 30  # messages in the logs that are made up below
# Runs of such a log as relays bring them: any part, in any order, doubled or not at all.
RUNS = st.lists(
    st.tuples(st.integers(1, NEWEST), st.integers(0, 6)).map(
        lambda part: run(part[0], min(NEWEST, part[0] + part[1]))
    ),
    max_size=40,
)


def seqs(entries: Sequence[Entry] | None) -> list[int] | None:
    return None if entries is None else [one.seq for one in entries]


def test_the_next_run_is_appended() -> None:
    tail = Tail(2)
    assert tail.offer(run(3, 5)) is Offer.APPENDED
    assert tail.last == 5
    assert seqs(tail.after(2)) == [3, 4, 5]


def test_a_run_that_is_known_changes_nothing() -> None:
    tail = Tail(5, run(1, 5))
    assert tail.offer(run(2, 4)) is Offer.DUPLICATE
    assert tail.offer(run(5, 5)) is Offer.DUPLICATE
    assert seqs(tail.after(0)) == [1, 2, 3, 4, 5]


def test_of_a_run_that_overlaps_only_the_new_part_is_taken() -> None:
    tail = Tail(5, run(1, 5))
    assert tail.offer(run(4, 7)) is Offer.APPENDED
    assert seqs(tail.after(0)) == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_behind_a_gap_is_refused_and_changes_nothing() -> None:
    tail = Tail(5, run(4, 5))
    assert tail.offer(run(7, 9)) is Offer.GAP
    assert tail.last == 5
    assert seqs(tail.after(3)) == [4, 5]
    assert tail.offer(run(6, 6)) is Offer.APPENDED
    assert tail.offer(run(7, 9)) is Offer.APPENDED
    assert tail.last == 9


def test_another_message_under_a_seq_that_is_held_contradicts() -> None:
    tail = Tail(5, run(3, 5))
    another = entry(5, 30)
    assert not tail.contradicts(run(4, 5))
    assert not tail.contradicts(run(4, 7)), "what follows is new"
    assert not tail.contradicts(run(6, 6)) and not tail.contradicts(run(9, 9))
    assert tail.contradicts([another])
    assert tail.contradicts([entry(4), another, entry(6)])
    assert not tail.contradicts([entry(2, 30), entry(3)]), "what is not held is not known"
    assert not Tail(5).contradicts([another])


def said(seq: int, text: str = "hola") -> Entry:
    return protocol.entry(
        Message(seq, f"c-{seq}", Person(7, "maria"), None, text, "2026-11-24T10:00:00.000Z")
    )


def test_a_redacted_message_is_held_without_its_text() -> None:
    tail = Tail(5, [said(seq, "hola" * seq) for seq in range(3, 6)])
    tail.redact([1, 4, 6])
    assert [json.loads(each.json)["text"] for each in tail.after(2) or ()] == [
        "hola" * 3,
        "",
        "hola" * 5,
    ]
    assert tail._size == sum(each.size for each in tail.after(2) or ())


def test_a_redaction_contradicts_nothing() -> None:
    tail = Tail(3, [said(2), said(3)])
    assert not tail.contradicts([redacted(said(2)), said(3)])
    tail.redact([3])
    assert not tail.contradicts([said(2), said(3)])
    assert tail.contradicts([said(2, "other"), said(3)])


def test_after_returns_nothing_at_the_head_and_none_beyond_its_reach() -> None:
    tail = Tail(9, run(7, 9))
    assert tail.first == 7
    assert seqs(tail.after(9)) == []
    assert seqs(tail.after(6)) == [7, 8, 9]
    assert tail.after(5) is None
    assert tail.after(0) is None


def test_a_tail_without_messages_reaches_back_to_its_head_only() -> None:
    tail = Tail(9)
    assert tail.first == 10
    assert seqs(tail.after(9)) == []
    assert tail.after(8) is None


def test_a_tail_of_an_empty_room_reaches_back_to_the_beginning() -> None:
    tail = Tail(0)
    assert seqs(tail.after(0)) == []
    assert tail.offer(run(1, 1)) is Offer.APPENDED
    assert seqs(tail.after(0)) == [1]


def test_the_oldest_messages_go_above_the_bound_by_count() -> None:
    tail = Tail(0)
    for seq in range(1, TAIL_COUNT + 11):
        tail.offer([entry(seq)])
    assert (tail.first, tail.last) == (11, TAIL_COUNT + 10)
    assert tail.after(9) is None
    assert seqs(tail.after(10)) == list(range(11, TAIL_COUNT + 11))


def test_one_long_run_is_cut_to_the_bound_too() -> None:
    tail = Tail(0)
    assert tail.offer(run(1, 3 * TAIL_COUNT)) is Offer.APPENDED
    assert (tail.first, tail.last) == (2 * TAIL_COUNT + 1, 3 * TAIL_COUNT)
    assert len(tail.after(2 * TAIL_COUNT) or ()) == TAIL_COUNT


def test_a_tail_is_not_opened_with_more_than_the_bound() -> None:
    tail = Tail(2 * TAIL_COUNT, run(1, 2 * TAIL_COUNT))
    assert tail.first == TAIL_COUNT + 1


def test_the_oldest_messages_go_above_the_bound_by_bytes() -> None:
    quarter = TAIL_BYTES // 4
    tail = Tail(0)
    tail.offer([entry(seq, quarter) for seq in range(1, 5)])
    assert tail.first == 1
    tail.offer([entry(5, quarter)])
    assert tail.first == 2
    tail.offer([entry(6, 3 * quarter)])
    assert tail.first == 5


def test_the_newest_message_is_kept_however_long_it_is() -> None:
    tail = Tail(0)
    tail.offer([*run(1, 3), entry(4, TAIL_BYTES + 1)])
    assert seqs(tail.after(3)) == [4]
    assert tail.after(2) is None
    tail.offer([entry(5)])
    assert seqs(tail.after(4)) == [5]


@given(RUNS, st.integers(1, 8), st.integers(20, 200))
def test_no_order_of_arrival_makes_a_gap_a_repeat_or_a_disorder(
    runs: list[list[Entry]], count: int, size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chat.live.tail.TAIL_COUNT", count)
        patch.setattr("chat.live.tail.TAIL_BYTES", size)
        tail = Tail(0)
        for one in runs:
            before, held = tail.last, seqs(tail.after(tail.first - 1))
            verdict = tail.offer(one)
            if verdict is Offer.APPENDED:
                assert one[0].seq <= before + 1 <= one[-1].seq == tail.last
            else:
                assert verdict is (Offer.GAP if one[0].seq > before + 1 else Offer.DUPLICATE)
                assert tail.last == before
                assert seqs(tail.after(tail.first - 1)) == held
            entries = tail.after(tail.first - 1)
            assert entries is not None
            assert seqs(entries) == list(range(tail.first, tail.last + 1))
            assert len(entries) <= count
            assert sum(one.size for one in entries) <= size or len(entries) == 1
            assert entries or tail.last == 0


@given(RUNS)
def test_runs_offered_again_and_again_in_any_order_bring_the_whole_log(
    runs: list[list[Entry]],
) -> None:
    runs = [*runs, *([one] for one in run(1, NEWEST))]
    runs.reverse()
    tail, seen = Tail(0), 0
    while tail.last < NEWEST:
        for one in runs:
            tail.offer(one)
            entries = tail.after(seen)
            assert entries is not None
            assert [one.seq for one in entries] == list(range(seen + 1, tail.last + 1))
            seen = tail.last
    assert seen == NEWEST
