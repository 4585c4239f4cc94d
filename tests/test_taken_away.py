"""Who comes back is told of what went meanwhile, or starts afresh; nothing gets out any more."""

from __future__ import annotations

import json

import pytest

from chat.live import taken_away
from chat.live.taken_away import KNOWN, TakenAway
from chat.log.redactions import MARGIN, redact
from tests.live import run
from tests.storage import change, draft, repositories


def test_only_what_is_new_is_told_and_the_latest_stay_known() -> None:
    taken = TakenAway([1, 2])
    assert taken.add([2, 3]) == [3]
    assert taken.add([2, 3]) == []
    assert taken.add(range(10, 10 + 2 * KNOWN)) == list(range(10, 10 + 2 * KNOWN))
    # The look is over; of it, as many stay as anybody is told of, and one more.
    assert taken.add([500]) == [500]
    assert len(taken._seqs) == KNOWN + 2
    assert taken.add([500, 9 + 2 * KNOWN]) == []


def test_what_was_under_way_gets_out_without_its_text() -> None:
    entries = TakenAway([4]).cleaned(run(3, 5))
    found = [json.loads(one.json) for one in entries]
    assert [one.get("redacted") for one in found] == [None, True, None]
    assert found[1]["text"] == ""
    same = run(1, 2)
    assert TakenAway([4]).cleaned(same) is same


async def test_who_comes_back_is_told_of_what_went_since(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taken_away, "TOLD", TOLD := KNOWN + 10)
    async with repositories(database_url, 1) as [log]:
        lobby = await log.make_room("lobby")
        await log.append([draft(lobby) for _ in range(3 * TOLD)])

        async def missed(seq: int) -> list[int]:
            taken = await TakenAway.load(log.database, lobby.id)
            return sorted(await taken.missed(log.database, lobby.id, seq))

        for seq in range(1, TOLD + 1):
            await redact(log.database, lobby.id, seq)
            if seq in (KNOWN, TOLD):
                assert await missed(3 * TOLD) == list(range(1, seq + 1))
        assert await missed(2) == [1, 2]
        await redact(log.database, lobby.id, TOLD + 1)
        assert len(await missed(3 * TOLD)) == TOLD, "the newest"
        assert await missed(TOLD) == list(range(1, TOLD + 1))
        # One whose newest message came after all that knows of it already.
        await change(
            log.database, "UPDATE redactions SET redacted_at = redacted_at - :ms", ms=2 * MARGIN
        )
        assert await missed(3 * TOLD) == []
        await redact(log.database, lobby.id, 90)
        assert await missed(3 * TOLD) == [90]
        assert await missed(80) == []


async def test_what_goes_while_the_log_is_asked_is_told_too(database_url: str) -> None:
    async with repositories(database_url, 1) as [log]:
        lobby = await log.make_room("lobby")
        await log.append([draft(lobby)])
        taken = TakenAway(range(100, 101 + KNOWN))
        rows = log.database.rows

        async def meanwhile(*arguments: object) -> object:
            found = await rows(*arguments)  # type: ignore[arg-type]
            taken.add([1])
            return found

        log.database.rows = meanwhile  # type: ignore[assignment, method-assign]
        assert await taken.missed(log.database, lobby.id, 1) == [1]
