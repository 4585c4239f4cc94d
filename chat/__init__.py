"""Tertulia: a room chat that loses nothing.

A room is an append-only log in SQL. A connection is a cursor into it. The relay is only a
doorbell.

`chat.log` keeps the durable truth, `chat.live` what is in memory now, `chat.web` is where HTTP
and WebSocket meet it, `chat.ops` runs it; `chat.app` wires them. Imports go down only:
app, web, live, log.
"""

from __future__ import annotations

__version__ = "0.1.0"
