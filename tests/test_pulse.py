"""One timer pings all sockets in turn; what a ping is on the wire is in test_stream.py."""

from __future__ import annotations

import asyncio

from chat.ops.pulse import TURNS, Pulse


class Socket:
    def __init__(self) -> None:
        self.pings: asyncio.Queue[float] = asyncio.Queue()

    def ping(self) -> None:
        self.pings.put_nowait(asyncio.get_running_loop().time())


async def test_each_socket_is_pinged_once_per_interval_and_they_are_spread() -> None:
    pulse = Pulse(0.2)
    sockets = [Socket() for _ in range(2 * TURNS)]
    turns = [pulse.join(socket) for socket in sockets]
    assert {len(turn) for turn in pulse.turns} == {2}
    async with asyncio.timeout(10):
        for socket in sockets:
            first, second = await socket.pings.get(), await socket.pings.get()
            assert second - first > 0.1
    for socket, turn in zip(sockets, turns, strict=True):
        pulse.leave(socket, turn)
    assert pulse.members == 0 and not any(pulse.turns)


async def test_the_timer_runs_only_while_there_is_a_socket() -> None:
    pulse = Pulse(20.0)
    assert pulse.timer is None
    socket = Socket()
    turn = pulse.join(socket)
    timer = pulse.timer
    assert timer is not None
    pulse.leave(socket, turn)
    assert timer.cancelled() and pulse.timer is None
    pulse.leave(socket, pulse.join(socket))
    assert pulse.timer is None
