# SPDX-License-Identifier: Apache-2.0
"""What a host owes the store: endpoints that began or ended while it was away.

A queue has one value a key, JSON, or "" if the key is to be deleted; what is said last of a key counts. Sending it
twice does no harm, and never touches what another host has written meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from datapath.cluster import keys
from datapath.cluster.commit import SECONDS, Tries, commit, forgotten
from datapath.model.peers import Remote
from datapath.store.cluster import Absent, Cluster, Condition, Delete, Entry, Present, Put, Unchanged, Write

_CHUNK = 60  # keys of one transaction: each has a condition and a write, of 128 that the store takes


@dataclass(frozen=True, slots=True)
class Conflict:
    """A key that this host was to write, and another has. `holder`: the other's endpoint; None: it cannot be read, or
    the network is gone."""

    key: str
    holder: Remote | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """`done`: keys that are as they were to be; the others are still owed, each for the reason of its conflict."""

    done: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


def claims(remote: Remote) -> dict[str, str]:
    """That the endpoint is there, as it is."""
    return dict.fromkeys(keys.endpoint_keys(remote), keys.remote_value(remote))


def releases(remote: Remote) -> dict[str, str]:
    """That the endpoint is gone."""
    return dict.fromkeys(keys.endpoint_keys(remote), "")


def merged(before: Mapping[str, str], later: Mapping[str, str]) -> dict[str, str]:
    """The queue with what came later. A claim that is deleted again stays a deletion, since it may have been sent."""
    return {**before, **later}


def send(store: Cluster, me: str, owed: Mapping[str, str]) -> Sent:
    """Writes what the host `me` owes, up to 60 keys a transaction. StateError: the store cannot be asked, or the host
    is no member; what was sent may be sent again."""
    done: list[str] = []
    conflicts: list[Conflict] = []
    items = list(owed.items())
    with store.within(SECONDS):
        for start in range(0, len(items), _CHUNK):
            sent, refused = _send(store, me, dict(items[start : start + _CHUNK]))
            done += sent
            conflicts += refused
    return Sent(tuple(done), tuple(conflicts))


def _send(store: Cluster, me: str, owed: Mapping[str, str]) -> tuple[list[str], list[Conflict]]:
    """All at once, as long as what was found the last time is still so."""
    tries = Tries("writing what this host owes")
    found: Mapping[str, Entry] = {}
    while True:
        conflicts: list[Conflict] = []
        conditions: dict[str, Condition] = {keys.HOSTS + me: Present(keys.HOSTS + me)}
        writes: dict[str, Write] = {}
        for key, value in owed.items():
            entry = found.get(key)
            if entry is not None and keys.owner_of(key, entry.value) != me:
                conflicts += [Conflict(key, _holder(key, entry))] if value else []
                continue
            network = keys.NETWORKS + key.split("/")[1]
            if value and tries.count and network not in found:
                conflicts.append(Conflict(key, gone=True))
                continue
            if value:
                conditions[network] = Present(network)
            conditions[key] = Absent(key) if entry is None else Unchanged(key, entry.modified)
            if value != (entry.value if entry is not None else ""):
                writes[key] = Put(key, value) if value else Delete(key)
        outcome = commit(store, list(conditions.values()), list(writes.values()))
        if outcome.succeeded:
            refused = {conflict.key for conflict in conflicts}
            return [key for key in owed if key not in refused], conflicts
        if keys.HOSTS + me not in outcome.found:
            raise forgotten()
        found = {**found, **outcome.found}
        for key in conditions:
            if key not in outcome.found:
                found.pop(key, None)
        tries.again()


def _holder(key: str, entry: Entry) -> Remote | None:
    row = keys.rows_of({key: entry}).put
    return row[0] if row and isinstance(row[0], Remote) else None
