# SPDX-License-Identifier: Apache-2.0
"""What becomes of a container's log while it grows: when, and that it stays small.

The container's processes write the file themselves, so that no output is lost when its shim is killed. The shim only
looks when the kernel says that a file of the folder has changed (dnotify, as Python has no other way without an
extension), and at most every 20 ms. Part of the shim, so it is kept as light.

    log          the newest output
    log.times    for it: pairs of its size and of the time when it had that size, both 8 bytes, the time in ns
    log.1 …      older output, newest first, with log.1.times …
"""
# ruff: noqa: SIM105 - contextlib costs memory in every shim

from __future__ import annotations

import os
import time

PAUSE = 20  # ms after a look in which no other one is worth it
_SECOND = 1000  # ms between looks where the kernel does not say anything
_CHUNK = 65536


class LogFile:
    """The log at a path. `most`: bytes after which it is begun anew, 0: none; `files`: how many are kept then."""

    def __init__(self, path: str, most: int, files: int) -> None:
        self.path, self.most, self.files = path, most, files
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._times = self._open_times()
        self._size = os.fstat(self.fd).st_size
        self._folder = -1
        self._resting = False
        self.timeout: int | None = None  # ms until `look` is due anyway; None: when a signal comes

    def _open_times(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self.path + ".times", flags, 0o600)

    def watch(self) -> None:
        """Ask for SIGIO at the next change. Without it `look` is due each second."""
        import fcntl

        try:
            if self._folder < 0:
                self._folder = os.open(
                    os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                )
            fcntl.fcntl(self._folder, fcntl.F_NOTIFY, fcntl.DN_MODIFY)
            self.timeout = None
        except OSError:
            self.timeout = _SECOND
        self._resting = False

    def woken(self) -> None:
        """Something has changed, or the timeout is over."""
        grown = self.look()
        if self._resting and not grown:
            self.watch()
            if self.look():
                self._rest()
        elif self.timeout != _SECOND:
            self._rest()

    def _rest(self) -> None:
        self._resting = True
        self.timeout = PAUSE

    def look(self) -> bool:
        """Notes how large it is now, and begins it anew when it is too large. Whether it has changed."""
        size = os.fstat(self.fd).st_size
        if size == self._size:
            return False
        try:
            if size < self._size:  # somebody else has cut it, such as logrotate
                os.ftruncate(self._times, 0)
            self._size = size
            os.write(self._times, size.to_bytes(8, "little") + time.time_ns().to_bytes(8, "little"))
            if self.most and size > self.most:
                self._rotate(size)
        except OSError:
            pass  # the disk is full, or the folder gone: the output counts
        return True

    def _rotate(self, size: int) -> None:
        """Begins it anew. Its writers have it open, so it is copied and then cut; what they write between the two is
        lost."""
        for number in range(self.files - 1, 1, -1):
            for end in ("", ".times"):
                try:
                    os.replace(f"{self.path}.{number - 1}{end}", f"{self.path}.{number}{end}")
                except OSError:
                    pass
        if self.files > 1:
            self._copy(size - self.most if size > 2 * self.most else 0)
        os.ftruncate(self.fd, 0)
        os.close(self._times)
        if self.files > 1:
            os.replace(self.path + ".times", self.path + ".1.times")
        else:
            os.unlink(self.path + ".times")
        self._times = self._open_times()
        self._size = 0

    def _copy(self, position: int) -> None:
        """To log.1. What is before the position is left out: a burst may be of any length."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        old = os.open(self.path + ".1", flags, 0o600)
        new = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.lseek(old, position, os.SEEK_SET)  # a hole, so that the times stay right
            while part := os.pread(new, _CHUNK, position):
                os.write(old, part)
                position += len(part)
        finally:
            os.close(new)
            os.close(old)
