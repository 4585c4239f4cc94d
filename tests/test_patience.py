"""Pauses: random, ever longer, as long as a server says, and never for ever."""

from __future__ import annotations

import random

import pytest

from chat.patience import TOLD_MOST, Backoff, Patience


def test_pauses_are_a_random_part_of_a_limit_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    backoff = Backoff()
    assert [backoff.pause(0, None) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.pause(9, None) == 30
    # One that stood for a while starts anew.
    assert backoff.pause(11, None) == 0.5
    assert backoff.pause(0, 40.5) == 40.5
    hasty = Backoff(Patience(backoff_first=0.1, backoff_most=0.2))
    assert [hasty.pause(0, None) for _ in range(3)] == [0.1, 0.2, 0.2]


@pytest.mark.parametrize("told", [0.0, -1.0])
def test_who_is_told_to_come_back_at_once_does_so_ever_more_rarely(
    told: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    backoff = Backoff()
    assert [backoff.pause(0, told) for _ in range(3)] == [0.5, 1, 2]
    assert backoff.pause(0, 1e9) == TOLD_MOST
