"""Moving windows: exact, and forgetful."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.web import windows as module
from chat.web.windows import Windows


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_use_that_is_one_too_many_is_told_how_long_to_wait(clock: Clock) -> None:
    windows = Windows(2, 10)
    assert windows.take("maria") == 0
    clock.now += 4
    assert windows.take("maria") == 0
    clock.now += 1
    assert windows.take("maria") == pytest.approx(5)
    clock.now += 5
    assert windows.take("maria") == 0
    assert windows.take("maria") == pytest.approx(4)


def test_each_key_has_a_window_of_its_own(clock: Clock) -> None:
    windows = Windows(1, 10)
    assert windows.take("maria") == 0
    assert windows.take("pepe") == 0
    assert windows.take("maria") > 0


def test_refused_uses_do_not_count(clock: Clock) -> None:
    windows = Windows(1, 10)
    windows.take("maria")
    for _ in range(9):
        clock.now += 1
        assert windows.take("maria") > 0
    clock.now += 1
    assert windows.take("maria") == 0


def test_keys_whose_window_has_passed_are_dropped(clock: Clock) -> None:
    windows = Windows(5, 1)
    for number in range(10_000):
        windows.take(str(number))
    assert len(windows) == 10_000
    clock.now += 2
    for _ in range(5_000):
        windows.take("maria")
        clock.now += 0.01
    assert len(windows) == 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=60))
def test_never_more_than_the_amount_in_any_window(uses: list[tuple[str, float]]) -> None:
    moment = 0.0
    taken: list[tuple[str, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "monotonic", lambda: moment)
        windows = Windows(3, 5)
        for key, pause in uses:
            moment += pause
            recent = sum(1 for who, when in taken if who == key and when > moment - 5)
            allowed = windows.take(key) == 0
            assert allowed == (recent < 3)
            if allowed:
                taken.append((key, moment))
