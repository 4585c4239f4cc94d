"""Times: exact, UTC, and written as the contract says."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.clock import milliseconds, now, rfc3339

AT = 1_795_514_400_123
AT_WRITTEN = "2026-11-24T10:00:00.123Z"


def test_now_is_in_milliseconds() -> None:
    before = time.time()
    assert before * 1_000 - 1 <= now() <= time.time() * 1_000 + 1


def test_times_are_utc_with_milliseconds() -> None:
    assert rfc3339(AT) == AT_WRITTEN
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_000) == "1970-01-01T00:00:01.000Z"


# Milliseconds up to the year 2100; far beyond it, floats are too coarse for them.
@given(st.integers(0, 4_102_444_800_000))
def test_a_written_time_is_exact(moment: int) -> None:
    written = rfc3339(moment)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", written)
    assert int(written[-4:-1]) == moment % 1_000
    assert int(written[-7:-5]) == moment // 1_000 % 60


@pytest.mark.parametrize("moment", [0, 1, 999, 1_795_514_400_123, 4_102_444_799_999])
def test_a_time_that_was_written_is_read_again(moment: int) -> None:
    assert milliseconds(rfc3339(moment)) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-11-24",
        "2026-11-24T10:00:00Z",
        "2026-11-24T10:00:00.123",
        "2026-11-24T10:00:00.123+00:00",
        "2026-11-24T11:00:00.123+01:00",
        "2026-11-24T10:00:00.123456Z",
        "2026-13-24T10:00:00.123Z",
    ],
)
def test_a_time_that_is_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time such as"):
        milliseconds(text)
