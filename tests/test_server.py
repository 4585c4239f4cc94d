"""One process that serves: its start, its end, and what strangers can do to it."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import struct
import time
from pathlib import Path

import pytest
from hypercorn.config import Config
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from chat.ops import server
from tests.little_server import SOON, Launched, launched

UPGRADE = (
    b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def tcp(port: int, data: bytes = b"") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), SOON)
    sock.sendall(data)
    return sock


def answer(sock: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def upgraded(port: int, path: bytes = b"/echo") -> socket.socket:
    sock = tcp(port, UPGRADE.replace(b"/echo", path))
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(1)
    assert data.startswith(b"HTTP/1.1 101")
    return sock


def alive(running: Launched) -> bool:
    return answer(tcp(running.port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))[
        :15
    ].startswith(b"HTTP/1.1 200")


# Start


def test_the_start_announces_the_address_once_and_the_log_holds_no_query_or_referer() -> None:
    with launched() as running:
        port = running.port
        asked = b"GET /?token=secret HTTP/1.1\r\nHost: x\r\nReferer: http://y/?key=hidden\r\n\r\n"
        with tcp(port, asked) as sock:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        with connect(f"ws://127.0.0.1:{port}/echo?token=secret") as client:
            client.send("hola")
            assert client.recv() == "hola"
        assert 'GET / 1.1" 200' in running.line('"GET / ')
        assert 'GET /echo 1.1" 101' in running.line('"GET /echo ')
        assert running.stop() == 0
        assert running.text.count("open http") == 1
        assert "secret" not in running.text and "hidden" not in running.text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_taken_address_is_one_sentence_and_exit_code_1(workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with launched(workers, bind=address) as running:
            assert running.end() == 1
            assert running.lines == [
                f"Address {address} is in use; stop the other server or choose another PORT."
            ]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_that_is_taken_during_the_start_is_one_sentence_too(
    workers: int, tmp_path: Path
) -> None:
    marker = tmp_path / "go on"
    with server.bound("127.0.0.1:0") as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with launched(workers, "slow start", bind=address, LITTLE_MARKER=str(marker)) as running:
            running.line("starting")
            other.listen()
            marker.touch()
            assert running.end() == 1
            assert set(running.lines) == {
                "starting",
                f"Address {address} is in use; stop the other server or choose another PORT.",
            }


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (2, 2)])
def test_a_second_server_on_the_same_address_fails(first: int, second: int) -> None:
    with launched(first) as running:
        with launched(second, bind=f"127.0.0.1:{running.port}") as other:
            assert other.end() == 1
            assert other.text.endswith("choose another PORT.") and len(other.lines) == 1
        assert alive(running)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("fault", "sentence", "code"),
    [
        ("settings", "CHAT_X must be a number.", 2),
        ("chat", "The database does not answer.", 1),
    ],
)
def test_a_start_that_fails_is_one_sentence_and_a_code(
    workers: int, fault: str, sentence: str, code: int
) -> None:
    with launched(workers, fault) as running:
        assert running.end() == code
        assert running.lines == [sentence]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "accesslog = '/nowhere/log'",
            "accesslog, errorlog, loglevel or logconfig cannot be used:"
            " [Errno 2] No such file or directory: '/nowhere/log'.",
        ),
        (
            "errorlog = 'errors'\nloglevel = 'loud'",
            "accesslog, errorlog, loglevel or logconfig cannot be used: Unknown level: ",
        ),
        (
            "certfile = 'hypercorn.toml'\nkeyfile = 'hypercorn.toml'",
            "certfile, keyfile, ca_certs or ciphers cannot be used: [SSL] ",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence_that_names_the_setting(
    tmp_path: Path, workers: int, text: str, sentence: str
) -> None:
    path = tmp_path / "hypercorn.toml"
    path.write_text(text.replace("errors", str(tmp_path / "errors")))
    with launched(workers, LITTLE_CONFIG=str(path)) as running:
        assert running.end() == 2
        [said] = [line for line in running.lines if line != "lifespan over"]
        assert said.startswith(sentence)


def test_a_unix_socket_that_cannot_be_had_is_one_sentence() -> None:
    with launched(bind="unix:/nowhere/chat") as running:
        assert running.end() == 1
        [said] = [line for line in running.lines if line != "lifespan over"]
        assert said == "Address unix:/nowhere/chat cannot be used: No such file or directory."


def test_a_start_that_fails_by_our_own_fault_keeps_its_trace() -> None:
    with launched(1, "bug") as running:
        assert running.end() == 1
        assert "The server failed: LookupError: one two" in running.lines
        assert running.text.count("Traceback") == 1


def test_a_signal_during_a_slow_start_ends_it() -> None:
    with launched(1, "slow start") as running:
        running.line("starting")
        assert running.stop() == 0
        assert "open" not in running.text and "Traceback" not in running.text


def test_the_sockets_that_listen_have_a_user_timeout_and_a_small_send_buffer() -> None:
    with server.bound("127.0.0.1:0") as listening:
        listening.listen()
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
        with client, accepted:
            user_timeout = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert user_timeout == 60_000
            # Linux doubles what was asked for, to pay for its own book-keeping.
            size = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert size in (128 * 1024, 256 * 1024)


# End


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_everything_within_five_seconds(number: int) -> None:
    with launched() as running:
        port = running.port
        with connect(f"ws://127.0.0.1:{port}/echo") as client:
            client.send("hola")
            assert client.recv() == "hola"
            open_ones = [
                tcp(port),  # has said nothing
                tcp(port, b"GET / HT"),  # half a request
                tcp(port, GET),  # idle, kept alive
                tcp(port, b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"),
                upgraded(port),  # never answers the close
                upgraded(port, b"/stubborn"),  # whose app sees no end
            ]
            began = time.monotonic()
            running.process.send_signal(number)
            with pytest.raises(ConnectionClosed):
                client.recv()
            assert client.close_code == 1012
            running.process.send_signal(number)  # changes nothing
            assert running.end() == 0
            assert time.monotonic() - began < 5.0
        for sock in open_ones:
            sock.close()
        assert running.text.count("drain") == 1
        assert running.text.count("lifespan over") == 1
        assert "Traceback" not in running.text


def test_signals_that_go_on_to_the_very_end_change_nothing() -> None:
    with launched() as running:
        assert running.port
        while running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.001)  # no fixed wait: the signals are the load of this test
        assert running.end() == 0
        assert "Traceback" not in running.text


def test_a_fault_in_draining_does_not_keep_the_server_up() -> None:
    with launched(1, "drain") as running:
        assert running.port
        assert running.stop() == 0
        assert "Draining failed" in running.text and "lifespan over" in running.text


def test_a_fault_in_the_apps_shutdown_is_exit_code_1() -> None:
    with launched(1, "stop") as running:
        assert running.port
        assert running.stop() == 1
        assert "The server failed: LookupError: no end" in running.lines


async def test_draining_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DRAIN_LIMIT", 0.01)

    class App:
        class state:
            drain = asyncio.Event().wait

    await server._drain(App)  # type: ignore[arg-type]


# Strangers


def test_no_stranger_gets_a_stack_trace_into_the_log() -> None:
    close = struct.pack("!H", 999)
    frames = [
        b"\x81\x05hello",  # not masked
        b"\xff" * 64,
        b"\x83\x80\0\0\0\0",
        b"\x88\x82\0\0\0\0" + close,
        b"\x81\xff" + b"\xff" * 12,
        b"\x81\x82\0\0\0\0\xff\xfe",
        b"\x88\x81\0\0\0\0x",
        b"\x00\x80\0\0\0\0",
    ]
    requests = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # TLS
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab",
        b"GET /nowhere%0AINFO%20forged HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0\0\0\4\0\0\0\0\0\1abcd",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: %%%%\r\n\r\n",
        UPGRADE.replace(b"Version: 13", b"Version: 1"),
        UPGRADE.replace(b"Sec-WebSocket-Key", b"X"),
        UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        UPGRADE[:-20],
        UPGRADE + frames[0],
        UPGRADE.replace(b"/echo", b"/nowhere"),
        UPGRADE.replace(b"GET", b"POST"),
    ]
    dice = random.Random(1)
    requests += [dice.randbytes(200) for _ in range(10)]
    with launched() as running:
        port = running.port
        for data in requests:
            with tcp(port, data):
                pass
            with tcp(port, data) as sock:
                reset(sock)
            sock = tcp(port, data)
            sock.shutdown(socket.SHUT_WR)
            answer(sock)
            sock.close()
        for frame in frames:
            with upgraded(port) as sock:
                sock.sendall(frame)
                sock.shutdown(socket.SHUT_WR)
                answer(sock)
            with upgraded(port) as sock:
                sock.sendall(frame)
                reset(sock)
        for path in (b"/careless", b"/echo"):
            with upgraded(port, path) as sock:
                reset(sock)
            upgraded(port, path).close()
        with tcp(port, b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"):
            pass
        assert alive(running)
        assert running.stop() == 0
        assert "Traceback" not in running.text, running.text
        assert "ERROR" not in running.text
        assert not any(line.startswith("INFO forged") for line in running.lines)
        assert "/nowhere%0AINFO%20forged" in running.text


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_our_own_fault_keeps_its_trace() -> None:
    with launched() as running:
        assert answer(tcp(running.port, b"GET /crash HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 500")
        running.line("LookupError: our own fault")
        assert running.stop() == 0


# Small parts


def test_what_to_open_is_an_address_of_this_machine() -> None:
    def url(bind: str) -> str:
        return server.url_of(Config.from_mapping(bind=[bind]))

    assert url("0.0.0.0:8000") == "http://127.0.0.1:8000/"
    assert url("[::]:80") == "http://[::1]:80/"
    assert url("unix:/run/chat") == "unix:/run/chat"


async def test_a_broken_connection_is_no_error_of_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    server._report(loop, {"message": "lost", "exception": ConnectionResetError()})
    assert not caplog.records
    server._report(loop, {"message": "ours", "exception": LookupError()})
    assert [record.levelname for record in caplog.records] == ["ERROR"]
