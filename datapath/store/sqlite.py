# SPDX-License-Identifier: Apache-2.0
"""The store: what was promised, in one SQLite file, so that it survives whoever promised it.

A row is an object of the model as JSON; the columns beside it are there for what the database itself has to
hold: names, numbers, addresses and slots are unique, an endpoint has a network and a sandbox. Commands that
change something hold `lock()` from their first look to their last write; readers take a snapshot and no lock, and get
by whoever keeps them out of the file (store_beside.py).
A damaged file is reported, never replaced.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from datapath.errors import DatapathError, ExistsError, PrivilegeError, StateError
from datapath.model.codec import from_json
from datapath.model.kinds import KINDS, Kind, kind_of
from datapath.model.rows import Row
from datapath.model.state import Fresh, State, plan_predefined
from datapath.store import schema, snapshot_copy

BUSY_SECONDS = 10.0  # how long a single write waits for another connection's
_TRIES = 3  # of a reader to get by somebody
MAX_NUMBER = 2**32 - 1  # endpoint numbers are u32 in the kernel's maps


class Store:
    """The store of one installation, made on first use with the three predefined networks in it.

    StateError if the file is damaged, of another kind or version, or, without `create`, not there; PrivilegeError
    if it cannot be opened. One that is kept for many commands costs less than one a command: nothing is opened,
    checked or parsed again, and the connection that closes last takes the journal into the file, which is five waits
    for the disk. Of any thread, but one at a time. `reading`: for one that changes nothing, and does not wait longer
    than a second for anybody.
    """

    def __init__(
        self, state_dir: Path, *, create: bool = True, reading: bool = False, kinds: tuple[Kind, ...] = KINDS
    ) -> None:
        self.path = state_dir / "datapath.db"
        self.lock_path = state_dir / "lock"
        self._kinds = kinds
        self._locked = False
        self._read: dict[tuple[type[Any], str], Any] = {}  # what was loaded last: by kind and row
        self._stack = ExitStack()  # what goes when it is closed
        with self._translated():
            if create:
                self._prepare(state_dir)
            elif not self.path.exists():
                raise self._taken_away()
            if reading:
                self._open_beside()
            else:
                self._open(self.path)
                self._add_tables()

    def _open(self, path: Path, busy: float = BUSY_SECONDS) -> None:
        with ExitStack() as stack:
            self._db = _connect(path, busy)
            stack.callback(self._db.close)
            self._check()
            self._tables = schema.tables(self._db)
            self._inode = self.path.stat().st_ino
            self.installation_id = str(self._meta("installation"))
            self._stack.push(stack.pop_all())

    def _open_beside(self) -> None:
        """The file, or, if somebody keeps readers out of it, a copy."""
        for _ in range(_TRIES):
            if not snapshot_copy.kept_out(self.path):
                try:
                    return self._open(self.path, snapshot_copy.PATIENCE)
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):
                        raise
            with ExitStack() as stack:
                copy = stack.enter_context(snapshot_copy.copied(self.path))
                if copy is not None:
                    self._open(copy)
                    stack.push(self._stack)  # is closed before the copy goes
                    self._stack = stack.pop_all()
                    return None
        return self._open(self.path)

    @property
    def current(self) -> bool:
        """Its file is still the one at that path; not if everything has been taken away since it was opened."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    @staticmethod
    def exists(state_dir: Path) -> bool:
        """There is a store: opening it would not make one."""
        return (state_dir / "datapath.db").exists()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- reading -----------------------------------------------------------------------------------

    def load(self) -> State:
        """Everything, as of one moment."""
        before, self._read = self._read, {}
        with self._translated(), self._transaction("DEFERRED"):
            tables = {kind.cls: self._rows(kind, before) for kind in self._kinds}
        return State(tables, self.installation_id, self._kinds)

    def _rows(self, kind: Kind, before: Mapping[tuple[type[Any], str], Any]) -> dict[str, Any]:
        """The kind's rows by id. One whose text was loaded before is the same object again: none is ever changed."""
        found: dict[str, Any] = {}
        cls = kind.cls
        if kind.table not in self._tables:
            return found
        try:
            for ident, body in self._db.execute(f"SELECT id, body FROM {kind.table} ORDER BY rowid"):
                row = before.get((cls, body)) or from_json(cls, body)
                found[ident] = self._read[cls, body] = row
        except (ValueError, TypeError) as error:
            raise self._damaged(f"a row of {kind.table} cannot be read: {error}") from None
        return found

    def _meta(self, key: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise self._damaged(f"{key} is missing")
        return row[0]

    # ---- writing -----------------------------------------------------------------------------------

    @contextmanager
    def lock(self, timeout: float = 60.0) -> Iterator[int]:
        """Held by one command at a time on the whole host; as the fd that holds it, and its copies.

        StateError after `timeout` seconds, or if everything has been taken away since the store was opened.
        """
        if self._locked:
            raise RuntimeError("the lock is held already")
        with self._translated():
            try:
                fd = _acquire(self.lock_path, timeout, create=False)
            except FileNotFoundError:
                # `destroy` removes it after the database: made again by then, it would be left alone.
                self._require_same_file()
                fd = _acquire(self.lock_path, timeout)
        try:
            self._require_same_file()
        except StateError:
            _release(fd)
            raise
        self._locked = True
        try:
            yield fd
        finally:
            self._locked = False
            _release(fd)

    def _require_same_file(self) -> None:
        """StateError if the file is not the one that was opened: `destroy` has come in between."""
        if not self.current:
            raise self._taken_away()

    def destroy(self) -> None:
        """Forget everything: the files and their folder go. The lock has to be held."""
        self._db.close()
        self._inode = 0  # another file may get the number as soon as this one is gone
        for name in ("datapath.db", "datapath.db-wal", "datapath.db-shm", "lock"):
            self.path.with_name(name).unlink(missing_ok=True)
        with suppress(OSError):  # others may keep something there
            self.path.parent.rmdir()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """All writes inside become visible together, or none does. May be nested; the outermost says how.

        Not `durable`: nobody waits for the disk. Whoever is killed leaves it all the same, but a failure of the
        whole machine may take it back, until the next durable one is written.
        """
        if durable or self._db.in_transaction:
            with self._transaction("IMMEDIATE"):
                yield
            return
        with self._translated():
            self._db.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._transaction("IMMEDIATE"):
                yield
        finally:
            self._db.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        if self._db.in_transaction:
            yield
            return
        with self._translated():
            self._db.execute(f"BEGIN {kind}")
        try:
            yield
            with self._translated():
                self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def put(self, row: Row) -> None:
        """Write the row, new or not. ExistsError if a name, number or address is another's."""
        with self._translated():
            self._db.execute(*schema.upsert(kind_of(type(row), self._kinds), row))

    def delete(self, row: Row) -> None:
        """Remove the row, if there is one. StateError if others still refer to it."""
        with self._translated():
            self._db.execute(*schema.delete(kind_of(type(row), self._kinds), row))

    def note(self, key: str) -> str | None:
        """What was noted under the key; None: nothing."""
        with self._translated():
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (f"note {key}",)).fetchone()
        return None if row is None else str(row[0])

    def set_note(self, key: str, value: str | None) -> None:
        """Note something of the host that is to be put back as it was; None: forget it."""
        with self._translated():
            if value is None:
                self._db.execute("DELETE FROM meta WHERE key = ?", (f"note {key}",))
            else:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note {key}", value))

    def next_number(self) -> int:
        """A number that no endpoint of this installation has ever had."""
        with self._translated():
            query = "UPDATE meta SET value = value + 1 WHERE key = 'endpoint' RETURNING value"
            row = self._db.execute(query).fetchall()
        if not row:
            raise self._damaged("the endpoint counter is missing")
        number = int(row[0][0])
        if number > MAX_NUMBER:
            raise StateError("all endpoint numbers are used up: take everything down and start afresh")
        return number

    # ---- opening and checking ------------------------------------------------------------------------

    def _prepare(self, state_dir: Path) -> None:
        """Make the file if there is none; complete under another name first, so it is never half made."""
        if self.path.exists():
            return
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = _acquire(self.lock_path, 60.0)
        try:
            if self.path.exists():
                return
            if self.path.with_name("datapath.db-wal").exists():
                raise self._damaged("it is gone, but its journal is there")
            _create(self.path)
        finally:
            _release(fd)

    def _check(self) -> None:
        if self.path.stat().st_size == 0:
            raise self._damaged("it is empty")
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if application != schema.APPLICATION_ID:
            raise StateError(f"{self.path} is not a state database of datapath: move it away")
        if version != schema.VERSION:
            raise StateError(
                f"state database {self.path} has version {version}, this program knows version {schema.VERSION}: "
                "use the version of datapath that wrote it"
            )
        problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise self._damaged(str(problem))

    def _add_tables(self) -> None:
        """Make the tables of kinds that came after the file."""
        missing = [kind for kind in self._kinds if kind.table not in self._tables]
        if missing:
            with self._translated(), self._transaction("IMMEDIATE"):
                for kind in missing:
                    self._db.execute(schema.create_table(kind))
            self._tables = schema.tables(self._db)

    def _taken_away(self) -> StateError:
        return StateError(f"state database {self.path} has been taken away meanwhile: try again")

    def _damaged(self, detail: str) -> StateError:
        return StateError(
            f"state database {self.path} is damaged ({detail}): put back a copy of it, or, to begin afresh, "
            f"end the containers and move {self.path.parent} away"
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's and the system's errors as ours."""
        try:
            yield
        except DatapathError:
            raise
        except sqlite3.IntegrityError as error:
            if "FOREIGN KEY" in str(error):
                raise StateError(f"state database {self.path}: an object that is in use would go") from error
            what = str(error).removeprefix("UNIQUE constraint failed: ")
            raise ExistsError(f"already taken: {what}") from error
        except sqlite3.Error as error:
            raise self._translation(error) from error
        except PermissionError as error:
            raise PrivilegeError(f"{error.filename or self.path}: permission denied: run as root") from error
        except OSError as error:
            if error.filename is None or not str(error.filename).startswith(str(self.path.parent)):
                raise
            raise StateError(f"{error.filename}: {error.strerror}") from error

    def _translation(self, error: sqlite3.Error) -> DatapathError:
        name = _error_name(error)
        if _is_busy(error):
            return StateError(f"state database {self.path} is locked by another command: try again")
        if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
            return PrivilegeError(f"state database {self.path} cannot be written: run as root")
        if name.startswith("SQLITE_CANTOPEN") and not os.access(self.path, os.R_OK | os.W_OK):
            return PrivilegeError(f"state database {self.path} cannot be opened: run as root")
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_NOMEM")):
            return StateError(f"state database {self.path}: {error}")
        return self._damaged(str(error))


def _error_name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "") or ""


def _is_busy(error: sqlite3.Error) -> bool:
    """Others are at it, for longer than was waited. PROTOCOL: they are still building the journal's index."""
    return _error_name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"))


def _connect(path: Path, busy: float = BUSY_SECONDS) -> sqlite3.Connection:
    """An open connection; never creates the file. `busy`: seconds to wait for others."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=busy, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


def _create(path: Path) -> None:
    new = path.with_name(path.name + ".new")
    for leftover in (new, new.with_name(new.name + "-wal"), new.with_name(new.name + "-shm")):
        with suppress(FileNotFoundError):
            leftover.unlink()
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_WRONLY, 0o600))
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    fresh = Fresh(now, lambda: os.urandom(32).hex(), lambda: 0)
    with closing(_connect(new)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {schema.script(KINDS)} COMMIT;")
        db.execute("BEGIN")
        meta = [("installation", os.urandom(16).hex()), ("endpoint", 0)]
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        for network in plan_predefined(fresh):
            db.execute(*schema.upsert(kind_of(type(network)), network))
        db.execute("COMMIT")
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _acquire(path: Path, timeout: float, *, create: bool = True) -> int:
    """The lock file, locked, as a descriptor. The kernel unlocks it when its holders have ended."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
    try:
        if not _try_flock(fd) and not _wait_for_flock(fd, timeout):
            raise StateError(f"another command has held {path} for {timeout:g} s: try again later")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _wait_for_flock(fd: int, timeout: float) -> bool:
    """The kernel gives it to those who wait in the order in which they came; who only asks now and then may be
    overtaken for ever. It knows no timeout: a thread waits, and is left alone with the file when it is too late."""
    from threading import Thread

    granted = []

    def wait() -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        granted.append(True)

    waiter = Thread(target=wait, daemon=True)
    waiter.start()
    waiter.join(timeout)
    return bool(granted)


def _release(fd: int) -> None:
    """Unlocked in so many words: a child that was forked meanwhile may have the descriptor still."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
