"""All come back at once, as after a restart: each room is looked up and read once for all, nobody
waits for a place for ever, and those who are in hear each other meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from chat.app import create_app
from chat.errors import Unauthenticated, Unavailable
from chat.log.repository import Repository
from chat.settings import Settings
from chat.web import guard, sockets
from chat.web.identity import Identity
from tests.conftest import ChatServerFactory
from tests.faults.inside import Inside, inside
from tests.people import (
    HANDSHAKE,
    NO_LIMITS,
    Person,
    RawSocket,
    a_room,
    masked,
    request,
    shake,
    site,
    until,
)
from tests.servers import SECRET_KEY, ChatServer, PostgresServer
from tests.storage import draft

TEXT, CLOSE = 1, 8  # opcodes
CROWD = 500
LIMIT = 30  # seconds; far more than it takes

# A real server: clients, their rooms, and what each room holds.
STORM, ROOMS, MESSAGES = 2_000, 20, 60
PEOPLE = 10  # who they are, each with many tabs
SPARE_FILES = 100  # of a process, beside the clients' connections
FILES = STORM + SPARE_FILES
# Steps of the crowd's coming at which the two who talk must have heard each other. They talk about
# ten times as often; who is let wait until a wave is over hears twice.
STEPS = 5


async def come(app: Starlette, cookie: str, since: int, welcome: asyncio.Semaphore) -> list[Any]:
    """Come as one client of the crowd; return the frames until the first messages are there."""
    frames: list[Any] = []
    done = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not frames:
            frames.append(None)
            return {"type": "websocket.connect"}
        await done.wait()
        return {"type": "websocket.disconnect", "code": 1001}

    async def send(event: Any) -> None:
        if event["type"] == "websocket.send":
            frame = json.loads(event["text"])
            if frame["type"] != "presence":  # comes in between as it likes
                frames.append(frame)
            if frame["type"] == "messages":
                welcome.release()
                done.set()

    scope = {
        "type": "websocket",
        "path": "/ws/chat/lobby/",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {cookie}".encode())],
        "query_string": f"since={since}".encode(),
        "extensions": {"websocket.http.response": {}},
    }
    await app(scope, receive, send)
    return frames[1:]


async def test_a_crowd_that_comes_back_reads_each_room_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load(
        {
            "CHAT_SECRET_KEY": SECRET_KEY,
            "CHAT_DATABASE_URL": database_url,
            "CHAT_MAX_CONNECTIONS_PER_USER": "0",
        }
    )
    app = create_app(settings)
    calls: Counter[str] = Counter()
    for name in ("find_room", "make_room", "read", "read_before"):
        original = getattr(Repository, name)

        def counting(name: str = name, original: Any = original) -> Any:
            async def call(*args: Any, **kwargs: Any) -> Any:
                calls[name] += 1
                return await original(*args, **kwargs)

            return call

        monkeypatch.setattr(Repository, name, counting())
    async with asyncio.timeout(LIMIT), app.router.lifespan_context(app):
        chat = app.state.services
        room = await chat.repository.make_room("lobby")
        for _ in range(3):
            await chat.writer.append(draft(room))
        token, _ = chat.identities.mint(await chat.users.site_user("maria"), None, 60)
        calls.clear()
        welcome = asyncio.Semaphore(0)
        crowd = [asyncio.create_task(come(app, token, 1, welcome)) for _ in range(CROWD)]
        for _ in crowd:
            await welcome.acquire()
        for frames in await asyncio.gather(*crowd):
            assert [frame["type"] for frame in frames] == ["welcome", "messages"]
            assert frames[0]["resumed"] is True
            assert [one["seq"] for one in frames[1]["messages"]] == [2, 3]
    # Once by name, once more after the tail was read; and the tail itself.
    assert calls["find_room"] == 2
    assert calls["read_before"] <= 2
    assert calls["read"] <= 1
    assert calls["make_room"] == 0


# Over real sockets


async def knock(
    server: ChatServer, room: str, headers: Mapping[str, str], query: str = ""
) -> tuple[bytes, RawSocket]:
    """Send a handshake; return the head of the answer, and what follows it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    path = f"/ws/chat/{room}/{query}"
    writer.write(request(server, "GET", path, {**headers, **HANDSHAKE}))
    return await reader.readuntil(b"\r\n\r\n"), RawSocket(reader, writer)


class Returning:
    """A client that comes back with the last seq it has, and obeys who asks it to come later."""

    def __init__(self, person: Person, room: str, since: int) -> None:
        self.person = person
        self.room = room
        self.since = since
        # How often it was sent away, before the upgrade or after it.
        self.refused = 0

    async def come(self) -> None:
        """Come in, at last; see that exactly what it missed follows."""
        while (pause := await self._try()) is not None:
            self.refused += 1
            await asyncio.sleep(pause)

    async def _try(self) -> float | None:
        """Return in how many seconds to come again, None once all is well."""
        person = self.person
        head, raw = await knock(person.server, self.room, person.headers, f"?since={self.since}")
        try:
            if head.startswith(b"HTTP/1.1 101"):
                # The answer to it is the last frame that must come.
                raw.writer.write(masked(1, b'{"type":"ping"}'))
                return await self._read(raw)
            assert head.startswith(b"HTTP/1.1 503"), head
            later = re.search(rb"\r\nretry-after: (\d+)\r\n", head, re.IGNORECASE)
            assert later is not None, head
            return float(later[1])
        finally:
            raw.writer.close()

    async def _read(self, raw: RawSocket) -> float | None:
        seqs: list[int] = []
        answered = False
        while not answered or len(seqs) < MESSAGES - self.since:
            opcode, payload = await raw.frame()
            frame = json.loads(payload) if opcode == TEXT else {"type": ""}
            match frame["type"]:
                case "welcome":
                    assert frame["resumed"] is True
                case "messages":
                    seqs += [one["seq"] for one in frame["messages"]]
                case "pong":
                    answered = True
                case "closing":
                    return float(frame["reconnect_after"])
        assert seqs == list(range(self.since + 1, MESSAGES + 1))
        return None


@pytest.fixture
def files() -> Iterator[int]:
    """How many files this process, and what it starts, may open: as many as a storm needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    yield max(soft, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# The statements that a storm and those who talk meanwhile bring about, by what is in them.
KINDS = {
    "who": r"FROM users u WHERE",
    "room": r"FROM rooms WHERE name",
    "page": r"FROM messages WHERE room_id = \$1",
    "talk": r"FOR UPDATE|FROM messages m|INTO messages|UPDATE rooms",
    "other": r"",
}


def statements(log: str) -> Counter[str]:
    """How many statements PostgreSQL wrote that it ran, by kind."""
    ran = [line for line in log.splitlines() if "LOG:  execute" in line]
    return Counter(next(kind for kind in KINDS if re.search(KINDS[kind], line)) for line in ran)


async def test_after_a_restart_two_thousand_come_back_and_cost_each_room_one_read(
    chat_server: ChatServerFactory, redis_url: str, files: int
) -> None:
    postgres = PostgresServer(log_statement="all")
    postgres.start()
    try:
        await storm(chat_server, postgres, redis_url, min(STORM, files - SPARE_FILES))
    finally:
        postgres.remove()


async def storm(
    chat_server: ChatServerFactory, postgres: PostgresServer, redis_url: str, count: int
) -> None:
    database = {"CHAT_DATABASE_URL": postgres.create_database(), "CHAT_RELAY_URL": redis_url}
    server = await chat_server(**NO_LIMITS, **database)
    people = [await site(server) for _ in range(PEOPLE)]
    rooms = [a_room() for _ in range(ROOMS)]
    for room in rooms:
        async with people[0].enter(room) as member:
            await member.say_all(["hola"] * MESSAGES)
    assert await server.stop() == 0
    await server.start()
    crowd = [
        Returning(people[place % PEOPLE], rooms[place % ROOMS], place // ROOMS % MESSAGES)
        for place in range(count)
    ]
    quiet = a_room()
    async with people[0].enter(quiet) as one, people[1].enter(quiet) as other:
        before = len(postgres.log)
        coming = [asyncio.create_task(client.come()) for client in crowd]
        # Who is in already talks on; and how many of the crowd were in when a message came.
        steps: set[int] = set()
        while not all(task.done() for task in coming):
            await other.read_to((await one.say("still here"))["seq"])
            steps.add(sum(task.done() for task in coming))
        await asyncio.gather(*coming)
        ran = statements(postgres.log[before:])
        refused = sum(client.refused for client in crowd)
        print(f"{count} clients, sent away {refused} times; {dict(ran)}; {len(steps)} steps")
    assert len(steps - {0, count}) >= STEPS
    # For each client its user is looked up, by one statement, and nothing else is asked.
    assert count <= ran["who"] <= count + refused
    assert ran["other"] < count / 10
    # For each room: once by name, once more after its tail was read; and the tail, once more where
    # the relay was late to confirm.
    assert ran["room"] == 2 * ROOMS
    assert ROOMS <= ran["page"] <= 2 * ROOMS


# Half-done handshakes

HANDSHAKES = 3  # that may be under way at once, here
PATIENCE = 0.2  # seconds that one may take, here

Act = Callable[[Inside, RawSocket], Awaitable[None]]


async def stay(here: Inside, raw: RawSocket) -> None:
    return


async def leave_by_reset(here: Inside, raw: RawSocket) -> None:
    sock = raw.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.writer.transport.abort()


async def leave(here: Inside, raw: RawSocket) -> None:
    raw.writer.close()


async def say_good_bye(here: Inside, raw: RawSocket) -> None:
    await raw.write(masked(CLOSE, struct.pack("!H", 1000)))


async def drain(here: Inside, raw: RawSocket) -> None:
    here.services.draining = True


@pytest.mark.parametrize(
    ("act", "room", "error", "code"),
    [
        pytest.param(stay, "lobby", None, None, id="let in"),
        pytest.param(leave_by_reset, "lobby", None, None, id="reset"),
        pytest.param(leave, "lobby", None, None, id="left"),
        pytest.param(say_good_bye, "lobby", None, 1000, id="said good-bye"),
        pytest.param(stay, "lobby", Unauthenticated("Nobody."), 4401, id="nobody"),
        pytest.param(stay, "dm.1", None, 4404, id="no room"),
        pytest.param(stay, "lobby", Unavailable(), 1013, id="database away"),
        pytest.param(stay, "lobby", asyncio.Event(), 1013, id="too slow"),
        pytest.param(drain, "lobby", None, 1012, id="draining"),
        pytest.param(stay, "lobby", LookupError("a mistake"), 1011, id="our own fault"),
    ],
)
async def test_a_half_done_handshake_takes_a_place_until_its_end_whatever_that_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Act,
    room: str,
    error: Exception | asyncio.Event | None,
    code: int | None,
) -> None:
    monkeypatch.setattr(guard, "MAX_HANDSHAKES", HANDSHAKES)
    async with inside(tmp_path) as here:
        maria = await site(here.server)
        identify, answered = here.services.identities.identify, asyncio.Event()

        async def look_up(*args: Any) -> Identity:
            await answered.wait()
            if isinstance(error, Exception):
                raise error
            if error is not None:
                await error.wait()
            return await identify(*args)

        with monkeypatch.context() as patch:
            patch.setattr(here.services.identities, "identify", look_up)
            if isinstance(error, asyncio.Event):
                patch.setattr(sockets, "HANDSHAKE_LIMIT", PATIENCE)
            waiting = [await accepted(here.server, room, maria) for _ in range(HANDSHAKES)]
            refusal = await shake(here.server, "lobby", maria.headers)
            assert refusal.status == 503
            assert int(refusal.headers["retry-after"]) > 0
            for raw in waiting:
                await act(here, raw)
            answered.set()
            for raw in waiting:
                if code is not None:
                    assert await raw.end() == code
                elif act is stay:
                    assert b"welcome" in (await raw.frame())[1]
            await until(lambda: here.services.handshakes == 0)
        here.services.draining = False
        async with maria.enter("lobby") as member:
            await member.is_well()
        for raw in waiting:
            raw.writer.close()


async def accepted(server: ChatServer, room: str, person: Person) -> RawSocket:
    """Knock, and be one of those who are let wait."""
    head, raw = await knock(server, room, person.headers)
    assert head.startswith(b"HTTP/1.1 101"), head
    return raw
