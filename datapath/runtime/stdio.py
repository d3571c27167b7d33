# SPDX-License-Identifier: Apache-2.0
"""Copies bytes between a container's standard fds or terminal, its log and its user's fds.

Part of the shim, so it is kept as light.
"""
# ruff: noqa: SIM105 - contextlib costs memory in every shim

from __future__ import annotations

import errno
import os
import select

_CHUNK = 65536
_END_OF_FILE = b"\x04"  # what a terminal sends for it


def copy_window_size(source: int, target: int) -> None:
    import fcntl
    import termios

    try:
        fcntl.ioctl(target, termios.TIOCSWINSZ, fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        pass  # not a terminal


class StdioRelay:
    """Copies bytes from fds to fds. Readers inside the container cannot block it; those outside may."""

    def __init__(self) -> None:
        self.sources: dict[int, list[int]] = {}
        self.terminal = -1  # of a pseudo terminal the outer side,
        self.inner = -1  # and the inner one, kept open: it may have no user for a while
        self._pending: dict[int, bytes] = {}  # for fds towards the container
        self._inward: set[int] = set()

    def add(self, source: int, *sinks: int) -> None:
        self.sources[source] = list(sinks)

    def inward(self, fd: int) -> int:
        """Declares a sink that leads into the container: written without blocking, closed with its source."""
        os.set_blocking(fd, False)
        self._inward.add(fd)
        return fd

    def forget(self, *fds: int) -> None:
        for fd in fds:
            if fd in self.sources:
                self._end(fd)
        for sinks in self.sources.values():
            sinks[:] = [sink for sink in sinks if sink not in fds]

    def step(self, watched: list[int], timeout: int | None = None) -> set[int]:
        """Waits until something can be copied and copies it, at most so many ms. Returns the watched fds that can be
        read, or hung up."""
        poll = select.poll()
        for fd in watched:
            poll.register(fd, select.POLLIN)
        for source, sinks in self.sources.items():
            if not any(sink in self._pending for sink in sinks):
                poll.register(source, select.POLLIN)
        for fd in self._pending:
            poll.register(fd, select.POLLOUT | (select.POLLIN if fd in self.sources else 0))
        ready = dict(poll.poll(timeout))
        for fd, events in ready.items():
            if fd in self._pending and events & (select.POLLOUT | select.POLLERR):
                self._write(fd, self._pending.pop(fd))
            if fd in self.sources and events & ~select.POLLOUT:
                self._copy(fd)
        return ready.keys() & set(watched)

    def drain(self) -> None:
        """Copies what the container has written and nobody has read yet."""
        for source in [source for source in self.sources if source != 0]:
            os.set_blocking(source, False)
            while self._copy(source):
                pass

    def _copy(self, source: int) -> bool:
        try:
            data = os.read(source, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last process has closed its side of a terminal
            data = b""
        if not data:
            if self.terminal in self.sources[source]:
                self._write(self.terminal, _END_OF_FILE)
            self._end(source)
            return False
        for sink in list(self.sources[source]):
            if not self._write(sink, data):
                self.sources[source].remove(sink)
        return True

    def _write(self, sink: int, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(sink, data) :]
        except BlockingIOError:
            if sink in self._inward:
                self._pending[sink] = data
                return True
            return False
        except OSError as error:
            return (
                error.errno == errno.ENOSPC
            )  # a full disk may become free again; a closed pipe stays closed
        return True

    def _end(self, source: int) -> None:
        for sink in self.sources.pop(source):
            if sink in self._inward and sink != self.terminal:
                self._pending.pop(sink, None)
                os.close(sink)
