"""Which rooms there are and who may enter them: over sockets, HTTP and pages alike."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from chat.app import create_app
from chat.settings import Settings
from chat.web.identity import Identity
from chat.web.rooms import enter_room
from tests.people import (
    SOON,
    Person,
    a_name,
    a_room,
    acted_for,
    ask,
    direct_room,
    execute,
    guest,
    site,
)
from tests.servers import SECRET_KEY, ChatServer

pytest_plugins = ["tests.houses"]

ROOM_NAMES = [
    "a",
    "Z",
    "7",
    "lobby",
    "Lobby",
    "test_room",
    "a.b-c_d",
    "a..b",
    "x-",
    "x.",
    "dm",
    "dmx.1.2",
    "x" * 64,
]
NO_ROOM_NAMES = [
    "x" * 65,
    ".a",
    "_a",
    "-a",
    "a b",
    "a\n",
    "a\0",
    "a\r\nb",
    "ñ",
    "комната",
    "部屋",
    "٣",
    "a/b",
    "../a",
    "..",
    "a'b",
    'a"b',
    "a;b",
    "<b>",
    "a%2Fb",
    "{room}",
    "\u202ea",
    "a\u200b",
]
NO_DIRECT_ROOMS = ["dm.", "dm.x", "DM.1.2", "Dm.lobby", "dm.1", "dm.1.2.3", "dm.0x1.2", "dm.-1.2"]


@pytest.fixture
async def maria(server: ChatServer) -> Person:
    return await site(server)


@pytest.fixture
async def pepe(server: ChatServer) -> Person:
    return await site(server)


async def statuses(person: Person, name: str) -> tuple[int, int, int]:
    """What a socket, the API and the page say to this name of a room."""
    quoted = quote(name, safe="")
    cookie = person.headers
    page = await ask(person.server, "GET", f"/test-chat/{quoted}/", cookie)
    return await person.refused(quoted), (await person.post(quoted, "hola")).status, page.status


@pytest.mark.parametrize("name", ROOM_NAMES)
async def test_a_name_of_a_room_is_taken(maria: Person, name: str) -> None:
    async with maria.enter(name) as member:
        assert member.welcome["room"] == name
    assert (await maria.read(name)).json["room"] == name


@pytest.mark.parametrize("name", [*NO_ROOM_NAMES, *NO_DIRECT_ROOMS], ids=ascii)
async def test_what_is_no_name_of_a_room_is_4404(
    server: ChatServer, maria: Person, name: str
) -> None:
    assert await statuses(maria, name) == (4404, 404, 404)
    assert (await maria.read(quote(name, safe=""))).code == "not_found"
    assert not execute(server, "SELECT 1 FROM rooms WHERE name = ?", name)


async def test_an_empty_name_is_4404(maria: Person) -> None:
    assert await maria.refused("") == 4404


async def test_names_are_case_sensitive(maria: Person) -> None:
    room = a_room()
    async with maria.enter(room) as member, maria.enter(room.upper()) as other:
        assert (await member.say("hola"))["seq"] == 1
        assert (await other.say("HOLA"))["seq"] == 1
        assert other.welcome["room"] == room.upper()


async def test_an_open_room_comes_into_being_when_it_is_first_joined(maria: Person) -> None:
    room = a_room()
    assert (await maria.read(room)).status == 404
    async with maria.enter(room):
        answer = await maria.read(room)
    assert (answer.status, answer.json["last_seq"]) == (200, 0)


async def test_of_those_who_come_while_a_room_is_opened_nobody_looks_for_it(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"CHAT_SECRET_KEY": SECRET_KEY, "CHAT_DATABASE_URL": sqlite_url}
    app = create_app(Settings.load(environ))
    async with asyncio.timeout(SOON), app.router.lifespan_context(app):
        chat = app.state.services
        await chat.repository.make_room("lobby")
        maria = Identity(await chat.users.site_user("maria"))
        find, open_ = chat.repository.find_room, chat.hub.open
        looks: list[str] = []
        opening, goes_on = asyncio.Event(), asyncio.Event()

        async def looking(name: str) -> Any:
            looks.append(name)
            return await find(name)

        async def opening_slowly(row: Any) -> Any:
            opening.set()
            await goes_on.wait()
            return await open_(row)

        monkeypatch.setattr(chat.repository, "find_room", looking)
        monkeypatch.setattr(chat.hub, "open", opening_slowly)
        async with asyncio.TaskGroup() as group:
            entering = [group.create_task(enter_room(chat, maria, "lobby"))]
            await opening.wait()
            entering += [group.create_task(enter_room(chat, maria, "lobby")) for _ in range(3)]
            await asyncio.sleep(0)
            goes_on.set()
        assert {task.result() for task in entering} == {chat.hub.find("lobby")}
        # Once by name, and once more after the tail was read.
        assert looks == ["lobby", "lobby"]


async def test_a_direct_room_is_for_its_two_users_only(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    room = await direct_room(maria, pepe)
    third = await site(server)
    assert room == f"dm.{min(maria.id, pepe.id)}.{max(maria.id, pepe.id)}"
    async with maria.enter(room) as hers, pepe.enter(room) as his:
        await hers.say("hola", receiver_id=pepe.id)
        await his.read_to(1)
        assert his.texts == ["hola"]
    assert await statuses(third, room) == (4403, 403, 403)
    assert (await third.read(room)).code == "forbidden"


async def test_a_direct_room_needs_no_asking_first(maria: Person, pepe: Person) -> None:
    room = f"dm.{min(maria.id, pepe.id)}.{max(maria.id, pepe.id)}"
    async with pepe.enter(room) as member:
        assert (await member.say("hola", receiver_id=maria.id))["seq"] == 1


async def test_a_direct_room_has_both_users_the_lower_id_first_and_no_zeros_before(
    maria: Person, pepe: Person
) -> None:
    low, high = sorted((maria.id, pepe.id))
    nobody = 2**53 - 1
    for name in (
        f"dm.{high}.{low}",
        f"dm.{low}.{low}",
        f"dm.0{low}.{high}",
        f"dm.{low}.0{high}",
        f"dm.0.{low}",
        f"dm.{low}.{nobody}",
        f"dm.{low}.{2**53}",
        f"dm.{low}.{10**30}",
        f"dm.{low}.{high}.",
        f"DM.{low}.{high}",
        f"dM.{low}.{high}",
    ):
        assert await statuses(maria, name) == (4404, 404, 404), name


async def test_a_token_is_for_its_room_everywhere(server: ChatServer) -> None:
    room = a_room()
    bound = await site(server, room=room)
    assert (await bound.post(room, "hola")).status == 201
    assert (await bound.read(room)).status == 200
    assert await statuses(bound, a_room()) == (4403, 403, 403)
    assert (await bound.ask("GET", "/api/rooms")).code == "forbidden"


async def test_a_list_of_rooms_hides_the_direct_rooms_of_others(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    room, third = await direct_room(maria, pepe), await site(server)
    await maria.post(room, "hola", receiver_id=pepe.id)
    for person, seen in ((maria, True), (pepe, True), (third, False)):
        listed = (await person.ask("GET", "/api/rooms")).json["rooms"]
        assert (room in [one["name"] for one in listed]) is seen
        page = await ask(server, "GET", "/", person.headers)
        assert (room in page.text) is seen


async def test_a_backend_is_bound_to_the_rights_of_the_user_it_acts_for(
    server: ChatServer, maria: Person, pepe: Person
) -> None:
    room = await direct_room(maria, pepe)
    answer = await ask(server, "GET", f"/api/rooms/{room}/messages", acted_for(a_name()))
    assert answer.code == "forbidden"


async def test_a_guest_and_a_site_user_talk_in_a_direct_room(
    server: ChatServer, maria: Person
) -> None:
    visitor = await guest(server)
    room = await direct_room(visitor, maria)
    async with visitor.enter(room) as his, maria.enter(room) as hers:
        await his.say("hola", receiver_id=maria.id)
        await hers.say("buenas", receiver_id=visitor.id)
        await his.read_to(2)
        assert his.texts == ["hola", "buenas"]
