"""`rooms` and `redact`: what is in the log, and what must not be."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from chat.clock import rfc3339
from chat.commands import Impossible, opened
from chat.log import redactions
from chat.log.database import Database
from chat.log.redactions import Outcome
from chat.log.repository import Repository, Room
from chat.protocol import MAX_INTEGER, ROOM_NAME

PAGE = 1_000  # rooms read at a time


def register(commands: Any) -> None:
    """Add the commands to the parser's subparsers."""
    parser = commands.add_parser("rooms", help="list all rooms, the latest message first")
    parser.set_defaults(command=_rooms)
    parser = commands.add_parser("redact", help="take a message's text away, for good")
    parser.add_argument("room", metavar="ROOM")
    parser.add_argument("seq", metavar="SEQ", type=int, help="the message's number in its room")
    parser.set_defaults(command=_redact)


async def existing_room(database: Database, name: str) -> Room:
    """Return the room of this name; raise Impossible where there is none."""
    room = await Repository(database).find_room(name) if ROOM_NAME.fullmatch(name) else None
    if room is None:
        raise Impossible(f"There is no room {name}; `rooms` lists them.")
    return room


def _rooms(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with opened() as database:
            log, after = Repository(database), None
            while page := await log.all_rooms(after, PAGE):
                for room in page:
                    newest = rfc3339(room.last_message_at) if room.last_message_at else "-" * 24
                    print(
                        f"{room.messages:>9} messages from {room.first_seq:<9} newest {newest}"
                        f" {room.members:>6} members  {room.name}"
                    )
                after = page[-1]

    asyncio.run(run())
    return 0


def _redact(options: argparse.Namespace) -> int:
    async def run() -> tuple[Outcome, bool]:
        async with opened() as database:
            room = await existing_room(database, options.room)
            outcome = Outcome.MISSING
            if 0 < options.seq <= MAX_INTEGER:
                outcome = await redactions.redact(database, room.id, options.seq)
            if outcome is Outcome.MISSING:
                raise Impossible(
                    f"There is no message {options.seq} in {room.name}:"
                    f" it has {room.first_seq} to {room.last_seq}."
                    if room.first_seq <= room.last_seq
                    else f"There is no message {options.seq} in {room.name}: it is empty."
                )
            return outcome, await redactions.forget(database)

    outcome, forgotten = asyncio.run(run())
    before = " before" if outcome is Outcome.REPEATED else ""
    print(f"The text of message {options.seq} in {options.room} was taken away{before}.")
    if not forgotten:
        print("It may be in the write-ahead log for as long as somebody reads; repeat it later.")
    return 0
