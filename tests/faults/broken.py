"""Broken variants of the product: `python -m tests.faults.broken NAME serve …`.

Each takes one promise away, by putting something else in the place of one name of `chat`. The
checker must turn red on every one of them: test_breaks.py holds which finding each must bring.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

from chat.__main__ import main
from chat.live import cursor, room
from chat.live.cursor import Cursor
from chat.live.hub import Hub
from chat.live.redis_session import RedisSession
from chat.live.relay import Relay
from chat.live.room import Room
from chat.log import writer
from chat.log.database import Database
from chat.log.repository import Stored
from chat.log.statements import Draft, PostgreSQL
from chat.log.writer import Writer
from chat.protocol import Entry, SharedText, messages_frame
from chat.web.delivery import Delivery

# Seconds between the early ack and the commit: a slow disk, so that a crash finds some, while what
# is said is still on all screens within checker.WELL_DELAY.
SLOW_DISK = 0.15
# Which share of the bells gets lost where bells get lost.
LOST_BELLS = 0.3

Break = Callable[[], None]


def ack_before_commit() -> None:
    """Promise 1: the ack is given as soon as the seq is known, before the transaction ends."""
    waiting: dict[tuple[int, int, str], asyncio.Future[Stored]] = {}
    commit = _of(Writer, "_commit")
    insert = _of(PostgreSQL, "insert")

    async def remembering(self: Writer, batch: list[writer.Waiting]) -> None:
        # What was acked needs no second try.
        batch = [one for one in batch if not one[1].done()]
        waiting.update({draft.key: future for draft, future in batch})
        if batch:
            await commit(self, batch)

    async def acking(raw: Any, new: list[tuple[Draft, int, int]]) -> None:
        for draft, seq, at in new:
            future = waiting.pop(draft.key)
            if not future.done():
                future.set_result(Stored(seq, at, False, "", None))
        await asyncio.sleep(SLOW_DISK)
        await insert(raw, new)

    _put(Writer, "_commit", remembering)
    _put(PostgreSQL, "insert", staticmethod(acking))


def frames_out_of_order() -> None:
    """Promise 2: the entries of a frame come the newest first."""

    def reversed_frame(name: str, entries: Sequence[Entry]) -> SharedText:
        return messages_frame(name, list(entries)[::-1])

    _put(room, "messages_frame", reversed_frame)
    _put(cursor, "messages_frame", reversed_frame)


def cursor_skips() -> None:
    """Promise 3: who resumes and has missed something misses the first message of it."""
    _move_resumed_cursors(+1)


def cursor_steps_back() -> None:
    """Promise 3: who resumes gets the last message that it has once more."""
    _move_resumed_cursors(-1)


def no_look_up() -> None:
    """Promise 3: an id is not looked up before it is stored, and nothing else forbids it twice."""
    opened = _of(Database, "open")

    async def without_index(self: Database) -> None:
        await opened(self)
        await self.rows("DROP INDEX IF EXISTS messages_once")

    async def nothing_known(raw: Any, keys: list[tuple[int, int, str]]) -> dict[Any, Any]:
        return {}

    _put(Database, "open", without_index)
    _put(PostgreSQL, "known", staticmethod(nothing_known))


def no_look_before_resuming() -> None:
    """Promise 3: a node that is behind a client takes its cursor for one of another log."""

    async def no_reach(self: Room, seq: int) -> None:
        return

    _put(Room, "reach", no_reach)
    _lose_bells(LOST_BELLS)


def no_gap_fill() -> None:
    """Promise 4: a gap in the announcements is not filled from the log."""

    def no_mend(self: Room, head: int | None = None) -> None:
        return

    _put(Room, "mend", no_mend)


def no_ticker() -> None:
    """Promise 4: bells get lost, and nobody looks at the heads."""

    async def no_tick(self: Hub) -> None:
        await asyncio.Event().wait()

    _put(Hub, "tick", no_tick)
    _lose_bells(1.0)


def no_resubscribe() -> None:
    """Promise 4: after a loss the relay comes back, but hears no room any more."""
    compare = _of(RedisSession, "_compare")
    first: list[RedisSession] = []

    def compare_once(self: RedisSession) -> list[bytes]:
        if not first:
            first.append(self)
        answer: list[bytes] = compare(self) if first[0] is self else []
        return answer

    _put(RedisSession, "_compare", compare_once)


def one_slow_reader_stops_all() -> None:
    """Promise 5: a node sends one frame after the other, whoever does not read."""
    send = _of(Delivery, "send")
    turn = asyncio.Lock()

    async def send_in_turn(self: Delivery, text: str) -> None:
        async with turn:
            await send(self, text)

    _put(Delivery, "send", send_in_turn)


def no_good_bye() -> None:
    """Draining: the process ends without a word to its members."""
    import chat.app

    async def no_drain(services: Any) -> None:
        return

    _put(chat.app, "drain", no_drain)


BREAKS: dict[str, Break] = {
    one.__name__: one
    for one in (
        ack_before_commit,
        frames_out_of_order,
        cursor_skips,
        cursor_steps_back,
        no_look_up,
        no_look_before_resuming,
        no_gap_fill,
        no_ticker,
        no_resubscribe,
        one_slow_reader_stops_all,
        no_good_bye,
    )
}


def _move_resumed_cursors(by: int) -> None:
    begin = _of(Cursor, "__init__")

    def begin_elsewhere(self: Cursor, room: Room, since: int | None, epoch: str | None) -> None:
        begin(self, room, since, epoch)
        if self.resumed and self.seq > 0 and self.behind:
            self.seq += by

    _put(Cursor, "__init__", begin_elsewhere)


def _lose_bells(share: float) -> None:
    publish = _of(Relay, "publish")

    def publish_sometimes(self: Relay, channel: str, text: str) -> None:
        if random.random() >= share:
            publish(self, channel, text)

    _put(Relay, "publish", publish_sometimes)


def _of(owner: Any, name: str) -> Any:
    return getattr(owner, name)


def _put(owner: Any, name: str, other: Any) -> None:
    # A name that the product does not have any more must not make a break that breaks nothing.
    assert hasattr(owner, name), f"{owner} has no {name}"
    setattr(owner, name, other)


if __name__ == "__main__":
    BREAKS[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
