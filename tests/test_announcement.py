"""What bells say: reading gives back what was written, whatever it was."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.live import announcement
from chat.live.announcement import MAX_ANNOUNCEMENT, Announcement, read, write
from chat.protocol import Entry
from tests.live import entry, run

HERE, THERE, EPOCH = "node-a", "node-b", "6fQ2"


def told(seq: int, text: str) -> Entry:
    """Return a message as the log encodes it: one line of JSON, not only ASCII."""
    line = json.dumps({"seq": seq, "text": text}, ensure_ascii=False, separators=(",", ":"))
    return Entry(seq, line, len(line.encode()))


@given(
    first=st.integers(1, 2**53 - 200),
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=50), min_size=1, max_size=100),
)
def test_reading_gives_back_what_was_written(first: int, texts: list[str]) -> None:
    entries = [told(seq, text) for seq, text in enumerate(texts, first)]
    said = read(write(THERE, EPOCH, entries), HERE)
    assert said == Announcement(EPOCH, entries[-1].seq, entries)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("limit", [MAX_ANNOUNCEMENT, 10])
def test_ones_own_are_passed_over_long_or_short(
    count: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcement, "MAX_ANNOUNCEMENT", limit)
    assert read(write(HERE, EPOCH, run(1, count)), HERE) is None


def test_one_that_is_too_long_carries_the_last_seq_only() -> None:
    entries = [entry(seq, MAX_ANNOUNCEMENT // 2) for seq in (7, 8)]
    assert read(write(THERE, EPOCH, entries), HERE) == Announcement(EPOCH, 8, entries)
    entries.append(entry(9))
    text = write(THERE, EPOCH, entries)
    assert len(text) < 100
    assert read(text, HERE) == Announcement(EPOCH, 9, [])


def test_sizes_are_bytes_of_utf_8() -> None:
    entries = [told(1, "hola"), told(2, "señor"), told(3, "😀" * 10)]
    said = read(write(THERE, EPOCH, entries), HERE)
    assert said is not None
    assert [one.size for one in said.entries] == [len(one.json.encode()) for one in entries]
    assert [one.size - len(one.json) for one in said.entries] == [0, 1, 30]
