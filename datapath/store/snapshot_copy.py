# SPDX-License-Identifier: Apache-2.0
"""How a reader gets by a writer that keeps everybody out of the state database.

No reader waits for a transaction. But the first who opens the file builds the journal's index, and the last who
closes it takes the journal into the file, with a wait for the disk: SQLite lets nobody in meanwhile, for ever if
that process is stopped. What file and journal say together does not change by it: a copy of both can be read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 0.2  # seconds that a reader waits for whoever may keep it out
_PAUSE = 0.005  # seconds
_JOURNAL, _INDEX = "-wal", "-shm"


def kept_out(path: Path) -> bool:
    """Somebody has had one and the same lock on the file or its index for the whole time of a reader's patience.

    Asked of the kernel's list: SQLite itself would wait for an index ten seconds, whatever it is told.
    """
    deadline = time.monotonic() + PATIENCE
    held = _locks(path)
    while held:
        if time.monotonic() >= deadline:
            return True
        time.sleep(_PAUSE)
        held &= _locks(path)
    return False


def _locks(path: Path) -> set[tuple[str, ...]]:
    """The write locks on the file and its index: holder, file, first and last byte of each."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return set()
    files = {_name(path), _name(_beside(path, _INDEX))}
    # NUMBER: POSIX ADVISORY WRITE PROCESS MAJOR:MINOR:INODE FIRST LAST; "->" before POSIX: it waits for one
    rows = [tuple(line.split()) for line in lines if " POSIX " in line and "->" not in line]
    return {row[4:] for row in rows if row[3] == "WRITE" and row[5] in files}


def _name(path: Path) -> str:
    """The file as the list of locks has it."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"


@contextmanager
def copied(path: Path) -> Iterator[Path | None]:
    """A copy of file and journal; None: they have changed meanwhile."""
    import subprocess
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="datapath-") as folder:
        before = _looks(path)
        # What goes from the journal to the file is in the copy twice. By another process: one that closes a file
        # gives up all its locks on it, those of SQLite too.
        found = [source for source in (_beside(path, _JOURNAL), path) if source.exists()]
        done = [subprocess.run(["cp", "--", source, folder], capture_output=True) for source in found]
        whole = all(process.returncode == 0 for process in done) and _looks(path) == before
        yield Path(folder, path.name) if whole else None


def _looks(path: Path) -> list[tuple[int, int, int]]:
    found = []
    for each in (path, _beside(path, _JOURNAL)):
        try:
            facts = each.stat()
            found.append((facts.st_ino, facts.st_size, facts.st_mtime_ns))
        except FileNotFoundError:
            found.append((0, 0, 0))
    return found


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
