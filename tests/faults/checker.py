"""The checker: people talk on two nodes while a schedule breaks what they stand on.

`schedule` makes the steps out of a seed; `check` runs them in a house and returns a `Report`.
Who breaks things by hand asks for a `Run`, and does it in rows. `verdict` lays log, screens and
acks side by side, and is pure. Called by the tests and by soak.py.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from tests.faults.client import RESTART, Talker
from tests.faults.findings import LOSSES, REPEATS, Book, Finding, Kind, Line, Said
from tests.faults.house import NODES, ORDER, WAYS, Fault, House
from tests.people import until
from tests.servers import LOOK_INTERVAL

ROOMS = 2
TALKERS = 4  # in each room
RATE = 4.0  # messages that each says in a second
MOVE_EVERY = 6.0  # seconds, on average, after which a talker moves to another node by itself
SHORTEST, LONGEST = 0.3, 3.0  # seconds of a fault: below and above what clients and nodes notice

# All is well when the messages of WELL_SPAN seconds were each acked and on all screens within
# WELL_DELAY: by the bell it takes milliseconds, by the ticker alone a quarter to one second.
WELL_SPAN = 1.0
WELL_DELAY = 0.25
# What the contract says, and a margin for shared cores, in seconds: that a message may be late
# while only the relay is away; until the relay's latency is back to normal; until sends work again
# after the database is back.
LATENESS = 1.0 + 0.5
RELAY_RECOVERY = 5.0 + 0.5
DATABASE_RECOVERY = 2.0 + 0.5
# Messages that somebody says before waiting for an ack.
PATIENCE = 40
# What the others say while one does not read: more than what the network keeps for a reader.
MANY, LONG = 60, "." * 3_900
# What everybody says at once: more than a connection has under way.
BURST = 40
# A stack trace in a log: from its first line to the error.
TRACE = re.compile(r"Traceback \(most recent call last\):\n(?: .*\n)+\S.*")

HEAD = ("fault", "nodes", "acked", "reconnects", "lost", "repeated", "worst latency", "recovery")

Step = tuple[Fault, ...]
Log = Mapping[str, Sequence[tuple[str, Line]]]  # by room: sender and message, by seq


def schedule(
    seed: int,
    steps: int,
    parts: Sequence[str] = ORDER,
    *,
    pairs: float = 0.5,
    longest: float = LONGEST,
) -> list[Step]:
    """Return the faults of a run: of these parts, one or (with this share) two at a time."""
    dice = random.Random(seed)
    all_ways = [(part, way) for part in parts for way in WAYS[part.split(" ")[0]]]
    dealt: list[tuple[str, str]] = []
    made: list[Step] = []

    def deal(beside: str | None = None) -> Fault:
        # Each once before any comes again.
        if not any(part != beside for part, _ in dealt):
            dealt.extend(dice.sample(all_ways, len(all_ways)))
        part, way = next(one for one in dealt if one[0] != beside)
        dealt.remove((part, way))
        return Fault(part, way, round(dice.uniform(SHORTEST, longest), 2))

    for _ in range(steps):
        first = deal()
        pair = len(parts) > 1 and dice.random() < pairs
        made.append((first, deal(first.part)) if pair else (first,))
    return made


@dataclass(frozen=True)
class Patience:
    """How long the checker waits for what should come."""

    # Seconds until all is well after the last fault of a step ended. The contract gives the relay
    # 5 s and the database 2 s; clients wait up to 3 s before they come back; cores are shared.
    recovery: float = 15.0
    # Seconds in which all that was said is stored and shown, after the last step.
    drain: float = 30.0


@dataclass
class Row:
    """What one step did: the table has one line for each, and one for the whole run."""

    fault: str
    nodes: str = ""
    began: float = 0.0
    # When the last fault was over, when the row ends, and after which time all was well again.
    mended: float = 0.0
    until: float = 0.0
    recovery: float = 0.0
    acked: int = 0
    reconnects: int = 0
    lost: int = 0
    repeated: int = 0
    worst: float = 0.0


@dataclass
class Report:
    seed: int
    rows: list[Row] = field(default_factory=list)
    # All from the first word to the verdict, what happened between the rows included.
    total: Row = field(default_factory=lambda: Row("total"))
    findings: list[Finding] = field(default_factory=list)
    said: int = 0

    @property
    def kinds(self) -> set[Kind]:
        return {one.kind for one in self.findings}

    @property
    def table(self) -> str:
        """The rows for people, and below them what was found."""
        lines = [HEAD] + [
            (
                row.fault,
                row.nodes,
                str(row.acked),
                str(row.reconnects),
                str(row.lost),
                str(row.repeated),
                f"{row.worst:.2f} s",
                f"{row.recovery:.2f} s",
            )
            for row in [*self.rows, self.total]
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([f"seed {self.seed}", *table, *map(str, self.findings)])


class Run:
    """People who talk in a house, and what is written down about both."""

    def __init__(
        self, opened: House, talkers: Sequence[Talker], book: Book, seed: int, patience: Patience
    ) -> None:
        self.opened = opened
        self.talkers = talkers
        self.book = book
        self.patience = patience
        # Whole once the run is over.
        self.report = Report(seed)

    async def step(self, step: Step) -> Row:
        """Let these faults happen at once, and hold the house to what it promises for them."""
        async with self.row(" and ".join(map(str, step))) as row, AsyncExitStack() as faults:
            # What is broken first is mended last: a node starts on a database that is there.
            for fault in sorted(step, key=lambda one: ORDER.index(one.part), reverse=True):
                await faults.enter_async_context(self.opened.breaking(fault))
                # The length of a fault is part of the schedule.
                await asyncio.sleep(fault.seconds)
        _hold_promises(self, step, row)
        return row

    @asynccontextmanager
    async def row(self, fault: str) -> AsyncIterator[Row]:
        """Inside, break things and mend them; on leaving, all must get well again."""
        book, talkers = self.book, self.talkers
        row = Row(fault, self.nodes, book.now)
        self.report.rows.append(row)
        yield row
        row.mended = book.now
        well = await _well(book, talkers, self.patience)
        row.until = book.now
        slow = [
            one.due + delay
            for one in _due(book, row.began)
            if (delay := one.delay(TALKERS, book.now)) > WELL_DELAY
            and one.due < row.until - WELL_SPAN
        ]
        row.recovery = max(0.0, max(slow, default=0.0) - row.mended)
        if not well:
            book.find(Kind.SLOW, fault, _what_is_not_well(book, talkers))

    async def burst(self, *, acked: bool = True) -> None:
        """Let everybody say a lot; return while all are at it, and some of it is acked."""
        for talker in self.talkers:
            for _ in range(BURST):
                talker.say()
        said = list(self.book.said.values())[-BURST * len(self.talkers) :]

        def under_way() -> bool:
            senders = {one.sender for one in said if one.sent is not None}
            some = not acked or any(one.acked is not None for one in said)
            return some and len(senders) == len(self.talkers)

        await until(under_way)
        assert any(one.acked is None for one in said), "too late: all of it is acked"

    @property
    def nodes(self) -> str:
        """The workers of each node."""
        return "+".join(str(node.workers) for node in self.opened.nodes)

    def closes(self, row: Row) -> list[tuple[str, int]]:
        """Whose sockets ended within this row, and how; not those that a talker ended."""
        until = row.until or self.book.now
        return [
            (talker.name, code)
            for talker in self.talkers
            for at, code in talker.closes
            if row.began <= at < until
        ]

    def codes(self, row: Row) -> set[int]:
        """How sockets ended within this row."""
        return {code for _, code in self.closes(row)}

    def lay_hands_on_clients(self) -> None:
        """Let the house break what only clients can."""
        talkers = self.talkers

        def cut(url: str) -> None:
            for talker in talkers:
                if talker.at == url:
                    talker.cut()

        def doze(url: str) -> None:
            for room in {talker.room for talker in talkers}:
                here = [one for one in talkers if one.room == room and one.at == url]
                for talker in here[:1]:
                    talker.doze()
                for talker in talkers:
                    if talker.room == room and talker not in here[:1]:
                        for _ in range(MANY):
                            talker.say(LONG)

        def wake() -> None:
            for talker in talkers:
                talker.wake()

        self.opened.cut, self.opened.doze, self.opened.wake = cut, doze, wake
        self.opened.complain = lambda who, detail: self.book.find(Kind.EXIT, who, detail)

    async def end(self) -> None:
        """Wait until all is stored and shown, and judge it."""
        book, talkers, report = self.book, self.talkers, self.report
        verdict(book, talkers, await _drained(self))
        for name, node in zip(NODES, self.opened.nodes, strict=False):
            for trace in TRACE.findall(node.log):
                book.find(Kind.TRACE, name, trace)
        recovery = max((row.recovery for row in report.rows), default=0.0)
        report.total = Row("total", self.nodes, until=book.now, recovery=recovery)
        for row in [*report.rows, report.total]:
            _count(book, talkers, row)
        report.findings = sorted(book.findings, key=lambda one: one.at)
        report.said = len(book.said)


@asynccontextmanager
async def running(
    opened: House, seed: int, *, moving: bool = True, patience: Patience = Patience()
) -> AsyncIterator[Run]:
    """Let people talk; on leaving they stop, and what became of their words is judged.

    With `moving`, talkers also change nodes by themselves.
    """
    book = Book()
    async with present(opened, book, seed) as talkers:
        run = Run(opened, talkers, book, seed, patience)
        run.lay_hands_on_clients()
        async with chatting(talkers, seed, moving):
            if not await _well(book, talkers, patience):
                book.find(Kind.SLOW, "the start", _what_is_not_well(book, talkers))
            yield run
        await run.end()


async def check(
    opened: House,
    steps: Iterable[Step],
    seed: int,
    *,
    moving: bool = True,
    patience: Patience = Patience(),
) -> Report:
    """Let people talk while the steps happen, one after the other; return what was found."""
    async with running(opened, seed, moving=moving, patience=patience) as run:
        for step in steps:
            await run.step(step)
    return run.report


def verdict(book: Book, talkers: Sequence[Talker], logs: Log) -> None:
    """Lay log, screens and acks side by side, and write down what does not fit."""
    for room, rows in logs.items():
        seqs = [line.seq for _, line in rows]
        if seqs != list(range(1, len(rows) + 1)):
            book.find(Kind.HOLE, room, f"at {_first_difference(seqs, itertools.count(1))}")
        for (sender, id), times in Counter((sender, line.id) for sender, line in rows).items():
            if times > 1:
                book.find(Kind.DOUBLED, room, f"{id} of {sender}", book.said[id].due)
        for sender, line in rows:
            said = book.said.get(line.id)
            if said is None or (said.sender, said.text, said.room) != (sender, line.text, room):
                book.find(Kind.STRANGER, room, f"{line} of {sender} in the log")
    places = {line.id: line.seq for rows in logs.values() for _, line in rows}
    for talker in talkers:
        for id, seq in talker.acks.items():
            if places.get(id) != seq:
                detail = f"{id} was acked as {seq}; the log says {places.get(id)}"
                book.find(Kind.LOST, talker.name, detail, book.said[id].due)
        for said in talker.unacked.values():
            book.find(Kind.UNACKED, talker.name, said.id, said.due)
        whole = [line for _, line in logs.get(talker.room, ())]
        if talker.screen != whole:
            detail = f"{len(talker.screen)} of {len(whole)}, from"
            place = _first_difference(talker.screen, whole)
            book.find(Kind.MISSING, f"{talker.name} in {talker.room}", f"{detail} {place}")


def _first_difference(one: Iterable[object], other: Iterable[object]) -> str:
    for place, (left, right) in enumerate(zip(one, other, strict=False), 1):
        if left != right:
            return f"place {place}: {left} instead of {right}"
    return "the end"


# --- The people


@asynccontextmanager
async def present(opened: House, book: Book, seed: int) -> AsyncIterator[list[Talker]]:
    """Let all come: each room has as many at home on one node as on the other."""
    talkers = [
        Talker(
            f"user-{room}-{number}",
            f"room-{room}",
            await opened.token(f"user-{room}-{number}"),
            opened.urls,
            book,
            home=number,
            seed=seed,
        )
        for room in range(ROOMS)
        for number in range(TALKERS)
    ]
    tasks = [asyncio.create_task(one.run(), name=one.name) for one in talkers]
    try:
        yield talkers
    finally:
        await asyncio.gather(*[one.leave() for one in talkers])
        await asyncio.gather(*tasks)


@asynccontextmanager
async def chatting(talkers: Sequence[Talker], seed: int, moving: bool) -> AsyncIterator[None]:
    """Let them talk, and walk from node to node.

    In the first room one speaks and the others listen: where all speak, each message makes a deaf
    node look into the log, and hides that it is deaf.
    """

    async def talk(talker: Talker) -> None:
        dice = random.Random(f"{seed}/talk/{talker.name}")
        while True:
            await asyncio.sleep(dice.expovariate(RATE))  # the pace of people
            if len(talker.unacked) < PATIENCE:
                talker.say()

    async def walk(talker: Talker) -> None:
        dice = random.Random(f"{seed}/walk/{talker.name}")
        while True:
            await asyncio.sleep(dice.expovariate(1 / MOVE_EVERY))
            talker.move()

    listening = talkers[1:TALKERS]
    tasks = [asyncio.create_task(talk(one)) for one in talkers if one not in listening]
    tasks += [asyncio.create_task(walk(one)) for one in talkers if moving]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()


# --- The steps


async def _well(book: Book, talkers: Sequence[Talker], patience: Patience) -> bool:
    """Wait until everybody is there and messages go round by the bell; False at the limit."""
    began = book.now
    try:
        async with asyncio.timeout(patience.recovery):
            while True:
                newest = _newest(book)
                if (
                    book.now - began > WELL_SPAN + WELL_DELAY
                    and all(talker.connected for talker in talkers)
                    and {one.room for one in newest} == {one.room for one in talkers}
                    and all(one.delay(TALKERS, book.now) <= WELL_DELAY for one in newest)
                ):
                    return True
                await asyncio.sleep(LOOK_INTERVAL)
    except TimeoutError:
        return False


def _what_is_not_well(book: Book, talkers: Sequence[Talker]) -> str:
    newest = _newest(book)
    late = sum(one.delay(TALKERS, book.now) > WELL_DELAY for one in newest)
    away = sum(not talker.connected for talker in talkers)
    return f"{late} of {len(newest)} messages are late, {away} of {len(talkers)} talkers are away"


def _due(book: Book, since: float) -> list[Said]:
    """All messages that were due since then, the newest first."""
    newest_first = reversed(book.said.values())
    return list(itertools.takewhile(lambda one: one.due >= since, newest_first))


def _newest(book: Book) -> list[Said]:
    """The messages of the last WELL_SPAN seconds, without those that may yet be on time."""
    until = book.now - WELL_DELAY
    return [one for one in _due(book, until - WELL_SPAN) if one.due <= until]


def _hold_promises(run: Run, step: Step, row: Row) -> None:
    """Look at what the contract promises for one kind of fault alone."""
    book, talkers, closes = run.book, run.talkers, run.closes(row)
    parts, ways = {fault.part for fault in step}, {fault.way for fault in step}
    if parts == {"redis"}:
        for one in closes:
            book.find(Kind.CUT, row.fault, f"{one}")
        for said in _due(book, row.began):
            if said.acked is not None and said.seen is not None and said.screens == TALKERS:
                late = said.seen - said.acked
                if late > LATENESS:
                    book.find(Kind.LATE, row.fault, f"{said.id} by {late:.2f} s", said.due)
        if row.recovery > RELAY_RECOVERY:
            book.find(Kind.SLOW, row.fault, f"the relay took {row.recovery:.2f} s")
    if parts == {"postgres"}:
        acks = [one.acked for one in _due(book, row.began) if one.acked is not None]
        wait = min((at for at in acks if at >= row.mended), default=row.until) - row.mended
        if wait > DATABASE_RECOVERY:
            book.find(Kind.SLOW, row.fault, f"the first ack came after {wait:.2f} s")
    if ways == {"doze"} and len(step) == 1:
        dozers = {talker.name for talker in talkers if talker.dozed >= row.began}
        for said in _due(book, row.began):
            # The last screen may be that of the one who does not read.
            late = (said.seen_before or book.now) - said.due
            if late > LATENESS and said.due < row.mended and said.sender not in dozers:
                book.find(Kind.LATE, row.fault, f"{said.id} by {late:.2f} s for others", said.due)
    if len(step) == 1 and step[0].way == "restart" and step[0].part in NODES:
        for one in closes:
            if one[1] != RESTART:
                book.find(Kind.CUT, row.fault, f"{one}")


def _count(book: Book, talkers: Sequence[Talker], row: Row) -> None:
    def within(at: float | None) -> bool:
        return at is not None and row.began <= at < row.until

    row.acked = sum(within(one.acked) for one in book.said.values())
    row.reconnects = sum(within(at) for talker in talkers for at in talker.reconnects)
    row.lost = sum(within(one.at) and one.kind in LOSSES for one in book.findings)
    row.repeated = sum(within(one.at) and one.kind in REPEATS for one in book.findings)
    delays = [one.delay(TALKERS, book.now) for one in book.said.values() if within(one.due)]
    row.worst = max(delays, default=0.0)


# --- The end


async def _drained(run: Run) -> Log:
    """Wait until all is acked and shown, or the limit; return the log as the database has it."""
    logs: Log = {}
    try:
        async with asyncio.timeout(run.patience.drain):
            while any(talker.unacked for talker in run.talkers):
                await asyncio.sleep(LOOK_INTERVAL)
            logs = await _read(run.opened)
            while any(talker.last < len(logs.get(talker.room, ())) for talker in run.talkers):
                await asyncio.sleep(LOOK_INTERVAL)
    except TimeoutError:
        pass  # the verdict says what is missing
    return await _read(run.opened)


async def _read(opened: House) -> Log:
    logs: dict[str, list[tuple[str, Line]]] = {}
    for room, sender, seq, id, text in await opened.rows(
        "SELECT name, sender_name, seq, message_id, text FROM messages"
        " JOIN rooms ON rooms.id = room_id ORDER BY name, seq"
    ):
        logs.setdefault(room, []).append((sender, Line(seq, id, text)))
    return logs
