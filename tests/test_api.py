"""The HTTP API: section 4 of the wire contract, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests.people import (
    API_KEY,
    MAX_SERVER_FRAME,
    NO_LIMITS,
    Answer,
    Person,
    a_name,
    a_room,
    acted_for,
    an_id,
    ask,
    ask_json,
    direct_room,
    execute,
    guest,
    lines_with,
    mint,
    running,
    site,
    until,
)
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
MAX_INTEGER = 2**53 - 1
BODY_LIMIT = 64 * 1024  # bytes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    """Two messages and one new room for each user, within the time that this takes."""
    settings = {**NO_LIMITS, "CHAT_SEND_RATE": "2/hour", "CHAT_ROOM_RATE": "1/hour"}
    async with running(tmp_path_factory.mktemp("strict"), **settings) as server:
        yield server


@pytest.fixture
async def maria(server: ChatServer) -> Person:
    return await site(server)


@pytest.fixture
async def pepe(server: ChatServer) -> Person:
    return await site(server)


async def filled(person: Person, count: int, text: str = "") -> str:
    """A new room with so many messages."""
    room = a_room()
    async with person.enter(room) as member:
        await member.say_all(text or str(number) for number in range(1, count + 1))
    return room


def page(answer: Answer) -> tuple[list[int], bool]:
    assert answer.status == 200, answer.text
    return [entry["seq"] for entry in answer.json["messages"]], answer.json["more"]


# --- /api/session


async def test_the_session_is_the_user_or_401(server: ChatServer, maria: Person) -> None:
    for person in (maria, await guest(server)):
        answer = await person.ask("GET", "/api/session")
        assert (answer.status, answer.json) == (200, {"user": person.person})
        assert answer.headers["content-type"] == "application/json"
    answer = await ask(server, "GET", "/api/session")
    assert (answer.status, answer.code) == (401, "unauthenticated")


# --- /api/tokens


async def test_a_backend_gets_a_token_and_the_user_is_made_if_new(server: ChatServer) -> None:
    name = a_name()
    answer = await mint(server, user=name)
    assert answer.status == 201
    made = answer.json
    assert made.keys() == {"token", "expires_at", "user"}
    assert made["user"]["name"] == name and TIME.fullmatch(made["expires_at"])
    ends = datetime.fromisoformat(made["expires_at"]) - datetime.now().astimezone()
    assert timedelta(seconds=3590) < ends <= timedelta(seconds=3600)
    again = (await mint(server, user=name, room=None)).json
    assert again["user"] == made["user"]
    rows = execute(server, "SELECT kind FROM users WHERE name = ?", name)
    assert rows == [("site",)]


async def test_a_token_goes_with_authorization_and_into_an_address(server: ChatServer) -> None:
    token = (await mint(server, user=a_name())).json["token"]
    assert re.fullmatch(r"[A-Za-z0-9_.~-]+", token)


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", f"Basic {API_KEY}", API_KEY])
async def test_tokens_need_the_key(server: ChatServer, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    name = a_name()
    answer = await ask_json(server, "POST", "/api/tokens", {"user": name}, headers)
    assert (answer.status, answer.code) == (401, "unauthenticated")
    assert not execute(server, "SELECT 1 FROM users WHERE name = ?", name)


async def test_a_user_s_own_proof_gets_no_token(server: ChatServer, maria: Person) -> None:
    for person in (maria, await guest(server)):
        answer = await person.ask("POST", "/api/tokens", {"user": person.name})
        assert answer.code == "unauthenticated"


BAD_ORDERS: list[tuple[dict[str, Any], str]] = [
    ({}, "user"),
    ({"user": 1}, "user"),
    ({"user": ""}, "user"),
    ({"user": "x" * 33}, "user"),
    ({"user": "x", "ttl": 0}, "ttl"),
    ({"user": "x", "ttl": -1}, "ttl"),
    ({"user": "x", "ttl": 86_401}, "ttl"),
    ({"user": "x", "ttl": 1.5}, "ttl"),
    ({"user": "x", "ttl": "60"}, "ttl"),
    ({"user": "x", "ttl": True}, "ttl"),
    ({"user": "x", "room": ""}, "room"),
    ({"user": "x", "room": "a b"}, "room"),
    ({"user": "x", "room": "lobby\n"}, "room"),
    ({"user": "x", "room": 7}, "room"),
]


@pytest.mark.parametrize(("order", "field"), BAD_ORDERS, ids=str)
async def test_a_wrong_order_of_a_token_is_bad_frame(
    server: ChatServer, order: dict[str, Any], field: str
) -> None:
    answer = await mint(server, **order)
    assert (answer.status, answer.code) == (400, "bad_frame")
    assert f"`{field}`" in answer.json["detail"]


# --- /api/rooms


async def test_rooms_are_listed_the_latest_message_first(server: ChatServer) -> None:
    person = await site(server)
    rooms = [await filled(person, number + 1) for number in range(3)]
    await person.post(rooms[0], "the latest")
    empty = a_room()
    async with person.enter(empty):
        answer = (await person.ask("GET", "/api/rooms")).json
    assert answer.keys() == {"rooms", "more"}
    listed = [one for one in answer["rooms"] if one["name"] in {*rooms, empty}]
    assert [one["name"] for one in listed] == [rooms[0], rooms[2], rooms[1]]
    assert [one["last_seq"] for one in listed] == [2, 3, 2]
    first = listed[0]
    assert first.keys() == {"name", "last_seq", "last_message_at", "online", "last_read_seq"}
    assert TIME.fullmatch(first["last_message_at"])


async def test_rooms_come_200_a_page(server: ChatServer) -> None:
    person, prefix = await site(server), a_room()
    names = [f"{prefix}-{number}" for number in range(203)]
    execute(
        server,
        "INSERT INTO rooms (name, epoch, last_seq, last_message_at, created_at)"
        " SELECT value, 'e', 1, 1000 + key / 2, 1 FROM json_each(?)",
        json.dumps(names),
    )
    found: list[str] = []
    query, more = "", True
    while more:
        answer = (await person.ask("GET", f"/api/rooms{query}")).json
        assert len(answer["rooms"]) == 200 or not answer["more"]
        found += [one["name"] for one in answer["rooms"]]
        query, more = f"?after={found[-1]}", answer["more"]
    assert len(found) == len(set(found))
    # Two each have the same time: the name decides.
    mine = [name for name in found if name.startswith(prefix)]
    assert mine == sorted(names, key=lambda name: (-(names.index(name) // 2), name))
    execute(server, "DELETE FROM rooms WHERE name LIKE ?", f"{prefix}%")


async def test_after_a_direct_room_of_others_is_as_after_a_room_that_is_not_there(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    third = await site(server)
    await filled(maria, 1)
    theirs = await direct_room(maria, pepe)
    assert (await maria.post(theirs, "hola", receiver_id=pepe.id)).status == 201
    answers = [
        await third.ask("GET", f"/api/rooms?after={after}")
        for after in (theirs, a_room(), f"dm.{maria.id}.{third.id}")
    ]
    assert [(one.status, one.body) for one in answers] == [(200, b'{"rooms":[],"more":false}')] * 3
    assert (await maria.ask("GET", f"/api/rooms?after={theirs}")).json["rooms"]


@pytest.mark.parametrize("after", ["", "%22", "a%20b", "a%0A", "%00"])
async def test_an_after_that_is_no_room_s_name_is_bad_frame(maria: Person, after: str) -> None:
    assert (await maria.ask("GET", f"/api/rooms?after={after}")).code == "bad_frame"


# --- Reading


async def test_reading_gives_the_room_and_its_newest_50(maria: Person) -> None:
    room = await filled(maria, 60)
    answer = await maria.read(room)
    body = answer.json
    assert body.keys() == {"room", "epoch", "first_seq", "last_seq", "messages", "more"}
    assert (body["room"], body["first_seq"], body["last_seq"]) == (room, 1, 60)
    assert page(answer) == (list(range(11, 61)), True)
    async with maria.enter(room, "?since=59") as member:
        assert member.welcome["epoch"] == body["epoch"]
        assert await member.read_to(60) == body["messages"][-1:]


async def test_reading_goes_both_ways_a_page_at_a_time(maria: Person) -> None:
    room = await filled(maria, 250)
    for query, seqs, more in (
        ("?limit=1", range(250, 251), True),
        ("?limit=200", range(51, 251), True),
        ("?before=201", range(151, 201), True),
        ("?before=51&limit=200", range(1, 51), False),
        ("?before=51&limit=50", range(1, 51), False),
        ("?before=52&limit=50", range(2, 52), True),
        ("?before=1", range(0), False),
        (f"?before={MAX_INTEGER}&limit=2", range(249, 251), True),
        ("?after=0", range(1, 51), True),
        ("?after=0&limit=200", range(1, 201), True),
        ("?after=200&limit=50", range(201, 251), False),
        ("?after=199&limit=50", range(200, 250), True),
        ("?after=250", range(0), False),
        (f"?after={MAX_INTEGER}", range(0), False),
    ):
        assert page(await maria.read(room, query)) == (list(seqs), more), query


async def test_reading_begins_at_the_first_seq_of_a_trimmed_room(
    server: ChatServer, maria: Person
) -> None:
    room = await filled(maria, 10)
    where = "room_id = (SELECT id FROM rooms WHERE name = ?)"
    execute(server, f"DELETE FROM messages WHERE {where} AND seq < 6", room)
    execute(server, "UPDATE rooms SET first_seq = 6 WHERE name = ?", room)
    answer = await maria.read(room, "?after=0")
    assert answer.json["first_seq"] == 6
    assert page(answer) == ([6, 7, 8, 9, 10], False)
    assert page(await maria.read(room, "?before=6")) == ([], False)


async def test_a_page_of_long_messages_is_read_to_its_end(maria: Person) -> None:
    room = await filled(maria, 30, "😀" * 4000)
    answer = await maria.read(room, "?limit=200")
    seqs, more = page(answer)
    # An HTTP answer has no bound of its own; what it leaves out, it says.
    assert seqs == list(range(seqs[0], 31)) and more is (seqs[0] > 1)
    assert len(answer.body) > MAX_SERVER_FRAME or more


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=201", "limit=-1", "limit=x", "limit=", "limit=1.0", "limit=%201"),
        *("before=0", "before=-1", "before=x", "before=", f"before={2**53}", "before=1e3"),
        *("after=-1", "after=x", "after=", f"after={2**53}", "after=%D9%A3", "after=" + "9" * 5000),
        "before=5&after=1",
    ],
    ids=lambda query: query[:20],
)
async def test_a_bad_query_parameter_is_bad_frame(maria: Person, query: str) -> None:
    room = await filled(maria, 1)
    answer = await maria.read(room, f"?{query}")
    assert (answer.status, answer.code) == (400, "bad_frame")


async def test_a_room_that_nobody_ever_entered_is_not_found(maria: Person) -> None:
    answer = await maria.read(a_room())
    assert (answer.status, answer.code) == (404, "not_found")


# --- Posting


async def test_posting_stores_and_delivers_and_answers_like_an_ack(
    maria: Person, pepe: Person
) -> None:
    room, message_id = a_room(), an_id()
    async with pepe.enter(room) as member:
        answer = await maria.post(room, "hola", id=message_id, receiver_id=pepe.id)
        assert answer.status == 201
        ack = answer.json
        assert ack.keys() == {"id", "seq", "sent_at", "duplicate"}
        assert (ack["id"], ack["seq"], ack["duplicate"]) == (message_id, 1, False)
        (entry,) = await member.read_to(1)
        assert (entry["text"], entry["sender"], entry["receiver"]) == (
            "hola",
            maria.person,
            pepe.person,
        )
        again = await maria.post(room, "hola", id=message_id, receiver_id=pepe.id)
        assert (again.status, again.json) == (200, {**ack, "duplicate": True})
        conflict = await maria.post(room, "adios", id=message_id, receiver_id=pepe.id)
        assert (conflict.status, conflict.code) == (409, "id_conflict")


async def test_posting_makes_the_room_if_new_and_an_id_if_none(maria: Person) -> None:
    room = a_room()
    ack = (await maria.post(room, "hola")).json
    assert re.fullmatch(r"[\x21-\x7e]{1,64}", ack["id"])
    assert page(await maria.read(room)) == ([1], False)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({}, "bad_frame"),
        ({"text": 1}, "bad_frame"),
        ({"text": None}, "bad_frame"),
        ({"text": "a\0"}, "bad_frame"),
        ({"text": "a", "id": ""}, "bad_frame"),
        ({"text": "a", "id": "a b"}, "bad_frame"),
        ({"text": "a", "id": "x" * 65}, "bad_frame"),
        ({"text": "a", "id": 7}, "bad_frame"),
        ({"text": "a", "receiver_id": 0}, "bad_frame"),
        ({"text": "a", "receiver_id": 2**53}, "bad_frame"),
        ({"text": "a", "receiver_id": "7"}, "bad_frame"),
        ({"text": ""}, "text_empty"),
        ({"text": " \n"}, "text_empty"),
        ({"text": "x" * 4001}, "text_too_long"),
        ({"text": "a", "receiver_id": MAX_INTEGER}, "unknown_receiver"),
    ],
    ids=lambda one: str(one)[:40],
)
async def test_a_wrong_message_is_400_with_the_code_of_the_frame(
    maria: Person, content: dict[str, Any], code: str
) -> None:
    room = a_room()
    answer = await maria.ask("POST", f"/api/rooms/{room}/messages", content)
    assert (answer.status, answer.code) == (400, code)
    after = await maria.read(room)
    assert after.status == 404 or page(after) == ([], False)


async def test_a_refused_message_makes_no_room_and_uses_up_no_new_one(strict: ChatServer) -> None:
    maria, pepe = await site(strict), await site(strict)
    direct = f"dm.{maria.id}.{pepe.id}"
    refusals: list[tuple[str, dict[str, Any], str]] = [
        (a_room(), {"text": " "}, "text_empty"),
        (a_room(), {"text": "x" * 4001}, "text_too_long"),
        (a_room(), {"text": "hola", "id": ""}, "bad_frame"),
        (a_room(), {"text": "hola", "receiver_id": MAX_INTEGER}, "unknown_receiver"),
        (direct, {"text": "hola"}, "missing_receiver"),
        (direct, {"text": "hola", "receiver_id": maria.id}, "forbidden"),
    ]
    for room, content, code in refusals:
        assert (await maria.ask("POST", f"/api/rooms/{room}/messages", content)).code == code
        assert (await maria.read(room)).code == "not_found"
    # All that may be sent and made is still there.
    room = a_room()
    assert (await maria.post(room, "hola")).status == 201
    for text in ("one", "two"):
        await pepe.post(room, text)
    late = a_room()
    assert (await pepe.post(late, "three")).code == "rate_limited"
    assert (await pepe.read(late)).code == "not_found"
    async with pepe.enter(late):
        assert (await pepe.read(late)).status == 200
    assert await pepe.refused(a_room()) == 4429


async def test_a_message_that_was_not_confirmed_is_repeated_under_the_id_that_was_made(
    server: ChatServer, maria: Person
) -> None:
    room = await filled(maria, 1)
    with closing(sqlite3.connect(server.folder / "var" / "chat.db")) as other:
        # For longer than the server waits for its turn to write.
        other.execute("BEGIN IMMEDIATE")
        answer, mine = await asyncio.gather(
            maria.post(room, "nameless"), maria.post(room, "named", id="mine")
        )
        other.rollback()
    for one in (answer, mine):
        assert (one.status, one.code) == (503, "unavailable")
        assert int(one.headers["retry-after"]) > 0
        assert one.headers["cache-control"] == "no-store"
    assert mine.json["id"] == "mine" and answer.json["id"] != "mine"
    again = await maria.post(room, "nameless", id=answer.json["id"])
    assert (again.status, again.json["seq"]) == (201, 2)
    assert (await maria.post(room, "nameless", id=answer.json["id"])).json["duplicate"] is True


async def test_posting_to_a_wrong_receiver_is_written_as_from_a_socket(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    missing = "Missing receiver_id in message"
    nobody = MAX_INTEGER - secrets.randbelow(10**9)
    before = len(lines_with(server, missing))
    await maria.post(await direct_room(maria, pepe), "hola")
    await maria.post(a_room(), "hola", receiver_id=nobody)
    # Lines come in order.
    await server.wait_for_log(f"Receiver {nobody} does not exist")
    written = [lines_with(server, missing)[before:], lines_with(server, f"Receiver {nobody} ")]
    assert [len(lines) for lines in written] == [1, 1]
    assert all(" ERROR " in lines[0] for lines in written)


async def test_posting_into_a_direct_room_needs_the_other_as_receiver(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    room, third = await direct_room(maria, pepe), await site(server)
    assert (await maria.post(room, "hola")).code == "missing_receiver"
    assert (await maria.post(room, "hola", receiver_id=maria.id)).code == "forbidden"
    assert (await maria.post(room, "hola", receiver_id=third.id)).code == "forbidden"
    assert (await maria.post(room, "hola", receiver_id=MAX_INTEGER)).code == "unknown_receiver"
    assert (await maria.post(room, "hola", receiver_id=pepe.id)).status == 201


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"[]", "bad_json"),
        (b'"text"', "bad_json"),
        (b"null", "bad_json"),
        (b'{"text":"\xff"}', "bad_json"),
        (b'{"text":"a","user_id":1,"x":"\xff"}', "bad_json"),
        (b'{"text":"a","user_id":1,"\xc3":1}', "bad_json"),
        (b'{"text":"\\ud800"}', "bad_json"),
        (b'{"text":"a"}{}', "bad_json"),
        (b'{"text":"a","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "bad_json"),
        (b"[" * 10_000 + b"]" * 10_000, "bad_json"),
        ('{"text":"hola"}'.encode("utf-16"), "bad_json"),
        (b'{"text":"a","receiver_id":' + b"9" * 5000 + b"}", "bad_frame"),
    ],
    ids=lambda one: str(one)[:24],
)
async def test_a_body_that_is_no_json_object_is_400(maria: Person, raw: bytes, code: str) -> None:
    headers = {**maria.headers, "Content-Type": "application/json"}
    for path in (f"/api/rooms/{a_room()}/messages", "/api/direct"):
        answer = await ask(maria.server, "POST", path, headers, raw)
        assert answer.status == 400
        assert answer.code == code or path == "/api/direct"


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json"]
)
async def test_a_body_that_is_not_said_to_be_json_is_415(maria: Person, kind: str | None) -> None:
    headers = {**maria.headers, **({"Content-Type": kind} if kind else {})}
    for path in (f"/api/rooms/{a_room()}/messages", "/api/direct"):
        assert (await ask(maria.server, "POST", path, headers, b'{"text":"a"}')).status == 415
    backend = {"Authorization": f"Bearer {API_KEY}", **({"Content-Type": kind} if kind else {})}
    assert (await ask(maria.server, "POST", "/api/tokens", backend, b"{}")).status == 415


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "APPLICATION/JSON", " application/json ;x=y"]
)
async def test_json_is_said_in_several_ways(maria: Person, kind: str) -> None:
    headers = {**maria.headers, "Content-Type": kind}
    path = f"/api/rooms/{a_room()}/messages"
    assert (await ask(maria.server, "POST", path, headers, b'{"text":"a"}')).status == 201


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_64_kib_is_413_and_one_of_just_that_is_taken(
    maria: Person, chunked: bool
) -> None:
    path = f"/api/rooms/{a_room()}/messages"
    headers = {**maria.headers, "Content-Type": "application/json"}
    start, end = b'{"text":"a","filler":"', b'"}'
    for size, status in ((BODY_LIMIT, 201), (BODY_LIMIT + 1, 413), (BODY_LIMIT * 20, 413)):
        body = start + b"x" * (size - len(start + end)) + end
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert (await ask(maria.server, "POST", path, headers, body)).status == status


# --- /api/direct


async def test_a_direct_room_is_named_by_both_users_the_lower_id_first(
    maria: Person, pepe: Person
) -> None:
    low, high = sorted((maria.id, pepe.id))
    for one, other in ((maria, pepe), (pepe, maria)):
        answer = await one.ask("POST", "/api/direct", {"user_id": other.id})
        assert (answer.status, answer.json) == (200, {"room": f"dm.{low}.{high}"})


async def test_a_direct_room_with_oneself_is_400_and_with_nobody_404(maria: Person) -> None:
    answer = await maria.ask("POST", "/api/direct", {"user_id": maria.id})
    assert answer.status == 400
    assert (await maria.ask("POST", "/api/direct", {"user_id": MAX_INTEGER})).code == "not_found"


@pytest.mark.parametrize("user_id", [0, -1, 2**53, 1.5, "7", None, True, [7]])
async def test_a_user_id_that_is_none_is_bad_frame(maria: Person, user_id: Any) -> None:
    answer = await maria.ask("POST", "/api/direct", {"user_id": user_id})
    assert answer.code == "bad_frame"
    assert "`user_id`" in answer.json["detail"]


# --- Who may ask


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/session"),
        ("GET", "/api/rooms"),
        ("GET", "/api/rooms/lobby/messages"),
        ("POST", "/api/rooms/lobby/messages"),
        ("POST", "/api/direct"),
    ],
)
async def test_all_that_is_a_user_s_needs_a_user(
    server: ChatServer, method: str, path: str
) -> None:
    for headers in ({}, {"Cookie": "session=x"}, {"Authorization": "Bearer x"}):
        answer = await ask_json(server, method, path, {"text": "a"}, headers)
        assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_a_backend_does_all_that_its_user_may(server: ChatServer, maria: Person) -> None:
    headers = acted_for(name := a_name())
    user = (await ask(server, "GET", "/api/session", headers)).json["user"]
    assert user["name"] == name
    answer = await ask_json(server, "POST", "/api/direct", {"user_id": maria.id}, headers)
    room = answer.json["room"]
    message = {"text": "hola", "receiver_id": maria.id}
    answer = await ask_json(server, "POST", f"/api/rooms/{room}/messages", message, headers)
    assert answer.status == 201
    answer = await ask(server, "GET", "/api/rooms", headers)
    assert answer.json["rooms"][0]["name"] == room


# --- Health


async def test_a_foreign_origin_with_a_cookie_is_refused_and_written(server: ChatServer) -> None:
    person, origin, room = await guest(server), f"https://{a_name()}.example", a_room()
    headers = {"Origin": origin}
    answer = await person.ask("POST", f"/api/rooms/{room}/messages", {"text": "hola"}, headers)
    assert answer.code == "forbidden"
    await server.wait_for_log(f"Origin {origin} refused")
    [line] = lines_with(server, f"Origin {origin} refused")
    assert " WARNING " in line
    assert (await person.read(room)).code == "not_found"


async def test_errors_are_kept_by_no_cache(server: ChatServer, maria: Person) -> None:
    answers = [
        await ask(server, "GET", "/api/session"),
        await ask(server, "GET", "/api/nothing"),
        await ask(server, "DELETE", "/api/session"),
        await maria.read(a_room()),
        await maria.read("dm.x"),
        await maria.ask("GET", "/api/rooms?after="),
        await maria.post(a_room(), ""),
        await ask(server, "POST", f"/api/rooms/{a_room()}/messages", maria.headers, b"{"),
    ]
    assert [one.status for one in answers] == [401, 404, 405, 404, 404, 400, 400, 415]
    assert [one.headers["cache-control"] for one in answers] == ["no-store"] * len(answers)


async def test_healthz_is_200_while_the_process_serves(server: ChatServer) -> None:
    assert (await ask(server, "GET", "/healthz")).status == 200


async def test_readyz_tells_how_the_parts_are(server: ChatServer) -> None:
    async def ready() -> bool:
        return (await ask(server, "GET", "/readyz")).status == 200

    await until(ready)
    answer = await ask(server, "GET", "/readyz")
    report = answer.json
    assert answer.headers["content-type"] == "application/json"
    assert report["status"] == "ok"
    assert {"database", "relay"} <= report["checks"].keys()
