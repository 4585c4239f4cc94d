"""Where a chat is to be found, and a question to it over HTTP: for `healthcheck.py`.

Whatever goes wrong on the way is a `Failing`, whose sentence says what to do about it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urljoin, urlsplit

import h11

from chat.commands import Impossible

MAX_BODY = 64 * 1024  # bytes; ours are some hundred
MAX_LOCATION = 200  # characters of where it sends on to that are told
PORTS = {"http": 80, "https": 443}
# What a server listens on to be found at all its addresses, and one of these.
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
# Seconds in which a connection must be taken; the kernel tries again after one.
CONNECT_LIMIT = 2.5
# What proxies answer where what is behind them does not.
GATEWAY = (502, 503, 504)
# What comes in the place of a handshake where the headers of one got lost on the way. The chat
# itself has no page under the address of a room, and says so in its own words.
NO_UPGRADE = (200, 400, 426)
NO_PAGE = b'"code":"not_found"'
SENDS_ON = (301, 302, 303, 307, 308)
# What else a proxy may mean, by status.
MEANINGS = {
    401: "it asks for a password of its own, which no member gives.",
    403: "a rule there or in a firewall forbids that, or the chat is not under this path.",
    404: "does it pass this path on?",
    413: "it takes the request for too large.",
    500: "it fails at it; look at its log.",
}
# OpenSSL's numbers for a certificate that nobody we know has signed.
UNKNOWN_SIGNER = (18, 19, 20, 21)


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
    # The path that the chat is served under, without a slash at its end; "" for none.
    prefix: str = ""

    @classmethod
    def of(cls, url: str, allowed: Sequence[str] | None = None) -> Self:
        """Read a URL; raise Impossible. `allowed` are the names served, None for a proxy's.

        The chat itself may be asked by an address that is no name of it, such as 127.0.0.1.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS[parts.scheme]
            (parts.hostname or "").encode("idna")  # as a name is looked up
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
        prefix = quote(parts.path.rstrip("/"), safe="/%")
        return cls(url, (name, port), host, parts.scheme == "https", allowed is None, prefix)

    @property
    def who(self) -> str:
        return "The proxy" if self.is_proxy else "It"

    def room(self, name: str) -> str:
        """Return the address of a room's socket."""
        return f"{'wss' if self.secure else 'ws'}://{self.host}{self.prefix}{room_path(name)}"

    def refusal(self, status: int, no_page: bool = False) -> str:
        """Return advice on an HTTP status in the place of a handshake.

        `no_page`: it is the chat itself that says that there is no such page.
        """
        if status in GATEWAY and self.is_proxy:
            return (
                f"The proxy answers {status}: it does not reach the chat. Does the chat run where"
                " the proxy passes requests on to?"
            )
        if status == 503:
            return "It takes nobody in: it is being stopped, or too many come at once."
        if not self.is_proxy:
            return (
                f"It answers HTTP {status} to a WebSocket handshake: is it Tertulia, and not a"
                " proxy that does not pass Upgrade on?"
            )
        if status in NO_UPGRADE or no_page:
            return (
                "The proxy answers, but does not pass Upgrade on (HTTP"
                f" {status}): it must pass on the headers Upgrade and Connection."
            )
        meaning = MEANINGS.get(status, "look at its log.")
        return f"The proxy answers {status} to a WebSocket handshake: {meaning}"


def room_path(name: str) -> str:
    return f"/ws/chat/{name}/"


async def refusal_of(place: Place, room: str, status: int) -> str:
    """Return advice on an HTTP status in the place of a room's handshake, or raise Failing.

    Where the status may mean several things, a plain request for the same tells more.
    """
    if status not in (400, 404, *SENDS_ON):
        return place.refusal(status)
    return place.refusal(status, NO_PAGE in await ask(place, room_path(room), (404,)))


async def ask(place: Place, path: str, good: Sequence[int] = (200,)) -> bytes:
    """Ask for a page below the prefix, and return its body; raise Failing."""
    path = place.prefix + path
    try:
        status, location, body = await _exchange(place, path)
    except ConnectionRefusedError as error:
        what = "the proxy" if place.is_proxy else "the chat"
        raise Failing(
            f"Nobody listens at {place.url}: does {what} run, and is this its address?"
        ) from error
    except socket.gaierror as error:
        raise Failing(f"The name in {place.url} is not known: is it misspelled?") from error
    except ssl.SSLError as error:
        raise Failing(f"{place.who} cannot be trusted: {_distrust(error)}.") from error
    except OSError as error:
        raise Failing(
            f"{place.url} cannot be reached ({type(error).__name__}): look at the network."
        ) from error
    except h11.RemoteProtocolError as error:
        raise Failing(f"What listens at {place.url} does not speak HTTP.") from error
    if status in good:
        return body
    if status == 400:
        raise Failing(
            f"{place.who} does not serve the name {place.host}: look at CHAT_ALLOWED_HOSTS."
        )
    if status in GATEWAY:
        raise Failing(place.refusal(status))
    if status in SENDS_ON and location:
        target = urljoin(place.url, location)[:MAX_LOCATION]
        advice = "give that address." if target.endswith(path) else "is that Tertulia?"
        raise Failing(f"{place.who} sends on to {target.removesuffix(path)}: {advice}")
    raise Failing(f"{place.who} answers {status} for {path}: is that Tertulia?")


def _distrust(error: ssl.SSLError) -> str:
    reason = getattr(error, "verify_message", "") or error.reason or "no reason is given"
    if getattr(error, "verify_code", 0) in UNKNOWN_SIGNER:
        reason += (
            ". If it is yours, SSL_CERT_FILE may name the file with the certificate that signed it"
        )
    return str(reason)


async def _exchange(place: Place, path: str) -> tuple[int, str, bytes]:
    """Return the status, the header Location and the body."""
    silence = f"The name in {place.url} is not found in time: does the name server answer?"
    try:
        async with asyncio.timeout(CONNECT_LIMIT):
            await asyncio.get_running_loop().getaddrinfo(*place.at, type=socket.SOCK_STREAM)
            silence = (
                f"{place.who} does not take the connection: does a firewall drop it, or is the"
                " process too busy for another one?"
            )
            reader, writer = await asyncio.open_connection(*place.at)
    except TimeoutError as error:
        raise Failing(silence) from error
    try:
        if place.secure:
            name = urlsplit(f"//{place.host}").hostname
            await writer.start_tls(ssl.create_default_context(), server_hostname=name)
        client = h11.Connection(h11.CLIENT)
        headers = [("Host", place.host), ("Connection", "close")]
        writer.write(client.send(h11.Request(method="GET", target=path, headers=headers)) or b"")
        writer.write(client.send(h11.EndOfMessage()) or b"")
        status, location, body = 0, b"", b""
        while True:
            match client.next_event():
                case h11.NEED_DATA:
                    client.receive_data(await reader.read(MAX_BODY))
                case h11.Response() as response:
                    status = response.status_code
                    location = dict(response.headers).get(b"location", b"")
                case h11.Data() as data:
                    body += data.data
                    if len(body) > MAX_BODY:
                        body = b""
                        break
                case h11.EndOfMessage():
                    break
        return status, location.decode("ascii", "backslashreplace"), body
    finally:
        writer.close()
