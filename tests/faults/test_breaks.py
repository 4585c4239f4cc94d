"""The checker is checked: each broken variant of the product must turn it red, in the right way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from chat.client import Message, Room
from chat.unsent import Unsent
from tests.faults import broken
from tests.faults.checker import Patience, Step, check, running
from tests.faults.findings import Kind
from tests.faults.house import Fault, house
from tests.servers import PostgresServer, RedisServer

# Seconds for one variant, and how long the checker hopes for it to get well.
LIMIT = 60
PATIENCE = Patience(recovery=3, drain=1)

# What each variant needs to show, and what must be found then. One of the kinds is enough.
CUT_A: Step = (Fault("node a", "cut", 0.3),)
CUT_B: Step = (Fault("node b", "cut", 0.3),)
# Clients change nodes while these hear nothing of each other.
DEAF_MOVE: Step = (Fault("node a", "cut", 0.1), Fault("redis", "kill", 1.0))
CASES: dict[str, tuple[Sequence[Step], set[Kind]]] = {
    "frames_out_of_order": ([CUT_A], {Kind.DISORDER, Kind.GAP}),
    "cursor_skips": ([CUT_A, CUT_B], {Kind.GAP}),
    "cursor_steps_back": ([CUT_A, CUT_B], {Kind.REPEAT}),
    "no_look_up": ([CUT_A, CUT_B], {Kind.DOUBLED}),
    "no_look_before_resuming": ([DEAF_MOVE] * 2, {Kind.NOT_RESUMED}),
    "no_gap_fill": ([(Fault("redis", "kill", 0.5),)], {Kind.MISSING}),
    "no_ticker": ([], {Kind.MISSING}),
    "no_resubscribe": ([(Fault("redis", "drop", 0.1),)], {Kind.SLOW}),
    # Until the network's buffers are full nobody is held up, which takes a while on a busy machine.
    "one_slow_reader_stops_all": ([(Fault("node a", "doze", 4.0),)], {Kind.LATE}),
    "no_good_bye": ([(Fault("node a", "restart", 0.1),)], {Kind.CUT}),
}

# The variant that shows only where the database dies in the midst of a commit.
IN_A_COMMIT = "ack_before_commit"

# Variants that need clients which go from node to node; for the others these would mend too much.
MOVING = ("no_look_before_resuming",)


def forgets_what_was_not_acked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Unsent, "begin", lambda self: None)


def loses_its_cursor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Room, "_address", lambda self: self._url)


def passes_over_one(patch: pytest.MonkeyPatch) -> None:
    take = Room._take

    def taking(self: Room, messages: list[Message]) -> None:
        take(self, messages)
        if self._cursor == 3 and self._messages:
            self._messages.pop()

    patch.setattr(Room, "_take", taking)


# Faults of `chat/client.py`, which the talkers are made of: all show in a crash.
CLIENT_CASES: dict[Callable[[pytest.MonkeyPatch], None], Kind] = {
    forgets_what_was_not_acked: Kind.UNACKED,
    loses_its_cursor: Kind.NOT_RESUMED,
    passes_over_one: Kind.MISSING,
}


def test_every_break_has_its_case() -> None:
    assert {*CASES, IN_A_COMMIT} == broken.BREAKS.keys()


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("name", CASES)
async def test_a_broken_variant_turns_the_checker_red(
    breakable_redis: RedisServer,
    breakable_postgres: PostgresServer,
    tmp_path: Path,
    name: str,
) -> None:
    steps, kinds = CASES[name]
    async with house(breakable_redis, breakable_postgres, tmp_path, broken=name) as opened:
        report = await check(opened, steps, 1, moving=name in MOVING, patience=PATIENCE)
    print(report.table)
    assert kinds & report.kinds, report.table


@pytest.mark.timeout(LIMIT)
async def test_an_ack_before_the_commit_turns_the_checker_red(
    breakable_redis: RedisServer, breakable_postgres: PostgresServer, tmp_path: Path
) -> None:
    kill = Fault("postgres", "kill", 0.0)
    async with (
        house(breakable_redis, breakable_postgres, tmp_path, broken=IN_A_COMMIT) as opened,
        running(opened, 1, moving=False, patience=PATIENCE) as run,
        run.row(str(kill)),
    ):
        await run.burst()
        async with opened.breaking(kill):
            pass
    print(run.report.table)
    assert Kind.LOST in run.report.kinds, run.report.table


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("broken_client", CLIENT_CASES)
async def test_a_broken_client_turns_the_checker_red(
    breakable_redis: RedisServer,
    breakable_postgres: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken_client: Callable[[pytest.MonkeyPatch], None],
) -> None:
    broken_client(monkeypatch)
    async with (
        house(breakable_redis, breakable_postgres, tmp_path) as opened,
        running(opened, 1, moving=False, patience=PATIENCE) as run,
        run.row("crash"),
    ):
        await run.burst()
        await opened.crash()
        await opened.rise()
    print(run.report.table)
    assert CLIENT_CASES[broken_client] in run.report.kinds, run.report.table
