"""A network for the tests that loses what they want it to lose, between a client and a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.servers import ChatServer


class Lossy:
    """A TCP proxy that can swallow what the server says, and cut its connections."""

    def __init__(self, server: ChatServer) -> None:
        self.server = server
        # Set before the start: the port it listens on.
        self.port = 0
        # While it is true nothing from the server arrives.
        self.swallowing = False
        # How many connections came so far.
        self.count = 0
        # What the server said, as it came over the wire.
        self.passed = bytearray()
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        self._open.add(writer)
        try:
            behind, before = await asyncio.open_connection("127.0.0.1", self.server.port)
        except OSError:
            writer.transport.abort()
            return
        self._open.add(before)
        ways = (self._pass_on(reader, before, False), self._pass_on(behind, writer, True))
        await asyncio.gather(*ways)

    def cut(self) -> None:
        """End all connections, as a lost network does in the end."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, from_server: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(64 * 1024):
                if not (from_server and self.swallowing):
                    writer.write(data)
                    self.passed += data if from_server else b""
        writer.close()


@asynccontextmanager
async def lossy(server: ChatServer) -> AsyncIterator[Lossy]:
    proxy = Lossy(server)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        proxy.cut()
