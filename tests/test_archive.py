"""`export` and `import`, as operators type them, between servers on both databases."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from chat.commands import Impossible, archive
from chat.log import transfer
from chat.log.members import Members
from chat.log.repository import Repository
from chat.log.statements import Draft
from chat.log.transfer import Old
from chat.log.users import Users
from chat.protocol import Person
from tests.people import SOON, a_name, a_room, guest, site, until
from tests.servers import ChatServer, ForeignPostgres
from tests.storage import change, draft, log_of, opened, repositories, seqs

pytest_plugins = ["tests.houses"]


@pytest.fixture(params=["server", "big_server"])
def house(request: pytest.FixtureRequest) -> ChatServer:
    """SQLite without a relay, and PostgreSQL."""
    server: ChatServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, house: ChatServer) -> ChatServer:
    """The other one of the two."""
    both: list[ChatServer] = [request.getfixturevalue(name) for name in ("server", "big_server")]
    return next(one for one in both if one is not house)


def lines_of(text: str, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.split("\n") if line]
    return [line for line in lines if line["type"] == kind]


async def test_a_room_is_the_same_elsewhere(house: ChatServer, elsewhere: ChatServer) -> None:
    room, name = a_room(), a_name()
    maria, juan = await site(house, name), await guest(house)
    async with maria.enter(room) as member, juan.enter(room) as other:
        await member.say("one", id="c-1")
        await other.say("two\n\"línea\" \u2028 'tres'", receiver_id=maria.id)
        await member.say_all([f"message {number}" for number in range(3, 621)])
        await house.says("redact", room, "5")
    exported = await house.says("export", room)
    [head] = lines_of(exported, "room")
    assert (head["name"], head["first_seq"], head["last_seq"]) == (room, 1, 620)
    kinds = {line["name"]: line["kind"] for line in lines_of(exported, "user")}
    assert kinds == {maria.name: "site", juan.name: "guest"}
    messages = lines_of(exported, "message")
    assert [one["seq"] for one in messages] == list(range(1, 621))
    assert messages[4]["redacted"] and not messages[4]["text"]

    there = await site(elsewhere, name)
    said = await elsewhere.says("import", stdin=exported)
    assert said == f"Imported 620 messages into {room}.\n"
    async with there.enter(room, "?since=0") as member:
        await member.read_to(620)
        mine, ghost = (member.messages[0]["sender"], member.messages[1]["sender"])
        assert mine == there.person
        assert ghost["name"] == juan.name
        expected = [
            {key: value for key, value in one.items() if key != "type"}
            | {"sender": mine if one["sender"]["id"] == maria.id else ghost}
            | {"receiver": one["receiver"] and mine}
            for one in messages
        ]
        assert member.messages == expected
        # It goes on: the next seq, and ids that are known.
        again = await member.say("one", id="c-1")
        assert (again["seq"], again["duplicate"]) == (1, True)
        assert (await member.say("next"))["seq"] == 621
    # The guest's name is free there.
    await guest(elsewhere, juan.name)


async def test_members_of_an_empty_room_start_afresh_with_what_is_imported(
    server: ChatServer,
) -> None:
    maria, room, empty = await site(server), a_room(), a_room()
    await maria.post(room, "one")
    exported = await server.says("export", room)
    async with maria.enter(empty) as member:
        await server.says("import", "--room", empty, stdin=exported)
        assert await member.end() == 1012
    async with maria.enter(empty, "?since=0") as member:
        await member.read_to(1)
        assert member.texts == ["one"]


async def test_an_export_that_nobody_reads_to_its_end_is_one_sentence(server: ChatServer) -> None:
    maria, room = await site(server), a_room()
    async with maria.enter(room) as member:
        await member.say_all(["x" * 4_000] * 60)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "chat",
        "export",
        room,
        cwd=server.folder,
        env=server.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]
    said = (await process.stderr.read()).decode()
    assert await process.wait() == 1
    assert said == "Nobody reads the export any more: it is not whole.\n"


async def test_an_import_without_a_folder_for_temporary_files_is_one_sentence(
    server: ChatServer,
) -> None:
    process = await asyncio.create_subprocess_exec(
        # No file may grow, as on a machine where nothing can be written.
        *("bash", "-c", 'ulimit -f 0; exec "$0" -m chat import', sys.executable),
        cwd=server.folder,
        env=server.environment,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert said.decode().startswith("There is no place to keep what is read: ")
    assert said.count(b"\n") == 1


def a_long_export(room: str, count: int) -> bytes:
    maria = {"id": 7, "name": a_name()}
    at = "2026-11-24T10:00:00.123Z"
    lines: list[dict[str, Any]] = [
        {"type": "room", "name": room, "first_seq": 1, "last_seq": count},
        {"type": "user", "kind": "site"} | maria,
    ]
    for seq in range(1, count + 1):
        said = {"seq": seq, "id": f"c-{seq}", "text": "hola", "sent_at": at}
        lines.append({"type": "message", "sender": maria, "receiver": None} | said)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.mark.parametrize(
    ("number", "handled", "code"),
    [
        (signal.SIGINT, signal.SIG_DFL, 130),
        (signal.SIGTERM, signal.SIG_DFL, 143),
        (signal.SIGHUP, signal.SIG_DFL, 129),
        # As `nohup` does.
        (signal.SIGHUP, signal.SIG_IGN, 0),
    ],
)
async def test_an_import_that_is_ended_takes_away_what_it_stored(
    house: ChatServer, number: signal.Signals, handled: signal.Handlers, code: int
) -> None:
    room = a_room()
    url = house.settings.get("CHAT_DATABASE_URL") or f"sqlite:///{house.folder}/var/chat.db"
    with tempfile.TemporaryFile() as lines:
        # More than can be stored between two looks: there is a pause after each 500.
        lines.write(a_long_export(room, 20_000))
        lines.seek(0)
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "chat", "import"],
            cwd=house.folder,
            env=house.environment,
            stdin=lines,
            stdout=PIPE,
            stderr=PIPE,
            # Whatever the shell has told these tests to ignore.
            preexec_fn=lambda: signal.signal(number, handled) and None,
        )
    async with opened(url) as database:
        nobodys = "SELECT count(*) FROM messages WHERE room_id NOT IN (SELECT id FROM rooms)"

        async def stored() -> bool:
            assert process.returncode is None, "it came to its end"
            return (await database.rows(nobodys))[0][0] > 0

        try:
            await until(stored)
            process.send_signal(number)
            if code:
                # As people do who think that nothing happens.
                process.send_signal(signal.SIGINT)
            async with asyncio.timeout(SOON):
                said, wrong = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        told = "Taking away what was stored …\n" if code else ""
        # Of two that come at once either may be the first.
        assert process.returncode in ((code, 130) if code else (0,))
        assert wrong.decode() == told
        assert said.decode() == ("" if code else f"Imported 20000 messages into {room}.\n")
        assert await database.rows(nobodys) == [(0,)]
        found = await Repository(database).find_room(room)
        assert (found is not None) == (code == 0)


async def test_an_import_from_a_closed_input_is_one_sentence(server: ChatServer) -> None:
    process = await asyncio.create_subprocess_exec(
        *["sh", "-c", 'exec "$0" -m chat import <&-', sys.executable],
        cwd=server.folder,
        env=server.environment,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    said = await process.communicate()
    assert said == (b"", b"There is nothing to import: the standard input is closed.\n")
    assert process.returncode == 1


# --- Without a program around it


async def exported(log: Repository, room: str) -> list[bytes]:
    out = io.BytesIO()
    await archive._write(log.database, room, out)
    return out.getvalue().splitlines(keepends=True)


async def imported(
    log: Repository, lines: Sequence[bytes], name: str | None = None
) -> tuple[str, int]:
    return await archive._store(log.database, io.BytesIO(b"".join(lines)), name)


@pytest.fixture
async def logs(
    database_url: str, postgres_server: ForeignPostgres
) -> AsyncIterator[list[Repository]]:
    """The log that a room leaves, and the one that it comes to."""
    other = postgres_server.create_database()
    async with repositories(database_url, 1) as [here], repositories(other, 1) as [there]:
        yield [here, there]
    postgres_server.drop_database(other)


async def test_a_direct_room_becomes_the_one_of_its_users_there(logs: list[Repository]) -> None:
    here, there = logs
    maria, juan = [await Users(here.database).site_user(name) for name in ("maria", "juan")]
    room = await here.make_room(f"dm.{maria.id}.{juan.id}")
    await here.append([draft(room, "hola", sender=maria.person, receiver=juan.person)])
    await here.append([draft(room, "adiós", sender=juan.person, receiver=maria.person)])
    lines = await exported(here, room.name)
    # There they came in another order.
    users = Users(there.database)
    juan_there, maria_there = [await users.site_user(name) for name in ("juan", "maria")]
    name = f"dm.{juan_there.id}.{maria_there.id}"
    assert await imported(there, lines) == (name, 2)
    row = await there.find_room(name)
    assert row is not None
    said = [(one["sender"]["id"], one["receiver"]["id"]) for one in await log_of(there, row)]
    assert said == [(maria_there.id, juan_there.id), (juan_there.id, maria_there.id)]
    assert [len((await there.rooms_of(one, None, 9))[0]) for one in (juan_there.id, 99)] == [1, 0]


async def test_what_cannot_be_imported_leaves_nothing(logs: list[Repository]) -> None:
    here, there = logs
    maria = await Users(here.database).site_user("maria")
    room = await here.make_room("lobby")
    await here.append([draft(room, sender=maria.person) for _ in range(4)])
    lines = await exported(here, "lobby")
    first, second = (json.loads(line) for line in lines[2:4])
    # It comes twice: only the database knows.
    twice = [*lines[:3], json.dumps(second | {"id": first["id"]}).encode() + b"\n", *lines[4:]]
    with pytest.raises(Impossible, match=r"Line 4: an earlier message of this sender has this id"):
        await imported(there, twice)
    with pytest.raises(Impossible, match="cut off: messages 4 to 4 are missing"):
        await imported(there, lines[:-1])
    await there.append([draft(await there.make_room("taken"))])
    with pytest.raises(Impossible, match="The room taken has messages already"):
        await imported(there, lines, "taken")
    assert await there.find_room("lobby") is None
    assert await there.database.rows("SELECT count(*) FROM messages") == [(1,)]
    assert await imported(there, lines) == ("lobby", 4)


async def test_an_import_that_has_become_a_room_is_not_taken_back(
    logs: list[Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, there = logs
    save = Members.save
    became, go_on = asyncio.Event(), asyncio.Event()

    async def later(self: Members, marks: Any) -> None:
        became.set()
        await go_on.wait()
        await save(self, marks)

    monkeypatch.setattr(Members, "save", later)
    importing = asyncio.create_task(imported(there, [a_long_export("lobby", 3)]))
    await became.wait()
    importing.cancel()
    asyncio.get_running_loop().call_soon(go_on.set)
    # It came too late: who is told that it was broken off would do it again.
    await importing
    room = await there.find_room("lobby")
    assert room is not None and len(await log_of(there, room)) == 3
    # To the last step.
    assert len(await Members(there.database).of_room(room.id, 0, 9)) == 1


async def test_what_was_stored_is_taken_away_though_the_terminal_is_gone(
    logs: list[Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    _, there = logs
    old = Old(Draft(4_711, "c-1", Person(1, "maria"), None, "hola"), 1, 1_000, False)
    await transfer.stage(there.database, [old])
    monkeypatch.setattr(sys, "stderr", Gone())
    await archive._take_away(there.database, 4_711)
    assert await there.database.rows("SELECT count(*) FROM messages") == [(0,)]


async def test_a_room_whose_beginning_was_trimmed_keeps_its_numbers(logs: list[Repository]) -> None:
    here, there = logs
    some, nothing = await here.make_room("some"), await here.make_room("nothing")
    maria = await Users(here.database).site_user("maria")
    for room, kept in ((some, 3), (nothing, 4)):
        await here.append([draft(room, sender=maria.person) for _ in range(3)])
        await change(
            here.database,
            "DELETE FROM messages WHERE seq < :seq AND room_id = :id",
            seq=kept,
            id=room.id,
        )
        await change(
            here.database, "UPDATE rooms SET first_seq = :seq WHERE id = :id", seq=kept, id=room.id
        )
        await imported(there, await exported(here, room.name))
        row = await there.find_room(room.name)
        assert row is not None and (row.first_seq, row.last_seq) == (kept, 3)
        assert seqs(await there.append([draft(row)])) == [4]


async def test_an_export_that_is_overtaken_says_so(
    logs: list[Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = logs
    room = await here.make_room("lobby")
    maria = await Users(here.database).site_user("maria")
    await here.append([draft(room, sender=maria.person) for _ in range(3)])
    monkeypatch.setattr(archive, "PAGE", 1)
    read = Repository.read

    async def meanwhile(statement: str) -> None:
        async def then(self: Repository, *where: int) -> Any:
            await change(here.database, statement)
            return await read(self, *where)

        monkeypatch.setattr(Repository, "read", then)
        await exported(here, "lobby")

    with pytest.raises(Impossible, match="got another log meanwhile"):
        await meanwhile("UPDATE rooms SET epoch = 'another'")
    with pytest.raises(Impossible, match="trimmed meanwhile"):
        await meanwhile("DELETE FROM messages WHERE seq = 1")
