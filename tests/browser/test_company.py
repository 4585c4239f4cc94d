"""The others in a room, on its page: who is here, who types, who has read what.

Also the way to a room for two, and what is new to somebody who comes back.
"""

from __future__ import annotations

import re

from playwright.async_api import Locator, Page, expect

from tests.browser.room import Enter, connected, filled, focused, said, say
from tests.browser.test_reading_back import HIDE, line, top_of
from tests.people import a_name, a_room, site, until
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

SHOWN_MS = 5_000  # How long a sign of typing is shown.


def here(page: Page) -> Locator:
    """Those who are listed as being here."""
    return page.locator("#people").get_by_role("listitem")


async def another_tab(page: Page) -> Page:
    """The same page once more, for the same person."""
    tab = await page.context.new_page()
    await tab.goto(page.url)
    await connected(tab)
    return tab


async def test_who_is_here_is_listed_once_however_many_tabs_they_have(
    server: ChatServer, enter: Enter
) -> None:
    room, marias, pedros = a_room(), a_name(), a_name()
    maria = await enter(server, marias, room)
    await expect(maria.locator("#people-count")).to_have_text("1")
    pedro = await enter(server, pedros, room)
    await expect(maria.locator("#people-count")).to_have_text("2")
    tab = await another_tab(pedro)

    for page in (maria, pedro, tab):
        await expect(page.locator("#people-count")).to_have_text("2")
        await expect(here(page)).to_have_count(2)
        for name in (marias, pedros):
            await expect(here(page).filter(has_text=name)).to_have_count(1)
    await expect(here(maria).filter(has_text=marias)).to_contain_text("you")

    await pedro.close()
    await say(tab, "still here")
    await expect(said(maria, "still here")).to_be_visible()
    await expect(here(maria)).to_have_count(2)
    await tab.close()
    await expect(maria.locator("#people-count")).to_have_text("1")
    await expect(here(maria)).to_have_text([re.compile(marias)])


async def test_who_comes_and_goes_does_not_take_the_focus(server: ChatServer, enter: Enter) -> None:
    room = a_room()
    maria = await enter(server, a_name(), room)
    a, b, c = [await site(server, f"{letter}-{a_name()}") for letter in "abc"]
    async with c.enter(room):
        async with b.enter(room):
            await expect(here(maria)).to_have_count(3)
            button = here(maria).filter(has_text=c.name).get_by_role("button")
            await button.focus()
            async with a.enter(room):
                await expect(here(maria)).to_have_count(4)
        await expect(here(maria)).to_have_count(2)
        await expect(button).to_be_focused()
    await expect(here(maria)).to_have_count(1)
    assert await focused(maria) == "people-summary"


async def test_a_list_of_people_leads_to_a_room_for_two_that_shows_what_was_seen(
    server: ChatServer, enter: Enter
) -> None:
    room, marias, pedros = a_room(), a_name(), a_name()
    maria, pedro = await enter(server, marias, room), await enter(server, pedros, room)
    await here(maria).filter(has_text=pedros).get_by_role("button", name="Write").click()
    await expect(maria).to_have_url(re.compile(r"/test-chat/dm\.\d+\.\d+/$"))
    await pedro.goto(maria.url)
    for page, name in ((maria, pedros), (pedro, marias)):
        await connected(page)
        await expect(page.get_by_role("heading", level=1)).to_have_text(name)
        await expect(page).to_have_title(re.compile(name))

    await pedro.evaluate(HIDE, "hidden")
    await say(maria, "hola")
    await expect(said(pedro, "hola")).to_be_visible()
    await expect(maria.get_by_role("log").get_by_text("Sent", exact=True)).to_be_visible()
    await expect(maria.get_by_role("log").get_by_text("Seen", exact=True)).to_have_count(0)
    await pedro.evaluate(HIDE, "visible")

    def seen_after(text: str) -> Locator:
        """The word under this message, before the next one."""
        entry = maria.get_by_role("log").locator(".entry").filter(has_text=text)
        return entry.get_by_text("Seen", exact=True)

    await expect(seen_after("hola")).to_have_count(1)
    await expect(maria.get_by_role("log").get_by_text("Sent", exact=True)).to_have_count(0)
    await say(pedro, "buenas")
    await expect(said(maria, "buenas")).to_be_visible()
    await pedro.evaluate(HIDE, "hidden")
    await say(maria, "adiós")
    await expect(said(pedro, "adiós")).to_be_visible()
    await expect(seen_after("hola")).to_have_count(1)
    # It is known to who comes later.
    await maria.reload()
    await expect(seen_after("hola")).to_have_count(1)


async def test_who_types_is_named_until_the_message_comes_or_five_seconds_are_over(
    server: ChatServer, enter: Enter
) -> None:
    room, anas = a_room(), a_name()
    maria, ana = await enter(server, a_name(), room), await enter(server, anas, room)
    typing = maria.locator("#typing")
    # Time stands still until the test says otherwise.
    await maria.clock.install()
    await maria.clock.pause_at(await maria.evaluate("Date.now() + 1000"))

    await ana.get_by_label("Message").press_sequentially("ho")
    await expect(typing).to_have_text(f"{anas} is typing")
    await expect(ana.locator("#typing")).to_be_empty()
    b, c, d = [await site(server) for _ in range(3)]
    async with b.enter(room) as first, c.enter(room) as second, d.enter(room) as third:
        await first.send("typing")
        await expect(typing).to_have_text(f"{anas} and {b.name} are typing")
        await second.send("typing")
        await expect(typing).to_have_text(f"{anas}, {b.name}, and {c.name} are typing")
        await third.send("typing")
        await expect(typing).to_have_text(re.compile("and others are typing$"))
        await first.say("I typed this")
        await expect(typing).to_have_text(f"{anas}, {c.name}, and {d.name} are typing")
    await maria.clock.run_for(SHOWN_MS - 100)
    await expect(typing).not_to_be_empty()
    await maria.clock.run_for(100)
    await expect(typing).to_be_empty()


async def test_who_comes_back_finds_a_line_where_the_new_begins_and_reads_it_for_all_tabs(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    pedro, texts = await filled(server, 3, room)
    maria = await enter(server, a_name(), room)
    await expect(said(maria, texts[-1])).to_be_visible()
    tab = await another_tab(maria)

    async def is_stored() -> bool:
        answer = await pedro.ask("GET", f"/api/rooms/{room}/members")
        return [one["last_read_seq"] for one in answer.json["members"]][-1] == len(texts)

    await until(is_stored)
    await tab.evaluate(HIDE, "hidden")
    await maria.evaluate(HIDE, "hidden")
    await pedro.post(room, "while she is away")
    for page in (maria, tab):
        await expect(page).to_have_title(re.compile(r"^\(1\) "))

    # Read in one, it is read in the other.
    await maria.evaluate(HIDE, "visible")
    await expect(tab).to_have_title(re.compile(f"^{room}"))
    await tab.close()
    # Until what she has read is stored, too.
    await maria.goto(server.url)
    await pedro.post(room, "and again")
    await maria.go_back()

    await expect(said(maria, "and again")).to_be_in_viewport()
    await expect(line(maria)).to_have_count(1)
    assert await top_of(said(maria, "while she is away")) < await top_of(line(maria))
    assert await top_of(line(maria)) < await top_of(said(maria, "and again"))
