"""What a member is sent: the order of things, the bounds, and every way to the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chat.errors import Unavailable
from chat.live.cursor import Cursor
from chat.live.room import Room
from chat.live.tasks import stop
from chat.log.repository import Room as Row
from chat.protocol import CloseCode, Entry
from chat.web import delivery as module
from chat.web.delivery import Delivery, closing_frame
from tests.live import run, seqs_of

# Seconds that anything here may take: far more than it needs.
LIMIT = 10


class Log:
    """A log of 1 … `last` that can be away, or have lost its beginning."""

    def __init__(self, last: int) -> None:
        self.entries = run(1, last)
        self.faults = 0
        self.reads = 0

    async def read(self, room_id: int, after: int, limit: int) -> list[Entry]:
        self.reads += 1
        if self.faults:
            self.faults -= 1
            raise Unavailable
        return [one for one in self.entries if one.seq > after][:limit]


class Wire:
    """The socket: keeps the events, and can be stopped."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.open = asyncio.Event()
        self.open.set()

    async def transmit(self, event: dict[str, Any]) -> None:
        await self.open.wait()
        self.events.put_nowait(event)

    async def text(self) -> str:
        async with asyncio.timeout(LIMIT):
            event = await self.events.get()
        assert event["type"] == "websocket.send", event
        return str(event["text"])

    async def close(self) -> tuple[int, str]:
        async with asyncio.timeout(LIMIT):
            event = await self.events.get()
        assert event["type"] == "websocket.close", event
        return event["code"], event["reason"]


class Setting:
    def __init__(self, last: int, since: int, tail: int) -> None:
        self.log = Log(last)
        entries = run(last - tail + 1, last)
        self.room = Room(Row(1, "lobby", "epoch", 1, last), entries, self.log)  # type: ignore[arg-type]
        self.wire = Wire()
        self.changes = 0
        cursor = Cursor(self.room, since, None)
        self.delivery = Delivery(self.wire.transmit, cursor, self._changed)
        self.writing: asyncio.Task[None] | None = None

    def _changed(self) -> None:
        self.changes += 1


@asynccontextmanager
async def delivering(last: int = 5, since: int = 5, tail: int = 5) -> AsyncIterator[Setting]:
    setting = Setting(last, since, tail)
    setting.writing = setting.delivery.start()
    yield setting
    await stop([setting.writing])
    await setting.room.close()


async def test_what_lies_after_the_cursor_is_sent_at_once_in_one_frame() -> None:
    async with delivering(since=2) as here:
        assert seqs_of(await here.wire.text()) == [3, 4, 5]


async def test_a_bell_brings_what_came_since() -> None:
    async with delivering() as here:
        here.room.offer("epoch", run(6, 7))
        here.delivery.wake()
        assert seqs_of(await here.wire.text()) == [6, 7]


async def test_a_bell_that_brings_nothing_sends_nothing() -> None:
    async with delivering() as here:
        here.delivery.wake()
        here.delivery.answer("after it")
        assert await here.wire.text() == "after it"


async def test_answers_go_before_messages() -> None:
    async with delivering() as here:
        here.wire.open.clear()
        here.delivery.answer("first")
        await asyncio.sleep(0)
        here.room.offer("epoch", run(6, 6))
        here.delivery.wake()
        here.delivery.answer("second")
        here.wire.open.set()
        assert [await here.wire.text(), await here.wire.text()] == ["first", "second"]
        assert seqs_of(await here.wire.text()) == [6]


async def test_all_that_came_while_the_socket_was_busy_is_one_frame() -> None:
    async with delivering() as here:
        here.wire.open.clear()
        here.room.offer("epoch", run(6, 6))
        here.delivery.wake()
        await asyncio.sleep(0)
        for seq in range(7, 10):
            here.room.offer("epoch", run(seq, seq))
            here.delivery.wake()
        here.wire.open.set()
        frames = [seqs_of(await here.wire.text())]
        while frames[-1][-1] < 9:
            frames.append(seqs_of(await here.wire.text()))
        assert [seq for frame in frames for seq in frame] == [6, 7, 8, 9]
        assert len(frames) <= 2


async def test_a_log_that_is_away_is_asked_again_and_nothing_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "READ_PAUSE", 0.001)
    setting = Setting(last=20, since=0, tail=5)
    setting.log.faults = 2
    writing = setting.delivery.start()
    seqs: list[int] = []
    while len(seqs) < 20:
        seqs += seqs_of(await setting.wire.text())
    assert seqs == list(range(1, 21))
    assert setting.log.reads == 3
    await stop([writing])


async def test_a_member_whose_next_message_was_trimmed_is_told_to_start_afresh() -> None:
    setting = Setting(last=20, since=0, tail=5)
    del setting.log.entries[:3]
    writing = setting.delivery.start()
    closing = json.loads(await setting.wire.text())
    assert (closing["type"], closing["code"]) == ("closing", 1012)
    assert (await setting.wire.close())[0] == 1012
    await writing


@pytest.mark.parametrize("code", [CloseCode.RESTART, CloseCode.TRY_LATER])
async def test_a_close_that_asks_to_come_back_says_when(code: CloseCode) -> None:
    async with delivering() as here:
        here.delivery.end(code, "restart")
        closing = json.loads(await here.wire.text())
        assert closing["type"] == "closing"
        assert closing["code"] == code
        assert 0 <= closing["reconnect_after"] <= module.RECONNECT_SPREAD
        assert await here.wire.close() == (code, "restart")


async def test_other_closes_are_a_close_alone_and_the_first_reason_counts() -> None:
    async with delivering() as here:
        here.delivery.end(CloseCode.UNAUTHENTICATED, "signed out")
        here.delivery.end(CloseCode.RESTART, "restart")
        assert await here.wire.close() == (4401, "signed out")
        assert here.writing is not None
        await here.writing
        assert here.changes >= 1


async def test_clients_come_back_at_different_times() -> None:
    times = {json.loads(closing_frame(CloseCode.RESTART, ""))["reconnect_after"] for _ in range(50)}
    assert len(times) > 40


async def test_the_outbox_is_full_by_count_and_by_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with delivering() as here:
        here.wire.open.clear()
        here.delivery.answer("taken by the writer at once")
        await asyncio.sleep(0)
        for _ in range(module.OUTBOX_COUNT):
            assert not here.delivery.full
            here.delivery.answer("x")
        assert here.delivery.full
        here.wire.open.set()
        while here.changes < module.OUTBOX_COUNT + 1:
            await here.wire.text()
            await asyncio.sleep(0)
        assert not here.delivery.full
        monkeypatch.setattr(module, "OUTBOX_CHARACTERS", 10)
        here.delivery.answer("x" * 10)
        assert here.delivery.full


async def test_a_frame_that_takes_too_long_ends_the_writing() -> None:
    async with delivering() as here:
        here.wire.open.clear()
        here.delivery.answer("never taken")
        await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        here.delivery.tend(now + module.SEND_LIMIT - 1)
        await asyncio.sleep(0)
        assert here.writing is not None and not here.writing.done()
        here.delivery.tend(now + module.SEND_LIMIT + 1)
        async with asyncio.timeout(LIMIT):
            await asyncio.wait([here.writing])
        assert here.writing.cancelled()


async def test_a_member_is_slow_whose_frame_was_not_taken_for_a_second() -> None:
    async with delivering(last=5, since=2) as here:
        here.wire.open.clear()
        here.delivery.answer("not taken yet")
        await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        assert here.delivery.tend(now + module.SLOW / 2) is None
        # It is in the middle of an answer, and three messages wait.
        assert here.delivery.tend(now + module.SLOW + 1) == 3
        here.wire.open.set()
        assert await here.wire.text() == "not taken yet"
        await here.wire.text()
        assert here.delivery.tend(now + module.SLOW + 1) is None


async def test_a_member_that_waits_for_messages_is_never_overdue() -> None:
    async with delivering() as here:
        await asyncio.sleep(0)
        here.delivery.tend(asyncio.get_running_loop().time() + 10 * module.SEND_LIMIT)
        here.delivery.answer("still here")
        assert await here.wire.text() == "still here"


async def test_what_was_answered_before_the_end_is_sent_before_the_close() -> None:
    async with delivering() as here:
        await asyncio.sleep(0)
        for number in range(5):
            here.delivery.answer(f"answer {number}")
        here.delivery.end(CloseCode.BINARY, "only text frames")
        assert [await here.wire.text() for _ in range(5)] == [
            f"answer {number}" for number in range(5)
        ]
        assert await here.wire.close() == (CloseCode.BINARY, "only text frames")
