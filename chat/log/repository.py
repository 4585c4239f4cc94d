"""Rooms and their logs: `append`, `read` and `heads`, over the `databases` package.

The append is the one place that gives seqs. It locks the rooms, then looks up which ids are known
with a fresh snapshot, and only then counts on: so no seq is skipped, none given twice, and a
repeated id finds its first message. Called by `log/writer.py`, `chat.live` and `chat.web`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import UNSET

from chat.clock import now, rfc3339
from chat.errors import IdConflict, Unavailable
from chat.log.database import Database
from chat.log.epochs import new_epoch
from chat.log.heads import Heads, look
from chat.log.statements import Draft, Head, PostgreSQL, SQLite
from chat.protocol import MAX_INTEGER, Entry, Message, Person, direct_pair, entry

ROOM_ID_BITS = 53  # random bits of a room's id: never twice, and exact in any JSON


class Stored(NamedTuple):
    """Where a draft is in the log; `entry` is None for a duplicate."""

    seq: int
    sent_at: int
    duplicate: bool
    epoch: str
    entry: Entry | None


class Room(NamedTuple):
    """A room's row, as of now."""

    id: int
    name: str
    epoch: str
    first_seq: int
    last_seq: int


class RoomSummary(NamedTuple):
    """A room as one user's list shows it."""

    id: int
    name: str
    last_seq: int
    last_message_at: int
    last_read_seq: int  # the user's marker
    other: Person | None  # the other user of a direct room


class RoomRecord(NamedTuple):
    """A room as operators see it in a list of all."""

    name: str
    first_seq: int
    last_seq: int
    last_message_at: int  # ms; 0: nothing was ever said
    members: int  # who ever entered

    @property
    def messages(self) -> int:
        return self.last_seq - self.first_seq + 1


class Repository:
    def __init__(self, database: Database) -> None:
        self.database = database

    async def deployment(self) -> str:
        row = await self.database.row("SELECT id FROM deployment")
        assert row is not None, "the migration made it"
        return str(row[0])

    # --- Rooms

    async def find_room(self, name: str) -> Room | None:
        row = await self.database.row(f"{_ROOM} WHERE name = :name", {"name": name})
        return Room(*row) if row else None

    async def make_room(self, name: str) -> Room:
        """Return the room of this name, made if new."""
        pair = direct_pair(name) or (None, None)
        await self.database.change(
            "INSERT INTO rooms (id, name, epoch, created_at, low_user, high_user) VALUES"
            " (:id, :name, :epoch, :at, :low, :high) ON CONFLICT DO NOTHING RETURNING id",
            {
                # Never given again, even where an older state is put back: what is still said in a
                # room that vanished by that must not get into one that was made since.
                "id": secrets.randbits(ROOM_ID_BITS),
                "name": name,
                "epoch": new_epoch(),
                "at": now(),
                "low": pair[0],
                "high": pair[1],
            },
        )
        room = await self.find_room(name)
        if room is None:
            raise Unavailable("This room is being set up again.")
        return room

    async def rooms_of(
        self, user_id: int, after: str | None, limit: int
    ) -> tuple[list[RoomSummary], bool]:
        """Return the rooms with a message that the user may see, latest first, and if more."""
        rows = await self.database.rows(
            "SELECT r.id, r.name, last_seq, last_message_at, coalesce(last_read_seq, 0),"
            " o.id, o.name FROM rooms r"
            " LEFT JOIN members m ON m.room_id = r.id AND m.user_id = :u5"
            " LEFT JOIN users o ON o.id = low_user + high_user - :u6"
            " WHERE first_seq <= last_seq"
            " AND (low_user IS NULL OR low_user = :u1 OR high_user = :u2)"
            # A room that this user may not see places nothing, as one that does not exist.
            " AND (:a1 = '' OR EXISTS (SELECT 1 FROM rooms c WHERE c.name = :a2"
            " AND (c.low_user IS NULL OR c.low_user = :u3 OR c.high_user = :u4) AND"
            " (r.last_message_at < c.last_message_at OR"
            " (r.last_message_at = c.last_message_at AND r.name > c.name))))"
            " ORDER BY last_message_at DESC, r.name LIMIT :n",
            {
                "u1": user_id,
                "u2": user_id,
                "u3": user_id,
                "u4": user_id,
                "u5": user_id,
                "u6": user_id,
                "a1": after or "",
                "a2": after or "",
                "n": limit + 1,
            },
        )
        found = [
            RoomSummary(
                row[0],
                row[1],
                row[2],
                row[3],
                row[4],
                None if row[5] is None else Person(row[5], row[6]),
            )
            for row in rows[:limit]
        ]
        return found, len(rows) > limit

    async def all_rooms(self, after: RoomRecord | None, limit: int) -> list[RoomRecord]:
        """Return the rooms that come after this one, the latest message first."""
        rows = await self.database.rows(
            "SELECT name, first_seq, last_seq, coalesce(last_message_at, 0),"
            " (SELECT count(*) FROM members WHERE room_id = id) FROM rooms"
            " WHERE coalesce(last_message_at, 0) < :at1"
            " OR (coalesce(last_message_at, 0) = :at2 AND name > :name)"
            " ORDER BY coalesce(last_message_at, 0) DESC, name LIMIT :n",
            {
                "at1": after.last_message_at if after else MAX_INTEGER,
                "at2": after.last_message_at if after else MAX_INTEGER,
                "name": after.name if after else "",
                "n": limit,
            },
        )
        return [RoomRecord(*row) for row in rows]

    async def heads(self, room_ids: Sequence[int], since: int) -> Heads:
        """Look once at all these rooms, and at what was revoked or redacted after `since` (ms)."""
        return await look(self.database, room_ids, since)

    # --- The log

    async def read(self, room_id: int, after: int, limit: int) -> list[Entry]:
        """Return at most `limit` messages with seq > `after`, oldest first."""
        return await self._page("seq > {seq} ORDER BY seq LIMIT {limit}", room_id, after, limit)

    async def read_before(self, room_id: int, before: int | None, limit: int) -> list[Entry]:
        """Return the newest `limit` messages with seq < `before` (None: of all), oldest first."""
        bound = 2**62 if before is None else before
        page = "seq < {seq} ORDER BY seq DESC LIMIT {limit}"
        return (await self._page(page, room_id, bound, limit))[::-1]

    async def _page(self, page: str, room_id: int, seq: int, limit: int) -> list[Entry]:
        async with self.database.connection() as connection:
            raw: Any = connection.raw_connection
            if self.database.sqlite:
                sql = f"{_ENTRY} WHERE room_id = ?1 AND " + page.format(seq="?2", limit="?3")
                rows = await raw.execute_fetchall(sql, (room_id, seq, limit))
            else:
                sql = f"{_ENTRY} WHERE room_id = $1 AND " + page.format(seq="$2", limit="$3")
                rows = await raw.fetch(sql, room_id, seq, limit)
        return [_decode(row) for row in rows]

    async def append(self, drafts: Sequence[Draft]) -> list[Stored | IdConflict | Unavailable]:
        """Commit the drafts in this order, each under its room's next seq, and say where.

        One transaction for all rooms. Raises Unavailable where the commit was not confirmed;
        then nobody knows, and the same drafts may be given again.
        """
        # Where each key comes first among the drafts.
        folded: dict[tuple[int, int, str], int] = {}
        for place, draft in enumerate(drafts):
            folded.setdefault(draft.key, place)
        statements = SQLite if self.database.sqlite else PostgreSQL
        async with self.database.transaction() as raw:
            rooms = await statements.lock(raw, sorted({draft.room_id for draft in drafts}))
            known = await statements.known(raw, list(folded))
            results: dict[tuple[int, int, str], Stored] = {}
            new: list[tuple[Draft, int, int]] = []
            moment = now()
            for key, place in folded.items():
                draft = drafts[place]
                # A room that vanished under us (a database put back to an older state) has no
                # log to append to: its drafts are not confirmed, and its members start afresh.
                if key in known or draft.room_id not in rooms:
                    continue
                head = rooms[draft.room_id]
                head.last_seq += 1
                # A log's times never go backwards, whatever the clocks of the nodes do.
                head.at = max(head.at, moment)
                new.append((draft, head.last_seq, head.at))
                results[key] = Stored(
                    head.last_seq,
                    head.at,
                    False,
                    head.epoch,
                    _encode(draft, head.last_seq, head.at),
                )
            if new:
                touched = {draft.room_id for draft, _, _ in new}
                await statements.insert(raw, new)
                await statements.advance(raw, [rooms[room_id] for room_id in sorted(touched)])
        return [
            _answer(
                draft,
                drafts[folded[draft.key]] if folded[draft.key] != place else None,
                results.get(draft.key),
                known,
                rooms,
            )
            for place, draft in enumerate(drafts)
        ]


def _answer(
    draft: Draft,
    earlier: Draft | None,
    stored: Stored | None,
    known: dict[tuple[int, int, str], Any],
    rooms: dict[int, Head],
) -> Stored | IdConflict | Unavailable:
    if draft.room_id not in rooms:
        return Unavailable("This room is being set up again; send it again with the same id.")
    if earlier is None and stored is not None:
        return stored
    epoch = rooms[draft.room_id].epoch
    if draft.key in known:
        seq, sent_at, text, receiver_id, redacted = known[draft.key]
        same = draft.says(text, receiver_id) or redacted
    else:
        # Folded: an earlier draft of this batch had the same id.
        assert stored is not None and earlier is not None
        seq, sent_at = stored.seq, stored.sent_at
        same = draft.says(earlier.text, earlier.receiver.id if earlier.receiver else None)
    if not same:
        return IdConflict(
            "This id was stored before with another text or receiver; choose a new one."
        )
    return Stored(seq, sent_at, True, epoch, None)


_ROOM = "SELECT id, name, epoch, first_seq, last_seq FROM rooms"
_ENTRY = (
    "SELECT seq, message_id, sender_id, sender_name, receiver_id, receiver_name, text, sent_at,"
    " redacted FROM messages"
)


def _encode(draft: Draft, seq: int, at: int) -> Entry:
    return entry(Message(seq, draft.id, draft.sender, draft.receiver, draft.text, rfc3339(at)))


def _decode(row: Any) -> Entry:
    seq, message_id, sender_id, sender, receiver_id, receiver, text, sent_at, redacted = row
    return entry(
        Message(
            seq,
            message_id,
            Person(sender_id, sender),
            Person(receiver_id, receiver) if receiver_id is not None else None,
            "" if redacted else text,
            rfc3339(sent_at),
            True if redacted else UNSET,
        )
    )
