# SPDX-License-Identifier: Apache-2.0
"""The file that says that a process is the only one of its kind for a state directory: it holds a lock on it.

A process that is killed leaves the file, which is then nobody's: the next one takes it, or `down` removes it. One that
becomes another program by execv(3) may go on holding the lock: `hand_on` before, `inherit` after.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from datapath.errors import InUseError, StateError

# The files' names in the state directory.
AGENT = "agent"
HEALTH = "health"  # of the agent as long as it checks the health of services' backends

_HANDED = "DATAPATH_LOCK"  # the first part of variables that tell a descriptor to the program that a process becomes


class Sole:
    """The lock on the file at `path`, held while this is open. `what`: who holds it, for the message."""

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what
        self._fd = -1

    def __enter__(self) -> Sole:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self) -> None:
        """Takes the lock unless it is held. If the file is another one by now, that one's. InUseError: another process
        holds it; StateError: the file cannot be opened."""
        while not self.held:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                fd = os.open(self._path, flags, 0o600)
            except OSError as error:
                raise StateError(f"cannot open {self._path}: {os.strerror(error.errno or 0)}") from error
            if not _locked(fd):
                os.close(fd)
                raise InUseError(f"{self._what} is at work already: it holds {self._path}")
            self._fd = fd

    @property
    def held(self) -> bool:
        """The lock is held, on the file that is at the path now."""
        return self._fd >= 0 and _same(self._fd, self._path)

    def hand_on(self) -> None:
        """Leaves the lock, held, to the program that this process is about to become, if the lock is held."""
        if self.held:
            os.set_inheritable(self._fd, True)
            os.environ[self._variable] = str(self._fd)
            self._fd = -1
        self.release()

    def inherit(self) -> None:
        """Holds the lock again that the program before has handed on, if there was one and it has."""
        text = os.environ.pop(self._variable, "")
        # Whatever else the environment may say: the lock's descriptor is one of its file.
        if text.isdecimal() and _same(int(text), self._path) and _locked(int(text)):
            self._fd = int(text)
            os.set_inheritable(self._fd, False)

    @property
    def _variable(self) -> str:
        return f"{_HANDED}_{self._path.name.upper()}"

    def release(self) -> None:
        """Removes the file, and the directory if nothing else is in it."""
        if self._fd < 0:
            return
        if self.held:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()
        os.close(self._fd)
        self._fd = -1


def discard(path: Path) -> None:
    """Removes the file if no process holds its lock."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if _locked(fd) and _same(fd, path):
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(fd: int, path: Path) -> bool:
    try:
        there, here = os.stat(path), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
