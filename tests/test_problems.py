"""Errors over HTTP: problem+json for programs, a page for people, and no trace for anybody."""

from __future__ import annotations

import pytest

from tests.people import Person, a_name, a_room, ask, ask_json, form, site
from tests.servers import ChatServer

pytest_plugins = ["tests.houses"]

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
async def maria(server: ChatServer) -> Person:
    return await site(server)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/api/rooms?after=%22", None, 400, "bad_frame"),
        ("POST", "/api/rooms/lobby/messages", {"text": ""}, 400, "text_empty"),
        ("POST", "/api/direct", {"user_id": 2**53 - 1}, 404, "not_found"),
        ("GET", "/api/rooms/%22/messages", None, 404, "not_found"),
        ("GET", "/api/nothing", None, 404, "not_found"),
        ("GET", "/nothing", None, 404, "not_found"),
        ("PUT", "/api/session", None, 405, "method_not_allowed"),
        ("DELETE", "/api/rooms/lobby/messages", None, 405, "method_not_allowed"),
    ],
)
async def test_an_error_is_a_problem_with_status_title_and_code(
    maria: Person, method: str, path: str, content: object, status: int, code: str
) -> None:
    answer = await maria.ask(method, path, content)
    assert (answer.status, answer.code) == (status, code)
    problem = answer.json
    assert problem["type"] == "about:blank"
    assert problem["title"] and problem["detail"].endswith(".")


async def test_too_large_and_not_json_are_problems_too(maria: Person) -> None:
    path = f"/api/rooms/{a_room()}/messages"
    answer = await ask(maria.server, "POST", path, maria.headers, b"{}")
    assert answer.status == 415
    assert answer.code
    headers = {**maria.headers, "Content-Type": "application/json"}
    answer = await ask(maria.server, "POST", path, headers, b"x" * 65537)
    assert answer.status == 413
    assert answer.code


async def test_401_says_how_to_prove_who_one_is(server: ChatServer) -> None:
    answer = await ask(server, "GET", "/api/session")
    assert answer.headers["www-authenticate"].lower().startswith("bearer")


async def test_people_get_a_page_where_programs_get_a_problem(maria: Person) -> None:
    for path in ("/nothing", "/static/nothing"):
        answer = await ask(maria.server, "GET", path, HTML)
        assert answer.status == 404
        assert answer.headers["content-type"].startswith("text/html")
        # Its links lead to where the chat is, whatever was asked for.
        assert '<a class="product" href="/">' in answer.text
    # The API is for programs, whoever asks.
    answer = await ask(maria.server, "GET", "/api/nothing", HTML)
    assert answer.code == "not_found"
    answer = await ask(maria.server, "GET", "/api/session", HTML)
    assert answer.code == "unauthenticated"


async def test_a_wrong_method_says_which_are_right(server: ChatServer) -> None:
    for path, allowed in (
        ("/logout", {"POST"}),
        ("/healthz", {"GET", "HEAD"}),
        ("/api/rooms/lobby/messages", {"GET", "HEAD", "POST"}),
    ):
        answer = await ask(server, "PUT", path)
        assert answer.status == 405
        assert set(answer.headers["allow"].replace(" ", "").split(",")) == allowed


async def test_head_has_the_headers_of_get_and_no_body(server: ChatServer) -> None:
    for path in ("/login", "/healthz", "/static/chat.css"):
        answer = await ask(server, "HEAD", path)
        assert (answer.status, answer.body) == (200, b"")


async def test_a_form_from_another_origin_is_403(server: ChatServer) -> None:
    kind, body = form(username=a_name())
    headers = {**kind, "Origin": "https://evil.example"}
    assert (await ask(server, "POST", "/login", headers, body)).status == 403


async def test_no_error_tells_about_the_inside(server: ChatServer, maria: Person) -> None:
    answers = [
        await maria.ask("POST", "/api/direct", {"user_id": "x"}),
        await maria.ask("GET", "/api/rooms/%22/messages"),
        await ask_json(server, "POST", "/api/tokens", {"user": "x"}, {"Authorization": "Bearer x"}),
        await ask(server, "GET", "/nothing"),
    ]
    for answer in answers:
        for word in ("Traceback", "chat/", "msgspec", "starlette", "sqlite", ".py"):
            assert word not in answer.text
        assert "server" not in answer.headers
