"""What in the settings does not fit together, in sentences: nothing that stops the start.

Settings alone are looked at here, and where the server listens; nothing is tried. Called by
`serve`, which says it in the log, and by `check`.
"""

from __future__ import annotations

import ipaddress
import resource
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from chat.ops.config import host_and_port
from chat.settings import MIN_SECRET, Settings

LOCAL = ("localhost", "127.0.0.1", "[::1]")
# The same in a URL; where it names no host, this machine is meant.
OWN = (None, "localhost", "127.0.0.1", "::1")
# Who listens there can be asked as 127.0.0.1.
HERE = ("localhost", "127.0.0.1", "0.0.0.0", "::")
# What a socket, its files and its share of the rest take; below it the system refuses new ones.
MIN_FILES = 4_096


def oddities(settings: Settings, bind: Sequence[str]) -> list[str]:
    """Return a sentence for each thing that is likely not meant; `bind` as in hypercorn.toml."""
    return [
        *_hosts(settings, bind),
        *_proxies(settings, bind),
        *_sign_in(settings),
        *_others(settings),
    ]


def _hosts(settings: Settings, bind: Sequence[str]) -> Iterator[str]:
    public = set(settings.allowed_hosts) - set(LOCAL)
    if not public and not all(_is_local(one) for one in bind):
        yield (
            "CHAT_ALLOWED_HOSTS has only this machine's own names, but it listens to others: they "
            "get 400 until it has the name that people type."
        )
    elif not {"127.0.0.1", "*"} & set(settings.allowed_hosts) and any(map(_is_here, bind)):
        yield (
            "CHAT_ALLOWED_HOSTS lacks 127.0.0.1: who asks from this machine, as `curl`, `tail` and "
            "`say` do, gets 400 until it has that, too."
        )
    if "*" in settings.allowed_hosts:
        yield (
            "CHAT_ALLOWED_HOSTS is *: pages of any site whose name leads here may act for people; "
            "give it the names that people type."
        )
    elif public and not settings.cookie_secure:
        yield (
            f"CHAT_COOKIE_SECURE is 0, and {_listed(public)} is served: set it to 1 where people "
            "come by https, or their cookie also travels unencrypted."
        )


def _proxies(settings: Settings, bind: Sequence[str]) -> Iterator[str]:
    public = set(settings.allowed_hosts) - set(LOCAL)
    if public and not settings.trusted_proxies and all(_is_local(one) for one in bind):
        yield (
            "CHAT_TRUSTED_PROXIES is empty, but only this machine can connect: all people seem to "
            "come from the proxy's address, and share the limits of one; set it to 127.0.0.1."
        )
    for network in settings.trusted_proxies:
        if ipaddress.ip_network(network, strict=False).prefixlen == 0:
            yield (
                f"CHAT_TRUSTED_PROXIES has {network}, which is everybody: anyone can choose the "
                "address that they seem to come from; give it the proxies' own addresses."
            )


def _sign_in(settings: Settings) -> Iterator[str]:
    if settings.login_url and settings.sign_in == "guest":
        yield "CHAT_LOGIN_URL has no effect while CHAT_SIGN_IN is guest; set that to off."
    if settings.api_key is not None and len(settings.api_key) < MIN_SECRET:
        yield (
            f"CHAT_API_KEY has fewer than {MIN_SECRET} characters: who guesses it can be anybody; "
            "take a random one."
        )
    for origin in settings.allowed_origins:
        if origin.startswith("http://") and settings.cookie_secure:
            yield (
                f"CHAT_ALLOWED_ORIGINS has {origin}, but CHAT_COOKIE_SECURE is 1: that page has no "
                "cookie to send; write it with https."
            )


def _others(settings: Settings) -> Iterator[str]:
    relay = urlsplit(settings.relay_url)
    if not settings.on_sqlite and settings.relay_url == "memory://":
        yield (
            "CHAT_RELAY_URL is memory:// beside PostgreSQL: a second node would hear of messages "
            "half a second late, and nothing of who is there; give it a redis:// address."
        )
    if relay.scheme == "redis" and relay.password is None and relay.hostname not in OWN:
        yield (
            f"CHAT_RELAY_URL has no password, and {relay.hostname} is another machine: whoever "
            "reaches that Redis can read along; set a password there, and rediss:// if you can."
        )
    # The start takes all that it may have (`ops/server.py`).
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < MIN_FILES:
        yield (
            f"A process may open {most} files here, and each socket is one: have the system allow "
            f"{MIN_FILES} or more (`ulimit -n`)."
        )


def _is_local(bind: str) -> bool:
    """Tell whether only this machine can connect to such an address."""
    place = host_and_port(bind)
    return place is None or place[0] in ("localhost", "::1") or place[0].startswith("127.")


def _is_here(bind: str) -> bool:
    """Tell whether 127.0.0.1 leads to such an address."""
    place = host_and_port(bind)
    return place is not None and place[0] in HERE


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
