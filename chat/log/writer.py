"""Group commit: one task that appends all drafts that wait, of all rooms, in one transaction.

`append` returns a future; the task resolves it after the commit, and then hands what was committed
to `on_commit` (the hub), room by room. While one transaction runs, the next batch gathers: the
more there is to do, the cheaper each message gets. The app owns the task.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from chat.clock import now
from chat.errors import ChatError, IdConflict, Unavailable
from chat.log.faults import connection_lost, one_is_to_blame
from chat.log.repository import Repository, Stored
from chat.log.statements import Draft
from chat.ops import metrics
from chat.protocol import Entry

logger = logging.getLogger(__name__)

BATCH = 1_000  # drafts in one transaction: some tens of milliseconds of work
# Turns of the loop between two batches: frames go out, sockets are read, their frames arrive.
BREATH = 4
# Drafts that may wait, in all: what a thousand busy connections may have under way. Those are
# slowed down by not being read from; only a greater crowd is told to come again.
MAX_WAITING = 32_000
MAX_WAITING_CHARACTERS = 8_000_000  # of their texts: at most 32 MB

# What `check` writes and takes away again, in a room that nobody has. A long message needs pages of
# its own, so that it finds no place where the disk is full; a random one cannot be made smaller.
_INSERT = """
INSERT INTO messages (room_id, seq, message_id, sender_id, sender_name, text, sent_at)
VALUES (0, {seq}, 'check {seq}', 0, '', '{text}', 0)
"""
_DELETE = "DELETE FROM messages WHERE room_id = 0 AND seq = {seq}"
# The rooms are locked as an append does it, and not changed.
_LOCK = "UPDATE rooms SET last_seq = last_seq WHERE id IN ({rooms})"
SEQ_BITS = 53  # of its seq: two nodes' checks never meet
CHECK_BYTES = 6_000  # of the text, as 8,000 characters
CHECK_PAUSE, CHECK_LIMIT = 5.0, 1.5  # seconds between two looks of our own, and for each
CHECK_ROOMS = 100  # of those that the last failure was about, at most

OnCommit = Callable[[int, str, list[Entry]], None]  # room id, epoch, entries in order
Waiting = tuple[Draft, "asyncio.Future[Stored]"]


class Writer:
    def __init__(self, repository: Repository, on_commit: OnCommit) -> None:
        self._repository = repository
        self._on_commit = on_commit
        # Drafts in the order they came, each with the future that its sender waits for.
        self._waiting: deque[Waiting] = deque()
        # Characters of all drafts in _waiting.
        self._characters = 0
        # Set while something waits.
        self._bell = asyncio.Event()
        # Set while nothing waits and no transaction runs.
        self._idle = asyncio.Event()
        self._idle.set()
        # Since when nothing can be stored, in ms; None: the last commit went well.
        self.failing_since: int | None = None
        # Rooms that could not be stored to, for as long.
        self._failing_rooms: list[int] = []

    def append(self, draft: Draft) -> asyncio.Future[Stored]:
        """Queue a draft; the future brings where it is stored, IdConflict or Unavailable.

        Drafts of one room get their seqs in the order of these calls. Raises Unavailable at once
        where too many wait.
        """
        full = len(self._waiting) >= MAX_WAITING or self._characters >= MAX_WAITING_CHARACTERS
        if full:
            raise Unavailable("Too many messages wait to be stored; send it again a little later.")
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._waiting.append((draft, future))
        self._characters += len(draft.text)
        self._bell.set()
        self._idle.clear()
        return future

    async def flush(self) -> None:
        """Wait until everything that was queued has its answer."""
        await self._idle.wait()

    async def check(self, limit: float) -> None:
        """Write something where the last commit failed, within `limit` seconds.

        Raises Unavailable where that fails, too.
        """
        seq = secrets.randbits(SEQ_BITS)
        rooms = ", ".join(map(str, self._failing_rooms)) or "0"
        async with self._repository.database.transaction(limit) as raw:
            await raw.execute(_LOCK.format(rooms=rooms))
            await raw.execute(_INSERT.format(seq=seq, text=secrets.token_urlsafe(CHECK_BYTES)))
            await raw.execute(_DELETE.format(seq=seq))
        self._is_well()

    async def run(self) -> None:
        """Commit what waits, for ever. Cancelling it fails what still waits."""
        batch: list[Waiting] = []
        try:
            while True:
                await self._recover()
                batch = await self._take()
                try:
                    # One connection for as long as all goes well.
                    async with self._repository.database.held():
                        while True:
                            await self._commit(batch)
                            await self._breathe()
                            batch = await self._take()
                except Unavailable as error:
                    await self._after(batch, error)
        finally:
            _fail([*batch, *self._waiting], Unavailable())
            self._waiting.clear()
            self._idle.set()

    async def _recover(self) -> None:
        """While nothing can be stored and nobody sends, look whether it can be again."""
        while self.failing_since is not None and not self._waiting:
            self._idle.set()
            self._bell.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_PAUSE):
                    await self._bell.wait()
            if not self._waiting:
                with suppress(Unavailable):
                    await self.check(CHECK_LIMIT)

    async def _breathe(self) -> None:
        """Let the loop send what was committed, and read what came meanwhile.

        Idle, that takes microseconds. Under load it is what makes batches, and frames, large.
        """
        for _ in range(BREATH):
            await asyncio.sleep(0)

    async def _take(self) -> list[Waiting]:
        if not self._waiting:
            self._idle.set()
            self._bell.clear()
            await self._bell.wait()
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        self._characters -= sum(len(draft.text) for draft, _ in batch)
        return batch

    async def _commit(self, batch: list[Waiting]) -> None:
        began = time.perf_counter()
        results = await self._repository.append([draft for draft, _ in batch])
        metrics.COMMIT.observe(time.perf_counter() - began)
        metrics.BATCH.observe(len(batch))
        self._is_well()
        committed: dict[int, tuple[str, list[Entry]]] = {}
        for (draft, future), result in zip(batch, results, strict=True):
            if isinstance(result, IdConflict | Unavailable):
                _fail([(draft, future)], result)
                continue
            if not future.done():
                future.set_result(result)
            if result.entry is not None:
                entries = committed.setdefault(draft.room_id, (result.epoch, []))[1]
                entries.append(result.entry)
        for room_id, (epoch, entries) in committed.items():
            metrics.ACCEPTED.add(len(entries))
            self._on_commit(room_id, epoch, entries)

    async def _after(self, batch: list[Waiting], error: Unavailable) -> None:
        """Give a failed batch its second chance, or its answer."""
        if connection_lost(error):
            # The ids make it safe to say it all again: what was stored is found, not doubled.
            pieces = [batch]
        elif one_is_to_blame(error):
            pieces = [[one] for one in batch]
        else:
            return self._give_up(batch, error)
        for piece in pieces:
            try:
                await self._commit(piece)
            except Unavailable as again:
                self._give_up(piece, again)

    def _is_well(self) -> None:
        if self.failing_since is not None:
            self.failing_since = None
            metrics.FAILING.set(0)

    def _give_up(self, batch: list[Waiting], error: Unavailable) -> None:
        if not one_is_to_blame(error):
            self.failing_since = self.failing_since or now()
            metrics.FAILING.set(1)
            self._failing_rooms = sorted({draft.room_id for draft, _ in batch})[:CHECK_ROOMS]
        _fail(batch, error)


def _fail(batch: list[Waiting], error: ChatError) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
            # Its sender may be gone: nobody needs to be told that nobody asked.
            future.exception()
