"""The page of a room as its people see it: entering, talking, reading.

Everything is found by role and label, as people with screen readers find it. The fixture `enter`
of conftest.py opens it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from playwright.async_api import Locator, Page, expect

from tests.servers import ChatServer

Enter = Callable[[ChatServer, str], Awaitable[Page]]

NAME = "test_room"
ROOM = f"/test-chat/{NAME}/"


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
