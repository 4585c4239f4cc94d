"""Old and new messages on the page of a room: the way to the first, and back to the newest.

Also what is new and how much of it, and that the page never holds more than it can bear.
"""

from __future__ import annotations

import re

from playwright.async_api import Locator, Page, expect

from tests.browser.room import Enter, conversation, filled, focused, said, say, scroll_to_top
from tests.people import a_name, a_room, site, until
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

# As many messages as the page keeps.
SHOWN_MOST = 1_000

# What another tab or window in front of the page does to it.
HIDE = """hidden => {
  Object.defineProperty(document, "visibilityState", { configurable: true, value: hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


async def top_of(element: Locator) -> float:
    box = await element.bounding_box()
    assert box is not None
    return box["y"]


async def lowest(page: Page) -> None:
    """Scroll as far down as there is something."""
    await page.get_by_role("log").evaluate("log => { log.scrollTop = log.scrollHeight }")


def newer(page: Page) -> Locator:
    return page.get_by_role("button", name=re.compile("newest|New messages"))


def line(page: Page) -> Locator:
    """The line above the first message that is new."""
    return page.get_by_role("log").get_by_text("New messages", exact=True)


async def test_scrolling_up_leads_to_the_first_message_and_nothing_jumps(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    pedro, texts = await filled(server, 230, room)
    maria = await enter(server, a_name(), room)
    await expect(said(maria, texts[-1])).to_be_in_viewport()
    assert await conversation(maria) == texts[180:]

    for shown, more in ((180, 130), (130, 80), (80, 30), (30, 0)):
        # In one step: the page must have no time to ask for more before the place is known.
        place = await maria.get_by_role("log").evaluate(
            "log => { log.scrollTop = 0;"
            " return log.querySelector('article > p').getBoundingClientRect().top }"
        )
        await expect(said(maria, texts[more])).to_have_count(1)
        assert abs(await top_of(said(maria, texts[shown])) - place) < 2
        assert await conversation(maria) == texts[more:]

    await expect(maria.get_by_role("button", name="Older messages")).to_be_hidden()
    # Not one of them was read out, and what comes now is.
    await pedro.post(room, "news")
    await expect(maria.locator("[aria-live=polite] > :not([aria-live]) article")).to_have_text(
        re.compile("news")
    )


async def test_by_keyboard_one_reads_back_to_the_first_message_and_keeps_the_focus(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    _, texts = await filled(server, 130, room)
    maria = await enter(server, a_name(), room)
    await expect(said(maria, texts[-1])).to_be_in_viewport()
    log = maria.get_by_role("log")
    await log.focus()

    async def at_the_first() -> bool:
        await maria.keyboard.press("Home")
        return texts[0] in await conversation(maria)

    await until(at_the_first)
    assert await conversation(maria) == texts
    assert await focused(maria) == "log"
    await maria.keyboard.press("Tab")
    assert await focused(maria) == "newer"
    await maria.keyboard.press("Enter")
    await expect(said(maria, texts[-1])).to_be_in_viewport()
    # The button is gone, and the focus is where reading goes on.
    await expect(newer(maria)).to_be_hidden()
    assert await focused(maria) == "log"


async def test_the_page_holds_a_bounded_part_of_a_long_conversation_and_all_of_it_can_be_reached(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    maria = await enter(server, a_name(), room)
    pedro, texts = await filled(server, SHOWN_MOST + 200, room)
    await expect(said(maria, texts[-1])).to_be_in_viewport()
    there = await conversation(maria)
    assert there == texts[-len(there) :]
    assert SHOWN_MOST - 100 <= len(there) <= SHOWN_MOST

    async def first_is_there() -> bool:
        await scroll_to_top(maria)
        return texts[0] in await conversation(maria)

    await until(first_is_there)
    there = await conversation(maria)
    assert there == texts[: len(there)] and len(there) <= SHOWN_MOST
    # What comes now lies far below.
    await pedro.post(room, "while she reads the first")
    await expect(newer(maria)).to_have_text("New messages (1)")

    async def newest_is_there() -> bool:
        await lowest(maria)
        return "while she reads the first" in await conversation(maria)

    await until(newest_is_there)
    there = await conversation(maria)
    assert there == [*texts, "while she reads the first"][-len(there) :]
    assert len(there) <= SHOWN_MOST

    await until(first_is_there)
    await newer(maria).click()
    await expect(said(maria, "while she reads the first")).to_be_in_viewport(ratio=1)
    await pedro.post(room, "the last")
    await expect(said(maria, "the last")).to_be_in_viewport(ratio=1)
    there = await conversation(maria)
    assert there == [*texts, "while she reads the first", "the last"][-len(there) :]


async def test_reading_down_again_leaves_out_nothing_where_messages_are_long(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    await filled(server, SHOWN_MOST + 40, room)
    pedro = await site(server)
    # Fifty of these are more than one frame holds: an answer that is cut keeps the newest.
    texts = [f"long {number} " + "\u6c49" * 3_900 for number in range(60)]
    async with pedro.enter(room) as member:
        await member.say_all(texts)
    maria = await enter(server, a_name(), room)

    async def first_is_there() -> bool:
        await scroll_to_top(maria)
        return "number 1" in await conversation(maria)

    await until(first_is_there)

    async def newest_is_there() -> bool:
        await lowest(maria)
        return texts[-1] in await conversation(maria)

    await until(newest_is_there)
    assert (await conversation(maria))[-60:] == texts


async def test_who_reads_back_is_told_of_new_messages_and_led_to_them(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    pedro, texts = await filled(server, 50, room)
    maria = await enter(server, a_name(), room)
    await pedro.post(room, "who is at the end sees it come")
    await expect(said(maria, "who is at the end sees it come")).to_be_in_viewport(ratio=1)
    await expect(newer(maria)).to_be_hidden()
    await expect(line(maria)).to_have_count(0)

    await scroll_to_top(maria)
    await expect(newer(maria)).to_have_text("To the newest")
    await pedro.post(room, "who reads back is told")
    await pedro.post(room, "and how often")

    await expect(newer(maria)).to_be_in_viewport(ratio=1)
    await expect(newer(maria)).to_have_text("New messages (2)")
    await expect(maria).to_have_title(re.compile(rf"^\(2\) {room}"))
    await expect(said(maria, texts[0])).to_be_in_viewport()
    await newer(maria).click()

    await expect(said(maria, "and how often")).to_be_in_viewport(ratio=1)
    await expect(newer(maria)).to_be_hidden()
    await expect(maria).to_have_title(re.compile(rf"^{room}"))
    told = maria.get_by_role("article").filter(has_text="who reads back is told")
    assert await top_of(line(maria)) < await top_of(told)
    assert await top_of(line(maria)) > await top_of(said(maria, "who is at the end sees it come"))
    # Who answers has seen it.
    await say(maria, "hola")
    await expect(line(maria)).to_have_count(0)


async def test_what_comes_to_a_hidden_page_is_counted_in_its_title(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    maria = await enter(server, a_name(), room)
    await maria.evaluate(HIDE, "hidden")

    await filled(server, 3, room)

    await expect(maria).to_have_title(re.compile(rf"^\(3\) {room}"))
    await maria.evaluate(HIDE, "visible")
    await expect(maria).to_have_title(re.compile(rf"^{room}"))
    assert await top_of(line(maria)) < await top_of(said(maria, "number 1"))


async def test_what_one_person_says_stands_under_one_name_and_a_day(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    pedro, _ = await filled(server, 2, room)
    maria = await enter(server, a_name(), room)
    await say(maria, "hola")
    await pedro.post(room, "number 3")
    await expect(said(maria, "number 3")).to_be_visible()

    sizes = (
        await maria.get_by_role("article")
        .locator("header")
        .evaluate_all("heads => heads.map(head => head.getBoundingClientRect().height > 10)")
    )
    assert sizes == [True, False, True, True]
    # Who cannot see it hears the name with each.
    await expect(maria.get_by_role("article").nth(1)).to_contain_text(pedro.name)
    today = await maria.evaluate(
        "new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' })"
        ".format(new Date())"
    )
    await expect(maria.get_by_role("log").get_by_role("heading")).to_have_text(today)
