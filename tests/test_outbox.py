"""What waits for Redis: order, bounds, counts."""

from __future__ import annotations

import asyncio

import pytest

from chat.live import outbox
from chat.live.outbox import Outbox, pack, pack_publish
from tests.relays import LIMIT


def opened() -> Outbox:
    box = Outbox()
    box.open = True
    return box


def test_commands_are_packed_as_redis_reads_them() -> None:
    assert pack(b"SUBSCRIBE", b"a", b"") == b"*3\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n$0\r\n\r\n"
    assert pack_publish(b"room", b"hola") == pack(b"PUBLISH", b"room", b"hola")


async def test_all_that_waits_is_one_pipeline_in_order() -> None:
    box = opened()
    for command in (b"1", b"2", b"3"):
        box.put(command)
    assert await box.take() == [b"1", b"2", b"3"]
    assert box.published == 0
    box.sent()
    assert (box.published, box.dropped) == (3, 0)


async def test_taking_waits_for_a_command() -> None:
    box = opened()
    async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
        taking = group.create_task(box.take())
        await asyncio.sleep(0)
        assert not taking.done()
        box.put(b"1")
    assert taking.result() == [b"1"]


async def test_a_pipeline_is_bounded_by_count_and_by_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "PIPELINE_COMMANDS", 2)
    monkeypatch.setattr(outbox, "PIPELINE_BYTES", 10)
    box = opened()
    for command in (b"1", b"2", b"3" * 12, b"4"):
        box.put(command)
    assert [await box.take() for _ in range(3)] == [[b"1", b"2"], [b"3" * 12], [b"4"]]


def test_what_does_not_fit_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_COMMANDS", 2)
    monkeypatch.setattr(outbox, "OUTBOX_BYTES", 10)
    box = opened()
    box.put(b"1" * 9)
    box.put(b"2" * 2)
    assert box.dropped == 1
    box.put(b"3")
    box.put(b"")
    assert box.dropped == 2


async def test_room_is_free_again_once_a_pipeline_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_BYTES", 10)
    box = opened()
    for _ in range(3):
        box.put(b"1" * 10)
        await box.take()
        box.sent()
    assert (box.published, box.dropped) == (3, 0)


async def test_a_heartbeat_passes_a_shut_outbox_and_counts_nowhere() -> None:
    box = Outbox()
    box.put_beat(b"old")
    box.put_beat(b"beat")
    box.put(b"1")
    assert await box.take() == [b"beat"]
    box.sent()
    assert (box.published, box.dropped) == (0, 1)


async def test_shutting_drops_what_waits_and_what_is_under_way() -> None:
    box = opened()
    box.put(b"1")
    await box.take()
    box.put(b"2")
    box.put_beat(b"beat")
    box.shut()
    box.put(b"3")
    assert (box.published, box.dropped) == (0, 3)
    box.open = True
    box.put(b"4")
    assert await box.take() == [b"4"]


async def test_flush_waits_for_what_was_put_in_before_it_and_no_longer() -> None:
    box = opened()
    box.put(b"1")
    async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
        flushing = group.create_task(box.flush())
        await box.take()
        await asyncio.sleep(0)
        assert not flushing.done()
        box.put(b"2")
        box.sent()
        await flushing


async def test_flush_ends_when_all_is_dropped() -> None:
    box = opened()
    box.put(b"1")
    async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
        group.create_task(box.flush())
        await asyncio.sleep(0)
        box.shut()


async def test_flush_gives_up_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FLUSH_SECONDS", 0.01)
    box = opened()
    box.put(b"1")
    async with asyncio.timeout(LIMIT):
        await box.flush()
    assert box.published == 0
