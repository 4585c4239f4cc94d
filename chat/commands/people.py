"""`user add|disable|enable|list` and `token`: who may come in, and by what.

Somebody who is disabled is out on every node within a second, by the tickers, and gets 4401 until
enabled again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any

from chat.clock import rfc3339
from chat.commands import Impossible, opened, token_of
from chat.log.users import User, Users
from chat.protocol import MAX_INTEGER, ROOM_NAME
from chat.settings import Settings
from chat.web.identity import MAX_TOKEN_TTL, TOKEN_TTL

PAGE = 1_000  # users read at a time


def register(commands: Any) -> None:
    """Add the commands to the parser's subparsers."""
    user = commands.add_parser("user", help="add, disable, enable or list people")
    kinds = user.add_subparsers(required=True, metavar="command")
    for name, help, command in (
        ("add", "make a site user, whose name no guest can have", _add),
        ("disable", "let somebody in no more, and end what is open", _disable),
        ("enable", "let somebody in again", _enable),
    ):
        parser = kinds.add_parser(name, help=help)
        what = "NAME" if name == "add" else "NAME|ID"
        parser.add_argument("user", metavar=what, help="a name, or a number that `list` says")
        parser.set_defaults(command=command)
    parser = kinds.add_parser("list", help="list all: number, name, kind, since, disabled or not")
    parser.set_defaults(command=_list)
    parser = commands.add_parser("token", help="print a token that lets a site user in")
    parser.add_argument("user", metavar="NAME", help="made if new")
    parser.add_argument("--room", help="the one room that it is good for (default: all)")
    parser.add_argument(
        "--ttl", type=int, default=TOKEN_TTL, metavar="SECONDS", help=f"its life ({TOKEN_TTL})"
    )
    parser.set_defaults(command=_token)


def _add(options: argparse.Namespace) -> int:
    async def run() -> User:
        async with opened(make=True) as database:
            users = Users(database)
            found = await users.named(options.user)
            if found is not None and found.kind == "site":
                raise Impossible(f"There is a site user {found.name} already, number {found.id}.")
            return await users.site_user(options.user)

    made = asyncio.run(run())
    print(f"Added {made.name}, number {made.id}.")
    return 0


def _disable(options: argparse.Namespace) -> int:
    return _switch(options.user, True)


def _enable(options: argparse.Namespace) -> int:
    return _switch(options.user, False)


def _switch(who: str, disabled: bool) -> int:
    async def run() -> User:
        async with opened() as database:
            users = Users(database)
            # A name may be a number: then it is the name that is meant.
            found = await users.named(who)
            if found is None and who.isdecimal() and int(who) <= MAX_INTEGER:
                found = await users.find(int(who))
            if found is None:
                raise Impossible(f"There is no user {who}; `user list` lists them.")
            await users.disable(found.id, disabled)
            return found

    found = asyncio.run(run())
    word = "disabled" if disabled else "enabled"
    print(f"{found.name}, number {found.id}, is {word}.")
    return 0


def _list(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with opened() as database:
            users, last = Users(database), 0
            while page := await users.after(last, PAGE):
                for one, created_at in page:
                    state = f"disabled {rfc3339(one.disabled_at)}" if one.disabled_at else ""
                    line = f"{one.id:>8}  {one.kind:<5}  {rfc3339(created_at)}  {one.name}  {state}"
                    print(line.rstrip())
                last = page[-1][0].id

    asyncio.run(run())
    return 0


def _token(options: argparse.Namespace) -> int:
    if options.room is not None and not ROOM_NAME.fullmatch(options.room):
        raise Impossible(f"{options.room} is not a name of a room.")
    if not 1 <= options.ttl <= MAX_TOKEN_TTL:
        raise Impossible(f"A token lasts 1 to {MAX_TOKEN_TTL} seconds.")

    settings = Settings.load(os.environ)
    print(asyncio.run(token_of(settings, options.user, options.room, options.ttl)))
    return 0
