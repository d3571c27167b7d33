# SPDX-License-Identifier: Apache-2.0
"""The server of HTTP on a Unix socket: whole requests, broken ones, many connections, and its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from datapath.errors import ConfigError, DatapathError, InUseError, KernelError
from datapath.kernel import process, unix_server
from datapath.kernel.unix_http import Api
from datapath.kernel.unix_server import Answer, Request, Server

IDLE = 30.0  # more than any test takes


def echo(request: Request) -> Answer:
    if request.path == "/fail":
        raise ValueError("it failed")
    return Answer(HTTPStatus.OK, f'"{request.method} {request.path} {len(request.body)}"'.encode())


class Served:
    """A server in a thread, and what speaks to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stop, self._stopping = os.pipe()

    def end(self) -> None:
        os.write(self._stopping, b"x")

    def connect(self) -> socket.socket:
        opened = socket.socket(socket.AF_UNIX)
        opened.settimeout(60)
        opened.connect(str(self.path))
        return opened

    def say(self, raw: bytes, close: bool = False) -> bytes:
        """The first that is answered."""
        with self.connect() as opened:
            opened.sendall(raw)
            if close:
                opened.shutdown(socket.SHUT_WR)
            return opened.recv(65536)


@contextlib.contextmanager
def serving(
    folder: Path, handle: Callable[[Request], Answer] = echo, idle: float | None = None
) -> Iterator[Served]:
    served = Served(folder / "s")
    with unix_server.listening(served.path) as opened:
        thread = threading.Thread(target=lambda: Server(opened, handle).run(served.stop, idle))
        thread.start()
        try:
            yield served
        finally:
            served.end()
            thread.join(60)
            assert not thread.is_alive()


def test_a_connection_takes_one_request_after_the_other_and_large_bodies(tmp_path: Path) -> None:
    with serving(tmp_path) as served, contextlib.closing(http.client.HTTPConnection("localhost")) as kept:
        kept.sock = served.connect()
        for size in (0, 10, 1 << 20, 8 << 20):
            kept.request("POST", "/x", b"x" * size)
            assert json.loads(kept.getresponse().read()) == f"POST /x {size}"


def test_a_client_that_asks_once_a_connection(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        api = Api(str(served.path))
        for size in (0, 10, 1 << 20):
            assert api.ask("POST", "/x", b"x" * size) == f"POST /x {size}"
        with pytest.raises(DatapathError, match="ValueError: it failed"):
            api.ask("POST", "/fail")
        assert api.ask("GET", "/x?y") == "GET /x?y 0"


def test_a_request_says_which_process_has_connected(tmp_path: Path) -> None:
    seen: list[Request] = []

    def note(request: Request) -> Answer:
        seen.append(request)
        return echo(request)

    program = "import sys; from datapath.kernel.unix_http import Api; Api(sys.argv[1]).ask('GET', '/x')"
    with serving(tmp_path, note) as served:
        Api(str(served.path)).ask("GET", "/x")
        asking = subprocess.Popen([sys.executable, "-c", program, str(served.path)])
        assert asking.wait(60) == 0
    mine, other = (request.asker for request in seen)
    assert mine == (os.getpid(), process.start_time(os.getpid())) and process.alive(*mine)
    assert other[0] == asking.pid and other[1] >= mine[1] and not process.alive(*other)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "ended after 3 of 10 bytes"),
        (b"SSH-2.0-x\r\n\r\n", "closed without an answer"),
    ],
)
def test_a_server_that_does_not_answer_in_full(tmp_path: Path, answer: bytes, said: str) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))
        opened.listen()

        def once() -> None:
            with opened.accept()[0] as one:
                one.recv(1000)
                one.sendall(answer)

        thread = threading.Thread(target=once)
        thread.start()
        with pytest.raises(DatapathError, match=said):
            Api(str(path)).ask("GET", "/x")
        thread.join()
    with pytest.raises(DatapathError, match="refused"):
        Api(str(path)).ask("GET", "/x")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST /x\r\n\r\n", 400),
        (b"POST /x HTTP/2.0\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"POST /x HTTP/1.1\r\nContent-Length: 33554433\r\n\r\n", 413),
        (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST /x HTTP/1.1\r\n" + b"X: y\r\n" * 20000, 431),
        (b"POST /x HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400),
        (b"\0" * 70000, 431),
        (b"POST /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", 100),
        (b"POST /x HTTP/1.1\r\n" + b"X: y\r\n" * 100 + b"\r\n", 200),
        (b"POST /x HTTP/1.1\r\nno header\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /x HTTP/1.1\r\n: y\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /x HTTP/1.1\r\n  y\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length : 3\r\n\r\nabc", 400),
        (b"POST /x HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", 200),
    ],
)
def test_each_request_has_one_clear_answer(tmp_path: Path, raw: bytes, status: int) -> None:
    with serving(tmp_path) as served:
        assert served.say(raw).startswith(f"HTTP/1.1 {status} ".encode())
        assert Api(str(served.path)).ask("POST", "/x") == "POST /x 0"


def test_requests_that_are_never_whole_are_refused_and_keep_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_server, "PATIENCE", 0.5)
    with serving(tmp_path) as served:
        half = [served.connect() for _ in range(50)]
        for opened in half:
            opened.sendall(b"POST /x HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        assert Api(str(served.path)).ask("POST", "/x") == "POST /x 0"
        for opened in half:
            assert opened.recv(100).startswith(b"HTTP/1.1 408 ")
            opened.close()
        gone = served.say(b"POST /x HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc", close=True)
        assert gone.startswith(b"HTTP/1.1 400 ")


def test_a_thousand_idle_connections_are_kept_and_each_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        many = [served.connect() for _ in range(1000)]
        for opened in many:
            opened.sendall(b"POST /x HTTP/1.1\r\n\r\n")
            assert opened.recv(4096).startswith(b"HTTP/1.1 200 ")
            opened.close()


def test_with_more_connections_than_there_may_be_the_one_that_was_idle_for_longest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_server, "CONNECTIONS", 3)
    with serving(tmp_path) as served:
        many = []
        for _ in range(5):
            many.append(served.connect())
            many[-1].sendall(b"POST /x HTTP/1.1\r\n\r\n")
            assert many[-1].recv(4096).startswith(b"HTTP/1.1 200 ")
        while not any(ended(opened) for opened in many[:-1]):
            time.sleep(0.01)
        many[-1].sendall(b"POST /x HTTP/1.1\r\n\r\n")
        assert many[-1].recv(4096).startswith(b"HTTP/1.1 200 ")
        for opened in many:
            opened.close()


def ended(opened: socket.socket) -> bool:
    """Its server has closed it."""
    return bool(select.select([opened], [], [], 0)[0]) and opened.recv(1) == b""


def test_requests_that_come_together_are_answered_together(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def wait(request: Request) -> Answer:
        barrier.wait(60)
        return Answer()

    with serving(tmp_path, wait) as served:
        many = [served.connect() for _ in range(8)]
        for opened in many:
            opened.sendall(b"POST /x HTTP/1.1\r\n\r\n")
        for opened in many:
            assert opened.recv(4096).startswith(b"HTTP/1.1 200 ")
            opened.close()


def test_it_ends_when_nobody_has_asked_for_a_while_and_not_before(tmp_path: Path) -> None:
    served = Served(tmp_path / "s")
    started, go_on = threading.Event(), threading.Event()

    def slow(request: Request) -> Answer:
        started.set()
        assert go_on.wait(60)
        return Answer()

    with unix_server.listening(served.path) as opened:
        thread = threading.Thread(target=lambda: Server(opened, slow).run(served.stop, 0.3))
        thread.start()
        idle, asking = served.connect(), served.connect()
        asking.sendall(b"POST /x HTTP/1.1\r\n\r\n")
        assert started.wait(60)
        thread.join(0.6)
        assert thread.is_alive(), "a request is being answered"
        before = time.monotonic()
        go_on.set()
        assert asking.recv(4096).startswith(b"HTTP/1.1 200 ")
        thread.join(60)
        assert not thread.is_alive()
        assert time.monotonic() - before >= 0.3, "it has not waited since it answered"
        assert (idle.recv(1), asking.recv(1)) == (b"", b"")
        idle.close()
        asking.close()


def test_told_to_end_it_answers_what_it_has_begun(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(request: Request) -> Answer:
        started.set()
        assert go_on.wait(60)
        return Answer()

    with serving(tmp_path, slow) as served:
        asking = served.connect()
        asking.sendall(b"POST /x HTTP/1.1\r\n\r\n")
        assert started.wait(60)
        served.end()
        go_on.set()
        assert asking.recv(4096).startswith(b"HTTP/1.1 200 ")
        asking.close()


# ---- the socket ----------------------------------------------------------------------------------------------


def test_the_socket_is_roots_alone_and_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "s"
    with unix_server.listening(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(InUseError, match="another process serves"), unix_server.listening(path):
            pass
        assert path.exists()
    assert not path.exists()


def test_what_a_killed_server_left_is_replaced_and_what_is_no_socket_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with unix_server.listening(path):
        pass
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is there and no socket"), unix_server.listening(path):
        pass
    assert path.read_text() == "mine"
    with pytest.raises(KernelError), unix_server.listening(tmp_path / ("x" * 200)):
        pass


def test_a_socket_is_taken_over_from_the_service_manager(tmp_path: Path) -> None:
    program = (
        "import os\nfrom datapath.kernel import unix_server\n"
        "found = unix_server.inherited({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})\n"
        "print(found and found.getsockname(), unix_server.inherited({}), "
        "unix_server.inherited({'LISTEN_PID': '1', 'LISTEN_FDS': '1'}))\n"
    )

    def run(fd: int) -> subprocess.CompletedProcess[str]:
        def third() -> None:
            os.dup2(fd, 3)

        return subprocess.run(
            [sys.executable, "-c", program], preexec_fn=third, close_fds=False, capture_output=True, text=True
        )

    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "s"))
        assert "does not listen on a Unix path" in run(opened.fileno()).stderr
        opened.listen()
        assert run(opened.fileno()).stdout == f"{tmp_path / 's'} None None\n"
    with (tmp_path / "file").open("w") as file:
        assert "does not listen on a Unix path" in run(file.fileno()).stderr


def test_a_connection_may_be_for_one_request(tmp_path: Path) -> None:
    path, stop = tmp_path / "s", os.pipe()
    with unix_server.listening(path) as opened:
        thread = threading.Thread(target=lambda: Server(opened, echo, keep=False).run(stop[0]))
        thread.start()
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(60)
            asking.connect(str(path))
            asking.sendall(b"POST /x HTTP/1.1\r\n\r\n" * 2)
            said = b"".join(iter(lambda: asking.recv(4096), b""))
        assert said.count(b"HTTP/1.1 200 ") == 1 and b"\r\nConnection: close\r\n" in said
        os.write(stop[1], b"x")
        thread.join(60)
        assert not thread.is_alive()
