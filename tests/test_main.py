"""`python -m chat` as people start it: its sentences, its exit codes, its end."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path

import pytest

from chat import __version__
from chat.__main__ import SUBJECTS, main
from chat.log.users import Users
from tests.conftest import ChatServerFactory
from tests.people import ask, execute, guest, lines_with
from tests.servers import (
    ROOT,
    SECRET_KEY,
    START_LIMIT,
    ChatServer,
    PostgresServer,
    free_port,
)

# Seconds within which Ctrl-C ends the program.
END_LIMIT = 5.0

REDIS = "redis://127.0.0.1:6379"
POSTGRES = "postgresql://chat@127.0.0.1/chat"


def chat(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CHAT_")}
    return subprocess.run(
        [sys.executable, "-m", "chat", *arguments],
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=START_LIMIT,
    )


def refusal(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence that a refused start says."""
    lines = ended.stderr.splitlines()
    assert ended.stdout == ""
    assert len(lines) == 1, ended.stderr
    assert lines[0].endswith(".")
    return lines[0]


# --- Arguments


def test_version_says_name_and_version(tmp_path: Path) -> None:
    ended = chat(tmp_path, "--version")
    assert (ended.returncode, ended.stdout) == (0, f"tertulia {__version__}\n")


def test_help_names_the_commands(tmp_path: Path) -> None:
    ended = chat(tmp_path, "--help")
    assert ended.returncode == 0
    assert "serve" in ended.stdout


@pytest.mark.parametrize(("subject", "names"), SUBJECTS.items())
def test_each_command_is_where_it_is_looked_for(subject: str, names: tuple[str, ...]) -> None:
    parsers = argparse.ArgumentParser().add_subparsers()
    import_module(f"chat.commands.{subject}").register(parsers)
    assert tuple(parsers.choices) == names


def test_ctrl_c_in_a_command_is_its_end_and_no_stack_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(self: Users, after: int, limit: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    assert main(["user", "add", "maria"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(Users, "after", interrupted)
    assert main(["user", "list"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["serve", "--workers", "many"], ["serve", "--no-such"]]
)
def test_a_wrong_argument_is_exit_code_2_and_a_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: tertulia")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--workers", "0"], "workers must be at least 1"),
        (["--bind", "127.0.0.1:many"], "127.0.0.1:many"),
        (["--config", "nowhere.toml"], "nowhere.toml cannot be read"),
    ],
)
def test_a_wrong_value_of_an_argument_is_exit_code_2_and_one_sentence(
    tmp_path: Path, arguments: list[str], named: str
) -> None:
    ended = chat(tmp_path, "serve", *arguments)
    assert ended.returncode == 2
    assert named in refusal(ended)


# --- Settings


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CHAT_DATABASE_URL", "mysql://chat@127.0.0.1/chat"),
        ("CHAT_DATABASE_URL", "sqlite:///"),
        ("CHAT_RELAY_URL", "127.0.0.1:6379"),
        ("CHAT_SECRET_KEY", "short"),
        ("CHAT_SEND_RATE", "often"),
        ("CHAT_SESSION_HOURS", "-1"),
        ("CHAT_COOKIE_SECURE", "yes"),
        ("CHAT_ALLOWED_ORIGINS", "www.example.org"),
        ("CHAT_TRUSTED_PROXIES", "proxy"),
        ("CHAT_SIGN_IN", "password"),
        ("CHAT_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_setting_is_exit_code_2_and_one_sentence_that_names_it(
    tmp_path: Path, variable: str, value: str
) -> None:
    ended = chat(tmp_path, "serve", **{variable: value})
    assert ended.returncode == 2
    assert refusal(ended).startswith(f"{variable} is wrong: ")
    assert list(tmp_path.iterdir()) == []


def test_a_relay_that_redis_py_does_not_understand_is_a_wrong_setting(tmp_path: Path) -> None:
    url = "redis://:secret@127.0.0.1:6379/0?no_such_option=1"
    ended = chat(tmp_path, "serve", "--bind", f"127.0.0.1:{free_port()}", CHAT_RELAY_URL=url)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("CHAT_RELAY_URL is wrong: ")
    assert "secret@" not in ended.stderr


def test_memory_with_several_workers_is_a_wrong_setting(tmp_path: Path) -> None:
    ended = chat(tmp_path, "serve", "--workers", "2")
    assert ended.returncode == 2
    assert refusal(ended).startswith("CHAT_RELAY_URL is wrong: memory://")


def test_postgresql_without_a_secret_key_is_a_wrong_setting(tmp_path: Path) -> None:
    ended = chat(tmp_path, "serve", CHAT_DATABASE_URL=POSTGRES)
    assert ended.returncode == 2
    assert refusal(ended).startswith("CHAT_SECRET_KEY is missing: ")


def test_a_secret_key_that_cannot_be_kept_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where the folder should be")
    ended = chat(tmp_path, "serve")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("CHAT_SECRET_KEY is not set, and ")
    assert "Traceback" not in ended.stderr


async def test_an_unknown_setting_is_a_warning_only(chat_server: ChatServerFactory) -> None:
    server = await chat_server(CHAT_SEND_RAT="off")
    assert "WARNING" in server.log
    assert "The setting CHAT_SEND_RAT is unknown and has no effect" in server.log


# --- Serving


async def test_a_second_server_on_one_file_is_warned_of(
    chat_server: ChatServerFactory,
) -> None:
    first = await chat_server()
    assert "open already" not in first.log
    second = ChatServer(first.folder, {})
    await second.start()
    try:
        [line] = lines_with(second, "open already")
        assert "WARNING" in line and "redis://" in line
    finally:
        assert await second.stop() == 0


async def test_the_start_prints_the_address_to_open(chat_server: ChatServerFactory) -> None:
    server = await chat_server()
    assert server.log.count(f"Tertulia is open at {server.url}/ (Ctrl-C ends it)\n") == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_port_in_use_is_one_sentence_that_names_it(
    chat_server: ChatServerFactory, redis_url: str, tmp_path: Path, workers: int
) -> None:
    first = await chat_server(workers=workers, CHAT_RELAY_URL=redis_url)
    folder = tmp_path / "second"
    folder.mkdir()
    second = ChatServer(folder, {"CHAT_RELAY_URL": redis_url}, workers=workers, port=first.port)
    second.spawn()
    assert await second.wait() == 1
    assert "Traceback" not in second.log
    assert second.log.splitlines()[-1] == (
        f"Address 127.0.0.1:{first.port} is in use; stop the other server or choose another PORT."
    )
    assert (await ask(first, "GET", "/healthz")).status == 200


async def test_a_secret_key_is_made_once_and_said_so(chat_server: ChatServerFactory) -> None:
    server = await chat_server(CHAT_SECRET_KEY=None)
    path = server.folder / "var" / "secret_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_text().strip()
    assert "made a key and keep it in var/secret_key (mode 0600)" in server.log
    maria = await guest(server)
    await server.stop()
    await server.start()
    assert path.read_text().strip() == key
    assert "using the key in var/secret_key" in server.log
    assert key not in server.log
    # Who was signed in still is.
    answer = await maria.ask("GET", "/api/session")
    assert (answer.status, answer.json["user"]["name"]) == (200, maria.name)


@pytest.mark.parametrize("workers", [1, 2])
async def test_ctrl_c_ends_it_within_five_seconds_and_sends_all_home_with_1012(
    chat_server: ChatServerFactory, redis_url: str, workers: int
) -> None:
    server = await chat_server(workers=workers, CHAT_RELAY_URL=redis_url)
    maria = await guest(server)
    async with maria.enter("lobby") as one, maria.enter("lobby") as two:
        await one.say("hola")
        assert server.process is not None
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert list(await asyncio.gather(one.end(), two.end())) == [1012, 1012]
        for member in (one, two):
            assert member.raw[-1].startswith('{"type":"closing","code":1012,')
    assert await server.wait(END_LIMIT) == 0
    assert time.monotonic() - began < END_LIMIT


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_that_is_given_again_and_again_changes_nothing_of_a_good_end(
    chat_server: ChatServerFactory, redis_url: str, number: signal.Signals, workers: int
) -> None:
    server = await chat_server(workers=workers, CHAT_RELAY_URL=redis_url)
    maria = await guest(server)
    async with maria.enter("lobby") as member:
        await member.say("hola")
        process = server.process
        assert process is not None
        ending = asyncio.create_task(member.end())
        # To its very last breath: the latest ones meet an interpreter that is being shut down.
        async with asyncio.timeout(END_LIMIT):
            while process.poll() is None:
                process.send_signal(number)
                await asyncio.sleep(0.001)
        assert await ending == 1012
    assert process.returncode == 0, server.log


async def test_ctrl_c_ends_it_in_time_though_the_database_hangs_with_messages_to_store(
    chat_server: ChatServerFactory, own_postgres: PostgresServer
) -> None:
    url = own_postgres.create_database()
    server = await chat_server(CHAT_DATABASE_URL=url, CHAT_SEND_RATE="off")
    maria = await guest(server)
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(maria.enter("lobby")) for _ in range(5)]
        await members[0].say("hola")
        # Many at once: so there are idle connections, too, which a polite close would wait for.
        await asyncio.gather(*[maria.ask("GET", "/api/rooms") for _ in range(20)])
        own_postgres.freeze()
        try:
            for number in range(100):
                await members[number % 5].send("send", text=f"{number}")
            # These were read, so what came before them is under way.
            for member in members:
                assert (await member.asks("ping"))["type"] == "pong"
            began = time.monotonic()
            assert await server.stop(signal.SIGINT) == 0
            assert time.monotonic() - began < END_LIMIT
            assert await asyncio.gather(*[member.end() for member in members]) == [1012] * 5
            # What cannot be stored is not waited for a second time.
            assert "enough to store the last messages" in server.log
            assert "enough to send the last messages" not in server.log
        finally:
            own_postgres.thaw()


async def test_ctrl_c_ends_it_in_time_though_nobody_answers(
    chat_server: ChatServerFactory,
) -> None:
    server = await chat_server()
    maria = await guest(server)
    async with maria.enter("lobby") as silent:
        # Neither read nor answered from now on.
        silent.socket.transport.pause_reading()
        assert await server.stop(signal.SIGINT) == 0
        silent.socket.transport.abort()


@pytest.mark.parametrize("database", ["sqlite_url", "postgres_url", None])
async def test_a_second_start_sees_everything_again(
    chat_server: ChatServerFactory, request: pytest.FixtureRequest, database: str | None
) -> None:
    url = request.getfixturevalue(database) if database else None
    server = await chat_server(CHAT_DATABASE_URL=url, CHAT_SECRET_KEY=SECRET_KEY)
    maria, jon = await guest(server), await guest(server)
    async with maria.enter("test_room") as one, jon.enter("test_room") as two:
        for number in range(3):
            await one.say(f"maria {number}")
            await two.say(f"jon {number}")
        before = await one.read_to(6)
        epoch = one.welcome["epoch"]
    assert await server.stop(signal.SIGINT) == 0
    await server.start()
    async with (
        maria.enter("test_room") as newcomer,
        jon.enter("test_room", f"?since=4&epoch={epoch}") as returning,
    ):
        assert await newcomer.read_to(6) == before
        assert returning.welcome["resumed"] is True
        assert await returning.read_to(6) == before[4:]
        ack = await returning.say("again")
        assert ack["seq"] == 7
        await newcomer.read_to(7)


# --- What may become of the output


async def shell(server: ChatServer, line: str) -> tuple[int, str]:
    """Run a line of a shell in the server's folder; return its exit code and what it complains."""
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        line.replace("CHAT", f"{shlex.quote(sys.executable)} -m chat"),
        cwd=server.folder,
        env=server.environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_a_reader_that_leaves_or_a_full_disk_brings_no_stack_trace(
    server: ChatServer,
) -> None:
    await (await guest(server)).post("lobby", "hola")
    assert await shell(server, "CHAT check | true") == (0, "")
    for command in ("user list", "export lobby"):
        found = await shell(server, f"CHAT {command} > /dev/full")
        assert found == (1, "No space left on device.\n")


async def test_what_no_database_can_hold_is_not_there(server: ChatServer) -> None:
    await (await guest(server)).post("lobby", "hola")
    huge = str(2**70)
    assert "There is no message" in await server.fails("redact", "lobby", huge)
    assert "There is no user" in await server.fails("user", "disable", huge)
    assert (await server.fails("redact", "lo\udcff", "1")).startswith(r"There is no room lo\udcff")


async def test_a_database_that_takes_nothing_is_told_in_words(server: ChatServer) -> None:
    await (await guest(server)).post("full", "hola")
    execute(
        server,
        "CREATE TRIGGER full BEFORE UPDATE ON messages BEGIN INSERT INTO nowhere VALUES (1); END",
    )
    try:
        sentence = await server.fails("redact", "full", "1")
        assert sentence == "The database did not take it: no such table: main.nowhere."
    finally:
        execute(server, "DROP TRIGGER full")
