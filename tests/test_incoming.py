"""Frames from clients: every frame, and every refusal."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat import incoming
from chat.errors import BadFrame, BadJson, TextEmpty, TextTooLong, UnknownType, WireError
from chat.incoming import (
    History,
    Ping,
    Post,
    Renew,
    Send,
    check_object,
    check_text,
    faulty_id,
    parse,
)
from chat.protocol import MAX_INTEGER

NINES = "9" * 5_000
DEEP = 10_000


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
def test_each_frame_of_the_contract_is_understood(raw: str, frame: incoming.ClientFrame) -> None:
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
