"""The yardstick: what one writes first with Starlette and Hypercorn, and nothing more.

A room is a set of sockets, and a text goes to each of them with `send_text`. No database, no
relay, no identity, no limits, Hypercorn's own defaults. `bench/servers.py` starts it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import defaultdict

import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

rooms: defaultdict[str, set[WebSocket]] = defaultdict(set)


async def chat(websocket: WebSocket) -> None:
    """Give every text to every member of the room, the sender included."""
    await websocket.accept()
    members = rooms[websocket.path_params["room"]]
    members.add(websocket)
    try:
        while True:
            text = await websocket.receive_text()
            # A copy: people come and go while a slow member is waited for.
            for member in tuple(members):
                await member.send_text(text)
    except WebSocketDisconnect:
        pass
    finally:
        members.discard(websocket)


app = Starlette(routes=[WebSocketRoute("/ws/chat/{room}/", chat)])


async def main(bind: str) -> None:
    config = Config()
    config.bind = [bind]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def stopped() -> None:
        await stop.wait()

    await serve(app, config, shutdown_trigger=stopped)  # type: ignore[arg-type]


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
