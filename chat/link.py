"""One connection of a client to its room, from the token to the close; it ends once.

Owns the socket and the renewal of the token. How long is waited for what is `patience.py`'s; what
frames mean, and what is said, is `client.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from chat import __version__
from chat.errors import ChatError, Refused
from chat.outgoing import Frame, parse
from chat.patience import PATIENCE, Patience
from chat.protocol import CloseCode, Closing, Renewed, Welcome

logger = logging.getLogger(__name__)
# Of websockets. At DEBUG it would write headers and frames, and so tokens and texts.
quiet = logging.getLogger(f"{__name__}.socket")
quiet.setLevel(logging.INFO)

MAX_FRAME = 1024 * 1024  # bytes; servers keep to a quarter of it
# The next token is asked for in the last tenth of a life, at most 30 s before its end, and again
# with pauses. Seconds, but for the tenth.
RENEW, RENEW_PART, RENEW_SOONEST, RENEW_PAUSE = 30.0, 0.1, 1.0, 5.0
# Codes after which the next try would end in the same way.
STAY_AWAY = (
    CloseCode.BINARY,
    CloseCode.POLICY,
    CloseCode.TOO_BIG,
    CloseCode.UNAUTHENTICATED,
    CloseCode.FORBIDDEN,
    CloseCode.NOT_FOUND,
)
# In place of a close code where there was none; and what websockets has there.
GIVEN_UP, BROKEN = 0, 1006

# A text, or a function that makes the next one; it raises Refused where there will be none.
Token = str | Callable[[], Awaitable[str]]


class Link:
    """`hear` gets each frame; `talk` runs from the welcome to the end, and says what there is."""

    def __init__(
        self,
        token: Token | None,
        headers: Mapping[str, str],
        hear: Callable[[Frame], None],
        talk: Callable[[Link], Coroutine[Any, Any, None]],
        at: tuple[str, int] | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self._token = token
        self._headers = headers
        self._hear = hear
        self._talk = talk
        # Host and port to connect to; None: those of the address.
        self._at = at
        self._patience = patience
        self._socket: ClientConnection | None = None
        # Loop time of the welcome; None: there was none.
        self.joined_at: float | None = None
        # Seconds until the server wants us back; None where it did not say.
        self.told: float | None = None
        # Set where it is ended by us, to be followed by another one at once.
        self.hurried = False
        # The HTTP status in place of an upgrade; None: there was none.
        self.status: int | None = None
        # The server's clock less ours, in seconds.
        self._clock = 0.0
        # Seconds that our token has left, set with the bell when the server says so.
        self._life = 0.0
        self._life_known = asyncio.Event()
        # Why there will be no next token, once that is known.
        self._refused: Refused | None = None

    async def run(self, url: str) -> tuple[int, str]:
        """Connect, and stay until it ends; return the close code and why in words."""
        try:
            async with asyncio.timeout(self._patience.welcome) as limit:
                headers = dict(self._headers)
                if self._token is not None:
                    # Not in the address, which proxies log.
                    headers["Authorization"] = f"Bearer {await self._next_token()}"
                where: dict[str, Any] = {}
                if self._at is not None:
                    where["host"], where["port"] = self._at
                async with _Straight(
                    url,
                    **where,
                    additional_headers=headers,
                    user_agent_header=f"tertulia/{__version__}",
                    compression=None,
                    proxy=None,
                    logger=quiet,
                    open_timeout=None,
                    ping_interval=self._patience.ping_interval,
                    ping_timeout=self._patience.ping,
                    close_timeout=self._patience.close,
                    max_size=MAX_FRAME,
                ) as socket:
                    self._socket = socket
                    try:
                        await self._converse(socket, limit)
                    finally:
                        await socket.close()  # with 1000, also where we are cancelled
                    if self._refused is not None:
                        raise self._refused
                    return self._ended(socket)
        except InvalidStatus as error:
            wait = error.response.headers.get("Retry-After", "")
            self.told = float(wait) if wait.isdecimal() else None
            self.status = error.response.status_code
            place = error.response.headers.get("Location")
            aside = f" and sends us on to {one_line(place[:200])}" if place else ""
            return GIVEN_UP, f"the server answers HTTP {self.status}{aside}"
        except TimeoutError:
            return GIVEN_UP, "the server does not answer"
        except NoToken as error:
            return GIVEN_UP, str(error)
        except (OSError, WebSocketException) as error:
            return GIVEN_UP, in_words(error)

    @property
    def stood(self) -> float:
        """Seconds since the welcome; 0 before it."""
        return asyncio.get_running_loop().time() - self.joined_at if self.joined_at else 0.0

    def keeps_away(self, code: int) -> bool:
        """Tell whether the next try would end in the same way as this one."""
        # A token that was good has run out: whoever gave it is asked for the next one.
        renewable = code == CloseCode.UNAUTHENTICATED and self.joined_at and callable(self._token)
        return code in STAY_AWAY and not renewable

    async def say(self, frame: object) -> None:
        """Send a frame; over a connection that is gone it goes nowhere."""
        assert self._socket is not None
        with suppress(ConnectionClosed):
            await self._socket.send(msgspec.json.encode(frame).decode())

    async def close(self) -> None:
        """End it from our side."""
        assert self._socket is not None
        await self._socket.close()

    async def _converse(self, socket: ClientConnection, limit: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            started: list[asyncio.Task[None]] = []
            with suppress(ConnectionClosed):
                async for raw in socket:
                    frame = parse(raw)
                    if self.joined_at is None and not isinstance(frame, Welcome | Closing):
                        continue  # nothing comes before the welcome
                    if isinstance(frame, Welcome):
                        limit.reschedule(None)
                        self._join(frame)
                        self._hear(frame)
                        started.append(tasks.create_task(self._talk(self)))
                        started.append(tasks.create_task(self._renew()))
                        continue
                    if isinstance(frame, Closing):
                        self.told = frame.reconnect_after
                        limit.reschedule(loop.time() + self._patience.closing)
                    elif isinstance(frame, Renewed):
                        self._lasts_until(frame.expires_at)
                    if frame is not None:
                        self._hear(frame)
            for task in started:
                task.cancel()

    def _join(self, welcome: Welcome) -> None:
        self.joined_at = asyncio.get_running_loop().time()
        if (there := _seconds(welcome.server_time)) is not None:
            self._clock = there - time.time()
        if welcome.expires_at is not None:
            self._lasts_until(welcome.expires_at)

    def _ended(self, socket: ClientConnection) -> tuple[int, str]:
        code = socket.close_code
        if code is None or code == BROKEN:
            return GIVEN_UP, "the connection broke"
        return code, one_line(socket.close_reason or f"the server closed with {code}")

    # --- The token

    async def _next_token(self) -> str:
        assert self._token is not None
        if isinstance(self._token, str):
            return self._token
        try:
            return await self._token()
        except Refused:
            raise
        except Exception as error:
            raise NoToken(f"there is no token to be had ({type(error).__name__})") from error

    async def _renew(self) -> None:
        """Show the next token before this one ends, until the server says when that one ends."""
        while callable(self._token):
            await self._life_known.wait()
            self._life_known.clear()
            life = self._life
            await asyncio.sleep(max(life - min(RENEW, RENEW_PART * life), RENEW_SOONEST))
            while not self._life_known.is_set():
                try:
                    await self.say({"type": "token", "token": await self._next_token()})
                except Refused as error:
                    self._refused = error
                    return await self.close()
                except NoToken as error:
                    logger.warning("Asked for the next token in vain: %s", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(RENEW_PAUSE * random.uniform(1, 2)):
                        await self._life_known.wait()

    def _lasts_until(self, moment: str) -> None:
        """Note how long our token lasts, whatever our own clock says."""
        if (end := _seconds(moment)) is not None:
            self._life = end - time.time() - self._clock
            self._life_known.set()


class NoToken(ChatError):
    """The function that gives tokens failed."""


class _Straight(connect):
    """A connection to the address that was given, and to no other that a server names."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def in_words(error: OSError | WebSocketException) -> str:
    """Say why there is no connection, without addresses and what the other side wrote."""
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, socket.gaierror):
        return "the name in the address is not known"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as we do"
    if isinstance(error, OSError):
        return f"it cannot be reached ({error.strerror or type(error).__name__})"
    return f"what listens there speaks no WebSocket ({type(error).__name__})"


def one_line(text: str) -> str:
    """Write as escapes what in words of the other side could forge a line, or steer a terminal."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _seconds(moment: str) -> float | None:
    """Return the time since 1970; None where that is no time."""
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (ValueError, OverflowError):
        return None
