# SPDX-License-Identifier: Apache-2.0
"""The database of a state directory, opened: to be read, or to be written, and of whichever version it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from datapath.model.kinds import Kind
from datapath.store import database, migration, schema, snapshot_copy
from datapath.store.translation import is_busy, is_unwritable, obstacle, read_only

_ATTEMPTS = 3  # of a reader that is kept out of the file


class Opened:
    """The database at `path`, or a copy of it `at` another path. `tables`: the names of those that it has. `kept`:
    where its copy is, if this process has taken it from an earlier version to this one. Errors of `database.check`.
    """

    def __init__(
        self,
        path: Path,
        at: Path | None = None,
        busy: float = database.BUSY_SECONDS,
        mode: str = "mode=rw",
    ) -> None:
        self.path = path
        self.kept: Path | None = None
        self._view: sqlite3.Connection | None = None
        self._viewed = 0  # what of the file is in it
        with ExitStack() as stack:
            self._file = database.connect(at or path, busy, mode)
            stack.callback(self._file.close)
            self.version = database.check(self._file, path)
            self.tables = schema.tables(self._file)
            self._inode = path.stat().st_ino
            self.installation_id = str(database.meta(self._file, path, "installation"))
            stack.pop_all()

    def close(self) -> None:
        self._drop_view()
        self._file.close()
        self._inode = 0  # a new file may get the number of a removed one

    @property
    def current(self) -> bool:
        """It is still the one of its directory."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    # ---- its version -------------------------------------------------------------------------

    @property
    def outdated(self) -> bool:
        """The file is of an earlier version, whose number is `version`."""
        return self.version < schema.VERSION

    def writing(self) -> sqlite3.Connection:
        """The connection by which it is written."""
        if self.outdated:
            raise RuntimeError("a database of an earlier version is written under the lock only")
        return self._file

    def reading(self) -> sqlite3.Connection:
        """The connection by which it is read: to a copy in memory while the file is of an earlier version."""
        if not self.outdated:
            return self._file
        written = int(self._file.execute("PRAGMA data_version").fetchone()[0])
        if self._view is None or written != self._viewed:
            self._drop_view()
            version = database.version(self._file, self.path)  # another command may have taken it on
            self._view, self._viewed = migration.view(self._file, self.path, version), written
            self.tables = schema.tables(self._view)
        return self._view

    def take_on(self, kinds: Iterable[Kind]) -> None:
        """Under the lock: takes the file to this version, if that is to be done still. NewerStateError: it is of a
        later one by now; StateError as of `migration.migrate`."""
        self.version, before = database.version(self._file, self.path), self.version
        if self.outdated:
            self.kept = migration.migrate(self._file, self.path, self.version)
            self.version = schema.VERSION
        if self.version != before:
            self._drop_view()
            self.tables = schema.tables(self._file)
            self.add_tables(kinds)

    def add_tables(self, kinds: Iterable[Kind]) -> None:
        """Makes the tables of kinds that came after the file."""
        missing = [kind for kind in kinds if kind.table not in self.tables]
        if missing:
            with database.transaction(self._file, self.path, "IMMEDIATE"):
                for kind in missing:
                    self._file.execute(schema.create_table(kind))
            self.tables = schema.tables(self._file)

    def _drop_view(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None


def for_reading(path: Path, stack: ExitStack) -> Opened:
    """The file; or a copy of it while a writer keeps others out, or where no journal can be made; `stack` closes it."""

    def kept(opened: Opened) -> Opened:
        stack.callback(opened.close)
        return opened

    for _ in range(_ATTEMPTS):
        if not snapshot_copy.kept_out(path):
            try:
                return kept(Opened(path, busy=snapshot_copy.PATIENCE))
            except sqlite3.OperationalError as error:
                if not (is_busy(error) or (is_unwritable(error) and obstacle(path.parent))):
                    raise
                if read_only(path.parent) and not snapshot_copy.has_journal(path):
                    # Nobody writes, and nothing has to be read but the file.
                    return kept(Opened(path, mode="mode=ro&immutable=1"))
        with ExitStack() as attempt:
            copy = attempt.enter_context(snapshot_copy.copied(path))
            if copy is not None:
                opened = Opened(path, copy)
                stack.push(attempt.pop_all())
                return kept(opened)  # it is closed before the copy is removed
    return kept(Opened(path))
