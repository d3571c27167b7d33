# SPDX-License-Identifier: Apache-2.0
"""Space that is kept for the commands that take something away, so that they work on a full disk.

SQLite writes a journal even to delete a row. So a file of some size lies beside the database: a command that frees
something deletes it if the disk is full, and makes it again, of what is there, when the database is closed.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

NAME = "reserve"
# Bytes. A command that ends one container takes 30 to 120 KiB; one with thousands of published ports takes more. Before
# that a database of an earlier version is taken to this one, which is twice its size: of 148 KiB with nothing in it.
_SIZE, _SMALL = 1 << 20, 448 << 10
_SMALL_DISK = 16 << 20
_PAGE = 4096


def size(folder: Path) -> int:
    """Bytes that are kept in that directory."""
    facts = os.statvfs(folder)
    return _SMALL if facts.f_blocks * facts.f_frsize < _SMALL_DISK else _SIZE


def available(folder: Path) -> int:
    """Bytes that files in the directory may still take."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def release(folder: Path) -> bool:
    """Give up what is kept in that directory, if there is no other space. Whether space is short: where nothing is
    kept, as another such command has given it up, it is until there is enough for both."""
    try:
        kept = (folder / NAME).exists()
        if available(folder) >= size(folder) * (1 if kept else 2):
            return False
        (folder / NAME).unlink(missing_ok=True)
    except OSError:  # it is read-only, or not there: whoever writes says so
        return False
    return True


def spent(folder: Path) -> bool:
    """Nothing is kept in that directory, and the space that there is, is less than what should be: another command has
    given it up for what it takes away, and nobody else may use it."""
    try:
        return available(folder) < size(folder) and not (folder / NAME).exists()
    except OSError:
        return False


def keep(folder: Path) -> None:
    """Keep space in that directory, under the lock, unless that is done or there is too little for it. Never an error:
    nothing depends on it yet."""
    path = folder / NAME
    with suppress(OSError):
        wanted = size(folder)
        enough = available(folder) >= 2 * wanted
        if enough and not (path.exists() and path.stat().st_size >= wanted):
            _make(path, wanted)


def restore(folder: Path) -> None:
    """Keep what there is in that directory, after `release`: unless a command is at work, which may need it. Whoever
    has the lock at that moment does this later, a mere reader, too: see `glance` and `runtime.farewell`."""
    with suppress(OSError):
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.path.samestat(
                os.fstat(lock), os.stat(folder / "lock")
            )  # or all was taken away meanwhile
            if there and not (folder / NAME).exists():
                _make(folder / NAME, min(size(folder), available(folder) // _PAGE * _PAGE))
        finally:
            os.close(lock)


def _make(path: Path, length: int) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_WRONLY, 0o600)
    try:
        os.posix_fallocate(fd, 0, length)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)
