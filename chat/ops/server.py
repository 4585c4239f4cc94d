"""Hypercorn, run through its API: the life of one process that serves.

`python -m chat serve` calls `load_config` and `serve`, with a factory for the app: nothing of the
app is imported here. The parent of several workers is in `workers.py`. On SIGTERM or SIGINT the app
drains first (`app.state.drain`), then Hypercorn stops, then what is still open is cut: Hypercorn by
itself waits for open connections, from Python 3.12 on without a limit.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from errno import EADDRINUSE, EBADF
from ssl import SSLError
from typing import Any

import hypercorn.asyncio
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError

from chat.errors import ChatError, SettingsError
from chat.ops import stream
from chat.ops import workers as crew
from chat.ops.access import open_logs
from chat.ops.config import address_of, bound, host_and_port, unusable, url_of
from chat.ops.config import load_config as load_config
from chat.ops.peer import connected

App = Callable[[Any, Any, Any], Awaitable[None]]
Said = Callable[[str], None]

DRAIN_LIMIT = 8.0  # seconds for the app to say good-bye; above what its own steps add up to
# Seconds from the signal to the end of the process, by force. Above the sum of the limits before:
# drain 8, requests under way 2 and their tasks 3 (hypercorn.toml), the app's shutdown 10.
STOP_LIMIT = 25.0
# Python's 700 new objects come several times in each batch of messages, and a thousand idle sockets
# are looked through for nothing: a fifth of the work under load. A megabyte or two more is kept.
GC_THRESHOLDS = (50_000, 20, 100)
CUT_EVERY = 0.2  # seconds; a connection may be made while the first cut is under way
# Seconds that tasks have to end after the cut, before Hypercorn cancels them.
CUT_GRACE = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


def serve(
    app_factory: Callable[[], App],
    config: Config,
    *,
    workers: int | None = None,
    announce: Said = print,
) -> int:
    """Serve until a signal; the answer is the exit code: 0, 2 for a wrong setting, else 1.

    `announce` is called once, with the address to open, when all workers listen. Call it at the
    end of the process: SIGTERM and SIGINT are ignored from then on.
    """
    count = config.workers if workers is None else workers
    # Each socket is a file, and systems often begin with a thousand.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # some systems know a lower bound than the one they tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        if count > 1:
            return _serve_many(app_factory, config, count, announce)
        sockets = [bound(address) for address in config.bind if host_and_port(address)]
    except ChatError as error:
        return _failed(error, _say)
    others = [address for address in config.bind if not host_and_port(address)]
    config.bind = [address_of(sock) for sock in sockets] + others
    url = url_of(config)
    return _work(app_factory, config, sockets, lambda: announce(url), _say)


def _serve_many(app_factory: Callable[[], App], config: Config, count: int, announce: Said) -> int:
    reserved = []
    for index, address in enumerate(config.bind):
        # Without SO_REUSEPORT, so that the listening sockets of another server are found here, and
        # not shared by accident. From then on the address is held by a socket that does not listen.
        with bound(address) as probe:
            config.bind[index] = address_of(probe)
        reserved.append(bound(config.bind[index], shared=True))
    url = url_of(config)

    def child(ready: Callable[[], None], failed: Said, orphaned: int) -> int:
        try:
            sockets = [bound(address, shared=True) for address in config.bind]
        except ChatError as error:
            return _failed(error, failed)
        return _work(app_factory, config, sockets, ready, failed, orphaned)

    try:
        return crew.supervise(child, count, lambda: announce(url), _say)
    finally:
        for sock in reserved:
            sock.close()


def _work(
    app_factory: Callable[[], App],
    config: Config,
    sockets: list[Any],
    ready: Callable[[], None],
    failed: Said,
    orphaned: int | None = None,
) -> int:
    # One worker, until a signal, or until the pipe `orphaned` ends. `ready` is called when it
    # listens, `failed` with a sentence where it cannot.
    stream.install()
    addresses, others = ", ".join(config.bind), config.bind[len(sockets) :]
    config.workers = 1
    config.bind = [f"fd://{sock.detach()}" for sock in sockets] + others
    new_loop: Any = None
    if importlib.util.find_spec("uvloop"):
        import uvloop

        new_loop = uvloop.new_event_loop
    lifespan = None
    try:
        open_logs(config)
        with asyncio.Runner(loop_factory=new_loop) as runner:
            lifespan = Lifespan(app_factory())
            runner.run(_serve(lifespan, config, ready, orphaned))
    except KeyboardInterrupt:
        return 0  # before the loop took the signal over
    except (LifespanFailureError, LifespanTimeoutError) as error:
        cause = lifespan.error if lifespan is not None else None
        return _failed(cause or error, failed)
    except SSLError as error:
        what = "certfile, keyfile, ca_certs or ciphers cannot be used"
        return _failed(SettingsError(f"{what}: {error}."), failed)
    except OSError as error:
        if error.errno == EBADF:
            # uvloop only closes a socket that it cannot listen on: Hypercorn trips over that.
            error.errno = EADDRINUSE
        if error.errno == EADDRINUSE:
            return _failed(unusable(addresses, error), failed)
        # Hypercorn binds these; the others were bound before.
        of_them = others and error.filename is None
        return _failed(unusable(", ".join(others), error) if of_them else error, failed)
    except Exception as error:
        # The factory's own fault: the last place that can make a sentence and a code of it.
        return _failed(error, failed)
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return 0


async def _serve(
    lifespan: Lifespan, config: Config, ready: Callable[[], None], orphaned: int | None
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_report)
    stop = asyncio.Event()
    listening = False

    def ask_to_stop() -> None:
        if stop.is_set():
            return  # make, the parent and the process group all pass signals on
        stop.set()
        loop.call_later(STOP_LIMIT, os._exit, 1)
        if not listening:
            server.cancel()

    requests_limit = config.graceful_timeout
    config.graceful_timeout += CUT_GRACE

    async def stopped() -> None:
        nonlocal listening
        listening = True
        gc.freeze()  # what the start made stays for good: never look at it again
        gc.set_threshold(*GC_THRESHOLDS)
        ready()
        await stop.wait()
        await _drain(lifespan.app)
        loop.call_later(requests_limit, _cut, loop, config)

    server = loop.create_task(
        hypercorn.asyncio.serve(lifespan, config, shutdown_trigger=stopped, mode="asgi")
    )
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, ask_to_stop)
    # A forked worker was born with them blocked, so that none is lost before this point.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if orphaned is not None:

        def parent_died() -> None:
            loop.remove_reader(orphaned)
            ask_to_stop()

        loop.add_reader(orphaned, parent_died)
    try:
        await server
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        # The loop gives the signals back as it closes. A repeated one must not end us with a
        # trace, or with another code, on the last metres: `_work` ignores them from there.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


async def _drain(app: App) -> None:
    drain = getattr(getattr(app, "state", None), "drain", None)
    if drain is None:
        return
    try:
        async with asyncio.timeout(DRAIN_LIMIT):
            await drain()
    except TimeoutError:
        logger.warning("Draining took more than %g s", DRAIN_LIMIT)
    except Exception:
        # A fault in the app's farewell must not keep the server from stopping.
        logger.exception("Draining failed")


def _cut(loop: asyncio.AbstractEventLoop, config: Config) -> None:
    for peer in list(connected):
        peer.abort()
    # Where Hypercorn has waited for the connections until now, it begins to wait for tasks here.
    config.graceful_timeout = CUT_GRACE
    loop.call_later(CUT_EVERY, _cut, loop, config)


class Lifespan:
    """The app, with the error kept that ended its start or its stop.

    Starlette reports such an error as the text of its trace, and Hypercorn puts that into another
    error's text; here the error itself survives.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        # Set when the app's lifespan ends by an exception.
        self.error: Exception | None = None

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        # No coroutine of its own around the app's: it would stay for as long as a socket does.
        if scope["type"] == "lifespan":
            return self._live(scope, receive, send)
        return self.app(scope, receive, send)

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        stage = "startup"

        async def pass_on(message: Any) -> None:
            nonlocal stage
            if message["type"] == "lifespan.startup.complete":
                stage = "shutdown"
            if not message["type"].endswith(".failed"):  # the exception follows it
                await send(message)

        try:
            await self.app(scope, receive, pass_on)
        except Exception as error:
            self.error = error
            await send({"type": f"lifespan.{stage}.failed", "message": type(error).__name__})


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # A connection that broke, or was no TLS, is the peer's affair; a start that failed has been
    # told, even where a signal came between it and the one who would have heard.
    expected = (ConnectionError, TimeoutError, SSLError, LifespanFailureError)
    if isinstance(context.get("exception"), expected):
        logger.debug("%s", context["message"], exc_info=context["exception"])
    else:
        loop.default_exception_handler(context)


def _failed(error: Exception, failed: Said) -> int:
    if not isinstance(error, ChatError):
        if not isinstance(error, LifespanTimeoutError):
            logger.error("The server failed", exc_info=error)
        error = ChatError(f"The server failed: {type(error).__name__}: {error}")
    failed(" ".join(str(error).split()))
    return 2 if isinstance(error, SettingsError) else 1


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
