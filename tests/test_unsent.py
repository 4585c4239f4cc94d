"""What waits for its answer: what goes out next and when, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from chat.protocol import Error, Message, Person
from chat.unsent import ANSWER_LIMIT, IN_FLIGHT, RETRY_DEFAULT, Asked, Rejected, Unsent


def frame(id: str) -> dict[str, Any]:
    return {"type": "send", "id": id, "text": id}


def asked(unsent: Unsent, *ids: str) -> list[Asked]:
    return [unsent.add(frame(id)) for id in ids]


def due(unsent: Unsent, now: float) -> list[str]:
    return [one["id"] for one in unsent.due(now)]


def error(code: str, id: str, retry_after: Any = UNSET) -> Error:
    return Error(code, "A sentence.", id, retry_after)


async def test_each_goes_out_once_on_a_connection_in_the_order_of_asking() -> None:
    unsent = Unsent()
    asked(unsent, "a", "b")
    assert due(unsent, 1) == ["a", "b"]
    asked(unsent, "c")
    assert due(unsent, 2) == ["c"]
    unsent.begin()
    assert due(unsent, 3) == ["a", "b", "c"]


async def test_an_answer_goes_to_the_one_who_asked() -> None:
    unsent = Unsent()
    first, second = asked(unsent, "a", "b")
    unsent.settle("b", "to b")
    unsent.settle("of nobody", "x")
    assert second.answer.result() == "to b" and not first.answer.done()
    unsent.begin()
    assert due(unsent, 1) == ["a"]


async def test_what_lies_in_the_log_is_acked_and_another_text_under_its_id_is_not() -> None:
    unsent = Unsent()
    first, second = asked(unsent, "a", "b")
    for id, text in (("a", "a"), ("b", "another"), ("c", "of nobody")):
        unsent.found(Message(5, id, Person(7, "maria"), None, text, "2026-11-24T10:00:00.123Z"))
    assert first.answer.result().seq == 5 and not second.answer.done()


async def test_no_more_are_under_way_than_servers_hold() -> None:
    unsent = Unsent()
    ids = [str(number) for number in range(IN_FLIGHT + 2)]
    asked(unsent, *ids)
    assert due(unsent, 1) == ids[:IN_FLIGHT]
    assert due(unsent, 2) == []
    unsent.settle("3", "stored")
    assert due(unsent, 3) == [ids[IN_FLIGHT]]


async def test_what_nobody_has_answered_for_long_is_said_again() -> None:
    unsent = Unsent()
    assert unsent.wait(0) is None
    asked(unsent, "a")
    due(unsent, 10)
    assert unsent.wait(12) == ANSWER_LIMIT - 2
    assert due(unsent, 10 + ANSWER_LIMIT - 1) == []
    assert due(unsent, 10 + ANSWER_LIMIT) == ["a"]


async def test_who_is_rate_limited_waits_and_goes_on_one_by_one_so_that_the_order_stays() -> None:
    unsent = Unsent()
    asked(unsent, "a", "b", "c")
    due(unsent, 0)
    for id in ("b", "c"):
        assert unsent.refuse(error("rate_limited", id, 4.0), 0)
    assert due(unsent, 3.9) == []
    assert 0 < (unsent.wait(3.9) or 0) <= 1.1
    unsent.settle("a", "stored")
    for id in ("b", "c"):
        assert due(unsent, 5) == [id]
        assert due(unsent, 5) == []
        unsent.settle(id, "stored")
    # All is sent: as fast as before.
    asked(unsent, "d", "e")
    assert due(unsent, 6) == ["d", "e"]


async def test_unavailable_is_tried_again_also_without_a_word_on_when() -> None:
    unsent = Unsent()
    [one] = asked(unsent, "a")
    due(unsent, 0)
    assert unsent.refuse(error("unavailable", "a"), 0)
    assert due(unsent, RETRY_DEFAULT * 0.99) == []
    assert due(unsent, RETRY_DEFAULT * 1.26) == ["a"] and not one.answer.done()


async def test_another_refusal_is_final_and_stops_nothing() -> None:
    unsent = Unsent()
    first, _ = asked(unsent, "a", "b")
    due(unsent, 0)
    assert unsent.refuse(error("text_empty", "a"), 0)
    with pytest.raises(Rejected, match="A sentence") as refused:
        first.answer.result()
    assert refused.value.code == "text_empty"
    assert not unsent.refuse(error("text_empty", "a"), 0)
    assert not unsent.refuse(Error("bad_json", "A sentence."), 0)
    unsent.begin()
    assert due(unsent, 1) == ["b"]


async def test_an_id_is_under_way_once() -> None:
    unsent = Unsent()
    asked(unsent, "a")
    with pytest.raises(ValueError, match="under way already"):
        unsent.add(frame("a"))
    unsent.remove("a")
    asked(unsent, "a")


async def test_all_are_told_where_there_will_be_no_answer() -> None:
    unsent = Unsent()
    both = asked(unsent, "a", "b")
    unsent.settle("a", "stored")
    unsent.give_up(Rejected("other_user", "Another one."))
    assert both[0].answer.result() == "stored"
    assert isinstance(both[1].answer.exception(), Rejected)
    assert due(unsent, 1) == []


@pytest.mark.parametrize(
    ("said", "least", "most"), [(0.0, 0.1, 0.2), (-5.0, 0.1, 0.2), (1e9, 60, 75)]
)
async def test_whatever_pause_is_asked_for_it_is_neither_none_nor_for_ever(
    said: float, least: float, most: float
) -> None:
    unsent = Unsent()
    unsent.add({"id": "a", "type": "send"})
    assert len(unsent.due(0.0)) == 1
    assert unsent.refuse(Error("unavailable", "away", "a", said), 0.0)
    wait = unsent.wait(0.0)
    assert wait is not None and least <= wait <= most
