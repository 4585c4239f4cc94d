"""Every setting: its variable, default, unit and meaning, in one place.

`Settings.load` reads the environment and checks each value; what is wrong stops the start with
one sentence (`SettingsError`). Nothing else in the product reads the environment. Hypercorn's own
settings live in hypercorn.toml (`ops/server.py`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from chat.errors import SettingsError

MIN_SECRET = 16  # characters
MAX_SESSION_HOURS = 24 * 3650
MAX_RETENTION_DAYS = 36_500
RATE = re.compile(r"([1-9][0-9]{0,8})\s*/\s*(second|minute|hour|day)")
COOKIE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 6265: a token
DATABASE_OPTIONS = {"ssl", "host"}  # what `databases` and SQLAlchemy both understand
HOST_NAME = re.compile(r"\*|[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]")


def _text(raw: str) -> str:
    return raw


def _optional(raw: str) -> str | None:
    return raw or None


def _link(raw: str) -> str | None:
    if raw and not raw.startswith(("https://", "http://", "/")):
        raise ValueError("it must begin with https://, http:// or /")
    return raw or None


def _list(raw: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in raw.split(",") if part.strip())


def _secrets(raw: str) -> tuple[str, ...]:
    keys = _list(raw)
    if raw and not keys:
        raise ValueError("it holds no key")
    if any(len(key) < MIN_SECRET for key in keys):
        raise ValueError(f"each key needs at least {MIN_SECRET} characters")
    return keys


def _hosts(raw: str) -> tuple[str, ...]:
    for name in _list(raw):
        if not HOST_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a host name (give it without scheme and port)")
    return tuple(name.lower() for name in _list(raw))


def _origins(raw: str) -> tuple[str, ...]:
    for origin in _list(raw):
        if "@" in origin:
            # Not quoted: what stands before it may be a password.
            raise ValueError("an origin has no user and no password")
        parts = urlsplit(origin)
        whole = parts.hostname and origin == f"{parts.scheme}://{parts.netloc}"
        if parts.scheme not in ("http", "https") or not whole:
            raise ValueError(f"{origin!r} is not an origin such as https://www.example.org")
    return _list(raw)


def _networks(raw: str) -> tuple[str, ...]:
    for network in _list(raw):
        ipaddress.ip_network(network, strict=False)
    return _list(raw)


def _rate(raw: str) -> str | None:
    if raw == "off":
        return None
    if not RATE.fullmatch(raw):
        raise ValueError("write it as 10/second, 30/minute, 20/hour, or off")
    return raw


def _count(low: int, high: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", raw) or not low <= int(raw) <= high:
            raise ValueError(f"it must be a whole number of {low} to {high}")
        return int(raw)

    return parse


def _flag(raw: str) -> bool:
    return bool(_choice("0", "1")(raw) == "1")


def _choice(*words: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in words:
            raise ValueError(f"it must be one of {', '.join(words)}")
        return raw

    return parse


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        scheme, separator, rest = raw.partition("://")
        if scheme not in schemes or not separator:
            raise ValueError(f"it must begin with {' or '.join(f'{one}://' for one in schemes)}")
        if scheme == "memory" and rest:
            raise ValueError("memory:// takes nothing behind it")
        if scheme == "sqlite" and (not rest.startswith("/") or rest == "/" or "?" in rest):
            raise ValueError("write it as sqlite:///folder/file.db, without a query")
        if scheme == "sqlite" and ":memory:" in rest:
            raise ValueError("the log must be in a file: in memory each connection has its own")
        if scheme not in ("sqlite", "memory"):
            try:
                parts = urlsplit(raw)
                _ = parts.port, (parts.hostname or "").encode("idna")  # as it is looked up
            except ValueError:
                # Python's own sentence would quote what may be half of a password.
                raise ValueError("its host or port is not one (is the password encoded?)") from None
            keys = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
            if scheme == "postgresql" and not set(keys) <= DATABASE_OPTIONS:
                raise ValueError("behind the ? it takes only ssl=… and host=… (a socket's folder)")
        return raw

    return parse


def _setting(variable: str, default: str, parse: Callable[[str], Any], help: str) -> Any:
    meta = {"variable": variable, "default": default, "parse": parse, "help": help}
    return field(default_factory=lambda: parse(default), metadata=meta)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the product was started with."""

    database_url: str = _setting(
        "CHAT_DATABASE_URL",
        "sqlite:///var/chat.db",
        _url("sqlite", "postgresql"),
        "`sqlite:///…` or `postgresql://…`",
    )
    relay_url: str = _setting(
        "CHAT_RELAY_URL",
        "memory://",
        _url("memory", "redis", "rediss"),
        "`memory://` (one process only), `redis://…` or `rediss://…`",
    )
    secret_key: tuple[str, ...] = _setting(
        "CHAT_SECRET_KEY",
        "",
        _secrets,
        "signs cookies and tokens, at least 16 characters; several, comma-separated, to rotate: "
        "the first signs, all verify. Unset, one is made and kept in `var/secret_key`; with "
        "PostgreSQL it must be set",
    )
    api_key: str | None = _setting(
        "CHAT_API_KEY", "", _optional, "lets backends make tokens and act for users"
    )
    sign_in: str = _setting(
        "CHAT_SIGN_IN",
        "guest",
        _choice("guest", "off"),
        "`guest`: people pick a free name; `off`: only cookies of another application, and tokens",
    )
    login_url: str | None = _setting(
        "CHAT_LOGIN_URL", "", _link, "where pages send people when `CHAT_SIGN_IN=off`"
    )
    session_cookie: str = _setting(
        "CHAT_SESSION_COOKIE", "session", _text, "name of the session cookie"
    )
    session_hours: int = _setting(
        "CHAT_SESSION_HOURS", "336", _count(1, MAX_SESSION_HOURS), "life of the cookie, in hours"
    )
    cookie_secure: bool = _setting(
        "CHAT_COOKIE_SECURE", "0", _flag, "`1`: the cookie travels over https only"
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "CHAT_ALLOWED_HOSTS",
        "localhost,127.0.0.1,[::1]",
        _hosts,
        "the `Host` names served; `*` = any",
    )
    allowed_origins: tuple[str, ...] = _setting(
        "CHAT_ALLOWED_ORIGINS", "", _origins, "origins allowed beside the site's own"
    )
    send_rate: str | None = _setting(
        "CHAT_SEND_RATE",
        "10/second",
        _rate,
        "sends per user over sockets and HTTP together, moving window; `off` = no limit, as for "
        "all rates; a backend that acts for users is not limited",
    )
    frame_rate: str | None = _setting(
        "CHAT_FRAME_RATE", "50/second", _rate, "all other frames, per connection"
    )
    sign_in_rate: str | None = _setting(
        "CHAT_SIGN_IN_RATE", "30/minute", _rate, "guest sign-ins per address"
    )
    room_rate: str | None = _setting("CHAT_ROOM_RATE", "20/hour", _rate, "new rooms per user")
    max_connections_per_user: int = _setting(
        "CHAT_MAX_CONNECTIONS_PER_USER",
        "20",
        _count(0, 10**9 - 1),
        "open sockets of one user, per process; 0 = no limit",
    )
    max_connections_per_address: int = _setting(
        "CHAT_MAX_CONNECTIONS_PER_ADDRESS",
        "0",
        _count(0, 10**9 - 1),
        "open sockets of one address, per process; 0 = no limit",
    )
    trusted_proxies: tuple[str, ...] = _setting(
        "CHAT_TRUSTED_PROXIES",
        "",
        _networks,
        "addresses or networks whose `X-Forwarded-*` headers are believed",
    )
    retention_days: int = _setting(
        "CHAT_RETENTION_DAYS",
        "0",
        _count(0, MAX_RETENTION_DAYS),
        "older messages are trimmed; 0 = kept for ever",
    )
    log_format: str = _setting(
        "CHAT_LOG_FORMAT", "text", _choice("text", "json"), "`text` or `json`"
    )
    log_level: str = _setting(
        "CHAT_LOG_LEVEL",
        "INFO",
        _choice("DEBUG", "INFO", "WARNING", "ERROR"),
        "`DEBUG`, `INFO`, `WARNING` or `ERROR`",
    )

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings from the environment; raise SettingsError for a wrong one."""
        values: dict[str, Any] = {}
        for one in fields(cls):
            variable = one.metadata["variable"]
            raw = environ.get(variable, "").strip()
            if not raw:
                continue
            try:
                values[one.name] = one.metadata["parse"](raw)
            except ValueError as error:
                raise SettingsError(f"{variable} is wrong: {error}.") from error
        settings = cls(**values)
        settings._check()
        return settings

    @classmethod
    def unknown(cls, environ: Mapping[str, str]) -> list[str]:
        """Return the CHAT_ variables that no setting reads: most likely misspelled ones."""
        known = {one.metadata["variable"] for one in fields(cls)}
        return sorted(
            name
            for name in environ
            if name.startswith("CHAT_") and not name.startswith("CHAT_TEST_") and name not in known
        )

    def check_workers(self, workers: int) -> None:
        """Raise SettingsError where these settings cannot serve so many processes."""
        if workers > 1 and self.relay_url == "memory://":
            raise SettingsError(
                "CHAT_RELAY_URL is wrong: memory:// reaches one process only; with "
                f"{workers} workers give it a redis:// address."
            )

    @property
    def on_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite:")

    @property
    def sqlite_file(self) -> Path:
        return Path(unquote(self.database_url.removeprefix("sqlite:///")))

    def _check(self) -> None:
        if not self.secret_key and not self.on_sqlite:
            raise SettingsError(
                "CHAT_SECRET_KEY is missing: with PostgreSQL all nodes must share one; set it to "
                f"at least {MIN_SECRET} random characters."
            )
        if not COOKIE_NAME.fullmatch(self.session_cookie):
            raise SettingsError(
                "CHAT_SESSION_COOKIE is wrong: a cookie's name has only letters, digits and "
                "!#$%&'*+-.^_`|~."
            )
