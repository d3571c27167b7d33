# SPDX-License-Identifier: Apache-2.0
"""Answers HTTP/1.1 requests on a Unix socket: the one that a service manager passes, or one of its own.

One thread waits for all connections, so that idle ones, and requests that never become whole, cost a little memory
and nothing else. A request that is whole is answered by a thread of a few. Its client may wait for this process to
start: http.client and concurrent.futures, which would do parts of it, bring TLS, email and logging with them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import resource
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from datapath.errors import ConfigError, InUseError, KernelError
from datapath.kernel import http_fields, process

# Bounds of what one connection may ask for: bytes of a request line with its headers, and of a body; seconds from the
# first byte of a request to the last, and for its answer to be taken.
HEAD, BODY = 64 << 10, 32 << 20
PATIENCE = 20.0
CONNECTIONS = 8192
_BACKLOG = 1024
_FIRST_FD = 3  # sd_listen_fds(3)
_HANDLERS = 8  # threads
_CHUNK = 256 << 10
_HEADERS = 100


class Request(NamedTuple):
    """`path` with the query; `body` as it came; `asker`: who has connected, see `process.peer`."""

    method: str
    path: str
    body: bytes
    asker: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` beside Content-Length."""

    status: HTTPStatus = HTTPStatus.OK
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Answer]


class Refused(Exception):
    """A request that cannot be read; the connection ends with the answer."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


def inherited(environment: Mapping[str, str]) -> socket.socket | None:
    """The socket that a service manager listens on for us, as sd_listen_fds(3) says; None: there is none.
    ConfigError: it is not a listening stream socket."""
    if environment.get("LISTEN_PID") != str(os.getpid()) or environment.get("LISTEN_FDS") in (None, "0"):
        return None
    os.set_inheritable(_FIRST_FD, False)
    try:
        opened = socket.socket(fileno=_FIRST_FD)
        if opened.family == socket.AF_UNIX and opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return opened
        opened.detach()
    except OSError:
        pass
    raise ConfigError("the socket that was passed does not listen on a Unix path")


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket at the path that root alone may connect to. What a killed server left there is replaced. InUseError:
    somebody serves it; ConfigError: something else is there; KernelError."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear(path)
            before = os.umask(0o177)
            try:
                opened.bind(str(path))
            finally:
                os.umask(before)
            made = path.stat().st_ino
            opened.listen(_BACKLOG)
        except OSError as error:
            # One that does not fit has no errno.
            raise KernelError("listen", str(path), error.errno or errno.ENAMETOOLONG) from error
        try:
            yield opened
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == made:
                    path.unlink()


def _clear(path: Path) -> None:
    """OSError."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path} is there and no socket: remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        try:
            asking.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise InUseError(f"another process serves {path}")


class _Connection:
    """One client's. `since`: when the first byte of an unfinished request came; None: there is none."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.asker = process.peer(opened)
        self.pending = bytearray()
        self.since: float | None = None
        self.promised = False  # 100 Continue was said to this request

    def fileno(self) -> int:
        return self.socket.fileno()


class Server:
    """`handle` is called by several threads at once, once for each request; what it raises becomes a 500. Without
    `keep` a connection takes one request: a client that dials for each never writes to a server that ends meanwhile,
    as who dials waits for the next."""

    def __init__(self, opened: socket.socket, handle: Handler, keep: bool = True) -> None:
        self._opened, self._handle, self._keep = opened, handle, keep
        self._selector = selectors.DefaultSelector()
        self._free: queue.SimpleQueue[_Connection | None] = queue.SimpleQueue()
        self._connections: dict[_Connection, None] = {}  # that wait, the one that has waited longest first
        self._work: queue.SimpleQueue[tuple[_Connection, Request, bool] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._wake_up, self._wake = socket.socketpair()

    def run(self, stop: int, idle: float | None = None) -> None:
        """Until the descriptor `stop` can be read, or nobody has dialled or asked for `idle` seconds (None: not
        for that); every request that has come whole is answered first."""
        _raise_limit()
        self._opened.setblocking(False)
        self._wake_up.setblocking(False)
        for one in (self._opened, self._wake_up, stop):
            self._selector.register(one, selectors.EVENT_READ)
        try:
            self._loop(stop, idle)
        finally:
            for _ in self._threads:
                self._work.put(None)
            for thread in self._threads:
                thread.join()
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.close()
        self._wake_up.close()
        self._wake.close()

    def _loop(self, stop: int, idle: float | None) -> None:
        last = time.monotonic()
        ending = False
        while True:
            now = time.monotonic()
            ending = ending or (idle is not None and not self._busy and now - last >= idle)
            pause = self._pause(now, last, idle) if not ending else None if self._busy else 0.0
            ready = [key.fileobj for key, _ in self._selector.select(pause)]
            if ending and not self._busy and not any(isinstance(one, _Connection) for one in ready):
                return
            for one in ready:
                if one == stop:
                    ending = True
                    self._selector.unregister(stop)
                elif one is self._opened:
                    # Who connects from now on is for the next process, if there is one.
                    if not ending:
                        self._accept()
                        last = time.monotonic()
                elif one is self._wake_up:
                    self._wake_up.recv(4096)
                elif isinstance(one, _Connection):
                    self._read(one)
            if self._collect():
                last = time.monotonic()
            self._expire()

    def _pause(self, now: float, last: float, idle: float | None) -> float | None:
        due = [last + idle] if idle is not None and not self._busy else []
        due += [c.since + PATIENCE for c in self._connections if c.since is not None]
        return max(0.0, min(due) - now) if due else None

    # ---- connections ---------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                opened, _ = self._opened.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    raise KernelError("accept", "a connection", error.errno or 0) from error
                if error.errno == errno.ECONNABORTED:
                    continue
                if not self._make_room():
                    return
                continue
            if len(self._connections) + self._busy >= CONNECTIONS:
                self._make_room()
            opened.setblocking(False)
            self._wait(_Connection(opened))

    def _make_room(self) -> bool:
        """Ends the connection that has been idle for longest: its client dials again when it has something to ask."""
        for connection in self._connections:
            if connection.since is None:
                self._drop(connection)
                return True
        return False

    def _wait(self, connection: _Connection) -> None:
        self._connections[connection] = None
        self._selector.register(connection, selectors.EVENT_READ)

    def _release(self, connection: _Connection) -> None:
        self._selector.unregister(connection)
        del self._connections[connection]

    def _drop(self, connection: _Connection) -> None:
        self._release(connection)
        connection.socket.close()

    # ---- requests ------------------------------------------------------------------------------

    def _read(self, connection: _Connection) -> None:
        try:
            found = connection.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            found = b""
        if not found:
            if connection.pending:
                self._refuse(connection, Refused(HTTPStatus.BAD_REQUEST, "the request is not complete"))
            else:
                self._drop(connection)
            return
        connection.pending += found
        connection.since = connection.since or time.monotonic()
        self._take(connection)

    def _take(self, connection: _Connection) -> None:
        """Hands the connection's next request, if it is whole, to a thread."""
        try:
            found = take(connection.pending)
        except Refused as error:
            self._refuse(connection, error)
            return
        if isinstance(found, bool):
            if found and not connection.promised:
                connection.promised = True
                with contextlib.suppress(OSError):
                    connection.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        request, keep = found
        connection.promised, connection.since = False, None
        self._release(connection)
        self._busy += 1
        self._work.put((connection, request._replace(asker=connection.asker), keep and self._keep))
        if len(self._threads) < min(self._busy, _HANDLERS):
            self._threads.append(threading.Thread(target=self._answer_all, name="request", daemon=True))
            self._threads[-1].start()

    def _answer_all(self) -> None:
        """In a thread of its own."""
        while (work := self._work.get()) is not None:
            self._answer(*work)

    def _answer(self, connection: _Connection, request: Request, keep: bool) -> None:
        kept = None
        try:
            answer = self._handle(request)
        except Exception as error:  # a request never ends the server
            answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}".encode())
        try:
            connection.socket.settimeout(PATIENCE)
            connection.socket.sendall(written(answer, keep))
            connection.socket.setblocking(False)
            kept = connection if keep else None
        except OSError:
            pass  # its client is gone
        finally:
            if kept is None:
                connection.socket.close()
            self._free.put(kept)
            self._wake.send(b"\0")

    def _collect(self) -> bool:
        """Connections whose request has been answered wait for the next, if that has not come yet. False: there are
        none."""
        found = False
        while not self._free.empty():
            connection = self._free.get()
            self._busy -= 1
            found = True
            if connection is not None:
                self._wait(connection)
                if connection.pending:
                    connection.since = time.monotonic()
                    self._take(connection)
        return found

    def _refuse(self, connection: _Connection, error: Refused) -> None:
        with contextlib.suppress(OSError):
            connection.socket.send(written(Answer(error.status, str(error).encode()), keep=False))
        self._drop(connection)

    def _expire(self) -> None:
        oldest = time.monotonic() - PATIENCE
        for connection in [c for c in self._connections if c.since is not None and c.since <= oldest]:
            self._refuse(connection, Refused(HTTPStatus.REQUEST_TIMEOUT, "the request is not complete"))


def take(pending: bytearray) -> tuple[Request, bool] | bool:
    """The first request of what has come, which is taken off, and whether the connection stays; if it is not whole,
    whether its client waits to be told to go on. Refused."""
    end = pending.find(b"\r\n\r\n", 0, HEAD)
    if end < 0:
        if len(pending) >= HEAD:
            raise Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers have more than {HEAD} bytes"
            )
        return False
    line, _, rest = bytes(pending[: end + 4]).partition(b"\r\n")
    words = line.decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refused(HTTPStatus.BAD_REQUEST, "the request line is none of HTTP/1.1")
    if rest.count(b"\r\n") > _HEADERS + 1:
        raise Refused(HTTPStatus.BAD_REQUEST, f"there are more than {_HEADERS} headers")
    try:
        headers = http_fields.parse(rest)
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the headers cannot be read: {error}") from None
    if "transfer-encoding" in headers:
        raise Refused(HTTPStatus.LENGTH_REQUIRED, "the body has to come with its Content-Length")
    lengths = set(headers.get("content-length", ["0"]))
    length = lengths.pop()
    if lengths or not (length.isascii() and length.isdigit()):
        raise Refused(HTTPStatus.BAD_REQUEST, "the Content-Length is no number")
    if len(length) > 12 or int(length) > BODY:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {BODY} bytes")
    whole = end + 4 + int(length)
    if len(pending) < whole:
        return headers.get("expect", [""])[0].lower() == "100-continue"
    request = Request(words[0], words[1], bytes(pending[end + 4 : whole]))
    del pending[:whole]
    keep = words[2] != "HTTP/1.0" and "close" not in ",".join(headers.get("connection", ())).lower()
    return request, keep


def written(answer: Answer, keep: bool) -> bytes:
    """The answer as it is sent."""
    headers = {"Content-Type": "text/plain", **answer.headers, "Content-Length": str(len(answer.body))}
    if not keep:
        headers["Connection"] = "close"
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + answer.body


def _raise_limit() -> None:
    """As many descriptors as connections may need, as far as this process may have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 64
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
