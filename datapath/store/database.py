# SPDX-License-Identifier: Apache-2.0
"""The SQLite file of a state directory: made, opened, checked. A damaged file is reported, never replaced."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datapath.errors import NewerStateError, StateError
from datapath.model.digests import sha256
from datapath.model.kinds import KINDS, kind_of
from datapath.model.state import Fresh, State, plan_predefined
from datapath.store import reserve, schema, sole, steps
from datapath.store.locking import locked
from datapath.store.translation import damaged, translated

BUSY_SECONDS = 10.0  # that a statement waits for another connection's transaction
FILES = (
    "datapath.db",
    "datapath.db-wal",
    "datapath.db-shm",
)  # the database, its journal, the journal's index
COPY = "datapath.db.v"  # and a number: how the database was before it was taken from that version to the next


def prepare(path: Path, lock_path: Path) -> None:
    """Make the database unless it is there, in a directory that only its owner can enter."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(lock_path):
        if path.exists():
            return
        if path.with_name("datapath.db-wal").exists():
            raise damaged(path, "it is gone, but its journal is there")
        _create(path)


def _create(path: Path) -> None:
    """Make the database with the predefined networks. It is complete before it gets its name."""
    new = path.with_name(path.name + ".new")
    for leftover in (new, new.with_name(new.name + "-wal"), new.with_name(new.name + "-shm")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_WRONLY, 0o600))
    fresh = Fresh(_now(), lambda: os.urandom(32).hex(), lambda: 0)
    with closing(connect(new)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {schema.script(KINDS)} COMMIT;")
        db.execute("BEGIN")
        meta = [("installation", os.urandom(16).hex()), ("endpoint", 0), ("release", steps.STEPS[-1].release)]
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        for network in plan_predefined(fresh):
            db.execute(*schema.upsert(kind_of(type(network)), network))
        db.execute("COMMIT")
    new.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in the directory are on the disk."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def initial(path: Path) -> State:
    """The rows that a database begins with. Its networks have ids that are theirs until it is made."""
    if path.with_name("datapath.db-wal").exists():
        raise damaged(path, "it is gone, but its journal is there")
    numbers = itertools.count()
    fresh = Fresh(_now(), lambda: sha256(f"{path} {next(numbers)}".encode()).hex(), lambda: 0)
    return State().including(*plan_predefined(fresh))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def connect(path: Path, busy: float = BUSY_SECONDS, mode: str = "mode=rw") -> sqlite3.Connection:
    """An open connection. The file has to be there. `busy`: seconds that a statement waits for others."""
    uri = f"{path.absolute().as_uri()}?{mode}"
    db = sqlite3.connect(uri, uri=True, timeout=busy, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(
            "PRAGMA cache_size = -512"
        )  # KiB: tables are read as a whole, and the agent has it open several times
    except BaseException:
        db.close()
        raise
    return db


def check(db: sqlite3.Connection, path: Path) -> int:
    """The version of the file at that path, which `db` is connected to: this program's, or an earlier one. StateError:
    it is no whole database; NewerStateError: a later version's."""
    if path.stat().st_size == 0:
        raise damaged(path, "it is empty")
    application = db.execute("PRAGMA application_id").fetchone()[0]
    if application != schema.APPLICATION_ID:
        raise StateError(f"{path} is not a state database of datapath: move it away")
    found = version(db, path)
    problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise damaged(path, str(problem))
    return found


def version(db: sqlite3.Connection, path: Path) -> int:
    """The database's version, which another command may have changed. NewerStateError: later than this program's."""
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    if found > schema.VERSION:
        row = db.execute("SELECT value FROM meta WHERE key = 'release'").fetchone()
        wanted = f"datapath {row[0]} or later" if row else "the version of datapath that wrote it"
        raise NewerStateError(
            f"state database {path} has version {found}, this program knows version {schema.VERSION}: use {wanted}"
        )
    if found < 1:
        raise damaged(path, f"it has version {found}")
    return found


def meta(db: sqlite3.Connection, path: Path, key: str) -> Any:
    """A value that every database has, by its key."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise damaged(path, f"{key} is missing")
    return row[0]


@contextmanager
def transaction(db: sqlite3.Connection, path: Path, kind: str) -> Iterator[None]:
    """A transaction around the block, DEFERRED or IMMEDIATE, unless there is one already."""
    if db.in_transaction:
        yield
        return
    with translated(path):
        db.execute(f"BEGIN {kind}")
    try:
        yield
        with translated(path):
            db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def remove(path: Path) -> None:
    """Remove the database, its copies, its journal and its lock, and the directory if nothing else is in it."""
    copies = [copy.name for copy in path.parent.glob(f"{COPY}*")]
    for name in (*FILES, *copies, reserve.NAME, "lock"):
        path.with_name(name).unlink(missing_ok=True)
    for name in (sole.AGENT, sole.HEALTH):  # those of one that was killed
        sole.discard(path.with_name(name))
    with suppress(OSError):
        path.parent.rmdir()
