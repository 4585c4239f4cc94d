"""Everything that may happen to two processes and two rooms, in any order that Hypothesis finds.

Each rule is a step that can be met at any time. Some are whole stories: orders of bells, answers
and failures that single steps would meet too rarely. What must hold is in `world.py`.
"""

from __future__ import annotations

import asyncio
import sys
from enum import Enum

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from chat.clock import rfc3339
from chat.live import announcement
from chat.live.hub import TICK
from chat.live.room import GAP_PATIENCE
from chat.live.tasks import stop
from chat.log.statements import Draft
from chat.protocol import Message, entry
from tests.faults.model import SENDERS, Fault, Member, Op, Process
from tests.faults.world import Asked, Join, Place, World

STEPS = 30  # of one example, the stories counted as one

# At most this many members at a time: enough to be at many places.
CROWD = 8
# Messages that fill a tail, and a page before it.
MANY = 12
# Bells that are chosen from, the newest ones first: a few sends and what came before them.
NEAR = 6
# Messages that are said at once: more than a page.
BATCH = 6

HOLA = (9, "hola", False)
TEXTS = ("hola", "hola", "adiós", "long " * 100)

# One of the two processes or senders; a room, more often the first: there more comes together.
WHICH = st.integers(0, 1)
ROOM = st.sampled_from([0, 0, 0, 1])
# An id (some come again and again), a text, and whether it is addressed.
Said = tuple[int, str, bool]
MESSAGE = st.tuples(st.integers(0, 9), st.sampled_from(TEXTS), st.booleans())
MESSAGES = st.lists(MESSAGE, min_size=1, max_size=BATCH)


class Fate(Enum):
    """What becomes of a bell; the order in which they are drawn makes it late or early."""

    DELIVERED = "delivered"
    LOST = "lost"
    DOUBLED = "delivered, and again later"
    FOREIGN = "delivered as one of another epoch"


Fates = list[tuple[int, Fate]]
FATES = st.lists(st.tuples(st.integers(0, NEAR - 1), st.sampled_from(Fate)), min_size=1, max_size=5)


class House(World, RuleBasedStateMachine):
    """Two processes, two rooms, and everything that may happen to them."""

    url: str

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        World.__init__(self, self.url)

    @initialize(
        messages=st.integers(0, MANY),
        members=st.lists(st.tuples(WHICH, ROOM, st.booleans()), max_size=4),
    )
    def begin(self, messages: int, members: list[tuple[int, int, bool]]) -> None:
        """Start in the midst of a conversation."""
        for number in range(messages):
            self._ask(number % 2, number % 3 % 2, self._draft(number % 3 % 2, 0, *HOLA))
            self.loop.run_until_complete(self.rest())
        self.run()
        for process, room, eager in members:
            self.run(self._come(process, room, 0, None, eager))

    # --- Sending

    @rule(process=WHICH, room=ROOM, sender=WHICH, messages=MESSAGES)
    def say(self, process: int, room: int, sender: int, messages: list[Said]) -> None:
        """Send some messages in one go, with ids that are new or were used before."""
        for message in messages:
            self._ask(process, room, self._draft(room, sender, *message))
        self.run()

    @rule(process=WHICH, room=ROOM, messages=MESSAGES)
    def talk(self, process: int, room: int, messages: list[Said]) -> None:
        """Send some messages one after the other: each has a bell of its own."""
        for message in messages:
            self._ask(process, room, self._draft(room, 0, *message))
            self.loop.run_until_complete(self.rest())
        self.run()

    @rule(room=ROOM, sender=WHICH, messages=st.lists(MESSAGE, min_size=2, max_size=2))
    def say_the_same_id_to_both(self, room: int, sender: int, messages: list[Said]) -> None:
        """Send one id to both processes at the same time, perhaps with another text."""
        first = self._draft(room, sender, *messages[0])
        other = self._draft(room, sender, *messages[1])
        self._ask(0, room, first)
        self._ask(1, room, Draft(other.room_id, first.id, first.sender, other.receiver, other.text))
        self._ask(1, room, other)
        self.run()

    @rule(process=WHICH, back=st.integers(0, 3))
    def repeat(self, process: int, back: int) -> None:
        """Send something once more, as a client does that had no answer."""
        if back < len(self.said):
            self._ask(process, *self.said[-1 - back])
            self.run()

    def _draft(self, room: int, sender: int, number: int, text: str, addressed: bool) -> Draft:
        name = f"c-{number if number < 4 else next(self.ids)}"
        receiver = SENDERS[1 - sender] if addressed else None
        return Draft(self.places[room].id, name, SENDERS[sender], receiver, text)

    def _ask(self, number: int, room: int, draft: Draft) -> None:
        async def ask() -> None:
            process = self.processes[number]
            future = process.writer.append(draft)
            self.said.append((room, draft))
            failures, logs = process.log.failures[Op.APPEND], len(self.places[room].logs)
            self.asked.append(Asked(room, draft, process, future, failures, logs))

        # Without a rest, so that what follows falls into the same batch.
        self.loop.run_until_complete(ask())

    # --- Bells

    @rule(fates=FATES)
    def ring(self, fates: Fates) -> None:
        """Decide what becomes of some of the bells that are under way, in any order."""
        self._ring(fates, max(0, len(self.bells.held) - NEAR))

    def _ring(self, fates: Fates, oldest: int, in_order: int = 0) -> None:
        """Ring bells that are not older than this one: some in order, then as the fates say."""
        for number, fate in [(0, Fate.DELIVERED)] * in_order + fates:
            if len(self.bells.held) <= oldest:
                break
            place = oldest + number % (len(self.bells.held) - oldest)
            channel, text = self.bells.held[place]
            if fate is not Fate.DOUBLED:
                del self.bells.held[place]
            if fate is Fate.FOREIGN:
                self._send_foreign(channel)
            elif fate is not Fate.LOST:
                self.send_bell(channel, text)
            self.loop.run_until_complete(self.rest())
        self.let_time_pass(GAP_PATIENCE)

    def _send_foreign(self, channel: str) -> None:
        """Announce what another deployment, or this one before it was put back, might have."""
        place = next(place for place in self.places if place.channel == channel)
        for process in self.processes:
            room = process.hub.find(place.name)
            if room is not None:
                seq = room.tail.last + 1
                stranger = Message(seq, "strange", SENDERS[0], None, "strange", rfc3339(0))
                text = announcement.write("nobody", "another", [entry(stranger)])
                process.relay.hear(channel, text)

    @rule(to=st.sampled_from(["lost", "unconfirmed", "well", "well"]))
    def turn_the_relay(self, to: str) -> None:
        """Announce nothing any more, which everybody knows; confirm nothing; or be well again."""
        self.bells.lost = to == "lost"
        if to == "unconfirmed":
            self.bells.confirming.clear()
        else:
            self.bells.confirming.set()
        if to == "well":
            self.run(self._confirm_all())

    def _recover(self) -> None:
        """Let no fault be left, so that a story goes as it is told."""
        for process in self.processes:
            process.log.recover()
        self.turn_the_relay("well")

    async def _confirm_all(self) -> None:
        for process in self.processes:
            for place in self.places:
                self.report_gap(process, place)

    @rule(process=WHICH, room=ROOM)
    def confirm(self, process: int, room: int) -> None:
        """Confirm a subscription again: it is a gap report."""
        self.run(self._confirm(process, room))

    async def _confirm(self, process: int, room: int) -> None:
        self.report_gap(self.processes[process], self.places[room])

    # --- Members

    @rule(
        process=WHICH,
        room=ROOM,
        since=st.one_of(st.none(), st.integers(0, 3), st.integers(-12, -1), st.just("beyond")),
        epoch=st.sampled_from(["now", "now", "none", "before", "wrong"]),
        eager=st.booleans(),
    )
    def join(
        self, process: int, room: int, since: int | str | None, epoch: str, eager: bool
    ) -> None:
        """Come in, new or with a cursor: from the beginning, near the head or beyond it."""
        if len(self.members) >= CROWD:
            self.leave(0)
        place = self.places[room]
        if isinstance(since, int) and since < 0:
            since = max(0, place.last_seq + 1 + since)
        elif since == "beyond":
            since = place.last_seq + 1
        assert not isinstance(since, str)
        epochs = {"now": place.epoch, "none": None, "before": place.epochs[0], "wrong": "wrong"}
        self.run(self._come(process, room, since, epochs[epoch], eager))

    async def _come(
        self, number: int, room: int, since: int | None, epoch: str | None, eager: bool
    ) -> None:
        place, process = self.places[room], self.processes[number]
        pending = [one for one in self.joins if (one.process, one.room) == (process, room)]
        if process.hub.find(place.name) is None and not pending:
            self.opening[process, room] = len(place.logs)
        task = asyncio.create_task(self._enter(process, room, since, epoch, eager), name="join")
        logs = len(place.logs)
        self.joins.append(Join(room, process, since, epoch, place.last_seq, logs, task))

    async def _enter(
        self, process: Process, room: int, since: int | None, epoch: str | None, eager: bool
    ) -> Member | None:
        """Come in as `web/sockets.py` lets one in."""
        name = self.places[room].name
        opened = process.hub.find(name)
        if opened is None:
            row = await process.log.find_room(name)
            assert row is not None
            opened = await process.hub.open(row)
        self.born.setdefault(opened, self.opening[process, room])
        if since is not None and epoch in (None, opened.epoch):
            await opened.reach(since)
        member = Member(process, opened, since, epoch, eager)
        if process.hub.enter(opened, member):
            return member
        await stop([member.writing])
        return None

    @rule(number=st.integers(0, CROWD - 1), frames=st.integers(1, 3))
    def take(self, number: int, frames: int) -> None:
        """A slow member's socket takes a few frames."""
        for _ in range(frames):
            if self.members:
                self.members[number % len(self.members)].read()
                self.run()

    @rule(number=st.integers(0, CROWD - 1))
    def leave(self, number: int) -> None:
        if self.members:
            self.run(self.let_go(self.members.pop(number % len(self.members))))

    @rule(
        process=WHICH,
        room=ROOM,
        messages=MESSAGES,
        at_once=st.booleans(),
        back=st.integers(0, BATCH),
        in_order=st.integers(0, 3),
        fates=FATES,
    )
    def move_on(
        self,
        process: int,
        room: int,
        messages: list[Said],
        at_once: bool,
        back: int,
        in_order: int,
        fates: Fates,
    ) -> None:
        """Come to a process that has not heard of what one has seen elsewhere; then it hears."""
        self.join(process, room, 0, "now", True)
        bells = len(self.bells.held)
        if at_once:
            # Longer than a page: who comes back may be in the midst of it.
            self.say(1 - process, room, 0, [*messages, *[HOLA] * BATCH][:BATCH])
        else:
            self.talk(1 - process, room, messages)
        since = max(0, self.places[room].last_seq - back)
        self.join(process, room, since, "now", True)
        self._ring(fates, bells, in_order)

    @rule(process=WHICH, room=ROOM, kept=st.integers(1, 6))
    def fall_behind(self, process: int, room: int, kept: int) -> None:
        """Read so slowly that what would come next is trimmed meanwhile."""
        place = self.places[room]
        self.join(process, room, place.first_seq - 1, "now", False)
        missing = MANY - (place.last_seq + 1 - place.first_seq)
        if missing > 0:
            self.say(process, room, 0, [HOLA] * missing)
        self.trim(room, kept)
        self.take(len(self.members) - 1, 3)

    # --- Time, processes and the database

    @rule(seconds=st.sampled_from([0.03, 0.25, 0.5, 0.5, 3.0]))
    def let_time_pass(self, seconds: float) -> None:
        """Move the clock: tickers look twice a second, gaps and failures are tried again."""
        self.run(self.pass_time(seconds))

    @rule(process=WHICH, op=st.sampled_from(Op), fault=st.sampled_from(Fault))
    def fail(self, process: int, op: Op, fault: Fault) -> None:
        """Let the database be away for one operation."""
        self.processes[process].log.faults[op] = fault

    @rule(process=WHICH, op=st.sampled_from(Op))
    def answer_late(self, process: int, op: Op) -> None:
        """From now on, what the log answers to this is under way until it is released."""
        self.processes[process].log.answer_late(op)

    @rule(process=WHICH)
    def release_answers(self, process: int) -> None:
        self.processes[process].log.release()
        self.run()

    @rule(
        process=WHICH,
        room=ROOM,
        op=st.sampled_from([Op.READ, Op.READ, Op.READ, Op.LOOK, Op.OPEN, Op.FIND]),
        messages=MESSAGES,
        by=WHICH,
        in_order=st.integers(0, 5),
        fates=FATES,
        lost=st.sampled_from([None, None, None, None, 0, 3]),
    )
    def be_overtaken(
        self,
        process: int,
        room: int,
        op: Op,
        messages: list[Said],
        by: int,
        in_order: int,
        fates: Fates,
        lost: int | None,
    ) -> None:
        """Let an answer of the log be older than what comes before it does."""
        self._recover()
        if op in (Op.OPEN, Op.FIND):
            self.restart(process)
        else:
            self.join(process, room, None, "now", True)
            self.confirm(process, room)
            self.let_time_pass(GAP_PATIENCE)
        bells = len(self.bells.held)
        self.talk(1 - process, room, [*messages, HOLA][:3])
        # What is asked now is answered last.
        log = self.processes[process].log
        if op is Op.READ:
            log.answer_late(op)
            self.confirm(process, room)
        elif op is Op.LOOK:
            log.answer_late(op)
            self.let_time_pass(TICK)
        else:
            log.answer_late(Op.OPEN)
            self.join(process, room, None, "now", True)
            if op is Op.FIND:
                # It is the second look at a room that is being opened.
                log.answer_late(op)
                log.release(Op.OPEN)
                self.run()
        self.talk(by, room, messages[:3])
        self._ring(fates, bells, in_order)
        if lost is not None:
            self.begin_another_log(room, lost)
            self.let_time_pass(TICK)
        self.release_answers(process)

    @rule(process=WHICH)
    def restart(self, process: int) -> None:
        """Kill a process and start it again: its members and all it knew are gone."""
        self.run(self._restart(process))

    async def _restart(self, number: int) -> None:
        process = self.processes[number]
        await stop([one.task for one in self.joins if one.process is process])
        self.joins = [one for one in self.joins if one.process is not process]
        self.dues = [one for one in self.dues if one.process is not process]
        for member in [one for one in self.members if one.process is process]:
            self.members.remove(member)
            await self.let_go(member)
        self.bells.relays.remove(process.relay)
        await process.end()
        self.processes[number] = await self.new_process()

    @rule(process=WHICH, room=ROOM, sender=WHICH, message=MESSAGE)
    def crash_between_commit_and_bell(
        self, process: int, room: int, sender: int, message: Said
    ) -> None:
        """Kill a process that has committed and told nobody; the client repeats it elsewhere."""
        self.answer_late(process, Op.APPEND)
        self.say(process, room, sender, [message])
        self.restart(process)
        self.repeat(1 - process, 0)

    @rule(room=ROOM, lost=st.one_of(st.just(0), st.integers(1, 6)))
    def begin_another_log(self, room: int, lost: int) -> None:
        """Give the room another epoch, where an older state was put back perhaps."""
        place = self.places[room]
        self.run(self._put_back(place, lost, f"epoch-{len(place.epochs)}"))

    @rule(process=WHICH, room=ROOM, lost=st.integers(1, 6), messages=MESSAGES)
    def put_back_under_the_old_epoch(
        self, process: int, room: int, lost: int, messages: list[Said]
    ) -> None:
        """Put an older state back, but forget the epoch: heads that are lower show it, too."""
        self.calm_down()
        place = self.places[room]
        lost = min(lost, place.last_seq)
        was_open = any(process.hub.find(place.name) for process in self.processes)
        if lost:
            place.gone_back = True
            self.run(self._put_back(place, lost, place.epoch))
            # Fewer than are lost: where the heads are equal again, only bells can show it.
            self.say(process, room, 0, messages[: lost - 1])
            self.calm_down()
            assert was_open == (place.epochs[-1] != place.epochs[-2])
            place.gone_back = False

    async def _put_back(self, place: Place, lost: int, epoch: str) -> None:
        last = max(0, place.last_seq - lost)
        await self.change(
            f"DELETE FROM messages WHERE room_id = {place.id} AND seq > {last}",
            f"UPDATE rooms SET epoch = '{epoch}', last_seq = {last},"
            f" first_seq = {min(place.first_seq, last + 1)} WHERE id = {place.id}",
        )
        place.begin(epoch, last)

    @rule(room=ROOM, kept=st.integers(1, 6))
    def trim(self, room: int, kept: int) -> None:
        """Trim the room's oldest messages, as retention does."""
        place = self.places[room]
        first = max(place.first_seq, place.last_seq + 1 - kept)
        self.run(
            self.change(
                f"DELETE FROM messages WHERE room_id = {place.id} AND seq < {first}",
                f"UPDATE rooms SET first_seq = {first} WHERE id = {place.id}",
            )
        )

    # --- The end

    @rule()
    def calm_down(self) -> None:
        """Let the faults end and a second pass: everybody has everything."""
        self.come_to_calm()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.bells.confirming.set()
                self.calm_down()
                self._repeat_all()
                self.run(self.resume_everywhere())
        finally:
            self.loop.run_until_complete(self.close())
            self.loop.close()

    def _repeat_all(self) -> None:
        """Every client that had no answer gets one, and nothing is there twice for it."""
        pending, self.unanswered = self.unanswered, []
        for number, (room, draft) in enumerate(pending):
            self._ask(number % 2, room, draft)
        if pending:
            self.calm_down()
        assert not self.unanswered
