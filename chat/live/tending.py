"""A look at all members every few seconds: who cannot be sent to, and how far behind that one is.

A timer for each frame would cost a fifth of the sending. `app.py` runs it as a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from typing import NoReturn

from chat.live.room import Member
from chat.ops import metrics

TEND = 5.0  # seconds between two looks


async def tend(members: AbstractSet[Member]) -> NoReturn:
    """Let those give up whose frame takes too long, and count the slow ones, for ever."""
    while True:
        await asyncio.sleep(TEND)
        moment = asyncio.get_running_loop().time()
        looks = [member.tend(moment) for member in list(members)]
        behind = [messages for messages in looks if messages is not None]
        metrics.SLOW.set(len(behind))
        metrics.SLOW_BEHIND.set(max(behind, default=0))
