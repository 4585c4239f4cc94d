"""`bench`: how a chat that runs does, asked as its members ask.

In rooms of growing size everybody speaks in turn, at a fixed rate, whatever happens; each message
is timed from the moment in which it was due to its arrival at each member. So a stall counts in
every message that was due during it. The load is this process, in Python: it is counted, too.
Messages stay in rooms of their own that begin with `bench-`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from math import ceil
from typing import Any, NamedTuple

from chat.client import Refused, Rejected, Room
from chat.commands import DEFAULT_URL, Impossible, token_of
from chat.commands.place import Failing, Place, ask
from chat.settings import Settings

MEMBERS = (10, 50, 200)
RATE, SECONDS = 20.0, 5.0  # messages per second in a room, and how long
# Of one user, sockets at a time and messages per second: half of what the settings' defaults allow.
PER_USER, SENDS_PER_USER = 10, 5
GREET_LIMIT = 5.0  # seconds for the first answer
ENTER_LIMIT = 30.0  # seconds for all members to get in
ARRIVE_LIMIT = 10.0  # seconds after the last word in which all must be there
AT_ONCE = 20  # handshakes at a time


def sizes(text: str) -> list[int]:
    """Read `10,50`; ValueError for anything else."""
    return [int(one) for one in text.split(",")]


class Figures(NamedTuple):
    members: int
    connects: float  # per second
    sent: int  # acked
    refused: int
    arrived: int  # at all members together
    missing: int
    p50: float  # seconds
    p99: float
    seconds: float  # from the first word to the last arrival


def register(commands: Any) -> None:
    """Add the command to the parser's subparsers."""
    parser = commands.add_parser("bench", help="measure a chat that runs, in rooms of its own")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the chat ({DEFAULT_URL})")
    parser.add_argument(
        "--members",
        type=sizes,
        default=list(MEMBERS),
        metavar="N,N",
        help="sizes of the rooms (10,50,200)",
    )
    parser.add_argument(
        "--rate", type=float, default=RATE, metavar="N", help=f"messages per second ({RATE:.0f})"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="N", help=f"how long ({SECONDS:.0f})"
    )
    parser.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    if min(options.members, default=0) < 1 or options.rate <= 0 or options.seconds <= 0:
        raise Impossible("--members, --rate and --seconds take numbers above 0.")
    settings = Settings.load(os.environ)
    asyncio.run(_greet(Place.of(options.url, settings.allowed_hosts)))
    print("members  connects/s    sent  refused  deliveries/s  p50 ms  p99 ms  missing")
    missing = 0
    for members in options.members:
        found = asyncio.run(measure(settings, options.url, members, options.rate, options.seconds))
        print(
            f"{found.members:7}  {found.connects:10.0f}  {found.sent:6}  {found.refused:7}"
            f"  {found.arrived / found.seconds:12,.0f}  {found.p50 * 1e3:6.1f}"
            f"  {found.p99 * 1e3:6.1f}  {found.missing:7}",
            flush=True,
        )
        missing += found.missing
    if missing:
        raise Impossible(f"{missing} deliveries did not come within {ARRIVE_LIMIT:.0f} s.")
    return 0


async def _greet(place: Place) -> None:
    """See that a chat is there; raise Impossible where it is not."""
    try:
        async with asyncio.timeout(GREET_LIMIT):
            await ask(place, "/healthz")
    except Failing as error:
        raise Impossible(str(error)) from error
    except TimeoutError as error:
        raise Impossible(f"{place.url} does not answer within {GREET_LIMIT:.0f} s.") from error


async def measure(
    settings: Settings, url: str, members: int, rate: float, seconds: float
) -> Figures:
    """Measure one room; raise Impossible where nobody can enter it."""
    # In the order of sending: when each message was due (monotonic time).
    due: list[float] = []
    stored: set[str] = set()
    late: list[float] = []
    async with AsyncExitStack() as stack:
        began = time.monotonic()
        rooms = await _enter(stack, settings, url, members, rate)
        connects = members / (time.monotonic() - began)
        heard = [0] * members
        reading = [
            asyncio.create_task(_read(room, place, due, late, heard))
            for place, room in enumerate(rooms)
        ]
        start = time.monotonic() + 0.1
        sends = []
        for number in range(max(1, round(rate * seconds))):
            due.append(start + number / rate)
            await asyncio.sleep(max(0.0, due[-1] - time.monotonic()))
            speaker = rooms[number % members]
            sends.append(asyncio.create_task(_say(speaker, f"{number}", stored)))
        _, unsaid = await asyncio.wait(sends, timeout=ARRIVE_LIMIT)
        for task in unsaid:
            task.cancel()
        wanted = len(stored) * members
        end = time.monotonic() + ARRIVE_LIMIT
        while sum(heard) < wanted and time.monotonic() < end:  # noqa: ASYNC110 - of many tasks
            await asyncio.sleep(0.01)
        spent = time.monotonic() - start
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)
    arrived = sum(heard)
    return Figures(
        members,
        connects,
        len(stored),
        len(due) - len(stored),
        arrived,
        wanted - arrived,
        _share(late, 0.50),
        _share(late, 0.99),
        spent,
    )


async def _enter(
    stack: AsyncExitStack, settings: Settings, url: str, members: int, rate: float
) -> list[Room]:
    name = f"bench-{secrets.token_hex(4)}"
    users = min(members, max(ceil(members / PER_USER), ceil(rate / SENDS_PER_USER)))
    tokens = [await token_of(settings, f"bench-{number}") for number in range(users)]
    turn = asyncio.Semaphore(AT_ONCE)

    place, made = Place.of(url, settings.allowed_hosts), list[Room]()

    async def enter(number: int) -> Room:
        room = Room(place.room(name), at=place.at, token=tokens[number % users])
        made.append(room)
        async with turn:
            return await stack.enter_async_context(room)

    try:
        async with asyncio.timeout(ENTER_LIMIT):
            return await asyncio.gather(*(enter(number) for number in range(members)))
    except TimeoutError as error:
        trouble = next((one.trouble for one in made if one.trouble), "there was no time for all")
        raise Impossible(
            f"Not all of {members} members got into the chat at {url}: {trouble}."
        ) from error
    except Refused as error:
        raise Impossible(f"The chat at {url} let nobody in: {error}.") from error


async def _say(room: Room, text: str, stored: set[str]) -> None:
    try:
        await room.send(text)
    except (Rejected, Refused):
        return
    stored.add(text)


async def _read(
    room: Room, place: int, due: Sequence[float], late: list[float], heard: list[int]
) -> None:
    async for message in room:
        late.append(time.monotonic() - due[int(message.text)])
        heard[place] += 1


def _share(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")
