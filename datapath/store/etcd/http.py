# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 as etcd's gateway speaks it: one request after the other on a connection, answers of known length or in
chunks. `http.client` does more, and importing it (an e-mail parser, TLS) takes longer than asking the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Connects to a host's port within so many seconds: a socket, with that time-out. OSError.
Dial = Callable[[str, int, float], Any]

_LARGEST = 1 << 26  # bytes of an answer
_LINE = 1 << 16  # bytes of a line of an answer's head
_IPPROTO_TCP, _TCP_NODELAY = 6, 1  # linux/in.h, tcp.h


class HTTPError(Exception):
    """What came is no answer, or not all of one."""


class NoHTTPError(HTTPError):
    """What answers speaks something else."""


class DisconnectedError(NoHTTPError, ConnectionResetError):
    """The other side has closed the connection instead of answering."""


def dial_by_library(host: str, port: int, timeout: float) -> Any:
    """A `Dial`, for who has none at hand."""
    import http.client

    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    connection.connect()
    return connection.sock


class Connection:
    """To one server, over TLS with a `context` (ssl.SSLContext). Errors are OSError, HTTPError."""

    def __init__(self, host: str, port: int, timeout: float, dial: Dial, context: Any = None) -> None:
        self.host, self._port, self._timeout = host, port, timeout
        self._dial, self._context = dial, context
        self.sock: Any = None
        self._file: Any = None

    def connect(self) -> None:
        """Before anything is asked; once."""
        sock = self._dial(self.host, self._port, self._timeout)
        try:
            sock.setsockopt(_IPPROTO_TCP, _TCP_NODELAY, 1)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise
        self.sock = sock

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self.sock is not None:
            self.sock.close()
        self.sock = self._file = None

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer. Connects, if the server has closed the connection after the last one."""
        if self.sock is None:
            self.connect()
        named = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"POST {path} HTTP/1.1", f"Host: {named}:{self._port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        if self._file is None:
            self._file = self.sock.makefile("rb")
        status = self._status()
        found = self._head()
        if found.get("transfer-encoding", "").lower() == "chunked":
            said = self._chunks()
        elif "content-length" in found:
            said = self._exactly(_number(found["content-length"], 10))
        else:
            said = self._file.read(_LARGEST)
            found["connection"] = "close"
        if found.get("connection", "").lower() == "close":
            self.close()
        return status, said

    def _status(self) -> int:
        line = self._file.readline(_LINE)
        if not line:
            raise DisconnectedError("the connection has ended")
        protocol, _, rest = line.partition(b" ")
        if not protocol.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise NoHTTPError(repr(line[:80]))
        return int(rest[:3])

    def _head(self) -> dict[str, str]:
        """Its fields; of one that is there twice the last."""
        found = {}
        while (line := self._line()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            found[name.strip().lower()] = value.strip()
        return found

    def _line(self) -> bytes:
        line: bytes = self._file.readline(_LINE)
        if not line.endswith(b"\n"):
            raise HTTPError("the answer ends too early, or has too long a line")
        return line.rstrip(b"\r\n")

    def _exactly(self, length: int) -> bytes:
        if not 0 <= length <= _LARGEST:
            raise HTTPError(f"an answer of {length} bytes")
        said: bytes = self._file.read(length)
        if len(said) != length:
            raise HTTPError("the answer ends too early")
        return said

    def _chunks(self) -> bytes:
        """Each behind its length, the last of which is 0; then perhaps more fields."""
        parts = []
        size = 0
        while length := _number(self._line().partition(b";")[0].decode("latin-1"), 16):
            size += length
            if size > _LARGEST:
                raise HTTPError("the answer is too large")
            parts.append(self._exactly(length))
            self._line()
        self._head()
        return b"".join(parts)


def _number(text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise HTTPError(f"{text[:40]!r} is no length") from None
