"""The list of rooms in a browser: what is unread, kept fresh without a reload, and ways into rooms.

Where time matters the page's clock is the test's.
"""

from __future__ import annotations

import re

from playwright.async_api import Locator, Page, expect

from tests.browser.conftest import NewPage
from tests.browser.room import Enter, connected, filled, focused, said, say, sign_in
from tests.browser.test_reading_back import HIDE
from tests.conftest import ChatServerFactory
from tests.people import Person, a_name, a_room, direct_room, guest, site, until, whose
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

ROOMS = "**/api/rooms"  # Where the page asks for the list.
FRESH_MS = 10_000  # How old what the list shows may be.

# A time as this browser writes it: of today the hour, else the day.
IN_WORDS = """time => {
  const when = new Date(time.dateTime);
  const today = when.toDateString() === new Date().toDateString();
  const how = today ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short" };
  return new Intl.DateTimeFormat(undefined, how).format(when);
}"""


def row(page: Page, name: str) -> Locator:
    """The row of the room of this name, or of the direct room with somebody of this name."""
    link = page.get_by_role("link", name=name, exact=True)
    return page.get_by_role("listitem").filter(has=link)


async def at_list(page: Page, server: ChatServer) -> None:
    """Have the page show the list, with a clock that only the test moves."""
    await page.clock.install()
    await page.goto(server.url)
    await page.clock.pause_at(await page.evaluate("Date.now() / 1000 + 1"))


async def asks(page: Page) -> None:
    """Let time pass until the page asks for the list, which must be while it is fresh."""
    await page.wait_for_load_state()  # The script has begun to count.
    async with page.expect_request(ROOMS) as asked:
        # No more time than that, or the page finds the answer late.
        for _ in range(FRESH_MS // 1_000):
            if asked.is_done():
                break
            await page.clock.run_for(1_000)


async def later(page: Page) -> None:
    """The same, until there is an answer."""
    async with page.expect_response(ROOMS):
        await asks(page)


async def person_in(page: Page, server: ChatServer) -> Person:
    """The one who is signed in there, on another device."""
    [cookie] = await page.context.cookies()
    return await whose(server, {"Cookie": f"{cookie.get('name')}={cookie.get('value')}"})


async def test_a_direct_message_is_noticed_within_ten_seconds(
    server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name(), a_room())
    pedro = await site(server, f"<b>{a_name()}</b>")
    await at_list(maria, server)
    await expect(maria).to_have_title("Rooms · Tertulia")

    her = await person_in(maria, server)
    await pedro.post(await direct_room(pedro, her), "hola", receiver_id=her.id)
    await later(maria)

    await expect(maria).to_have_title("(1) Rooms · Tertulia")
    await expect(maria.get_by_role("status")).to_have_text("1 unread")
    await expect(maria.get_by_role("listitem").first).to_contain_text(pedro.name)
    found = row(maria, pedro.name)
    await expect(found).to_contain_text("1 unread")
    await expect(found).to_contain_text("direct")
    time = found.locator("time")
    assert await time.text_content() == await time.evaluate(IN_WORDS)
    # All of the row is the way into the room.
    await maria.clock.resume()
    await found.click(position={"x": 150, "y": 5})
    await expect(maria.get_by_role("heading", level=1)).to_have_text(pedro.name)
    await expect(said(maria, "hola")).to_be_visible()


async def test_what_is_read_on_another_device_is_unread_no_more(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    await filled(server, 3, room)
    maria = await enter(server, a_name(), a_room())
    await at_list(maria, server)

    async with (await person_in(maria, server)).enter(room) as member:
        for seq, unread in ((1, 2), (3, 0)):
            await member.send("read", seq=seq)

            async def fits(unread: int = unread) -> bool:
                await later(maria)
                words = await row(maria, room).inner_text()
                return ("unread" not in words) if unread == 0 else f"{unread} unread" in words

            await until(fits)
            start = f"({unread}) " if unread else ""
            await expect(maria).to_have_title(f"{start}Rooms · Tertulia")
            await expect(maria.get_by_role("status")).to_have_text(
                f"{unread} unread" if unread else ""
            )
        await expect(row(maria, room)).to_contain_text("1 here")


async def test_what_was_never_opened_is_listed_but_not_counted_in_the_title(
    server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name(), a_room())
    await at_list(maria, server)
    room = a_room()
    await filled(server, 3, room)
    await later(maria)
    await expect(row(maria, room)).to_contain_text("3 unread")
    await expect(maria).to_have_title("Rooms · Tertulia")


async def test_rows_move_and_the_focus_stays_where_it_is(server: ChatServer, enter: Enter) -> None:
    rooms = [a_room() for _ in range(3)]
    pedro = await site(server)
    for room in rooms:
        await pedro.post(room, "hola")
    maria = await enter(server, a_name(), a_room())
    await at_list(maria, server)
    items = maria.get_by_role("listitem")
    for place, room in enumerate(reversed(rooms)):
        await expect(items.nth(place)).to_contain_text(room)
    link = maria.get_by_role("link", name=rooms[0])
    await link.focus()
    before = await items.element_handles()

    # Another one goes to the top, then the one that has the focus.
    for upwards in (rooms[1], rooms[0]):
        await pedro.post(upwards, "hola")
        await later(maria)
        await expect(items.first).to_contain_text(upwards)
        await expect(link).to_be_focused()
        await expect(items.first).to_contain_text("2 unread")
    for element in before:
        assert await element.evaluate("one => one.isConnected")


async def test_the_list_of_a_hidden_page_asks_for_nothing_and_is_fresh_when_it_is_shown(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    pedro, _ = await filled(server, 1, room)
    maria = await enter(server, a_name(), a_room())
    await at_list(maria, server)
    asked: list[str] = []
    maria.on("request", lambda request: asked.append(request.url))
    await maria.evaluate(HIDE, "hidden")
    await maria.clock.run_for(10 * FRESH_MS)
    await pedro.post(room, "two")
    assert asked == []

    # At once, and then every ten seconds again.
    async with maria.expect_response(ROOMS):
        await maria.evaluate(HIDE, "visible")
    await expect(row(maria, room)).to_contain_text("2 unread")
    for text in ("three", "four"):
        await pedro.post(room, text)
        await later(maria)
    await expect(row(maria, room)).to_contain_text("4 unread")
    assert len(asked) == 3


async def test_a_list_that_cannot_be_fresh_says_so_until_it_is(
    server: ChatServer, new_page: NewPage
) -> None:
    room = a_room()
    await filled(server, 1, room)
    maria = await new_page()
    await at_list(maria, server)
    await sign_in(maria, a_name())
    await expect(row(maria, room)).to_be_visible()
    status = maria.get_by_role("status")

    for way in (lambda route: route.abort(), lambda route: route.fulfill(status=503)):
        await maria.route(ROOMS, way)
        await asks(maria)
        await expect(status).to_have_text(
            "The list may be out of date: the server does not answer."
        )
        await expect(row(maria, room)).to_be_visible()
        await maria.unroute(ROOMS)
        await later(maria)
        await expect(status).to_be_empty()

    await (await person_in(maria, server)).ask("POST", "/logout")
    await asks(maria)
    await expect(status).to_contain_text("You are signed out.")
    await expect(row(maria, room)).to_be_visible()
    await maria.reload()
    await expect(maria.get_by_label("Name")).to_be_visible()


async def test_an_empty_list_says_so_until_somebody_speaks(
    chat_server: ChatServerFactory, new_page: NewPage
) -> None:
    server = await chat_server()
    maria = await new_page()
    await at_list(maria, server)
    await sign_in(maria, a_name())
    sentence = maria.get_by_text("Nobody has said anything yet.")
    await expect(sentence).to_be_visible()
    await expect(maria.get_by_role("list")).to_be_hidden()

    pedro = await guest(server)
    await pedro.post("lobby", "hola")
    await later(maria)

    await expect(sentence).to_be_hidden()
    await expect(row(maria, "lobby")).to_be_visible()
    link = maria.get_by_role("link", name="lobby")
    await expect(link).to_have_accessible_description(re.compile(r"^1 unread \S"))
    await link.click()
    await connected(maria)


async def test_the_fields_lead_into_rooms_and_to_people(server: ChatServer, enter: Enter) -> None:
    room, pedro = a_room(), await site(server)
    maria = await enter(server, a_name(), a_room())
    await maria.get_by_role("link", name="Rooms").click()
    await maria.get_by_label("Room", exact=True).fill(room)
    await maria.get_by_role("button", name="Join").click()
    await connected(maria)
    await expect(maria.get_by_role("heading", level=1)).to_have_text(room)

    await maria.get_by_role("link", name="Rooms").click()
    await maria.get_by_label("Person").fill("nobody at all")
    await maria.get_by_role("button", name="Write").click()
    await expect(maria.get_by_role("alert")).to_have_text("There is nobody with this name.")
    assert await focused(maria) == "person"
    await maria.get_by_label("Person").fill(pedro.name.upper())
    await maria.keyboard.press("Enter")
    await connected(maria)
    await expect(maria).to_have_title(re.compile(f"^{pedro.name} · "))
    await say(maria, "hola")
    await expect(said(maria, "hola")).to_be_visible()
    her = await person_in(maria, server)
    answer = await pedro.read(await direct_room(pedro, her))
    assert [one["text"] for one in answer.json["messages"]] == ["hola"]
