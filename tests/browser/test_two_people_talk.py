"""Two people, each with a browser of their own, on the page of one room.

Everything is found by role and label, as people with screen readers find it.
"""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

from tests.browser.conftest import NewPage
from tests.browser.room import Enter, connected, conversation, said, say, sign_in
from tests.conftest import ChatServerFactory
from tests.people import a_name, a_room
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]


async def test_what_either_says_both_read_once_and_in_the_same_order(
    server: ChatServer, enter: Enter
) -> None:
    room, names = a_room(), (a_name(), a_name())
    maria, pedro = [await enter(server, name, room) for name in names]

    await say(maria, "hola")
    await expect(said(pedro, "hola")).to_be_visible()
    await say(pedro, "buenas")
    await expect(said(maria, "buenas")).to_be_visible()

    for page in (maria, pedro):
        assert await conversation(page) == ["hola", "buenas"]
        for name in names:
            await expect(page.get_by_role("log").get_by_text(name)).to_have_count(1)
        await expect(page.get_by_role("log").get_by_text("Sending…")).to_have_count(0)


async def test_markup_and_scripts_are_text(server: ChatServer, enter: Enter) -> None:
    room, name = a_room(), f"<i>{a_name()}</i>"
    maria, pedro = await enter(server, a_name(), room), await enter(server, name, room)
    text = "<b>bold</b><script>document.title = 'broken'</script><img src=x onerror=alert(1)>"

    await say(pedro, text)

    for page in (maria, pedro):
        await expect(said(page, text)).to_have_count(1)
        await expect(said(page, name)).to_have_count(1)
        await expect(page.locator("#people").get_by_text(name, exact=True)).to_have_count(1)
        await expect(page).to_have_title(re.compile(room))


@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_after_a_restart_of_the_server_all_is_there_once_and_new_messages_flow(
    end: str, chat_server: ChatServerFactory, enter: Enter
) -> None:
    server = await chat_server()
    maria, pedro = await enter(server, "maria"), await enter(server, "pedro")
    await say(maria, "before")
    await expect(said(pedro, "before")).to_be_visible()

    await (server.stop() if end == "stopped" else server.kill())
    for page in (maria, pedro):
        await expect(page.get_by_role("status")).to_have_text(
            re.compile(r"^(Reconnecting in \d+ s|Connecting)$")
        )
    await say(maria, "typed while nobody listens")
    await server.start()
    for page in (maria, pedro):
        await connected(page)
    await expect(said(pedro, "typed while nobody listens")).to_be_visible()
    await say(pedro, "after")
    await expect(said(maria, "after")).to_be_visible()

    for page in (maria, pedro):
        assert await conversation(page) == ["before", "typed while nobody listens", "after"]


async def test_a_reload_shows_what_was_said(server: ChatServer, enter: Enter) -> None:
    maria = await enter(server, a_name(), a_room())
    for text in ("one", "two", "three"):
        await say(maria, text)
    await expect(said(maria, "three")).to_be_visible()
    await expect(maria.get_by_role("log").get_by_text("Sending…")).to_have_count(0)

    await maria.reload()

    await connected(maria)
    await expect(said(maria, "three")).to_be_visible()
    assert await conversation(maria) == ["one", "two", "three"]


async def test_enter_sends_and_shift_enter_breaks_the_line(
    server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name(), a_room())
    field = maria.get_by_label("Message")

    await field.press_sequentially("one line")
    await field.press("Shift+Enter")
    await field.press_sequentially("and another")
    await field.press("Enter")

    await expect(field).to_have_value("")
    await expect(said(maria, "one line\nand another")).to_be_visible()
    assert await conversation(maria) == ["one line\nand another"]


async def test_who_sends_too_fast_is_told_and_every_message_arrives_in_order(
    chat_server: ChatServerFactory, enter: Enter
) -> None:
    server = await chat_server(CHAT_SEND_RATE="2/second")
    maria, pedro = await enter(server, "maria"), await enter(server, "pedro")
    texts = [f"number {number}" for number in range(1, 6)]
    field = maria.get_by_label("Message")

    for text in texts:
        await field.fill(text)
        await field.press("Enter")

    await expect(maria.get_by_role("alert")).to_contain_text("sent again by itself")
    for page in (maria, pedro):
        await expect(said(page, texts[-1])).to_be_visible()
        assert await conversation(page) == texts


async def test_signing_out_in_one_tab_ends_the_other_and_offers_the_way_back(
    server: ChatServer, enter: Enter
) -> None:
    name = a_name()
    maria = await enter(server, name, a_room())
    other = await maria.context.new_page()
    await other.goto(maria.url)
    await connected(other)
    await other.get_by_label("Message").fill("half typed")

    room = maria.url
    await maria.get_by_role("button", name="Sign out").click()

    await expect(maria.get_by_label("Name")).to_be_visible()
    await expect(other.get_by_role("status")).to_have_text("Signed out")
    await other.get_by_role("link", name="Sign in again").click()
    await sign_in(other, name)
    await connected(other)
    await expect(other).to_have_url(room)
    await expect(other.get_by_label("Message")).to_have_value("half typed")


async def test_a_taken_name_comes_back_with_a_sentence(
    server: ChatServer, enter: Enter, new_page: NewPage
) -> None:
    name = a_name()
    maria = await enter(server, name, a_room())
    second = await new_page()
    await second.goto(maria.url)

    await sign_in(second, name.upper())

    await expect(second.get_by_role("alert")).to_contain_text("taken")
    await expect(second.get_by_label("Name")).to_have_value(name.upper())
    await sign_in(second, a_name())
    await connected(second)
    await expect(second).to_have_url(maria.url)


async def test_the_list_shows_a_room_with_messages_and_a_field_opens_another(
    server: ChatServer, enter: Enter
) -> None:
    room, another = a_room(), a_room()
    maria = await enter(server, a_name(), room)
    await say(maria, "hola")
    await expect(said(maria, "hola")).to_be_visible()
    await expect(maria.get_by_role("log").get_by_text("Sending…")).to_have_count(0)

    await maria.get_by_role("link", name="Rooms").click()
    await maria.get_by_role("link", name=room).click()
    await expect(said(maria, "hola")).to_be_visible()
    await maria.get_by_role("link", name="Rooms").click()
    await maria.get_by_label("Room").fill(another)
    await maria.get_by_role("button", name="Join").click()

    await expect(maria).to_have_url(f"{server.url}/test-chat/{another}/")
    await connected(maria)
    assert await conversation(maria) == []


async def test_the_panel_shows_the_frames_sent_and_received(
    server: ChatServer, enter: Enter
) -> None:
    maria = await enter(server, a_name(), a_room())
    await say(maria, "hola")
    await expect(said(maria, "hola")).to_be_visible()
    frames = maria.get_by_label("Frames")
    await expect(frames).to_be_hidden()

    await maria.get_by_text("Frames", exact=True).click()

    for kind in ("welcome", "send", "messages", "ack"):
        await expect(frames.get_by_text(f'"type":"{kind}"')).to_have_count(1)
