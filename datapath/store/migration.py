# SPDX-License-Identifier: Apache-2.0
"""A database of an earlier version: it is taken to this one by the first command that changes something, under the
lock, and a copy of how it was is kept beside it. Who only reads gets a copy in memory that was taken to this version.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from datapath.errors import StateError
from datapath.store import schema, steps
from datapath.store.database import COPY, connect, sync_folder, transaction
from datapath.store.reserve import available
from datapath.store.translation import damaged, no_space

_MARGIN = 64 * 1024  # bytes: what is not the pages themselves


def migrate(db: sqlite3.Connection, path: Path, version: int) -> Path:
    """Takes the database at `path`, which `db` is connected to and which has that version, to this program's; the lock
    has to be held. Where its copy is: it is whole before anything is changed. StateError: there is no room for it, or
    a row cannot be read; then nothing was changed."""
    taken = [step for step in steps.STEPS if step.version > version]
    size = _bytes(db)
    if available(path.parent) < 2 * size + _MARGIN:  # the copy, and the journal of what changes
        raise StateError(
            f"state database {path} has version {version}, and to take it to version {schema.VERSION} needs "
            f"{(2 * size + _MARGIN) >> 10} KiB: {no_space(path.parent)}"
        )
    copy = _keep(db, path, version)
    with _readable(path), transaction(db, path, "IMMEDIATE"):
        steps.apply(db, taken)
    return copy


def _bytes(db: sqlite3.Connection) -> int:
    """Of the database, as it is with its journal."""
    pages, size = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "page_size"))
    return pages * size


def _keep(db: sqlite3.Connection, path: Path, version: int) -> Path:
    """Copies the database, as of now. The copy is complete, and on the disk, before it gets its name."""
    copy = path.with_name(f"{COPY}{version}")
    new = copy.with_name(copy.name + ".new")
    for leftover in (new, new.with_name(new.name + "-journal")):
        leftover.unlink(missing_ok=True)
    try:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_WRONLY, 0o600))
        with closing(connect(new)) as target:
            db.backup(target)
        new.rename(copy)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return copy


def view(db: sqlite3.Connection, path: Path, version: int) -> sqlite3.Connection:
    """A copy in memory of the database at `path`, which `db` is connected to, of this program's version. StateError:
    a row cannot be read."""
    memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        db.backup(memory)
        with _readable(path):
            steps.apply(memory, [step for step in steps.STEPS if step.version > version])
    except BaseException:
        memory.close()
        raise
    return memory


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A row that cannot be read makes the file a damaged one."""
    try:
        yield
    except ValueError as error:
        raise damaged(path, str(error)) from None
