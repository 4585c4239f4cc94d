"""How the page of a room looks in a small window, in the dark, and with writing from the right."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests.browser.room import Enter, fits, said, say
from tests.people import a_name, a_room
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

ARABIC = "مرحبا بكم في الغرفة، كيف حالكم اليوم؟"
HEBREW = "שלום לכולם"
ADDRESS = "https://www.example.org/" + "path" * 40

# How strongly text stands out from what is behind it, as WCAG counts it: of each piece of text the
# least, by the colour of the nearest ground that is not see-through.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const linear = part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4;
  const light = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = [...canvas.getImageData(0, 0, 1, 1).data].map(part => part / 255);
    return a < 1 ? null : .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  };
  const ground = one => light(getComputedStyle(one).backgroundColor) ?? ground(one.parentElement);
  const speaks = ({ nodeType, data }) => nodeType === Node.TEXT_NODE && data.trim() !== "";
  return [...document.querySelectorAll("body *")]
    .filter(one => one.checkVisibility() && [...one.childNodes].some(speaks))
    .map(one => {
      const pair = [light(getComputedStyle(one).color), ground(one)].sort((x, y) => y - x);
      return [one.textContent.trim().slice(0, 20), (pair[0] + .05) / (pair[1] + .05)];
    });
}"""


async def full(server: ChatServer, enter: Enter) -> Page:
    """A page that shows all kinds of text, in the smallest window."""
    room = a_room() + "x" * 40
    maria = await enter(server, f"{a_name()}{'x' * 15}", room)
    await maria.set_viewport_size({"width": 320, "height": 640})
    pedro = await enter(server, f"{a_name()}-בנימין", room)
    await say(pedro, HEBREW)
    await expect(said(maria, HEBREW)).to_be_visible()
    for text in (ARABIC, ADDRESS, "hola"):
        await say(maria, text)
    await maria.get_by_text("Who is here").click()
    await expect(maria.locator("#people").get_by_role("listitem")).to_have_count(2)
    return maria


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_on_a_small_phone_all_fits_and_stands_out_in_both_themes(
    theme: str, server: ChatServer, enter: Enter
) -> None:
    maria = await full(server, enter)
    await maria.emulate_media(color_scheme="dark" if theme == "dark" else "light")

    await fits(maria)
    await maria.get_by_text("Who is here").click()
    await say(maria, "x" * 4_001)
    await expect(maria.get_by_role("alert")).not_to_be_empty()
    await fits(maria)
    await maria.get_by_text("Who is here").click()
    contrasts = await maria.evaluate(CONTRASTS)
    assert len(contrasts) > 15
    assert [one for one in contrasts if one[1] < 4.5] == []
    ground = await maria.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 3 * 128) == (theme == "dark")
    small = await maria.evaluate(
        "() => [...document.querySelectorAll('button, summary, textarea, nav a')]"
        ".filter(one => one.checkVisibility())"
        ".map(one => [one.textContent, one.getBoundingClientRect().height])"
        ".filter(([, height]) => height < 24)"
    )
    assert small == []


async def test_writing_from_the_right_begins_at_the_right(server: ChatServer, enter: Enter) -> None:
    maria = await full(server, enter)
    for text, side in ((ARABIC, "rtl"), (HEBREW, "rtl"), ("hola", "ltr")):
        assert await said(maria, text).evaluate("one => getComputedStyle(one).direction") == side
    field = maria.get_by_label("Message")
    await field.fill(ARABIC)
    assert await field.evaluate("one => getComputedStyle(one).direction") == "rtl"

    # The whole page, as a language from the right would have it.
    await maria.evaluate("document.dir = 'rtl'")

    await fits(maria)
    own = await said(maria, "hola").bounding_box()
    other = await said(maria, HEBREW).bounding_box()
    assert own is not None and other is not None
    assert own["x"] < 160 < other["x"] + other["width"]


async def test_who_wants_no_motion_gets_none(server: ChatServer, enter: Enter) -> None:
    maria = await enter(server, a_name(), a_room())
    moving = "getComputedStyle(document.querySelector('#status'), '::before').animationName"
    await maria.evaluate("document.querySelector('#status').dataset.state = 'connecting'")
    assert await maria.evaluate(moving) == "breathe"
    await maria.emulate_media(reduced_motion="reduce")
    assert await maria.evaluate(moving) == "none"
