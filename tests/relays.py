"""A relay under test, with a record of what it reported; waits are for events, with one limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from chat.live.relay import Relay

# Seconds after which a test that waits has failed. Far above what the relay promises (5 s).
LIMIT = 20.0
# Seconds between two looks at a state that rings no bell.
LOOK_INTERVAL = 0.005


async def until(true: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(LIMIT):
        while not true():
            await asyncio.sleep(LOOK_INTERVAL)


class Node:
    """One process' relay."""

    def __init__(self, url: str, process: str, *, prefix: str = "test") -> None:
        self.gaps: list[str] = []
        self.controls: list[str] = []
        self.relay = Relay(
            url,
            prefix=prefix,
            process=process,
            on_gap=self.gaps.append,
            on_control=self.controls.append,
        )


@asynccontextmanager
async def nodes(url: str, *names: str, prefix: str = "test") -> AsyncIterator[list[Node]]:
    """Open a relay for each name; close them at the end."""
    opened = [Node(url, name, prefix=prefix) for name in names]
    async with asyncio.timeout(LIMIT):
        for node in opened:
            await node.relay.open()
    try:
        yield opened
    finally:
        async with asyncio.timeout(LIMIT):
            for node in opened:
                await node.relay.close()


class Listener:
    """A subscription that keeps all it hears."""

    def __init__(self, texts: AsyncIterator[str]) -> None:
        self.heard: list[str] = []
        self._task = asyncio.create_task(self._keep(texts))

    async def _keep(self, texts: AsyncIterator[str]) -> None:
        async for text in texts:
            self.heard.append(text)

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def listening(node: Node, channel: str) -> AsyncIterator[Listener]:
    """Listen, with the subscription confirmed where the relay is not lost."""
    async with node.relay.listen(channel) as texts:
        listener = Listener(texts)
        try:
            async with asyncio.timeout(LIMIT):
                await node.relay.confirmed(channel)
            yield listener
        finally:
            await listener.stop()
