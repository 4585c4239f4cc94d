"""Who is where: told by every process, heard by all, and true again soon whatever got lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat.live import presence as module
from chat.live.notices import Changes, Hello, Notices, Seat, Whole
from chat.live.presence import FOLD, HEARTBEAT, LOOK, PATIENCE, Crowd, Here, Presence
from chat.live.relay import Relay
from chat.live.tasks import stop
from chat.protocol import Person
from tests.relays import LIMIT, until
from tests.servers import RedisServer

MARIA, JUAN, ANA = Person(7, "maria"), Person(12, "juan"), Person(13, "ana")
LOBBY, GARDEN = 3, 4


class House:
    """Processes that hear each other; what they tell can be held back or lost."""

    def __init__(self) -> None:
        self.presences: dict[str, Presence] = {}
        # Rooms of which a process said that there may be a change, in order.
        self.changed: dict[str, list[int]] = {}
        # All that was told.
        self.texts: list[str] = []
        # Tells which of it is lost.
        self.loses: Callable[[str], bool] = lambda text: False

    def add(self, process: str) -> Presence:
        self.changed[process] = []
        one = Presence(process, self.tell, self.changed[process].append)
        self.presences[process] = one
        return one

    def tell(self, text: str) -> None:
        self.texts.append(text)
        asyncio.get_running_loop().call_soon(self._hear, text, list(self.presences.values()))

    def _hear(self, text: str, presences: list[Presence]) -> None:
        if not self.loses(text):
            for one in presences:
                one.hear(text)


async def turns(count: int = 8) -> None:
    """Let the loop do all that is due now: several rounds of telling and hearing."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def no_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are told at once, each time."""
    monkeypatch.setattr(module, "FOLD", 0.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for what takes half a minute; a slow machine is not taken for a still one."""
    monkeypatch.setattr(module, "FOLD", 0.005)
    monkeypatch.setattr(module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(module, "STILL", LIMIT)


@pytest.fixture
def house() -> House:
    return House()


@asynccontextmanager
async def running(*presences: Presence) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one.run()) for one in presences]
    try:
        yield
    finally:
        await stop(tasks)


def ids(presence: Presence, room_id: int = LOBBY) -> set[int]:
    return set(presence.who(room_id))


def test_the_people_of_a_dead_process_are_out_within_what_is_promised() -> None:
    assert PATIENCE + LOOK + FOLD < 30
    assert PATIENCE > 2 * (HEARTBEAT + LOOK)


# --- One process


async def test_a_user_with_two_tabs_is_there_once_until_the_last_one_closes(house: House) -> None:
    here = house.add("node-a")
    here.join(LOBBY, MARIA)
    here.join(LOBBY, MARIA)
    here.join(LOBBY, JUAN)
    assert here.who(LOBBY) == {7: Here(MARIA, 2), 12: Here(JUAN, 1)}
    here.leave(LOBBY, MARIA)
    assert here.who(LOBBY)[7] == Here(MARIA, 1)
    here.leave(LOBBY, MARIA)
    assert here.who(LOBBY) == {12: Here(JUAN, 1)}
    assert (here.count(LOBBY), here.count(GARDEN)) == (1, 0)
    # Only who came and who went may be new to the room.
    assert house.changed["node-a"] == [LOBBY, LOBBY, LOBBY]


async def test_rooms_are_apart(house: House) -> None:
    here = house.add("node-a")
    here.join(LOBBY, MARIA)
    here.join(GARDEN, JUAN)
    assert (ids(here, LOBBY), ids(here, GARDEN)) == ({7}, {12})
    assert house.changed["node-a"] == [LOBBY, GARDEN]


async def test_nobody_leaves_who_did_not_join(house: House) -> None:
    with pytest.raises(AssertionError):
        house.add("node-a").leave(LOBBY, MARIA)


async def test_what_is_told_of_who_is_there_is_the_callers_own(house: House) -> None:
    here = house.add("node-a")
    here.join(LOBBY, MARIA)
    here.who(LOBBY).clear()
    assert ids(here) == {7}


# --- Several processes


@pytest.mark.usefixtures("no_fold")
async def test_who_joins_and_leaves_is_heard_by_all(house: House) -> None:
    here, there = house.add("node-a"), house.add("node-b")
    here.join(LOBBY, MARIA)
    await turns()
    assert there.who(LOBBY) == {7: Here(MARIA, 1)}
    assert house.changed["node-b"] == [LOBBY]
    here.join(LOBBY, MARIA)
    await turns()
    assert there.who(LOBBY) == {7: Here(MARIA, 2)}
    assert house.changed["node-b"] == [LOBBY], "the same people are there"
    here.leave(LOBBY, MARIA)
    here.leave(LOBBY, MARIA)
    await turns()
    assert there.who(LOBBY) == {}
    assert house.changed["node-b"] == [LOBBY, LOBBY]


@pytest.mark.usefixtures("no_fold")
async def test_connections_are_added_up_over_processes(house: House) -> None:
    here, there, third = (house.add(name) for name in ("node-a", "node-b", "node-c"))
    for one in (here, here, there):
        one.join(LOBBY, MARIA)
    there.join(LOBBY, JUAN)
    await turns()
    for one in (here, there, third):
        assert one.who(LOBBY) == {7: Here(MARIA, 3), 12: Here(JUAN, 1)}
        assert one.count(LOBBY) == 2
    there.leave(LOBBY, MARIA)
    await turns()
    assert here.who(LOBBY) == {7: Here(MARIA, 2), 12: Here(JUAN, 1)}


async def test_only_what_changed_is_told_and_folded(house: House) -> None:
    here = house.add("node-a")
    house.add("node-b")
    here.join(LOBBY, MARIA)
    await turns()
    assert house.texts == ['here node-a ["changes",[[3,[[7,"maria",1]]]]]']
    for _ in range(10):
        here.join(LOBBY, JUAN)
        here.join(GARDEN, JUAN)
    here.leave(GARDEN, JUAN)
    await turns()
    assert len(house.texts) == 1, "the others wait for the end of the interval"
    await until(lambda: len(house.texts) == 2)
    assert house.texts[1] == ('here node-a ["changes",[[3,[[12,"juan",10]]],[4,[[12,"juan",9]]]]]')


@pytest.mark.usefixtures("no_fold")
async def test_more_changes_than_can_wait_are_told_as_the_whole(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CHANGES", 10)
    here, there = house.add("node-a"), house.add("node-b")
    for number in range(1, 12):
        here.join(LOBBY, Person(number, f"user-{number}"))
    await turns()
    assert [text.split('"')[1] for text in house.texts] == ["whole"]
    assert there.count(LOBBY) == 11


@pytest.mark.usefixtures("no_fold")
async def test_a_new_process_is_told_everything_at_once(house: House) -> None:
    here, there = house.add("node-a"), house.add("node-b")
    here.join(LOBBY, MARIA)
    there.join(GARDEN, JUAN)
    there.join(LOBBY, JUAN)
    await turns()
    third = house.add("node-c")
    third.join(LOBBY, ANA)
    assert ids(third) == {13}
    third.hello()
    await turns()
    for one in (here, there, third):
        assert (ids(one, LOBBY), ids(one, GARDEN)) == ({7, 12, 13}, {12})


async def test_a_crowd_of_new_processes_is_answered_together(house: House) -> None:
    here = house.add("node-a")
    for number in range(20):
        house.add(f"node-{number}").hello()
    here.join(LOBBY, MARIA)
    await until(lambda: any(text.startswith('here node-a ["whole"') for text in house.texts))
    await turns()
    assert sum(text.startswith('here node-a ["whole"') for text in house.texts) == 1
    assert all(ids(one) == {7} for one in house.presences.values())


@pytest.mark.usefixtures("no_fold")
async def test_a_process_that_says_bye_takes_its_people_with_it(house: House) -> None:
    here, there = house.add("node-a"), house.add("node-b")
    here.join(LOBBY, MARIA)
    there.join(LOBBY, MARIA)
    there.join(GARDEN, JUAN)
    await turns()
    house.changed["node-a"].clear()
    there.bye()
    await turns()
    assert here.who(LOBBY) == {7: Here(MARIA, 1)}
    assert here.who(GARDEN) == {}
    assert set(house.changed["node-a"]) == {LOBBY, GARDEN}
    # Its last connections go after that, and a hello of another one is not answered.
    count = len(house.texts)
    there.leave(GARDEN, JUAN)
    there.hear(Notices("node-c").write(Hello()))
    there.hello()
    await turns()
    assert len(house.texts) == count


async def test_ones_own_texts_are_nobody_elses_people(house: House) -> None:
    here = house.add("node-a")
    here.join(LOBBY, MARIA)
    here.hello()
    await turns()
    assert len(house.texts) == 2
    assert here.who(LOBBY) == {7: Here(MARIA, 1)}


# --- What is lost


@pytest.mark.usefixtures("quick")
async def test_lost_changes_are_mended_by_the_next_heartbeat(house: House) -> None:
    here, there = house.add("node-a"), house.add("node-b")
    async with running(here, there):
        here.join(LOBBY, MARIA)
        here.join(GARDEN, MARIA)
        await until(lambda: ids(there) == ids(there, GARDEN) == {7})
        house.loses = lambda text: "changes" in text
        here.join(LOBBY, JUAN)
        here.leave(GARDEN, MARIA)
        house.changed["node-b"].clear()
        await until(lambda: ids(there) == {7, 12})
        assert ids(there, GARDEN) == set(), "a room that vanished is not in the whole"
        assert set(house.changed["node-b"]) == {LOBBY, GARDEN}


@pytest.mark.usefixtures("quick")
async def test_the_people_of_a_process_that_died_are_out(house: House) -> None:
    here, there = house.add("node-a"), house.add("node-b")
    async with running(here):
        async with running(there):
            there.join(LOBBY, JUAN)
            here.join(LOBBY, MARIA)
            await until(lambda: ids(here) == {7, 12})
        house.changed["node-a"].clear()
        await until(lambda: ids(here) == {7})
        assert house.changed["node-a"] == [LOBBY]


@pytest.mark.usefixtures("quick")
async def test_a_process_that_only_beats_stays(house: House) -> None:
    here, there = house.add("node-a"), house.add("node-b")
    there.join(LOBBY, JUAN)
    async with running(here, there):
        await until(lambda: ids(here) == {12})
        house.changed["node-a"].clear()
        house.texts.clear()
        await until(lambda: sum('"whole"' in text for text in house.texts) > 50)
        assert ids(here) == {12}
        assert house.changed["node-a"] == [], "nothing that is said again is a change"


@pytest.mark.usefixtures("quick")
async def test_after_standing_still_nobody_is_missed_unheard(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped finds that all others were silent; it asks them first."""
    here, there = house.add("node-a"), house.add("node-b")
    there.join(LOBBY, JUAN)
    async with running(here, there):
        await until(lambda: ids(here) == {12})
        house.changed["node-a"].clear()
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + 2 * LIMIT)
        house.texts.clear()
        await until(lambda: any("hello" in text for text in house.texts))
        await until(lambda: sum('"whole"' in text for text in house.texts) > 50)
        assert house.changed["node-a"] == []
        monkeypatch.undo()


@pytest.mark.usefixtures("quick")
async def test_after_a_lost_relay_everything_is_told_and_asked_for_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", LIMIT * 2)
    lost = [True]
    here = Presence("node-a", house.tell, lambda room_id: None, lambda: lost[0])
    house.presences["node-a"] = here
    there = house.add("node-b")
    house.loses = lambda text: lost[0]
    async with running(here, there):
        here.join(LOBBY, MARIA)
        there.join(LOBBY, JUAN)
        await until(lambda: sum('"whole"' in text for text in house.texts) == 2)
        await turns()
        assert (ids(here), ids(there)) == ({7}, {12})
        lost[0] = False
        await until(lambda: ids(here) == ids(there) == {7, 12})


@pytest.mark.usefixtures("no_fold")
async def test_a_whole_of_which_a_part_is_lost_changes_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.live.notices.SEATS_PER_TEXT", 2)
    here, there = house.add("node-a"), house.add("node-b")
    for number in range(1, 6):
        here.join(LOBBY, Person(number, "u"))
    await turns()
    assert ids(there) == {1, 2, 3, 4, 5}
    house.loses = lambda text: "changes" in text
    here.leave(LOBBY, Person(5, "u"))
    here.join(LOBBY, Person(6, "u"))
    await turns()
    for lost in ('"whole",0', '"whole",1', '"whole",2'):
        house.loses = lambda text, lost=lost: lost in text  # type: ignore[misc]
        here.hello()
        await turns()
        assert ids(there) == {1, 2, 3, 4, 5}, lost
    # Nor do the parts of two wholes make one.
    house.loses = lambda text: '"whole",1' in text
    here.hello()
    await turns()
    house.loses = lambda text: "changes" in text or '"whole",0' in text
    here.leave(LOBBY, Person(1, "u"))
    here.join(LOBBY, Person(7, "u"))
    here.hello()
    await turns()
    assert ids(there) == {1, 2, 3, 4, 5}
    house.loses = lambda text: False
    here.hello()
    await turns()
    assert ids(there) == {2, 3, 4, 6, 7}


@given(seed=st.integers(0, 2**32), losing=st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_whatever_gets_lost_all_agree_after_a_heartbeat(seed: int, losing: float) -> None:
    async def lives() -> None:
        chance = random.Random(seed)
        house = House()
        names = ("node-a", "node-b", "node-c")
        presences = [house.add(name) for name in names]
        house.loses = lambda text: chance.random() < losing
        joined: list[tuple[Presence, int, Person]] = []
        for _ in range(60):
            if joined and chance.random() < 0.45:
                one, room_id, person = joined.pop(chance.randrange(len(joined)))
                one.leave(room_id, person)
            else:
                one = chance.choice(presences)
                room_id = chance.choice((LOBBY, GARDEN))
                person = chance.choice((MARIA, JUAN, ANA))
                one.join(room_id, person)
                joined.append((one, room_id, person))
            await turns(chance.randrange(4))
            if chance.random() < 0.1:
                chance.choice(presences).hello()
        await turns()
        house.loses = lambda text: False
        for one in presences:
            one.hello()
        await turns()
        for room_id in (LOBBY, GARDEN):
            truth: dict[int, Here] = {}
            for _, where, person in joined:
                if where == room_id:
                    known = truth.get(person.id)
                    truth[person.id] = Here(person, known.connections + 1 if known else 1)
            for one in presences:
                assert one.who(room_id) == truth
                assert one.count(room_id) == len(truth)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FOLD", 0.0)
        patch.setattr("chat.live.notices.SEATS_PER_TEXT", 2)
        asyncio.run(lives())


# --- Bounds, and texts of strangers


@pytest.mark.usefixtures("no_fold")
async def test_a_large_house_is_told_in_pieces(house: House) -> None:
    here, there = house.add("node-a"), house.add("node-b")
    for number in range(1, 2_501):
        here.join(LOBBY, Person(number, f"user-{number}"))
        here.join(GARDEN + number, Person(1, "one"))
    here.hello()
    await turns()
    assert there.count(LOBBY) == 2_500
    assert ids(there, GARDEN + 2_500) == {1}
    wholes = [text for text in house.texts if text.startswith('here node-a ["whole"')]
    assert len(wholes) == 5
    assert max(len(text) for text in wholes) < 256 * 1024


async def test_more_people_than_can_be_kept_are_passed_over(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_SEATS", 10)
    here, there, third = house.add("node-a"), Notices("node-b"), Notices("node-c")
    crowd = [Seat(number, "u", 1) for number in range(1, 9)]
    here.hear(there.write(Changes([(LOBBY, crowd)])))
    here.hear(third.write(Changes([(GARDEN, crowd)])))
    assert (here.count(LOBBY), here.count(GARDEN)) == (8, 2)
    assert "more people" in caplog.text
    # Who is known may still change and leave, and that makes room.
    here.hear(there.write(Changes([(LOBBY, [Seat(1, "u", 5), Seat(2, "u", 0)])])))
    assert here.who(LOBBY)[1].connections == 5
    here.hear(third.write(Changes([(GARDEN, crowd)])))
    assert (here.count(LOBBY), here.count(GARDEN)) == (7, 3)
    here.hear(there.write(Whole(0, 1, [(LOBBY, crowd)])))
    assert here.count(LOBBY) + here.count(GARDEN) <= 10


async def test_more_processes_than_can_be_kept_are_passed_over(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_PROCESSES", 2)
    here = house.add("node-a")
    for number in range(1, 5):
        text = Notices(f"other-{number}").write(Whole(0, 1, [(LOBBY, [Seat(number, "u", 1)])]))
        here.hear(text)
    assert ids(here) == {1, 2}
    assert "more processes" in caplog.text
    here.hear('here other-1 ["bye"]')
    here.hear(text)
    assert ids(here) == {2, 4}


async def test_a_text_that_makes_no_sense_changes_nothing(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    here = house.add("node-a")
    here.join(LOBBY, MARIA)
    for text in ("here ", "here x", "here node-b {}", 'here node-b ["party",[]]'):
        here.hear(text)
    here.hear('here node-b ["whole",7,9,[]]')
    here.hear('here node-b ["bye"]')
    assert ids(here) == {7}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_crowd_holds_nothing_of_who_is_gone() -> None:
    crowd = Crowd()
    assert crowd.put(LOBBY, MARIA, 1)
    assert not crowd.put(LOBBY, MARIA, 2)
    assert crowd.put(LOBBY, JUAN, 1)
    assert (crowd.seats, crowd.connections(LOBBY, 7), crowd.connections(GARDEN, 7)) == (2, 2, 0)
    assert crowd.put(LOBBY, MARIA, 0)
    assert not crowd.put(LOBBY, MARIA, 0)
    assert not crowd.put(GARDEN, MARIA, 0)
    assert crowd.put(LOBBY, JUAN, 0)
    assert (crowd.rooms, crowd.seats) == ({}, 0)


# --- Over a real relay


@asynccontextmanager
async def related(url: str, process: str) -> AsyncIterator[tuple[Presence, Relay]]:
    relay = Relay(
        url,
        prefix="test",
        process=process,
        on_gap=lambda channel: None,
        on_control=lambda text: presence.hear(text),
    )
    presence = Presence(process, relay.tell, lambda room_id: None)
    await relay.open()
    try:
        async with running(presence):
            yield presence, relay
    finally:
        async with asyncio.timeout(LIMIT):
            await relay.close()


async def test_a_process_alone_hears_itself_and_nobody_else(relay_url: str) -> None:
    async with related(relay_url, "node-a") as (here, relay):
        here.join(LOBBY, MARIA)
        here.join(LOBBY, MARIA)
        await until(lambda: relay.published >= 2)
        await turns()
        assert here.who(LOBBY) == {7: Here(MARIA, 2)}


async def test_two_processes_see_each_other_over_redis(own_redis: RedisServer) -> None:
    async with related(own_redis.url, "node-a") as (here, relay):
        here.join(LOBBY, MARIA)
        async with related(own_redis.url, "node-b") as (there, _):
            there.join(LOBBY, JUAN)
            await until(lambda: ids(here) == ids(there) == {7, 12})
            there.leave(LOBBY, JUAN)
            await until(lambda: ids(here) == ids(there) == {7})
            there.join(GARDEN, JUAN)
            await until(lambda: ids(here, GARDEN) == {12})
            there.bye()
            await until(lambda: ids(here, GARDEN) == set())
        assert not relay.lost
