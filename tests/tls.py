"""TLS in front of a server that speaks none, as Redis from a wheel does not.

A small asyncio proxy on a free port of 127.0.0.1 with a certificate made on the fly.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

# Bytes moved at once.
CHUNK = 64 * 1024


@dataclass(frozen=True)
class TlsProxy:
    """Where the proxy listens, and the file with the authority that signed its certificate."""

    port: int
    authority: Path


@asynccontextmanager
async def tls_proxy(port: int, folder: Path) -> AsyncIterator[TlsProxy]:
    """End TLS on a free port and pass everything on to `port`; the certificate names 127.0.0.1."""
    authority = trustme.CA()
    authority_file = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(authority_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            behind, before = await asyncio.open_connection("127.0.0.1", port)
            try:
                ways = [
                    asyncio.create_task(_pass_on(reader, before)),
                    asyncio.create_task(_pass_on(behind, writer)),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                before.transport.abort()
        writer.transport.abort()

    tasks: set[asyncio.Task[None] | None] = set()
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield TlsProxy(server.sockets[0].getsockname()[1], authority_file)
    finally:
        server.close()
        for task in tasks:
            if task is not None:
                task.cancel()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
