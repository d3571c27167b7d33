# SPDX-License-Identifier: Apache-2.0
"""What is asked of a cluster's store: keys and values that hosts share, as etcd v3 has them.

A transaction compares and then writes, all or nothing; a list is of one moment; a watch tells every change since a
revision, once and in order. A revision is a number of the whole store that grows with each transaction that writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from datapath.errors import StateError

MAX_OPERATIONS = 128  # of one transaction: etcd's --max-txn-ops


class UncertainError(StateError):
    """The store went away while it was asked to write: whether it has written is not known. Look before trying
    again."""


class CompactedError(StateError):
    """Changes since that revision are not told any more: list again. `revision`: the first that is."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"the store has forgotten what changed before revision {revision}")
        self.revision = revision


class RestoredError(StateError):
    """The store is not as far as it was: it was restored from an older copy. List again. `revision`: its own now."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"the store is back at revision {revision}: it was restored from an older copy")
        self.revision = revision


class Entry(NamedTuple):
    """The value of a key. `created`, `modified`: revisions; `lease`: the key goes with that lease; 0: it stays."""

    value: str
    created: int
    modified: int
    lease: int = 0


class Listing(NamedTuple):
    """All keys below a prefix as of one revision."""

    revision: int
    entries: Mapping[str, Entry]


class Change(NamedTuple):
    """`entry` None: the key was deleted, or its lease has ended."""

    key: str
    entry: Entry | None
    revision: int


class Absent(NamedTuple):
    """A condition: there is no such key."""

    key: str


class Unchanged(NamedTuple):
    """A condition: the key was last written by the transaction of that revision."""

    key: str
    modified: int


class Present(NamedTuple):
    """A condition: there is such a key."""

    key: str


class Holds(NamedTuple):
    """A condition: there is such a key, and it has this value."""

    key: str
    value: str


class Empty(NamedTuple):
    """A condition: no key begins with that."""

    prefix: str


Condition = Absent | Unchanged | Present | Holds | Empty


class Put(NamedTuple):
    """Write a key."""

    key: str
    value: str
    lease: int = 0


class Delete(NamedTuple):
    """Delete a key, if it is there."""

    key: str


class DeleteAll(NamedTuple):
    """Delete all keys that begin with that."""

    prefix: str


Write = Put | Delete | DeleteAll


class Outcome(NamedTuple):
    """Of a transaction. `found`: if it was refused, what the keys of its conditions have; nothing for those that are
    not there, and the first hundred for a prefix."""

    succeeded: bool
    revision: int
    found: Mapping[str, Entry]


class Member(NamedTuple):
    """One of the store's servers. `error`: why it does not answer, "" if it does. `leader`: it is. `size`: bytes of
    its database; `seconds`: how long the answer took."""

    name: str
    error: str = ""
    version: str = ""
    leader: bool = False
    size: int = 0
    seconds: float = 0.0


class Status(NamedTuple):
    """`cluster`: the store's own identifier, hexadecimal; "" if no server answers. `alarms`: what it complains of."""

    members: tuple[Member, ...]
    cluster: str = ""
    revision: int = 0
    alarms: tuple[str, ...] = ()


class Cluster(Protocol):
    """A cluster's store. Every method raises StateError if no server answers in time or the store refuses, and
    PrivilegeError if this client may not do it. For one thread at a time, but for `watch`'s `close`. Keys are without
    the prefix that all of a cluster's have. As a string it says where the store is."""

    def list(self, *prefixes: str) -> Listing:
        """All keys that begin with one of these, as of one moment; without any: all keys."""
        ...

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Calls of the block have that long together: a StateError then. Watches do not count."""
        ...

    def txn(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> Outcome:
        """Writes all if all conditions hold, else nothing. UncertainError; ValueError: more than MAX_OPERATIONS."""
        ...

    def watch(self, prefixes: Sequence[str], since: int) -> AbstractContextManager[Watch]:
        """Every change of keys that begin with one of these, beginning after the revision `since`."""
        ...

    def grant(self, seconds: int) -> int:
        """A new lease, which ends when it is not kept alive for so long; its number."""
        ...

    def keep_alive(self, lease: int) -> bool:
        """Begins the lease's time anew; False: it has ended."""
        ...

    def revoke(self, lease: int) -> None:
        """Ends a lease, and deletes its keys. One that has ended is fine."""
        ...

    def status(self) -> Status:
        """Of each server, whether it answers or not."""
        ...


class Watch(Protocol):
    """Iterates over batches of changes, in the order of revisions for each prefix; an empty batch says that nothing has
    changed for a while. Server after server is asked where one goes away: no change is told twice or left out.
    CompactedError; RestoredError; StateError if no server answers."""

    def __iter__(self) -> Iterator[Sequence[Change]]: ...

    @property
    def revision(self) -> int:
        """All changes up to this one have been told."""
        ...

    def close(self) -> None:
        """Ends the iteration, from any thread."""
        ...
