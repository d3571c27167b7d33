# SPDX-License-Identifier: Apache-2.0
"""An answer of etcd's gateway that goes on: a line for each message, read as they come.

One request makes one answer. Several messages in one body are no way to ask for more: once the gateway begins to
answer, Go's HTTP server may drop what it has not read of the body, and says nothing
(https://pkg.go.dev/net/http#ResponseWriter). By HTTP/1.0 the answer is plain lines until the connection ends; by 1.1 it
would be in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datapath.store.etcd.http import Connection, DisconnectedError, HTTPError, NoHTTPError

_BUFFER = 1 << 16
_LONGEST = 1 << 26  # bytes of a message: etcd's own limit of a request is 1.5 MB
# linux/tcp.h, asm-generic/socket.h. A server that is gone without a word is noticed after 25 seconds.
_SOL_SOCKET, _SO_KEEPALIVE, _IPPROTO_TCP = 1, 9, 6
_KEEPALIVE = ((4, 10), (5, 5), (6, 3))  # TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT


class Stream:
    """One on a connection that is connected, and this one's from now on. OSError, HTTPError.
    `refused`: what the server has answered instead, if it was not 200."""

    def __init__(self, connection: Connection, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._sock: Any = connection.sock
        self._tls = hasattr(self._sock, "pending")
        self._nothing: tuple[type[OSError], ...] = (BlockingIOError,)  # is there yet
        if self._tls:
            import ssl  # 5 MB, of a process that stays

            self._nothing = (BlockingIOError, ssl.SSLWantReadError)
        self._waiting = b""
        self.refused = b""
        self._sock.setsockopt(_SOL_SOCKET, _SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            self._sock.setsockopt(_IPPROTO_TCP, option, value)
        lines = [f"POST {path} HTTP/1.0", f"Host: {connection.host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        self._begin()

    def fileno(self) -> int:
        """What is to be polled for reading."""
        return int(self._sock.fileno())

    def close(self) -> None:
        self._connection.close()

    def lines(self) -> list[bytes]:
        """Those that are there now, without waiting. EOFError: there are no more, and there will be none."""
        try:
            ended = not self._receive()
        except self._nothing:
            ended = False
        *found, self._waiting = self._waiting.split(b"\n")
        if ended and not found:
            raise EOFError
        if len(self._waiting) > _LONGEST:
            raise HTTPError("a message has no end")
        return found

    def _receive(self) -> bool:
        """All that is there; TLS may have more than the socket shows. False: the answer has ended."""
        while got := self._sock.recv(_BUFFER):
            self._waiting += got
            if len(got) < _BUFFER and not self._tls:
                return True
        return False

    def _begin(self) -> None:
        """Reads the head of the answer, within the connection's time-out."""
        while b"\r\n\r\n" not in self._waiting:
            got = self._sock.recv(_BUFFER)
            if not got:
                raise DisconnectedError("the connection has ended")
            self._waiting += got
        head, _, self._waiting = self._waiting.partition(b"\r\n\r\n")
        protocol, _, rest = head.partition(b" ")
        if not protocol.startswith(b"HTTP/"):
            raise NoHTTPError(head[:80].decode("latin-1"))
        if rest.split()[:1] != [b"200"]:
            while got := self._sock.recv(_BUFFER):
                self._waiting += got
            self.refused = self._waiting
        self._sock.setblocking(False)
