"""The product within the test's own process, under its real server and behind a real port.

For what cannot be seen from outside, or lasts too long there: a test may look at `services`, and
change a constant of `chat`. `server` is what the clients of tests/people.py take.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import hypercorn.asyncio

from chat.app import create_app
from chat.ops import stream
from chat.ops.config import address_of, bound, load_config
from chat.ops.peer import connected
from chat.settings import Settings
from chat.web.services import Services
from tests.people import NO_LIMITS
from tests.servers import SECRET_KEY, STOP_LIMIT, ChatServer


@dataclass(frozen=True)
class Inside:
    server: ChatServer
    services: Services


@asynccontextmanager
async def inside(folder: Path, *, read_timeout: float | None = None) -> AsyncIterator[Inside]:
    """Serve the app on SQLite, without limits; `read_timeout` in seconds instead of our own."""
    environ = {"CHAT_SECRET_KEY": SECRET_KEY, "CHAT_DATABASE_URL": f"sqlite:///{folder}/chat.db"}
    app = create_app(Settings.load({**NO_LIMITS, **environ}))
    stream.install()
    sock = bound("127.0.0.1:0")
    port = int(address_of(sock).rpartition(":")[2])
    config = load_config(bind=[f"fd://{sock.detach()}"])
    config.accesslog = config.errorlog = None
    if read_timeout is not None:
        config.read_timeout = read_timeout
    listening, stop = asyncio.Event(), asyncio.Event()

    async def until_stop() -> None:
        listening.set()
        await stop.wait()

    serving = asyncio.create_task(
        hypercorn.asyncio.serve(app, config, shutdown_trigger=until_stop, mode="asgi")
    )
    await asyncio.wait(
        [serving, asyncio.create_task(listening.wait())], return_when=asyncio.FIRST_COMPLETED
    )
    if serving.done():
        await serving
    try:
        yield Inside(ChatServer(folder, {}, port=port), app.state.services)
    finally:
        stop.set()
        for peer in list(connected):
            peer.abort()
        async with asyncio.timeout(STOP_LIMIT):
            await serving
