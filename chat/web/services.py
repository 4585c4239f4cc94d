"""What the endpoints work with: built once by `app.py`, found by them in the ASGI scope."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from chat.live.flights import Flights
from chat.live.hub import Hub
from chat.live.relay import Relay
from chat.live.room import Room
from chat.log.marks import Marks
from chat.log.members import Members
from chat.log.repository import Repository
from chat.log.users import Users
from chat.log.writer import Writer
from chat.settings import Settings
from chat.web.identity import Identities
from chat.web.limits import Limits


@dataclass
class Services:
    settings: Settings
    repository: Repository
    users: Users
    members: Members
    marks: Marks
    writer: Writer
    hub: Hub
    relay: Relay
    identities: Identities
    limits: Limits
    # Open sockets by user id and by client address.
    by_user: Counter[int] = field(default_factory=Counter)
    by_address: Counter[str] = field(default_factory=Counter)
    # Rooms that are being looked for by name, and opened: a crowd that comes back looks once.
    opening_rooms: Flights[str, Room | None] = field(default_factory=Flights)
    # Sockets whose identity, room and place in the log are being looked up.
    handshakes: int = 0
    # Set while the process ends: no new socket is let in.
    draining: bool = False


def services(connection: HTTPConnection) -> Services:
    found: Services = connection.app.state.services
    return found
