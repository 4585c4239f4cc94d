"""Who is asking: cookies, tokens, sessions, guests and site users, over sockets and HTTP."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from itsdangerous import BadSignature, TimestampSigner, URLSafeTimedSerializer

from tests.people import (
    API_KEY,
    NO_LIMITS,
    SOON,
    Person,
    a_name,
    a_room,
    acted_for,
    ask,
    ask_json,
    direct_room,
    entering,
    execute,
    guest,
    mint,
    refused,
    running,
    sign_in,
    signed,
    site,
    unsigned,
    until,
    whose,
)
from tests.servers import SECRET_KEY, ChatServer

pytest_plugins = ["tests.houses"]

OLD_KEY, NEW_KEY = "the-key-before-last-one", "the-key-that-signs-now"
HOUR = 3_600_000  # ms
SESSION_HOURS = 336
# Seconds within which a revocation reaches every open socket.
REVOCATION_LIMIT = 2.0


def now() -> int:
    return time.time_ns() // 1_000_000


def milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def cookie(value: str, name: str = "session") -> dict[str, str]:
    return {"Cookie": f"{name}={value}"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChatServer]:
    """No API key, no guests, two keys, and a cookie of another name."""
    settings = {
        **NO_LIMITS,
        "CHAT_API_KEY": None,
        "CHAT_SIGN_IN": "off",
        "CHAT_SECRET_KEY": f"{NEW_KEY},{OLD_KEY}",
        "CHAT_SESSION_COOKIE": "chat_session",
        "CHAT_COOKIE_SECURE": "1",
    }
    async with running(tmp_path_factory.mktemp("other"), **settings) as server:
        yield server


async def known(server: ChatServer, headers: dict[str, str]) -> dict[str, Any] | None:
    """Whom these headers prove, None for nobody; sockets and HTTP must agree."""
    answer = await ask(server, "GET", "/api/session", headers)
    room = a_room()
    if answer.status == 401:
        assert answer.code == "unauthenticated"
        assert await refused(server, room, headers=headers) == 4401
        return None
    user: dict[str, Any] = answer.json["user"]
    async with entering(server, room, headers=headers) as member:
        assert member.welcome["user"] == user
    return user


# --- Which proof counts


async def test_nobody_is_known_without_a_proof(server: ChatServer) -> None:
    assert await known(server, {}) is None


async def test_a_bearer_token_beats_the_cookie_and_the_cookie_the_query(
    server: ChatServer,
) -> None:
    one, two, three = await site(server), await guest(server), await site(server)
    room, query = a_room(), f"?token={three.token}"
    both = {**one.headers, **two.headers}
    async with (
        entering(server, room, query, both) as first,
        entering(server, room, query, two.headers) as second,
        entering(server, room, query) as third,
    ):
        users = [member.welcome["user"] for member in (first, second, third)]
    assert users == [one.person, two.person, three.person]


async def test_a_wrong_bearer_token_is_not_saved_by_a_cookie_or_query(server: ChatServer) -> None:
    good, visitor = await site(server), await guest(server)
    for wrong in ("", "x", f"{good.token}x"):
        headers = {**bearer(wrong), **visitor.headers}
        assert await refused(server, a_room(), f"?token={good.token}", headers) == 4401
        assert (await ask(server, "GET", "/api/session", headers)).status == 401


async def test_without_a_valid_cookie_the_query_counts(server: ChatServer) -> None:
    person = await site(server)
    for value in ("", "x", signed({"user": "x", "sid": "y"}), signed({}), signed({"user": 1})):
        headers = cookie(value)
        async with entering(server, a_room(), f"?token={person.token}", headers) as member:
            assert member.welcome["user"] == person.person
        assert await refused(server, a_room(), "?token=x", headers) == 4401


async def test_http_knows_no_token_in_the_query(server: ChatServer) -> None:
    person = await site(server)
    assert (await ask(server, "GET", f"/api/session?token={person.token}")).status == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_word_bearer_has_no_case(server: ChatServer, scheme: str) -> None:
    person = await site(server)
    user = await known(server, {"Authorization": f"{scheme} {person.token}"})
    assert user == person.person


async def test_other_schemes_prove_nothing(server: ChatServer) -> None:
    person = await site(server)
    for value in (f"Basic {person.token}", person.token, "Bearer", f"Token {person.token}"):
        assert await known(server, {"Authorization": value}) is None


async def test_a_cookie_is_no_token_and_a_token_no_cookie(server: ChatServer) -> None:
    visitor, person = await guest(server), await site(server)
    foreign = signed({"user": person.name})
    for value in (visitor.cookie, foreign):
        assert await known(server, bearer(value)) is None
        assert await refused(server, a_room(), f"?token={value}") == 4401
    assert await known(server, cookie(person.token)) is None


# --- The session cookie


async def test_a_cookie_is_starlette_s_signed_session_with_user_and_sid(
    server: ChatServer,
) -> None:
    answer = await sign_in(server, name := a_name())
    value = answer.cookie()
    assert value is not None
    content = unsigned(value)
    assert content.keys() == {"user", "sid"}
    assert content["user"] == name
    rows = execute(server, "SELECT user_id FROM sessions WHERE sid = ?", content["sid"])
    assert rows == [((await whose(server, cookie(value))).id,)]


async def test_a_cookie_is_for_http_alone_and_this_site_and_lasts_as_long_as_set(
    server: ChatServer,
) -> None:
    header = (await sign_in(server, a_name())).headers["set-cookie"].lower()
    parts = [part.strip() for part in header.split(";")]
    assert {"httponly", "samesite=lax", "path=/", f"max-age={SESSION_HOURS * 3600}"} <= set(parts)
    assert "secure" not in parts


async def test_a_cookie_that_is_cut_changed_or_signed_by_another_key_proves_nothing(
    server: ChatServer,
) -> None:
    value = (await guest(server)).cookie
    content, stamp, signature = value.rsplit(".", 2)
    other = (await guest(server)).cookie.rsplit(".", 2)
    for wrong in (
        value[:-1],
        value[1:],
        content,
        f"{content}.{stamp}",
        f"{other[0]}.{stamp}.{signature}",
        f"{content}.{other[1]}x.{signature}",
        f"{content}.{stamp}.{other[2]}",
        signed(unsigned(value), key="another-key-of-16-characters"),
        signed(unsigned(value), made=int(time.time()) - SESSION_HOURS * 3600 - 60),
    ):
        assert await known(server, cookie(wrong)) is None, wrong


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"user": 7},
        {"user": ""},
        {"user": "a\nb"},
        {"user": "x" * 33},
        {"sid": 7},
        {"user": None},
        {"user": ["a"]},
        {"user": "a", "sid": ["x"]},
        {"user": "a", "sid": ""},
    ],
)
async def test_a_signed_cookie_without_a_good_name_or_session_proves_nothing(
    server: ChatServer, content: dict[str, Any]
) -> None:
    assert await known(server, cookie(signed(content))) is None


@pytest.mark.parametrize("content", ["[]", "1", "null", '"user"', "not json", "", "[" * 2000])
async def test_a_signed_cookie_that_is_no_object_proves_nothing(
    server: ChatServer, content: str
) -> None:
    value = TimestampSigner(SECRET_KEY).sign(base64.b64encode(content.encode())).decode()
    assert await known(server, cookie(value)) is None


async def test_a_sid_of_somebody_else_is_that_somebody_whatever_the_cookie_says(
    server: ChatServer,
) -> None:
    person = await guest(server)
    forged = signed({"user": "somebody else", "sid": unsigned(person.cookie)["sid"]})
    assert await known(server, cookie(forged)) == person.person


async def test_a_session_that_ran_out_on_the_server_proves_nothing(server: ChatServer) -> None:
    person = await guest(server)
    execute(server, "UPDATE sessions SET expires_at = ? WHERE user_id = ?", now(), person.id)
    assert await known(server, dict(person.headers)) is None


async def test_signing_out_closes_open_sockets_with_4401_and_is_final(server: ChatServer) -> None:
    person, other = await guest(server), await guest(server)
    room = a_room()
    async with (
        person.enter(room) as one,
        person.enter(a_room()) as two,
        other.enter(room) as third,
    ):
        answer = await person.ask("POST", "/logout")
        assert answer.status == 303
        async with asyncio.timeout(REVOCATION_LIMIT):
            assert (await one.end(), await two.end()) == (4401, 4401)
        await third.is_well()
    assert await known(server, dict(person.headers)) is None
    page = await ask(server, "GET", "/", person.headers)
    assert (page.status, page.headers["location"]) == (303, "/login?next=/")


async def test_signing_out_ends_a_session_and_not_the_user_s_others(server: ChatServer) -> None:
    person = await guest(server)
    content = unsigned(person.cookie)
    execute(
        server,
        "INSERT INTO sessions (sid, user_id, created_at, expires_at)"
        " SELECT 'another ' || sid, user_id, created_at, expires_at FROM sessions WHERE sid = ?",
        content["sid"],
    )
    second = cookie(signed({**content, "sid": f"another {content['sid']}"}))
    async with entering(server, a_room(), headers=second) as member:
        await person.ask("POST", "/logout")
        assert await known(server, dict(person.headers)) is None
        assert await known(server, second) == person.person
        await member.is_well()


async def test_a_renewed_connection_ends_with_the_session_it_began_with(
    server: ChatServer,
) -> None:
    person = await guest(server)
    payload = {"user": person.id, "room": None, "end": now() + HOUR}
    token = str(URLSafeTimedSerializer(SECRET_KEY, salt="chat.token").dumps(payload))
    async with person.enter(a_room()) as member:
        assert (await member.asks("token", token=token))["type"] == "token"
        await person.ask("POST", "/logout")
        assert await member.end() == 4401


async def test_signing_in_anew_signs_out_who_was_there_before(server: ChatServer) -> None:
    person = await guest(server)
    async with person.enter(a_room()) as member:
        answer = await sign_in(server, a_name(), headers=person.headers)
        assert answer.status == 303
        assert await member.end() == 4401
    assert await known(server, dict(person.headers)) is None
    assert await known(server, cookie(str(answer.cookie()))) is not None


async def test_a_name_that_is_refused_leaves_the_session_as_it_was(server: ChatServer) -> None:
    person = await guest(server)
    assert (await sign_in(server, "", headers=person.headers)).status == 400
    assert await known(server, dict(person.headers)) == person.person


def let_pass(server: ChatServer, person: Person, hours: float) -> None:
    """Let so much time of the person's session be over."""
    execute(
        server,
        "UPDATE sessions SET created_at = created_at - ?1, expires_at = expires_at - ?1"
        " WHERE user_id = ?2",
        int(hours * HOUR),
        person.id,
    )


async def test_a_session_in_use_is_renewed_after_half_its_life(server: ChatServer) -> None:
    person = await guest(server)
    let_pass(server, person, SESSION_HOURS / 2 - 1)
    assert (await ask(server, "GET", "/", person.headers)).cookie() is None
    let_pass(server, person, 2)
    page = await ask(server, "GET", "/", person.headers)
    assert (page.status, page.cookie()) != (200, None)
    assert unsigned(str(page.cookie())) == unsigned(person.cookie)
    (end,) = execute(server, "SELECT expires_at FROM sessions WHERE user_id = ?", person.id)[0]
    assert abs(end - now() - SESSION_HOURS * HOUR) < 60_000
    # Once renewed it is young again.
    headers = cookie(str(page.cookie()))
    assert (await ask(server, "GET", "/", headers)).cookie() is None
    assert await known(server, headers) == person.person


async def end_soon(server: ChatServer, person: Person) -> None:
    let_pass(server, person, SESSION_HOURS - 900 / HOUR)


async def test_a_session_that_runs_out_while_connected_is_4401(server: ChatServer) -> None:
    person = await guest(server)
    await end_soon(server, person)
    async with person.enter(a_room()) as member:
        end = milliseconds(member.welcome["expires_at"])
        assert await member.end() == 4401
        assert now() >= end
    assert await known(server, dict(person.headers)) is None


async def test_a_session_renewed_by_a_page_keeps_its_connections(server: ChatServer) -> None:
    person, ends = await guest(server), await guest(server)
    for one in (person, ends):
        await end_soon(server, one)
    async with person.enter(a_room()) as member, ends.enter(a_room()) as other:
        assert (await ask(server, "GET", "/", person.headers)).cookie() is not None
        assert await other.end() == 4401
        await member.is_well()


# --- Cookies of another application


async def test_a_cookie_without_sid_is_a_site_user_made_if_new(server: ChatServer) -> None:
    name = a_name()
    user = await known(server, cookie(signed({"user": name, "theirs": [1, 2]})))
    assert user is not None and user["name"] == name
    assert execute(server, "SELECT name, kind FROM users WHERE id = ?", user["id"]) == [
        (name, "site")
    ]
    again = await known(server, cookie(signed({"user": name.upper()})))
    assert again == user


async def test_a_cookie_without_sid_is_good_as_long_as_its_signature(server: ChatServer) -> None:
    life = SESSION_HOURS * 3600
    value = signed({"user": a_name()}, made=int(time.time()) - life + 2)
    async with entering(server, a_room(), headers=cookie(value)) as member:
        end = milliseconds(member.welcome["expires_at"])
        assert 0 < end - now() <= 2000
        assert await member.end() == 4401
    late = signed({"user": a_name()}, made=int(time.time()) - life - 2)
    assert await known(server, cookie(late)) is None


async def test_signing_out_of_a_cookie_without_sid_takes_the_cookie_away(
    server: ChatServer,
) -> None:
    answer = await ask(server, "POST", "/logout", cookie(signed({"user": a_name()})))
    assert answer.status == 303
    assert answer.cookie() in ("null", "")


async def test_the_cookie_has_the_name_and_the_safety_that_are_set(
    other_server: ChatServer,
) -> None:
    value = signed({"user": a_name()}, key=NEW_KEY)
    assert await known(other_server, cookie(value)) is None
    assert await known(other_server, cookie(value, "chat_session")) is not None
    answer = await ask(other_server, "POST", "/logout", cookie(value, "chat_session"))
    assert "secure" in answer.headers["set-cookie"].lower()


async def test_of_several_keys_all_verify(other_server: ChatServer) -> None:
    name, users = a_name(), []
    for key in (NEW_KEY, OLD_KEY):
        users.append(await known(other_server, cookie(signed({"user": name}, key), "chat_session")))
        token = URLSafeTimedSerializer(key, salt="chat.token").dumps(
            {"user": users[0]["id"], "room": None, "end": now() + HOUR} if users[0] else {}
        )
        users.append(await known(other_server, bearer(str(token))))
    assert users[0] is not None and users == [users[0]] * 4
    wrong = cookie(signed({"user": name}, SECRET_KEY), "chat_session")
    assert await known(other_server, wrong) is None


async def test_of_several_keys_the_first_signs(
    other_server: ChatServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {**NO_LIMITS, "CHAT_SECRET_KEY": f"{NEW_KEY},{OLD_KEY}"}
    async with running(tmp_path_factory.mktemp("rotated"), **settings) as server:
        value = (await sign_in(server, a_name())).cookie()
        made = (await mint(server, user=a_name())).json["token"]
    assert value is not None and unsigned(value, NEW_KEY)
    assert URLSafeTimedSerializer(NEW_KEY, salt="chat.token").loads(made)
    with pytest.raises(BadSignature):
        unsigned(value, OLD_KEY)
    with pytest.raises(BadSignature):
        URLSafeTimedSerializer(OLD_KEY, salt="chat.token").loads(made)


# --- Tokens


@pytest.mark.parametrize("ttl", [1, 3600, 86_400])
async def test_a_token_lasts_as_long_as_was_asked(server: ChatServer, ttl: int) -> None:
    before = now()
    made = (await mint(server, user=a_name(), ttl=ttl)).json
    assert before + ttl * 1000 <= milliseconds(made["expires_at"]) <= now() + ttl * 1000


async def test_a_token_that_runs_out_while_connected_is_4401(server: ChatServer) -> None:
    person, other = await site(server, ttl=1), await site(server)
    room = a_room()
    async with person.enter(room) as member, other.enter(room) as stays:
        end = milliseconds(member.welcome["expires_at"])
        await member.say("while it lasts")
        assert await member.end() == 4401
        assert now() >= end
        assert not any('"closing"' in raw for raw in member.raw)
        await stays.is_well()
    assert await known(server, dict(person.headers)) is None
    assert await refused(server, room, f"?token={person.token}") == 4401


async def test_a_token_that_is_cut_or_signed_by_another_key_proves_nothing(
    server: ChatServer,
) -> None:
    person = await site(server)
    token = person.token
    content, stamp, signature = token.rsplit(".", 2)
    other = (await site(server)).token.rsplit(".", 2)
    payload = {"user": person.id, "room": None, "end": now() + HOUR}
    forged = [
        URLSafeTimedSerializer(key, salt=salt).dumps(payload)
        for key, salt in (
            ("another-key-of-16-characters", "chat.token"),
            (SECRET_KEY, "itsdangerous"),
            (SECRET_KEY, "itsdangerous.Signer"),  # the cookies' own
            (SECRET_KEY, ""),
        )
    ]
    for wrong in (
        token[:-1],
        token[1:],
        content,
        f"{other[0]}.{stamp}.{signature}",
        f"{content}.{stamp}.{other[2]}",
        "..",
        "null",
        *map(str, forged),
    ):
        assert await known(server, bearer(wrong)) is None, wrong


# What our own keys may have signed, but we never did.
OTHER_CONTENT: list[Any] = [
    *([], {}, None, "x", {"user": 1}),
    *({"user": user, "room": None, "end": 2**50} for user in ("1", None, -1, 0, 2**70)),
    {"user": 1, "room": None, "end": "soon"},
    {"user": 1, "room": None, "end": [1]},
    {"user": 1, "room": None, "end": 0},
]


@pytest.mark.parametrize("payload", OTHER_CONTENT, ids=str)
async def test_a_signed_token_with_other_content_proves_nothing(
    server: ChatServer, payload: Any
) -> None:
    token = URLSafeTimedSerializer(SECRET_KEY, salt="chat.token").dumps(payload)
    assert await known(server, bearer(str(token))) is None


# --- Backends


async def test_a_backend_acts_for_a_user_made_if_new(server: ChatServer) -> None:
    name = "José 中 " + a_name()
    user = await known(server, acted_for(name))
    assert user is not None and user["name"] == name
    assert await known(server, acted_for(name.upper())) == user
    room = a_room()
    headers = acted_for(name)
    answer = await ask_json(server, "POST", f"/api/rooms/{room}/messages", {"text": "hi"}, headers)
    assert answer.status == 201
    entry = (await ask(server, "GET", f"/api/rooms/{room}/messages", headers)).json["messages"][0]
    assert entry["sender"] == user


@pytest.mark.parametrize(
    "name", [None, "", "%20", "a%0Ab", "%00", "%FF", "%C3%28", "x" * 33, "a%20%20b", "%ED%A0%80"]
)
async def test_a_backend_that_names_no_good_user_is_unauthenticated(
    server: ChatServer, name: str | None
) -> None:
    headers = bearer(API_KEY) if name is None else {**bearer(API_KEY), "Chat-User": name}
    assert (await ask(server, "GET", "/api/session", headers)).code == "unauthenticated"


async def test_a_name_in_raw_utf_8_is_unauthenticated_and_makes_nobody(server: ChatServer) -> None:
    name = "José " + a_name()
    # A header is bytes: these are the name's, without percents.
    raw = name.encode().decode("latin-1")
    answer = await ask(server, "GET", "/api/session", {**bearer(API_KEY), "Chat-User": raw})
    assert answer.code == "unauthenticated"
    for read in (name, raw):
        assert not execute(server, "SELECT 1 FROM users WHERE name = ?", read)


async def test_chat_user_means_nothing_without_the_api_key(server: ChatServer) -> None:
    name, person = a_name(), await site(server)
    assert await known(server, {"Chat-User": name}) is None
    assert await known(server, {**bearer("wrong"), "Chat-User": name}) is None
    assert await known(server, {**person.headers, "Chat-User": name}) == person.person
    assert not execute(server, "SELECT 1 FROM users WHERE name = ?", name)


async def test_without_an_api_key_nobody_is_a_backend(other_server: ChatServer) -> None:
    for key in ("", "None", API_KEY):
        assert await known(other_server, {**bearer(key), "Chat-User": a_name()}) is None
        order = {"user": a_name()}
        answer = await ask_json(other_server, "POST", "/api/tokens", order, bearer(key))
        assert (answer.status, answer.code) == (404, "not_found")


# --- Disabled users


async def test_a_disabled_user_gets_4401_by_whatever_proof(server: ChatServer) -> None:
    person, visitor = await site(server), await guest(server)
    foreign = cookie(signed({"user": person.name}))
    for one in (person, visitor):
        execute(server, "UPDATE users SET disabled_at = ? WHERE id = ?", now(), one.id)
    for headers in (person.headers, visitor.headers, foreign, acted_for(person.name)):
        assert await known(server, dict(headers)) is None
    assert await refused(server, a_room(), f"?token={person.token}") == 4401


async def test_a_user_disabled_while_connected_gets_4401(server: ChatServer) -> None:
    person, other = await site(server), await site(server)
    room = a_room()
    async with person.enter(room) as member, other.enter(room) as stays:
        execute(server, "UPDATE users SET disabled_at = ? WHERE id = ?", now(), person.id)
        async with asyncio.timeout(REVOCATION_LIMIT):
            assert await member.end() == 4401
        await stays.is_well()


# --- Guests and site users


async def test_a_guest_cannot_take_a_name_that_is_in_use(server: ChatServer) -> None:
    name = f"Straße {a_name()}"
    await guest(server, name)
    for same in (name, name.upper(), name.replace("ß", "SS"), name.lower()):
        assert (await sign_in(server, same)).status == 409


async def test_names_are_compared_in_nfkc(server: ChatServer) -> None:
    suffix = a_name()
    person = await guest(server, f"\uff4d\uff41\uff52\uff49\uff41 \ufb01 {suffix}")
    assert person.name == f"maria fi {suffix}"
    assert (await sign_in(server, f"Maria FI {suffix}")).status == 409


async def test_a_guest_can_never_take_a_site_user_s_name(server: ChatServer) -> None:
    person = await site(server)
    assert (await sign_in(server, person.name)).status == 409
    assert (await sign_in(server, person.name.upper())).status == 409


async def test_a_site_user_takes_its_name_from_a_guest(server: ChatServer) -> None:
    visitor, room = await guest(server), a_room()
    assert (await visitor.post(room, "hola")).status == 201
    async with visitor.enter(room) as member:
        owner = await site(server, visitor.name)
        assert await member.end() == 4401
    assert owner.name == visitor.name and owner.id != visitor.id
    rows = execute(server, "SELECT name, kind FROM users WHERE id = ?", visitor.id)
    assert rows == [(f"{visitor.name}~{visitor.id}", "guest")]
    assert await known(server, dict(visitor.headers)) is None
    # The old message keeps the name that it was sent under.
    entry = (await owner.read(room)).json["messages"][0]
    assert entry["sender"] == visitor.person


async def test_a_guest_s_new_name_is_shortened_to_32_characters(server: ChatServer) -> None:
    visitor = await guest(server, a_name().ljust(32, "x"))
    await site(server, visitor.name)
    (name,) = execute(server, "SELECT name FROM users WHERE id = ?", visitor.id)[0]
    tail = f"~{visitor.id}"
    assert name == visitor.name[: 32 - len(tail)] + tail


async def test_a_guest_s_new_name_is_counted_on_where_it_is_taken(server: ChatServer) -> None:
    visitor = await guest(server)
    await site(server, f"{visitor.name}~{visitor.id}")
    await site(server, f"{visitor.name}~{visitor.id}~2")
    await site(server, visitor.name)
    (name,) = execute(server, "SELECT name FROM users WHERE id = ?", visitor.id)[0]
    assert name == f"{visitor.name}~{visitor.id}~3"


@pytest.mark.parametrize("by", ["token", "backend", "cookie"])
async def test_a_site_user_comes_by_token_backend_or_cookie(server: ChatServer, by: str) -> None:
    visitor = await guest(server)
    if by == "token":
        headers = dict((await site(server, visitor.name)).headers)
    elif by == "backend":
        headers = acted_for(visitor.name)
    else:
        headers = cookie(signed({"user": visitor.name}))
    user = await known(server, headers)
    assert user is not None and user["name"] == visitor.name and user["id"] != visitor.id


async def test_signing_out_frees_a_guest_s_name_for_a_new_user(server: ChatServer) -> None:
    first = await guest(server)
    await first.ask("POST", "/logout")
    second = await guest(server, first.name)
    assert second.id != first.id
    # What was the first one's is not the second one's.
    friend = await site(server)
    room = await direct_room(friend, second)
    assert str(first.id) not in room.split(".")
    assert await known(server, dict(first.headers)) is None


async def test_running_out_frees_a_guest_s_name_for_a_new_user(server: ChatServer) -> None:
    first = await guest(server)
    let_pass(server, first, SESSION_HOURS + 1)
    execute(server, "UPDATE users SET created_at = created_at - ? WHERE id = ?", 2 * HOUR, first.id)
    assert (await guest(server, first.name)).id != first.id


async def test_two_guests_at_once_never_get_one_name(server: ChatServer) -> None:
    name = a_name()
    answers = await asyncio.gather(*(sign_in(server, name) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [303] + [409] * 7


async def test_two_backends_at_once_make_one_user(server: ChatServer) -> None:
    name = a_name()
    answers = await asyncio.gather(*(mint(server, user=name) for _ in range(8)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.json["user"]["id"] for answer in answers}) == 1


GOOD_NAMES = ["a", "é", "中" * 32, "😀", "O'Neil-Smith, Jr.", "a b c", "<b>x</b>", "٣", "x" * 32]
BAD_NAMES = [
    *("", " ", "\t", "a\tb", "a\nb", "a\r\nb", "a\0b", "x" * 33, " a", "a ", "a  b"),
    *("a\u200bb", "a\u202eb", "\u200d", "a\u2028b", "\ue000", "\u0378", "a\x7fb", "a\u00adb"),
    # 18 characters, which NFKC makes 18 times as many.
    "\ufdfa" * 2,
]


@pytest.mark.parametrize("name", GOOD_NAMES)
async def test_letters_marks_numbers_punctuation_and_symbols_make_a_name(
    server: ChatServer, name: str
) -> None:
    person = await guest(server, name)
    assert person.name == name
    await person.ask("POST", "/logout")


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
async def test_other_names_are_refused_by_pages_tokens_and_backends(
    server: ChatServer, name: str
) -> None:
    answer = await sign_in(server, name)
    assert answer.status == 400
    assert answer.cookie() is None
    assert (await mint(server, user=name)).code == "bad_frame"
    assert (await ask(server, "GET", "/api/session", acted_for(name))).status == 401


async def test_a_session_is_ended_by_the_ticker_when_nobody_tells(server: ChatServer) -> None:
    """As when another node revokes it and the relay is lost."""
    person = await guest(server)
    async with person.enter(a_room()) as member:
        execute(server, "UPDATE sessions SET revoked_at = ? WHERE user_id = ?", now(), person.id)
        async with asyncio.timeout(SOON):
            assert await member.end() == 4401

    async def gone() -> bool:
        return await known(server, dict(person.headers)) is None

    await until(gone)
