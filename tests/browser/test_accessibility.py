"""Every page by the rules of axe, those of WCAG 2.2 AA and more, and all of it by keyboard.

In both themes, in a wide window and in the smallest. Without axe, which npm installs, the tests
that need it are named at the end of the run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import PATIENCE
from tests.browser.room import (
    Enter,
    Gate,
    connected,
    filled,
    focused,
    said,
    say,
    scroll_to_top,
    sign_in,
)
from tests.browser.test_lists import person_in
from tests.conftest import ChatServerFactory
from tests.node import installed
from tests.people import a_name, a_room, direct_room, guest, site
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

# A window and a theme for each test. 320 is what a page of 1280 is at four times its size.
LOOKS = [(width, theme) for width in (320, 1280) for theme in ("light", "dark")]

# More stops of the Tab key than any page here has before what a test looks for.
STOPS = 40


@pytest_asyncio.fixture(loop_scope="session", params=LOOKS, ids=lambda look: f"{look[1]}-{look[0]}")
async def maria(browser: Browser, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """Somebody who is not signed in, with each window in turn."""
    width, theme = request.param
    context = await browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=theme
    )
    context.set_default_timeout(PATIENCE)
    yield await context.new_page()
    await context.close()


async def passes(page: Page, *, where: str) -> None:
    """See that axe has nothing against what the page shows, and that it fits in the window."""
    if not await page.evaluate("'axe' in window"):
        # Not as an element: the page allows no scripts but its own.
        await page.evaluate(installed("axe-core/axe.min.js").read_text(encoding="utf-8"))
    found = await page.evaluate(
        "tags => axe.run({ runOnly: tags, resultTypes: ['violations'] })", TAGS
    )
    flaws = [
        f"{one['id']}: {one['help']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]
    assert not flaws, "\n".join([where, *flaws])
    assert len(found["passes"]) > 10, where
    wide = "() => document.documentElement.scrollWidth > innerWidth"
    assert not await page.evaluate(wide), where


async def test_the_sign_in_page_passes(maria: Page, server: ChatServer) -> None:
    await maria.goto(f"{server.url}/login")
    await passes(maria, where="sign-in")
    await sign_in(maria, "two  spaces")
    await expect(maria.get_by_role("alert")).to_be_visible()
    await passes(maria, where="a refused name")
    await maria.goto(f"{server.url}/nothing")
    await passes(maria, where="nothing here, signed out")


async def test_a_sign_in_page_without_guests_passes(
    maria: Page, chat_server: ChatServerFactory
) -> None:
    for url in (None, "https://www.example.org/sign-in"):
        server = await chat_server(CHAT_SIGN_IN="off", CHAT_LOGIN_URL=url)
        await maria.goto(f"{server.url}/login")
        await passes(maria, where=f"no guests, {url}")


async def test_the_list_of_rooms_and_what_it_refuses_pass(maria: Page, server: ChatServer) -> None:
    await maria.goto(server.url)
    await sign_in(maria, a_name())
    await expect(maria.get_by_role("heading", name="Rooms")).to_be_visible()
    her = await person_in(maria, server)
    pedro = await site(server, f"{a_name()} {'x' * 15}")
    await pedro.post("x" * 64, "hola")
    await pedro.post(await direct_room(pedro, her), "hola", receiver_id=her.id)
    async with pedro.enter(a_room()) as member:
        await member.say("hola")
        await maria.goto(server.url)
        await expect(maria.get_by_role("status")).to_have_text("1 unread")
        await passes(maria, where="rooms")
    for wrong in ("?room=a%20b", "?person=nobody%20at%20all"):
        await maria.goto(f"{server.url}/{wrong}")
        await expect(maria.get_by_role("alert")).to_be_visible()
        await passes(maria, where=wrong)
    closed = await direct_room(pedro, await site(server))
    for room, words in (("a%20b", "nothing"), (closed, "not enter")):
        path = f"/test-chat/{room}/"
        await maria.goto(f"{server.url}{path}")
        await expect(maria.get_by_role("heading")).to_contain_text(words)
        await passes(maria, where=path)


async def test_a_room_passes(maria: Page, server: ChatServer) -> None:
    room, pedro = a_room(), await guest(server)
    await pedro.post(room, "see https://example.org/ and what stands there")
    await maria.goto(f"{server.url}/test-chat/{room}/")
    await sign_in(maria, a_name())
    await connected(maria)
    await say(maria, "hola")
    await expect(maria.get_by_role("log").get_by_text("Sent", exact=True)).to_be_visible()
    await passes(maria, where="a room")
    for summary in ("Who is here", "Frames"):
        group = maria.get_by_role("group").filter(has_text=summary)
        if await group.get_attribute("open") is None:
            await maria.get_by_text(summary).first.click()
    async with pedro.enter(room) as member:
        await member.send("typing")
        await expect(maria.get_by_text(f"{pedro.name} is typing")).to_be_visible()
        await passes(maria, where="with all that opens")
    await say(maria, "x" * 4_001)
    await expect(maria.get_by_role("alert")).not_to_be_empty()
    await passes(maria, where="a text that is too long")


async def test_a_room_passes_whose_connection_is_lost_and_whose_session_is_ended(
    maria: Page, server: ChatServer
) -> None:
    gate = await Gate.before(maria)
    await maria.goto(f"{server.url}/test-chat/{a_room()}/")
    await sign_in(maria, a_name())
    await connected(maria)
    await passes(maria, where="an empty room")
    await gate.shut()
    await expect(maria.get_by_role("status")).to_contain_text("Reconnecting")
    await passes(maria, where="without a connection")
    gate.open()
    await connected(maria)
    await (await person_in(maria, server)).ask("POST", "/logout")
    await expect(maria.get_by_role("status")).to_have_text("Signed out")
    await passes(maria, where="signed out in a room")


# --- By keyboard


async def tab_to(page: Page, target: str, key: str = "Tab") -> None:
    """Press Tab until the focus is there; see it on each way station."""
    for _ in range(STOPS):
        stop = await page.evaluate(
            """() => {
              const one = document.activeElement;
              const { outlineStyle, outlineWidth } = getComputedStyle(one);
              const ring = outlineStyle !== "none" && outlineWidth !== "0px";
              const seen = one.checkVisibility() && ring || one === document.body;
              return [one.id || one.textContent.trim(), seen];
            }"""
        )
        assert stop[1], f"{stop[0]} does not show that it has the focus"
        if stop[0] == target:
            return
        await page.keyboard.press(key)
    raise AssertionError(f"no way to {target} by {key}")


async def test_without_a_mouse_people_sign_in_join_talk_and_sign_out(
    maria: Page, server: ChatServer
) -> None:
    name, room, keys = a_name(), a_room(), maria.keyboard
    pedro = await site(server)
    await maria.goto(server.url)
    await tab_to(maria, "username")
    await keys.type(name)
    await keys.press("Enter")

    await expect(maria.get_by_role("heading", name="Rooms")).to_be_visible()
    await tab_to(maria, "room")
    await keys.type("a b")
    await keys.press("Enter")
    # What is wrong stands at the field, and the field has the focus.
    field = maria.get_by_label("Room", exact=True)
    await expect(field).to_be_focused()
    await expect(field).to_have_accessible_description(
        "This is not a valid room name."
        " Letters, digits, “_”, “.” and “-”. A new room opens when you join it."
    )
    await keys.press("Control+A")
    await keys.type(room)
    await keys.press("Enter")

    await connected(maria)
    assert await focused(maria) == "message"
    await keys.type("hola")
    await keys.press("Shift+Enter")
    await keys.type("pedro")
    await keys.press("Enter")
    await expect(said(maria, "hola\npedro")).to_be_visible()
    await pedro.post(room, "hola maria")
    await expect(said(maria, "hola maria")).to_be_visible()
    assert await focused(maria) == "message"

    await tab_to(maria, "Rooms", "Shift+Tab")
    await keys.press("Enter")
    await expect(maria.get_by_role("heading", name="Rooms")).to_be_visible()
    await tab_to(maria, room)
    await keys.press("Enter")
    await connected(maria)
    await tab_to(maria, "Sign out", "Shift+Tab")
    await keys.press("Enter")
    await expect(maria.get_by_role("heading", name="Sign in")).to_be_visible()
    assert await focused(maria) == "username"


async def test_by_keyboard_somebody_is_written_to_alone(maria: Page, server: ChatServer) -> None:
    pedro = await site(server)
    await maria.goto(server.url)
    await sign_in(maria, a_name())
    await expect(maria.get_by_role("heading", name="Rooms")).to_be_visible()
    await tab_to(maria, "person")
    await maria.keyboard.type(pedro.name)
    await maria.keyboard.press("Enter")
    await connected(maria)
    await expect(maria.get_by_role("heading", level=1)).to_have_text(pedro.name)


# Keeps the texts that are added where they are read out: where the nearest `aria-live` says so.
LISTEN = """
  window.spoken = [];
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes)
      for (const node of addedNodes) {
        const place = node.parentElement?.closest("[aria-live]");
        if (place?.getAttribute("aria-live") !== "polite") continue;
        const texts = node.querySelectorAll?.("p.text") ?? [];
        for (const { textContent } of texts) window.spoken.push(textContent);
      }
  }).observe(document, { childList: true, subtree: true });
"""


async def test_what_is_new_is_read_out_once_and_nothing_else_is(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    pedro, _ = await filled(server, 60, room)
    maria = await enter(server, a_name(), room)
    await expect(said(maria, "number 60")).to_be_visible()
    gate = await Gate.before(maria)
    await maria.add_init_script(LISTEN)
    await maria.reload()
    await connected(maria)
    await expect(said(maria, "number 60")).to_be_visible()

    await say(maria, "from here")
    await expect(maria.get_by_role("log").get_by_text("Sending…")).to_have_count(0)
    await pedro.post(room, "from there")
    await expect(said(maria, "from there")).to_be_visible()
    await gate.shut()
    await pedro.post(room, "meanwhile")
    gate.open()
    await expect(said(maria, "meanwhile")).to_be_visible()
    await scroll_to_top(maria)
    await expect(said(maria, "number 1")).to_have_count(1)
    await pedro.post(room, "the last")
    await expect(said(maria, "the last")).to_have_count(1)

    spoken = await maria.evaluate("() => window.spoken")
    assert spoken == ["from here", "from there", "meanwhile", "the last"]
