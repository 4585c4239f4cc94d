"""The page of a room as its people see it: entering, talking, reading.

Everything is found by role and label, as people with screen readers find it. The fixture `enter`
of conftest.py opens it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Protocol

from playwright.async_api import Locator, Page, WebSocketRoute, expect

from tests.people import Person, site
from tests.servers import ChatServer

NAME = "test_room"
ROOM = f"/test-chat/{NAME}/"


class Enter(Protocol):
    def __call__(self, server: ChatServer, name: str, room: str = NAME) -> Awaitable[Page]: ...


async def sign_in(page: Page, name: str) -> None:
    await page.get_by_label("Name").fill(name)
    await page.get_by_role("button", name="Sign in").click()


async def connected(page: Page) -> None:
    await expect(page.get_by_role("status")).to_have_text("Connected")


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.get_by_role("button", name="Send").click()


def said(page: Page, text: str) -> Locator:
    """Every place in the conversation that shows exactly this text."""
    return page.get_by_role("log").get_by_text(text, exact=True)


async def conversation(page: Page) -> list[str]:
    """The texts in the conversation, oldest first."""
    return (
        await page.get_by_role("log")
        .get_by_role("article")
        .get_by_role("paragraph")
        .all_text_contents()
    )


async def filled(
    server: ChatServer, count: int, room: str = NAME, name: str | None = None
) -> tuple[Person, list[str]]:
    """Have somebody say so many things in the room."""
    pedro = await site(server, name)
    texts = [f"number {number}" for number in range(1, count + 1)]
    async with pedro.enter(room) as member:
        await member.say_all(texts)
    return pedro, texts


async def scroll_to_top(page: Page) -> None:
    await page.get_by_role("log").evaluate("log => { log.scrollTop = 0 }")
    await page.evaluate("() => new Promise(requestAnimationFrame)")


async def focused(page: Page) -> str:
    """The id of the element that has the focus."""
    return str(await page.evaluate("() => document.activeElement.id"))


async def fits(page: Page) -> None:
    """See that nothing is wider than the window, and that Send is in it."""
    wide = await page.evaluate(
        # What is for ears only is one pixel wide, and its words are wider.
        "() => [...document.querySelectorAll('*')].filter(one => one.clientWidth !== 1"
        " && one.parentElement?.clientWidth !== 1 && (one.scrollWidth > innerWidth"
        " || one.getBoundingClientRect().right > innerWidth"
        " || one.getBoundingClientRect().left < 0)).map(one => one.outerHTML.slice(0, 100))"
    )
    assert wide == [], wide
    await expect(page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)


class Gate:
    """What stands between a page and the chat's sockets: open at first; shut, none gets through."""

    def __init__(self) -> None:
        # Each socket that the page has opened, whether it got through or not.
        self.tries: list[WebSocketRoute] = []
        self._open = True

    @classmethod
    async def before(cls, page: Page) -> Gate:
        """Stand before the sockets that this page opens from now on, over reloads, too."""
        gate = cls()
        await page.route_web_socket(re.compile("/ws/chat/"), gate._pass)
        return gate

    def open(self) -> None:
        self._open = True

    async def shut(self) -> None:
        """End what is open; what comes from now on ends at once."""
        self._open = False
        await self.tries[-1].close(code=1001)

    async def _pass(self, socket: WebSocketRoute) -> None:
        self.tries.append(socket)
        if self._open:
            socket.connect_to_server()
        else:
            await socket.close(code=1001)
