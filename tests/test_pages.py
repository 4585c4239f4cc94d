"""The pages: section 5 of the wire contract, over real sockets. No browser here."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import quote, unquote

import pytest
import pytest_asyncio

from tests.conftest import ChatServerFactory
from tests.people import (
    NO_LIMITS,
    Answer,
    Person,
    a_name,
    a_room,
    ask,
    direct_room,
    form,
    guest,
    running,
    sign_in,
    signed,
    site,
    until,
)
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

LOGIN_URL = "https://www.example.org/sign-in?from=chat"
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;"


class Elements(HTMLParser):
    """The elements of a page, each with its attributes and the text right in it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], str]] = []
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        self.feed(answer.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}, ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, (text + data).strip())

    def all(self, tag: str, **wanted: str) -> Iterator[tuple[dict[str, str], str]]:
        for name, attributes, text in self.found:
            if name == tag and wanted.items() <= attributes.items():
                yield attributes, text

    def scripts(self) -> list[dict[str, str]]:
        """All scripts that run; the texts of a language do not."""
        return [
            attributes
            for attributes, _ in self.all("script")
            if attributes.get("type") != "application/json"
        ]

    def text(self, tag: str) -> str:
        """What stands in the one element of this name."""
        ((_, text),) = self.all(tag)
        return text

    def role(self, role: str) -> list[dict[str, str]]:
        return [attributes for _, attributes, _ in self.found if attributes.get("role") == role]

    def buttons(self) -> list[str]:
        return [text for _, text in self.all("button")]

    def labelled(self, label: str) -> dict[str, str]:
        """The one field with this label."""
        (target,) = [attributes["for"] for attributes, text in self.all("label") if text == label]
        (field,) = [
            attributes
            for tag, attributes, _ in self.found
            if tag in ("input", "textarea") and attributes.get("id") == target
        ]
        return field


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    """No guests, and no word where to sign in."""
    settings = {**NO_LIMITS, "CHAT_SIGN_IN": "off"}
    async with running(tmp_path_factory.mktemp("closed"), **settings) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    """No guests; people sign in at another site."""
    settings = {**NO_LIMITS, "CHAT_SIGN_IN": "off", "CHAT_LOGIN_URL": LOGIN_URL}
    async with running(tmp_path_factory.mktemp("elsewhere"), **settings) as server:
        yield server


@pytest.fixture
async def maria(server: ChatServer) -> Person:
    return await guest(server)


async def get(person: Person, path: str, language: str = "en") -> Answer:
    headers = {"Accept": "text/html", "Accept-Language": language}
    return await ask(person.server, "GET", path, {**person.headers, **headers})


# --- Without a session


@pytest.mark.parametrize(
    "path", ["/", "/?room=lobby", "/test-chat/lobby/", "/test-chat/lobby", "/test-chat/a%20b/"]
)
async def test_without_a_session_pages_lead_to_login_and_back(
    server: ChatServer, path: str
) -> None:
    answer = await ask(server, "GET", path)
    assert answer.status == 303
    start, _, wanted = answer.headers["location"].partition("/login?next=")
    assert (start, unquote(unquote(wanted))) == ("", unquote(path))
    back = (await sign_in(server, a_name(), next=unquote(wanted))).headers["location"]
    assert unquote(back) == unquote(path)


async def test_the_login_page_has_its_field_and_carries_next(server: ChatServer) -> None:
    page = Elements(await ask(server, "GET", "/login?next=/test-chat/lobby/"))
    field = page.labelled("Name")
    assert (field["name"], field["type"], field["maxlength"]) == ("username", "text", "64")
    ((hidden, _),) = page.all("input", name="next")
    assert hidden["value"] == "/test-chat/lobby/"
    assert [attributes["action"] for attributes, _ in page.all("form", method="post")] == ["/login"]
    assert "Sign out" not in page.buttons()


async def test_who_is_signed_in_is_led_on_from_login(maria: Person) -> None:
    answer = await get(maria, "/login?next=/test-chat/lobby/")
    assert (answer.status, answer.headers["location"]) == (303, "/test-chat/lobby/")


# --- Where `next` leads

ON_THIS_SITE = ["/", "/test-chat/lobby/", "/?room=a&x=1", "/test-chat/a%20b/", "/x#y", "/ñ"]
NOT_ON_THIS_SITE = [
    "",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\\/evil.example",
    "https://evil.example",
    "https:evil.example",
    "HTTPS://evil.example/",
    "javascript:alert(1)",
    "data:text/html,x",
    "evil.example",
    "lobby",
    "?x=1",
    "@evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "/\r\nSet-Cookie: a=b",
    "\t//evil.example",
    " //evil.example",
    "/\0/evil.example",
    "/\x85/evil.example",
    "/\u2028/evil.example",
    "http://[evil",
    "/ok\r\n\r\n<script>",
]


@pytest.mark.parametrize("wanted", ON_THIS_SITE)
async def test_next_is_followed_on_this_site(
    server: ChatServer, maria: Person, wanted: str
) -> None:
    for answer in (
        await sign_in(server, a_name(), next=wanted),
        await get(maria, f"/login?next={quote(wanted)}"),
    ):
        assert answer.status == 303
        assert answer.headers["location"] == quote(wanted, safe="/?&=#%")


@pytest.mark.parametrize("wanted", NOT_ON_THIS_SITE, ids=ascii)
async def test_next_is_followed_nowhere_else(
    server: ChatServer, maria: Person, wanted: str
) -> None:
    for answer in (
        await sign_in(server, a_name(), next=wanted),
        await get(maria, f"/login?next={quote(wanted)}"),
    ):
        assert answer.status == 303
        assert answer.headers["location"] == "/"
        assert [name.lower() for name in answer.headers].count("set-cookie") <= 1


async def test_next_stays_in_the_form_of_a_refused_name(server: ChatServer) -> None:
    page = Elements(await sign_in(server, "", next='/x"><script>'))
    ((hidden, _),) = page.all("input", name="next")
    assert hidden["value"] == '/x"><script>'
    assert not list(page.all("script"))


# --- Names that are refused


@pytest.mark.parametrize("name", ["", "   ", "x" * 33, "a\tb", "a  b"], ids=ascii)
async def test_a_refused_name_is_the_form_again_with_a_sentence_and_400(
    server: ChatServer, name: str
) -> None:
    answer = await sign_in(server, name)
    assert answer.status == 400
    page = Elements(answer)
    assert page.role("alert")
    assert page.labelled("Name")["value"] == name[:64]
    assert page.labelled("Name")["aria-invalid"] == "true"
    assert answer.cookie() is None


@pytest.mark.parametrize(
    "body", [b"username=%FF", b"username=a%C3%28", b"username=maria\xff", "username=José".encode()]
)
async def test_a_form_that_is_no_utf_8_percent_encoded_is_400(
    server: ChatServer, body: bytes
) -> None:
    kind, _ = form()
    answer = await ask(server, "POST", "/login", kind, body)
    assert (answer.status, answer.cookie()) == (400, None)
    assert Elements(answer).role("alert")


async def test_a_taken_name_is_the_form_again_with_a_sentence_and_409(maria: Person) -> None:
    answer = await sign_in(maria.server, maria.name)
    assert answer.status == 409
    assert "taken" in answer.text and Elements(answer).role("alert")


async def test_a_form_without_a_name_is_400(server: ChatServer) -> None:
    kind, body = form(other="x")
    assert (await ask(server, "POST", "/login", kind, body)).status == 400
    assert (await ask(server, "POST", "/login")).status == 400


async def test_signing_out_leads_to_login_and_takes_the_cookie_away(maria: Person) -> None:
    answer = await maria.ask("POST", "/logout")
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert "expires=Thu, 01 Jan 1970" in answer.headers["set-cookie"]
    assert (await ask(maria.server, "POST", "/logout")).status == 303


async def test_signing_out_ends_the_cookie_s_session_whatever_token_comes_with_it(
    server: ChatServer, maria: Person
) -> None:
    token = await site(server)
    for proof in (token.headers["Authorization"], "Bearer wrong"):
        person = await guest(server)
        answer = await person.ask("POST", "/logout", headers={"Authorization": proof})
        assert answer.status == 303
        assert (await person.ask("GET", "/api/session")).status == 401
    assert (await token.ask("GET", "/api/session")).status == 200
    assert (await maria.ask("GET", "/api/session")).status == 200


async def test_signing_out_is_a_post(maria: Person) -> None:
    assert (await get(maria, "/logout")).status == 405
    assert (await get(maria, "/")).status == 200


# --- Rooms


async def test_the_first_page_lists_rooms_and_has_a_field_to_join_one(maria: Person) -> None:
    room = a_room()
    await maria.post(room, "hola")
    answer = await get(maria, "/")
    assert answer.status == 200
    page = Elements(answer)
    assert names_of(page, f"/test-chat/{room}/") == [room]
    assert page.labelled("Room")["name"] == "room"
    assert page.labelled("Person")["name"] == "person"
    assert {"Join", "Write", "Sign out"} <= set(page.buttons())


def names_of(page: Elements, href: str) -> list[str]:
    """Return by which names the list leads there."""
    found = [(tag, attributes.get("href"), text) for tag, attributes, text in page.found]
    return [
        name for (tag, target, _), (_, _, name) in pairwise(found) if (tag, target) == ("a", href)
    ]


async def test_a_room_is_listed_with_what_is_unread_and_who_is_there(server: ChatServer) -> None:
    maria, pedro, room = await guest(server), await guest(server), a_room()
    for text in ("one", "two", "three"):
        await pedro.post(room, text)
    async with maria.enter(room) as member:
        await member.send("read", seq=1)

        async def shown() -> bool:
            answer = await get(maria, "/")
            [row] = re.findall(rf'<li data-room="{room}".*?</li>', answer.text, re.DOTALL)
            assert 'class="direct" hidden' in row
            return all(
                f'class="{kind}"><span class="number">{n}</span> {word}<' in row
                for kind, n, word in (("new", 2, "unread"), ("here", 1, "here"))
            )

        await until(shown)


async def test_a_direct_room_is_listed_by_the_other_one_s_name(server: ChatServer) -> None:
    maria, pedro = await guest(server), await guest(server)
    room = await direct_room(maria, pedro)
    await pedro.post(room, "hola", receiver_id=maria.id)
    for one, other in ((maria, pedro), (pedro, maria)):
        page = Elements(await get(one, "/"))
        assert names_of(page, f"/test-chat/{room}/") == [other.name]


async def test_writing_to_a_person_leads_to_the_direct_room(server: ChatServer) -> None:
    maria, pedro = await guest(server), await guest(server, f"José {a_name()}")
    room = await direct_room(maria, pedro)
    for name in (pedro.name, f" {pedro.name.upper()} ", unicodedata.normalize("NFD", pedro.name)):
        answer = await get(maria, f"/?person={quote(name)}")
        assert (answer.status, answer.headers["location"]) == (303, f"/test-chat/{room}/")
    # For both it is the same one.
    answer = await get(pedro, f"/?person={quote(maria.name)}")
    assert (answer.status, answer.headers["location"]) == (303, f"/test-chat/{room}/")


@pytest.mark.parametrize(
    "name", ["nobody has this name", "x" * 65, "a\0b", "a  b", MARKUP], ids=ascii
)
async def test_writing_to_nobody_is_the_form_again_with_a_sentence_and_400(
    maria: Person, name: str
) -> None:
    answer = await get(maria, f"/?person={quote(name, safe='')}")
    assert answer.status == 400
    page = Elements(answer)
    assert len(page.role("alert")) == 1
    assert "There is nobody with this name." in answer.text
    field = page.labelled("Person")
    assert (field["value"], field["aria-invalid"]) == (name, "true")
    assert "aria-invalid" not in page.labelled("Room")
    assert all(script["src"] for script in page.scripts()) and not list(page.all("img"))


async def test_writing_to_oneself_is_400(maria: Person) -> None:
    answer = await get(maria, f"/?person={maria.name.upper()}")
    assert answer.status == 400
    assert "That is you." in answer.text


async def test_who_gave_a_name_up_is_nobody(server: ChatServer, maria: Person) -> None:
    pedro = await guest(server)
    await pedro.ask("POST", "/logout")
    assert (await get(maria, f"/?person={pedro.name}")).status == 400


async def test_joining_leads_to_the_room(maria: Person) -> None:
    answer = await get(maria, "/?room=my.room_1")
    assert (answer.status, answer.headers["location"]) == (303, "/test-chat/my.room_1/")


@pytest.mark.parametrize("room", ["a b", "dm.1", "x" * 65, "../login", "//evil.example", MARKUP])
async def test_joining_what_is_no_room_says_so(maria: Person, room: str) -> None:
    answer = await get(maria, f"/?room={quote(room, safe='')}")
    assert answer.status == 400
    page = Elements(answer)
    assert page.role("alert")
    assert page.labelled("Room")["value"] == room
    assert "aria-invalid" not in page.labelled("Person")
    assert all(script["src"] for script in page.scripts()) and not list(page.all("img"))


# --- The chat


async def test_the_chat_is_found_by_role_and_label(maria: Person) -> None:
    answer = await get(maria, "/test-chat/lobby/")
    assert answer.status == 200
    page = Elements(answer)
    assert len(page.role("log")) == len(page.role("status")) == 1
    assert page.labelled("Message")
    assert {"Send", "Sign out"} <= set(page.buttons())


async def test_script_and_style_are_files_of_this_site(maria: Person) -> None:
    for path in ("/", "/login", "/test-chat/lobby/"):
        answer = (
            await get(maria, path) if path != "/login" else await ask(maria.server, "GET", path)
        )
        page = Elements(answer)
        for attributes in page.scripts():
            assert attributes["src"].startswith("/static/")
        assert not list(page.all("style"))
        for _, attributes, _ in page.found:
            assert not any(name.startswith("on") or name == "style" for name in attributes)
            for name in ("src", "href", "action"):
                assert attributes.get(name, "/").startswith("/")
                assert not attributes.get(name, "/").startswith("//")
        for attributes in [*page.scripts(), *(one for one, _ in page.all("link"))]:
            file = attributes.get("src") or attributes["href"]
            found = await ask(maria.server, "GET", file)
            assert found.status == 200, file


async def test_static_files_have_their_types(server: ChatServer) -> None:
    for file, kind in (
        ("chat.css", "text/css"),
        ("rooms.css", "text/css"),
        ("chat-client.js", "text/javascript"),
        ("favicon.svg", "image/svg+xml"),
    ):
        answer = await ask(server, "GET", f"/static/{file}")
        assert answer.headers["content-type"].partition(";")[0] in (kind, "application/javascript")


async def test_static_files_travel_compressed_and_pages_do_not(maria: Person) -> None:
    accept = {"Accept-Encoding": "gzip", "Cookie": maria.headers["Cookie"]}
    plain = await ask(maria.server, "GET", "/static/chat-client.js")
    packed = await ask(maria.server, "GET", "/static/chat-client.js", accept)
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    # What a stranger put into a page beside a secret would show in its length.
    page = await ask(maria.server, "GET", "/test-chat/lobby/", accept)
    assert page.status == 200 and page.headers["content-encoding"] is None
    again = {**accept, "If-None-Match": packed.headers["etag"]}
    assert (await ask(maria.server, "GET", "/static/chat-client.js", again)).status == 304


@pytest.mark.parametrize("path", ["../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "%00", "."])
async def test_nothing_beside_the_static_files_is_served(server: ChatServer, path: str) -> None:
    assert (await ask(server, "GET", f"/static/{path}")).status == 404


async def test_the_form_without_a_slash_leads_to_the_one_with(maria: Person) -> None:
    answer = await get(maria, "/test-chat/lobby")
    assert (answer.status, answer.headers["location"]) == (307, "/test-chat/lobby/")


async def test_a_room_is_headed_by_its_name_and_a_direct_one_by_the_other_s(
    server: ChatServer,
) -> None:
    maria, pedro = await guest(server), await guest(server)
    direct = await direct_room(maria, pedro)
    for room, title in (("lobby", "lobby"), (direct, pedro.name)):
        page = Elements(await get(maria, f"/test-chat/{room}/"))
        assert page.text("h1") == title
        assert page.text("title") == f"{title} · Tertulia"


async def test_what_may_not_be_entered_is_a_page_that_says_so(server: ChatServer) -> None:
    one, two, third = await guest(server), await guest(server), await guest(server)
    room = await direct_room(one, two)
    for path, status in ((f"/test-chat/{room}/", 403), ("/test-chat/a%20b/", 404), ("/no", 404)):
        answer = await get(third, path)
        assert answer.status == status
        assert list(Elements(answer).all("h1"))
    assert (await get(one, f"/test-chat/{room}/")).status == 200


# --- Text is text


async def test_names_are_text_on_every_page(server: ChatServer) -> None:
    name = f"<b>&{a_name()}</b>\"'"[:32]
    person = await guest(server, name)
    assert person.name == name
    for path in ("/", "/test-chat/lobby/", "/test-chat/a%20b/", "/no"):
        page = Elements(await get(person, path))
        assert not list(page.all("b"))
        assert not list(page.all("script", src=""))
    chat = Elements(await get(person, "/test-chat/lobby/"))
    ((data, _),) = chat.all("main", id="chat")
    assert (data["data-user-name"], data["data-room"]) == (name, "lobby")
    assert (data["data-user-id"]) == str(person.id)
    await person.ask("POST", "/logout")


@pytest.mark.parametrize("path", ["/login?next={}", "/test-chat/{}/", "/{}", "/?room={}"])
async def test_what_an_address_says_is_text(maria: Person, path: str) -> None:
    for proof in ({}, maria.headers):
        headers = {**proof, "Accept": "text/html"}
        answer = await ask(maria.server, "GET", path.format(quote(MARKUP, safe="")), headers)
        if answer.status != 303:
            page = Elements(answer)
            assert not list(page.all("img"))
            assert all(script.get("src") for script in page.scripts())


async def test_a_refused_name_is_text(server: ChatServer) -> None:
    name = MARKUP.ljust(64, "x")
    page = Elements(await sign_in(server, name))
    assert page.labelled("Name")["value"] == name[:64]
    assert not list(page.all("script")) and not list(page.all("img"))


# --- The language


async def test_pages_are_in_the_language_of_the_browser(server: ChatServer, maria: Person) -> None:
    for language, code, words in (
        ("es-MX,es;q=0.9,en;q=0.8", "es", ("Salas", "Salir", "Nombre")),
        ("en", "en", ("Rooms", "Sign out", "Name")),
        ("fr", "en", ("Rooms", "Sign out", "Name")),
    ):
        answer = await get(maria, "/", language)
        page = Elements(answer)
        [(root, _)] = page.all("html")
        assert root["lang"] == code
        assert page.text("h1") == words[0] and words[1] in page.buttons()
        assert answer.headers["vary"].split(", ").count("Accept-Language") == 1
        login = await ask(server, "GET", "/login", {"Accept-Language": language})
        assert Elements(login).labelled(words[2])


async def test_a_page_carries_what_its_scripts_say_in_its_language(maria: Person) -> None:
    for path in ("/", "/test-chat/lobby/"):
        page = Elements(await get(maria, path, "es"))
        [(_, texts)] = page.all("script", id="texts")
        assert json.loads(texts)["Connected"] == "Conectado"
        assert not list(Elements(await get(maria, path, "en")).all("script", id="texts"))


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/?room=a%20b", 400, "Este nombre de sala no es válido."),
        ("/?room=dm.2.1", 400, "Una sala directa se llama dm.A.B, con A menor que B."),
        ("/?person=nobody%20at%20all", 400, "No hay nadie con este nombre."),
        ("/test-chat/a%20b/", 404, "Este nombre de sala no es válido."),
        ("/no", 404, "Aquí no hay nada"),
        ("/logout", 405, "No ha funcionado"),
    ],
)
async def test_what_is_wrong_is_said_in_the_language_of_the_browser(
    maria: Person, path: str, status: int, sentence: str
) -> None:
    answer = await get(maria, path, "es")
    assert (answer.status, sentence in answer.text) == (status, True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "Escribe un nombre."),
        ("x" * 33, "Un nombre tiene como máximo 32 caracteres."),
        ("a  b", "Un nombre no lleva espacios dobles, ni espacios al principio o al final."),
        ("a\tb", "Un nombre solo lleva letras, números, signos de puntuación y símbolos."),
        ("100%(name)s%%", None),
    ],
)
async def test_a_refused_name_is_refused_in_the_language_of_the_browser(
    server: ChatServer, name: str, sentence: str | None
) -> None:
    kind, body = form(username=name)
    answer = await ask(server, "POST", "/login", {**kind, "Accept-Language": "es"}, body)
    if sentence is None:
        # Whose name has it in it is nobody's business.
        assert answer.status == 303
        answer = await ask(server, "POST", "/login", {**kind, "Accept-Language": "es"}, body)
        assert (answer.status, answer.text.count("está ocupado; elige otro.")) == (409, 1)
    else:
        assert (answer.status, sentence in answer.text) == (400, True)


async def test_who_signs_in_too_often_is_told_so_in_the_language_of_the_browser(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(CHAT_SIGN_IN_RATE="1/minute")
    await sign_in(server, a_name())
    kind, body = form(username=a_name())
    for language, words in (("es", "Demasiados intentos."), ("en", "That was too often.")):
        answer = await ask(server, "POST", "/login", {**kind, "Accept-Language": language}, body)
        assert (answer.status, words in answer.text) == (429, True)


async def test_a_program_is_told_in_english(maria: Person) -> None:
    answer = await maria.ask("GET", "/api/rooms/a%20b/messages", headers={"Accept-Language": "es"})
    assert answer.json["detail"] == "This is not a valid room name."


# --- Without guests


async def test_without_guests_login_says_in_words_how_to_get_in(closed: ChatServer) -> None:
    answer = await ask(closed, "GET", "/login")
    assert answer.status == 200
    page = Elements(answer)
    assert not list(page.all("input"))
    assert "sign in" in re.sub(r"\s+", " ", answer.text).lower()
    assert (await ask(closed, "GET", "/")).headers["location"] == "/login?next=/"


async def test_without_guests_nobody_signs_in_by_a_form(closed: ChatServer) -> None:
    name = a_name()
    answer = await sign_in(closed, name)
    assert answer.status == 403
    assert answer.cookie() is None
    headers = {"Cookie": f"session={signed({'user': name})}"}
    page = await ask(closed, "GET", "/", headers)
    assert page.status == 200 and name in page.text


async def test_without_guests_pages_lead_to_the_site_that_is_set(elsewhere: ChatServer) -> None:
    for path in ("/", "/test-chat/lobby/"):
        answer = await ask(elsewhere, "GET", path)
        assert (answer.status, answer.headers["location"]) == (303, LOGIN_URL)
    page = Elements(await ask(elsewhere, "GET", "/login"))
    assert list(page.all("a", href=LOGIN_URL))


async def test_a_page_is_for_a_token_s_user_and_room_only(server: ChatServer) -> None:
    room = a_room()
    bound = await site(server, room=room)
    assert (await get(bound, f"/test-chat/{room}/")).status == 200
    assert (await get(bound, "/test-chat/lobby/")).status == 403
    # The list of rooms is not that room.
    for path in ("/", f"/?room={room}", "/?room=lobby"):
        assert (await get(bound, path)).status == 403
