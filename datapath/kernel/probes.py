# SPDX-License-Identifier: Apache-2.0
"""Asks servers in network namespaces whether they answer, many at once: nothing here waits.

Each question is a socket that was opened in the namespace. Who asks waits for all of them by one epoll, ends those that
take too long, and reads no more of an answer than its head.
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
from typing import NamedTuple, Protocol

from datapath.errors import KernelError
from datapath.kernel import netns
from datapath.model.parsing import Address

HEAD = 16384  # bytes that the head of an answer may have
_CHUNK = 4096


class Outcome(NamedTuple):
    """Whether a check has succeeded; if not, why."""

    passed: bool
    reason: str = ""


class Probe(Protocol):
    """A check that is under way. `waits`: the descriptors that it waits for, each with what for, as epoll has it."""

    waits: dict[int, int]

    def step(self, fd: int) -> Outcome | None:
        """After one of its descriptors is ready; None: it goes on."""

    def close(self) -> None:
        """Ends it, however far it has got."""


class TcpProbe:
    """Whether a connection to the address and port is accepted, in the network namespace at that path. KernelError:
    there is none."""

    def __init__(self, path: str, address: Address, port: int) -> None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with netns.enter(path):
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                raise KernelError("open", "a socket", error.errno or 0) from error
        self._address = address, port
        self._begun = False
        # A new socket can be written to: so its first step comes by the epoll, too.
        self.waits = {self._socket.fileno(): select.EPOLLOUT}

    def step(self, fd: int) -> Outcome | None:
        """None: it goes on."""
        if self._begun:
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            self._begun = True
            number = self._socket.connect_ex((str(self._address[0]), self._address[1]))
            if number == errno.EINPROGRESS:
                return None
        if number:
            return Outcome(False, f"connect to port {self._address[1]}: {os.strerror(number)}")
        return self.connected()

    def connected(self) -> Outcome | None:
        """After the connection was accepted."""
        return Outcome(True)

    def close(self) -> None:
        self._socket.close()


class HttpProbe(TcpProbe):
    """Whether a GET of the path is answered with a status below 400. Redirections are not followed."""

    def __init__(self, path: str, address: Address, port: int, wanted: str) -> None:
        super().__init__(path, address, port)
        host = f"[{address}]" if address.version == 6 else str(address)
        lines = (f"GET {wanted} HTTP/1.1", f"Host: {host}:{port}", "User-Agent: datapath-health")
        self._request = "\r\n".join((*lines, "Accept: */*", "Connection: close", "", "")).encode("ascii")
        self._asking = False
        self._answer = b""

    def connected(self) -> Outcome | None:
        self._asking = True
        self._send()
        return None

    def step(self, fd: int) -> Outcome | None:
        try:
            if not self._asking:
                return super().step(fd)
            if not self._request:
                return self._read()
            self._send()
            return None
        except BlockingIOError:
            return None
        except OSError as error:
            return Outcome(False, f"GET: {error.strerror}")

    def _send(self) -> None:
        sent = self._socket.send(self._request, socket.MSG_NOSIGNAL)
        self._request = self._request[sent:]
        if not self._request:
            self.waits = {self._socket.fileno(): select.EPOLLIN}

    def _read(self) -> Outcome | None:
        part = self._socket.recv(_CHUNK)
        self._answer += part
        if part and b"\r\n\r\n" not in self._answer and b"\n\n" not in self._answer:
            if len(self._answer) <= HEAD:
                return None
            return Outcome(False, f"GET: the head of the answer has more than {HEAD} bytes")
        return _judged(self._answer)


class _Read:
    """What http.client takes for a socket: an answer that is there already."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, mode: str) -> io.BytesIO:
        """The answer, to be read."""
        return io.BytesIO(self._answer)


def _judged(answer: bytes) -> Outcome:
    import http.client

    if not answer:
        return Outcome(False, "GET: the connection was closed without an answer")
    response = http.client.HTTPResponse(_Read(answer))  # type: ignore[arg-type]
    try:
        response.begin()
    except (http.client.HTTPException, ValueError) as error:
        return Outcome(False, f"GET: the answer is no HTTP: {type(error).__name__}")
    finally:
        response.close()
    return Outcome(response.status < 400, f"GET: {response.status} {response.reason}"[:100])
