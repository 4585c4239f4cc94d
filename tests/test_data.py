"""docs/data.md, run: each of its commands, on databases that people talk in meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from chat.log.database import Database
from tests import servers
from tests.conftest import ChatServerFactory
from tests.people import NO_LIMITS, Person, an_id, site, until
from tests.previous import PREVIOUS
from tests.servers import ChatServer, PostgresServer, launch
from tests.test_docs import ROOT, blocks

# Seconds between two messages of one who talks.
PAUSE = 0.02

PAGE = ROOT / "docs/data.md"
BLOCKS = blocks(PAGE, "sh")

# For machines without SQLite's own program: the little of it that the page needs.
SQLITE3 = """#!{python}
import sqlite3, sys
path, sql = sys.argv[1:]
connection = sqlite3.connect(path, isolation_level=None, timeout=30)
if sql.startswith(".backup "):
    connection.backup(sqlite3.connect(sql.split("'")[1]))
else:
    for row in connection.execute(sql):
        print(*row, sep="|")
"""


# For machines without containers: it runs here what it is to run in one.
DOCKER = """#!/bin/sh
case "$*" in
    "compose exec -T postgres "*) shift 4; exec "$@" ;;
    "compose run --rm --no-deps chat-1 tertulia "*) shift 6; exec python -m chat "$@" ;;
    "compose stop chat-1 chat-2" | "compose up --detach --wait") ;;
    *) exit 64 ;;
esac
"""


def command(*words: str) -> str:
    """Return the one block of the page that holds all these words."""
    [found] = [text for text in BLOCKS if all(word in text for word in words)]
    ran.add(found)
    return found


# The blocks that some test has run.
ran: set[str] = set()


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A PATH with what the page calls: python, sqlite3, and PostgreSQL's programs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    # A link would not find its environment.
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "docker").write_text(DOCKER)
    if shutil.which("sqlite3") is None:
        (folder / "sqlite3").write_text(SQLITE3.format(python=sys.executable))
    for program in folder.iterdir():
        program.chmod(0o755)
    return os.pathsep.join([str(folder), str(servers._postgres_programs()), os.environ["PATH"]])


async def run(server: ChatServer, path: str, block: str, **variables: str) -> str:
    """Run a block of the page where the server lives; return what it says."""
    code, said = await ended(server, path, block, **variables)
    assert code == 0, f"{block}\n{said}"
    return said


async def ended(server: ChatServer, path: str, block: str, **variables: str) -> tuple[int, str]:
    """Run a block of the page; return its exit code and what it says."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", block),
        cwd=server.folder,
        env={**server.environment, "PATH": path, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode is not None
    return process.returncode, said


def is_its_owner_s_only(server: ChatServer, *names: str) -> bool:
    return all((server.folder / name).stat().st_mode & 0o777 == 0o600 for name in names)


@asynccontextmanager
async def talking(person: Person, texts: list[str]) -> AsyncIterator[None]:
    """Let somebody say one message after the other meanwhile; keep what was acked."""

    async def talk() -> None:
        async with person.enter("lobby") as member:
            while True:
                text = f"said {person.server.port} {len(texts)}"
                await member.say(text, id=an_id())
                texts.append(text)
                await asyncio.sleep(PAUSE)

    task = asyncio.create_task(talk())
    try:
        await until(lambda: len(texts) > 20 or task.done())
        yield
        before = len(texts)
        await until(lambda: len(texts) > before or task.done())
    finally:
        task.cancel()
        await asyncio.wait([task])


async def log_of(person: Person) -> list[str]:
    """Return all texts of the lobby as who comes new gets them."""
    async with person.enter("lobby", "?since=0") as member:
        # As the database says: without a relay, a node knows of another one's half a second later.
        await member.read_to((await person.read("lobby")).json["last_seq"])
        return member.texts


async def has_gone_back(maria: Person, texts: list[str], epoch: str, least: int) -> None:
    """See that the log is a beginning of what was said, whole, and that it is another one."""
    log = await log_of(maria)
    assert log == texts[: len(log)]
    assert least <= len(log) < len(texts)
    async with maria.enter("lobby", f"?since=1&epoch={epoch}") as member:
        assert member.welcome["resumed"] is False
        assert (await member.say("after"))["seq"] == len(log) + 1


async def epoch_of(person: Person) -> str:
    async with person.enter("lobby") as member:
        return str(member.welcome["epoch"])


async def test_a_sqlite_file_is_backed_up_while_people_talk_and_restored(
    chat_server: ChatServerFactory, programs: str
) -> None:
    server, texts = await chat_server(**NO_LIMITS), []
    maria = await site(server)
    async with talking(maria, texts):
        least = len(texts)
        await run(server, programs, command("VACUUM INTO"))
        await run(server, programs, command(".backup "))
        await run(server, programs, command("integrity_check"))
    assert is_its_owner_s_only(server, "backup.db", "backup-by-pages.db")
    epoch = await epoch_of(maria)
    for backup in ("backup.db", "backup-by-pages.db"):
        await server.stop()
        block = command("rm -f var/chat.db-wal").replace("backup.db", backup)
        (server.folder / "var/chat.db").unlink()
        assert "Rooms with a new epoch: 1." in await run(server, programs, block)
        assert is_its_owner_s_only(server, "var/chat.db")
        await server.start()
        await has_gone_back(maria, texts, epoch, least)


async def test_a_postgresql_dump_is_made_while_people_talk_and_restored(
    chat_server: ChatServerFactory, programs: str, postgres_url: str
) -> None:
    server, texts = await chat_server(**NO_LIMITS, CHAT_DATABASE_URL=postgres_url), []
    maria = await site(server)
    async with talking(maria, texts):
        least = len(texts)
        await run(server, programs, command("pg_dump", "$CHAT_DATABASE_URL"))
    assert is_its_owner_s_only(server, "chat.dump")
    epoch = await epoch_of(maria)
    await server.stop()
    restore = command("pg_restore", "$CHAT_DATABASE_URL", "new-epoch")
    assert "Rooms with a new epoch: 1." in await run(server, programs, restore)
    assert not (server.folder / "chat.sql").exists()
    await server.start()
    await has_gone_back(maria, texts, epoch, least)


async def test_a_dump_that_is_not_whole_takes_the_place_of_nothing(
    chat_server: ChatServerFactory, programs: str, postgres_url: str
) -> None:
    server = await chat_server(**NO_LIMITS, CHAT_DATABASE_URL=postgres_url)
    maria = await site(server)
    async with maria.enter("lobby") as member:
        await member.say_all([f"said {number}" for number in range(500)])
    dump = command("pg_dump", "$CHAT_DATABASE_URL")
    restore = command("pg_restore", "$CHAT_DATABASE_URL", "new-epoch")
    await run(server, programs, dump)
    file = server.folder / "chat.dump"
    whole = file.read_bytes()
    # A server that is newer than the programs, or a disk that is full: no dump, or half of one.
    for instead in ('touch "$2"; exit 1', f'head -c {len(whole) // 2} chat.dump > "${{2#*=}}"'):
        fake = server.folder / "fake"
        fake.mkdir(exist_ok=True)
        (fake / "pg_dump").write_text(f"#!/bin/sh\n{instead}\n")
        (fake / "pg_dump").chmod(0o755)
        code, _ = await ended(server, f"{fake}:{programs}", dump)
        assert code != 0 and file.read_bytes() == whole
    await server.stop()
    for broken in (b"", whole[: len(whole) // 2], whole[:-20]):
        file.write_bytes(broken)
        code, said = await ended(server, programs, restore)
        assert code != 0 and "new epoch" not in said
    await server.start()
    assert len(await log_of(maria)) == 500


async def test_a_restore_that_fails_in_the_middle_changes_nothing(
    chat_server: ChatServerFactory, programs: str, postgres_url: str
) -> None:
    server = await chat_server(**NO_LIMITS, CHAT_DATABASE_URL=postgres_url)
    maria = await site(server)
    await maria.post("lobby", "hola")
    await run(server, programs, command("pg_dump", "$CHAT_DATABASE_URL"))
    await server.stop()
    # It is read well, and the server refuses something of it.
    block = command("pg_restore", "$CHAT_DATABASE_URL", "new-epoch")
    spoil = "{ echo 'SELECT no;'; cat chat.sql; } > spoilt && mv spoilt chat.sql"
    spoilt = block.replace(" &&\n", f" && {spoil} &&\n", 1)
    code, said = await ended(server, programs, spoilt)
    assert code != 0 and '"no" does not exist' in said
    await server.start()
    assert await log_of(maria) == ["hola"]


async def test_a_database_in_a_container_is_backed_up_and_restored(
    chat_server: ChatServerFactory, programs: str
) -> None:
    postgres = PostgresServer()
    postgres.start()
    try:
        for statement in ("CREATE ROLE chat SUPERUSER LOGIN", "CREATE DATABASE chat OWNER chat"):
            await value(postgres.url, statement)
        url = f"postgresql://chat@127.0.0.1:{postgres.port}/chat"
        server, texts = await chat_server(**NO_LIMITS, CHAT_DATABASE_URL=url), []
        maria = await site(server)
        inside = {"PGHOST": "127.0.0.1", "PGPORT": str(postgres.port)}
        async with talking(maria, texts):
            least = len(texts)
            await run(
                server, programs, command("docker compose exec -T postgres pg_dump"), **inside
            )
        assert is_its_owner_s_only(server, "chat.dump")
        epoch = await epoch_of(maria)
        await server.stop()
        said = await run(server, programs, command("docker compose stop"), **inside)
        assert "Rooms with a new epoch: 1." in said
        await server.start()
        await has_gone_back(maria, texts, epoch, least)
        await server.stop()
    finally:
        postgres.remove()


async def test_postgresql_goes_back_to_a_moment(
    chat_server: ChatServerFactory, programs: str
) -> None:
    postgres = PostgresServer()
    backups = postgres.folder / "backups"
    (backups / "wal").mkdir(parents=True)
    servers._hand_over(postgres.folder)
    postgres.options |= {"archive_mode": "on", "archive_command": f"cp %p {backups}/wal/%f"}
    postgres.start()
    try:
        server, texts = await chat_server(**NO_LIMITS, CHAT_DATABASE_URL=postgres.url), []
        maria = await site(server)
        async with talking(maria, texts):
            await run(server, programs, command("pg_basebackup"), BACKUPS=str(backups))
            least = len(texts)
            moment = str(await value(postgres.url, "SELECT clock_timestamp()"))
        epoch = await epoch_of(maria)
        await server.stop()
        segment = await value(postgres.url, "SELECT pg_walfile_name(pg_switch_wal())")
        await until(lambda: (backups / "wal" / str(segment)).exists())
        postgres.stop()
        variables = {"BACKUPS": str(backups), "PGDATA": str(postgres.data), "MOMENT": moment}
        await run(server, programs, command("recovery.signal"), **variables)
        servers._hand_over(postgres.folder)
        postgres.start()

        async def writable() -> bool:
            return not await value(postgres.url, "SELECT pg_is_in_recovery()")

        await until(writable)
        last = [block for block in BLOCKS if block == "python -m chat new-epoch\n"]
        ran.update(last)
        assert "Rooms with a new epoch: 1." in await run(server, programs, last[0])
        await server.start()
        await has_gone_back(maria, texts, epoch, least)
        await server.stop()
    finally:
        postgres.remove()


async def value(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_a_room_is_moved(chat_server: ChatServerFactory, programs: str) -> None:
    server, texts = await chat_server(**NO_LIMITS), []
    maria = await site(server)
    async with talking(maria, texts):
        pass
    await run(server, programs, command("export lobby"))
    assert is_its_owner_s_only(server, "lobby.jsonl")
    async with maria.enter("lobby-again", "?since=0") as member:
        await member.read_to(len(texts))
        assert member.texts[: len(texts)] == texts


class Previous(ChatServer):
    """A node of the version before the newest step of the tables."""

    def spawn(self, *arguments: str) -> None:
        self.process = launch(
            [sys.executable, "-m", "tests.previous", "serve", "--bind", f"127.0.0.1:{self.port}"],
            folder=self.folder,
            log=self.log_file,
            env=self.environment,
            dies_by=signal.SIGTERM,
        )


async def test_nodes_of_the_version_before_go_on_while_a_step_is_applied(
    chat_server: ChatServerFactory, tmp_path: Path, database_url: str
) -> None:
    settings = {**NO_LIMITS, "CHAT_DATABASE_URL": database_url}
    before, texts = Previous(tmp_path, settings), []
    await before.start()
    try:
        maria = await site(before)
        async with maria.enter("lobby", "?since=0") as listener:
            async with talking(maria, texts):
                assert await version(database_url) == PREVIOUS
                # The first node of the new version brings the step; both serve from then on.
                after = await chat_server(**settings)
                assert await version(database_url) != PREVIOUS
                there, count, more = replace(maria, server=after), len(texts), []
                async with talking(there, more):
                    await until(lambda: len(texts) > count + 20)
                await until(lambda: len(texts) > count + 40)
            log = await log_of(there)
            assert set(texts) | set(more) <= set(log), "acked, and lost"
            await listener.read_to(len(log))
            assert listener.texts == log
        assert before.running and "Database lost" not in before.log
        assert "ERROR" not in before.log, before.log
        assert await before.stop() == 0
    finally:
        before.end()
    assert await log_of(there) == log


async def version(url: str) -> str:
    database = Database(url)
    await database._database.connect()
    try:
        return str((await database.rows("SELECT version_num FROM alembic_version"))[0][0])
    finally:
        await database.close()


def test_each_command_of_the_page_was_run(request: pytest.FixtureRequest) -> None:
    names = {item.name for item in request.session.items if item.path == Path(__file__)}
    if len(names) < 5:
        pytest.skip("only some tests of this file are run")
    assert ran == set(BLOCKS)
