"""The proxies of docs/deployment.md, as real programs in front of real chats.

Each is Debian's, and runs on free ports with the very file of deploy/ that people are told to
copy; only what must differ on another machine is exchanged: ports, folders, the certificate. It
ends TLS, so the clients here speak https and wss, each from an address of its own.
"""

from __future__ import annotations

import asyncio
import getpass
import itertools
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trustme
from websockets.asyncio.client import connect

from tests.conftest import unavailable
from tests.people import SOON, Answer, Member, Pairs, form, parsed, request
from tests.servers import ROOT, START_LIMIT, ChatServer, Server, free_port, launch

NAME = "chat.example.org"
PROGRAMS = {"nginx": "nginx", "apache": "apache2", "haproxy": "haproxy", "caddy": "caddy"}
FILES = {
    "nginx": ROOT / "deploy/nginx.conf",
    "apache": ROOT / "deploy/apache.conf",
    "haproxy": ROOT / "deploy/haproxy.cfg",
    "caddy": ROOT / "deploy/Caddyfile",
}
FOLDERS = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
APACHE_MODULES = Path("/usr/lib/apache2/modules")

# How each is started in the foreground, in its folder, with the file `site` there.
COMMANDS = {
    "nginx": "-p . -c site -e error.log",
    "apache": "-f {folder}/site -DFOREGROUND",
    "haproxy": "-db -f site",
    "caddy": "run --config site --adapter caddyfile",
}
# What stands around our file: Debian has it in files of its own.
AROUND = {
    "nginx": """daemon off; pid nginx.pid; user {user}; worker_processes 1;
events {{ }}
http {{
client_body_temp_path temporary; proxy_temp_path temporary; fastcgi_temp_path temporary;
uwsgi_temp_path temporary; scgi_temp_path temporary;
access_log access.log combined;
{site}
}}
""",
    "apache": """ServerRoot {folder}
ServerName localhost
DefaultRuntimeDir {folder}
PidFile apache.pid
Mutex file:{folder}
User {nobody}
Group nogroup
ErrorLog {folder}/error.log
LogFormat "%v:%p %h %l %u %t \\"%r\\" %>s %O \\"%{{Referer}}i\\"" vhost_combined
CustomLog {folder}/other_vhosts_access.log vhost_combined
Listen 127.0.0.1:{plain}
Listen 127.0.0.1:{port}
{modules}
{site}
""",
    "haproxy": "global\n    log stdout format raw local0\n{site}",
    "caddy": "{site}",
}
# What must differ from a machine of its own, by what stands in our file.
CHANGES = {
    "nginx": {
        "listen 80;": "listen 127.0.0.1:{plain};",
        "listen 443 ssl;": "listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/tertulia": "{folder}",
        "/var/log/nginx": "{folder}",
    },
    "apache": {
        "*:80": "127.0.0.1:{plain}",
        "*:443": "127.0.0.1:{port}",
        "/etc/ssl/tertulia": "{folder}",
        "${{APACHE_LOG_DIR}}": "{folder}",
    },
    "haproxy": {
        "bind :80": "bind 127.0.0.1:{plain}",
        "bind :443": "bind 127.0.0.1:{port}",
        "/etc/ssl/tertulia": "{folder}",
    },
    "caddy": {
        "# Faults": "admin off\n\thttp_port {plain}\n\thttps_port {port}\n\t"
        "storage file_system {folder}\n\t# Faults",
        "{{$DOMAIN:chat.example.org}} {{\n": "{{$DOMAIN:chat.example.org}} {{\n\tbind 127.0.0.1\n"
        "\ttls {folder}/fullchain.pem {folder}/key.pem\n",
    },
}

# Loopback addresses that are told apart by limits.
_addresses = (f"127.1.{one // 200}.{one % 200 + 1}" for one in itertools.count())


def an_address() -> str:
    """An address of this machine that nobody came from yet."""
    return next(_addresses)


class Proxy(Server):
    """One of the four, in front of these chats; `changes` are made to its file besides."""

    def __init__(
        self, kind: str, chats: list[ChatServer], changes: Mapping[str, str] | None = None
    ) -> None:
        program = shutil.which(PROGRAMS[kind], path=FOLDERS)
        if program is None:
            raise unavailable(f"{PROGRAMS[kind]} is not installed")
        super().__init__(kind)
        self.kind, self.program = kind, program
        # Where it listens without TLS, to send people on to the other.
        self.plain = free_port()
        authority = trustme.CA()
        certificate = authority.issue_cert(NAME)
        certificate.cert_chain_pems[0].write_to_path(str(self.folder / "fullchain.pem"))
        certificate.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.folder / "both.pem"))
        self.tls = ssl.create_default_context()
        authority.configure_trust(self.tls)
        (self.folder / "site").write_text(self._site(chats, changes or {}), encoding="utf-8")

    # --- As clients

    async def ask(
        self,
        method: str,
        path: str,
        headers: Pairs = (),
        body: bytes = b"",
        source: str = "127.0.0.1",
    ) -> Answer:
        """Send one request over TLS, from the address `source`."""
        pairs = [("Host", NAME), *(headers.items() if isinstance(headers, Mapping) else headers)]
        raw = request(None, method, path, pairs, body)  # type: ignore[arg-type]
        async with asyncio.timeout(SOON):
            reader, writer = await self.connected(source)
            writer.write(raw)
            received = b""
            with suppress(ssl.SSLError):  # some leave TLS without a good-bye
                received = await reader.read(-1)
            writer.transport.abort()
        return parsed(received, method)

    async def connected(
        self, source: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection that says nothing yet."""
        return await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=self.tls,
            server_hostname=NAME,
            local_addr=(source, 0),
        )

    async def sign_in(self, name: str, prefix: str = "", source: str = "127.0.0.1") -> Answer:
        kind, body = form(username=name, next="")
        headers = {**kind, "Origin": f"https://{NAME}"}
        return await self.ask("POST", f"{prefix}/login", headers, body, source)

    def dial(
        self, path: str, headers: Mapping[str, str] | None = None, source: str = "127.0.0.1"
    ) -> connect:
        """A connection to be opened by `async with`."""
        return connect(
            f"wss://{NAME}{path}",
            host="127.0.0.1",
            port=self.port,
            ssl=self.tls,
            additional_headers=dict(headers or {}),
            compression=None,
            proxy=None,
            open_timeout=SOON,
            ping_interval=None,
            local_addr=(source, 0),
        )

    @asynccontextmanager
    async def enter(
        self,
        path: str,
        headers: Mapping[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> AsyncIterator[Member]:
        async with self.dial(path, headers, source) as connection:
            member = Member(connection)
            member.welcome = await member.receive()
            assert member.welcome["type"] == "welcome", member.welcome
            yield member

    @property
    def logs(self) -> str:
        """All that it has written to files."""
        files = [*self.folder.glob("*.log"), self.log_file]
        return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())

    # --- As a program

    def _launch(self) -> subprocess.Popen[bytes]:
        options = COMMANDS[self.kind].format(folder=self.folder).split()
        return launch(
            [self.program, *options],
            folder=self.folder,
            log=self.log_file,
            env={**os.environ, "HOME": str(self.folder)},
        )

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(START_LIMIT)
                with self.tls.wrap_socket(connection, server_hostname=NAME):
                    return True
        except (OSError, ssl.SSLError):
            return False

    def _site(self, chats: list[ChatServer], changes: Mapping[str, str]) -> str:
        own = {"folder": self.folder, "port": self.port, "plain": self.plain}
        site = FILES[self.kind].read_text(encoding="utf-8")
        if len(chats) == 1:
            site = site.replace(" 127.0.0.1:8001}", "}")
            site = re.sub(r"^.*127\.0\.0\.1:8001.*\n", "", site, flags=re.MULTILINE)
        for old, new in CHANGES[self.kind].items():
            site = _exchanged(site, old.format(), new.format(**own))
        for old, new in changes.items():
            site = _exchanged(site, old, new)
        for port, chat in zip((8000, 8001), chats, strict=False):
            site = _exchanged(site, f"127.0.0.1:{port}", f"127.0.0.1:{chat.port}")
        return AROUND[self.kind].format(
            **own, site=site, user=getpass.getuser(), nobody="nobody", modules=_modules(site)
        )


def _exchanged(text: str, old: str, new: str) -> str:
    assert old in text, f"{old!r} is not in the file"
    return text.replace(old, new)


def _modules(site: str) -> str:
    """The lines that load what the file says it needs, and what every Apache has."""
    said = re.search(r"Modules: (.*?)\.\n", site, re.DOTALL)
    named = re.findall(r"\w+", said[1]) if said else []
    always = ["mpm_event", "authz_core", "alias", "socache_shmcb"]
    return "\n".join(
        f"LoadModule {one}_module {APACHE_MODULES}/mod_{one}.so" for one in [*always, *named]
    )
