"""A mirror for the load: as little server as there can be, to see what the load alone can take.

It speaks the chat's `welcome`, `ack` and `messages`, keeps nothing and checks nothing, and gives
the messages of each few milliseconds to all members of a room as one frame, encoded once. What
is measured against it is the ceiling of the load, not a figure of any chat.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from logging import ERROR, getLogger

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

# Seconds between two deliveries: what a commit takes.
PAUSE = 0.005
WELCOME = b'{"type":"welcome","last_seq":%d}'
ACK = b'{"type":"ack","id":"%b","seq":%d,"sent_at":"2026-11-24T10:00:00.123Z","duplicate":false}'
ENTRY = (
    b'{"seq":%d,"id":"%b","sender":{"id":7,"name":"bench-7"},"receiver":null,'
    b'"text":"%b","sent_at":"2026-11-24T10:00:00.123Z"}'
)


@dataclass
class Room:
    members: set[WSTransport] = field(default_factory=set)
    last: int = 0
    waiting: list[bytes] = field(default_factory=list)


rooms: defaultdict[str, Room] = defaultdict(Room)


class Socket(WSListener):
    def __init__(self, name: str) -> None:
        self.name = name
        self.room = rooms[name]

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.room.members.add(transport)
        transport.send(WSMsgType.TEXT, WELCOME % self.room.last)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.room.members.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            transport.disconnect()
            return
        payload = frame.get_payload_as_bytes()
        _, _, rest = payload.partition(b'"id":"')
        number, _, rest = rest.partition(b'","text":"')
        room = self.room
        room.last += 1
        room.waiting.append(ENTRY % (room.last, number, rest[:-2]))
        transport.send(WSMsgType.TEXT, ACK % (number, room.last))


def deliver() -> None:
    for name, room in rooms.items():
        if room.waiting:
            entries = b",".join(room.waiting)
            frame = b'{"type":"messages","room":"%b","messages":[%b]}' % (name.encode(), entries)
            room.waiting.clear()
            for member in tuple(room.members):
                member.send(WSMsgType.TEXT, frame)


async def main(bind: str) -> None:
    getLogger("picows").setLevel(ERROR)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def route(request: WSUpgradeRequest) -> Socket:
        return Socket(request.path.decode().split("/")[3])

    host, _, port = bind.rpartition(":")
    server = await ws_create_server(route, host, int(port), websocket_handshake_timeout=30)
    while not stop.is_set():
        deliver()
        await asyncio.sleep(PAUSE)
    server.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
