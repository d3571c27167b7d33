# SPDX-License-Identifier: Apache-2.0
"""SQLite's and the system's errors as those of datapath, each with what to do about it."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datapath.errors import DatapathError, ExistsError, PrivilegeError, StateError
from datapath.store.reserve import available


def damaged(path: Path, detail: str) -> StateError:
    """The file cannot be trusted. It is never replaced: that is for its owner to decide."""
    return StateError(
        f"state database {path} is damaged ({detail}): put back a copy of it, or, to begin afresh, "
        f"end the containers and move {path.parent} away"
    )


def obstacle(folder: Path) -> str:
    """Why nothing can be written in that directory, whoever asks; "": no such reason is known."""
    try:
        if read_only(folder):
            return f"the file system at {_mount_point(folder)} is read-only"
        if available(folder) < _LEAST:
            return no_space(folder)
    except OSError:
        pass
    return ""


def no_space(folder: Path) -> str:
    """That the directory's file system is full."""
    return f"no space left on the file system at {_mount_point(folder)}"


def read_only(folder: Path) -> bool:
    """The directory is on a file system that is mounted so that nobody can write."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _mount_point(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_mount())


def taken_away(path: Path) -> StateError:
    """The file has been destroyed since this process looked for it."""
    return StateError(f"state database {path} has been taken away meanwhile: try again")


_LEAST = 64 * 1024  # bytes: with less the journal's index, or the next page, has no room


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of the block, which works on the database at that path, are raised as errors of datapath."""
    try:
        yield
    except DatapathError:
        raise
    except sqlite3.IntegrityError as error:
        if "FOREIGN KEY" in str(error):
            raise StateError(f"state database {path}: an object that is in use would go") from error
        what = str(error).removeprefix("UNIQUE constraint failed: ")
        raise ExistsError(f"already taken: {what}") from error
    except sqlite3.Error as error:
        raise _translation(path, error) from error
    except PermissionError as error:
        raise PrivilegeError(_not_root() or f"{error.filename or path}: permission denied") from error
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(path.parent)):
            raise
        if error.errno in (errno.EROFS, errno.ENOSPC) and obstacle(path.parent):
            raise StateError(f"{error.filename} cannot be written: {obstacle(path.parent)}") from error
        raise StateError(f"{error.filename}: {error.strerror}") from error


def is_busy(error: sqlite3.Error) -> bool:
    """Other connections kept this one waiting for too long. PROTOCOL: they are still building the journal's index."""
    return _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"))


def is_unwritable(error: sqlite3.Error) -> bool:
    """It may be for want of space, or of the permission to write: to read, other ways may be left."""
    return _name(error).startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR"))


def _translation(path: Path, error: sqlite3.Error) -> DatapathError:
    name = _name(error)
    if is_busy(error):
        return StateError(f"state database {path} is locked by another command: try again")
    if is_unwritable(error) and (why := obstacle(path.parent)):
        return StateError(f"state database {path} cannot be written: {why}")
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return PrivilegeError(_not_root() or f"state database {path} cannot be written: permission denied")
    if name.startswith("SQLITE_CANTOPEN") and not os.access(path, os.R_OK | os.W_OK):
        return PrivilegeError(_not_root() or f"state database {path} cannot be opened: permission denied")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_NOMEM")):
        return StateError(f"state database {path}: {error}")
    return damaged(path, str(error))


def _not_root() -> str:
    """What to say of a permission that is missing, if it is for that."""
    return "" if os.geteuid() == 0 else "needs root: run it with sudo"


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "") or ""
