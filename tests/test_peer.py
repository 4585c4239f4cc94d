"""The inbox of an app, and a connection that never ends as an exception.

What a connection does for its sockets is in test_stream.py, over real ones.
"""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config

from chat.ops.peer import Inbox, Peer, connected

ONE: Any = {"type": "websocket.receive", "text": "1", "bytes": None}


async def test_a_disconnect_finds_room_in_a_full_inbox_and_an_ended_one_takes_nothing() -> None:
    inbox = Inbox(2)
    for _ in range(2):
        await inbox.put(ONE)
    waiting = asyncio.create_task(inbox.put(ONE))
    await asyncio.sleep(0)
    assert len(inbox.waiters) == 1
    await inbox.put({"type": "websocket.disconnect", "code": 1006, "reason": ""})
    await waiting
    assert [(await inbox.get())["type"] for _ in range(3)] == [
        "websocket.receive",
        "websocket.receive",
        "websocket.disconnect",
    ]


async def test_a_receive_that_is_cancelled_takes_no_message_and_leaves_no_trace() -> None:
    inbox = Inbox(2)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await inbox.get()
    assert inbox.waiters == []
    await inbox.put({"type": "websocket.connect"})
    assert (await inbox.get())["type"] == "websocket.connect"


async def test_messages_keep_their_order_through_a_full_inbox() -> None:
    inbox = Inbox(2)

    async def put_all() -> None:
        for number in range(50):
            await inbox.put({**ONE, "text": str(number)})

    async with asyncio.TaskGroup() as group:
        group.create_task(put_all())
        got: list[Any] = [(await inbox.get()) for _ in range(50)]
    assert [message["text"] for message in got] == [str(number) for number in range(50)]


async def test_after_the_apps_end_a_put_waits_for_nothing_and_keeps_nothing() -> None:
    inbox = Inbox(1)
    await inbox.put(ONE)
    waiting = asyncio.create_task(inbox.put(ONE))
    await asyncio.sleep(0)
    inbox.end()
    await waiting
    await inbox.put(ONE)
    await inbox.put({"type": "websocket.disconnect", "code": 1000, "reason": ""})
    assert len(inbox.messages) == 1


async def test_a_hole_in_a_parser_is_one_line_without_a_strangers_bytes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(self: TCPServer) -> None:
        assert self in connected
        raise ExceptionGroup("tasks", [KeyError("a stranger's bytes")])

    monkeypatch.setattr(TCPServer, "run", run)
    caplog.set_level(logging.INFO)
    config = Config.from_mapping(errorlog=logging.getLogger("hypercorn.error"))
    loop: Any = asyncio.get_running_loop()
    unused: Any = None
    writer: Any = SimpleNamespace(transport=None)
    peer = Peer(unused, loop, config, unused, unused, unused, writer)
    await peer
    assert [record.getMessage() for record in caplog.records] == ["Connection ended by KeyError"]
    assert peer not in connected


async def test_the_end_of_the_process_cancels_a_connection_without_a_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run(self: TCPServer) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(TCPServer, "run", run)
    unused: Any = None
    writer: Any = SimpleNamespace(transport=None)
    peer = Peer(unused, asyncio.get_running_loop(), Config(), unused, unused, unused, writer)
    task = asyncio.create_task(peer.run())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert peer not in connected
