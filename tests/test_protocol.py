"""Frames in and out: every frame, every refusal, and text that equals the contract's."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat import protocol
from chat.errors import BadFrame, BadJson, TextEmpty, TextTooLong, UnknownType, WireError
from chat.protocol import (
    MAX_INTEGER,
    Ack,
    CloseCode,
    Closing,
    Entry,
    Error,
    History,
    Message,
    Person,
    Ping,
    Pong,
    Post,
    Renew,
    Renewed,
    Send,
    Welcome,
    check_object,
    check_text,
    direct_pair,
    encode,
    entry,
    faulty_id,
    fitting,
    history_frame,
    is_reserved,
    messages_frame,
    parse,
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


# --- Frames from the client


@pytest.mark.parametrize(
    ("raw", "frame"),
    [
        ('{"type":"send","text":"hola"}', Send("hola")),
        (
            '{"type":"send","id":"c-1f","text":"hola","receiver_id":12}',
            Send("hola", "c-1f", 12),
        ),
        ('{"text":"hola","id":"c-1f","type":"send"}', Send("hola", "c-1f")),
        ('{"type":"send","text":"a","id":null,"receiver_id":null}', Send("a")),
        (f'{{"type":"send","text":"a","id":"{"x" * 64}"}}', Send("a", "x" * 64)),
        (r'{"type":"send","text":"a","id":"!~\"\\"}', Send("a", '!~"\\')),
        (f'{{"type":"send","text":"a","receiver_id":{MAX_INTEGER}}}', Send("a", None, MAX_INTEGER)),
        (r'{"type":"send","text":"\ud83d\ude00 \n"}', Send("😀 \n")),
        ('{"type":"history"}', History()),
        ('{"type":"history","id":"h1","before":763,"limit":50}', History("h1", 763, 50)),
        ('{"type":"history","before":null,"limit":1}', History(None, None, 1)),
        (f'{{"type":"history","before":{MAX_INTEGER},"limit":200}}', History(None, MAX_INTEGER, 200)),  # noqa: E501
        ('{"type":"token","token":"abc"}', Renew("abc")),
        ('{"type":"ping"}', Ping()),
        (' {"type" : "ping"}\r\n\t', Ping()),
    ],
)  # fmt: skip
def test_each_frame_of_the_contract_is_understood(raw: str, frame: protocol.ClientFrame) -> None:
    assert parse(raw) == frame


@pytest.mark.parametrize("more", ['"x":1', '"x":{"y":[null]}', f'"x":{NINES}', '"x":1e999'])
def test_fields_that_nobody_knows_are_ignored(more: str) -> None:
    assert parse(f'{{"type":"ping",{more}}}') == Ping()


NOT_JSON = {
    "nothing": "",
    "white space": " \n",
    "cut": '{"type":"ping"',
    "a word": "hola",
    "more behind it": '{"type":"ping"}{}',
    "a comma too many": '{"type":"ping",}',
    "single quotes": "{'type':'ping'}",
    "a zero in front": '{"type":"ping","x":01}',
    "not a number": '{"type":"ping","x":NaN}',
    "infinity": '{"type":"ping","x":Infinity}',
    "a raw control character": '{"type":"ping","x":"a\tb"}',
    "a raw NUL": '{"type":"ping","x":"\0"}',
    "an unknown escape": r'{"type":"ping","x":"\x00"}',
    "a byte order mark": '\ufeff{"type":"ping"}',
    "deep arrays": '{"type":"ping","x":' + "[" * DEEP + "]" * DEEP + "}",
    "deep objects": '{"x":' * DEEP + "1" + "}" * DEEP,
    "deep and cut": '{"x":' * DEEP,
    "deep in a frame of no type": '{"type":"nope","x":' + "[" * DEEP + "]" * DEEP + "}",
    "an escaped lone surrogate": r'{"type":"send","text":"\ud800"}',
    "surrogates the wrong way round": r'{"type":"send","text":"\ude00\ud83d"}',
    "a raw lone surrogate": '{"type":"send","text":"\ud800"}',
    "a lone surrogate in a field nobody knows": r'{"type":"ping","x":"\udfff"}',
    "a lone surrogate in a key": r'{"\ud800":1,"type":"ping"}',
    "a lone surrogate in the type": r'{"type":"\ud800"}',
    "a lone surrogate in the id": r'{"type":"send","text":"a","id":"\ud800"}',
    "a lone surrogate behind a bad field": r'{"type":"send","text":5,"x":"\ud800"}',
    "a lone surrogate behind an unknown type": r'{"type":"nope","x":"\ud800"}',
    "a lone surrogate behind a huge number": r'{"type":"nope","x":1e999,"y":["\ud800"]}',
    "not JSON behind a bad field": '{"type":"send","text":5,"x":}',
    "not JSON behind a huge number": '{"type":"nope","x":1e999,"y":[}',
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_json_is_refused(name: str) -> None:
    with pytest.raises(BadJson, match="not valid JSON"):
        parse(NOT_JSON[name])


@pytest.mark.parametrize("raw", ["[]", '[{"type":"ping"}]', '"ping"', "1", "null", "true", NINES])
def test_json_that_is_no_object_is_refused(raw: str) -> None:
    with pytest.raises(BadJson, match=r"^The JSON is not an object\.$"):
        parse(raw)


@pytest.mark.parametrize("raw", ["{}", '{"type":null}', '{"type":1}', '{"type":["send"]}',
                                 '{"type":{}}', f'{{"x":{NINES}}}', '{"type":1e999}'])  # fmt: skip
def test_a_frame_needs_a_type_that_is_a_string(raw: str) -> None:
    with pytest.raises(BadFrame, match="`type`"):
        parse(raw)


@pytest.mark.parametrize("kind", ["nope", "", "SEND", "send ", "welcome", "messages", "x" * 60_000])
@pytest.mark.parametrize("more", ["", ',"text":5', f',"x":{NINES}', ',"x":1e999'])
def test_a_type_that_does_not_exist_is_refused(kind: str, more: str) -> None:
    with pytest.raises(UnknownType) as refused:
        parse(f'{{"type":"{kind}"{more}}}')
    assert len(refused.value.detail) < 200, "it comes back to whoever sent it"


def of(field: str, *values: str, kind: str = "send", rest: str = "") -> list[Any]:
    return [
        pytest.param(
            field, f'{{"type":"{kind}"{rest},"{field}":{value}}}', id=f"{kind}-{value}"[:40]
        )
        for value in values
    ]


BAD_NUMBERS = ("0", "-1", "1.5", "1.0", "1e2", '"1"', "true", "[]", "{}", str(MAX_INTEGER + 1),
               str(2**63), str(2**64), NINES, f"-{NINES}", "1e999")  # fmt: skip
BAD_IDS = ('""', '"a b"', '" a"', r'"a\n"', r'"\u0000"', r'"a\u0000"', r'"\u007f"', '"ñ"', '"😀"',
           f'"{"x" * 65}"', "1", "true", "[]", "{}")  # fmt: skip


@pytest.mark.parametrize(
    ("field", "raw"),
    [
        pytest.param("text", '{"type":"send"}', id="send-without-text"),
        pytest.param("token", '{"type":"token"}', id="token-without-token"),
        *of("text", "1", "null", "true", "[]", "{}", NINES),
        *of("token", "1", "null", "[]", kind="token"),
        *of("id", *BAD_IDS, rest=',"text":"a"'),
        *of("id", *BAD_IDS, kind="history"),
        *of("receiver_id", *BAD_NUMBERS, rest=',"text":"a"'),
        *of("before", *BAD_NUMBERS, kind="history"),
        *of("limit", "201", "null", *BAD_NUMBERS, kind="history"),
    ],
)
def test_a_bad_field_is_named(field: str, raw: str) -> None:
    with pytest.raises(BadFrame) as refused:
        parse(raw)
    assert f"`{field}`" in refused.value.detail
    assert refused.value.detail.endswith(".")
    assert len(refused.value.detail) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FRAMES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["send", "history", "token", "ping", "nope"]) | JSON,
        **dict.fromkeys(("text", "id", "receiver_id", "before", "limit", "token", "x"), JSON),
    },
)


@given(FRAMES.map(json.dumps) | st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
@example('{"type":"send","text":"a"}')
def test_whatever_arrives_is_a_frame_or_a_refusal(raw: str) -> None:
    try:
        frame = parse(raw)
    except BadJson:
        return
    except WireError as refused:
        assert refused.code in ("bad_frame", "unknown_type")
    else:
        assert json.loads(raw)["type"] == frame.__struct_config__.tag
    assert isinstance(json.loads(raw), dict)


@pytest.mark.parametrize(
    ("raw", "id"),
    [
        ('{"type":"send","id":"c-1"}', "c-1"),
        ('{"type":"nope","id":"c-1","x":1e999}', "c-1"),
        ('{"type":"send"}', None),
        ('{"type":"send","id":5}', None),
        ('{"type":"send","id":"a b"}', None),
        (r'{"type":"send","id":"a\n"}', None),
        (f'{{"type":"send","id":"{"x" * 65}"}}', None),
        ("[]", None),
        ("{", None),
        ('{"id":"c-1","x":' + "[" * DEEP, None),
        ('{"id":"\ud800"}', None),
    ],
)
def test_an_error_names_the_id_of_the_faulty_frame_if_it_could_be_one(
    raw: str, id: str | None
) -> None:
    assert faulty_id(raw) == id


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"\xff{}", b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16"), b'{"a":"\xed\xa0\x80"}',
     b'{"a":"\\ud800"}', b'{"a":' * DEEP, b'{"a":1}x'],
)  # fmt: skip
def test_a_body_that_is_not_one_object_in_utf8_is_refused(raw: bytes) -> None:
    with pytest.raises(BadJson):
        check_object(raw)


@pytest.mark.parametrize("raw", [b"{}", b'{"a":1}', f'{{"a":{NINES}}}'.encode(), b'{"a":-1e999}'])
def test_a_body_that_is_an_object_passes_whatever_its_numbers(raw: bytes) -> None:
    check_object(raw)


def test_a_post_has_the_fields_of_a_send() -> None:
    names = {field.name for field in msgspec.structs.fields(Post)}
    assert names == {field.name for field in msgspec.structs.fields(Send)}


# --- Texts


@pytest.mark.parametrize("text", ["a", " a ", "\n\n.", "x" * 4_000, "😀" * 4_000, "\u200b", "\x01"])
def test_these_texts_are_taken(text: str) -> None:
    check_text(text)


@pytest.mark.parametrize("text", ["", " ", "\t\r\n", "\u2003\u3000\u00a0", " " * 4_000])
def test_a_text_of_nothing_but_white_space_is_empty(text: str) -> None:
    with pytest.raises(TextEmpty):
        check_text(text)


def test_a_text_is_counted_in_code_points() -> None:
    with pytest.raises(TextTooLong, match=r"4000 characters; this one has 4001"):
        check_text("😀" * 4_001)


@pytest.mark.parametrize("text", ["\0", "a\0b", "\0" * 5_000])
def test_a_nul_in_a_text_is_refused_and_named(text: str) -> None:
    with pytest.raises(BadFrame, match=r"`text`.*NUL"):
        check_text(text)


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
    redacted = entry(faces(813, "", redacted=True))
    assert json.loads(redacted.json) == PLAIN | {"text": "", "redacted": True}


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
