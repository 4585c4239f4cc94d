"""Where and how to listen: hypercorn.toml, `--bind` and `--workers`, and the sockets they name.

Called by `server.py` only. A wrong value is a SettingsError, an address that cannot be had a
ChatError; both are one sentence. How Hypercorn's log lines look is in `access.py`.
"""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Iterable, Mapping
from errno import EADDRINUSE
from pathlib import Path
from typing import Any

from hypercorn.config import Config

from chat.errors import ChatError, SettingsError
from chat.ops.access import ServerLog

# The same as hypercorn.toml; a test holds them together.
DEFAULTS: Mapping[str, Any] = {
    "bind": ["127.0.0.1:8000"],
    "workers": 1,
    "backlog": 1024,
    "websocket_ping_interval": 20.0,
    "read_timeout": 50,
    "websocket_max_message_size": 65536,
    "graceful_timeout": 2,
    "startup_timeout": 20,
    "shutdown_timeout": 10,
    "alpn_protocols": ["http/1.1"],
    "include_server_header": False,
    "accesslog": "-",
    "access_log_format": '%(h)s "%(r)s" %(s)s %(b)s %(D)s',
    "errorlog": "-",
}
FILE_NAME = "hypercorn.toml"
# Settings that name a file to be read; the prefixes tell how `logconfig` is written.
FILES = ("certfile", "keyfile", "ca_certs", "logconfig")
PREFIXES = re.compile("^(json|toml):")

# Milliseconds until unacknowledged bytes end a connection, and bytes of the kernel's send buffer.
# Without the first a peer that never reads keeps its socket for ever after our close; with the
# kernel's default for the second it is noticed after 2.7 MB only.
USER_TIMEOUT = 60_000
SEND_BUFFER = 128 * 1024


def load_config(
    path: Path | None = None, *, bind: Iterable[str] = (), workers: int | None = None
) -> Config:
    """Read hypercorn.toml: `path`, else the current folder's, the checkout's, or the defaults."""
    path = path or found_file()
    values = dict(DEFAULTS) if path is None else _read(path)
    if bind := list(bind):
        values["bind"] = bind
    if workers is not None:
        values["workers"] = workers
    if values.setdefault("workers", 1) < 1:
        raise SettingsError(f"workers must be at least 1, not {values['workers']}.")
    config = Config.from_mapping(values)
    config.logger_class = ServerLog
    for address in config.bind:
        host_and_port(address)
    return config


def found_file() -> Path | None:
    """Return the hypercorn.toml that is read where none is named; None: the built-in values are."""
    places = (Path(FILE_NAME), Path(__file__).parents[2] / FILE_NAME)
    return next((place for place in places if place.is_file()), None)


def named_in(path: Path | None) -> set[str]:
    """Return what a hypercorn.toml that was read by `load_config` sets."""
    return set() if path is None else set(_read(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from error
    for key, value in values.items():
        known = getattr(Config, key, None)
        if key.startswith("_") or not hasattr(Config, key) or callable(known):
            raise SettingsError(f"{path}: there is no setting {key!r}.")
        if isinstance(known, property):
            if known.fset is None:
                raise SettingsError(f"{path}: {key} cannot be set.")
            if not all(isinstance(text, str) for text in _listed(value)):
                raise SettingsError(f"{path}: {key} must be text, or a list of texts.")
        elif known is not None and not _fits(value, known):
            raise SettingsError(f"{path}: {key} must be like {known!r}, not {value!r}.")
        elif key in FILES:
            _check_file(path, key, value)
    if len(pair := {"certfile", "keyfile"} & values.keys()) == 1:
        # Hypercorn would serve without TLS, and say nothing.
        raise SettingsError(f"{path}: {pair.pop()} needs the other of certfile and keyfile.")
    return values


def _check_file(path: Path, key: str, name: object) -> None:
    # Python's own errors about certificates do not name the file.
    if not isinstance(name, str):
        raise SettingsError(f"{path}: {key} must be text, not {name!r}.")
    try:
        with open(PREFIXES.sub("", name), "rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{path}: {key} {name} cannot be read: {error.strerror}.") from error


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _fits(value: object, known: object) -> bool:
    if isinstance(known, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(known, bool)
    if isinstance(known, (int, float)):
        return isinstance(value, (int, float)) and value >= 0
    return isinstance(value, type(known))


def host_and_port(address: str) -> tuple[str, int] | None:
    """Of a `bind` value; None for a Unix socket or file descriptor, which Hypercorn opens."""
    if address.startswith(("unix:", "fd://")):
        return None
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, "8000"
    if not (port.isascii() and port.isdecimal()) or int(port) > 65535 or not host:
        raise SettingsError(f"bind must be like 127.0.0.1:8000, not {address!r}.")
    return host.strip("[]"), int(port)


def bound(address: str, *, shared: bool = False) -> socket.socket:
    """A bound TCP socket; raises ChatError, with a sentence, where the address cannot be had.

    `shared`: other sockets of this user with SO_REUSEPORT may be bound to it too.
    """
    place = host_and_port(address)
    if place is None:
        raise SettingsError(f"Several workers cannot share {address}: bind a host and port.")
    sock = socket.socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted connections inherit these two.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind(place)
    except OSError as error:
        sock.close()
        raise unusable(address, error) from error
    return sock


def unusable(address: str, error: OSError) -> ChatError:
    """The sentence for an address that the system refuses."""
    if error.errno == EADDRINUSE:
        return ChatError(
            f"Address {address} is in use; stop the other server or choose another PORT."
        )
    return ChatError(f"Address {address} cannot be used: {error.strerror or error}.")


def address_of(sock: socket.socket) -> str:
    """`host:port` as it is bound, so with the port that the kernel chose for 0."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(config: Config) -> str:
    """What to open in a browser on this machine."""
    address = config.bind[0]
    for everywhere, here in (("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")):
        if address.startswith(everywhere):
            address = here + address.removeprefix(everywhere)
    scheme = "https" if config.ssl_enabled else "http"
    return address if address.startswith(("unix:", "fd:")) else f"{scheme}://{address}/"
