"""The page for Prometheus: what happened, exactly, whatever becomes of the processes."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets import ConnectionClosed

from chat.live import room as live
from chat.live.tasks import Tasks
from chat.ops import metrics
from chat.protocol import CloseCode
from chat.web import problems, sockets
from tests import relays
from tests.conftest import ChatServerFactory
from tests.live import Bells, node, run, seqs_of
from tests.people import (
    API_KEY,
    NO_LIMITS,
    SOON,
    Member,
    Person,
    a_room,
    an_id,
    ask,
    execute,
    guest,
    refused,
    shake,
    site,
    until,
)
from tests.servers import ChatServer, RedisServer
from tests.test_delivery import delivering
from tests.test_docs import wire_errors

ROOT = Path(__file__).resolve().parent.parent
KEY = {"Authorization": f"Bearer {API_KEY}"}


def samples(page: str) -> dict[str, float]:
    """Return the values by the names that queries use, labels included."""
    found = {}
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in one.labels.items())
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


async def scrape(server: ChatServer) -> dict[str, float]:
    answer = await ask(server, "GET", "/metrics", KEY)
    assert answer.status == 200, answer.text
    return samples(answer.text)


async def shows(server: ChatServer, **expected: float) -> None:
    """Wait until the page shows these values; say what it shows instead."""
    seen: dict[str, float] = {}

    async def holds() -> bool:
        seen.update(await scrape(server))
        return all(seen[f"chat_{name}"] == value for name, value in expected.items())

    with suppress(TimeoutError):
        await until(holds)
    assert {name: seen[f"chat_{name}"] for name in expected} == expected


@pytest.fixture
def two_rows() -> Iterator[None]:
    """Memory for two processes, and this one's own put back afterwards."""
    rows, mine = metrics._rows[:], metrics.PROCESSES.row
    metrics.share(2)
    yield
    metrics._rows[:] = rows
    for one in metrics._metrics:
        one.row = mine


def in_a_process(slot: int, work: str) -> None:
    """Run one line in a forked process that counts into this row, to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            metrics.join(slot)
            exec(work, {"metrics": metrics})
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def page() -> dict[str, float]:
    return samples(metrics.page().decode())


# --- The rows


def test_what_all_processes_counted_is_added_up(two_rows: None) -> None:
    in_a_process(0, "metrics.ACCEPTED.add(3); metrics.BATCH.observe(3)")
    in_a_process(1, "metrics.ACCEPTED.add(40); metrics.BATCH.observe(2000)")
    found = page()
    assert found["chat_messages_accepted_total"] == 43
    assert found['chat_batch_messages_bucket{le="2"}'] == 0
    assert found['chat_batch_messages_bucket{le="5"}'] == 1
    assert found['chat_batch_messages_bucket{le="+Inf"}'] == 2
    assert (found["chat_batch_messages_count"], found["chat_batch_messages_sum"]) == (2, 2003)


def test_a_replacement_goes_on_with_the_counts_and_not_with_the_gauges(two_rows: None) -> None:
    in_a_process(1, "metrics.ACCEPTED.add(3); metrics.CONNECTIONS.set(7)")
    metrics.leave(1)
    found = page()
    assert (found["chat_messages_accepted_total"], found["chat_connections"]) == (3, 0)
    in_a_process(1, "metrics.ACCEPTED.add(1); metrics.CONNECTIONS.set(2)")
    found = page()
    assert (found["chat_messages_accepted_total"], found["chat_connections"]) == (4, 2)


def test_gauges_are_the_sum_or_the_worst_of_the_live_processes(two_rows: None) -> None:
    in_a_process(0, "metrics.RELAY_UP.set(1); metrics.ROUND_TRIP.set(0.5)")
    assert page()["chat_relay_up"] == 1, "the other row has no process"
    in_a_process(1, "metrics.ROUND_TRIP.set(0.25)")
    found = page()
    assert (found["chat_relay_up"], found["chat_relay_round_trip_seconds"]) == (0, 0.5)
    metrics.leave(0)
    metrics.leave(1)
    assert page()["chat_relay_up"] == 0


def test_a_process_that_hangs_does_not_count_as_one_that_serves(two_rows: None) -> None:
    well = "metrics.RELAY_UP.set(1); metrics.DATABASE_UP.set(1); metrics.CONNECTIONS.set(3)"
    in_a_process(0, well)
    in_a_process(1, well)
    names = ("chat_processes", "chat_relay_up", "chat_database_up", "chat_connections")
    assert [page()[name] for name in names] == [2, 1, 1, 6]
    in_a_process(1, f"{well}; metrics.TICKED.set(metrics.TICKED.value - metrics.HANGS)")
    # Its sockets are still open, for all that anybody knows.
    assert [page()[name] for name in names] == [1, 0, 0, 6]


def test_a_value_that_is_not_listed_counts_as_other(two_rows: None) -> None:
    in_a_process(0, "metrics.CLOSES.add('1001'); metrics.CLOSES.add('4999')")
    found = page()
    assert found['chat_closes_total{code="1001"}'] == 1
    assert found['chat_closes_total{code="other"}'] == 1
    assert not any("4999" in name for name in found)


def test_every_code_reason_and_task_of_ours_is_listed() -> None:
    assert {str(int(code)) for code in CloseCode} <= set(metrics.CLOSES.values)
    codes = {one.code for one in wire_errors()} | set(problems.CODES.values()) | {"fault"}
    assert codes <= set(metrics.ERRORS.values)
    assert set(sockets.REASONS.values()) <= set(metrics.REFUSED.values)
    tasks = {
        str(call.args[0].value)
        for call in ast.walk(ast.parse((ROOT / "chat/app.py").read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "tasks.start"
        if isinstance(call.args[0], ast.Constant)
    }
    assert tasks and tasks <= set(metrics.RESTARTED.values)


def test_a_task_that_is_started_again_is_counted_by_its_name() -> None:
    assert metrics.RESTARTED.values["writer"] == 0
    before = metrics.RESTARTED.value
    Tasks()._died("writer")
    assert metrics.RESTARTED.value == before + 1


async def test_a_room_knows_when_its_newest_messages_came() -> None:
    from chat.log.repository import Room as Row
    from tests.live import run

    room = live.Room(Row(1, "lobby", "epoch", 1, 5), run(1, 5), None)  # type: ignore[arg-type]
    assert room.rung_at(5) is None, "it was read, no bell brought it"
    for last in (6, 8):
        room.offer("epoch", run(room.tail.last + 1, last))
    one, two, three = (room.rung_at(seq) for seq in (6, 7, 8))
    assert one is not None and two is not None and one <= two == three
    assert room.rung_at(4) is None


async def test_what_no_bell_brought_counts_as_late_as_it_is(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stored three seconds ago, and found now, as by the ticker while the relay is away.
    async with node(database_url, Bells()) as here, node(database_url, Bells(), "b") as other:
        guest = await here.join()
        await other.say("late")
        then = time.time_ns() + 3_000_000_000
        monkeypatch.setattr(time, "time_ns", lambda: then)
        before = time.monotonic()
        guest.cursor.room.mend()
        await relays.until(lambda: guest.seqs == [1])
        came = guest.cursor.room.rung_at(1)
        assert came is not None and before - 4 < came < time.monotonic() - 2


async def test_a_delivery_takes_from_the_bell_to_the_socket() -> None:
    async with delivering() as here:
        here.delivery._began -= 60
        before = metrics.DELIVERY.total([metrics.DELIVERY.row], metrics.DELIVERY.width - 1)
        here.room.offer("epoch", run(6, 7), age=30.0)
        here.delivery.wake()
        assert seqs_of(await here.wire.text()) == [6, 7]
        await asyncio.sleep(0)
        after = metrics.DELIVERY.total([metrics.DELIVERY.row], metrics.DELIVERY.width - 1)
        assert 30 <= after - before < 30 + SOON


# --- The page of a server


async def test_the_page_needs_the_key_where_one_is_set(chat_server: ChatServerFactory) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY)
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = await ask(server, "GET", "/metrics", headers)
        assert answer.status == 401
        assert answer.json["code"] == "unauthenticated"
    answer = await ask(server, "GET", "/metrics", KEY)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    open_one = await chat_server()
    assert (await ask(open_one, "GET", "/metrics")).status == 200


async def talk(members: Sequence[Member], each: int) -> int:
    """Let everybody say so much, and hear it all; return how many messages it was."""
    acks = [
        ack
        for member in members
        for ack in await member.say_all(f"number {number}" for number in range(each))
    ]
    last = max(ack["seq"] for ack in acks)
    for member in members:
        await member.read_to(last)
    return len(acks)


async def test_two_processes_count_exactly_what_happened_also_when_one_is_replaced(
    chat_server: ChatServerFactory, redis_url: str
) -> None:
    server = await chat_server(workers=2, CHAT_RELAY_URL=redis_url, **NO_LIMITS)
    room = a_room()
    workers = psutil.Process(server.pid).children()
    people = [await site(server) for _ in range(10)]
    async with AsyncExitStack() as stack:

        async def enter(person: Person, query: str = "") -> Member:
            return await stack.enter_async_context(person.enter(room, query))

        members = [await enter(person) for person in people]
        await shows(server, processes=2, connections=10, database_up=1, relay_up=1)
        sent = await talk(members, each=3)
        heard = 10 * sent
        await shows(server, messages_accepted_total=sent, messages_delivered_total=heard)
        found = await scrape(server)
        assert found["chat_batch_messages_sum"] == sent
        assert 1 <= found["chat_commit_seconds_count"] == found["chat_batch_messages_count"] <= sent
        assert 10 <= found["chat_message_frames_total"] <= heard
        assert 1 <= found["chat_delivery_seconds_count"] <= found["chat_message_frames_total"]
        assert 0 < found["chat_delivery_seconds_sum"] < SOON * found["chat_delivery_seconds_count"]
        assert found["chat_relay_round_trip_seconds"] > 0
        assert found["chat_catch_up_pages_total"] == found["chat_relay_missed_total"] == 0
        assert found["chat_rooms_open"] == 2

        # A repeat is not accepted anew, and heard by nobody.
        ack = await members[0].say("once", id="the-same")
        assert (await members[0].say("once", id="the-same"))["duplicate"]
        for member in members:
            await member.read_to(ack["seq"])
        sent, heard = sent + 1, heard + 10
        await shows(
            server,
            messages_accepted_total=sent,
            messages_delivered_total=heard,
            batch_messages_sum=sent + 1,
        )

        workers[0].send_signal(signal.SIGKILL)
        # Who asks it while it dies gets no answer.
        await server.wait_for_log("ended with code -9")
        gone = []
        for number, member in enumerate(members):
            try:
                await member.is_well()
            except ConnectionClosed:
                gone.append(number)
        assert 0 < len(gone) < 10
        await shows(server, processes=2, connections=10 - len(gone), relay_up=1, database_up=1)
        for number in gone:
            members[number] = await enter(people[number], "?since=0")
            await members[number].read_to(sent)
            heard += sent
        await shows(server, connections=10, messages_delivered_total=heard)
        more = await talk(members, each=2)
        sent, heard = sent + more, heard + 10 * more
        await shows(server, messages_accepted_total=sent, messages_delivered_total=heard)
        assert (await scrape(server))["chat_batch_messages_sum"] == sent + 1


async def test_errors_closes_and_refusals_are_counted_by_what_they_were(
    chat_server: ChatServerFactory, redis_url: str
) -> None:
    server = await chat_server(
        workers=2,
        CHAT_RELAY_URL=redis_url,
        **{**NO_LIMITS, "CHAT_MAX_CONNECTIONS_PER_USER": "1"},
    )
    person, other = await site(server), await guest(server)
    async with person.enter(a_room()) as member:
        await member.asks("send", text="")
        await member.asks("send", text="\0")
        await member.asks_raw("{")
        await member.asks_raw('{"type":"send"')
        await member.asks("dance")
    async with other.enter(a_room()) as member:
        await member.socket.send(b"binary")
        assert await member.end() == CloseCode.BINARY
    async with other.enter(a_room()) as member:
        await member.socket.close(4999)
    await person.post(a_room(), "x" * 5000)
    assert (await ask(server, "GET", "/api/session")).status == 401
    assert (await ask(server, "GET", "/nowhere")).status == 404
    assert await refused(server, a_room()) == CloseCode.UNAUTHENTICATED
    assert await person.refused("not%20a%20room") == CloseCode.NOT_FOUND
    assert await person.refused("dm.1.99999999") == CloseCode.NOT_FOUND
    assert (await shake(server, a_room(), {"Origin": "https://evil.example"})).status == 403
    assert (await shake(server, a_room(), {"Host": "evil.example"})).status == 400
    await shows(
        server,
        **{
            'errors_total{code="text_empty"}': 1,
            'errors_total{code="bad_frame"}': 1,
            'errors_total{code="bad_json"}': 2,
            'errors_total{code="unknown_type"}': 1,
            'errors_total{code="text_too_long"}': 1,
            'errors_total{code="unauthenticated"}': 1,
            'errors_total{code="not_found"}': 1,
            'errors_total{code="unavailable"}': 0,
            'closes_total{code="1000"}': 1,
            'closes_total{code="1003"}': 1,
            'closes_total{code="other"}': 1,
            'handshakes_refused_total{reason="unauthenticated"}': 1,
            'handshakes_refused_total{reason="not_found"}': 2,
            'handshakes_refused_total{reason="origin"}': 1,
            'handshakes_refused_total{reason="host"}': 1,
            'handshakes_refused_total{reason="too_many"}': 0,
            "connections": 0,
        },
    )


async def test_a_database_that_takes_no_messages_is_not_up(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(**NO_LIMITS)
    maria, name = await guest(server), a_room()
    async with maria.enter(name) as member:
        await member.say("hola")
        await shows(server, database_up=1)
        # It answers and takes no messages, as one with a full disk.
        execute(
            server,
            "CREATE TRIGGER full BEFORE INSERT ON messages"
            " BEGIN INSERT INTO nowhere VALUES (1); END",
        )
        answer = await member.asks("send", id="c-1", text="not stored")
        assert answer["code"] == "unavailable"
        await shows(server, database_up=0)
        execute(server, "DROP TRIGGER full")
        assert (await member.asks("send", id="c-1", text="not stored"))["type"] == "ack"
        await shows(server, database_up=1)


async def test_a_page_read_for_a_member_is_counted(chat_server: ChatServerFactory) -> None:
    server = await chat_server(**NO_LIMITS)
    person, room = await site(server), a_room()
    async with person.enter(room) as member:
        # Longer than a tail holds: a megabyte of them.
        for _ in range(3):
            await member.say_all("x" * 4_000 for _ in range(100))
    async with person.enter(room, "?since=0") as member:
        await member.read_to(300)
    found = await scrape(server)
    assert found["chat_catch_up_pages_total"] > 0


async def test_a_lost_relay_shows_and_limits_are_kept_in_memory(
    chat_server: ChatServerFactory, own_redis: RedisServer
) -> None:
    server = await chat_server(
        CHAT_RELAY_URL=own_redis.url, **{**NO_LIMITS, "CHAT_SEND_RATE": "1000/second"}
    )
    person, room = await site(server), a_room()
    async with person.enter(room) as member:
        await member.say("with Redis")
        await shows(server, relay_up=1, limiter_fallbacks_total=0)
        own_redis.stop()
        await shows(server, relay_up=0, relay_round_trip_seconds=0)
        for number in range(5):
            await member.say(f"without {number}", id=an_id())
        await shows(server, limiter_fallbacks_total=5, messages_accepted_total=6)
        own_redis.start()
        await shows(server, relay_up=1, messages_delivered_total=6)


async def test_nothing_that_a_stranger_chose_is_on_the_page(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(**NO_LIMITS)
    before = set(await scrape(server))
    person, room = await site(server), a_room()
    async with person.enter(room) as member:
        await member.say("a text")
        await member.asks("a-strange-type")
        await member.socket.close(4321)
    await ask(server, "GET", "/a-strange-path")
    await shows(server, connections=0, **{'closes_total{code="other"}': 1})
    after = await scrape(server)
    assert set(after) == before
    assert all(re.match(r"chat_[a-z_]+(\{[a-z]+=\"[\w.+]+\"\})?$", name) for name in after)
