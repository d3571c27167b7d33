# SPDX-License-Identifier: Apache-2.0
"""A copy of the state database for readers that a writer keeps out of it.

No reader waits for a transaction. But the first process that opens the file builds the journal's index, and the last
one that closes it takes the journal into the file and waits for the disk. SQLite lets no other process in until that
is done, which is never if the process is stopped. File and journal together have the same content before and after, so
a copy of both can be read.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from datapath.store.locking import identity
from datapath.store.reserve import available

PATIENCE = 0.2  # seconds that a reader waits for a writer that keeps it out
_PAUSE = 0.005  # seconds
_LEAST = 8 << 20  # bytes: file and journal, and the index that is made for the copy
_JOURNAL, _INDEX = "-wal", "-shm"


def kept_out(path: Path) -> bool:
    """A process has held the same lock on the file or its index for PATIENCE, so a reader would have to wait on.

    The kernel's list of locks tells: SQLite itself waits ten seconds for an index, and has no setting for it.
    """
    deadline = time.monotonic() + PATIENCE
    held = _locks(path)
    while held:
        if time.monotonic() >= deadline:
            return True
        time.sleep(_PAUSE)
        held &= _locks(path)
    return False


def has_journal(path: Path) -> bool:
    """The journal has something that may not be in the file."""
    return _version(_beside(path, _JOURNAL))[1] > 0


def _locks(path: Path) -> set[tuple[str, ...]]:
    """The write locks on the file and its index, each as its holder, its file, and its first and last byte."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return set()
    files = (path, _beside(path, _INDEX))
    inodes = {str(_version(file)[0]) for file in files}
    # NUMBER: POSIX ADVISORY WRITE PROCESS MAJOR:MINOR:INODE FIRST LAST; "->" before POSIX: a process that waits
    rows = [tuple(line.split()) for line in lines if " POSIX " in line and "->" not in line]
    rows = [row for row in rows if row[3] == "WRITE" and row[5].rpartition(":")[2] in inodes]
    if not rows:
        return set()  # without asking which file systems they are on
    names = {identity(file) for file in files}
    return {row[4:] for row in rows if row[5] in names}


@contextmanager
def copied(path: Path) -> Iterator[Path | None]:
    """The path of a copy of file and journal, removed after the block; None: they changed while they were copied."""
    import subprocess

    with _somewhere() as folder:
        before = _versions(path)
        # The journal first: what moves from it to the file meanwhile is then in the copy twice, and not missing. `cp`
        # reads them, because a process that closes a file gives up all its locks on it, those of SQLite too.
        found = [source for source in (_beside(path, _JOURNAL), path) if source.exists()]
        done = [subprocess.run(["cp", "--", source, folder], capture_output=True) for source in found]
        whole = all(process.returncode == 0 for process in done) and _versions(path) == before
        yield Path(folder, path.name) if whole else None


@contextmanager
def _somewhere() -> Iterator[str]:
    """A directory to copy to. Where the system has its temporary files may be what is full or read-only: memory is
    not, and OSError if that cannot be had either."""
    from tempfile import TemporaryDirectory

    with ExitStack() as stack:
        for place in (None, "/dev/shm", "/run"):
            try:
                folder = stack.enter_context(TemporaryDirectory(prefix="datapath-", dir=place))
            except OSError as error:
                failure = error
            else:
                if available(Path(folder)) >= _LEAST:
                    break
                failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)
        else:
            raise failure
        yield folder


def _versions(path: Path) -> list[tuple[int, int, int]]:
    """The versions of file and journal."""
    return [_version(path), _version(_beside(path, _JOURNAL))]


def _version(path: Path) -> tuple[int, int, int]:
    """Inode, size and time of change of the file; zeros: there is none."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
