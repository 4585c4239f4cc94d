"""What Hypercorn writes into the log: one line a request, and no more than that for strangers.

The access log can hold neither a query string, a Referer nor any other header, whatever its
format says: tokens travel there. Nothing in a line can begin a new one. Set by `config.py`, opened
by `server.py`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any
from urllib.parse import quote

from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.typing import ResponseSummary, WWWScope
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from chat.errors import SettingsError

# What may stand in a path or a method as it is; the rest is percent-encoded.
PLAIN = "/%:@!$&()*+,;=~[]"


class Atoms(dict[str, Any]):
    """The values of an access log format; a name that is not here is "-"."""

    def __missing__(self, key: str) -> str:
        return "-"


class ServerLog(Logger):
    """Hypercorn's logger without what a stranger could make of it."""

    def atoms(
        self, request: WWWScope, response: ResponseSummary | None, request_time: float
    ) -> Atoms:
        """The values for one line of the access log."""
        scope: Any = request
        client = scope.get("client")
        path = quote(scope["raw_path"], safe=PLAIN)
        method = quote(scope.get("method", "GET"), safe=PLAIN)
        headers = () if response is None else response.get("headers", ())
        length = next((value for name, value in headers if name.lower() == b"content-length"), b"-")
        return Atoms(
            h=f"{client[0]}:{client[1]}" if client else "-",
            t=time.strftime("[%d/%b/%Y:%H:%M:%S %z]"),
            r=f"{method} {path} {scope.get('http_version', 'ws')}",
            s="-" if response is None else response["status"],
            S=scope["scheme"],
            m=method,
            U=path,
            H=scope.get("http_version", "ws"),
            b=length.decode("latin-1"),
            B=length.decode("latin-1"),
            T=int(request_time),
            D=int(request_time * 1_000_000),
            L=f"{request_time:.6f}",
            p=f"<{os.getpid()}>",
        )

    async def info(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Hypercorn's one such line says where it listens, which `serve` announces better."""
        await self.debug(message, *args, **kwargs)

    async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        """An error with its trace, unless it only says that a client went away."""
        if isinstance(sys.exception(), (ClientDisconnect, WebSocketDisconnect, ConnectionError)):
            await self.debug(message, *args, **kwargs)
        else:
            await super().exception(message, *args, **kwargs)


def open_logs(config: Config) -> None:
    """Open what the settings name, before Hypercorn does; raise SettingsError.

    Where the program has set up logging, Hypercorn's lines look like all others.
    """
    if logging.getLogger().handlers:
        if config.accesslog == "-":
            config.accesslog = logging.getLogger("hypercorn.access")
        if config.errorlog == "-":
            config.errorlog = logging.getLogger("hypercorn.error")
    try:
        _ = config.log
    # What a `logconfig` holds can be wrong in many ways.
    except Exception as error:
        raise SettingsError(
            f"accesslog, errorlog, loglevel or logconfig cannot be used: {error}."
        ) from error
