"""`tail` and `say`, as operators type them, beside a server that runs."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec import UNSET

from chat.__main__ import main
from chat.commands import harmless, talk
from chat.commands.talk import line_of
from chat.protocol import Message, Person
from tests.conftest import ChatServerFactory
from tests.people import API_KEY, SOON, a_room, direct_room, execute, guest, site
from tests.servers import ChatServer, free_port

pytest_plugins = ["tests.houses"]


@asynccontextmanager
async def tailing(server: ChatServer, *arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "chat", "tail", "--url", server.url, *arguments],
        cwd=server.folder,
        env=server.environment,
        stdout=PIPE,
        stderr=PIPE,
        # A shell that runs these tests in the background has them, and so this, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(SOON):
        return (await process.stdout.readline()).decode().rstrip("\n")


async def told(process: Process) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(SOON):
        return (await process.stderr.readline()).decode().rstrip("\n")


async def ends(process: Process) -> tuple[int, str]:
    """Wait for the end; return the exit code and all that was said of errors."""
    assert process.stderr is not None
    async with asyncio.timeout(SOON):
        return await process.wait(), (await process.stderr.read()).decode()


async def test_what_is_said_is_stored_and_its_seq_printed(server: ChatServer) -> None:
    maria, room = await guest(server), a_room()
    first = await server.command("say", room, "hola", "--url", server.url)
    # Nobody makes a room by a slip of the pen without being told.
    beside = f"It is the first message in {room}.\n"
    assert (first.returncode, first.stdout, first.stderr) == (0, "1\n", beside)
    assert await server.says("say", room, "adios", "--url", server.url) == "2\n"
    messages = (await maria.read(room)).json["messages"]
    assert [(one["sender"]["name"], one["text"]) for one in messages] == [
        ("operator", "hola"),
        ("operator", "adios"),
    ]


async def test_in_a_direct_room_the_other_one_is_told(server: ChatServer) -> None:
    maria, jon = await site(server), await site(server)
    room = await direct_room(maria, jon)
    await maria.post(room, "hola", receiver_id=jon.id)
    assert (
        await server.says("say", room, "adios", "--user", maria.name, "--url", server.url) == "2\n"
    )
    message = (await jon.read(room)).json["messages"][-1]
    assert message["receiver"]["name"] == jon.name


async def test_a_room_is_followed_and_nothing_said_in_it_steers_the_terminal(
    server: ChatServer,
) -> None:
    maria, room = await guest(server), a_room()
    await maria.post(room, "before")
    async with tailing(server, room) as process:
        assert re.fullmatch(rf"1  20\d\d-\S+Z  {maria.name}: before", await line(process))
        await maria.post(room, "\x1b]0;owned\x07\r\nforged  line\u202e\u2028 👩‍👧 ñ")
        assert (await line(process)).endswith(
            r": \x1b]0;owned\x07\r\nforged  line\u202e\u2028 👩‍👧 ñ"
        )


async def test_it_begins_where_it_is_told_to(server: ChatServer) -> None:
    maria, room = await guest(server), a_room()
    for text in ("one", "two", "three"):
        await maria.post(room, text)
    async with tailing(server, room, "--since", "1") as process:
        assert (await line(process)).endswith(": two")


async def test_ctrl_c_ends_it_well(server: ChatServer) -> None:
    maria, room = await guest(server), a_room()
    await maria.post(room, "hola")
    async with tailing(server, room) as process:
        await line(process)
        process.send_signal(signal.SIGINT)
        assert await ends(process) == (0, "")


async def test_a_closed_pipe_ends_it_well(server: ChatServer) -> None:
    maria, room = await guest(server), a_room()
    await maria.post(room, "hola")
    async with tailing(server, room) as process:
        await line(process)
        process.stdout._transport.close()  # type: ignore[union-attr]
        await maria.post(room, "nobody reads this")
        assert await ends(process) == (0, "")


async def test_a_restart_is_told_and_nothing_is_missed(chat_server: ChatServerFactory) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY)
    maria, room = await site(server), a_room()
    async with tailing(server, room) as process:
        await maria.post(room, "before")
        assert (await line(process)).endswith(": before")
        assert await server.stop() == 0
        assert (await told(process)).startswith("No connection (")
        await server.start()
        await maria.post(room, "after")
        assert (await line(process)).endswith(": after")


@pytest.fixture
def beside(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Awaitable[str]]:
    """Run a command that must fail, in this process: a start costs more than such a command."""
    monkeypatch.chdir(server.folder)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)

    async def fails(*arguments: str) -> str:
        assert await asyncio.to_thread(main, arguments) == 1
        said = capsys.readouterr()
        [sentence] = said.err.splitlines()
        assert said.out == "" and sentence.endswith(".")
        return sentence

    return fails


async def test_who_is_sent_away_is_told_why(
    server: ChatServer,
    beside: Callable[..., Awaitable[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = ("--url", server.url)
    maria, jon = await site(server), await site(server)
    room = await direct_room(maria, jon)
    for arguments, sentence in (
        (("say", "not a room", "hola"), "not a room is not a name of a room."),
        (("say", room, "hola"), f"operator may not enter {room}; --user names somebody else."),
        (
            ("tail", "dm.999998.999999"),
            "There is no room dm.999998.999999: its two users must exist, the smaller number"
            " first.",
        ),
        (("say", "lobby", "x" * 4_001), "A message has at most 4000 characters."),
        (("say", "lobby", "hola", "--user", "x" * 33), "A name has at most 32 characters."),
        (("tail", "lobby", "--since", "-1"), "--since takes a seq, or 0 for the beginning."),
    ):
        assert await beside(*arguments, *url) == sentence
    assert "is no address such as" in await beside("say", "lobby", "hola", "--url", "lobby")
    monkeypatch.setenv("CHAT_SECRET_KEY", "another-key-than-the-one-of-the-server")
    assert "does not take our token" in await beside("say", "lobby", "hola", *url)


async def test_who_is_disabled_says_nothing(
    server: ChatServer, beside: Callable[..., Awaitable[str]]
) -> None:
    maria = await site(server)
    execute(server, "UPDATE users SET disabled_at = 1 WHERE id = ?", maria.id)
    sentence = await beside("say", "lobby", "hola", "--user", maria.name, "--url", server.url)
    assert sentence == f"{maria.name} is disabled; `user enable` lets them in again."


async def test_where_no_chat_runs_it_says_so(
    beside: Callable[..., Awaitable[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(talk, "ENTER_LIMIT", 0.2)
    url = f"http://127.0.0.1:{free_port()}"
    assert await asyncio.to_thread(main, ("say", "lobby", "hola", "--url", url)) == 1
    said = capsys.readouterr()
    first, *_, sentence = said.err.splitlines()
    assert re.fullmatch(r"No connection \(nobody listens there\); again in \d\.\d s", first)
    assert sentence == f"There is no way into the chat at {url}: nobody listens there."
    assert said.out == ""


async def test_a_chat_that_serves_another_name_is_entered_from_its_own_machine(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(CHAT_ALLOWED_HOSTS="chat.example.org")
    said = await server.command("say", "lobby", "hola", "--url", server.url)
    assert (said.returncode, said.stdout) == (0, "1\n"), said.stderr


async def test_what_changes_beside_the_messages_is_told(chat_server: ChatServerFactory) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY)
    maria, room = await site(server), a_room()
    async with tailing(server, room) as process:
        assert await told(process) == f"Nobody has said anything in {room} yet."
        await maria.post(room, "one")
        await line(process)
        await server.says("redact", room, "1")
        assert await told(process) == "The text of message 1 was taken away."
        execute(server, "UPDATE rooms SET epoch = 'restored-1'")
        assert (await told(process)).startswith("No connection (")
        while (sentence := await told(process)) != "Connected again":
            assert sentence.startswith("No connection (")
        assert (await told(process)).startswith("The room starts afresh, with its newest messages")
        assert (await line(process)).startswith("1  ")
    async with tailing(server, room, "--since", "300") as process:
        assert await told(process) == (
            "The log does not go on after 300: here are its newest messages."
        )


async def test_who_is_disabled_meanwhile_is_told_so_and_not_tried_again(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server(CHAT_API_KEY=API_KEY)
    async with tailing(server, "lobby", "--user", "bob") as process:
        await told(process)
        await server.says("user", "disable", "bob")
        code, said = await ends(process)
        assert code == 1
        assert said.splitlines()[-1] == "bob is disabled; `user enable` lets them in again."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hola ñ 日本 \xa0 👩\u200d👧", "hola ñ 日本 \xa0 👩\u200d👧"),
        ("\x1b[2J\x9b31m\x7f\0", r"\x1b[2J\x9b31m\x7f\x00"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\u202e\u2066\u200f\ufeff", r"\u202e\u2066\u200f\ufeff"),
        ("\u2028\u2029\ud800", r"\u2028\u2029\ud800"),
    ],
)
def test_what_could_steer_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_a_line_says_to_whom_and_what_was_taken_away() -> None:
    maria, jon, when = Person(1, "maria"), Person(2, "jon"), "2026-11-24T10:00:00.123Z"
    message = Message(5, "c-1", maria, jon, "hola", when, UNSET)
    assert line_of(message) == f"5  {when}  maria → jon: hola"
    message = Message(6, "c-1", maria, None, "", when, True)
    assert line_of(message) == f"6  {when}  maria: (taken away)"
