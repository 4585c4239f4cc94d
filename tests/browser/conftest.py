"""A real browser for the tests in this folder, driven by Playwright.

`make test` sees to it that there is one. Each test gets fresh contexts: two of them are two
people, with cookies of their own. Any error on a console, violations of the content security
policy among them, fails the test that caused it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    Page,
    Playwright,
    async_playwright,
    expect,
)

from tests.browser.room import NAME, Enter, connected, sign_in
from tests.conftest import unavailable
from tests.servers import ChatServer

NewPage = Callable[[], Awaitable[Page]]

# Names under which systems install what Playwright can drive, the freest first.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# The browser speaks to the server under test and to nobody else.
ARGUMENTS = ("--disable-background-networking", "--disable-component-update", "--disable-sync")

# Milliseconds that a click or an expectation waits for the page.
PATIENCE = 15_000
expect.set_options(timeout=PATIENCE)

# What Chromium itself writes while there is no server to connect to.
UNREACHABLE = re.compile(r"^WebSocket connection to 'ws://127\.0\.0\.1:\d+/ws/chat/")

# What Chromium itself writes where a form is answered with a refusal.
REFUSED_FORM = re.compile(r"status of 4\d\d")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # One browser for all tests here lives in one event loop, so they must run in it too.
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


def program(playwright: Playwright) -> str:
    """Return the path of a Chromium: the system's own, or the one that Playwright has fetched."""
    own = playwright.chromium.executable_path
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None and not Path(own).exists():
        raise unavailable("no Chromium: install the package `chromium`, or run `make browser`")
    return found or own


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program(playwright), args=list(ARGUMENTS)
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def new_page(browser: Browser) -> AsyncIterator[NewPage]:
    """Open a page as somebody new: `page = await new_page()`."""
    contexts: list[BrowserContext] = []

    async def open_page() -> Page:
        context = await browser.new_context()
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        return await context.new_page()

    yield open_page
    for context in contexts:
        await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def enter(new_page: NewPage) -> AsyncIterator[Enter]:
    """Sign in with a name and wait in the room: `maria = await enter(server, "maria")`."""
    complaints: list[str] = []

    async def open_room(server: ChatServer, name: str, room: str = NAME) -> Page:
        page = await new_page()
        page.on("pageerror", lambda error: complaints.append(f"{name}: {error}"))
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        await page.goto(f"{server.url}/test-chat/{room}/")
        await sign_in(page, name)
        await connected(page)
        return page

    yield open_room
    expected = (UNREACHABLE, REFUSED_FORM)
    assert not [said for said in complaints if not any(known.search(said) for known in expected)]
