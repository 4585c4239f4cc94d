"""`export` and `import`: a room as lines of JSON, to keep it elsewhere or move it.

    {"type":"room","version":1,"name":"lobby","first_seq":1,"last_seq":812, …}
    {"type":"user","id":7,"name":"maria","kind":"site"}      before the first message with it
    {"type":"message","seq":1, …}                            an entry as in `messages` frames

An import checks every line before it stores anything, and a message keeps its seq, id, text and
time. Site users are found by name, or made; a guest becomes a new user whom nobody can sign in as.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, BinaryIO, Literal, TypeVar

from chat.clock import now, rfc3339
from chat.commands import Impossible, closed_quietly, opened
from chat.commands.lines import (
    VERSION,
    MessageLine,
    RoomLine,
    UserLine,
    checked,
    written,
)
from chat.commands.records import existing_room
from chat.errors import Unavailable
from chat.log import transfer
from chat.log.database import Database
from chat.log.faults import one_is_to_blame
from chat.log.members import Mark, Members
from chat.log.repository import ROOM_ID_BITS, Repository
from chat.log.statements import Draft
from chat.log.transfer import Old
from chat.log.users import Users
from chat.protocol import Entry, Person, decoded, direct_pair

T = TypeVar("T")

PAGE = 500  # messages read at a time
# Beside Ctrl-C: what `kill` sends, and what a terminal sends whose connection is closed.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def register(commands: Any) -> None:
    """Add the commands to the parser's subparsers."""
    parser = commands.add_parser("export", help="write a room's log as lines of JSON")
    parser.add_argument("room", metavar="ROOM")
    parser.set_defaults(command=_export)
    parser = commands.add_parser("import", help="read such lines into a new or empty room")
    parser.add_argument("--room", help="its name (default: as it was exported)")
    parser.set_defaults(command=_import)


# --- Export


def _export(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with opened() as database:
            await _write(database, options.room, sys.stdout.buffer)

    try:
        asyncio.run(run())
        sys.stdout.flush()
    except BrokenPipeError as error:
        # Nothing more can be said there, at the end of the program neither.
        closed_quietly()
        raise Impossible("Nobody reads the export any more: it is not whole.") from error
    return 0


async def _write(database: Database, name: str, out: BinaryIO) -> None:
    log, room = Repository(database), await existing_room(database, name)
    out.write(
        written(RoomLine(name, room.first_seq, room.last_seq, room.epoch, rfc3339(now()), VERSION))
    )
    known: set[int] = set()
    await _introduce(database, direct_pair(name) or (), known, out)
    after = room.first_seq - 1
    while after < room.last_seq:
        page = await log.read(room.id, after, min(PAGE, room.last_seq - after))
        if not page or page[0].seq != after + 1:
            raise Impossible("Messages were trimmed meanwhile: export the room again.")
        await _introduce(database, _named(page), known, out)
        for entry in page:
            out.write(b'{"type":"message",' + entry.json[1:].encode() + b"\n")
        after = page[-1].seq
    again = await log.find_room(name)
    if again is None or again.epoch != room.epoch:
        raise Impossible("The room got another log meanwhile: export it again.")


def _named(page: Iterable[Entry]) -> set[int]:
    found: set[int] = set()
    for message in map(decoded, page):
        found |= {one.id for one in (message.sender, message.receiver) if one is not None}
    return found


async def _introduce(
    database: Database, ids: Iterable[int], known: set[int], out: BinaryIO
) -> None:
    """Write who these users are, those that were not written yet."""
    new = set(ids) - known
    known |= new
    for user in await transfer.people(database, new) if new else []:
        kind: Literal["site", "guest"] = "site" if user.kind == "site" else "guest"
        out.write(written(UserLine(user.id, user.name, kind)))


# --- Import


def _import(options: argparse.Namespace) -> int:
    if sys.stdin is None:
        raise Impossible("There is nothing to import: the standard input is closed.")
    if sys.stdin.isatty():
        print("Reading an export from the terminal; Ctrl-D ends it.", file=sys.stderr)
    with _a_place() as lines:
        # All of it is looked at before anything is stored; and not in the event loop, where
        # Ctrl-C would have to wait for the next line.
        for _ in checked(sys.stdin.buffer, options.room, lines):
            pass
        lines.seek(0)
        stopped: list[int] = []

        async def run() -> tuple[str, int]:
            _cancel_at_signals(stopped)
            async with opened(make=True) as database:
                return await _store(database, lines, options.room)

        try:
            name, count = asyncio.run(run())
        except asyncio.CancelledError:
            return 128 + stopped[0]
    print(f"Imported {count} messages into {name}.")
    return 0


def _a_place() -> BinaryIO:
    """Return a file that is gone once it is closed; raise Impossible."""
    try:
        return tempfile.TemporaryFile()
    except FileNotFoundError as error:
        raise Impossible(
            "There is no place to keep what is read: no folder for temporary files can be written"
            " to. Let TMPDIR name one, or mount one at /tmp."
        ) from error


def _cancel_at_signals(stopped: list[int]) -> None:
    # So that what was stored is taken away again, however often somebody presses Ctrl-C.
    task = asyncio.current_task()
    assert task is not None

    def stop(number: int) -> None:
        stopped.append(number)
        task.cancel()

    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores one of them
            asyncio.get_running_loop().add_signal_handler(number, stop, number)


async def _store(database: Database, lines: BinaryIO, name: str | None) -> tuple[str, int]:
    importing = _Importing(database)
    try:
        for number, line in checked(lines, name):
            await importing.take(number, line)
        await importing.flush()
    except BaseException:
        await _take_away(database, importing.room_id)
        raise
    # From here on it is done or not; a signal comes too late to say otherwise.
    finishing = asyncio.create_task(importing.finish(name))
    await _outlast(finishing)
    if finishing.exception() is not None:
        await _take_away(database, importing.room_id)
    return finishing.result()


async def _take_away(database: Database, room_id: int) -> None:
    with suppress(OSError):  # the terminal may be gone, and that be the reason
        print("Taking away what was stored …", file=sys.stderr, flush=True)
    discarding = asyncio.create_task(transfer.discard(database, room_id))
    await _outlast(discarding)
    discarding.result()


async def _undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """Wait for the end of the work, and be cancelled only then: no COMMIT stays under way."""
    task = asyncio.create_task(work)
    if await _outlast(task):
        with suppress(Exception):
            task.result()
        raise asyncio.CancelledError
    return task.result()


async def _outlast(task: asyncio.Task[Any]) -> bool:
    """Wait for the task to its end; tell whether we were to be cancelled meanwhile."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


class _Importing:
    """One import, from its first line to the room that it makes."""

    def __init__(self, database: Database) -> None:
        self.room_id = secrets.randbits(ROOM_ID_BITS)
        self._database = database
        self._users = Users(database)
        self._room: RoomLine | None = None
        # The ids that users have here, by those that they had there.
        self._ids: dict[int, int] = {}
        # What is stored next, with the numbers of the lines.
        self._batch: list[tuple[int, Old]] = []
        self._newest: int | None = None
        self._count = 0
        # When each sender was there last (ms).
        self._seen: dict[int, int] = {}

    async def take(self, number: int, line: RoomLine | UserLine | MessageLine) -> None:
        if isinstance(line, RoomLine):
            self._room = line
        elif isinstance(line, UserLine):
            make = self._users.site_user if line.kind == "site" else self._users.former_guest
            self._ids[line.id] = (await make(line.name)).id
        else:
            sender, receiver = self._here(line.sender), line.receiver and self._here(line.receiver)
            draft = Draft(self.room_id, line.id, sender, receiver, line.text)
            self._newest = line.milliseconds
            self._batch.append((number, Old(draft, line.seq, self._newest, line.redacted)))
            self._count += 1
            self._seen[sender.id] = self._newest
            if len(self._batch) == transfer.BATCH:
                await self.flush()

    async def flush(self) -> None:
        """Store what was taken; raise Impossible where an id comes twice."""
        try:
            await _undisturbed(transfer.stage(self._database, [old for _, old in self._batch]))
        except Unavailable as error:
            if not one_is_to_blame(error):
                raise
            await self._find_culprit()
        self._batch.clear()

    async def finish(self, name: str | None) -> tuple[str, int]:
        """Make it a room; return its name, and how many messages it has."""
        room = self._room
        assert room is not None, "`checked` saw it"
        name = name or room.name
        pair = direct_pair(name)
        if pair is not None:
            low, high = sorted(self._ids[one] for one in pair)
            name = f"dm.{low}.{high}"
        done = await transfer.publish(
            self._database, self.room_id, name, room.first_seq, room.last_seq, self._newest
        )
        if not done:
            raise Impossible(f"The room {name} has messages already: say --room for another one.")
        marks = [Mark(self.room_id, one, seen, 0) for one, seen in self._seen.items()]
        for start in range(0, len(marks), PAGE):
            await Members(self._database).save(marks[start : start + PAGE])
        return name, self._count

    def _here(self, person: Person) -> Person:
        # With the name that it was sent under.
        return Person(self._ids[person.id], person.name)

    async def _find_culprit(self) -> None:
        for number, old in self._batch:
            try:
                await transfer.stage(self._database, [old])
            except Unavailable as error:
                if not one_is_to_blame(error):
                    raise
                raise Impossible(
                    f"Line {number}: an earlier message of this sender has this id."
                ) from error
