"""Coming in, and the ways out: sections 2 and 6 of the wire contract, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import ChatServerFactory
from tests.people import (
    API_KEY,
    FRIEND,
    NO_LIMITS,
    Person,
    a_name,
    a_room,
    acted_for,
    an_id,
    dial,
    direct_room,
    entering,
    execute,
    guest,
    lines_with,
    masked,
    mint,
    raw_socket,
    refused,
    running,
    shake,
    site,
    until,
)
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
FRAME_LIMIT = 64 * 1024  # bytes


async def filled(person: Person, count: int) -> str:
    """A new room with so many messages."""
    room = a_room()
    async with person.enter(room) as member:
        await member.say_all(f"message {number}" for number in range(1, count + 1))
    return room


async def seqs_after_entering(person: Person, room: str, query: str) -> tuple[bool, list[int]]:
    """Enter, say one thing more, and return `resumed` and the seqs that came before it."""
    async with person.enter(room, query) as member:
        ack = await member.say("the last one")
        entries = await member.read_to(ack["seq"])
        return member.welcome["resumed"], [one["seq"] for one in entries[:-1]]


# --- Entering


@pytest.mark.parametrize("path", ["/ws/chat/{}/", "/ws/chat/{}", "/ws/chat/{}/?since=0"])
async def test_a_room_is_entered_with_and_without_the_last_slash(
    server: ChatServer, path: str
) -> None:
    person, room = await site(server), a_room()
    async with dial(server, path.format(room), person.headers) as socket:
        welcome = json.loads(await socket.recv())
    assert (welcome["type"], welcome["room"]) == ("welcome", room)


async def test_the_first_frame_is_a_complete_welcome(server: ChatServer) -> None:
    person, room = await site(server), a_room()
    async with person.enter(room) as member:
        welcome = dict(member.welcome)
    assert TIME.fullmatch(welcome.pop("server_time"))
    assert TIME.fullmatch(welcome.pop("expires_at"))
    assert re.fullmatch(r"\S{8,}", welcome.pop("epoch"))
    assert welcome == {
        "type": "welcome",
        "protocol": 1,
        "room": room,
        "first_seq": 1,
        "last_seq": 0,
        "resumed": False,
        "user": person.person,
        "limits": {"text": 4000, "frame": 65536},
    }


async def test_expires_at_is_null_where_no_end_is_known(server: ChatServer) -> None:
    async with entering(server, a_room(), headers=acted_for(a_name())) as member:
        assert member.welcome["expires_at"] is None


async def test_expires_at_is_the_end_of_the_token(server: ChatServer) -> None:
    made = (await mint(server, user=a_name(), ttl=100)).json
    async with entering(server, a_room(), f"?token={made['token']}") as member:
        assert member.welcome["expires_at"] == made["expires_at"]


async def test_expires_at_is_the_end_of_the_session(server: ChatServer) -> None:
    person = await guest(server)
    async with person.enter(a_room()) as member:
        found = execute(server, "SELECT expires_at FROM sessions WHERE user_id = ?", person.id)
        end = member.welcome["expires_at"]
    assert end.startswith("20") and str(found[0][0] % 1000).zfill(3) == end[-4:-1]


async def test_a_room_keeps_its_epoch_and_another_room_has_another(server: ChatServer) -> None:
    person, room = await site(server), a_room()
    async with person.enter(room) as one, person.enter(room) as two, person.enter(a_room()) as far:
        assert one.welcome["epoch"] == two.welcome["epoch"] != far.welcome["epoch"]


async def test_without_since_the_newest_50_follow(server: ChatServer) -> None:
    person = await site(server)
    room = await filled(person, 60)
    assert await seqs_after_entering(person, room, "") == (False, list(range(11, 61)))


async def test_since_0_is_from_the_beginning(server: ChatServer) -> None:
    person = await site(server)
    room = await filled(person, 60)
    assert await seqs_after_entering(person, room, "?since=0") == (True, list(range(1, 61)))


async def test_exactly_the_messages_after_since_follow(server: ChatServer) -> None:
    person = await site(server)
    room = await filled(person, 5)
    assert await seqs_after_entering(person, room, "?since=3") == (True, [4, 5])


async def test_nothing_follows_a_since_that_is_the_last_seq(server: ChatServer) -> None:
    person = await site(server)
    room = await filled(person, 5)
    assert await seqs_after_entering(person, room, "?since=5") == (True, [])


@pytest.mark.parametrize("since", [6, 2**53 - 1])
async def test_a_since_above_the_last_seq_is_not_honoured(server: ChatServer, since: int) -> None:
    person = await site(server)
    room = await filled(person, 5)
    answer = await seqs_after_entering(person, room, f"?since={since}")
    assert answer == (False, [1, 2, 3, 4, 5])


async def test_since_0_is_honoured_in_an_empty_room(server: ChatServer) -> None:
    assert await seqs_after_entering(await site(server), a_room(), "?since=0") == (True, [])


@pytest.mark.parametrize(
    "since",
    [
        *("", "-1", "%2B1", "1.0", "1e0", "0x1", "%201", "1%20", "1%0A", "one", "%D9%A3"),
        *(str(2**53), "9" * 5000, "1,2", "null"),
    ],
)
async def test_a_since_that_is_no_integer_in_bounds_counts_as_absent(
    server: ChatServer, since: str
) -> None:
    person = await site(server)
    room = await filled(person, 3)
    assert await seqs_after_entering(person, room, f"?since={since}") == (False, [1, 2, 3])


async def test_since_is_honoured_with_the_epoch_it_belongs_to(server: ChatServer) -> None:
    person = await site(server)
    room = await filled(person, 3)
    async with person.enter(room) as member:
        epoch = member.welcome["epoch"]
    assert await seqs_after_entering(person, room, f"?since=2&epoch={epoch}") == (True, [3])


@pytest.mark.parametrize("epoch", ["another", ""])
async def test_since_is_not_honoured_with_another_epoch(server: ChatServer, epoch: str) -> None:
    person = await site(server)
    room = await filled(person, 3)
    answer = await seqs_after_entering(person, room, f"?since=2&epoch={epoch}")
    assert answer == (False, [1, 2, 3])


async def test_an_epoch_alone_resumes_nothing(server: ChatServer) -> None:
    person = await site(server)
    room = await filled(person, 1)
    async with person.enter(room) as member:
        epoch = member.welcome["epoch"]
    assert await seqs_after_entering(person, room, f"?epoch={epoch}") == (False, [1])


def copies(server: ChatServer, room: str, last_seq: int) -> None:
    """Fill a room of one message with copies of it, up to this seq."""
    execute(
        server,
        "WITH RECURSIVE n(seq) AS (SELECT 2 UNION ALL SELECT seq + 1 FROM n WHERE seq < ?)"
        " INSERT INTO messages (room_id, seq, message_id, sender_id, sender_name, text, sent_at)"
        " SELECT room_id, n.seq, 'copy-' || n.seq, sender_id, sender_name, text, sent_at"
        " FROM messages, n WHERE room_id = (SELECT id FROM rooms WHERE name = ?)",
        last_seq,
        room,
    )
    execute(server, "UPDATE rooms SET last_seq = ? WHERE name = ?", last_seq, room)


def trim(server: ChatServer, room: str, first_seq: int) -> None:
    """Take away what retention would: the messages below `first_seq`."""
    where = "room_id = (SELECT id FROM rooms WHERE name = ?)"
    execute(server, f"DELETE FROM messages WHERE {where} AND seq < ?", room, first_seq)
    execute(server, "UPDATE rooms SET first_seq = ? WHERE name = ?", first_seq, room)


async def trimmed(server: ChatServer, first_seq: int) -> tuple[Person, str]:
    """A room of five messages, trimmed, and seen to be so by those who enter."""
    person = await site(server)
    room = await filled(person, 5)
    trim(server, room, first_seq)

    async def known() -> bool:
        async with person.enter(room) as member:
            return bool(member.welcome["first_seq"] == first_seq)

    await until(known)
    return person, room


@pytest.mark.parametrize(("since", "resumed"), [(1, False), (2, True), (3, True)])
async def test_since_is_honoured_from_just_before_the_first_seq(
    server: ChatServer, since: int, resumed: bool
) -> None:
    person, room = await trimmed(server, 3)
    seqs = list(range(since + 1, 6)) if resumed else [3, 4, 5]
    assert await seqs_after_entering(person, room, f"?since={since}") == (resumed, seqs)


async def test_a_trimmed_room_is_empty_and_never_uses_a_seq_twice(server: ChatServer) -> None:
    person, room = await trimmed(server, 6)
    async with person.enter(room) as member:
        assert (member.welcome["first_seq"], member.welcome["last_seq"]) == (6, 5)
        assert (await member.say("again"))["seq"] == 6
        assert [one["seq"] for one in await member.read_to(6)] == [6]


async def test_who_needs_a_message_that_was_trimmed_gets_closing_and_1012(
    server: ChatServer,
) -> None:
    person, room = await site(server), a_room()
    # Made over HTTP, the room is not open yet: its tail will hold the newest messages only.
    await person.post(room, "the first")
    copies(server, room, 300)
    async with person.enter(room):
        # The room still believes in all its messages.
        where = "room_id = (SELECT id FROM rooms WHERE name = ?)"
        execute(server, f"DELETE FROM messages WHERE {where} AND seq < 50", room)
        async with person.enter(room, "?since=10") as member:
            assert await member.end() == 1012
    closing = json.loads(member.raw[-1])
    assert (closing["type"], closing["code"]) == ("closing", 1012)
    assert not member.messages


async def test_a_room_whose_log_is_another_one_sends_its_members_away_with_1012(
    server: ChatServer,
) -> None:
    person = await site(server)
    room = await filled(person, 1)
    async with person.enter(room) as member:
        old = member.welcome["epoch"]
        execute(server, "UPDATE rooms SET epoch = 'another-log' WHERE name = ?", room)
        assert await member.end() == 1012
    closing = json.loads(member.raw[-1])
    assert (closing["type"], closing["code"]) == ("closing", 1012)
    assert isinstance(closing["reason"], str) and closing["reconnect_after"] >= 0
    async with person.enter(room, f"?since=1&epoch={old}") as member:
        assert (member.welcome["epoch"], member.welcome["resumed"]) == ("another-log", False)


# --- Who may not come in, in the order of the checks


async def test_a_wrong_host_is_400_before_a_wrong_origin(server: ChatServer) -> None:
    headers = {"Host": "evil.example", "Origin": "https://evil.example:1"}
    assert (await shake(server, a_room(), headers)).status == 400


async def test_a_wrong_origin_is_403_before_the_identity_is_looked_at(server: ChatServer) -> None:
    assert (await shake(server, "%22", {"Origin": "https://evil.example"})).status == 403


async def test_no_identity_is_4401_before_the_name_is_looked_at(server: ChatServer) -> None:
    assert await refused(server, "%22") == 4401


async def test_a_wrong_name_is_4404_before_the_tokens_room_is_looked_at(
    server: ChatServer,
) -> None:
    assert await (await site(server, room=a_room())).refused("%22") == 4404


async def test_a_token_for_another_room_is_4403(server: ChatServer) -> None:
    room = a_room()
    person = await site(server, room=room)
    assert await person.refused(a_room()) == 4403
    async with person.enter(room) as member:
        await member.is_well()


async def test_a_refused_socket_leaves_no_trace_of_a_room(server: ChatServer) -> None:
    person, room = await site(server, room=a_room()), a_room()
    await person.refused(room)
    await refused(server, room)
    assert not execute(server, "SELECT 1 FROM rooms WHERE name = ?", room)


def unknown_to(server: ChatServer) -> list[str]:
    """The warnings of people who are not known."""
    lines = lines_with(server, "Unauthenticated user trying to connect to chat")
    return [line for line in lines if " WARNING " in line]


async def test_each_refusal_is_one_line_of_the_log(chat_server: ChatServerFactory) -> None:
    # One of its own: equal warnings are counted, from the tenth on, instead of written.
    server = await chat_server(CHAT_API_KEY=API_KEY)
    room, mine = a_room(), a_room()
    bound = await site(server, room=mine)
    host, origin = f"{a_name()}.example", f"https://{a_name()}.example"
    before = len(unknown_to(server))
    await shake(server, room, {"Host": host})
    await shake(server, room, {"Origin": origin})
    await refused(server, room)
    await bound.refused(room)
    await bound.refused(f"{room}%22")
    await server.wait_for_log(f'{room}" is not a room')
    lines = server.log.splitlines()
    for text in (
        f"Host {host} refused",
        f"Origin {origin} refused",
        f"User {bound.name} refused: may not enter room {room}",
    ):
        (line,) = [line for line in lines if text in line]
        assert " WARNING " in line
    assert len(unknown_to(server)) == before + 1


async def test_who_comes_and_goes_is_logged_with_the_code(server: ChatServer) -> None:
    person, room = await site(server), a_room()
    async with person.enter(room) as member:
        await member.socket.close(1001)
    await server.wait_for_log(f"User {person.name} disconnected from room {room} (1001)")
    mine = [line for line in lines_with(server, room) if " INFO " in line and person.name in line]
    assert [line.partition(": ")[2].rpartition(" [")[0] for line in mine] == [
        f"User {person.name} connecting to room {room}",
        f"User {person.name} connected to room {room}",
        f"User {person.name} disconnected from room {room} (1001)",
    ]
    for line in mine:
        # Time, level, process, module.
        assert re.match(rf"{TIME.pattern} INFO \d+ [\w.]+: User ", line)


@pytest.mark.parametrize("code", [1000, 1001, 4000])
async def test_the_code_that_a_client_leaves_with_is_logged(server: ChatServer, code: int) -> None:
    person, room = await site(server), a_room()
    async with person.enter(room) as member:
        await member.socket.close(code)
    await server.wait_for_log(f"User {person.name} disconnected from room {room} ({code})")


async def test_a_connection_that_breaks_is_a_member_no_more(server: ChatServer) -> None:
    person, room = await site(server), a_room()
    async with raw_socket(server, room, person.headers) as raw:
        raw.writer.transport.abort()
        await server.wait_for_log(f"User {person.name} disconnected from room {room} (1006)")


# --- The ways out


async def test_a_binary_frame_is_1003(server: ChatServer) -> None:
    person, room = await site(server), a_room()
    async with person.enter(room) as other, person.enter(room) as member:
        await member.socket.send(b'{"type":"ping"}')
        assert await member.end() == 1003
        assert member.raw[1:] == []
        await other.is_well()
    await server.wait_for_log(f"User {person.name} disconnected from room {room} (1003)")


async def test_the_eleventh_faulty_frame_is_1008(server: ChatServer) -> None:
    faulty = ["{", '{"type":1}', '{"type":"no such"}'] * 4
    person, room = await site(server), a_room()
    async with person.enter(room) as other, person.enter(room) as member:
        for raw in faulty[:10]:
            assert (await member.asks_raw(raw))["type"] == "error"
        await member.is_well()
        await member.socket.send(faulty[10])
        assert await member.end() == 1008
        await other.is_well()
    assert not any('"closing"' in raw for raw in member.raw)


async def test_other_errors_never_end_a_connection(server: ChatServer) -> None:
    async with (await site(server)).enter(a_room()) as member:
        for _ in range(12):
            assert (await member.asks("send", text=" "))["code"] == "text_empty"
            assert (await member.asks("token", token="x"))["code"] == "forbidden"
        await member.is_well()


def sized(size: int, filler: str) -> str:
    """A `send` frame of so many bytes of UTF-8, whose text is short."""
    frame = {"type": "send", "id": an_id(), "text": "short", "filler": ""}
    rest = size - len(json.dumps(frame, ensure_ascii=False).encode())
    width = len(filler.encode())
    frame["filler"] = filler * (rest // width) + "." * (rest % width)
    text = json.dumps(frame, ensure_ascii=False)
    assert len(text.encode()) == size
    return text


@pytest.mark.parametrize("filler", ["a", "é", "😀"])
async def test_a_frame_of_exactly_64_kib_in_bytes_is_taken(server: ChatServer, filler: str) -> None:
    async with (await site(server)).enter(a_room()) as member:
        assert (await member.asks_raw(sized(FRAME_LIMIT, filler)))["type"] == "ack"


@pytest.mark.parametrize("filler", ["a", "é", "😀"])
async def test_a_frame_over_64_kib_in_bytes_is_1009(server: ChatServer, filler: str) -> None:
    person, room = await site(server), a_room()
    async with person.enter(room) as other, person.enter(room) as member:
        await member.socket.send(sized(FRAME_LIMIT + 1, filler))
        assert await member.end() == 1009
        ack = await other.say("nothing was stored before")
        assert ack["seq"] == 1


async def test_a_frame_over_64_kib_in_pieces_is_1009(server: ChatServer) -> None:
    async with (await site(server)).enter(a_room()) as member:
        # Nine pieces of 8 KiB.
        await member.socket.send(["x" * 8192 for _ in range(9)])
        assert await member.end() == 1009


async def test_a_frame_in_pieces_is_one_frame(server: ChatServer) -> None:
    async with (await site(server)).enter(a_room()) as member:
        await member.socket.send(['{"type":', '"pi', 'ng"}'])
        assert (await member.next("pong"))["type"] == "pong"


async def test_a_client_s_ping_is_answered(server: ChatServer) -> None:
    async with (await site(server)).enter(a_room()) as member:
        async with asyncio.timeout(10):
            await (await member.socket.ping(b"are you there"))
        await member.is_well()


async def test_a_socket_has_no_compression_and_no_subprotocol(server: ChatServer) -> None:
    person = await site(server)
    async with connect(
        f"{server.ws_url}/ws/chat/{a_room()}/",
        additional_headers=person.headers,
        compression="deflate",
        proxy=None,
    ) as socket:
        assert socket.response is not None
        assert "sec-websocket-extensions" not in socket.response.headers
        assert "sec-websocket-protocol" not in socket.response.headers


async def test_closing_comes_before_no_code_but_1012_and_1013(server: ChatServer) -> None:
    person = await guest(server)
    room = a_room()
    async with person.enter(room) as member:
        await person.ask("POST", "/logout")
        assert await member.end() == 4401
    # `refused` sees that nothing at all comes before the code.
    assert await person.refused(room) == 4401
    assert all('"closing"' not in raw for raw in member.raw)


async def test_no_token_cookie_or_text_is_in_the_log(server: ChatServer) -> None:
    visitor, room = await guest(server), a_room()
    made = (await mint(server, user=a_name())).json
    secret_text = f"secret-{an_id()}"
    async with (
        entering(server, room, f"?token={made['token']}") as member,
        visitor.enter(room) as other,
    ):
        await member.say(secret_text)
        await other.read_to(1)
        await member.asks("token", token=made["token"])
        await member.asks_raw('{"type":"send","text":"' + secret_text)
        await visitor.post(room, secret_text)
    await refused(server, room, f"?token={made['token']}x")
    await server.wait_for_log(f"User {visitor.name} disconnected from room {room}")
    log = server.log
    sid = execute(server, "SELECT sid FROM sessions WHERE user_id = ?", visitor.id)[0][0]
    for secret in (made["token"], visitor.cookie, sid, secret_text, API_KEY):
        assert secret not in log
        assert secret[:20] not in log


async def test_an_allowed_origin_comes_in(server: ChatServer) -> None:
    person = await guest(server)
    async with entering(server, a_room(), headers={**person.headers, "Origin": FRIEND}) as member:
        await member.is_well()


async def test_a_direct_room_of_others_is_4403(server: ChatServer) -> None:
    one, two, third = await site(server), await site(server), await site(server)
    room = await direct_room(one, two)
    assert await third.refused(room) == 4403
    async with one.enter(room) as member, two.enter(room):
        await member.is_well()


async def test_a_reserved_bit_is_no_websocket_frame_and_ends_the_connection(
    server: ChatServer,
) -> None:
    person, room = await site(server), a_room()
    async with person.enter(room) as other, raw_socket(server, room, person.headers) as raw:
        await raw.write(masked(0x71, b"x"))
        assert await raw.end() in (None, 1002)
        await other.is_well()


async def test_frames_after_the_client_s_close_are_not_read(server: ChatServer) -> None:
    person, room = await site(server), a_room()
    async with person.enter(room) as other, raw_socket(server, room, person.headers) as raw:
        late = masked(1, b'{"type":"send","text":"too late"}')
        await raw.write(masked(8, (1000).to_bytes(2)) + late)
        assert await raw.end() in (None, 1000)
        assert (await other.say("first"))["seq"] == 1


async def test_a_stopping_server_says_closing_and_1012(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **NO_LIMITS) as mine:
        person = await site(mine)
        room = a_room()
        async with person.enter(room) as member, person.enter(room) as two, person.enter(room) as c:
            await member.say("stored")
            ending = asyncio.create_task(mine.stop())
            assert {await member.end(), await two.end(), await c.end()} == {1012}
            assert await ending == 0
            # Random, so that they do not come back all at once.
            waits = {json.loads(one.raw[-1])["reconnect_after"] for one in (member, two, c)}
            assert len(waits) > 1
            closing = json.loads(member.raw[-1])
            assert closing.keys() == {"type", "code", "reason", "reconnect_after"}
            assert (closing["type"], closing["code"]) == ("closing", 1012)
            assert 0 <= closing["reconnect_after"] <= 60
        await mine.start()
        async with person.enter(room, "?since=0") as again:
            await again.read_to(1)
            assert again.texts == ["stored"]
    with pytest.raises((ConnectionClosed, OSError)):
        await refused(mine, a_room())
