"""All come back at once, as after a restart: each room is looked up and read once for all."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from starlette.applications import Starlette

from chat.app import create_app
from chat.log.repository import Repository
from chat.settings import Settings
from tests.servers import SECRET_KEY
from tests.storage import draft

CROWD = 500
LIMIT = 30  # seconds; far more than it takes


async def come(app: Starlette, cookie: str, since: int, welcome: asyncio.Semaphore) -> list[Any]:
    """Come as one client of the crowd; return the frames until the first messages are there."""
    frames: list[Any] = []
    done = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not frames:
            frames.append(None)
            return {"type": "websocket.connect"}
        await done.wait()
        return {"type": "websocket.disconnect", "code": 1001}

    async def send(event: Any) -> None:
        if event["type"] == "websocket.send":
            frames.append(json.loads(event["text"]))
            if frames[-1]["type"] == "messages":
                welcome.release()
                done.set()

    scope = {
        "type": "websocket",
        "path": "/ws/chat/lobby/",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {cookie}".encode())],
        "query_string": f"since={since}".encode(),
        "extensions": {"websocket.http.response": {}},
    }
    await app(scope, receive, send)
    return frames[1:]


async def test_a_crowd_that_comes_back_reads_each_room_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load(
        {
            "CHAT_SECRET_KEY": SECRET_KEY,
            "CHAT_DATABASE_URL": database_url,
            "CHAT_MAX_CONNECTIONS_PER_USER": "0",
        }
    )
    app = create_app(settings)
    calls: Counter[str] = Counter()
    for name in ("find_room", "make_room", "read", "read_before"):
        original = getattr(Repository, name)

        def counting(name: str = name, original: Any = original) -> Any:
            async def call(*args: Any, **kwargs: Any) -> Any:
                calls[name] += 1
                return await original(*args, **kwargs)

            return call

        monkeypatch.setattr(Repository, name, counting())
    async with asyncio.timeout(LIMIT), app.router.lifespan_context(app):
        chat = app.state.services
        room = await chat.repository.make_room("lobby")
        for _ in range(3):
            await chat.writer.append(draft(room))
        token, _ = chat.identities.mint(await chat.users.site_user("maria"), None, 60)
        calls.clear()
        welcome = asyncio.Semaphore(0)
        crowd = [asyncio.create_task(come(app, token, 1, welcome)) for _ in range(CROWD)]
        for _ in crowd:
            await welcome.acquire()
        for frames in await asyncio.gather(*crowd):
            assert [frame["type"] for frame in frames] == ["welcome", "messages"]
            assert frames[0]["resumed"] is True
            assert [one["seq"] for one in frames[1]["messages"]] == [2, 3]
    # Once by name, once more after the tail was read; and the tail itself. Who came a little
    # later may look by name once more.
    assert calls["find_room"] <= 4
    assert calls["read_before"] <= 2
    assert calls["read"] <= 1
    assert calls["make_room"] == 0
