"""The farewell of a process: nobody new, everything answered, everybody sent home.

In this order: refuse new sockets; stop reading from the open ones; store what was sent; send the
acks and what lies after each cursor; ring the last bells; then `closing` and 1012, in slices, so
that a crowd does not come back all at once. Called by `ops/server.py` through the app.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from chat.live.hub import Hub
from chat.protocol import CloseCode
from chat.web.services import Services

logger = logging.getLogger(__name__)

# Seconds for each step. In all they stay below what a person waits for after Ctrl-C.
FLUSH_LIMIT = 2.0  # the last messages are stored: milliseconds, unless the database is away
SETTLE_LIMIT = 1.0  # members are sent what they have to come; one that does not read gets it later
FAREWELL_LIMIT = 1.0  # members are told
MARKS_LIMIT = 1.0  # when they were last seen, and what they have read
SETTLE_LOOK = 0.02  # seconds between two looks at who is not settled yet
SLICE = 200  # members that are told at once …
SLICE_PAUSE = 0.02  # … and seconds until the next ones are


async def drain(chat: Services) -> None:
    """Send everybody home, within the sum of the limits; nothing that was acked is lost."""
    chat.draining = True
    hub = chat.hub
    for member in list(hub.members):
        member.pause()
    stored = await _within(FLUSH_LIMIT, "store the last messages", chat.writer.flush())
    if stored:  # else the database is away, and there is nothing to send
        await _within(SETTLE_LIMIT, "send the last messages", _settled(hub))
    await chat.relay.flush()
    await _within(FAREWELL_LIMIT, "say good-bye", _send_home(hub))
    hub.presence.bye()
    await chat.relay.flush()
    await _within(MARKS_LIMIT, "store who was there", chat.marks.flush())


async def _settled(hub: Hub) -> None:
    # Looked for, not told: nobody should pay on the hot path for what happens once.
    while not all(member.settled for member in hub.members):  # noqa: ASYNC110
        await asyncio.sleep(SETTLE_LOOK)


async def _send_home(hub: Hub) -> None:
    for place, member in enumerate(list(hub.members), 1):
        member.end(CloseCode.RESTART, "restart")
        if place % SLICE == 0:
            await asyncio.sleep(SLICE_PAUSE)
    await hub.deserted.wait()


async def _within(limit: float, what: str, step: Coroutine[Any, Any, object]) -> bool:
    try:
        async with asyncio.timeout(limit):
            await step
    except TimeoutError:
        logger.warning("Draining: %s s were not enough to %s", limit, what)
        return False
    return True
