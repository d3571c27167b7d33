# SPDX-License-Identifier: Apache-2.0
"""What the engine needs of a store: the rows that say which networks, endpoints and containers there have to be.

`Rows` is what any store of rows serves, one of the host as well as one of a cluster: the operations are those of a
key-value store with transactions, such as etcd v3. A row's key is made of its table and id, each unique value of its
kind (`model.kinds`) is a key that is only ever created, and a transaction is one request. Where that asks for less
than SQLite gives, the interface promises the less. `Store` adds what belongs to one host: the lock, the notes, and
the numbers of the kernel's tables. The rows of networks of scope global can so come from elsewhere than the host's own,
behind one `Store`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, Self

from datapath.model.rows import Row
from datapath.model.state import State


class Rows(Protocol):
    """Rows of the kinds of `model.kinds`. Every method raises StateError if the store cannot be reached or is damaged,
    and PrivilegeError if this process may not use it. The methods are for one thread at a time."""

    def load(self) -> State:
        """All rows as of one moment: of every transaction all or nothing, including each one that ended before.

        A row that has not changed since it was last loaded is the same object. Not to be called inside a transaction:
        whether its writes are seen is not promised. StateError if a row cannot be read; it names the table and why.
        """
        ...

    def transaction(self, *, durable: bool = True) -> AbstractContextManager[None]:
        """A block whose writes become visible together at its end, or not at all if it is left by an exception.

        Blocks may be nested; the outermost one is the transaction, and its `durable` counts. Its order is free: what
        a row refers to may be written after the row and deleted before it. It is for the few dozen rows of one step of
        a command (etcd takes 128 operations).

        `durable`: at the end of the block the rows survive a failure of the machine. Otherwise they survive the end of
        the process, and a failure of the machine may take them back until the next durable transaction has ended; a
        store may be durable all the same.

        At its end it raises whatever `put` and `delete` inside may raise, for a store may send all of it only then.
        """
        ...

    def put(self, row: Row) -> None:
        """Write the row, new or not; outside of a transaction as a durable one of its own.

        ExistsError if another row of its kind has one of its unique values; StateError if it refers to a row that
        there is not, or if another host has changed it since it was loaded; TypeError if the store does not know its
        kind. At the latest when the transaction ends, which then leaves everything as it was.
        """
        ...

    def delete(self, row: Row) -> None:
        """Remove the row with that id, if there is one; outside of a transaction as a durable one of its own.

        StateError if another row refers to it when the transaction ends, which then leaves everything as it was;
        TypeError if the store does not know its kind.
        """
        ...


class Store(Rows, Protocol):
    """The store of one installation of datapath: one host's rows, lock, notes and numbers."""

    @property
    def installation_id(self) -> str:
        """32 hex digits that no other installation has."""
        ...

    @property
    def lock_path(self) -> Path:
        """The file that `lock` locks, for those who ask the kernel whether a command is at work."""
        ...

    @property
    def current(self) -> bool:
        """The store is still the one of its directory: it has not been destroyed or replaced since it was opened."""
        ...

    @staticmethod
    def exists(state_dir: Path) -> bool:
        """The directory has a store, so that opening it makes none."""
        ...

    def lock(self, timeout: float = 60.0) -> AbstractContextManager[int]:
        """The host's lock, held by one command at a time, from its first look at the rows to its last write.

        It yields the descriptor that holds the lock: a child process that keeps a copy keeps the lock. Processes get it
        in the order in which they asked. It is free as soon as the block ends or the process with its children does,
        however that comes. Readers need no lock.

        StateError if another command has held it for `timeout` seconds, or if the store is not `current`;
        RuntimeError if this object holds it already.
        """
        ...

    def note(self, key: str) -> str | None:
        """The text noted under the key; None: there is none."""
        ...

    def set_note(self, key: str, value: str | None) -> None:
        """Note how a setting of the host was before datapath changed it; None: forget it. Notes are part of the
        transaction around them."""
        ...

    def next_number(self) -> int:
        """A number, from 1 to 2³²-1, that no endpoint of this installation has had.

        Part of the transaction around it. StateError if all of them are used up.
        """
        ...

    def destroy(self) -> None:
        """Remove the store with its rows and notes, and its directory if it is empty then. The lock has to be held;
        commands that wait for it, and those that hold a store of before, get a StateError."""
        ...

    def close(self) -> None:
        """Give up the store's files and connections; nothing else may be called afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...
