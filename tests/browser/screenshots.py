"""The screenshots in `docs/`: `make screenshots` takes them anew, of a chat with people in it."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright, expect

from tests.browser.conftest import program
from tests.browser.room import connected, said, say, sign_in
from tests.servers import ChatServer

DOCS = Path(__file__).resolve().parents[2] / "docs"
DESKTOP = {"width": 1100, "height": 720}
PHONE = {"width": 390, "height": 760}

ROOM = "lobby"
TALK = [
    ("lucía", "Buenos días. Has anybody got the key of the small meeting room?"),
    ("pedro", "It hangs beside the printer again."),
    ("pedro", "The plan is at https://www.example.org/plan, by the way."),
    ("amal", "شكرا، أراكم هناك"),
    ("lucía", "Found it, thank you!"),
]


async def enter(
    browser: Browser, server: ChatServer, name: str, room: str = ROOM, *, phone: bool = False
) -> Page:
    context = await browser.new_context(
        viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]
        color_scheme="dark" if phone else "light",
        device_scale_factor=2 if phone else 1,
        locale="en-GB",
        timezone_id="Europe/Madrid",
    )
    page = await context.new_page()
    await page.goto(f"{server.url}/test-chat/{room}/")
    await sign_in(page, name)
    await connected(page)
    return page


async def take(page: Page, name: str) -> None:
    file = DOCS / f"{name}.png"
    await page.screenshot(path=file)
    print(f"{file.relative_to(DOCS.parent)}: {file.stat().st_size / 1000:.0f} kB")


async def main(browser: Browser, server: ChatServer) -> None:
    people = {name: await enter(browser, server, name) for name in ("lucía", "pedro", "amal")}
    for name, text in TALK:
        await say(people[name], text)
        await expect(said(people["lucía"], text)).to_be_visible()
    maria = await enter(browser, server, "maria")
    await say(maria, "I am on my way. Does anybody want coffee?")
    await (
        people["pedro"]
        .get_by_label("Message")
        .press_sequentially("One with milk, please", delay=150)
    )
    await expect(maria.get_by_text("pedro is typing")).to_be_visible()
    await maria.get_by_label("Message").focus()
    await take(maria, "room")

    phone = await enter(browser, server, "juan", phone=True)
    await say(phone, "Yes please, black.")
    await expect(said(phone, "Yes please, black.")).to_be_visible()
    await take(phone, "phone")

    for text in ("Two black, two with milk.", "And one tea.", "Anything else?"):
        await say(maria, text)
    await expect(maria.get_by_role("alert")).to_have_text(re.compile("."))
    await take(maria, "error")

    for room, name, text in (
        ("garden", "lucía", "The roses need water."),
        ("kitchen", "pedro", "Who took the last biscuit?"),
    ):
        other = await enter(browser, server, f"{name} {room}", room)
        await say(other, text)
        await expect(said(other, text)).to_be_visible()
    rooms = await phone.context.new_page()
    await rooms.set_viewport_size({"width": 1100, "height": 560})
    await rooms.emulate_media(color_scheme="light")
    await rooms.goto(server.url)
    await expect(rooms.get_by_role("link", name="kitchen")).to_be_visible()
    await take(rooms, "rooms")

    await server.stop()
    await expect(maria.get_by_role("status")).to_have_text(re.compile("Reconnecting in"))
    await say(maria, "This one waits until the server is back.")
    await take(maria, "reconnecting")


async def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # So few that an impatient person is told so.
        server = ChatServer(Path(folder), {"CHAT_SEND_RATE": "3/minute"})
        await server.start()
        try:
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=program(playwright))
                await main(browser, server)
                await browser.close()
        finally:
            if server.running:
                await server.stop()


if __name__ == "__main__":
    asyncio.run(run())
