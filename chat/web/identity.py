"""Who is asking: `Authorization: Bearer`, then the signed session cookie, then `?token=`.

Tokens and cookies are signed with the same keys but different salts, so neither passes for the
other. The order of the keys is decided here alone (`keys_of`): itsdangerous signs with the last of
a list, the setting with its first. Called by `web/sockets.py`, `web/api.py` and `web/pages.py`.
"""

from __future__ import annotations

import base64
import hmac
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from itsdangerous import BadData, BadSignature, TimestampSigner, URLSafeTimedSerializer
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

from chat.clock import now
from chat.errors import Unauthenticated
from chat.log.users import NameRefused, Session, User, Users
from chat.ops.logging import about
from chat.protocol import MAX_INTEGER
from chat.settings import Settings

TOKEN_SALT = "chat.token"
TOKEN_TTL, MAX_TOKEN_TTL = 3_600, 86_400  # seconds


class Identity(NamedTuple):
    """A user, and by what it was known."""

    user: User
    # The session that the cookie names; None for tokens and other applications' cookies.
    session: Session | None = None
    # When this identity ends, in ms; None: no end known.
    expires_at: int | None = None
    # The one room that a token is good for; None: all.
    room: str | None = None
    # A browser sends cookies by itself: such a request must come from an allowed origin.
    by_cookie: bool = False
    # A backend acts for the user; it is not limited.
    by_backend: bool = False


class Sessions(SessionMiddleware):
    """Starlette's signed cookie, with keys that can be rotated."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        super().__init__(
            app,
            secret_key="",
            session_cookie=settings.session_cookie,
            max_age=settings.session_hours * 3600,
            https_only=settings.cookie_secure,
        )
        self.signer = CookieSigner(keys_of(settings))


class CookieSigner(TimestampSigner):
    """Takes what another application signed with a key of ours only where it is a session."""

    def unsign(self, *args: Any, **kwargs: Any) -> Any:
        value = super().unsign(*args, **kwargs)
        try:
            msgspec.json.decode(base64.b64decode(value), type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            # Starlette would fail with an error of the server.
            raise BadSignature("not a session") from error
        return value


class Identities:
    def __init__(self, settings: Settings, users: Users) -> None:
        self._settings = settings
        self._users = users
        self._cookies = TimestampSigner(keys_of(settings))
        self._tokens = URLSafeTimedSerializer(keys_of(settings), salt=TOKEN_SALT)

    async def identify(
        self, connection: HTTPConnection, query_token: str | None = None
    ) -> Identity:
        """Return who is asking; raise Unauthenticated, Unavailable."""
        identity = await self._identify(connection, query_token)
        about(user=identity.user.name)
        return identity

    async def _identify(self, connection: HTTPConnection, query_token: str | None) -> Identity:
        bearer = bearer_of(connection)
        if bearer is not None:
            if self.is_backend(connection):
                return await self._acted_for(connection)
            return await self.from_token(bearer)
        identity = await self.from_cookie(connection)
        if identity is not None:
            return identity
        if query_token is not None:
            return await self.from_token(query_token)
        raise Unauthenticated("Sign in first, or give a token.")

    def is_backend(self, connection: HTTPConnection) -> bool:
        """Tell whether the request carries CHAT_API_KEY."""
        key, bearer = self._settings.api_key, bearer_of(connection)
        return bool(key and bearer) and hmac.compare_digest(str(key).encode(), str(bearer).encode())

    def mint(self, user: User, room: str | None, ttl: int) -> tuple[str, int]:
        """Return a token that lasts `ttl` seconds, and when it ends in ms."""
        # Written out: the signature's own time has whole seconds only.
        expires_at = now() + ttl * 1000
        token = self._tokens.dumps({"user": user.id, "room": room, "end": expires_at})
        return str(token), expires_at

    async def from_token(self, token: str) -> Identity:
        """Return whose token this is; raise Unauthenticated, Unavailable."""
        try:
            payload, expires_at = self._read(token)
        except (BadData, ValueError, KeyError, TypeError) as error:
            raise Unauthenticated("The token is not valid, or has run out.") from error
        user = await self._users.find(payload["user"])
        if user is None or user.disabled_at is not None:
            raise Unauthenticated("The token's user may not enter.")
        return Identity(user, expires_at=expires_at, room=payload.get("room"))

    async def renewed(self, identity: Identity) -> Identity | None:
        """Look again at a session that seems to run out: a page may have renewed it."""
        if identity.session is None:
            return None
        session = await self._users.session(identity.session.sid)
        if session is None:
            return None
        return identity._replace(session=session, expires_at=session.expires_at)

    def _read(self, token: str) -> tuple[dict[str, Any], int]:
        payload = self._tokens.loads(token, max_age=MAX_TOKEN_TTL)
        expires_at = int(payload["end"])
        if expires_at <= now():
            raise ValueError("run out")
        if not 0 < payload["user"] <= MAX_INTEGER:
            raise ValueError("no user")
        return payload, expires_at

    async def _acted_for(self, connection: HTTPConnection) -> Identity:
        raw = connection.headers.get("chat-user")
        if not raw:
            raise Unauthenticated("A backend names the user it acts for in the header Chat-User.")
        try:
            user = await self._users.site_user(unquote(_ascii(raw), errors="strict"))
        except (NameRefused, UnicodeError) as error:
            raise Unauthenticated("The name in the header Chat-User is not valid.") from error
        if user.disabled_at is not None:
            raise Unauthenticated("This user may not enter.")
        return Identity(user, by_backend=True)

    async def from_cookie(self, connection: HTTPConnection) -> Identity | None:
        """Return whom the session cookie names, None without a valid one; raise Unavailable."""
        name = connection.session.get("user")
        sid = connection.session.get("sid")
        if sid is not None:
            session = await self._users.session(sid) if isinstance(sid, str) else None
            if session is None:
                return None
            return Identity(session.user, session, session.expires_at, by_cookie=True)
        if not isinstance(name, str):
            return None
        # Another application that shares the key has signed this person in.
        try:
            user = await self._users.site_user(name)
        except NameRefused:
            return None
        if user.disabled_at is not None:
            return None
        return Identity(user, expires_at=self._cookie_end(connection), by_cookie=True)

    def _cookie_end(self, connection: HTTPConnection) -> int:
        cookie = connection.cookies[self._settings.session_cookie]
        _, made = self._cookies.unsign(cookie, return_timestamp=True)
        return int(made.timestamp() + self._settings.session_hours * 3600) * 1000


def _ascii(raw: str) -> str:
    """Return the header if it is percent-encoded; raw UTF-8 in it would be read as Latin-1."""
    return raw.encode("ascii").decode()


def bearer_of(connection: HTTPConnection) -> str | None:
    """Return what stands behind `Authorization: Bearer`, or None."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def keys_of(settings: Settings) -> list[str]:
    """Return the keys as itsdangerous wants them: the last one signs, all verify."""
    return list(reversed(settings.secret_key))
