# SPDX-License-Identifier: Apache-2.0
"""The lock file of a state directory: an flock that processes get in the order in which they asked."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datapath.errors import StateError


@contextmanager
def locked(path: Path, timeout: float = 60.0, *, create: bool = True) -> Iterator[int]:
    """The lock, as the descriptor that holds it; the kernel unlocks it when its holders have ended.

    StateError after `timeout` seconds; OSError if the file cannot be opened. Without `create` it has to be there.
    """
    fd = _open(path, create)
    try:
        if not (_try(fd) or _wait(fd, timeout)):
            raise StateError(f"another command has held {path} for {timeout:g} s: try again later")
        try:
            yield fd
        finally:
            # Not by closing it: a child that was forked meanwhile may still have the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _open(path: Path, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags | (os.O_CREAT if create else 0), 0o600)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(fd: int, timeout: float) -> bool:
    """Wait for the lock in the kernel's queue: a process that polls may be overtaken for ever.

    flock knows no timeout, so a thread waits. It is left alone with the file when the time is up.
    """
    from threading import Thread

    granted = []

    def wait() -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        granted.append(True)

    waiter = Thread(target=wait, daemon=True)
    waiter.start()
    waiter.join(timeout)
    return bool(granted)
