"""What the ticker finds of redactions; heads and revocations are in test_repository.py."""

from __future__ import annotations

from chat.log.heads import REVOCATION_OVERLAP
from chat.log.redactions import redact
from tests.storage import draft, repositories


async def test_heads_bring_what_was_redacted_lately_in_the_rooms_asked_for(
    database_url: str,
) -> None:
    async with repositories(database_url, 1) as [log]:
        lobby, other = await log.make_room("lobby"), await log.make_room("other")
        await log.append([draft(lobby), draft(lobby), draft(other)])
        start = (await log.heads([], 0)).clock
        assert (await log.heads([lobby.id], start)).redacted == {}
        await redact(log.database, lobby.id, 2)
        await redact(log.database, other.id, 1)
        heads = await log.heads([lobby.id], start)
        assert heads.redacted == {lobby.id: [2]}
        # Again and again, for as long as an answer from before may be under way.
        assert (await log.heads([lobby.id, other.id], heads.clock)).redacted == {
            lobby.id: [2],
            other.id: [1],
        }
        later = await log.heads([lobby.id], heads.clock + REVOCATION_OVERLAP + 1_000)
        assert later.redacted == {}
