"""Pages in the language of the browser: here somebody whose browser is set to Mexican Spanish."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import PATIENCE
from tests.browser.room import Enter
from tests.people import a_name, a_room, site
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]


@pytest_asyncio.fixture(loop_scope="session")
async def maria(browser: Browser, server: ChatServer) -> AsyncIterator[Page]:
    """At the sign-in page, in Spanish; with her own zone, to know what her times are."""
    context = await browser.new_context(locale="es-MX", timezone_id="America/Mexico_City")
    context.set_default_timeout(PATIENCE)
    page = await context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    await page.goto(f"{server.url}/login")
    yield page
    await context.close()
    assert faults == []


async def enter_in_spanish(page: Page, server: ChatServer, room: str) -> None:
    await page.get_by_label("Nombre").fill(a_name())
    await page.get_by_role("button", name="Entrar").click()
    await page.get_by_label("Sala", exact=True).fill(room)
    await page.get_by_role("button", name="Unirse").click()
    await expect(page.get_by_role("status")).to_have_text("Conectado")


async def test_signing_in_and_its_refusals_are_in_spanish(maria: Page, server: ChatServer) -> None:
    await expect(maria).to_have_title("Entrar · Tertulia")
    await maria.get_by_label("Nombre").fill("dos  espacios")
    await maria.get_by_role("button", name="Entrar").click()
    await expect(maria.get_by_role("alert")).to_have_text(
        "Un nombre no lleva espacios dobles, ni espacios al principio o al final."
    )
    taken = (await site(server)).name
    await maria.get_by_label("Nombre").fill(taken)
    await maria.get_by_role("button", name="Entrar").click()
    await expect(maria.get_by_role("alert")).to_have_text(
        f"El nombre {taken} está ocupado; elige otro."
    )


async def test_a_room_speaks_spanish_and_so_it_does_after_a_reload(
    maria: Page, server: ChatServer
) -> None:
    room = a_room()
    await enter_in_spanish(maria, server, room)
    for _ in range(2):
        await expect(maria.locator("html")).to_have_attribute("lang", "es")
        await maria.get_by_label("Mensaje").fill("hola")
        await maria.get_by_role("button", name="Enviar").click()
        await expect(maria.get_by_role("log")).to_contain_text("Enviado")
        await maria.reload()
        await expect(maria.get_by_role("status")).to_have_text("Conectado")
    await maria.get_by_label("Mensaje").fill("x" * 4_001)
    await maria.get_by_role("button", name="Enviar").click()
    await expect(maria.get_by_role("alert")).to_have_text(
        "Es demasiado largo: 4001 de 4000 caracteres."
    )
    await maria.get_by_role("button", name="Salir").click()
    await expect(maria.get_by_role("heading", name="Entrar")).to_be_visible()


async def test_the_list_of_rooms_speaks_spanish_and_writes_the_browser_s_times(
    maria: Page, server: ChatServer
) -> None:
    room, other = a_room(), a_room()
    pedro = await site(server)
    await pedro.post(other, "hola")
    await enter_in_spanish(maria, server, room)
    await maria.get_by_role("link", name="Salas").click()
    await expect(maria.get_by_role("heading", level=1)).to_have_text("Salas")
    row = maria.get_by_role("listitem").filter(has_text=other)
    await expect(row).to_contain_text("1 sin leer")
    time = row.locator("time")
    # Within one day of midnight the hour stands there, else the day: both as Mexico writes it.
    await expect(time).to_have_text(re.compile(r"^\d\d:\d\d [ap]\.\s?m\.$|^\d+ \w+$"))
    hour = await time.evaluate("time => new Date(time.dateTime).getUTCHours()")
    assert await time.evaluate("time => new Date(time.dateTime).getHours()") == (hour - 6) % 24

    # Rooms that come while it is open, too.
    third = a_room()
    await pedro.post(third, "hola")
    row = maria.get_by_role("listitem").filter(has_text=third)
    await expect(row).to_contain_text("1 sin leer")

    await maria.get_by_label("Persona").fill("nadie en absoluto")
    await maria.get_by_role("button", name="Escribir").click()
    await expect(maria.get_by_role("alert")).to_have_text("No hay nadie con este nombre.")
    await maria.goto(f"{server.url}/test-chat/{'x' * 65}/")
    await expect(maria.get_by_role("heading", level=1)).to_have_text("Aquí no hay nada")
    await expect(maria.locator("main")).to_contain_text("Este nombre de sala no es válido.")


async def test_in_one_room_each_has_the_own_language(
    maria: Page, server: ChatServer, enter: Enter
) -> None:
    room = a_room()
    await enter_in_spanish(maria, server, room)
    pedro = await enter(server, a_name(), room)
    await expect(maria.get_by_role("button", name="Escribir")).to_be_visible()
    await expect(pedro.get_by_role("button", name="Write")).to_be_visible()
    await expect(maria.get_by_role("status")).to_have_text("Conectado")
    await expect(pedro.get_by_role("status")).to_have_text("Connected")
