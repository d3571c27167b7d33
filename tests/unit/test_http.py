# SPDX-License-Identifier: Apache-2.0
"""HTTP as the cluster's store is asked with it: answers of every form, and what is none."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from datapath.store.etcd.http import Connection, DisconnectedError, HTTPError, NoHTTPError

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def ends() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and the server's end of it."""
    here, there = socket.socketpair()
    connection = Connection("store.example", 2379, 5, lambda host, port, timeout: _Plain(here))
    yield connection, there
    connection.close()
    here.close()
    there.close()


class _Plain:
    """A socket that has no TCP options."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real

    def setsockopt(self, *option: int) -> None:
        assert option == (6, 1, 1)

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (f"{HEAD}Content-Length: 2\r\n\r\n{{}}", b"{}"),
        (
            f'{HEAD}transfer-encoding: chunked\r\n\r\n1\r\n{{\r\nA;x=y\r\n"a": 12345\r\n1\r\n}}\r\n0\r\n\r\n',
            b'{"a": 12345}',
        ),
        (f"{HEAD}Content-Length: 0\r\n\r\n", b""),
    ],
)
def test_an_answer_is_read_to_its_end_and_no_further(
    ends: tuple[Connection, socket.socket], answer: str, body: bytes
) -> None:
    connection, server = ends
    for _ in range(2):
        server.sendall(answer.encode())
        assert connection.post("/v3/kv/range", b"{}", {"Content-Type": "application/json"}) == (200, body)
    asked = server.recv(4096).decode()
    assert asked.startswith("POST /v3/kv/range HTTP/1.1\r\nHost: store.example:2379\r\nContent-Length: 2\r\n")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("", DisconnectedError),
        ("SSH-2.0-OpenSSH\r\n", NoHTTPError),
        ("HTTP/1.1 abc\r\n", NoHTTPError),
        (f"{HEAD}Content-Length: 5\r\n\r\n{{}}", HTTPError),
        (f"{HEAD}Content-Length: five\r\n\r\n{{}}", HTTPError),
        (f"{HEAD}Content-Length: 99999999999\r\n\r\n", HTTPError),
        (f"{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n", HTTPError),
        (f"{HEAD}Content-Le", HTTPError),
    ],
)
def test_what_is_no_whole_answer_is_refused(
    ends: tuple[Connection, socket.socket], answer: str, error: type[Exception]
) -> None:
    connection, server = ends
    server.sendall(answer.encode())
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(error):
        connection.post("/", b"", {})


def test_an_answer_without_a_length_ends_with_the_connection(ends: tuple[Connection, socket.socket]) -> None:
    connection, server = ends
    server.sendall(f"{HEAD}\r\nwhole".encode())
    threading.Timer(0.01, server.shutdown, [socket.SHUT_WR]).start()
    assert connection.post("/", b"", {}) == (200, b"whole")
    assert connection.sock is None  # the next one connects anew


def test_the_library_that_takes_long_is_not_imported() -> None:
    import subprocess

    code = "import sys, datapath.store.etcd.client; assert not {'http.client', 'ssl', 'email'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
