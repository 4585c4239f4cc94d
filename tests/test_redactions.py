"""Texts that are taken away: for good, once, and with a note that every node finds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from chat.log.redactions import Outcome, forget, of_room, redact
from tests.storage import draft, log_of, repositories, stored

SECRET = "the number of her house is 17"


async def test_a_redacted_message_keeps_its_place_and_loses_its_text(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        lobby = await log.make_room("lobby")
        await log.append([draft(lobby, "one"), draft(lobby, SECRET), draft(lobby, "three")])
        assert await redact(log.database, lobby.id, 2) is Outcome.REDACTED
        assert [(one["seq"], one["text"]) for one in await log_of(log, lobby)] == [
            (1, "one"),
            (2, ""),
            (3, "three"),
        ]
        assert await log.database.rows("SELECT text, redacted FROM messages WHERE seq = 2") in (
            [("", True)],
            [("", 1)],
        )
        assert await redact(log.database, lobby.id, 2) is Outcome.REPEATED
        assert await redact(log.database, lobby.id, 4) is Outcome.MISSING
        assert await redact(log.database, lobby.id + 1, 1) is Outcome.MISSING


async def test_a_repeat_of_a_redacted_message_is_a_duplicate_and_brings_no_text_back(
    database_url: str,
) -> None:
    async with repositories(database_url, 1) as [log]:
        lobby = await log.make_room("lobby")
        message = draft(lobby, SECRET)
        await log.append([message])
        await redact(log.database, lobby.id, 1)
        [again] = await log.append([message])
        assert (stored(again).seq, stored(again).duplicate) == (1, True)
        assert [one["text"] for one in await log_of(log, lobby)] == [""]


async def test_the_latest_redactions_of_a_room_are_told_the_oldest_first(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        lobby, other = await log.make_room("lobby"), await log.make_room("other")
        await log.append([draft(lobby) for _ in range(4)] + [draft(other)])
        for seq in (4, 1, 3):
            await redact(log.database, lobby.id, seq)
            await log.database.change(
                "UPDATE redactions SET redacted_at = redacted_at - 1000 RETURNING seq"
            )
        assert await of_room(log.database, lobby.id, 10) == [4, 1, 3]
        assert await of_room(log.database, lobby.id, 2) == [1, 3]
        assert await of_room(log.database, other.id, 10) == []


async def test_nothing_of_the_text_is_left_in_the_files_of_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/chat.db"
    async with repositories(url) as [log, other]:
        lobby = await log.make_room("lobby")
        # One that lies within a page, and one that needs pages of its own.
        texts = [SECRET, f"{SECRET}, " * 120]
        await log.append([draft(lobby, text) for text in [*texts, "kept"]])
        await other.read(lobby.id, 0, 10)
        assert any(SECRET.encode() in file.read_bytes() for file in tmp_path.iterdir())
        for seq in (1, 2):
            await redact(log.database, lobby.id, seq)
        assert await forget(log.database)
        for file in tmp_path.iterdir():
            assert SECRET.encode() not in file.read_bytes(), file
        assert [one["text"] for one in await log_of(other, lobby)] == ["", "", "kept"]


async def test_who_reads_in_the_write_ahead_log_hinders_only_its_emptying(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/chat.db"
    async with repositories(url, 1) as [log]:
        lobby = await log.make_room("lobby")
        await log.append([draft(lobby, SECRET)])
        with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM messages").fetchall()
            await log.database.rows("PRAGMA busy_timeout = 1")
            await redact(log.database, lobby.id, 1)
            assert not await forget(log.database)
        assert await forget(log.database)
