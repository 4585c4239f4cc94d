"""The field of a room's page, and what becomes of what is typed into it.

Limits, refusals with a way to try again, drafts, the network going and coming, and all by keyboard.
"""

from __future__ import annotations

import re

from playwright.async_api import Page, WebSocketRoute, expect

from tests.browser.room import (
    Enter,
    Gate,
    connected,
    conversation,
    focused,
    said,
    say,
    scroll_to_top,
)
from tests.conftest import ChatServerFactory
from tests.people import a_name, a_room, site, until
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

# All messages get the same id: the server keeps the first, and refuses another text under it.
NO_CHANCE = "() => { crypto.getRandomValues = bytes => bytes.fill(7) }"


async def refused_message(server: ChatServer, enter: Enter, text: str) -> Page:
    """A page with a message that the server did not take."""
    maria = await enter(server, a_name(), a_room())
    await maria.evaluate(NO_CHANCE)
    await say(maria, "the first")
    await expect(maria.locator(".pending")).to_have_count(0)
    await expect(said(maria, "the first")).to_be_visible()
    await say(maria, text)
    await expect(maria.get_by_role("log").get_by_text("Not sent")).to_be_visible()
    await maria.evaluate("delete crypto.getRandomValues")
    return maria


async def test_a_message_that_was_refused_can_be_tried_again(
    server: ChatServer, enter: Enter
) -> None:
    maria = await refused_message(server, enter, "the second")
    await expect(maria.get_by_role("alert")).not_to_be_empty()

    await maria.get_by_role("button", name="Try again").press("Enter")

    await expect(maria.get_by_role("log").get_by_text("Not sent")).to_have_count(0)
    await expect(maria.get_by_role("log").get_by_text("Sent", exact=True)).to_have_count(1)
    assert await conversation(maria) == ["the first", "the second"]
    assert await focused(maria) == "message"
    await expect(maria.get_by_role("alert")).to_be_empty()


async def test_a_message_that_was_refused_can_be_removed_and_until_then_outlives_a_reload(
    server: ChatServer, enter: Enter
) -> None:
    maria = await refused_message(server, enter, "the second")
    await maria.get_by_label("Message").fill("half typed")

    await maria.reload()
    await connected(maria)
    await expect(maria.get_by_label("Message")).to_have_value("the second\nhalf typed")

    maria = await refused_message(server, enter, "the second")
    await maria.get_by_role("button", name="Remove").click()
    await expect(said(maria, "the second")).to_have_count(0)
    assert await focused(maria) == "message"
    await maria.reload()
    await connected(maria)
    await expect(maria.get_by_label("Message")).to_have_value("")


async def test_near_the_limit_the_page_says_how_much_is_left(
    server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name(), a_room())
    field, hints = maria.get_by_label("Message"), maria.locator("#left")
    await field.fill("x" * 3_500)
    await expect(hints).to_be_empty()
    # Two units of UTF-16 each, and one character: it is characters that count.
    await field.fill("🎻" * 3_990)
    await expect(hints).to_have_text("10 characters left")
    await expect(field).to_have_attribute("aria-invalid", "false")
    await field.fill("x" * 4_002)
    await expect(hints).to_have_text("2 characters too many")
    await expect(field).to_have_attribute("aria-invalid", "true")
    # Who cannot see it hears it, when the typing pauses.
    heard = maria.locator("form [aria-live=polite]")
    await expect(heard).to_have_text("2 characters too many")
    # And it is not sent.
    await field.press("Enter")
    await expect(maria.get_by_role("alert")).to_contain_text("4002 of 4000")
    await expect(field).to_have_value("x" * 4_002)
    await field.fill("🎻" * 4_000)
    await maria.get_by_role("button", name="Send").click()
    await expect(said(maria, "🎻" * 4_000)).to_be_visible()
    await expect(hints).to_be_empty()
    await expect(maria.get_by_role("alert")).to_be_empty()


async def test_what_waits_to_be_sent_is_shown_after_a_reload_and_sent_once(
    server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name(), a_room())
    gate = await Gate.before(maria)
    await maria.reload()
    await connected(maria)
    await gate.shut()
    for text in ("one", "two"):
        await say(maria, text)

    await maria.reload()
    await expect(maria.get_by_role("log").get_by_text("Sending…")).to_have_count(2)
    assert await conversation(maria) == ["one", "two"]
    await expect(maria.get_by_label("Message")).to_have_value("")

    gate.open()
    await connected(maria)
    await expect(maria.get_by_role("log").get_by_text("Sending…")).to_have_count(0)
    await maria.reload()
    await expect(said(maria, "two")).to_be_visible()
    assert await conversation(maria) == ["one", "two"]


async def test_what_was_stored_long_ago_is_no_more_at_the_end_than_its_place_says(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    maria = await enter(server, a_name(), room)
    deaf = False

    async def swallow(socket: WebSocketRoute) -> None:
        upstream = socket.connect_to_server()
        upstream.on_message(lambda frame: None if deaf else socket.send(frame))

    await maria.route_web_socket(re.compile("/ws/chat/"), swallow)
    await maria.reload()
    await connected(maria)
    # It is stored, and she does not learn of it before a page full of others has come.
    deaf = True
    await say(maria, "one")
    pedro = await site(server)

    async def is_stored() -> bool:
        return '"one"' in (await pedro.read(room)).text

    await until(is_stored)
    async with pedro.enter(room) as member:
        await member.say_all([f"number {number}" for number in range(60)])
    deaf = False
    await maria.reload()
    await connected(maria)
    await expect(said(maria, "number 59")).to_be_visible()
    await expect(said(maria, "one")).to_have_count(0)
    await scroll_to_top(maria)
    await expect(said(maria, "one")).to_have_count(1)


async def test_with_the_network_off_and_on_all_arrives_once_and_in_order(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    maria, pedro = await enter(server, a_name(), room), await enter(server, a_name(), room)
    await say(maria, "before")
    await expect(said(pedro, "before")).to_be_visible()
    await expect(maria.get_by_role("log").get_by_text("Sending…")).to_have_count(0)

    await maria.context.set_offline(True)
    await expect(maria.get_by_role("status")).to_have_text("Offline")
    await say(pedro, "said meanwhile")
    await expect(pedro.get_by_role("log").get_by_text("Sending…")).to_have_count(0)
    await say(maria, "typed meanwhile")
    await expect(maria.get_by_role("log").get_by_text("Sending…")).to_be_visible()
    await maria.context.set_offline(False)

    await connected(maria)
    await expect(said(pedro, "typed meanwhile")).to_be_visible()
    for page in (maria, pedro):
        await expect(page.get_by_role("log").get_by_text("Sending…")).to_have_count(0)
        assert await conversation(page) == ["before", "said meanwhile", "typed meanwhile"]


async def test_a_tab_that_was_frozen_shows_all_once_and_in_order_and_goes_on(
    chat_server: ChatServerFactory, enter: Enter
) -> None:
    server = await chat_server()
    maria, pedro = await enter(server, "maria"), await enter(server, "pedro")
    await say(maria, "before")
    await expect(said(pedro, "before")).to_be_visible()
    browser = await maria.context.new_cdp_session(maria)

    await browser.send("Page.setWebLifecycleState", {"state": "frozen"})
    await say(pedro, "while it is frozen")
    # Its connection ends, too, and nothing in it can notice.
    await server.stop()
    await server.start()
    await connected(pedro)
    await say(pedro, "after a restart")
    await expect(pedro.get_by_role("log").get_by_text("Sending…")).to_have_count(0)
    await browser.send("Page.setWebLifecycleState", {"state": "active"})

    await expect(said(maria, "after a restart")).to_be_visible()
    await say(maria, "awake")
    await expect(said(pedro, "awake")).to_be_visible()
    for page in (maria, pedro):
        assert await conversation(page) == [
            "before",
            "while it is frozen",
            "after a restart",
            "awake",
        ]


async def test_everything_is_in_reach_of_the_keyboard_and_shows_the_focus(
    server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name(), a_room())
    await maria.set_viewport_size({"width": 800, "height": 700})
    # Where typing begins.
    assert await focused(maria) == "message"
    await maria.keyboard.type("hola")
    await maria.keyboard.press("Enter")
    await expect(said(maria, "hola")).to_be_visible()
    assert await focused(maria) == "message"

    async def walk(key: str) -> list[str]:
        """Press the key until the focus has left the page, and tell what it came by."""
        seen: list[str] = []
        while True:
            await maria.keyboard.press(key)
            name, outline = await maria.evaluate(
                "() => { const it = document.activeElement;"
                " return [it.id || it.textContent.trim(), getComputedStyle(it).outlineStyle] }"
            )
            if await maria.evaluate("document.activeElement === document.body"):
                return seen
            assert outline != "none", name
            seen.append(name)

    assert await walk("Tab") == ["Send", "Frames"]
    path = await walk("Tab")
    assert path[-6:] == ["Sign out", "people-summary", "log", "message", "Send", "Frames"]
    assert await walk("Shift+Tab") == path[::-1]

    await maria.get_by_text("Who is here").focus()
    await maria.keyboard.press("Enter")
    await expect(maria.locator("#people")).to_have_attribute("open", "")
    await maria.get_by_text("Frames", exact=True).focus()
    await maria.keyboard.press("Enter")
    await expect(maria.get_by_label("Frames")).to_contain_text(re.compile("welcome"))
