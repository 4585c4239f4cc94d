"""The soak's own judgement: what grew. `make soak` itself takes minutes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.house import Footprint
from tests.faults.soak import MAX_FILES, MAX_MEGABYTES, MAX_TASKS, MAX_THREADS, Watch

FIRST = Footprint(megabytes=100.0, files=30, threads=1, tasks=20)


def grew(**more: Any) -> str:
    watch = Watch(None, 60)  # type: ignore[arg-type]  # nothing is looked at here
    watch.first = FIRST
    watch.last = replace(FIRST, **{name: getattr(FIRST, name) + by for name, by in more.items()})
    return watch.grew


@pytest.mark.parametrize(
    ("what", "limit", "words"),
    [
        ("megabytes", MAX_MEGABYTES, "memory"),
        ("files", MAX_FILES, "open files"),
        ("threads", MAX_THREADS, "threads"),
        ("tasks", MAX_TASKS, "tasks"),
    ],
)
def test_what_grows_above_its_limit_is_named(what: str, limit: float, words: str) -> None:
    assert grew(**{what: limit}) == ""
    assert grew(**{what: limit + 1}) == f"{words} by {limit + 1:.1f}"


def test_a_soak_that_never_got_warm_tells_nothing() -> None:
    assert Watch(None, 60).grew == "too short to tell"  # type: ignore[arg-type]
