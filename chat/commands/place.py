"""Where a chat is to be found, and a question to it over HTTP: for `healthcheck.py`.

Whatever goes wrong on the way is a `Failing`, whose sentence says what to do about it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import h11

from chat.commands import Impossible

MAX_BODY = 64 * 1024  # bytes; ours are some hundred
PORTS = {"http": 80, "https": 443}
# What a server listens on to be found at all its addresses, and one of these.
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# What proxies answer where what is behind them does not.
GATEWAY = (502, 503, 504)


class Failing(Exception):
    """A check failed; the sentence is advice."""


@dataclass(frozen=True)
class Place:
    """An address of the chat, its own or a proxy's."""

    url: str
    # Where to connect.
    at: tuple[str, int]
    # What to ask for: the chat serves some names only.
    host: str
    secure: bool
    is_proxy: bool

    @classmethod
    def of(cls, url: str, allowed: Sequence[str] | None = None) -> Self:
        """Read a URL; raise Impossible. `allowed` are the names served, None for a proxy's.

        The chat itself may be asked by an address that is no name of it, such as 127.0.0.1.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS[parts.scheme]
        except (ValueError, KeyError):
            port = 0
        if not port or not parts.hostname:
            raise Impossible(f"{url} is no address such as http://127.0.0.1:8000.")
        name = ANYWHERE.get(parts.hostname, parts.hostname)
        host = f"[{name}]" if ":" in name else name
        if allowed and "*" not in allowed and host not in allowed:
            host = allowed[0]
        if port != PORTS[parts.scheme]:
            host += f":{port}"
        return cls(url, (name, port), host, parts.scheme == "https", allowed is None)

    @property
    def who(self) -> str:
        return "The proxy" if self.is_proxy else "It"

    def room(self, name: str) -> str:
        """Return the address of a room's socket."""
        return f"{'wss' if self.secure else 'ws'}://{self.host}/ws/chat/{name}/"

    def refusal(self, status: int) -> str:
        """Return advice on an HTTP status in the place of what was asked for."""
        if status == 400:
            return f"{self.who} does not serve the name {self.host}: look at CHAT_ALLOWED_HOSTS."
        if status in GATEWAY and self.is_proxy:
            return (
                f"The proxy answers {status}: it does not reach the chat. Does the chat run where"
                " the proxy passes requests on to?"
            )
        if status == 503:
            return "It takes nobody in: it is being stopped, or too many come at once."
        if self.is_proxy:
            return (
                "The proxy answers, but does not pass Upgrade on (HTTP"
                f" {status}): it must pass on the headers Upgrade and Connection."
            )
        return (
            f"It answers HTTP {status} to a WebSocket handshake: is it Tertulia, and not a proxy"
            " that does not pass Upgrade on?"
        )


async def ask(place: Place, path: str, good: Sequence[int] = (200,)) -> bytes:
    """Ask for a page, and return its body; raise Failing."""
    try:
        status, body = await _exchange(place, path)
    except ConnectionRefusedError as error:
        what = "the proxy" if place.is_proxy else "the chat"
        raise Failing(
            f"Nobody listens at {place.url}: does {what} run, and is this its address?"
        ) from error
    except socket.gaierror as error:
        raise Failing(f"The name in {place.url} is not known: is it misspelled?") from error
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or "no reason is given"
        raise Failing(f"{place.who} cannot be trusted: {reason}.") from error
    except OSError as error:
        raise Failing(
            f"{place.url} cannot be reached ({type(error).__name__}): look at the network."
        ) from error
    except h11.RemoteProtocolError as error:
        raise Failing(f"What listens at {place.url} does not speak HTTP.") from error
    if status in good:
        return body
    if status == 400 or status in GATEWAY:
        raise Failing(place.refusal(status))
    raise Failing(f"{place.who} answers {status} for {path}: is that Tertulia?")


async def _exchange(place: Place, path: str) -> tuple[int, bytes]:
    secure: dict[str, Any] = {}
    if place.secure:
        name = urlsplit(f"//{place.host}").hostname
        secure = {"ssl": ssl.create_default_context(), "server_hostname": name}
    reader, writer = await asyncio.open_connection(*place.at, **secure)
    try:
        client = h11.Connection(h11.CLIENT)
        headers = [("Host", place.host), ("Connection", "close")]
        writer.write(client.send(h11.Request(method="GET", target=path, headers=headers)) or b"")
        writer.write(client.send(h11.EndOfMessage()) or b"")
        status, body = 0, b""
        while True:
            match client.next_event():
                case h11.NEED_DATA:
                    client.receive_data(await reader.read(MAX_BODY))
                case h11.Response() as response:
                    status = response.status_code
                case h11.Data() as data:
                    body += data.data
                    if len(body) > MAX_BODY:
                        return status, b""
                case h11.EndOfMessage():
                    return status, body
    finally:
        writer.close()
