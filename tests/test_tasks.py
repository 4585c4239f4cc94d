"""Background tasks: none dies in silence, and all of them end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest

from chat.live.tasks import Tasks, stop
from tests.relays import LIMIT, until


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat.live.tasks.RESTART_PAUSE", 0.01)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]


class Work:
    """A task that ends the first time as it is told to, and then goes on until it is cancelled."""

    def __init__(self, end: BaseException | None = None) -> None:
        self.starts = 0
        self.ended = False
        self._end = end

    async def run(self) -> None:
        self.starts += 1
        if self.starts == 1:
            await asyncio.sleep(0)
            if self._end is None:
                return
            raise self._end
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (LookupError("a mistake"), "Task ticker failed; it is started again"),
        (None, "Task ticker ended though it should not; it is started again"),
        # Nobody cancelled the task: something that it waited for was cancelled.
        (asyncio.CancelledError(), "Task ticker failed; it is started again"),
    ],
)
async def test_a_task_that_dies_is_an_error_line_counts_as_failed_and_starts_again(
    end: BaseException | None, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    tasks, work = Tasks(), Work(end)
    tasks.start("ticker", work.run)
    try:
        await until(lambda: work.starts == 2)
        assert errors(caplog) == [sentence]
        assert tasks.failed == {"ticker"}
        trace = caplog.records[-1].exc_info
        assert (trace is not None and trace[1] is not None) == (end is not None)
    finally:
        await tasks.close()
    assert work.ended


async def test_a_task_that_lives_on_is_trusted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat.live.tasks.PROVEN", 0.05)
    tasks, work = Tasks(), Work(LookupError("a mistake"))
    tasks.start("ticker", work.run)
    try:
        await until(lambda: tasks.failed == {"ticker"})
        await until(lambda: not tasks.failed)
        assert work.starts == 2
    finally:
        await tasks.close()


async def test_a_task_that_dies_again_and_again_stays_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chat.live.tasks.PROVEN", 60)
    starts = 0

    async def die() -> None:
        nonlocal starts
        starts += 1
        raise LookupError("a mistake")

    tasks = Tasks()
    tasks.start("ticker", die)
    try:
        await until(lambda: starts > 3)
        assert tasks.failed == {"ticker"}
    finally:
        await tasks.close()


async def test_one_task_that_dies_disturbs_no_other() -> None:
    tasks, broken, sound = Tasks(), Work(LookupError("a mistake")), Work(LookupError("never"))
    sound.starts = 1
    tasks.start("broken", broken.run)
    tasks.start("sound", sound.run)
    try:
        await until(lambda: broken.starts == 2)
        assert sound.starts == 2
        assert tasks.failed == {"broken"}
    finally:
        await tasks.close()


async def test_closing_ends_the_tasks_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    tasks, one, two = Tasks(), Work(), Work()
    one.starts = two.starts = 1
    tasks.start("one", one.run)
    tasks.start("two", two.run)
    await until(lambda: one.starts == two.starts == 2)
    async with asyncio.timeout(LIMIT):
        await tasks.close()
    assert one.ended and two.ended
    assert errors(caplog) == []
    assert tasks.failed == set()


@pytest.mark.parametrize("swallowed", [1, 3])
async def test_closing_ends_even_a_task_that_swallows_a_cancel(
    swallowed: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("chat.live.tasks.STOP_STEP", 0.01)
    cancels = 0
    running = asyncio.Event()

    async def stubborn() -> None:
        nonlocal cancels
        while True:
            running.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancels += 1
                if cancels > swallowed:
                    raise

    tasks = Tasks()
    tasks.start("stubborn", stubborn)
    await running.wait()
    async with asyncio.timeout(LIMIT):
        await tasks.close()
    assert cancels == swallowed + 1
    assert errors(caplog) == []


async def test_a_task_that_takes_a_cancel_for_its_end_is_not_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    starts = 0

    async def polite() -> None:
        nonlocal starts
        starts += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    tasks = Tasks()
    tasks.start("polite", polite)
    await until(lambda: starts == 1)
    async with asyncio.timeout(LIMIT):
        await tasks.close()
    assert starts == 1
    assert errors(caplog) == []


async def test_stopping_is_bounded_even_where_a_task_never_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chat.live.tasks.STOP_STEP", 0.01)
    monkeypatch.setattr("chat.live.tasks.STOP_LIMIT", 0.05)
    free = asyncio.Event()

    async def deaf() -> None:
        while not free.is_set():
            with suppress(asyncio.CancelledError):
                await free.wait()

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(LIMIT):
        await stop([task])
    assert not task.done()
    free.set()
    await task


async def test_stopping_what_has_ended_already_is_nothing() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await stop([task])
    await stop([])
