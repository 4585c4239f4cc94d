"""Names and sessions: what a name may be, who may have it when, and what signing out ends."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.clock import now
from chat.log import users as module
from chat.log.database import Database
from chat.log.users import (
    MAX_NAME,
    SIGN_IN_GRACE,
    NameRefused,
    NameTaken,
    User,
    Users,
    checked,
    key_of,
)
from chat.protocol import Person
from tests.storage import LIMIT, change, opened

HOUR = 3_600_000  # ms


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with opened(database_url) as database:
        yield database


@pytest.fixture
def users(database: Database) -> Users:
    return Users(database)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Milliseconds that the node's clock is ahead: the test sets the one number in the list."""
    ahead = [0]
    monkeypatch.setattr(module, "now", lambda: now() + ahead[0])
    return ahead


async def name_of(users: Users, user: User) -> str:
    found = await users.find(user.id)
    assert found is not None
    return found.name


# --- Names


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("maria", "maria"),
        ("María José", "María José"),
        ("Zoe\u0308", "Zoë"),
        ("李小龍", "李小龍"),
        ("Ὀδυσσεύς", "Ὀδυσσεύς"),
        ("علي", "علي"),
        ("नमस्ते", "नमस्ते"),
        ("😀", "😀"),
        ("<b>&amp;", "<b>&amp;"),
        ("~_-.!", "~_-.!"),
        ("a", "a"),
        ("a b c", "a b c"),
        ("a\u00a0b", "a b"),
        ("\uff4d\uff41\uff52\uff49\uff41", "maria"),
        ("ﬁ", "fi"),
        ("x" * 32, "x" * 32),
        ("😀" * 32, "😀" * 32),
    ],
)
def test_a_name_is_kept_in_nfkc(raw: str, name: str) -> None:
    assert checked(raw) == name


@pytest.mark.parametrize(
    "raw",
    [
        "",
        " ",
        "\u3000",
        " maria",
        "maria ",
        "\u00a0maria",
        "a  b",
        "a \u00a0b",
        "x" * 33,
        "ﷺ" * 2,  # eighteen characters each, in NFKC
        "a\tb",
        "a\nb",
        "maria\n",
        "a\0b",
        "a\x7fb",
        "a\x85b",
        "a\u200bb",
        "a\u200db",
        "a\u202eb",
        "a\ufeffb",
        "a\u2028b",
        "\ue000",
        "\u0378",
        "\ud800",
        "\U000e0041",
    ],
)
def test_these_names_are_refused_with_a_sentence(raw: str) -> None:
    with pytest.raises(NameRefused, match=r"^[A-Z].*\.$") as refused:
        checked(raw)
    assert raw.strip() == "" or raw not in str(refused.value)


@given(st.text(max_size=40))
def test_a_name_that_passes_keeps_all_the_rules(raw: str) -> None:
    try:
        name = checked(raw)
    except NameRefused:
        return
    assert 1 <= len(name) <= MAX_NAME
    assert name == unicodedata.normalize("NFKC", raw)
    assert checked(name) == name
    assert all(one == " " or unicodedata.category(one)[0] in "LMNPS" for one in name)
    assert "  " not in name and name == name.strip()
    assert len(name.splitlines()) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Maria", "mARIA"),
        ("straße", "STRASSE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("\uff2d\uff21\uff32\uff29\uff21", "maria"),
    ],
)
def test_names_are_compared_by_case_folding(one: str, other: str) -> None:
    assert key_of(checked(one)) == key_of(checked(other))


def test_names_with_other_letters_differ() -> None:
    assert len({key_of(name) for name in ("maria", "maría", "maria1", "m aria", "мaria")}) == 5


# --- Guests


async def test_a_guest_has_its_name_and_a_new_id(users: Users) -> None:
    maria, juan = await users.guest("Maria"), await users.guest("juan")
    assert (maria.name, maria.kind, maria.disabled_at) == ("Maria", "guest", None)
    assert maria.id != juan.id
    assert maria.person == Person(maria.id, "Maria")
    assert await users.find(maria.id) == maria
    assert await users.find(maria.id + 1_000) is None


@pytest.mark.parametrize("name", ["maria", "MARIA", "\uff4daria", "Maria"])
async def test_a_name_that_somebody_has_is_taken_in_any_case(users: Users, name: str) -> None:
    maria = await users.guest("maria")
    await users.open_session(maria, 1)
    with pytest.raises(NameTaken, match=r"maria is taken"):
        await users.guest(name)


async def test_a_name_is_taken_while_its_guest_is_about_to_sign_in(
    users: Users, clock: list[int]
) -> None:
    first = await users.guest("maria")
    with pytest.raises(NameTaken):
        await users.guest("maria")
    # It never did: the name does not stay taken for ever.
    clock[0] = SIGN_IN_GRACE + 1_000
    second = await users.guest("maria")
    assert second.id != first.id


async def test_signing_out_frees_the_name_and_who_takes_it_is_someone_new(users: Users) -> None:
    first = await users.guest("maria")
    await users.sign_out(await users.open_session(first, 1))
    second = await users.guest("MARIA")
    assert second.id != first.id
    assert await name_of(users, first) == "maria", "its messages keep the name"


async def test_a_guest_with_another_session_keeps_the_name(users: Users) -> None:
    maria = await users.guest("maria")
    one, other = [await users.open_session(maria, 1) for _ in range(2)]
    await users.sign_out(one)
    with pytest.raises(NameTaken):
        await users.guest("maria")
    assert await users.session(other.sid) is not None
    await users.sign_out(other)
    assert (await users.guest("maria")).id != maria.id


async def test_signing_out_twice_does_not_free_the_name_of_the_next(users: Users) -> None:
    session = await users.open_session(await users.guest("maria"), 1)
    await users.sign_out(session)
    second = await users.guest("maria")
    await users.open_session(second, 1)
    await users.sign_out(session)
    with pytest.raises(NameTaken):
        await users.guest("maria")


async def test_a_session_that_runs_out_frees_the_name(users: Users, clock: list[int]) -> None:
    first = await users.guest("maria")
    await users.open_session(first, 2)
    clock[0] = HOUR
    with pytest.raises(NameTaken):
        await users.guest("maria")
    clock[0] = 2 * HOUR + 1
    second = await users.guest("maria")
    assert second.id != first.id
    await users.open_session(second, 2)
    with pytest.raises(NameTaken):
        await users.guest("maria")


async def test_of_many_who_want_a_name_at_once_one_gets_it(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as other:
        nodes = [Users(one), Users(other)]
        async with asyncio.timeout(LIMIT):
            results = await asyncio.gather(
                *(users.guest(name) for name in ("maria", "MARIA") for users in nodes * 5),
                return_exceptions=True,
            )
        assert sum(isinstance(result, User) for result in results) == 1
        assert sum(isinstance(result, NameTaken) for result in results) == 19


async def test_of_many_who_want_a_name_that_just_ran_out_one_gets_it(
    database_url: str, clock: list[int]
) -> None:
    async with opened(database_url) as one, opened(database_url) as other:
        nodes = [Users(one), Users(other)]
        old = await nodes[0].guest("maria")
        clock[0] = HOUR
        async with asyncio.timeout(LIMIT):
            results = await asyncio.gather(
                *(users.guest("maria") for users in nodes * 5), return_exceptions=True
            )
        [made] = [result for result in results if isinstance(result, User)]
        assert made.id != old.id
        assert sum(isinstance(result, NameTaken) for result in results) == 9


# --- Site users


async def test_a_site_user_is_made_once(users: Users) -> None:
    maria = await users.site_user("maria")
    assert (maria.name, maria.kind) == ("maria", "site")
    assert await users.site_user("maria") == maria
    assert await users.site_user("MARIA") == maria
    with pytest.raises(NameRefused):
        await users.site_user("maria\n")


async def test_a_guest_can_never_take_a_site_users_name(users: Users, clock: list[int]) -> None:
    maria = await users.site_user("maria")
    session = await users.open_session(maria, 1)
    await users.sign_out(session)
    clock[0] = 10_000 * HOUR
    with pytest.raises(NameTaken):
        await users.guest("Maria")
    assert await users.site_user("maria") == maria


async def test_a_site_user_takes_the_name_from_a_guest(users: Users) -> None:
    guest = await users.guest("maria")
    session = await users.open_session(guest, 1)
    site = await users.site_user("Maria")
    assert (site.name, site.kind) == ("Maria", "site")
    assert site.id != guest.id
    assert await name_of(users, guest) == f"maria~{guest.id}"
    assert await users.session(session.sid) is None
    assert await users.site_user("maria") == site


async def test_the_revocation_is_there_for_the_ticker(users: Users) -> None:
    guest = await users.guest("maria")
    sids = {(await users.open_session(guest, 1)).sid for _ in range(2)}
    await users.site_user("maria")
    rows = await users.database.rows(
        f"SELECT sid FROM sessions WHERE revoked_at <= {users.database.clock}"
    )
    assert {sid for (sid,) in rows} == sids


async def test_a_site_user_gets_the_name_of_a_guest_that_is_gone(users: Users) -> None:
    guest = await users.guest("maria")
    await users.sign_out(await users.open_session(guest, 1))
    site = await users.site_user("maria")
    assert site.id != guest.id
    assert await name_of(users, guest) == "maria"


async def test_a_guest_that_was_renamed_holds_and_frees_its_new_name(users: Users) -> None:
    guest = await users.guest("maria")
    await users.site_user("maria")
    new_name = f"maria~{guest.id}"
    with pytest.raises(NameTaken):
        await users.guest(new_name)
    renamed = await users.find(guest.id)
    assert renamed is not None
    await users.sign_out(await users.open_session(renamed, 1))
    assert (await users.guest(new_name)).id != guest.id


@pytest.mark.parametrize("taken", [0, 1, 2, 9])
async def test_a_guest_that_gives_up_its_name_gets_the_next_free_one(
    users: Users, taken: int
) -> None:
    guest = await users.guest("maria")
    tails = [f"~{guest.id}", *(f"~{guest.id}~{number}" for number in range(2, 12))]
    for tail in tails[:taken]:
        await users.guest(f"MARIA{tail}")
    site = await users.site_user("maria")
    assert site.kind == "site"
    assert await name_of(users, guest) == f"maria{tails[taken]}"


@pytest.mark.parametrize("name", ["x" * 32, "😀" * 32, "a" * 28 + " bcd"])
async def test_a_name_is_shortened_to_make_place_for_the_tail(users: Users, name: str) -> None:
    guest = await users.guest(name)
    tail = f"~{guest.id}"
    short = name[: MAX_NAME - len(tail)].rstrip() + tail
    await users.site_user(name)
    assert await name_of(users, guest) == short
    assert len(short) <= MAX_NAME
    assert checked(short) == short


async def test_a_shortened_name_that_is_taken_gets_a_longer_tail(users: Users) -> None:
    guest = await users.guest("x" * 32)
    await users.guest(("x" * 32)[: MAX_NAME - len(f"~{guest.id}")] + f"~{guest.id}")
    await users.site_user("x" * 32)
    tail = f"~{guest.id}~2"
    assert await name_of(users, guest) == "x" * (MAX_NAME - len(tail)) + tail


async def test_many_that_ask_for_a_site_user_at_once_get_the_same(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as other:
        nodes = [Users(one), Users(other)]
        guest = await nodes[0].guest("maria")
        async with asyncio.timeout(LIMIT):
            found = await asyncio.gather(*(users.site_user("maria") for users in nodes * 5))
        assert len(set(found)) == 1
        assert await name_of(nodes[0], guest) == f"maria~{guest.id}"


async def test_guests_and_a_site_user_that_race_for_a_name_leave_it_to_the_site(
    database_url: str,
) -> None:
    async with opened(database_url) as one, opened(database_url) as other:
        nodes = [Users(one), Users(other)]
        async with asyncio.timeout(LIMIT):
            for number in range(5):
                name = f"maria-{number}"
                results = await asyncio.gather(
                    nodes[0].guest(name),
                    nodes[1].site_user(name),
                    nodes[1].guest(name),
                    return_exceptions=True,
                )
                site = results[1]
                assert isinstance(site, User) and site.kind == "site"
                assert await nodes[0].site_user(name) == site
                for guest in (results[0], results[2]):
                    if isinstance(guest, User):
                        assert await name_of(nodes[0], guest) == f"{name}~{guest.id}"
                    else:
                        assert isinstance(guest, NameTaken)


# --- Sessions


async def test_a_session_is_good_until_it_runs_out(users: Users, clock: list[int]) -> None:
    maria = await users.guest("maria")
    session = await users.open_session(maria, 336)
    found = await users.session(session.sid)
    assert found == session
    assert session.expires_at - session.created_at == 336 * HOUR
    assert session.user == maria
    clock[0] = 335 * HOUR
    assert await users.session(session.sid) is not None
    clock[0] = 336 * HOUR + 1_000
    assert await users.session(session.sid) is None


async def test_sids_are_long_and_never_the_same(users: Users) -> None:
    maria = await users.guest("maria")
    sids = {(await users.open_session(maria, 1)).sid for _ in range(5)}
    assert len(sids) == 5
    assert all(len(sid) >= 24 for sid in sids)


@pytest.mark.parametrize("sid", ["", "nothing", "' OR 1=1 --", "x" * 5_000])
async def test_a_sid_that_is_not_there_opens_nothing(users: Users, sid: str) -> None:
    await users.open_session(await users.guest("maria"), 1)
    assert await users.session(sid) is None


async def test_signing_out_ends_one_session_for_good(users: Users) -> None:
    maria = await users.site_user("maria")
    one, other = [await users.open_session(maria, 1) for _ in range(2)]
    await users.sign_out(one)
    assert await users.session(one.sid) is None
    assert await users.session(other.sid) is not None
    await users.renew(one, 1)
    assert await users.session(one.sid) is None


async def test_a_renewed_session_lasts_its_whole_life_again(users: Users, clock: list[int]) -> None:
    session = await users.open_session(await users.guest("maria"), 10)
    clock[0] = 9 * HOUR
    await users.renew(session, 10)
    clock[0] = 18 * HOUR
    renewed = await users.session(session.sid)
    assert renewed is not None
    assert renewed.expires_at - renewed.created_at == pytest.approx(10 * HOUR, abs=1_000)
    assert renewed.expires_at > session.expires_at
    with pytest.raises(NameTaken):
        await users.guest("maria")
    clock[0] = 19 * HOUR + 1_000
    assert await users.session(session.sid) is None


async def test_a_disabled_user_has_no_session(users: Users) -> None:
    maria = await users.site_user("maria")
    session = await users.open_session(maria, 1)
    await change(users.database, "UPDATE users SET disabled_at = 5 WHERE id = :id", id=maria.id)
    assert await users.session(session.sid) is None
    found = await users.find(maria.id)
    assert found is not None and found.disabled_at == 5
    assert (await users.site_user("maria")).disabled_at == 5
