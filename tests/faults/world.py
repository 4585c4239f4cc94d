"""Two processes over one database, what a bystander knows of them, and what must hold.

After every step the log, the answers and what each member saw are held against each other; while
the clock moves, heads and bells are. Once all is calm, everybody has everything, and who resumes,
wherever that may be, gets exactly what follows. `machine.py` makes things happen here.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from chat.clock import rfc3339
from chat.errors import IdConflict, Unavailable
from chat.live import announcement
from chat.live.cursor import Cursor
from chat.live.room import GAP_PATIENCE, RETRY_PAUSE, Room
from chat.live.tasks import stop
from chat.log.repository import Repository, Stored
from chat.log.repository import Room as Row
from chat.log.statements import Draft
from chat.protocol import CloseCode
from chat.web.delivery import READ_PAUSE
from tests.faults.model import (
    NEWEST,
    PAGE,
    TAIL_COUNT,
    Clockwork,
    Member,
    Op,
    Process,
    Traffic,
    Watched,
)
from tests.live import Bells

ROOMS = ("lobby", "plaza")

PROMISE = 1.0  # seconds within which a message reaches everybody without a relay
CALM = 3  # turns of the loop without anything to do: then nothing is under way
RESTLESS = 20_000  # turns of the loop after which something goes round and round
# Seqs back from the head where somebody resumes at the end: beyond the tail, and a page further.
RESUMES = TAIL_COUNT + PAGE

NEVER = float("inf")

_worlds = count(1)


class Logged(NamedTuple):
    """A row of the log, or a message as a member sees it."""

    id: str
    sender_id: int
    receiver_id: int | None
    text: str
    sent_at: str


class Place:
    """What is known of one room, read from the database after each step."""

    def __init__(self, row: Row) -> None:
        self.id = row.id
        self.name = row.name
        self.epoch = row.epoch
        self.first_seq = row.first_seq
        self.last_seq = row.last_seq
        # The logs that it had, the one of now last: what was ever seen under each seq.
        self.logs: list[dict[int, Logged]] = [{}]
        self.epochs = [row.epoch]
        # Set while its log went back under its epoch: who notices gives it another one.
        self.gone_back = False
        # Answers that called a message new, by log and seq.
        self.firsts: Counter[tuple[int, int]] = Counter()

    def begin(self, epoch: str, last_seq: int) -> None:
        """Another log begins, with what the last one had up to a seq."""
        self.epoch = epoch
        self.logs.append({seq: one for seq, one in self.log.items() if seq <= last_seq})
        self.epochs.append(epoch)

    @property
    def channel(self) -> str:
        return f"room.{self.id}"

    @property
    def log(self) -> dict[int, Logged]:
        return self.logs[-1]


class Asked(NamedTuple):
    """A send, from being asked until its answer is judged."""

    room: int  # its place in ROOMS
    draft: Draft
    process: Process
    future: asyncio.Future[Stored]
    failures: int  # of that process' appends until then
    logs: int  # which of the room's logs it was then


class Join(NamedTuple):
    """Someone who came in or is coming in."""

    room: int
    process: Process
    since: int | None
    epoch: str | None
    head: int  # of the log when it came
    logs: int
    task: asyncio.Task[Member | None]


@dataclass
class Due:
    """What follows of a bell, or of a gap report: the tail comes to this seq without a ticker."""

    process: Process
    place: Place
    epoch: str
    seq: int
    failures: int  # of that process' reads until then
    room: Room | None  # None: it was not open
    by: float  # loop time


class World:
    def __init__(self, url: str) -> None:
        self.url = url
        self.loop = Clockwork()
        self.traffic = Traffic()
        self.bells = Bells()
        self.names = count(1)
        self.ids = count(100)
        self.processes: list[Process] = []
        self.members: list[Member] = []
        self.joins: list[Join] = []
        self.asked: list[Asked] = []
        self.dues: list[Due] = []
        # All that was ever said, and what has no answer: its sender repeats it.
        self.said: list[tuple[int, Draft]] = []
        self.unanswered: list[tuple[int, Draft]] = []
        # How many logs its place had had when a room's opening began.
        self.opening: dict[tuple[Process, int], int] = {}
        self.born: dict[Room, int] = {}
        # The newest seq that each room ever knew.
        self.heads: dict[Room, int] = {}
        # The transactions that had ended when the logs were read last.
        self._read_at = -1
        self.loop.run_until_complete(self._build())

    async def _build(self) -> None:
        self.operator = Watched(self.url, self.traffic)
        await self.operator.open()
        world = next(_worlds)
        rooms = Repository(self.operator)
        self.places = [Place(await rooms.make_room(f"{name}-{world}")) for name in ROOMS]
        for _ in range(2):
            self.processes.append(await self.new_process())

    async def new_process(self) -> Process:
        name = f"node-{next(self.names):03}"
        process = Process(self.url, name, self.traffic, self.bells, self.is_told)
        await process.start()
        return process

    async def let_go(self, member: Member) -> None:
        member.process.hub.leave(member.cursor.room, member)
        await stop([member.writing])
        if not member.writing.cancelled():
            member.writing.result()
        self._compare(member)

    async def change(self, *statements: str) -> None:
        """Change rows as an operator does."""
        async with self.operator.transaction() as raw:
            for statement in statements:
                await raw.execute(statement)

    def send_bell(self, channel: str, text: str) -> None:
        for process in self.processes:
            said = announcement.read(text, process.name)
            if said is not None:
                room_id = int(channel.removeprefix("room."))
                self.is_told(process, room_id, said.epoch, said.last)
        self.bells.send(channel, text)

    def is_told(self, process: Process, room_id: int, epoch: str, seq: int) -> None:
        """This process commits up to `seq`, or hears of it: its tail will soon be there."""
        place = self._place(room_id)
        failures = process.log.failures[Op.READ]
        room = process.hub.find(place.name)
        by = NEVER if room is None else self._soon(process)
        self.dues.append(Due(process, place, epoch, seq, failures, room, by))

    def report_gap(self, process: Process, place: Place) -> None:
        """Confirm a subscription (again): the room must look at the log."""
        self.is_told(process, place.id, place.epoch, place.last_seq)
        process.hub.on_gap(place.channel)

    # --- Running

    def run(self, work: Coroutine[Any, Any, None] | None = None) -> None:
        """Do this, and all that follows of it without time passing; then judge."""

        async def run() -> None:
            if work is not None:
                await work
            await self.rest()
            await self._audit()

        self.loop.run_until_complete(run())

    async def rest(self) -> None:
        """Wait until nothing is under way but timers."""
        turns, left = 0, RESTLESS
        while turns < CALM:
            left -= 1
            assert left, "it never comes to rest"
            if self.traffic.count:
                self.traffic.moved.clear()
                await self.traffic.moved.wait()
                turns = 0
            await asyncio.sleep(0)
            turns = turns + 1 if self.loop.resting else 0
        self._watch()

    async def pass_time(self, seconds: float) -> None:
        """Move the clock, from timer to timer."""
        end = self.loop.moment + seconds
        while (due := self._next_stop()) is not None and due <= end:
            self.loop.moment = max(due, self.loop.moment)
            await self.rest()
        self.loop.moment = end
        await self.rest()

    def _next_stop(self) -> float | None:
        timer = self.loop.next_timer
        return min(
            [*([] if timer is None else [timer]), *(due.by for due in self.dues)], default=None
        )

    async def close(self) -> None:
        await stop([one.task for one in self.joins])
        for member in self.members:
            await stop([member.writing])
        for process in self.processes:
            process.log.release()
            await process.end()
        await self.operator.close()

    # --- What must hold at every moment

    def _watch(self) -> None:
        for process in self.processes:
            for place in self.places:
                room = process.hub.find(place.name)
                if room is not None:
                    assert room.tail.last >= self.heads.get(room, 0), "a head moved backwards"
                    self.heads[room] = room.tail.last
        self.dues = [due for due in self.dues if self._is_still_due(due)]
        for member in self.members:
            if member.eager and member.delivery.ending is None and self._reads(member.process):
                assert member.settled, "it could be sent more, and is not"

    def _is_still_due(self, due: Due) -> bool:
        log = due.process.log
        room = due.process.hub.find(due.place.name)
        if room is None:
            # It is being opened, and will look again; or nobody wants in, or it was closed.
            return due.room is None and any(one.process is due.process for one in self.joins)
        if due.room is None:
            due.room, due.by = room, self._soon(due.process)
        if room is not due.room or not due.epoch == room.epoch == due.place.epoch:
            return False
        if Op.READ in log.late or log.failures[Op.READ] != due.failures:
            return False
        if room.tail.last >= due.seq:
            return False
        assert self.loop.moment < due.by, "a bell brought nothing"
        return True

    def _soon(self, process: Process) -> float:
        """When a gap is closed that is reported now."""
        well = process.log.failed_at.get(Op.READ, 0) + RETRY_PAUSE
        return max(self.loop.moment, well) + GAP_PATIENCE

    def _reads(self, process: Process) -> bool:
        """Whether this process can read the log now."""
        log = process.log
        paused = log.failed_at.get(Op.READ, 0) + READ_PAUSE >= self.loop.moment
        return Op.READ not in log.late and not paused

    # --- What must hold after every step

    async def _audit(self) -> None:
        await self._read_logs()
        self._judge_answers()
        for join in [one for one in self.joins if one.task.done()]:
            self.joins.remove(join)
            self._judge_join(join)
        for member in list(self.members):
            self._compare(member)
            if member.delivery.ending is not None:
                self._judge_end(member)
            if member.writing.done():
                self.members.remove(member)
                await self.let_go(member)
                assert member.code is not None, "its writer ended without a close"
        for process in self.processes:
            assert not process.tasks.failed
            for number, place in enumerate(self.places):
                room = process.hub.find(place.name)
                if room is not None:
                    self._judge_tail(number, room)

    async def _read_logs(self) -> None:
        if self._read_at == self.traffic.changes:
            return
        self._read_at = self.traffic.changes
        ids = ", ".join(str(place.id) for place in self.places)
        rooms = {
            row[0]: row[1:]
            for row in await self.operator.rows(
                f"SELECT id, epoch, first_seq, last_seq FROM rooms WHERE id IN ({ids})"
            )
        }
        rows = await self.operator.rows(
            "SELECT room_id, seq, message_id, sender_id, receiver_id, text, sent_at"
            f" FROM messages WHERE room_id IN ({ids}) ORDER BY room_id, seq"
        )
        for place in self.places:
            epoch, place.first_seq, place.last_seq = rooms[place.id]
            if epoch != place.epoch:
                assert place.gone_back, "another epoch for no reason"
                place.begin(epoch, place.last_seq)
            mine = {
                seq: Logged(id, sender, receiver, text, rfc3339(sent_at))
                for room, seq, id, sender, receiver, text, sent_at in rows
                if room == place.id
            }
            assert list(mine) == list(range(place.first_seq, place.last_seq + 1)), "a gap in a log"
            for seq, logged in mine.items():
                assert place.log.setdefault(seq, logged) == logged, "a seq was given twice"
            keys = Counter((one.sender_id, one.id) for one in mine.values())
            assert max(keys.values(), default=1) == 1, "a message is there twice"

    def _judge_answers(self) -> None:
        for asked in [one for one in self.asked if one.future.done()]:
            self.asked.remove(asked)
            place, draft = self.places[asked.room], asked.draft
            error = asked.future.exception()
            # The logs that the answer may be about: the room may have got another one meanwhile.
            logs = range(asked.logs - 1, len(place.logs))
            mine = [
                (log, seq, one)
                for log in logs
                for seq, one in place.logs[log].items()
                if (one.sender_id, one.id) == (draft.sender.id, draft.id)
            ]
            same = [one for one in mine if draft.says(one[2].text, one[2].receiver_id)]
            if isinstance(error, IdConflict):
                assert len(same) < len(mine), "a conflict with nothing"
            elif isinstance(error, Unavailable):
                failed = asked.process.log.failures[Op.APPEND] > asked.failures
                assert failed or not asked.process.alive, "unavailable for no reason"
                self.unanswered.append((asked.room, draft))
            else:
                stored = asked.future.result()
                assert stored.epoch in place.epochs[asked.logs - 1 :]
                there = [
                    (log, seq)
                    for log, seq, one in same
                    if (seq, one.sent_at) == (stored.seq, rfc3339(stored.sent_at))
                ]
                assert there, "acked, but not in the log like this"
                if not stored.duplicate and len(logs) == 1:
                    place.firsts[there[0]] += 1
                    assert place.firsts[there[0]] == 1, "stored for the first time twice"

    def _judge_join(self, join: Join) -> None:
        """Look whether the welcome says what the contract does."""
        try:
            member = join.task.result()
        except Unavailable:
            return
        if member is None:
            return
        self.members.append(member)
        place, room = self.places[join.room], member.cursor.room
        fits = join.epoch is None or join.epoch == room.epoch
        inside = join.since is not None and member.first_seq - 1 <= join.since <= member.last_seq
        resumed = member.cursor.resumed
        assert resumed == (fits and inside), "not what its own welcome says"
        newest = max(member.first_seq - 1, member.last_seq - NEWEST)
        assert member.start == (join.since if resumed else newest), "it starts elsewhere"
        known = (
            join.since is not None
            and place.first_seq - 1 <= join.since <= join.head
            and join.epoch in (None, place.epoch)
        )
        if known and join.logs == len(place.logs) and room.epoch == place.epoch:
            assert resumed, "the log has what follows, and it was told to start afresh"

    def _judge_end(self, member: Member) -> None:
        """Look whether there was a reason to let it start afresh."""
        assert member.delivery.ending is not None
        assert member.delivery.ending[0] == CloseCode.RESTART
        room = member.cursor.room
        place = self._place(room.id)
        another = self.born[room] < len(place.logs)
        trimmed = member.cursor.seq + 1 < place.first_seq
        assert another or trimmed, "it was told to start afresh for no reason"

    def _judge_tail(self, number: int, room: Room) -> None:
        tail, place = room.tail, self.places[number]
        entries = tail.after(tail.first - 1) or []
        assert [one.seq for one in entries] == list(range(tail.first, tail.last + 1))
        assert len(entries) <= TAIL_COUNT
        if self.born.get(room, 0) == len(place.logs):
            assert tail.last <= place.last_seq
            for one in entries:
                assert _logged(json.loads(one.json)) == place.log[one.seq]

    def _compare(self, member: Member) -> None:
        """Hold what a member saw lately against the log."""
        room = member.cursor.room
        place = self._place(room.id)
        if self.born[room] == len(place.logs):
            for message in member.seen[member.compared :]:
                assert _logged(message) == place.log[message["seq"]]
            member.compared = len(member.seen)

    def _place(self, room_id: int) -> Place:
        return next(place for place in self.places if place.id == room_id)

    # --- What must hold once all is calm

    def come_to_calm(self) -> None:
        """Let the faults end, but no bell through: a second later, everybody has everything."""
        self.run(self._come_to_calm())
        self._everybody_has_everything()
        while self.bells.held:
            self.send_bell(*self.bells.held.pop(0))
            self.run()
        self._everybody_has_everything()

    async def _come_to_calm(self) -> None:
        for process in self.processes:
            process.log.recover()
        # What was just asked for is stored before the second begins.
        await self.rest()
        await self.pass_time(PROMISE)
        await self._audit()
        for member in self.members:
            if member.eager:
                assert member.cursor.seq == self._place(member.cursor.room.id).last_seq, "late"
        # Slow ones, and those that came in just now, get all that is there for them.
        for member in self.members:
            member.read(eager=True)

    def _everybody_has_everything(self) -> None:
        assert not self.asked, "never answered"
        for process in self.processes:
            for place in self.places:
                room = process.hub.find(place.name)
                if room is not None:
                    assert room.epoch == place.epoch, "it still follows another log"
                    assert room.tail.last == place.last_seq, "a room is late"
        for member in self.members:
            place = self._place(member.cursor.room.id)
            assert member.cursor.room.epoch == place.epoch, "it still follows another log"
            assert member.start + len(member.seen) == place.last_seq, "late"
            for message in member.seen:
                assert _logged(message) == place.log[message["seq"]]
            assert member.settled

    async def resume_everywhere(self) -> None:
        """Resume at every seq near the head, once all is calm, and read to the end."""
        for process in self.processes:
            for place in self.places:
                room = process.hub.find(place.name)
                if room is not None:
                    earliest = max(place.first_seq - 1, place.last_seq - RESUMES)
                    for since in range(earliest, place.last_seq + 1):
                        await self._resume(room, place, since)

    async def _resume(self, room: Room, place: Place, since: int) -> None:
        cursor = Cursor(room, since, room.epoch)
        assert cursor.resumed and cursor.seq == since
        seen: list[dict[str, Any]] = []
        while (frame := await cursor.take()) is not None:
            seen += json.loads(frame)["messages"]
        assert [message["seq"] for message in seen] == list(range(since + 1, place.last_seq + 1))
        for message in seen:
            assert _logged(message) == place.log[message["seq"]]


def _logged(message: dict[str, Any]) -> Logged:
    receiver = message["receiver"]["id"] if message["receiver"] else None
    return Logged(
        message["id"], message["sender"]["id"], receiver, message["text"], message["sent_at"]
    )
