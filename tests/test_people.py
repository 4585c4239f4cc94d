"""`user` and `token`, as operators type them, beside a server that runs."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ChatServerFactory
from tests.people import Person, a_name, a_room, guest, refused, sign_in, site
from tests.servers import SECRET_KEY, ChatServer

pytest_plugins = ["tests.houses"]


async def test_who_is_added_is_a_site_user_whom_no_guest_can_be(server: ChatServer) -> None:
    name = a_name()
    said = await server.says("user", "add", name)
    assert re.fullmatch(rf"Added {name}, number \d+\.\n", said)
    assert (await server.fails("user", "add", name)).startswith(f"There is a site user {name}")
    assert (await sign_in(server, name)).status == 409
    assert await server.fails("user", "add", "  ") == "Please give a name."


@pytest.mark.parametrize("by", ["name", "number"])
async def test_who_is_disabled_is_out_at_once_until_enabled(server: ChatServer, by: str) -> None:
    maria, room = await guest(server), a_room()
    who = maria.name if by == "name" else str(maria.id)
    async with maria.enter(room) as member:
        said = await server.says("user", "disable", who)
        assert said == f"{maria.name}, number {maria.id}, is disabled.\n"
        assert await member.end() == 4401
    assert await maria.refused(room) == 4401
    assert (await server.says("user", "enable", who)).endswith("is enabled.\n")
    async with maria.enter(room) as member:
        await member.say("back")


async def test_nobody_is_disabled_who_is_not_there(server: ChatServer) -> None:
    for who in ("nobody", "999999"):
        sentence = await server.fails("user", "disable", who)
        assert sentence == f"There is no user {who}; `user list` lists them."


async def test_the_list_has_everybody(server: ChatServer) -> None:
    maria, pedro = await guest(server), await site(server)
    await server.says("user", "disable", pedro.name)
    lines = (await server.says("user", "list")).splitlines()
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == sorted(set(numbers))
    [of_maria] = [line for line in lines if line.endswith(f"Z  {maria.name}")]
    assert of_maria.split()[:2] == [str(maria.id), "guest"]
    [of_pedro] = [line for line in lines if f"Z  {pedro.name}  disabled 20" in line]
    assert of_pedro.split()[:2] == [str(pedro.id), "site"]


async def test_a_token_lets_its_user_in(server: ChatServer) -> None:
    name, room = a_name(), a_room()
    token = (await server.says("token", name)).strip()
    person = Person(server, 0, name, {"Authorization": f"Bearer {token}"})
    async with person.enter(room) as member:
        assert member.welcome["user"]["name"] == name
    bound = (await server.says("token", name, "--room", room, "--ttl", "60")).strip()
    assert await refused(server, a_room(), f"?token={bound}") == 4403


async def test_a_token_is_refused_that_could_not_be_used(server: ChatServer) -> None:
    name = a_name()
    assert "1 to 86400 seconds" in await server.fails("token", name, "--ttl", "0")
    assert "not a name of a room" in await server.fails("token", name, "--room", "a b")
    await server.says("user", "add", name)
    await server.says("user", "disable", name)
    assert f"{name} is disabled" in await server.fails("token", name)


async def test_a_database_that_is_away_is_one_sentence(chat_server: ChatServerFactory) -> None:
    server = await chat_server()
    server.settings["CHAT_DATABASE_URL"] = "postgresql://chat@127.0.0.1:9/chat"
    server.settings["CHAT_SECRET_KEY"] = SECRET_KEY
    sentence = await server.fails("user", "list")
    assert sentence.startswith("The database cannot be opened: ")
