"""Wires everything; the one place that knows all names.

`create_app` returns the Starlette application; its lifespan opens the database, the relay and the
background tasks, and closes them in reverse. Called by `__main__.py` and by tests.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from chat.errors import SettingsError, Unauthenticated, WireError
from chat.live.hub import Hub
from chat.live.relay import Relay
from chat.live.tasks import Tasks
from chat.live.tending import tend
from chat.log.database import Database
from chat.log.marks import Marks
from chat.log.members import Members
from chat.log.repository import Repository
from chat.log.retention import Retention
from chat.log.users import Users
from chat.log.writer import Writer
from chat.ops import metrics
from chat.ops.health import readiness
from chat.settings import Settings
from chat.web import api, pages, problems
from chat.web.draining import drain
from chat.web.guard import Guard
from chat.web.identity import Identities, Sessions
from chat.web.limits import Limits
from chat.web.services import Services
from chat.web.sockets import RoomSocket

logger = logging.getLogger(__name__)

PROCESS_BYTES = 6  # random bytes that tell the processes of a deployment apart


def create_app(settings: Settings) -> Starlette:
    """Return the application; its secret key must be set."""
    assert settings.secret_key, "ops/secret.py makes one"
    cors = (
        [
            Middleware(
                CORSMiddleware,
                allow_origins=settings.allowed_origins,
                allow_credentials=True,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "Chat-User"],
            )
        ]
        if settings.allowed_origins
        else []
    )
    return Starlette(
        routes=[
            *pages.ROUTES,
            Mount("/api", routes=api.ROUTES, middleware=cors),
            Mount(
                "/static",
                StaticFiles(packages=[("chat.web", "static")]),
                # Only here: what is secret must not be compressed beside what strangers choose.
                middleware=[*cors, Middleware(GZipMiddleware)],
            ),
            Route("/healthz", _healthz),
            Route("/readyz", _readyz),
            Route("/metrics", _metrics),
            WebSocketRoute("/ws/chat/{room:whole}", RoomSocket),
        ],
        middleware=[
            Middleware(Guard, settings=settings),
            Middleware(Sessions, settings=settings),
        ],
        exception_handlers={
            WireError: problems.on_wire_error,
            HTTPException: problems.on_http_exception,
            Exception: problems.on_fault,
        },
        lifespan=lambda app: _lifespan(app, settings),
    )


@asynccontextmanager
async def _lifespan(app: Starlette, settings: Settings) -> AsyncIterator[None]:
    # A start that fails half-way closes what is open, too: its threads would keep the process.
    async with AsyncExitStack() as stack:
        app.state.services = chat = await _open(app, settings, stack)
        app.state.drain = lambda: drain(chat)
        yield


async def _open(app: Starlette, settings: Settings, stack: AsyncExitStack) -> Services:
    """Open all parts, each with its end on the stack, and start the tasks."""
    database = Database(settings.database_url)
    await database.open()
    stack.push_async_callback(database.close)
    repository = Repository(database)
    deployment, process = await repository.deployment(), secrets.token_hex(PROCESS_BYTES)
    try:
        relay = Relay(
            settings.relay_url,
            prefix=deployment,
            process=process,
            on_gap=lambda channel: hub.on_gap(channel),
            on_control=lambda text: hub.on_control(text),
        )
    except ValueError as error:
        raise SettingsError(f"CHAT_RELAY_URL is wrong: {error}.") from error
    stack.push_async_callback(relay.close)
    hub = Hub(repository, relay, process)
    writer = Writer(repository, hub.announce)
    users = Users(database)
    members = Members(database)
    marks = Marks(members)
    limits = Limits(settings, deployment, lambda: relay.lost)
    stack.push_async_callback(limits.close)
    identities = Identities(settings, users)
    app.state.tasks = tasks = Tasks()
    stack.push_async_callback(tasks.close)
    stack.push_async_callback(hub.close)
    await relay.open()
    tasks.start("writer", writer.run)
    tasks.start("ticker", hub.tick)
    tasks.start("tending", lambda: tend(hub.members))
    tasks.start("presence", hub.presence.run)
    tasks.start("marks", marks.run)
    tasks.start("retention", Retention(database, settings.retention_days, process).run)
    return Services(
        settings, repository, users, members, marks, writer, hub, relay, identities, limits
    )


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _readyz(request: Request) -> Response:
    chat: Services = request.app.state.services
    status, report = await readiness(
        chat.repository.database, chat.writer, chat.relay, request.app.state.tasks, chat.hub
    )
    if chat.draining:
        # All parts may be well: but who is sent here is refused, and should go elsewhere.
        status, report["status"] = 503, "unavailable"
    return Response(
        msgspec.json.encode(report),
        status,
        {"Cache-Control": "no-store"},
        media_type="application/json",
    )


async def _metrics(request: Request) -> Response:
    chat: Services = request.app.state.services
    if chat.settings.api_key is not None and not chat.identities.is_backend(request):
        raise Unauthenticated("This needs `Authorization: Bearer` with the value of CHAT_API_KEY.")
    return Response(
        metrics.page(), headers={"Cache-Control": "no-store"}, media_type=metrics.CONTENT_TYPE
    )
