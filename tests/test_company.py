"""What members are told of each other: the picture first, then what changed, never too often."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat.live import company as module
from chat.live.company import MAX_CHANGES, PICTURE_USERS, Company
from chat.live.presence import Crowd, Here
from chat.protocol import Person, SharedText
from tests.relays import until

LOBBY = 3
LONG = 3_600.0  # seconds: what waits for its end is not told in a test


class Guest:
    """A member that is sent what waits for it when the test says so."""

    def __init__(self, person: Person, *, prompt: bool = True) -> None:
        self.person = person
        # Whether all is sent at once.
        self.prompt = prompt
        # Whether no more frames may wait, of whatever key.
        self.full = False
        # Frames that were offered.
        self.offers = 0
        self.waiting: str | None = None
        self.sent: list[str] = []

    def aside(self, key: str, text: str, *, replace: bool = False) -> bool:
        assert key == "presence"
        self.offers += 1
        if self.full or (self.waiting is not None and not replace):
            return False
        self.waiting = text
        if self.prompt:
            self.send()
        return True

    def send(self) -> None:
        if self.waiting is not None:
            self.sent.append(self.waiting)
            self.waiting = None

    @property
    def frames(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.sent]

    @property
    def last(self) -> dict[str, Any]:
        return self.frames[-1]

    def knows(self) -> set[int]:
        """Return whom a client that keeps the picture sees there; check the counts."""
        known: set[int] = set()
        for frame in self.frames:
            if "users" in frame:
                known = {user["id"] for user in frame["users"]}
            else:
                joined, left = ({user["id"] for user in frame[k]} for k in ("joined", "left"))
                assert not joined & known and left <= known
                known = (known | joined) - left
            assert frame["count"] == len(known)
        return known


class Lobby:
    """A room of this process, with users of other processes."""

    def __init__(self) -> None:
        self.crowd = Crowd()
        self.members: set[Guest] = set()
        self.company = Company("lobby", self.who, self.members)

    def who(self) -> dict[int, Here]:
        return dict(self.crowd.rooms.get(LOBBY, {}))

    def put(self, user_id: int, connections: int = 1) -> None:
        """Let somebody be there with so many connections, as the presence knows it."""
        self.crowd.put(LOBBY, Person(user_id, f"user-{user_id}"), connections)
        self.company.ring()

    def enter(self, user_id: int, *, prompt: bool = True) -> Guest:
        guest = Guest(Person(user_id, f"user-{user_id}"), prompt=prompt)
        self.members.add(guest)
        self.put(user_id, self.crowd.connections(LOBBY, user_id) + 1)
        self.company.enter(guest)
        return guest

    def leave(self, guest: Guest) -> None:
        self.members.discard(guest)
        self.company.leave(guest)
        self.put(guest.person.id, self.crowd.connections(LOBBY, guest.person.id) - 1)


@pytest.fixture
async def lobby(monkeypatch: pytest.MonkeyPatch) -> Lobby:
    """A room where the test itself flushes."""
    monkeypatch.setattr(module, "INTERVAL", LONG)
    return Lobby()


def person(user_id: int) -> dict[str, Any]:
    return {"id": user_id, "name": f"user-{user_id}"}


async def test_the_first_sees_oneself(lobby: Lobby) -> None:
    maria = lobby.enter(7)
    lobby.company.flush()
    picture = {"type": "presence", "room": "lobby", "count": 1, "users": [person(7)]}
    assert maria.frames == [picture]


async def test_newcomers_get_the_picture_and_the_others_the_change(lobby: Lobby) -> None:
    lobby.put(12)  # on another node
    maria = lobby.enter(7)
    lobby.company.flush()
    juan = lobby.enter(13)
    lobby.company.flush()
    change = {"type": "presence", "room": "lobby", "count": 3, "joined": [person(13)], "left": []}
    assert maria.last == change
    assert [frame["count"] for frame in juan.frames] == [3]
    assert juan.knows() == maria.knows() == {7, 12, 13}
    lobby.leave(juan)
    lobby.put(12, 0)
    lobby.company.flush()
    assert maria.last["left"] == [person(12), person(13)] and maria.last["joined"] == []
    assert len(juan.frames) == 1


async def test_all_share_one_text(lobby: Lobby) -> None:
    old = [lobby.enter(number) for number in range(1, 6)]
    lobby.company.flush()
    new = [lobby.enter(number) for number in range(6, 11)]
    lobby.company.flush()
    texts = {id(guest.sent[-1]) for guest in old}, {id(guest.sent[-1]) for guest in new}
    assert [len(one) for one in texts] == [1, 1]
    assert all(isinstance(guest.sent[-1], SharedText) for guest in [*old, *new])


async def test_a_second_tab_is_nobody_new(lobby: Lobby) -> None:
    maria = lobby.enter(7)
    lobby.company.flush()
    again = lobby.enter(7)
    lobby.company.flush()
    assert len(maria.frames) == 1
    assert again.knows() == {7}
    lobby.leave(maria)
    lobby.company.flush()
    assert len(again.frames) == 1


async def test_who_comes_and_goes_in_between_is_not_told(lobby: Lobby) -> None:
    maria, juan = lobby.enter(7), lobby.enter(12)
    lobby.company.flush()
    lobby.leave(juan)
    back = lobby.enter(12)
    short = lobby.enter(13)
    lobby.leave(short)
    lobby.company.flush()
    assert len(maria.frames) == 1
    assert back.knows() == {7, 12}
    assert short.frames == []


async def test_a_flush_without_news_tells_nothing(lobby: Lobby) -> None:
    maria = lobby.enter(7)
    for _ in range(3):
        lobby.company.flush()
    assert len(maria.frames) == 1


async def test_a_frame_that_still_waits_becomes_the_picture(lobby: Lobby) -> None:
    maria = lobby.enter(7)
    slow = lobby.enter(12, prompt=False)
    lobby.company.flush()
    slow.send()
    for newcomer in (13, 14, 15):
        lobby.put(newcomer)
        lobby.company.flush()
    lobby.put(14, 0)
    lobby.company.flush()
    slow.send()
    assert ["users" in frame for frame in slow.frames] == [True, True]
    assert slow.knows() == maria.knows() == {7, 12, 13, 15}
    lobby.put(16)
    lobby.company.flush()
    slow.send()
    assert slow.last["joined"] == [person(16)]


async def test_a_picture_that_still_waits_becomes_the_newer_one(lobby: Lobby) -> None:
    slow = lobby.enter(12, prompt=False)
    lobby.company.flush()
    lobby.put(13)
    lobby.company.flush()
    slow.send()
    assert len(slow.frames) == 1
    assert slow.knows() == {12, 13}


async def test_a_member_that_can_take_nothing_gets_the_picture_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    lobby = Lobby()
    stuck = lobby.enter(7)
    await until(lambda: len(stuck.frames) == 1)
    stuck.full = True
    lobby.put(12)
    lobby.company.flush()
    lobby.put(13)
    lobby.company.flush()
    lobby.put(14)
    # Without anything new, it is tried again and again.
    await until(lambda: stuck.offers > 10)
    assert len(stuck.frames) == 1
    stuck.full = False
    await until(lambda: len(stuck.frames) == 2)
    assert stuck.knows() == {7, 12, 13, 14}
    lobby.company.close()


@pytest.mark.parametrize("more", [0, 1])
async def test_many_changes_are_a_picture_instead(lobby: Lobby, more: int) -> None:
    maria = lobby.enter(1_000)
    lobby.company.flush()
    for number in range(1, MAX_CHANGES + more + 1):
        lobby.put(number)
    lobby.company.flush()
    assert ("users" in maria.last) == bool(more)
    assert maria.last["count"] == MAX_CHANGES + more + 1


async def test_a_picture_shows_a_hundred_and_counts_all(lobby: Lobby) -> None:
    for number in range(1, 251):
        lobby.put(number)
    maria = lobby.enter(1_000)
    lobby.company.flush()
    assert maria.last["count"] == 251
    shown = [user["id"] for user in maria.last["users"]]
    assert len(shown) == len(set(shown)) == PICTURE_USERS
    assert 1_000 in shown


async def test_everyone_of_a_crowd_finds_oneself_in_the_picture(lobby: Lobby) -> None:
    guests = [lobby.enter(number) for number in range(1, 351)]
    tabs = [lobby.enter(number) for number in range(1, 31)]
    lobby.company.flush()
    for guest in [*guests, *tabs]:
        [picture] = guest.frames
        assert picture["count"] == 350
        shown = [user["id"] for user in picture["users"]]
        assert len(shown) == len(set(shown)) == PICTURE_USERS
        assert guest.person.id in shown
    assert len({id(guest.sent[-1]) for guest in guests}) <= 4
    # And once more, where so much changed that all get the picture.
    for number in range(1_000, 1_000 + MAX_CHANGES + 1):
        lobby.put(number)
    lobby.company.flush()
    for guest in guests:
        assert guest.person.id in [user["id"] for user in guest.last["users"]]


async def test_an_empty_room_tells_nobody_and_its_next_guest_sees_all(lobby: Lobby) -> None:
    first = lobby.enter(7)
    lobby.company.flush()
    lobby.leave(first)
    lobby.put(12)
    lobby.company.flush()
    lobby.put(12, 0)
    lobby.put(13)
    next_one = lobby.enter(14)
    lobby.company.flush()
    assert next_one.knows() == {13, 14}
    lobby.put(15)
    lobby.company.flush()
    assert next_one.last["joined"] == [person(15)] and next_one.last["left"] == []


async def test_it_is_told_by_itself_at_once_and_then_folded(lobby: Lobby) -> None:
    maria = lobby.enter(7)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(maria.frames) == 1
    for number in range(10, 20):
        lobby.put(number)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(maria.frames) == 1, "the change waits for the end of the interval"
    lobby.company.close()


async def test_the_end_of_the_interval_tells_what_came_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.02)
    lobby = Lobby()
    maria = lobby.enter(7)
    await until(lambda: len(maria.frames) == 1)
    lobby.put(12)
    lobby.put(13)
    await until(lambda: maria.knows() == {7, 12, 13})
    lobby.company.close()


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "gone", "enter", "leave", "send", "jam", "flush", "flush"]),
        st.integers(1, 8),
    ),
    max_size=60,
)


@given(steps)
@settings(max_examples=200, deadline=None)
def test_in_the_end_every_member_knows_who_is_there(steps: list[tuple[str, int]]) -> None:
    async def lives() -> None:
        lobby = Lobby()
        for step, number in steps:
            guests = sorted(lobby.members, key=lambda guest: guest.person.id)
            guest = guests[number % len(guests)] if guests else None
            match step:
                case "put":
                    lobby.put(100 + number)
                case "gone":
                    lobby.put(100 + number, 0)
                case "enter":
                    lobby.enter(number, prompt=number % 2 == 0)
                case "flush":
                    lobby.company.flush()
            if guest is not None:
                match step:
                    case "leave":
                        lobby.leave(guest)
                    case "send":
                        guest.send()
                    case "jam":
                        guest.full = not guest.full
        for guest in lobby.members:
            guest.full = False
        lobby.company.flush()
        for guest in lobby.members:
            guest.send()
            assert guest.knows() == set(lobby.who())
            # Nothing was ever a change about oneself, or came before the picture.
            assert "users" in guest.frames[0]
            mine = guest.person.id
            for frame in guest.frames[1:]:
                assert all(mine != user["id"] for user in frame.get("joined", []))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "INTERVAL", LONG)
        asyncio.run(lives())
