"""The log on both databases: no seq skipped or given twice, each id once, and rooms as seen."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import tempfile
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat.clock import now, rfc3339
from chat.errors import IdConflict, Unavailable
from chat.log.database import Database
from chat.log.heads import REVOCATION_OVERLAP
from chat.log.members import Mark, Members
from chat.log.repository import Repository, Room
from chat.log.statements import Draft
from chat.log.users import User, Users
from chat.protocol import Person
from tests.storage import (
    JUAN,
    LIMIT,
    MARIA,
    change,
    draft,
    log_of,
    opened,
    repositories,
    seqs,
    stored,
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with opened(database_url) as database:
        yield database


@pytest.fixture
def log(database: Database) -> Repository:
    return Repository(database)


@pytest.fixture
async def lobby(log: Repository) -> Room:
    return await log.make_room("lobby")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time of the log: the test sets the one number in the list."""
    times = [1_000]
    monkeypatch.setattr("chat.log.repository.now", lambda: times[0])
    return times


async def the_head(log: Repository, room: Room) -> tuple[str, int, int]:
    return (await log.heads([room.id], 0)).rooms[room.id]


# --- Rooms


async def test_a_room_is_made_once_and_begins_empty(log: Repository) -> None:
    assert await log.find_room("lobby") is None
    made = await log.make_room("lobby")
    assert (made.name, made.first_seq, made.last_seq) == ("lobby", 1, 0)
    assert await log.make_room("lobby") == await log.find_room("lobby") == made


async def test_names_of_rooms_are_case_sensitive(log: Repository) -> None:
    rooms = [await log.make_room(name) for name in ("lobby", "Lobby", "LOBBY")]
    assert len({room.id for room in rooms}) == 3
    assert await log.find_room("lOBBY") is None


async def test_each_room_has_an_epoch_of_its_own(log: Repository) -> None:
    rooms = [await log.make_room(f"room-{number}") for number in range(5)]
    assert len({room.epoch for room in rooms}) == 5
    assert all(len(room.epoch) >= 12 for room in rooms)


async def test_the_id_of_a_room_that_is_gone_is_given_to_no_other(log: Repository) -> None:
    gone = [await log.make_room(name) for name in "abc"]
    # As where an older state is put back: its counters go back, too.
    await change(log.database, "DELETE FROM rooms")
    if log.database.sqlite:
        await change(log.database, "DELETE FROM sqlite_sequence")
    else:
        await log.database.rows("SELECT setval(pg_get_serial_sequence('rooms', 'id'), 1, false)")
    made = [await log.make_room(name) for name in "def"]
    assert len({room.id for room in gone + made}) == 6
    [refused] = await log.append([draft(gone[0])])
    assert isinstance(refused, Unavailable)


async def test_a_room_that_vanishes_while_it_is_made_is_unavailable(
    log: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(name: str) -> None:
        return None

    monkeypatch.setattr(log, "find_room", nothing)
    with pytest.raises(Unavailable):
        await log.make_room("lobby")


async def test_a_room_that_all_make_at_once_is_one(database_url: str) -> None:
    async with repositories(database_url) as logs, asyncio.timeout(LIMIT):
        made = await asyncio.gather(*(log.make_room("lobby") for log in logs * 4))
    assert len(set(made)) == 1


async def test_the_deployment_has_one_id_for_all(database_url: str) -> None:
    async with repositories(database_url) as logs:
        first, second = [await log.deployment() for log in logs]
    assert first == second
    assert len(first) >= 12


async def test_two_databases_are_two_deployments(sqlite_url: str, postgres_url: str) -> None:
    async with repositories(sqlite_url, 1) as [one], repositories(postgres_url, 1) as [other]:
        assert await one.deployment() != await other.deployment()


async def test_the_rooms_of_a_user_have_messages_and_are_latest_first(
    log: Repository, clock: list[int]
) -> None:
    for name in ("b", "a", "c", "empty"):
        await log.make_room(name)
    for at, name in ((1_000, "c"), (2_000, "b"), (2_000, "a"), (3_000, "c")):
        clock[0] = at
        await log.append([draft(await log.make_room(name))])
    rooms, more = await log.rooms_of(MARIA.id, None, 200)
    assert [room[1:4] for room in rooms] == [("c", 2, 3_000), ("a", 1, 2_000), ("b", 1, 2_000)]
    assert not more


async def test_only_its_two_users_see_a_direct_room(log: Repository) -> None:
    for name in ("lobby", "dm.7.12", "dm.7.13", "dm.12.13"):
        await log.append([draft(await log.make_room(name))])

    async def seen(user_id: int) -> set[str]:
        return {room.name for room in (await log.rooms_of(user_id, None, 200))[0]}

    assert await seen(7) == {"lobby", "dm.7.12", "dm.7.13"}
    assert await seen(12) == {"lobby", "dm.7.12", "dm.12.13"}
    assert await seen(1) == {"lobby"}


async def test_pages_of_rooms_join_without_a_gap(log: Repository, clock: list[int]) -> None:
    names = [f"room-{number}" for number in range(7)] + ["dm.7.12", "dm.8.12"]
    for number, name in enumerate(names):
        clock[0] = 1_000 + number // 3  # several at the same millisecond
        await log.append([draft(await log.make_room(name))])
    whole = [room.name for room in (await log.rooms_of(MARIA.id, None, 200))[0]]
    assert len(whole) == 8
    for limit in (1, 2, 3, 8):
        pages: list[str] = []
        more = True
        while more:
            after = pages[-1] if pages else None
            rooms, more = await log.rooms_of(MARIA.id, after, limit)
            assert len(rooms) == limit or not more
            pages += [room.name for room in rooms]
        assert pages == whole


async def test_a_list_knows_how_far_its_user_has_read_and_who_the_other_one_is(
    log: Repository,
) -> None:
    users, members = Users(log.database), Members(log.database)
    maria, jon = await users.site_user("maria"), await users.site_user("jon")
    lobby, direct = await log.make_room("lobby"), await log.make_room(f"dm.{maria.id}.{jon.id}")
    for room in (lobby, direct):
        await log.append([draft(room), draft(room)])
    await members.save([Mark(direct.id, maria.id, 1, 2), Mark(lobby.id, jon.id, 1, 1)])

    async def seen(user: User) -> dict[str, tuple[int, Person | None]]:
        rooms, _ = await log.rooms_of(user.id, None, 200)
        return {room.name: (room.last_read_seq, room.other) for room in rooms}

    assert await seen(maria) == {"lobby": (0, None), direct.name: (2, jon.person)}
    assert await seen(jon) == {"lobby": (1, None), direct.name: (0, maria.person)}


async def test_there_is_nothing_after_a_room_that_is_not_there(log: Repository) -> None:
    await log.append([draft(await log.make_room("lobby"))])
    assert await log.rooms_of(MARIA.id, "nowhere", 200) == ([], False)


# --- Appending


async def test_messages_get_the_next_seqs_in_their_order(log: Repository, lobby: Room) -> None:
    drafts = [draft(lobby, text) for text in "abc"]
    assert seqs(await log.append(drafts)) == [1, 2, 3]
    assert seqs(await log.append([draft(lobby, text) for text in "de"])) == [4, 5]
    assert [one["text"] for one in await log_of(log, lobby)] == list("abcde")
    assert await the_head(log, lobby) == (lobby.epoch, 1, 5)


async def test_what_is_answered_is_what_is_read_later(log: Repository, lobby: Room) -> None:
    drafts = [
        draft(lobby, 'a "quoted"\n\ttext\\ \x01 \u2028 😀', id="!~"),
        draft(lobby, "for you", receiver=JUAN, sender=Person(2**53 - 1, "Zoë 李")),
    ]
    results = [stored(one) for one in await log.append(drafts)]
    assert [one.entry for one in results] == await log.read(lobby.id, 0, 10)
    assert all(one.epoch == lobby.epoch and not one.duplicate for one in results)
    first, second = await log_of(log, lobby)
    assert first == {
        "seq": 1,
        "id": "!~",
        "sender": {"id": 7, "name": "maria"},
        "receiver": None,
        "text": drafts[0].text,
        "sent_at": rfc3339(results[0].sent_at),
    }
    assert second["sender"] == {"id": 2**53 - 1, "name": "Zoë 李"}
    assert second["receiver"] == {"id": 12, "name": "juan"}


async def test_one_batch_serves_several_rooms_each_with_its_own_seqs(log: Repository) -> None:
    rooms = [await log.make_room(name) for name in "abc"]
    await log.append([draft(rooms[1])] * 1)
    order = [2, 0, 1, 0, 2, 2, 1]
    results = await log.append([draft(rooms[number], str(n)) for n, number in enumerate(order)])
    assert seqs(results) == [1, 1, 2, 2, 2, 3, 3]
    assert [stored(one).epoch for one in results] == [rooms[number].epoch for number in order]
    assert [one["text"] for one in await log_of(log, rooms[2])] == ["0", "4", "5"]
    heads = (await log.heads([room.id for room in rooms], 0)).rooms
    assert {room_id: head[2] for room_id, head in heads.items()} == {
        rooms[0].id: 2,
        rooms[1].id: 3,
        rooms[2].id: 3,
    }


async def test_a_repeated_id_is_answered_with_the_first_message(
    log: Repository, lobby: Room, clock: list[int]
) -> None:
    one, two = draft(lobby, "a"), draft(lobby, "b")
    await log.append([one, two])
    clock[0] += 5_000
    results = [stored(one) for one in await log.append([two, draft(lobby, "c"), one])]
    assert [(one.seq, one.duplicate, one.sent_at) for one in results] == [
        (2, True, 1_000),
        (3, False, 6_000),
        (1, True, 1_000),
    ]
    assert results[0].entry is None and results[1].entry is not None
    assert len(await log_of(log, lobby)) == 3


async def test_a_batch_of_duplicates_alone_moves_no_head(log: Repository, lobby: Room) -> None:
    one = draft(lobby)
    await log.append([one])
    before = await log.rooms_of(MARIA.id, None, 10)
    assert seqs(await log.append([one, one])) == [1, 1]
    assert await log.rooms_of(MARIA.id, None, 10) == before


async def test_an_id_that_comes_twice_in_a_batch_is_stored_once(
    log: Repository, lobby: Room
) -> None:
    one, two = draft(lobby, "a"), draft(lobby, "b")
    results = [stored(one) for one in await log.append([one, one, two, one])]
    assert [(one.seq, one.duplicate) for one in results] == [
        (1, False),
        (1, True),
        (2, False),
        (1, True),
    ]
    assert [one.entry is None for one in results] == [False, True, False, True]


OTHERS = [
    pytest.param("other", None, id="another text"),
    pytest.param("hola", JUAN, id="another receiver"),
    pytest.param("HOLA", None, id="another case"),
    pytest.param("hola ", None, id="one more space"),
]


@pytest.mark.parametrize(("text", "receiver"), OTHERS)
@pytest.mark.parametrize("one_batch", [True, False])
async def test_an_id_with_another_text_or_receiver_is_a_conflict_and_stores_nothing(
    log: Repository, lobby: Room, text: str, receiver: Person | None, one_batch: bool
) -> None:
    first = draft(lobby, "hola", id="same")
    second = draft(lobby, text, id="same", receiver=receiver)
    third = draft(lobby, "third")
    if one_batch:
        results = await log.append([first, second, third])
    else:
        results = [*await log.append([first]), *await log.append([second, third])]
    assert isinstance(results[1], IdConflict)
    assert seqs([results[0], results[2]]) == [1, 2]
    assert [one["text"] for one in await log_of(log, lobby)] == ["hola", "third"]


async def test_a_receiver_that_is_left_out_later_is_a_conflict(
    log: Repository, lobby: Room
) -> None:
    await log.append([draft(lobby, id="same", receiver=JUAN)])
    [result] = await log.append([draft(lobby, id="same")])
    assert isinstance(result, IdConflict)


async def test_an_id_belongs_to_its_room_and_sender(log: Repository, lobby: Room) -> None:
    other = await log.make_room("other")
    drafts = [
        draft(lobby, "a", id="same"),
        draft(lobby, "b", id="same", sender=JUAN),
        draft(other, "c", id="same"),
        draft(lobby, "d", id="SAME"),
    ]
    assert seqs(await log.append(drafts)) == [1, 2, 1, 3]
    assert all(stored(one).duplicate for one in await log.append(drafts))


@pytest.mark.parametrize("one_batch", [True, False])
async def test_a_new_name_between_two_tries_makes_no_conflict(
    log: Repository, lobby: Room, one_batch: bool
) -> None:
    first = draft(lobby, id="same", receiver=JUAN)
    second = draft(
        lobby, id="same", sender=Person(MARIA.id, "maria~7"), receiver=Person(JUAN.id, "juan~12")
    )
    if one_batch:
        results = await log.append([first, second])
    else:
        results = [*await log.append([first]), *await log.append([second])]
    assert [stored(one).duplicate for one in results] == [False, True]
    assert (await log_of(log, lobby))[0]["sender"]["name"] == "maria"


async def test_a_redacted_message_stays_in_its_place_without_its_text(
    log: Repository, lobby: Room
) -> None:
    one = draft(lobby, "secret", id="c-1")
    await log.append([one, draft(lobby, "b")])
    await change(log.database, "UPDATE messages SET redacted = true, text = '' WHERE seq = 1")
    first, second = await log_of(log, lobby)
    assert (first["seq"], first["text"], first["redacted"]) == (1, "", True)
    assert "redacted" not in second
    [again] = await log.append([one])
    assert (stored(again).seq, stored(again).duplicate) == (1, True)


async def test_the_text_of_a_redacted_message_is_never_read(log: Repository, lobby: Room) -> None:
    await log.append([draft(lobby, "secret")])
    await change(log.database, "UPDATE messages SET redacted = true")
    assert "secret" not in (await log.read(lobby.id, 0, 1))[0].json


async def test_times_of_a_log_never_go_backwards(
    log: Repository, lobby: Room, clock: list[int]
) -> None:
    clock[0] = 9_000
    await log.append([draft(lobby)])
    clock[0] = 2_000  # another node, whose clock is late
    [late] = await log.append([draft(lobby)])
    assert stored(late).sent_at == 9_000
    [[room], _] = await log.rooms_of(MARIA.id, None, 1)
    assert (room.last_seq, room.last_message_at) == (2, 9_000)


async def test_a_room_that_is_gone_confirms_nothing_and_the_others_go_on(
    log: Repository, lobby: Room
) -> None:
    gone = Room(lobby.id + 1_000, "gone", "epoch", 1, 5)
    results = await log.append([draft(gone), draft(lobby), draft(gone)])
    assert isinstance(results[0], Unavailable) and isinstance(results[2], Unavailable)
    assert stored(results[1]).seq == 1


async def test_a_batch_is_stored_whole_or_not_at_all(log: Repository, lobby: Room) -> None:
    await log.append([draft(lobby, "first")])
    bad = Draft(lobby.id, "bad", Person(2**70, "too wide for a column"), None, "text")
    with pytest.raises(Unavailable):
        await log.append([draft(lobby), bad])
    assert [one["text"] for one in await log_of(log, lobby)] == ["first"]
    assert await the_head(log, lobby) == (lobby.epoch, 1, 1)


async def test_a_thousand_drafts_of_a_hundred_rooms_are_one_batch(log: Repository) -> None:
    rooms = [await log.make_room(f"room-{number}") for number in range(100)]
    drafts = [draft(rooms[number % 100], str(number)) for number in range(1_000)]
    assert seqs(await log.append(drafts)) == [number // 100 + 1 for number in range(1_000)]


# --- Reading


async def test_reading_takes_what_lies_after_a_seq_oldest_first(
    log: Repository, lobby: Room
) -> None:
    other = await log.make_room("other")
    await log.append([draft(room) for _ in range(9) for room in (lobby, other)])

    async def read(after: int, limit: int) -> list[int]:
        return [one.seq for one in await log.read(lobby.id, after, limit)]

    assert await read(0, 100) == list(range(1, 10))
    assert await read(3, 2) == [4, 5]
    assert await read(8, 100) == [9]
    assert await read(9, 100) == await read(2**53 - 1, 100) == []


async def test_reading_before_takes_the_newest_and_gives_them_oldest_first(
    log: Repository, lobby: Room
) -> None:
    await log.append([draft(lobby) for _ in range(9)])

    async def read(before: int | None, limit: int) -> list[int]:
        return [one.seq for one in await log.read_before(lobby.id, before, limit)]

    assert await read(None, 3) == [7, 8, 9]
    assert await read(7, 3) == [4, 5, 6]
    assert await read(3, 50) == [1, 2]
    assert await read(1, 50) == []
    assert await read(2**53 - 1, 2) == [8, 9]


async def test_an_empty_room_reads_empty(log: Repository, lobby: Room) -> None:
    assert await log.read(lobby.id, 0, 10) == []
    assert await log.read_before(lobby.id, None, 10) == []
    assert await log.read(lobby.id + 1_000, 0, 10) == []


async def test_everything_is_there_after_a_restart(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        lobby = await log.make_room("lobby")
        one = draft(lobby, "a")
        await log.append([one, draft(lobby, "b")])
        before = await log.read(lobby.id, 0, 10)
        deployment = await log.deployment()
    async with repositories(database_url, 1) as [log]:
        found = await log.find_room("lobby")
        assert found == lobby._replace(last_seq=2)
        assert await log.read(lobby.id, 0, 10) == before
        assert await log.deployment() == deployment
        results = await log.append([one, draft(lobby, "c")])
        assert [(stored(one).seq, stored(one).duplicate) for one in results] == [
            (1, True),
            (3, False),
        ]


# --- Heads


async def test_heads_are_of_the_rooms_that_are_asked_for(log: Repository) -> None:
    rooms = [await log.make_room(name) for name in "abc"]
    await log.append([draft(rooms[0]), draft(rooms[0]), draft(rooms[2])])
    heads = await log.heads([rooms[0].id, rooms[1].id, rooms[1].id + 1_000], 0)
    assert heads.rooms == {
        rooms[0].id: (rooms[0].epoch, 1, 2),
        rooms[1].id: (rooms[1].epoch, 1, 0),
    }
    assert (heads.sids, heads.users) == ([], [])
    assert (await log.heads([], 0)).rooms == {}


async def test_heads_show_a_new_epoch_and_what_was_trimmed(log: Repository, lobby: Room) -> None:
    await log.append([draft(lobby) for _ in range(3)])
    await change(log.database, "UPDATE rooms SET epoch = 'new', first_seq = 4")
    assert await the_head(log, lobby) == ("new", 4, 3)
    [next_one] = await log.append([draft(lobby)])
    assert (stored(next_one).seq, stored(next_one).epoch) == (4, "new")


async def test_heads_tell_the_databases_own_time(log: Repository) -> None:
    first = (await log.heads([], 0)).clock
    second = (await log.heads([], first)).clock
    assert abs(first - now()) < 60_000, "milliseconds since 1970"
    assert first <= second


async def test_heads_bring_each_revoked_session_and_disabled_user(
    log: Repository, database: Database
) -> None:
    users = Users(database)
    start = (await log.heads([], 0)).clock
    maria, juan = await users.guest("maria"), await users.site_user("juan")
    kept, ended = await users.open_session(juan, 1), await users.open_session(maria, 1)
    assert (await log.heads([], start)).sids == []
    await users.sign_out(ended)
    await change(
        database, f"UPDATE users SET disabled_at = {database.clock} WHERE id = :id", id=juan.id
    )
    heads = await log.heads([], start)
    assert (heads.sids, heads.users) == ([ended.sid], [juan.id])
    assert kept.sid not in heads.sids
    # Once more, for as long as a transaction that began earlier may have taken to commit.
    assert (await log.heads([], heads.clock)).sids == [ended.sid]
    later = await log.heads([], heads.clock + REVOCATION_OVERLAP + 1_000)
    assert (later.sids, later.users) == ([], [])


# --- Several writers


async def test_two_processes_that_append_at_once_leave_no_gap(database_url: str) -> None:
    async with repositories(database_url) as logs, asyncio.timeout(LIMIT):
        rooms = [await logs[0].make_room(name) for name in "abc"]
        shuffled = random.Random(5)

        async def write(number: int) -> list[tuple[int, str, int]]:
            log, given = logs[number % 2], []
            for batch in range(8):
                drafts = [
                    draft(rooms[shuffled.randrange(3)], f"{number}-{batch}-{one}")
                    for one in range(shuffled.randint(1, 6))
                ]
                for one, result in zip(drafts, await log.append(drafts), strict=True):
                    given.append((one.room_id, one.text, stored(result).seq))
            return given

        written = [one for given in await asyncio.gather(*map(write, range(6))) for one in given]
        for room in rooms:
            log = await log_of(logs[0], room)
            assert [one["seq"] for one in log] == list(range(1, len(log) + 1))
            assert {(one["text"], one["seq"]) for one in log} == {
                (text, seq) for room_id, text, seq in written if room_id == room.id
            }
            assert await the_head(logs[1], room) == (room.epoch, 1, len(log))


async def test_the_same_id_from_two_processes_at_once_is_stored_once(database_url: str) -> None:
    async with repositories(database_url) as logs, asyncio.timeout(LIMIT):
        room = await logs[0].make_room("lobby")
        for number in range(10):
            one = draft(room, str(number))
            results = await asyncio.gather(*(log.append([one]) for log in logs * 2))
            found = [stored(result) for [result] in results]
            assert sorted(result.duplicate for result in found) == [False, True, True, True]
            assert len({(result.seq, result.sent_at) for result in found}) == 1
        assert [one["text"] for one in await log_of(logs[0], room)] == list(map(str, range(10)))


async def test_of_two_texts_under_one_id_at_once_one_is_a_conflict(database_url: str) -> None:
    async with repositories(database_url) as logs, asyncio.timeout(LIMIT):
        room = await logs[0].make_room("lobby")
        for number in range(5):
            results = await asyncio.gather(
                *(logs[n].append([draft(room, f"{n}", id=f"id-{number}")]) for n in (0, 1))
            )
            kinds = {type(result).__name__ for [result] in results}
            assert kinds == {"Stored", "IdConflict"}
        assert len(await log_of(logs[0], room)) == 5


async def test_batches_that_meet_in_many_rooms_do_not_lock_each_other_out(
    database_url: str,
) -> None:
    async with repositories(database_url) as logs, asyncio.timeout(LIMIT):
        rooms = [await logs[0].make_room(f"room-{number}") for number in range(20)]

        async def write(log: Repository, order: list[Room]) -> None:
            for _ in range(10):
                seqs(await log.append([draft(room) for room in order]))

        await asyncio.gather(
            write(logs[0], rooms),
            write(logs[1], rooms[::-1]),
            write(logs[0], rooms[10:] + rooms[:10]),
        )
        assert [len(await log_of(logs[0], room)) for room in rooms] == [30] * 20


async def test_an_append_that_is_cancelled_is_stored_whole_or_not_at_all(
    database_url: str,
) -> None:
    chance = random.Random(3)
    async with repositories(database_url) as [log, other], asyncio.timeout(LIMIT):
        room = await log.make_room("lobby")
        batches = [[draft(room, f"{n}-{one}") for one in range(3)] for n in range(30)]
        for batch in batches:
            task = asyncio.create_task(log.append(batch))
            await asyncio.sleep(chance.random() * 0.004)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        # The answer is lost, so they are all sent again: to another process, as it happens.
        for batch in batches:
            first, second, third = (stored(one) for one in await other.append(batch))
            assert first.duplicate == second.duplicate == third.duplicate
            assert (second.seq, third.seq) == (first.seq + 1, first.seq + 2)
        log_read = await log_of(other, room)
        assert [one["seq"] for one in log_read] == list(range(1, 91))
        assert len({one["id"] for one in log_read}) == 90


# --- Any order of events

IDS = st.sampled_from(["a", "b", "c", "d"])
TEXTS = st.sampled_from(["x", "y"])
PLANNED = st.tuples(st.integers(0, 1), st.sampled_from([MARIA, JUAN]), IDS, TEXTS)
# Which process appends, and what: (room, sender, id, text).
PLANS = st.lists(
    st.tuples(st.integers(0, 1), st.lists(PLANNED, min_size=1, max_size=5)), max_size=6
)


async def follow(url: str, plan: list[tuple[int, list[tuple[int, Person, str, str]]]]) -> None:
    """Run the batches, those of the two processes at once, and hold the log against the rules."""
    async with repositories(url) as logs:
        names = [f"room-{secrets.token_hex(8)}" for _ in range(2)]
        rooms = [await logs[0].make_room(name) for name in names]
        answers: list[tuple[Draft, object]] = []

        async def process(number: int) -> None:
            for who, planned in plan:
                if who != number:
                    continue
                drafts = [
                    draft(rooms[room], text, id=id, sender=sender)
                    for room, sender, id, text in planned
                ]
                answers.extend(zip(drafts, await logs[number].append(drafts), strict=True))

        async with asyncio.timeout(LIMIT):
            await asyncio.gather(process(0), process(1))
        for room in rooms:
            log = await log_of(logs[0], room)
            assert [one["seq"] for one in log] == list(range(1, len(log) + 1))
            keys = [(one["sender"]["id"], one["id"]) for one in log]
            assert len(set(keys)) == len(keys)
            assert await the_head(logs[1], room) == (room.epoch, 1, len(log))
            texts = {key: (one["text"], one["seq"]) for key, one in zip(keys, log, strict=True)}
            mine = [(one, answer) for one, answer in answers if one.room_id == room.id]
            assert {(one.sender.id, one.id) for one, _ in mine} == set(keys)
            for one, answer in mine:
                text, seq = texts[one.sender.id, one.id]
                if isinstance(answer, IdConflict):
                    assert one.text != text
                else:
                    assert one.text == text
                    assert stored(answer).seq == seq  # type: ignore[arg-type]
            firsts = [stored(a) for _, a in mine if not isinstance(a, IdConflict)]  # type: ignore[arg-type]
            assert sum(not one.duplicate for one in firsts) == len(log)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(PLANS)
def test_whatever_the_order_of_batches_seqs_have_no_gap_and_ids_come_once_on_sqlite(
    plan: list[tuple[int, list[tuple[int, Person, str, str]]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(follow(f"sqlite:///{folder}/chat.db", plan))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=PLANS)
def test_whatever_the_order_of_batches_seqs_have_no_gap_and_ids_come_once_on_postgresql(
    postgres_url: str, plan: list[tuple[int, list[tuple[int, Person, str, str]]]]
) -> None:
    asyncio.run(follow(postgres_url, plan))
