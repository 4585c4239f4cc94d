"""Typing and read markers between two processes: who is told, and who is not."""

from __future__ import annotations

from typing import Any

from chat.live.hints import Hints
from chat.live.room import Room
from tests.live import Bells, Guest, node

MARIA, JON, ANA = 7, 8, 9


def told(*guests: Guest) -> list[list[Any]]:
    """Return what typing and read frames each was told, oldest first."""
    return [
        [
            (one["type"], one["user"]["id"], one.get("seq"))
            for one in guest.asides
            if one["type"] in ("typing", "read")
        ]
        for guest in guests
    ]


async def test_typing_is_told_to_everybody_else_on_every_node(sqlite_url: str) -> None:
    bells = Bells()
    async with node(sqlite_url, bells, "node-a") as a, node(sqlite_url, bells, "node-b") as b:
        first, tab, jon = [await a.join(user_id=one) for one in (MARIA, MARIA, JON)]
        far_tab, ana = [await b.join(user_id=one) for one in (MARIA, ANA)]
        a.hub.hints.typing(await a.room(), first.person)
        bells.tell_all()
        typed = [("typing", MARIA, None)]
        assert told(first, tab, jon, far_tab, ana) == [[], [], typed, [], typed]


async def test_a_read_marker_is_told_to_the_users_other_connections_only(sqlite_url: str) -> None:
    bells = Bells()
    async with node(sqlite_url, bells, "node-a") as a, node(sqlite_url, bells, "node-b") as b:
        first, tab, jon = [await a.join(user_id=one) for one in (MARIA, MARIA, JON)]
        far_tab, ana = [await b.join(user_id=one) for one in (MARIA, ANA)]
        a.hub.hints.read(await a.room(), first.person, 3, first)
        bells.tell_all()
        read = [("read", MARIA, 3)]
        assert told(first, tab, jon, far_tab, ana) == [[], read, [], read, []]


async def test_in_a_direct_room_the_other_one_sees_how_far_one_has_read(sqlite_url: str) -> None:
    bells = Bells()
    async with node(sqlite_url, bells, "node-a") as a, node(sqlite_url, bells, "node-b") as b:
        maria = await a.join(f"dm.{MARIA}.{JON}", user_id=MARIA)
        jon = await b.join(f"dm.{MARIA}.{JON}", user_id=JON)
        a.hub.hints.read(maria.cursor.room, maria.person, 5, maria)
        bells.tell_all()
        assert told(maria, jon) == [[], [("read", MARIA, 5)]]


def test_what_is_told_of_a_room_that_is_not_open_here_is_passed_over() -> None:
    asked: list[int] = []

    def find(room_id: int) -> Room | None:
        asked.append(room_id)
        return None

    hints = Hints("node-a", find, lambda text: None)
    hints.hear('typing node-b [5,{"id":7,"name":"maria"}]')
    hints.hear('read node-b [6,{"id":7,"name":"maria"},3]')
    hints.hear("read node-b nonsense")
    hints.hear('typing node-a [7,{"id":7,"name":"maria"}]')  # its own
    assert asked == [5, 6]
