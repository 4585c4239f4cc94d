"""Several workers under a parent: starts, deaths, signals, and nobody left behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from chat.ops import workers
from tests.little_server import SOON, Launched, launched


def pids(running: Launched) -> set[int]:
    return {child.pid for child in psutil.Process(running.process.pid).children()}


def ask(port: int) -> int:
    """The pid of the worker that answers."""
    with socket.create_connection(("127.0.0.1", port), SOON) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b""
        while part := sock.recv(65536):
            data += part
    return int(data.rpartition(b"\r\n")[2])


def ask_until(port: int, wanted: set[int]) -> None:
    """Ask until each of these workers has answered once."""
    missing = set(wanted)
    deadline = time.monotonic() + SOON
    while missing and time.monotonic() < deadline:
        with suppress(OSError):
            missing.discard(ask(port))
    assert not missing


def gone(wanted: set[int]) -> bool:
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in wanted if running(pid)], SOON)
    return not alive


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_every_worker_answers_on_the_one_port_that_is_announced_once() -> None:
    with launched(2) as running:
        port = running.port
        ask_until(port, pids(running))
        assert len(pids(running)) == 2
        assert running.stop() == 0
        assert running.text.count("open ") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_all_workers_in_order(number: int) -> None:
    with launched(2) as running, connect(f"ws://127.0.0.1:{running.port}/echo") as client:
        client.send("hola")
        assert client.recv() == "hola"
        workers = pids(running)
        for pid in workers:
            os.kill(pid, number)
        for _ in range(3):
            running.process.send_signal(number)
        with pytest.raises(ConnectionClosed):
            client.recv()
        assert client.close_code == 1012
        assert running.end() == 0
        assert gone(workers)
        assert running.text.count("drain") == 2 and running.text.count("lifespan over") == 2
        assert "Traceback" not in running.text


def test_a_worker_that_dies_is_replaced_and_the_other_keeps_its_sockets() -> None:
    with launched(2) as running:
        port = running.port
        before = pids(running)
        with connect(f"ws://127.0.0.1:{port}/echo") as client:
            client.send("hola")
            client.recv()
            mine = next(
                pid
                for pid in before
                if any(
                    link.raddr and link.raddr.port == client.local_address[1]
                    for link in psutil.Process(pid).net_connections("tcp")
                )
            )
            (victim,) = before - {mine}
            os.kill(victim, signal.SIGKILL)
            assert "ended with code -9; another starts" in running.line(f"Worker {victim} ")
            deadline = time.monotonic() + SOON
            while len(pids(running) - {victim}) < 2 and time.monotonic() < deadline:
                pass
            ask_until(port, pids(running))
            client.send("still here")
            assert client.recv() == "still here"
        assert running.stop() == 0
        assert running.text.count("open ") == 1


def test_a_replacement_that_cannot_start_is_tried_again_and_the_others_serve(
    tmp_path: Path,
) -> None:
    marker = tmp_path / "away"
    with launched(2, "second start", LITTLE_MARKER=str(marker)) as running:
        port = running.port
        marker.touch()
        victim, other = pids(running)
        os.kill(victim, signal.SIGKILL)
        assert "The database went away." in running.line("ended with code 1")
        assert ask(port) == other
        marker.unlink()
        deadline = time.monotonic() + SOON
        answers: set[int] = set()
        while len(answers) < 2 and time.monotonic() < deadline:
            answers.add(ask(port))
        assert len(answers) == 2
        assert running.stop() == 0


def test_the_workers_end_when_the_parent_is_killed() -> None:
    with launched(2) as running:
        assert running.port
        workers = pids(running)
        running.process.kill()
        assert gone(workers)
        assert running.text.count("drain") == 2


def test_a_worker_that_does_not_stop_is_killed_and_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "KILL_LIMIT", 0.2)

    def deaf(ready: object, failed: object, orphaned: int) -> int:
        ready()  # type: ignore[operator]
        while True:  # the signals are blocked, as they are in every new worker
            signal.sigwait([signal.SIGUSR1])

    said: list[str] = []
    code = workers.supervise(
        deaf, 2, lambda: os.kill(os.getpid(), signal.SIGTERM), lambda line: said.append(line)
    )
    assert code == 1 and not said


def test_a_worker_that_ends_before_it_listens_ends_the_start() -> None:
    said: list[str] = []
    code = workers.supervise(lambda ready, failed, orphaned: 3, 2, lambda: None, said.append)
    assert code == 3
    assert said == ["A worker ended with code 3 before it listened."]


def test_the_parents_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in workers.STOP_SIGNALS]
    workers.supervise(lambda ready, failed, orphaned: 3, 1, lambda: None, lambda line: None)
    assert before == [signal.getsignal(number) for number in workers.STOP_SIGNALS]
