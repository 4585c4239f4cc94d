"""Frames from the server: text that equals the contract's; close codes and names of rooms."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat import protocol
from chat.protocol import (
    MAX_INTEGER,
    Ack,
    CloseCode,
    Closing,
    Entry,
    Error,
    Message,
    Person,
    Pong,
    Renewed,
    Welcome,
    direct_pair,
    encode,
    entry,
    fitting,
    history_frame,
    is_reserved,
    messages_frame,
    redacted,
    same,
)

MARIA = Person(7, "maria")
AT = 1_795_514_400_123
AT_WRITTEN = "2026-11-24T10:00:00.123Z"
FRAME_LIMIT = 256 * 1024  # bytes, of the contract

NINES = "9" * 5_000
DEEP = 10_000


def faces(seq: int, text: str = "hola", **more: Any) -> Message:
    fields: dict[str, Any] = {"sender": MARIA, "receiver": None, **more}
    return Message(seq=seq, id=f"c-{seq}", text=text, sent_at=AT_WRITTEN, **fields)


# --- Frames from the server


def test_the_welcome_is_the_contracts() -> None:
    welcome = Welcome(
        room="lobby",
        epoch="6fQ2",
        first_seq=1,
        last_seq=812,
        resumed=True,
        user=MARIA,
        expires_at=None,
        server_time=AT_WRITTEN,
    )
    assert json.loads(encode(welcome)) == {
        "type": "welcome",
        "protocol": 1,
        "room": "lobby",
        "epoch": "6fQ2",
        "first_seq": 1,
        "last_seq": 812,
        "resumed": True,
        "user": {"id": 7, "name": "maria"},
        "expires_at": None,
        "limits": {"text": 4_000, "frame": 65_536},
        "server_time": AT_WRITTEN,
    }


@pytest.mark.parametrize(
    ("frame", "written"),
    [
        (
            Ack(id="c-1f", seq=813, sent_at=AT_WRITTEN, duplicate=False),
            {"type": "ack", "id": "c-1f", "seq": 813, "sent_at": AT_WRITTEN, "duplicate": False},
        ),
        (
            Error(code="rate_limited", detail="Slow down.", id="c-1f", retry_after=0.8),
            {
                "type": "error",
                "code": "rate_limited",
                "detail": "Slow down.",
                "id": "c-1f",
                "retry_after": 0.8,
            },
        ),
        (
            Error(code="bad_json", detail="This is not valid JSON."),
            {"type": "error", "code": "bad_json", "detail": "This is not valid JSON."},
        ),
        (Pong(AT_WRITTEN), {"type": "pong", "server_time": AT_WRITTEN}),
        (Renewed(AT_WRITTEN), {"type": "token", "expires_at": AT_WRITTEN}),
        (
            Closing(code=1012, reason="restart", reconnect_after=0.73),
            {"type": "closing", "code": 1012, "reason": "restart", "reconnect_after": 0.73},
        ),
    ],
)
def test_small_frames_are_the_contracts(frame: msgspec.Struct, written: dict[str, Any]) -> None:
    assert json.loads(encode(frame)) == written


PLAIN = {
    "seq": 813,
    "id": "c-813",
    "sender": {"id": 7, "name": "maria"},
    "receiver": None,
    "text": "hola",
    "sent_at": AT_WRITTEN,
}


def test_an_entry_is_the_contracts() -> None:
    assert json.loads(entry(faces(813)).json) == PLAIN
    addressed = entry(faces(813, receiver=Person(12, "zoë")))
    assert json.loads(addressed.json) == PLAIN | {"receiver": {"id": 12, "name": "zoë"}}
    bare = entry(faces(813, "", redacted=True))
    assert json.loads(bare.json) == PLAIN | {"text": "", "redacted": True}


def test_a_redacted_entry_is_the_same_message_without_its_text() -> None:
    first = entry(faces(813, 'says "redacted":true}', receiver=Person(12, "zoë")))
    bare = redacted(first)
    assert json.loads(bare.json) == json.loads(first.json) | {"text": "", "redacted": True}
    assert (bare.seq, bare.size) == (813, len(bare.json.encode()))
    assert redacted(bare) == bare
    assert same(first, first) and same(first, bare) and same(bare, first)
    other = entry(faces(813, "other"))
    assert not same(first, other) and same(other, redacted(other))
    assert not same(bare, redacted(other)), "another receiver"


@given(st.text(max_size=200), st.text(min_size=1, max_size=32))
def test_an_entry_knows_its_size_and_keeps_each_character(text: str, name: str) -> None:
    one = entry(faces(1, text, sender=Person(7, name)))
    assert one.seq == 1
    assert one.size == len(one.json.encode())
    assert json.loads(one.json)["text"] == text
    assert json.loads(one.json)["sender"]["name"] == name


@pytest.mark.parametrize("room", ["lobby", "a" * 64, "dm.7.12", "A-b_c.D"])
def test_messages_are_joined_as_they_are(room: str) -> None:
    entries = [entry(faces(seq, f'a "quoted" {seq}\n')) for seq in (813, 814)]
    assert json.loads(messages_frame(room, iter(entries))) == {
        "type": "messages",
        "room": room,
        "messages": [json.loads(one.json) for one in entries],
    }


def test_a_history_is_the_contracts() -> None:
    entries = [entry(faces(1)), entry(faces(2))]
    assert json.loads(history_frame("h1", "lobby", entries, True)) == {
        "type": "history",
        "id": "h1",
        "room": "lobby",
        "messages": [json.loads(one.json) for one in entries],
        "more": True,
    }
    assert json.loads(history_frame(None, "lobby", [], False)) == {
        "type": "history",
        "room": "lobby",
        "messages": [],
        "more": False,
    }
    assert json.loads(history_frame('"\\', "lobby", [], False))["id"] == '"\\'


@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=60), st.integers(1, 100_000))
def test_fitting_takes_as_many_as_fit_and_at_least_one(sizes: list[int], limit: int) -> None:
    count = fitting([Entry(seq, "", size) for seq, size in enumerate(sizes)], limit)
    assert 1 <= count <= len(sizes)
    assert count == 1 or sum(sizes[:count]) + count <= limit
    assert count == len(sizes) or sum(sizes[: count + 1]) + count + 1 > limit


@pytest.mark.parametrize("text", ["\x01" * 4_000, "😀" * 4_000, "a" * 4_000, "a"])
def test_no_frame_of_entries_that_fit_is_too_long(text: str) -> None:
    widest = Person(MAX_INTEGER, "😀" * 32)
    one = entry(
        Message(MAX_INTEGER, '"' * 64, widest, widest, text, AT_WRITTEN, True),
    )
    count = fitting([one] * 5_000)
    assert count * (one.size + 1) <= protocol.MAX_ENTRIES
    shared = messages_frame("r" * 64, [one] * count)
    answer = history_frame('"' * 64, "r" * 64, [one] * count, False)
    assert len(shared.encode()) <= FRAME_LIMIT
    assert len(answer.encode()) <= FRAME_LIMIT


def test_a_shared_text_is_a_string_that_can_keep_its_bytes() -> None:
    shared = messages_frame("lobby", [])
    assert isinstance(shared, str)
    assert shared.wire is None
    shared.wire = b"bytes"
    assert shared.wire == b"bytes"


def test_the_close_codes_are_the_contracts() -> None:
    assert {int(code) for code in CloseCode} == {
        1000, 1001, 1003, 1008, 1009, 1011, 1012, 1013, 4401, 4403, 4404, 4429,
    }  # fmt: skip


# --- Names of rooms


@pytest.mark.parametrize("name", ["a", "A", "0", "lobby", "a.b-c_d", "a" * 64, "dm", "Z..."])
def test_these_are_names_of_rooms(name: str) -> None:
    assert protocol.ROOM_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "_a", "-a", "a" * 65, "a b", "a/b", "lobby\n", "ñ", "sala\u0661", "a'b", 'a"b',
     "a%2Fb", "a\0", "\uff41", "🙂"],
)  # fmt: skip
def test_these_are_not(name: str) -> None:
    assert not protocol.ROOM_NAME.fullmatch(name)


@pytest.mark.parametrize(
    ("room", "pair"),
    [
        ("dm.7.12", (7, 12)),
        (f"dm.1.{MAX_INTEGER}", (1, MAX_INTEGER)),
        ("dm.12.7", None),
        ("dm.7.7", None),
        ("dm.0.7", None),
        ("dm.07.12", None),
        ("dm.7.012", None),
        ("DM.7.12", None),
        ("dm.7.12.", None),
        ("dm.7.12\n", None),
        ("dm.7", None),
        ("dm..", None),
        ("dm.-1.2", None),
        ("dm.1.\u0662", None),
        (f"dm.1.{MAX_INTEGER + 1}", None),
        (f"dm.1.{NINES}", None),
        ("lobby", None),
    ],
)
def test_only_the_exact_form_names_a_direct_room(room: str, pair: tuple[int, int] | None) -> None:
    assert direct_pair(room) == pair


def test_names_that_begin_like_a_direct_room_are_reserved_in_any_case() -> None:
    assert all(map(is_reserved, ["dm.7.12", "DM.7.12", "dM.", "Dm.x"]))
    assert not any(map(is_reserved, ["dm", "dmx", "adm.1.2", "d.m"]))
