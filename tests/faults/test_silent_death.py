"""No part of a running process dies in silence: each of its tasks is killed, in turn.

The app runs in this process, its lifespan and all, without HTTP. A task is named as asyncio names
it, or by its coroutine where it has no name of its own. Each must be found, so that one that is
renamed or new fails here until it has its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chat.app import create_app
from chat.errors import Unavailable
from chat.live import announcement, hub, tending
from chat.live.tasks import Tasks
from chat.log.repository import Stored
from chat.ops.health import readiness
from chat.protocol import CloseCode
from chat.settings import Settings
from chat.web.services import Services
from tests.live import Guest, draft
from tests.relays import LIMIT, until
from tests.servers import SECRET_KEY, RedisServer

# Seconds between two looks of the ticker, and of who tends: often, or never within a test.
OFTEN, NEVER = 0.02, 3_600.0

# Those of `Tasks`.
OURS = ["writer", "ticker", "tending", "presence", "marks", "retention"]
LISTENER, LISTENING = "Doorbell._listener", "Hub._listen"
SESSION = ["RedisSession._hear", "RedisSession._ask", "RedisSession._speak"]
SUPERVISOR = "SupervisedRedis._supervise"
# Writes what a member of the test is sent.
OF_THE_TEST = "guest"

WITH_MEMORY = [*OURS, LISTENER, LISTENING]
WITH_REDIS = [*WITH_MEMORY, *SESSION, SUPERVISOR]
EACH = [
    *[pytest.param("memory", name, id=f"memory-{name}") for name in WITH_MEMORY],
    *[pytest.param("redis", name, id=f"redis-{name}") for name in WITH_REDIS],
]


class Running:
    """The app, with one member in a room."""

    def __init__(self, chat: Services, tasks: Tasks, others: set[asyncio.Task[object]]) -> None:
        self.chat = chat
        self.tasks = tasks
        # Tasks that are none of the app's.
        self._others = others
        self.guests: list[Guest] = []

    def by_name(self) -> dict[str, asyncio.Task[object]]:
        """The app's tasks."""
        found: dict[str, asyncio.Task[object]] = {}
        for task in asyncio.all_tasks() - self._others:
            if task is asyncio.current_task() or task.get_name() == OF_THE_TEST:
                continue
            kind = getattr(task.get_coro(), "__qualname__", "")
            name = task.get_name() if kind == "Tasks._watch" else kind
            assert name not in found, f"{name} is there twice"
            found[name] = task
        return found

    def again(self, name: str, dead: asyncio.Task[object]) -> bool:
        """Whether another one has taken the place of this task."""
        return self.by_name().get(name, dead) is not dead

    async def join(self) -> Guest:
        row = await self.chat.repository.make_room("lobby")
        guest = Guest(self.chat.hub, await self.chat.hub.open(row), 0)
        self.guests.append(guest)
        return guest

    async def say(self, text: str) -> int:
        """Send a message as members do; return its seq."""
        row = await self.chat.repository.make_room("lobby")
        async with asyncio.timeout(LIMIT):
            return (await self.chat.writer.append(draft(row.id, text))).seq

    async def say_elsewhere(self, text: str, *, bell: bool) -> int:
        """Store a message as another process does, which rings its bell, or does not."""
        row = await self.chat.repository.make_room("lobby")
        [stored] = await self.chat.repository.append([draft(row.id, text)])
        assert isinstance(stored, Stored) and stored.entry is not None
        if bell:
            said = announcement.write("another-process", stored.epoch, [stored.entry])
            self.chat.relay.publish(f"room.{row.id}", said)
        return stored.seq

    async def failed(self) -> tuple[int, list[str]]:
        """What `/readyz` answers: the status, and the tasks that failed."""
        status, report = await readiness(
            self.chat.repository.database,
            self.chat.writer,
            self.chat.relay,
            self.tasks,
            self.chat.hub,
        )
        return status, report["checks"]["tasks"]["failed"]


@pytest.fixture
async def running(
    sqlite_url: str, relay: str, request: pytest.FixtureRequest
) -> AsyncIterator[Running]:
    url = "memory://"
    if relay == "redis":
        server: RedisServer = request.getfixturevalue("breakable_redis")
        url = server.url
    async with _running(sqlite_url, url) as running:
        yield running


@asynccontextmanager
async def _running(database: str, relay: str) -> AsyncIterator[Running]:
    environ = {"CHAT_SECRET_KEY": SECRET_KEY, "CHAT_DATABASE_URL": database}
    app = create_app(Settings.load({**environ, "CHAT_RELAY_URL": relay}))
    others = asyncio.all_tasks()
    async with app.router.lifespan_context(app):
        running = Running(app.state.services, app.state.tasks, others)
        try:
            await until(lambda: not running.chat.relay.lost)
            await running.join()
            yield running
        finally:
            for guest in running.guests:
                await guest.leave()
    assert asyncio.all_tasks() - others <= {asyncio.current_task()}


@pytest.fixture(autouse=True)
def pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ticker mend nothing that others ought to mend."""
    name = request.node.callspec.params.get("name")
    monkeypatch.setattr(hub, "TICK", OFTEN if name == "ticker" else NEVER)
    monkeypatch.setattr(hub, "BELL_PATIENCE", 0.0)
    monkeypatch.setattr(tending, "TEND", OFTEN)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]


async def kill(running: Running, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Cancel the task, once; wait until it is gone and was written of."""
    tasks = running.by_name()
    assert name in tasks, f"{name} is not among {sorted(tasks)}"
    caplog.clear()
    tasks[name].cancel()
    await asyncio.wait([tasks[name]], timeout=LIMIT)
    assert tasks[name].done()
    await until(lambda: bool(errors(caplog)))


@pytest.mark.parametrize(("relay", "names"), [("memory", WITH_MEMORY), ("redis", WITH_REDIS)])
async def test_no_task_is_left_out_here(running: Running, names: list[str]) -> None:
    assert sorted(running.by_name()) == sorted(names)


@pytest.mark.parametrize(("relay", "name"), EACH)
async def test_a_task_that_is_killed_is_written_of_and_its_work_goes_on(
    running: Running, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    [guest] = running.guests
    await running.say("before")
    await until(lambda: guest.seqs == [1])

    await kill(running, name, caplog)
    [line] = errors(caplog)
    if name in OURS:
        assert name in line
        assert await running.failed() == (503, [name])
    else:
        assert await running.failed() == (200, [])

    if name == LISTENING:
        await until(lambda: bool(guest.ended))
        assert guest.ended == [CloseCode.RESTART]
        assert guest.cursor.room.name in line
        guest = await running.join()
        assert guest.cursor.room is running.chat.hub.find("lobby")
    await until(lambda: name in running.by_name())
    await until(lambda: not running.chat.relay.lost)

    # What it is there for is done again.
    last = await running.say("after")
    await until(lambda: guest.seqs == list(range(1, last + 1)))
    last = await running.say_elsewhere("with a bell", bell=True)
    await until(lambda: guest.seqs == list(range(1, last + 1)))
    if name == "ticker":
        last = await running.say_elsewhere("without a bell", bell=False)
        await until(lambda: guest.seqs == list(range(1, last + 1)))
    tended = len(guest.tended)
    await until(lambda: len(guest.tended) > tended)
    # It was that one alone.
    assert errors(caplog) == [line]


@pytest.mark.parametrize(("relay", "name"), [("redis", one) for one in (*SESSION, SUPERVISOR)])
async def test_a_relay_whose_task_is_killed_is_lost_and_comes_back(
    running: Running, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "chat.live")
    await kill(running, name, caplog)
    await until(lambda: not running.chat.relay.lost)
    said = [one.getMessage() for one in caplog.records if one.getMessage().startswith("Relay ")]
    assert [line.partition(":")[0].partition(" after")[0] for line in said] == [
        "Relay lost",
        "Relay restored",
    ]


@pytest.mark.parametrize(("relay", "name"), EACH)
async def test_what_is_said_while_a_task_dies_is_stored_or_refused_and_comes_to_all(
    running: Running, name: str
) -> None:
    row = await running.chat.repository.make_room("lobby")
    dead = running.by_name()[name]
    dead.cancel()
    # Before the task has heard of its end.
    saying = [running.chat.writer.append(draft(row.id, f"{number}")) for number in range(3)]
    async with asyncio.timeout(LIMIT):
        answers = await asyncio.gather(*saying, return_exceptions=True)
    # The writer alone may refuse: it says so to those whose messages it could not store.
    refused = [one for one in answers if not isinstance(one, Stored)]
    assert not refused or name == "writer"
    assert all(isinstance(one, Unavailable) for one in refused)
    if name == LISTENING:
        await until(lambda: bool(running.guests[0].ended))
        await running.join()
    await until(lambda: running.again(name, dead))
    last = await running.say("after")
    await until(lambda: running.guests[-1].seqs == list(range(1, last + 1)))
