# SPDX-License-Identifier: Apache-2.0
"""News of a file: that somebody has written to it, from inotify."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from datapath.kernel.facts import translated

_MODIFY, _OVERFLOW, _ONLYDIR = 0x00000002, 0x00004000, 0x01000000  # IN_* of linux/inotify.h
_EVENT = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, length of the name behind it
_BUFFER = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


class Written:
    """Says when files of these names in a folder are written to: the folder is watched, since a file may be replaced.
    A context manager."""

    def __init__(self, *names: str) -> None:
        self._names = frozenset(os.fsencode(name) for name in names)
        self._folder: tuple[int, int] | None = None  # device and inode
        with translated("make", "an inotify instance"):
            self._fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """What is to be polled for reading."""
        return self._fd

    def follow(self, folder: Path) -> bool:
        """Watches the folder that is at this path now; True: it is another one than before, or the first. Where there
        is none, nothing is watched. KernelError."""
        try:
            found = os.stat(folder)
        except OSError:
            self._folder = None
            return False
        if (found.st_dev, found.st_ino) == self._folder:
            return False
        with translated("watch", str(folder)):
            mask = ctypes.c_uint32(_MODIFY | _ONLYDIR)
            _check(_libc.inotify_add_watch(self._fd, os.fsencode(folder), mask))
        self._folder = (found.st_dev, found.st_ino)
        return True

    def drain(self) -> bool:
        """Takes all news that wait away; whether one of them is about one of the files. Some may have been lost, which
        counts as one."""
        found = False
        while True:
            try:
                events = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return found
            at = 0
            while at < len(events):
                _, mask, _, length = _EVENT.unpack_from(events, at)
                at += _EVENT.size
                name = events[at : at + length].rstrip(b"\0")
                at += length
                found = found or name in self._names or bool(mask & _OVERFLOW)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
