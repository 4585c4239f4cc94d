"""`new-epoch`: the last step after a database was put back to an older state, or failed over.

Clients that are ahead of what is there then start afresh, instead of taking new messages for ones
that they have. Nodes must not run: they would answer with the old epochs until the moment of it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any

from chat.commands import Impossible, opened
from chat.log import epochs
from chat.settings import Settings


def register(commands: Any) -> None:
    """Add the command to the parser's subparsers."""
    parser = commands.add_parser(
        "new-epoch", help="let all clients start afresh: the last step of a restore"
    )
    parser.add_argument(
        "--anyway", action="store_true", help="even where somebody is connected to the database"
    )
    parser.set_defaults(command=_new_epoch)


def _new_epoch(options: argparse.Namespace) -> int:
    async def run() -> tuple[int, int]:
        settings = Settings.load(os.environ)
        if settings.on_sqlite and not options.anyway and epochs.holds_open(settings.sqlite_file):
            raise _somebody()
        async with opened(settings) as database:
            if not (settings.on_sqlite or options.anyway) and await epochs.are_connected(database):
                raise _somebody()
            return await epochs.renew_all(database)

    rooms, markers = asyncio.run(run())
    print(f"Rooms with a new epoch: {rooms}. Read markers taken back: {markers}.")
    return 0


def _somebody() -> Impossible:
    return Impossible(
        "Somebody is connected to the database: stop all nodes first, or say --anyway, and members"
        " that are there start afresh."
    )
