"""Every frame of a conversation: section 3 of the wire contract, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import ChatServerFactory
from tests.people import (
    API_KEY,
    MAX_SERVER_FRAME,
    Member,
    Person,
    a_name,
    a_room,
    an_id,
    direct_room,
    execute,
    guest,
    lines_with,
    masked,
    mint,
    raw_socket,
    site,
    until,
)
from tests.servers import ChatServer, PostgresServer

pytest_plugins = ["tests.houses"]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
MAX_INTEGER = 2**53 - 1
# 4,000 characters of 4 bytes each: 16 of them are 256 KiB.
BIG = "😀" * 4000
# Each of these takes 6 bytes in JSON.
CONTROLS = "\x01" * 4000


@pytest.fixture
async def maria(server: ChatServer) -> Person:
    return await site(server)


@pytest.fixture
async def pepe(server: ChatServer) -> Person:
    return await site(server)


@pytest.fixture
async def member(maria: Person) -> AsyncIterator[Member]:
    """Maria in an empty room of her own."""
    async with maria.enter(a_room()) as member:
        yield member


# --- send, ack, messages


async def test_a_message_is_acked_and_reaches_all_members_its_sender_too(
    maria: Person, pepe: Person
) -> None:
    room, message_id = a_room(), an_id()
    async with maria.enter(room) as hers, pepe.enter(room) as his:
        ack = await hers.say("hola", id=message_id)
        assert ack.keys() == {"type", "id", "seq", "sent_at", "duplicate"}
        assert TIME.fullmatch(ack["sent_at"])
        assert (ack["id"], ack["seq"], ack["duplicate"]) == (message_id, 1, False)
        entry = {
            "seq": 1,
            "id": message_id,
            "sender": maria.person,
            "receiver": None,
            "text": "hola",
            "sent_at": ack["sent_at"],
        }
        assert await hers.read_to(1) == [entry]
        assert await his.read_to(1) == [entry]
        frame = await his.next("messages")
        assert frame == {"type": "messages", "room": room, "messages": [entry]}


async def test_an_ack_is_sent_after_the_message_is_in_the_database(
    server: ChatServer, member: Member
) -> None:
    for number in range(5):
        ack = await member.say(f"message {number}")
        assert execute(server, "SELECT seq FROM messages WHERE message_id = ?", ack["id"]) == [
            (ack["seq"],)
        ]


async def test_left_out_the_server_makes_an_id(member: Member) -> None:
    one, two = await member.say("one"), await member.say("two")
    assert one["id"] != two["id"]
    assert all(re.fullmatch(r"[\x21-\x7e]{1,64}", ack["id"]) for ack in (one, two))
    entries = await member.read_to(2)
    assert [entry["id"] for entry in entries] == [one["id"], two["id"]]


@pytest.mark.parametrize(
    "message_id",
    ["a", "x" * 64, "".join(map(chr, range(0x21, 0x61))), "".join(map(chr, range(0x61, 0x7F)))],
)
async def test_an_id_is_1_to_64_printable_ascii_characters(member: Member, message_id: str) -> None:
    assert (await member.say("hola", id=message_id))["id"] == message_id
    assert (await member.read_to(1))[0]["id"] == message_id


@pytest.mark.parametrize(
    "text",
    [
        "x" * 4000,
        BIG,
        CONTROLS,
        " hola ",
        "a\nb\tc\r\nd",
        '"\\/<script>alert(1)</script>&amp;',
        "\u2028\u2029\ufeff\u200f",
        "עברית ไทย 中文 🏳️‍🌈",
        "e\u0301 and \u00e9",
    ],
)
async def test_a_text_comes_out_as_it_went_in(maria: Person, text: str) -> None:
    room = a_room()
    async with maria.enter(room) as live:
        await live.say(text)
        await live.read_to(1)
    async with maria.enter(room, "?since=0") as later:
        await later.read_to(1)
    read = (await maria.read(room)).json["messages"]
    assert live.texts == later.texts == [read[0]["text"]] == [text]


async def test_a_repeated_send_adds_nothing_and_is_acked_as_a_duplicate(
    maria: Person, pepe: Person
) -> None:
    room, message_id = a_room(), an_id()
    async with maria.enter(room) as member, pepe.enter(room) as other:
        first = await member.say("hola", id=message_id)
        await member.say("between")
        again = await member.say("hola", id=message_id)
        assert again == {**first, "duplicate": True}
        last = await member.say("the end")
        assert last["seq"] == 3
        await other.read_to(3)
        assert other.texts == ["hola", "between", "the end"]


async def test_a_repeat_from_another_device_or_over_http_is_a_duplicate(maria: Person) -> None:
    room, message_id = a_room(), an_id()
    async with maria.enter(room) as desk, maria.enter(room) as phone:
        first = await desk.say("hola", id=message_id)
        assert await phone.say("hola", id=message_id) == {**first, "duplicate": True}
        answer = await maria.post(room, "hola", id=message_id)
        assert answer.status == 200
        assert answer.json == {k: v for k, v in first.items() if k != "type"} | {"duplicate": True}


async def test_repeats_that_are_under_way_together_are_stored_once(maria: Person) -> None:
    room, message_id = a_room(), an_id()
    async with maria.enter(room) as desk, maria.enter(room) as phone:
        for _ in range(10):
            for member in (desk, phone):
                await member.send("send", id=message_id, text="hola")
        acks = [await member.next("ack") for _ in range(10) for member in (desk, phone)]
        assert {ack["seq"] for ack in acks} == {1}
        assert len({ack["sent_at"] for ack in acks}) == 1
        assert [ack["duplicate"] for ack in acks].count(False) == 1
        assert (await desk.say("next"))["seq"] == 2


async def test_an_id_belongs_to_its_room_and_sender(maria: Person, pepe: Person) -> None:
    room, message_id = a_room(), an_id()
    async with (
        maria.enter(room) as member,
        pepe.enter(room) as other,
        maria.enter(a_room()) as elsewhere,
    ):
        acks = [await one.say("hola", id=message_id) for one in (member, other, elsewhere)]
        assert [ack["duplicate"] for ack in acks] == [False] * 3
        assert [ack["seq"] for ack in acks] == [1, 2, 1]


@pytest.mark.parametrize("change", ["text", "receiver", "no receiver"])
async def test_a_known_id_with_another_text_or_receiver_is_a_conflict(
    maria: Person, pepe: Person, change: str
) -> None:
    room, message_id = a_room(), an_id()
    first: dict[str, Any] = {"text": "hola"}
    second: dict[str, Any] = {"text": "hola"}
    if change == "text":
        second["text"] = "adios"
    elif change == "receiver":
        first["receiver_id"], second["receiver_id"] = pepe.id, maria.id
    else:
        first["receiver_id"] = pepe.id
    async with maria.enter(room) as member:
        assert (await member.asks("send", id=message_id, **first))["type"] == "ack"
        error = await member.asks("send", id=message_id, **second)
        assert (error["type"], error["code"], error["id"]) == ("error", "id_conflict", message_id)
        assert (await member.say("next"))["seq"] == 2
        assert [entry["seq"] for entry in await member.read_to(2)] == [1, 2]


async def test_a_conflict_under_way_together_stores_the_first_alone(member: Member) -> None:
    message_id = an_id()
    await member.send("send", id=message_id, text="one")
    await member.send("send", id=message_id, text="two")
    answers = [await member.next("ack", "error") for _ in range(2)]
    assert [answer["type"] for answer in answers] == ["ack", "error"]
    assert answers[1]["code"] == "id_conflict"
    assert (await member.say("three"))["seq"] == 2
    await member.read_to(2)
    assert member.texts == ["one", "three"]


async def test_sends_under_way_get_their_seqs_in_their_order(maria: Person, pepe: Person) -> None:
    room, texts = a_room(), [str(number) for number in range(500)]
    async with maria.enter(room) as member, pepe.enter(room) as other:
        acks = await member.say_all(texts)
        assert [ack["seq"] for ack in acks] == list(range(1, 501))
        await other.read_to(500)
        assert other.texts == texts


async def test_many_senders_make_one_order_for_all(server: ChatServer) -> None:
    room = a_room()
    people = [await site(server) for _ in range(4)]

    async def talk(person: Person) -> list[dict[str, Any]]:
        async with person.enter(room, "?since=0") as member:
            mine = [f"{person.name} {number}" for number in range(50)]
            await member.say_all(mine)
            entries = await member.read_to(200)
            assert [one["text"] for one in entries if one["sender"]["id"] == person.id] == mine
            return entries

    seen = await asyncio.gather(*map(talk, people))
    assert all(entries == seen[0] for entries in seen)
    assert [entry["seq"] for entry in seen[0]] == list(range(1, 201))
    times = [entry["sent_at"] for entry in seen[0]]
    assert times == sorted(times)


async def test_everybody_sees_an_addressed_message_in_an_open_room(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    room = a_room()
    third = await site(server)
    async with maria.enter(room) as hers, pepe.enter(room) as his, third.enter(room) as theirs:
        await hers.say("psst", receiver_id=pepe.id)
        for member in (hers, his, theirs):
            (entry,) = await member.read_to(1)
            assert entry["receiver"] == pepe.person


async def test_a_receiver_must_exist(server: ChatServer, member: Member) -> None:
    error = await member.asks("send", id="c-1", text="hola", receiver_id=MAX_INTEGER)
    assert (error["code"], error["id"]) == ("unknown_receiver", "c-1")
    await server.wait_for_log(f"Receiver {MAX_INTEGER} does not exist")
    (line, *_) = lines_with(server, f"Receiver {MAX_INTEGER} does not exist")
    assert " ERROR " in line
    assert (await member.say("next"))["seq"] == 1


async def test_a_direct_room_needs_a_receiver(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    async with maria.enter(await direct_room(maria, pepe)) as member:
        error = await member.asks("send", id="c-1", text="hola")
        assert (error["code"], error["id"]) == ("missing_receiver", "c-1")
        await server.wait_for_log("Missing receiver_id in message")
        assert all(" ERROR " in line for line in lines_with(server, "Missing receiver_id"))
        assert (await member.say("hola", receiver_id=pepe.id))["seq"] == 1


async def test_in_a_direct_room_the_receiver_is_the_other_one(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    third = await site(server)
    async with maria.enter(await direct_room(maria, pepe)) as member:
        for wrong in (maria.id, third.id):
            error = await member.asks("send", text="hola", receiver_id=wrong)
            assert error["code"] == "forbidden"
        error = await member.asks("send", text="hola", receiver_id=MAX_INTEGER)
        assert error["code"] == "unknown_receiver"
        assert (await member.say("hola", receiver_id=pepe.id))["seq"] == 1
        assert (await member.read_to(1))[0]["receiver"] == pepe.person


async def test_a_redacted_message_keeps_its_seq_and_has_no_text(
    server: ChatServer, maria: Person
) -> None:
    room = a_room()
    # Over HTTP, so that nobody has the message in memory yet.
    await maria.post(room, "something bad")
    where = "room_id = (SELECT id FROM rooms WHERE name = ?)"
    execute(server, f"UPDATE messages SET redacted = 1 WHERE {where}", room)
    async with maria.enter(room, "?since=0") as member:
        (entry,) = await member.read_to(1)
    assert (entry["seq"], entry["redacted"], entry["text"]) == (1, True, "")


# --- Errors

NOT_JSON = [
    "",
    "{",
    "hola",
    '{"type":"ping"',
    '{"type":"ping"}{"type":"ping"}',
    '{"type":"ping",}',
    "{'type':'ping'}",
    '{"type":"send","text":"\\ud800"}',
    '{"type":"send","text":"\\x"}',
    '{"type":"send","text":"a\nb"}',
    '{"type":"ping","n":NaN}',
    '{"type":"ping","n":01}',
    "\ufeff" + '{"type":"ping"}',
    "[" * 10_000 + "]" * 10_000,
    '{"type":"ping","deep":' + "[" * 10_000 + "]" * 10_000 + "}",
]
NOT_AN_OBJECT = ["[]", '"ping"', "1", "null", "true", '[{"type":"ping"}]']


@pytest.mark.parametrize("raw", [*NOT_JSON, *NOT_AN_OBJECT], ids=lambda raw: raw[:24])
async def test_what_is_no_json_object_is_bad_json(member: Member, raw: str) -> None:
    error = await member.asks_raw(raw)
    assert (error["type"], error["code"]) == ("error", "bad_json")
    assert error.keys() == {"type", "code", "detail"}
    await member.is_well()


BAD_FRAMES: list[tuple[dict[str, Any], str]] = [
    ({}, "type"),
    ({"id": "x"}, "type"),
    ({"type": 1}, "type"),
    ({"type": None}, "type"),
    ({"type": ["send"]}, "type"),
    ({"type": "send"}, "text"),
    ({"type": "send", "text": 1}, "text"),
    ({"type": "send", "text": None}, "text"),
    ({"type": "send", "text": ["a"]}, "text"),
    ({"type": "send", "text": "a\0b"}, "text"),
    ({"type": "send", "text": "\0"}, "text"),
    ({"type": "send", "text": "a", "id": ""}, "id"),
    ({"type": "send", "text": "a", "id": "x" * 65}, "id"),
    ({"type": "send", "text": "a", "id": "a b"}, "id"),
    ({"type": "send", "text": "a", "id": "a\n"}, "id"),
    ({"type": "send", "text": "a", "id": "a\0"}, "id"),
    ({"type": "send", "text": "a", "id": "ñ"}, "id"),
    ({"type": "send", "text": "a", "id": "\x7f"}, "id"),
    ({"type": "send", "text": "a", "id": 1}, "id"),
    ({"type": "send", "text": "a", "receiver_id": 0}, "receiver_id"),
    ({"type": "send", "text": "a", "receiver_id": -1}, "receiver_id"),
    ({"type": "send", "text": "a", "receiver_id": 2**53}, "receiver_id"),
    ({"type": "send", "text": "a", "receiver_id": 10**4000}, "receiver_id"),
    ({"type": "send", "text": "a", "receiver_id": 1.5}, "receiver_id"),
    ({"type": "send", "text": "a", "receiver_id": "1"}, "receiver_id"),
    ({"type": "send", "text": "a", "receiver_id": True}, "receiver_id"),
    ({"type": "send", "text": "a", "receiver_id": {}}, "receiver_id"),
    ({"type": "history", "before": 0}, "before"),
    ({"type": "history", "before": 2**53}, "before"),
    ({"type": "history", "before": "1"}, "before"),
    ({"type": "history", "limit": 0}, "limit"),
    ({"type": "history", "limit": 201}, "limit"),
    ({"type": "history", "limit": 1.5}, "limit"),
    ({"type": "history", "id": "a b"}, "id"),
    ({"type": "token"}, "token"),
    ({"type": "token", "token": 1}, "token"),
]


@pytest.mark.parametrize(("frame", "field"), BAD_FRAMES, ids=lambda one: str(one)[:60])
async def test_a_field_that_is_missing_or_wrong_is_bad_frame_and_named(
    member: Member, frame: dict[str, Any], field: str
) -> None:
    error = await member.asks_raw(json.dumps(frame))
    assert (error["type"], error["code"]) == ("error", "bad_frame")
    assert f"`{field}`" in error["detail"]
    await member.is_well()
    assert (await member.say("nothing was stored before"))["seq"] == 1


async def test_an_unknown_type_is_said_so(member: Member) -> None:
    for kind in ("shout", "", "Send", "welcome", "x" * 1000):
        error = await member.asks(kind, id="c-1")
        assert (error["type"], error["code"], error["id"]) == ("error", "unknown_type", "c-1")
    await member.is_well()


@pytest.mark.parametrize("text", ["x" * 4001, "😀" * 4001, "é" * 20_000])
async def test_a_text_over_4000_characters_is_too_long(member: Member, text: str) -> None:
    error = await member.asks_raw(
        json.dumps({"type": "send", "id": "c-1", "text": text}, ensure_ascii=False)
    )
    assert (error["code"], error["id"]) == ("text_too_long", "c-1")
    assert (await member.say("next"))["seq"] == 1


@pytest.mark.parametrize("text", ["", " ", "\n\t\r", "\u00a0\u2003\u3000", " " * 4000])
async def test_a_text_of_nothing_but_white_space_is_empty(member: Member, text: str) -> None:
    error = await member.asks("send", id="c-1", text=text)
    assert (error["code"], error["id"]) == ("text_empty", "c-1")
    assert (await member.say("next"))["seq"] == 1


async def test_an_error_names_the_id_where_the_frame_had_one(member: Member) -> None:
    for frame in ({"type": "send", "id": "c-1"}, {"type": "history", "id": "c-1", "limit": 0}):
        assert (await member.asks_raw(json.dumps(frame)))["id"] == "c-1"
    # One that could not be an id is not given back.
    error = await member.asks_raw('{"type":"send","id":"\\u0000","text":"a"}')
    assert "id" not in error
    error = await member.asks("send", text=" ")
    assert "id" not in error


async def test_an_error_has_a_sentence_and_nothing_else(member: Member) -> None:
    error = await member.asks("send", id="c-1", text=" ")
    assert error.keys() == {"type", "code", "detail", "id"}
    assert error["detail"].endswith(".")


async def test_fields_that_nobody_knows_are_passed_over(member: Member) -> None:
    assert (await member.say("hola", color="red", nested={"a": [1, 2, {"b": None}]}))["seq"] == 1
    assert (await member.asks("ping", id="x", n=1e300))["type"] == "pong"
    assert (await member.read_to(1))[0].keys() == {
        *("seq", "id", "sender", "receiver", "text", "sent_at")
    }


async def test_of_a_field_given_twice_the_last_one_counts_and_nothing_breaks(
    member: Member,
) -> None:
    answer = await member.asks_raw('{"type":"send","text":"one","text":"two"}')
    assert answer["type"] == "ack"
    await member.read_to(1)
    assert member.texts == ["two"]


# --- ping, history, token


async def test_ping_asks_for_pong(member: Member) -> None:
    pong = await member.asks("ping")
    assert pong.keys() == {"type", "server_time"}
    assert TIME.fullmatch(pong["server_time"])


async def test_frames_are_answered_in_the_order_they_came(member: Member) -> None:
    for number in range(20):
        await member.send("history", id=f"h-{number}")
        await member.send("send", id=f"s-{number}", text=" ")
        await member.send("ping")
    answers = [await member.next("history", "error", "pong") for _ in range(60)]
    expected = [(f"h-{n}", f"s-{n}", None) for n in range(20)]
    assert [one.get("id") for one in answers] == [one for three in expected for one in three]


async def history(member: Member, **fields: Any) -> tuple[list[int], bool]:
    answer = await member.asks("history", **fields)
    assert answer["type"] == "history", answer
    return [entry["seq"] for entry in answer["messages"]], answer["more"]


async def test_history_gives_older_entries_a_page_at_a_time(maria: Person) -> None:
    room = a_room()
    async with maria.enter(room) as member:
        await member.say_all(str(number) for number in range(1, 251))
    async with maria.enter(room) as member:
        await member.read_to(250)
        answer = await member.asks("history", id="h1", before=201)
        assert answer.keys() == {"type", "id", "room", "messages", "more"}
        assert (answer["id"], answer["room"], answer["more"]) == ("h1", room, True)
        assert [entry["seq"] for entry in answer["messages"]] == list(range(151, 201))
        assert answer["messages"][0] == {**member.messages[0], **answer["messages"][0]}
        assert answer["messages"][0]["text"] == "151"
        assert await history(member) == (list(range(201, 251)), True)
        assert await history(member, limit=1) == ([250], True)
        assert await history(member, limit=200) == (list(range(51, 251)), True)
        assert await history(member, before=51, limit=200) == (list(range(1, 51)), False)
        assert await history(member, before=51, limit=50) == (list(range(1, 51)), False)
        assert await history(member, before=52, limit=50) == (list(range(2, 52)), True)
        assert await history(member, before=1) == ([], False)
        assert await history(member, before=2, limit=1) == ([1], False)
        assert await history(member, before=MAX_INTEGER, limit=2) == ([249, 250], True)


async def test_history_of_an_empty_room_is_empty(member: Member) -> None:
    assert await history(member) == ([], False)


async def test_history_without_an_id_has_none(member: Member) -> None:
    assert (await member.asks("history")).keys() == {"type", "room", "messages", "more"}


async def test_history_ends_at_the_first_seq_of_a_trimmed_room(
    server: ChatServer, maria: Person
) -> None:
    room = a_room()
    async with maria.enter(room) as member:
        await member.say_all(str(number) for number in range(1, 11))
        where = "room_id = (SELECT id FROM rooms WHERE name = ?)"
        execute(server, f"DELETE FROM messages WHERE {where} AND seq < 6", room)
        execute(server, "UPDATE rooms SET first_seq = 6 WHERE name = ?", room)
        assert await history(member, before=8) == ([6, 7], False)
        assert await history(member, before=6) == ([], False)


@pytest.mark.parametrize("text", [BIG, CONTROLS], ids=["emoji", "controls"])
async def test_a_history_that_would_be_too_long_ends_early(maria: Person, text: str) -> None:
    room, count = a_room(), 40
    async with maria.enter(room) as member:
        await member.say_all([text] * count)
        before, pages = count + 1, 0
        seen: list[int] = []
        while True:
            seqs, more = await history(member, before=before, limit=200)
            assert seqs == list(range(before - len(seqs), before))
            seen = seqs + seen
            pages += 1
            if not more:
                break
            before = seqs[0]
        assert seen == list(range(1, count + 1))
        assert pages > 1
        # As much as fits is sent: no frame is much smaller than it must be.
        sizes = [len(raw.encode()) for raw in member.raw if raw.startswith('{"type":"history"')]
        assert all(size > MAX_SERVER_FRAME * 0.8 for size in sizes[:-1])
        assert all(size <= MAX_SERVER_FRAME for size in sizes)


async def test_a_long_catch_up_is_several_frames_within_bounds(maria: Person) -> None:
    room = a_room()
    async with maria.enter(room) as member:
        await member.say_all([BIG] * 40)
    # `receive` looks at the size of each frame, and that no seq is left out.
    async with maria.enter(room, "?since=0") as member:
        entries = await member.read_to(40)
    assert [entry["seq"] for entry in entries] == list(range(1, 41))
    assert sum(raw.startswith('{"type":"messages"') for raw in member.raw) >= 3


async def test_under_load_one_frame_carries_many_messages(maria: Person) -> None:
    room = a_room()
    async with maria.enter(room) as member:
        await member.say_all(str(number) for number in range(300))
    async with maria.enter(room, "?since=0") as member:
        await member.read_to(300)
    assert len(member.raw) < 30


async def test_a_newer_token_lets_the_connection_last_until_that_one_ends(
    server: ChatServer,
) -> None:
    name, room = a_name(), a_room()
    short = await site(server, name, ttl=2)
    async with short.enter(room) as renewed, short.enter(room) as left:
        longer = (await mint(server, user=name, ttl=3600)).json
        answer = await renewed.asks("token", token=longer["token"])
        assert answer == {"type": "token", "expires_at": longer["expires_at"]}
        assert await left.end() == 4401
        # The first token's end is over: the other connection ended by it.
        await renewed.is_well()
        last = (await mint(server, user=name, room=room, ttl=1)).json
        answer = await renewed.asks("token", token=last["token"])
        assert answer == {"type": "token", "expires_at": last["expires_at"]}
        assert await renewed.end() == 4401


async def test_a_token_of_the_same_user_renews_a_session_s_connection(
    server: ChatServer,
) -> None:
    person = await guest(server)
    other = await site(server)
    async with person.enter(a_room()) as member:
        assert (await member.asks("token", token=other.token))["code"] == "forbidden"
        assert (await member.asks("token", token=person.cookie))["code"] == "forbidden"
        await member.is_well()


async def test_a_token_of_another_user_or_room_or_none_is_forbidden(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    ended = await site(server, maria.name, ttl=1)
    elsewhere = await site(server, maria.name, room=a_room())
    async with ended.enter(a_room()) as member:
        assert await member.end() == 4401
    wrong = (pepe.token, elsewhere.token, ended.token, maria.token[:-1], "", "x", "ü", "a.b.c")
    async with maria.enter(a_room()) as member:
        for token in wrong:
            error = await member.asks("token", token=token)
            assert (error["type"], error["code"]) == ("error", "forbidden"), token
        await member.is_well()


async def test_welcome_comes_before_all_else_while_the_room_is_busy(maria: Person) -> None:
    room = a_room()
    async with maria.enter(room) as member:

        async def talk() -> None:
            await member.say_all(str(number) for number in range(400))

        talking = asyncio.create_task(talk())
        # `enter` sees that the first frame is a welcome, `receive` that no seq is left out.
        for _ in range(10):
            async with maria.enter(room, "?since=0") as late:
                seq = late.welcome["last_seq"]
                if seq:
                    await late.read_to(seq)
                    assert late.messages[0]["seq"] == 1
        await talking


# --- Faults of the client and of the database


async def test_what_was_decided_is_said_before_a_binary_frame_ends_it(
    server: ChatServer, maria: Person
) -> None:
    room, ids = a_room(), [an_id() for _ in range(5)]
    sends = [json.dumps({"type": "send", "id": one, "text": one}).encode() for one in ids]
    empty = [json.dumps({"type": "send", "id": one, "text": " "}).encode() for one in ids]
    ping = b'{"type":"ping"}'
    async with raw_socket(server, room, maria.headers) as raw:
        # All in one piece: it is read before anything is written.
        frames = [*[masked(1, one) for one in (*sends, *empty, ping)], masked(2, b"binary")]
        await raw.write(b"".join(frames))
        answers: list[dict[str, Any]] = []
        while True:
            opcode, payload = await raw.frame()
            if opcode == 8:
                break
            if opcode == 1:
                answers.append(json.loads(payload))
        assert int.from_bytes(payload[:2]) == 1003
    refusals = [one["id"] for one in answers if one["type"] == "error"]
    assert refusals == ids and "pong" in [one["type"] for one in answers]

    async def stored() -> dict[str, int]:
        return {one["id"]: one["seq"] for one in (await maria.read(room)).json["messages"]}

    # No ack promised what is not there; each of the five was taken, so the log gets it.
    acked = {one["id"]: one["seq"] for one in answers if one["type"] == "ack"}
    assert acked.items() <= (await stored()).items()

    async def all_stored() -> bool:
        return list(await stored()) == ids

    await until(all_stored)


async def test_of_too_many_faulty_frames_the_last_one_is_answered_too(member: Member) -> None:
    faults = ["{", '{"type":1}', '{"type":"dance"}'] * 3 + ["[]", '{"type":"send","id":"c-1"}']
    for fault in faults:
        await member.socket.send(fault)
    assert await member.end() == 1008
    frames = [json.loads(raw) for raw in member.raw[1:]]
    errors = [frame for frame in frames if frame["type"] == "error"]
    assert len(errors) == 11
    assert (errors[-1]["code"], errors[-1]["id"]) == ("bad_frame", "c-1")


async def test_a_message_without_an_id_that_was_not_confirmed_is_repeated_under_the_one_made(
    chat_server: ChatServerFactory, own_postgres: PostgresServer
) -> None:
    url = own_postgres.create_database()
    node = await chat_server(CHAT_DATABASE_URL=url, CHAT_API_KEY=API_KEY, CHAT_SEND_RATE="off")
    maria, room = await site(node), a_room()
    async with maria.enter(room) as member:
        await member.say("before")
        own_postgres.freeze()
        try:
            await member.send("send", text="nameless")
            await member.send("send", id="mine", text="named")
            error, named = await member.next("error"), await member.next("error")
        finally:
            own_postgres.thaw()
        assert error["code"] == named["code"] == "unavailable"
        assert error["retry_after"] > 0
        assert re.fullmatch(r"[\x21-\x7e]{1,64}", error["id"]) and named["id"] == "mine"

        async def repeated() -> bool:
            return (await member.asks("send", id=error["id"], text="nameless"))["type"] == "ack"

        await until(repeated)
        assert (await member.say("nameless", id=error["id"]))["duplicate"] is True
        last = (await member.say("after"))["seq"]
        said = [one["text"] for one in await member.read_to(last)]
        assert [said.count(text) for text in ("before", "nameless", "after")] == [1] * 3
    await node.wait_for_log("Error saving message: ")
    assert "nameless" not in node.log


async def test_another_error_of_a_frame_without_an_id_carries_none(
    maria: Person, pepe: Person
) -> None:
    async with maria.enter(await direct_room(maria, pepe)) as member:
        for fields, code in (
            ({"text": ""}, "text_empty"),
            ({"text": "x" * 4001}, "text_too_long"),
            ({"text": "hola"}, "missing_receiver"),
            ({"text": "hola", "receiver_id": MAX_INTEGER}, "unknown_receiver"),
            ({"text": "hola", "receiver_id": maria.id}, "forbidden"),
            ({}, "bad_frame"),
        ):
            error = await member.asks("send", **fields)
            assert (error["code"], "id" in error) == (code, False)
