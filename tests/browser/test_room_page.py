"""What the page of a room offers to who reads in it: links, a quick way back after an outage.

Also that it fits into a small window, and that a page of another site can use its client.
"""

from __future__ import annotations

import asyncio
import re

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import NewPage
from tests.browser.room import Enter, Gate, connected, conversation, filled, fits, said, say
from tests.conftest import ChatServerFactory
from tests.people import API_KEY, a_name, a_room, execute, mint, until
from tests.servers import ChatServer, free_port
from tests.test_docs import README, block

pytest_plugins = ["tests.houses"]

ADDRESS = "https://www.example.org/a/very/long/path/of/forty"

UNLIMITED = {"CHAT_API_KEY": API_KEY, "CHAT_SEND_RATE": "off"}


# --- A small window


@pytest.mark.parametrize("text", [ADDRESS, "x" * 20_000], ids=["address", "too-long"])
async def test_in_a_small_window_long_words_push_nothing_out(
    text: str, server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name() + "x" * 16, a_room())
    await maria.set_viewport_size({"width": 360, "height": 640})

    await maria.get_by_label("Message").fill(text)

    await fits(maria)
    await maria.get_by_role("button", name="Send").click()
    if text == ADDRESS:
        await expect(maria.get_by_role("link", name=text)).to_be_visible()
    else:
        await expect(maria.get_by_role("alert")).to_contain_text("20000 of 4000")
    await fits(maria)


# --- What else there is to see


async def test_who_is_at_the_end_stays_there_when_the_field_grows(
    server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    _, texts = await filled(server, 50, room)
    maria = await enter(server, a_name(), room)
    await expect(said(maria, texts[-1])).to_be_in_viewport()
    await say(maria, "hola")
    await maria.get_by_label("Message").fill("line\n" * 30)
    await expect(said(maria, "hola")).to_be_in_viewport(ratio=1)
    await expect(maria.get_by_text("Sending…")).to_have_count(0)
    await expect(said(maria, "hola")).to_be_in_viewport(ratio=1)


async def test_that_a_message_is_sent_is_in_sight_with_it(server: ChatServer, enter: Enter) -> None:
    room = a_room()
    await filled(server, 30, room)
    maria = await enter(server, a_name(), room)
    await say(maria, "hola")
    await expect(maria.get_by_text("Sent", exact=True)).to_be_in_viewport(ratio=1)


async def test_an_empty_room_says_so_until_somebody_speaks(
    server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name(), a_room())
    sentence = maria.get_by_text("Nobody has said anything here yet.")
    await expect(sentence).to_be_visible()
    await say(maria, "hola")
    await expect(said(maria, "hola")).to_be_visible()
    await expect(sentence).to_be_hidden()


# --- Links

LINKS = {
    "see https://example.org/a_(b)?c=1&d=%20#e, and": ["https://example.org/a_(b)?c=1&d=%20#e"],
    "(http://example.org) HTTPS://example.org/!": ["http://example.org", "HTTPS://example.org/"],
    "<https://example.org/><b onclick=alert(1)>": ["https://example.org/"],
    "javascript:alert(1) ftp://example.org data:text/html,x //example.org www.example.org": [],
    "https:// http://[ https://?": [],
}


async def test_addresses_of_the_web_become_links_and_nothing_else_does(
    server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name(), a_room())
    for text, addresses in LINKS.items():
        await say(maria, text)
        article = maria.get_by_role("log").get_by_role("article").filter(has_text=text)
        await expect(article.get_by_text("Sending…")).to_have_count(0)
        await expect(article.get_by_role("link")).to_have_text(addresses)
        for link in await article.get_by_role("link").all():
            assert await link.get_attribute("href") == await link.text_content()
            assert await link.get_attribute("rel") == "noopener noreferrer nofollow"
            assert await link.get_attribute("target") == "_blank"
    assert await conversation(maria) == list(LINKS)


# --- After an outage

# A back-off without chance in it: each pause is the longest it may be.
LONGEST = "Math.random = () => 1"


async def long_outage(server: ChatServer, enter: Enter) -> tuple[Page, Gate]:
    """Somebody whose page waits for long before it tries again; its clock stands still."""
    maria = await enter(server, a_name(), a_room())
    gate = await Gate.before(maria)
    await maria.context.add_init_script(LONGEST)
    await maria.clock.install()
    await maria.reload()
    await connected(maria)
    await expect(maria.get_by_role("button", name="Try now")).to_be_hidden()
    await maria.clock.pause_at(await maria.evaluate("Date.now() / 1000 + 1"))
    await gate.shut()

    async def waits_long() -> bool:
        await maria.clock.run_for(1_000)
        words = await maria.get_by_role("status").inner_text()
        return re.search(r"in (1[5-9]|2\d|30) s", words) is not None

    await until(waits_long)
    return maria, gate


@pytest.mark.parametrize("way", ["Try now", "Send", "focus", "online"])
async def test_who_does_not_want_to_wait_is_connected_soon(
    way: str, server: ChatServer, enter: Enter
) -> None:
    maria, gate = await long_outage(server, enter)
    gate.open()

    if way in ("Try now", "Send"):
        await maria.get_by_role("button", name=way).click()
    else:
        await maria.evaluate("name => window.dispatchEvent(new Event(name))", way)

    # Two seconds after the last try at the latest.
    await maria.clock.run_for(2_000)
    await connected(maria)
    await expect(maria.get_by_role("button", name="Try now")).to_be_hidden()


async def test_in_a_hurry_it_tries_no_more_than_once_in_two_seconds(
    server: ChatServer, enter: Enter
) -> None:
    maria, gate = await long_outage(server, enter)
    before = len(gate.tries)
    # 3.9 s of impatience.
    for _ in range(39):
        await maria.get_by_role("button", name="Try now").click()
        await maria.clock.run_for(100)
    await expect(maria.get_by_role("status")).to_have_text(re.compile("Reconnecting"))
    assert 1 <= len(gate.tries) - before <= 2


# --- The client on pages of another site

# What the README leaves to its reader.
SHOW = """<!doctype html><title>Another site</title><link rel="icon" href="data:,"><script>
function show({ sender, text }) {
  const line = document.createElement("p");
  line.textContent = `${sender.name}: ${text}`;
  document.body.append(line);
}
</script>"""


class Site:
    """A website of its own port with one page, and with tokens for maria. Runs in this loop."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # Set before a page is asked for.
        self.page = ""
        self.chat: ChatServer | None = None
        # How many tokens were asked for.
        self.tokens = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        kind, body = "text/html", self.page
        if head.startswith(b"GET /chat/token "):
            assert self.chat is not None
            self.tokens += 1
            kind, body = "application/json", (await mint(self.chat, user="maria", ttl=1)).text
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", "Connection: close", "", body]
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        writer.close()


async def test_a_page_of_another_origin_talks_by_the_lines_of_the_readme(
    chat_server: ChatServerFactory, new_page: NewPage
) -> None:
    website = Site()
    website.chat = server = await chat_server(CHAT_ALLOWED_ORIGINS=website.url, **UNLIMITED)
    lines = block(README, "html", "chat-client.js")
    website.page = SHOW + lines.replace("https://chat.example.org", server.url)
    pedro, _ = await filled(server, 2, "lobby", "pedro")
    page = await new_page()
    async with await asyncio.start_server(website.serve, "127.0.0.1", website.port):
        await page.goto(website.url)
        await expect(page.get_by_text("pedro: number 2")).to_be_visible()
        # A token that runs out is followed by the next.
        await until(lambda: website.tokens > 1)
        await pedro.post("lobby", "hola")
        await expect(page.get_by_text("pedro: hola")).to_be_visible()
        await expect(page.get_by_text("pedro: number 2")).to_have_count(1)
    assert execute(server, "SELECT name FROM users WHERE name = 'maria'")
