"""What every request passes first: proxies, `Host`, `Origin`, draining; and safe headers back.

One pure ASGI middleware around everything, sockets included. What it refuses never reaches a
route, and a refused socket is answered before the upgrade.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from chat.ops import metrics
from chat.ops.logging import begin
from chat.settings import Settings

logger = logging.getLogger(__name__)

RETRY_AFTER = "2"  # seconds; a restart takes less
# Sockets that may be looked up at once. A crowd that comes back after a restart is some thousands;
# those above this would wait for the database longer than it takes to come again.
MAX_HANDSHAKES = 1_000
# Random bytes of a request's id, and what one of a proxy may look like.
REQUEST_ID_BYTES = 8
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
DEFAULT_PORTS = {"80": "", "443": ""}
FORM_PATHS = ("/login", "/logout")

SAFE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
}

# The events that hold the headers of an answer.
STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class Guard:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._proxies = [
            ipaddress.ip_network(network, strict=False) for network in settings.trusted_proxies
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        trusted = bool(self._proxies) and self._trusted((scope.get("client") or ("",))[0])
        request_id = _request_id(scope, trusted)
        begin(request_id)
        if trusted:
            self._believe_proxy(scope)
        answer = _with_headers(send, request_id)
        reason, refusal = self._check(scope) or ("", None)
        if refusal is None:
            # The way to the server past the wrappers of the middleware further in: they care for
            # HTTP answers only, and would cost each frame of a socket a quarter of its sending.
            scope["chat.send"] = send
            await self._app(scope, receive, answer)
        elif scope["type"] == "websocket":
            metrics.REFUSED.add(reason)
            await WebSocket(scope, receive, answer).send_denial_response(refusal)
        else:
            await refusal(scope, receive, answer)

    def _check(self, scope: Scope) -> tuple[str, Response] | None:
        """Return why it is refused, and the answer; None where it is not."""
        headers = Headers(scope=scope)
        if not self._host_is_ours(headers):
            logger.warning("Host %s refused", headers.get("host", "")[:200])
            return "host", PlainTextResponse("This host name is not served here.", 400)
        socket = scope["type"] == "websocket"
        # Their ends: before them comes the prefix, where the chat is served under one.
        form = not socket and scope["method"] == "POST" and scope["path"].endswith(FORM_PATHS)
        if (socket or form) and not origin_allowed(headers, self._settings):
            logger.warning("Origin %s refused", ", ".join(headers.getlist("origin"))[:200])
            return "origin", PlainTextResponse("This origin is not allowed.", 403)
        if socket:
            chat = scope["app"].state.services
            later = {"Retry-After": RETRY_AFTER}
            if chat.draining:
                return "draining", PlainTextResponse("The server restarts.", 503, later)
            if chat.handshakes >= MAX_HANDSHAKES:
                logger.warning("Socket refused: %s handshakes are under way", chat.handshakes)
                return "crowded", PlainTextResponse("Too many at once.", 503, later)
        return None

    def _host_is_ours(self, headers: Headers) -> bool:
        allowed = self._settings.allowed_hosts
        return "*" in allowed or _split_host(headers.get("host", ""))[0] in allowed

    def _believe_proxy(self, scope: Scope) -> None:
        """Take address, scheme and host from the headers of a trusted proxy."""
        headers = Headers(scope=scope)
        # Some proxies add to the header, some add a header: together they are one list.
        forwarded = ",".join(headers.getlist("x-forwarded-for"))
        chain = [part.strip() for part in forwarded.split(",")]
        # From the right: each trusted proxy vouches for the one before it.
        for address in reversed(chain):
            if not _is_address(address):
                break
            scope["client"] = (address, 0)
            if not self._trusted(address):
                break
        proto = ",".join(headers.getlist("x-forwarded-proto")).split(",")[-1].strip().lower()
        if proto in ("http", "https"):
            secure = {"http": ("http", "ws"), "https": ("https", "wss")}[proto]
            scope["scheme"] = secure[scope["type"] == "websocket"]
        host = ",".join(headers.getlist("x-forwarded-host")).split(",")[-1].strip()
        if host:
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope["headers"] = [*others, (b"host", host.encode("latin-1"))]

    def _trusted(self, address: str) -> bool:
        if not _is_address(address):
            return False
        parsed = ipaddress.ip_address(address)
        # A socket for both families tells IPv4 peers as ::ffff:127.0.0.1.
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed in network for network in self._proxies)


def origin_allowed(headers: Headers, settings: Settings) -> bool:
    """Tell whether the `Origin` is the site's own, or one of CHAT_ALLOWED_ORIGINS, or absent."""
    host = _split_host(headers.get("host", ""))
    # All of them: a browser sends one, and of two nobody knows which one others would believe.
    return all(
        origin in settings.allowed_origins or _is_own(origin, host)
        for origin in headers.getlist("origin")
    )


def _is_own(origin: str, host: tuple[str, str]) -> bool:
    scheme, separator, rest = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and _split_host(rest) == host


def client_of(connection: HTTPConnection) -> str:
    """Return the address of the one who asks, as trusted proxies tell it."""
    return connection.client.host if connection.client else ""


def _split_host(raw: str) -> tuple[str, str]:
    """Return host name and port; 80 and 443 count as none."""
    name, colon, port = raw.rpartition(":")
    if not colon or name.startswith("[") != name.endswith("]") or not port.isdecimal():
        name, port = raw, ""
    return name.lower(), DEFAULT_PORTS.get(port, port)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _request_id(scope: Scope, trusted: bool) -> str:
    """Return the id that a trusted proxy gave, or a new one."""
    given = Headers(scope=scope).getlist("x-request-id") if trusted else []
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return given[0]
    return secrets.token_hex(REQUEST_ID_BYTES)


def _with_headers(send: Send, request_id: str) -> Send:
    """Add the request's id to the answer, and to HTTP's what makes it safe."""

    async def sending(message: Message) -> None:
        if message["type"] in STARTS:
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = request_id
            if message["type"] == "http.response.start":
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
        await send(message)

    return sending
