"""Who is where, over all processes of a deployment.

Every process hears everything, so each answers truly for all. It tells what changed with its own
people, two times a second at most; everything every HEARTBEAT, and when another process says
hello. So whatever gets lost is mended by the next heartbeat, and who is not heard for PATIENCE is
out. Nothing of it is in the log. The hub joins, leaves and hears here; `company` tells members.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from chat.live.fold import Fold
from chat.live.notices import Bye, Changes, Hello, Notices, Rooms, Seat, Whole, portions
from chat.protocol import Person

HEARTBEAT = 10.0  # seconds between two times that everything is told
# Seconds: two heartbeats may get lost. With LOOK and the folds, the people of a process that died
# are out within the 30 s that are promised.
PATIENCE = 25.0
LOOK = 1.0  # seconds between two looks for processes that are silent
STILL = 5.0  # seconds between two looks after which it was this process that stood still
FOLD = 0.5  # seconds between two times that changes are told
MAX_CHANGES = 10_000  # users of which a change waits; above it everything is told instead
# Other processes, and users of theirs in rooms, that are kept: about 100 MB. What comes above it
# is passed over. Our own are as many as our connections.
MAX_PROCESSES = 1_000
MAX_SEATS = 500_000


class Here(NamedTuple):
    """A user who is in a room."""

    person: Person
    connections: int


class Crowd:
    """The people of one process, by room and user id."""

    def __init__(self) -> None:
        self.rooms: dict[int, dict[int, Here]] = {}
        # Users in all rooms; one who is in two counts twice.
        self.seats = 0

    def connections(self, room_id: int, user_id: int) -> int:
        seat = self.rooms.get(room_id, {}).get(user_id)
        return seat.connections if seat else 0

    def put(self, room_id: int, person: Person, connections: int) -> bool:
        """Seat the user, or take them out with 0; tell whether that is somebody new or gone."""
        room = self.rooms.get(room_id, {})
        before = len(room)
        if connections > 0:
            self.rooms.setdefault(room_id, room)[person.id] = Here(person, connections)
        else:
            room.pop(person.id, None)
            if not room:
                self.rooms.pop(room_id, None)
        self.seats += len(room) - before
        return len(room) != before


class Other:
    """What is known of another process."""

    def __init__(self) -> None:
        self.crowd = Crowd()
        # Everything it has, while the parts come; and how many have come.
        self.arriving: Crowd | None = None
        self.parts = 0
        # When it was last heard (loop time).
        self.heard_at = 0.0


class Presence:
    def __init__(
        self,
        process: str,
        tell: Callable[[str], None],
        on_change: Callable[[int], None],
        lost: Callable[[], bool] = lambda: False,
    ) -> None:
        # Says a text to all processes, soon or never; this one may hear it, too.
        self._tell = tell
        # Called for each room where who is there may have changed.
        self._on_change = on_change
        # Tells whether others hear nothing of us, nor we of them.
        self._lost = lost
        self._notices = Notices(process)
        self._own = Crowd()
        self._others: dict[str, Other] = {}
        # Own users that changed since it was told, by room and id; the name is the last one.
        self._changed: dict[tuple[int, int], Person] = {}
        # Set where everything is to be told instead.
        self._whole = False
        self._told_at = 0.0  # everything, loop time
        # Set by `bye`.
        self._gone = False
        self._fold = Fold(FOLD, self._speak)

    # --- For the hub: our own connections

    def join(self, room_id: int, person: Person) -> None:
        """Count one more connection of this user."""
        self._put(room_id, person, self._own.connections(room_id, person.id) + 1)

    def leave(self, room_id: int, person: Person) -> None:
        """Count one less; each joined before."""
        connections = self._own.connections(room_id, person.id)
        assert connections > 0, "nobody leaves who did not join"
        self._put(room_id, person, connections - 1)

    def _put(self, room_id: int, person: Person, connections: int) -> None:
        moved = self._own.put(room_id, person, connections)
        self._changed[room_id, person.id] = person
        if len(self._changed) > MAX_CHANGES:
            self._changed.clear()
            self._whole = True
        self._fold.ring()
        if moved:
            self._on_change(room_id)

    # --- For all: who is there

    def who(self, room_id: int) -> dict[int, Here]:
        """Return all who are in the room, by user id, their connections added up."""
        found: dict[int, Here] = {}
        for room in self._in(room_id):
            if not found:
                found = dict(room)
                continue
            for user_id, here in room.items():
                known = found.get(user_id)
                if known is not None:
                    here = Here(known.person, known.connections + here.connections)
                found[user_id] = here
        return found

    def count(self, room_id: int) -> int:
        """Return how many users are in the room."""
        rooms = self._in(room_id)
        return len(rooms[0]) if len(rooms) == 1 else len(set().union(*rooms))

    def _in(self, room_id: int) -> list[dict[int, Here]]:
        crowds = [self._own, *(other.crowd for other in self._others.values())]
        return [crowd.rooms[room_id] for crowd in crowds if room_id in crowd.rooms]

    # --- Telling

    async def run(self) -> None:
        """Say hello, then tell everything every HEARTBEAT and miss who is silent, for ever."""
        self.hello()
        loop = asyncio.get_running_loop()
        while True:
            began, was_lost = loop.time(), self._lost()
            await asyncio.sleep(LOOK)
            moment = loop.time()
            if moment - began > STILL or (was_lost and not self._lost()):
                # It was this process that stood still, or was cut off: what the others said
                # meanwhile is yet to be heard.
                self.hello()
            else:
                self._miss(moment - PATIENCE)
            if moment - self._told_at >= HEARTBEAT:
                self._tell_whole()

    def hello(self) -> None:
        """Ask all others to tell everything, and do so: at the start, and after a lost relay."""
        self._say(Hello())
        self._tell_whole()

    def bye(self) -> None:
        """Say that this process goes; nothing is told from here on."""
        self._fold.close()
        self._say(Bye())
        self._gone = True

    def _tell_whole(self) -> None:
        self._whole = True
        self._fold.ring()

    def _speak(self) -> None:
        changed, self._changed = self._changed, {}
        if self._whole:
            self._whole = False
            self._told_at = asyncio.get_running_loop().time()
            rooms = self._own.rooms.items()
            parts = list(portions((id, _seats(room.values())) for id, room in rooms)) or [[]]
            for part, portion in enumerate(parts):
                self._say(Whole(part, len(parts), portion))
            return
        for portion in portions(
            (id, [Seat(person.id, person.name, self._own.connections(id, person.id))])
            for (id, _), person in changed.items()
        ):
            self._say(Changes(portion))

    def _say(self, notice: Hello | Bye | Changes | Whole) -> None:
        if not self._gone:
            self._tell(self._notices.write(notice))

    # --- Hearing

    def hear(self, text: str) -> None:
        """Take a control text that begins with "here "."""
        said = self._notices.read(text)
        if said is None:
            return
        process, notice = said
        if isinstance(notice, Bye):
            self._forget(process)
            return
        other = self._others.get(process)
        if other is None:
            if len(self._others) >= MAX_PROCESSES:
                self._notices.complain("There are more processes than this one can keep")
                return
            other = self._others[process] = Other()
        other.heard_at = asyncio.get_running_loop().time()
        match notice:
            case Hello():
                self._tell_whole()
            case Changes():
                self._seat(other.crowd, notice.rooms, self._on_change)
            case Whole():
                self._hear_whole(other, notice)

    def _hear_whole(self, other: Other, notice: Whole) -> None:
        if notice.part == 0:
            other.arriving, other.parts = Crowd(), 0
        if other.arriving is None or notice.part != other.parts:
            # A part got lost, or this process came in between: the next time.
            other.arriving = None
            return
        other.parts += 1
        self._seat(other.arriving, notice.rooms, lambda _: None)
        if other.parts == notice.parts:
            before, other.crowd = other.crowd.rooms, other.arriving
            other.arriving = None
            self._compare(before, other.crowd.rooms)

    def _seat(self, crowd: Crowd, rooms: Rooms, on_change: Callable[[int], None]) -> None:
        space = MAX_SEATS - sum(
            one.crowd.seats + (one.arriving.seats if one.arriving else 0)
            for one in self._others.values()
        )
        for room_id, seats in rooms:
            moved = False
            for seat in seats:
                before = crowd.seats
                if space <= 0 and not crowd.connections(room_id, seat.user_id):
                    self._notices.complain("There are more people than this process can keep")
                    continue
                person = Person(seat.user_id, seat.name)
                moved = crowd.put(room_id, person, seat.connections) or moved
                space -= crowd.seats - before
            if moved:
                on_change(room_id)

    def _miss(self, before: float) -> None:
        for process, other in list(self._others.items()):
            if other.heard_at < before:
                self._forget(process)

    def _forget(self, process: str) -> None:
        other = self._others.pop(process, None)
        if other is not None:
            self._compare(other.crowd.rooms, {})

    def _compare(
        self, before: Mapping[int, Mapping[int, Here]], after: Mapping[int, Mapping[int, Here]]
    ) -> None:
        for room_id in before.keys() | after.keys():
            if before.get(room_id, {}).keys() != after.get(room_id, {}).keys():
                self._on_change(room_id)


def _seats(room: Iterable[Here]) -> list[Seat]:
    return [Seat(one.person.id, one.person.name, one.connections) for one in room]
