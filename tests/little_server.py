"""A little app under the real `serve`, in a process of its own, for the tests of chat/ops.

`launched` starts it: `python -m tests.little_server BIND WORKERS [FAULT]`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from chat.errors import ChatError, SettingsError
from chat.ops.server import load_config, serve

CHECKOUT = Path(__file__).parents[1]
SOON = 15.0  # seconds; a start, or a stop with everything still open


def create_app(fault: str) -> Starlette:
    sockets: set[WebSocket] = set()

    async def home(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(os.getpid()))

    async def crash(request: Request) -> PlainTextResponse:
        raise LookupError("our own fault")

    async def upload(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        sockets.add(socket)
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except WebSocketDisconnect as end:
            print("disconnect", end.code, flush=True)
        finally:
            sockets.discard(socket)

    async def careless(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            await socket.receive_text()

    async def stubborn(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if fault != "immortal":
                    raise

    async def drain() -> None:
        print("drain", flush=True)
        if fault == "drain":
            raise LookupError("no good-bye")
        for socket in list(sockets):
            await socket.close(1012)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        marker = Path(os.environ.get("LITTLE_MARKER", "/nonexistent"))
        if fault == "settings":
            raise SettingsError("CHAT_X must be a number.")
        if fault == "chat":
            raise ChatError("The database does not answer.")
        if fault == "bug":
            raise LookupError("one\ntwo")
        if fault == "slow start":
            # In one piece: two workers say it at once.
            sys.stdout.write("starting\n")
            sys.stdout.flush()
            while not marker.exists():
                await asyncio.sleep(0.01)
        if fault == "second start" and marker.exists():
            raise ChatError("The database went away.")
        yield
        print("lifespan over", flush=True)
        if fault == "stop":
            raise LookupError("no end")

    app = Starlette(
        routes=[
            Route("/", home),
            Route("/crash", crash),
            Route("/upload", upload, methods=["POST"]),
            WebSocketRoute("/echo", echo),
            WebSocketRoute("/careless", careless),
            WebSocketRoute("/stubborn", stubborn),
        ],
        lifespan=lifespan,
    )
    app.state.drain = drain
    return app


class Launched:
    """The process, and what it has said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def line(self, part: str) -> str:
        """The first line that contains this, as soon as there is one."""

        def found() -> str | None:
            return next((line for line in self.lines if part in line), None)

        with self.changed:
            self.changed.wait_for(lambda: found() or not self.reader.is_alive(), SOON)
            line = found()
        assert line is not None, self.text
        return line

    @property
    def port(self) -> int:
        return int(self.line("open ").rstrip("/").rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        code = self.process.wait(SOON)
        self.reader.join(SOON)
        return code


@contextmanager
def launched(
    workers: int = 1, fault: str = "", *, bind: str = "127.0.0.1:0", **environment: str
) -> Iterator[Launched]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.little_server", bind, str(workers), fault],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Launched(process)
    try:
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        server.end()


def main(bind: str, workers: str, fault: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    path = os.environ.get("LITTLE_CONFIG")
    config = load_config(Path(path) if path else None, bind=[bind], workers=int(workers))
    return serve(
        lambda: create_app(fault), config, announce=lambda url: print("open", url, flush=True)
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
