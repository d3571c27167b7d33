# SPDX-License-Identifier: Apache-2.0
"""The store of one host: one SQLite file in the state directory, so that the rows survive every process.

Commands that change something hold `lock()` from their first look to their last write. Readers take a snapshot and no
lock; they read a copy where a writer that does not go on keeps them out of the file (`snapshot_copy`), and one in
memory where the file is of an earlier version (`migration`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from datapath.errors import StateError
from datapath.model.codec import from_json
from datapath.model.kinds import KINDS, Kind, kind_of
from datapath.model.rows import Row
from datapath.model.services import Service
from datapath.model.state import State
from datapath.store import database, opened, schema
from datapath.store.locking import held, locked
from datapath.store.sole import HEALTH
from datapath.store.translation import damaged, taken_away, translated

MAX_NUMBER = 2**32 - 1  # endpoint numbers are u32 in the kernel's maps


def initial(state_dir: Path) -> State:
    """What a store says that is made now: for those who only look, and make none. StateError as when it is made."""
    return database.initial(state_dir / "datapath.db")


class SQLiteStore:
    """A `base.Store` in `state_dir`, with the predefined networks in it when it is made.

    `create`: make it if it is not there. `reading`: for one that changes nothing, and waits no longer than a second for
    writers. `kinds`: those whose rows it keeps. StateError if the file is damaged, of another kind, or, without
    `create`, not there; NewerStateError if it is of a later version; PrivilegeError if it cannot be opened.

    A file of an earlier version is taken to this one when it is first locked, and a copy of it is kept. Until then it
    is read as it is, and not written.

    One that is kept for many commands costs less than one a command: nothing is opened, checked or parsed again, and
    the connection that closes last takes the journal into the file, which waits for the disk five times.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        create: bool = True,
        reading: bool = False,
        kinds: tuple[Kind, ...] = KINDS,
    ) -> None:
        self.path = state_dir / "datapath.db"
        self.lock_path = state_dir / "lock"
        self._kinds = kinds
        self._locked = False
        self._loaded: dict[tuple[type[Any], str], Any] = {}  # the rows of the last load, by class and text
        self._stack = ExitStack()  # what is to be closed
        with translated(self.path):
            if create:
                database.prepare(self.path, self.lock_path)
            elif not self.path.exists():
                raise taken_away(self.path)
            if reading:
                self.file = opened.for_reading(self.path, self._stack)
            else:
                self.file = opened.Opened(self.path)
                self._stack.callback(self.file.close)
                if not self.file.outdated:
                    self.file.add_tables(kinds)
        self.installation_id = self.file.installation_id

    @property
    def _db(self) -> sqlite3.Connection:
        return self.file.writing()

    def save_space(self) -> None:
        """Let the journal stay small while this store is open: what is in it goes into the file soon."""
        with translated(self.path):
            self._db.execute("PRAGMA wal_autocheckpoint = 16")

    @property
    def current(self) -> bool:
        return self.file.current

    @staticmethod
    def exists(state_dir: Path) -> bool:
        path = state_dir / "datapath.db"
        with translated(path):
            return path.exists()

    def destroy(self) -> None:
        self.file.close()
        database.remove(self.path)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- rows --------------------------------------------------------------------------------------

    def load(self) -> State:
        before, self._loaded = self._loaded, {}
        with translated(self.path):
            db = self.file.reading()
            with database.transaction(db, self.path, "DEFERRED"):
                tables = {kind.cls: self._rows(db, kind, before) for kind in self._kinds}
        return State(tables, self.installation_id, self._kinds, self._judged(tables.get(Service, {})))

    def _judged(self, services: Mapping[str, Service]) -> bool:
        """An agent is there that checks backends; it is asked for if any are to be checked."""
        checked = any(service.health for service in services.values())
        return not checked or held(self.path.with_name(HEALTH))

    def _rows(
        self, db: sqlite3.Connection, kind: Kind, before: Mapping[tuple[type[Any], str], Any]
    ) -> dict[str, Any]:
        """The kind's rows by id. One whose text is among those `before` is that object again: none is ever changed."""
        found: dict[str, Any] = {}
        if kind.table not in self.file.tables:
            return found
        cls = kind.cls
        try:
            for ident, body in db.execute(f"SELECT id, body FROM {kind.table} ORDER BY rowid"):
                row = before.get((cls, body)) or from_json(cls, body)
                found[ident] = self._loaded[cls, body] = row
        except (ValueError, TypeError) as error:
            raise damaged(self.path, f"a row of {kind.table} cannot be read: {error}") from None
        return found

    def put(self, row: Row) -> None:
        with translated(self.path):
            self._db.execute(*schema.upsert(kind_of(type(row), self._kinds), row))

    def delete(self, row: Row) -> None:
        with translated(self.path):
            self._db.execute(*schema.delete(kind_of(type(row), self._kinds), row))

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        if durable or self._db.in_transaction:
            with database.transaction(self._db, self.path, "IMMEDIATE"):
                yield
            return
        with translated(self.path):
            self._db.execute(
                "PRAGMA synchronous = NORMAL"
            )  # writes the journal and does not wait for the disk
        try:
            with database.transaction(self._db, self.path, "IMMEDIATE"):
                yield
        finally:
            self._db.execute("PRAGMA synchronous = FULL")

    # ---- what belongs to the host ------------------------------------------------------------------

    @contextmanager
    def lock(self, timeout: float = 60.0) -> Iterator[int]:
        if self._locked:
            raise RuntimeError("the lock is held already")
        with ExitStack() as stack:
            with translated(self.path):
                try:
                    fd = stack.enter_context(locked(self.lock_path, timeout, create=False))
                except FileNotFoundError:
                    # `destroy` removes the lock after the database. If it was that, the lock is not to be made again.
                    if not self.current:
                        raise taken_away(self.path) from None
                    fd = stack.enter_context(locked(self.lock_path, timeout))
            if not self.current:
                raise taken_away(self.path)
            self._locked = True
            stack.callback(setattr, self, "_locked", False)
            with translated(self.path):
                self.file.take_on(self._kinds)
            yield fd

    def note(self, key: str) -> str | None:
        with translated(self.path):
            query = "SELECT value FROM meta WHERE key = ?"
            row = self.file.reading().execute(query, (f"note {key}",)).fetchone()
        return None if row is None else str(row[0])

    def set_note(self, key: str, value: str | None) -> None:
        with translated(self.path):
            if value is None:
                self._db.execute("DELETE FROM meta WHERE key = ?", (f"note {key}",))
            else:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note {key}", value))

    def next_number(self) -> int:
        with translated(self.path):
            query = "UPDATE meta SET value = value + 1 WHERE key = 'endpoint' RETURNING value"
            found = self._db.execute(query).fetchall()
        if not found:
            raise damaged(self.path, "the endpoint counter is missing")
        number = int(found[0][0])
        if number > MAX_NUMBER:
            raise StateError("all endpoint numbers are used up: take everything down and start afresh")
        return number
