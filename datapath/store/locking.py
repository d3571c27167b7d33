# SPDX-License-Identifier: Apache-2.0
"""The lock file of a state directory: an flock that processes get in the order in which they asked.

And the kernel's list of locks, which tells who holds one without asking for it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager

from datapath.errors import StateError

TYPE_CHECKING = False  # the command of a container's parent takes this lock, and imports nothing for types
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def locked(path: Path | str, timeout: float = 60.0, *, create: bool = True) -> Iterator[int]:
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


def _open(path: Path | str, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags | (os.O_CREAT if create else 0), 0o600)


def _try(fd: int) -> bool:
    try:
        _be_next(fd, fcntl.F_OFD_SETLK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            _be_next(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    return True


def _wait(fd: int, timeout: float) -> bool:
    """Waits in the kernel, which knows no timeout: a thread does, and is left alone with the file when it is too
    late."""
    from threading import Thread

    granted, own = [], os.dup(fd)

    def wait() -> None:
        try:
            _be_next(own, fcntl.F_OFD_SETLKW)
            fcntl.flock(own, fcntl.LOCK_EX)
            _be_next(own, fcntl.F_OFD_SETLK, fcntl.F_UNLCK)
            granted.append(True)
        finally:
            os.close(own)

    waiter = Thread(target=wait, daemon=True)
    waiter.start()
    waiter.join(timeout)
    return bool(granted)


def _be_next(fd: int, command: int, kind: int = fcntl.F_WRLCK) -> None:
    """flock() does not hand a lock over: a process that unlocks it only wakes those that wait, and has it again before
    they are there. So only one process at a time may ask for it, and the rest have a command's whole time to become
    that one: another lock, of the same open file description."""
    from struct import pack

    fcntl.fcntl(fd, command, pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))


def held(path: Path) -> bool:
    """A process has the flock on the file. Nobody has to wait because this was asked."""
    wanted = identity(path)
    try:
        lines = _lines("/proc/locks")
    except OSError:
        return False
    return bool(wanted) and any(line.split()[1] == "FLOCK" and wanted in line.split() for line in lines)


def identity(path: Path) -> str:
    """The file in the kernel's list of locks, MAJOR:MINOR:INODE; "": there is none."""
    try:
        # Closing an O_PATH descriptor leaves this process's own POSIX locks on the file alone.
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        major, minor = _file_system(fd)
        return f"{major:02x}:{minor:02x}:{os.fstat(fd).st_ino}"
    except OSError:
        return ""
    finally:
        os.close(fd)


def _file_system(fd: int) -> tuple[int, int]:
    """The device number of the file's file system. st_dev may be another: btrfs has one for each subvolume, overlayfs
    one for each layer."""
    told = _lines(f"/proc/self/fdinfo/{fd}")
    mount = next(line.split()[1] for line in told if line.startswith("mnt_id:"))
    for line in _lines("/proc/self/mountinfo"):
        number, _, device, *_ = line.split()
        if number == mount:
            major, _, minor = device.partition(":")
            return int(major), int(minor)
    status = os.fstat(fd)  # of a mount that this process does not see
    return os.major(status.st_dev), os.minor(status.st_dev)


def _lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()
