"""What `healthcheck` says, and what may stand between it and a chat, or in the chat's place.

The fixture `check`, which runs it, is in `houses.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from tests.servers import ChatServer

Check = Callable[..., Awaitable[tuple[int, dict[str, str]]]]

ALL_OK = {"http": "ok", "websocket": "ok", "database": "ok", "relay": "ok"}


def lines(text: str) -> dict[str, str]:
    """Return what is said of each check, after a look at its form."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([a-z ]+?) +(ok|fail) +\d+ ms  (\S.*)", line)
        assert match, line
        found[match[1]] = f"{match[2]}: {match[3]}"
    return found


def words(said: dict[str, str]) -> dict[str, str]:
    return {name: sentence.partition(":")[0] for name, sentence in said.items()}


def names_that_hang(folder: Path) -> dict[str, str]:
    """Return what programs need in their environment to find no name within any patience."""
    code = "import socket, time\nsocket.getaddrinfo = lambda *_, **__: time.sleep(60)\n"
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


# --- A proxy


@asynccontextmanager
async def proxy(server: ChatServer, pass_on: Callable[[bytes], bytes | None]) -> AsyncIterator[str]:
    """A proxy that changes each request's head as it likes; yield its address.

    A head that begins with HTTP is an answer of its own; None: it says nothing.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = pass_on(await reader.readuntil(b"\r\n\r\n"))
        if head is None or head.startswith(b"HTTP/"):
            writer.write(head or b"")
            if head is None:
                await reader.read()  # until the client goes
            writer.close()
            return
        behind, before = await asyncio.open_connection("127.0.0.1", server.port)
        before.write(head)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
            target.close()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(copy(reader, before))
                tasks.create_task(copy(behind, writer))
        except* ConnectionError:
            pass
        finally:
            writer.close()
            before.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def without_upgrade(head: bytes) -> bytes:
    kept = [
        line
        for line in head.split(b"\r\n")
        if not line.lower().startswith((b"upgrade:", b"connection:", b"sec-websocket"))
    ]
    return b"\r\n".join([*kept[:-2], b"Connection: close", b"", b""])


def answer(status: int, body: str = "", **headers: str) -> bytes:
    """An answer of a proxy's own."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "Connection: close", "", body]).encode()


# --- Something else in the place of the chat

WELL = {
    "/healthz": '{"status":"ok"}',
    "/readyz": '{"checks":{"database":{"status":"ok"},"relay":{"status":"ok"},'
    '"tasks":{"status":"ok","failed":[]}}}',
}


@asynccontextmanager
async def pretender(
    pages: Mapping[str, str] = WELL, *, says: str = "", closes: int = 4401
) -> AsyncIterator[int]:
    """A server of these pages, whose sockets say this and are closed; yield its port."""

    async def talk(socket: ServerConnection) -> None:
        if says:
            await socket.send(says)
        await socket.close(closes)

    def page(socket: ServerConnection, request: Request) -> Response | None:
        if "Upgrade" in request.headers:
            return None
        found = pages.get(request.path)
        return socket.respond(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND, found or "")

    async with serve(talk, "127.0.0.1", 0, process_request=page) as server:
        yield next(iter(server.sockets)).getsockname()[1]
