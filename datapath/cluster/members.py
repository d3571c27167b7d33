# SPDX-License-Identifier: Apache-2.0
"""Hosts of a cluster: how one joins and leaves, which there are, and how one that is gone is forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from datapath.cluster import keys
from datapath.cluster.commit import SECONDS, Tries, commit
from datapath.cluster.keys import ClusterInfo
from datapath.errors import ConfigError, ExistsError, InUseError, NotFoundError, StateError
from datapath.model.peers import Block, Peer, Remote
from datapath.store.cluster import (
    Absent,
    Cluster,
    Condition,
    Delete,
    Entry,
    Listing,
    Present,
    Put,
    Unchanged,
    Write,
)

_CHUNK = 100  # keys that are deleted in one transaction; the store takes 128 operations


@dataclass(frozen=True, slots=True)
class Joined:
    """`peer`: this host's row, with its number. All that has changed since `revision` is still to be learnt."""

    info: ClusterInfo
    peer: Peer
    peers: Mapping[str, Peer]
    revision: int


@dataclass(frozen=True, slots=True)
class HostEntry:
    """`alive`: its agent says so; a host without one is not. `draining`: it begins nothing."""

    peer: Peer
    alive: bool = False
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a host had. `peer` None: it had left, or was forgotten before, and something had stayed behind."""

    peer: Peer | None
    blocks: tuple[Block, ...] = ()
    remotes: tuple[Remote, ...] = ()


# ---- joining -----------------------------------------------------------------------------------


def join(
    store: Cluster, peer: Peer, instance: str, cluster_id: str, port: int = 0, expected: str = ""
) -> Joined:
    """Makes the host a member, or brings its row up to date; what is right already is not written.

    `peer`: its number is chosen here, unless the store has one. `instance`: tells this run of the host from that of a
    copy of its state directory. `cluster_id`, `port`: what the first host decides, the port also one that is
    alone; 0: the usual port, or the cluster's.
    `expected`: the id of the cluster that the host has joined before; "": none. ExistsError: another host has the name,
    the address or the id; ConfigError: the cluster's port is another; StateError: the store has another cluster than
    the expected one, one of another format, or something else."""
    tries = Tries("joining the cluster")
    with store.within(SECONDS):
        while True:
            looked = store.list(keys.CLUSTER, keys.HOSTS, keys.ALIVE + peer.id)
            if keys.CLUSTER not in looked.entries:
                looked = store.list()  # of an empty store, or of something else's
            own = ClusterInfo(cluster_id, keys.FORMAT, port or keys.PORT)
            alone = not peers_of(looked.entries).keys() - {peer.id}
            info = _agreed(store, looked, own, port, expected, alone)
            _refuse_twin(peer, looked, instance)
            found = _joined(store, looked, peer, info, tries.count)
            if found is not None:
                return found
            tries.again()


def _joined(store: Cluster, looked: Listing, peer: Peer, info: ClusterInfo, tried: int) -> Joined | None:
    """None: another host was faster."""
    peers = peers_of(looked.entries)
    before = peers.get(peer.id)
    others = [one for one in peers.values() if one.id != peer.id]
    _refuse_taken(peer, others)
    number = before.number if before else _free_number(peer, others, tried)
    joined = replace(peer, number=number)
    agreed = looked.entries.get(keys.CLUSTER)
    decides = agreed is not None and keys.info_value(info) != agreed.value
    if before is not None and keys.peer_value(before) == keys.peer_value(joined) and not decides:
        return Joined(info, joined, peers, looked.revision)
    key = keys.HOSTS + peer.id
    value = keys.peer_value(joined)
    conditions: list[Condition] = []
    writes: list[Write] = [Put(key, value)]
    if agreed is None:
        conditions.append(Absent(keys.CLUSTER))
        writes.append(Put(keys.CLUSTER, keys.info_value(info)))
    elif decides or (before is None and len(others) <= 1):
        # Of one that decides anew, being alone, and one that joins it, one is first.
        conditions.append(Unchanged(keys.CLUSTER, agreed.modified))
        writes.append(Put(keys.CLUSTER, keys.info_value(info)))
    else:
        conditions.append(Present(keys.CLUSTER))
    if before is None:
        conditions += [Absent(key), Absent(keys.NUMBERS + str(number))]
        writes.append(Put(keys.NUMBERS + str(number), peer.id))
    else:
        conditions.append(Unchanged(key, looked.entries[key].modified))
    if before is None or before.name != peer.name:
        conditions.append(Absent(keys.HOST_NAMES + peer.name))
        writes.append(Put(keys.HOST_NAMES + peer.name, peer.id))
        writes += [Delete(keys.HOST_NAMES + before.name)] if before else []
    outcome = commit(store, conditions, writes)
    if not outcome.succeeded:
        return None
    return Joined(info, joined, {**peers, peer.id: joined}, outcome.revision)


def _agreed(
    store: Cluster, looked: Listing, own: ClusterInfo, port: int, expected: str, alone: bool
) -> ClusterInfo:
    """The cluster's, or what this host makes it, being the first, or alone in it."""
    entry = looked.entries.get(keys.CLUSTER)
    if entry is None:
        if looked.entries:
            keys.read_info("", store)  # which says that this is something else
        return replace(own, id=expected or own.id)
    info = keys.read_info(entry.value, store)
    if expected and info.id != expected:
        raise StateError(
            f"cluster store {store} has another cluster ({info.id[:12]}) than the one that this host has joined "
            f"({expected[:12]}): remove the host's global networks first, or correct cluster-store"
        )
    if port and alone:
        return replace(info, port=port)
    if port and port != info.port:
        raise ConfigError(
            f"port {port} for tunnels is not that of the cluster, {info.port}: its first host has chosen it for all"
        )
    return info


def _refuse_twin(peer: Peer, looked: Listing, instance: str) -> None:
    """Of two hosts with one id, as when a state directory was copied, the one that is not known is refused."""
    before = peers_of(looked.entries).get(peer.id)
    alive = looked.entries.get(keys.ALIVE + peer.id)
    if before is None or alive is None or keys.read_instance(alive.value) == instance:
        return
    if (before.name, before.address) != (peer.name, peer.address):
        raise ExistsError(
            f"host {peer.name} ({peer.address}) has the id of host {before.name} ({before.address}), which is alive: "
            f"its state directory is a copy: remove it from {peer.name}"
        )


def _refuse_taken(peer: Peer, others: Iterable[Peer]) -> None:
    for other in others:
        if other.name == peer.name:
            raise ExistsError(
                f"host name {peer.name} of this host ({peer.id[:12]}, {peer.address}) is taken by another host of the "
                f"cluster ({other.id[:12]}, {other.address}): rename one, or forget the other if it is no more"
            )
        if other.address == peer.address:
            raise ExistsError(
                f"address {peer.address} of this host ({peer.name}) is that of host {other.name} of the cluster: "
                "choose another by cluster-advertise, or forget the other if it is no more"
            )


def _free_number(peer: Peer, others: Iterable[Peer], tried: int) -> int:
    """The one that it had, if it is free, or the lowest; one of the lowest, if others were faster already."""
    taken = {other.number for other in others}
    if peer.number and peer.number not in taken and not tried:
        return peer.number
    few: int = min(4**tried, 256)
    free = [number for number in range(1, len(taken) + few + 1) if number not in taken]
    return free[int(peer.id, 16) % few]


# ---- leaving -----------------------------------------------------------------------------------


def leave(store: Cluster, me: str) -> Forgotten:
    """Takes this host's membership and blocks away. InUseError: it has endpoints on global networks."""
    with store.within(SECONDS):
        looked = store.list(keys.HOSTS + me, keys.BLOCKS, keys.ENDPOINTS)
        found = _of_host(looked, me)
        if found.remotes:
            raise InUseError(
                f"this host has active endpoints on global networks ({keys.shown(found.remotes, {})}): "
                "remove these containers first"
            )
        _take_away(store, looked, me, [])
    return found


def forget(store: Cluster, name: str, force: bool = False, me: str = "") -> Forgotten:
    """Takes away what a host that is gone has had: its name, number, blocks and addresses. `name`: or id, or the
    beginning of one; `me`: this host's id, which is not forgotten here. All endpoints of the cluster are read. A second
    time completes what was interrupted. InUseError: the host is alive, and not `force`; NotFoundError; ConfigError."""
    with store.within(SECONDS):
        shared = store.list(keys.HOSTS, keys.ALIVE)
        peers = peers_of(shared.entries)
        ident = name if len(name) == 32 and name not in peers else find_host(peers, name).id
        if ident == me:
            raise ConfigError(f"host {name} is this one: let it leave the cluster instead")
        shown = peers[ident].name if ident in peers else ident[:12]
        alive = keys.ALIVE + ident in shared.entries
        if alive and not force:
            raise InUseError(
                f"host {shown} is alive: stop it, or let it leave; --force forgets it and what it runs"
            )
    # However long: there may be very many endpoints. It is done bit by bit, and may be done again.
    looked = store.list(keys.HOSTS + ident, keys.BLOCKS, keys.ENDPOINTS)
    found = _of_host(looked, ident)
    if found.peer is None and not found.blocks and not found.remotes:
        raise NotFoundError(f"host {shown} not found")
    if not _take_away(store, looked, ident, [] if force else [Absent(keys.ALIVE + ident)]):
        raise InUseError(f"host {shown} has come back meanwhile: it is not forgotten")
    return found


def _of_host(looked: Listing, ident: str) -> Forgotten:
    entries = looked.entries
    mine = {key: entry for key, entry in entries.items() if keys.owner_of(key, entry.value) == ident}
    rows = keys.rows_of(mine).put
    return Forgotten(
        peers_of(entries).get(ident),
        tuple(keys.of_kind(rows, Block)),
        tuple(keys.of_kind(rows, Remote)),
    )


def _take_away(store: Cluster, looked: Listing, ident: str, conditions: list[Condition]) -> bool:
    """Addresses first, blocks, and last what says that there is such a host. False: a condition does not hold."""
    entries = looked.entries
    mine = [key for key, entry in entries.items() if keys.owner_of(key, entry.value) == ident]
    mine.sort(key=lambda key: not key.startswith(keys.ENDPOINTS))
    for start in range(0, len(mine), _CHUNK):
        chunk = mine[start : start + _CHUNK]
        # Those that have another owner by now stay.
        kept = [Unchanged(key, entries[key].modified) for key in chunk]
        if commit(store, [*conditions, *kept], [Delete(key) for key in chunk]).succeeded:
            continue
        for condition in kept:
            outcome = commit(store, [*conditions, condition], [Delete(condition.key)])
            if any(one.key in outcome.found for one in conditions if isinstance(one, Absent)):
                return False
    last: list[Write] = [
        Delete(keys.HOSTS + ident),
        Delete(keys.DRAINING + ident),
        Delete(keys.ALIVE + ident),
        Delete(keys.AGENTS + ident),
    ]
    peer = peers_of(entries).get(ident)
    if peer is not None:
        last += [Delete(keys.HOST_NAMES + peer.name), Delete(keys.NUMBERS + str(peer.number))]
    own = entries.get(keys.HOSTS + ident)
    same: list[Condition] = [Unchanged(keys.HOSTS + ident, own.modified)] if own else []
    return commit(store, [*conditions, *same], last).succeeded


# ---- looking -----------------------------------------------------------------------------------


def hosts(store: Cluster) -> tuple[HostEntry, ...]:
    """All of them, in the order of their names."""
    with store.within(SECONDS):
        entries = store.list(keys.HOSTS, keys.ALIVE, keys.DRAINING).entries
    found = [
        HostEntry(peer, keys.ALIVE + peer.id in entries, keys.DRAINING + peer.id in entries)
        for peer in peers_of(entries).values()
    ]
    return tuple(sorted(found, key=lambda one: one.peer.name))


def drain(store: Cluster, name: str, on: bool = True) -> Peer:
    """From now on the host begins nothing: no new endpoints of global networks, no new blocks. What runs there goes on.
    Not `on`: it may again. `name`: or id, or the beginning of one. NotFoundError; ConfigError."""
    with store.within(SECONDS):
        peer = find_host(peers_of(store.list(keys.HOSTS).entries), name)
        key = keys.DRAINING + peer.id
        outcome = commit(store, [Present(keys.HOSTS + peer.id)], [Put(key, "") if on else Delete(key)])
    if not outcome.succeeded:
        raise NotFoundError(f"host {name} not found")
    return peer


def is_draining(store: Cluster, me: str) -> bool:
    """This host begins nothing."""
    with store.within(SECONDS):
        return keys.DRAINING + me in store.list(keys.DRAINING + me).entries


def find_host(peers: Mapping[str, Peer], name: str) -> Peer:
    """By name, id, or the beginning of an id. NotFoundError; ConfigError: several begin so."""
    exact = [peer for peer in peers.values() if name in (peer.name, peer.id)]
    found = exact or [peer for ident, peer in peers.items() if name and ident.startswith(name)]
    if len(found) > 1:
        raise ConfigError(f"host {name} is ambiguous ({len(found)} matches found based on ID prefix)")
    if not found:
        raise NotFoundError(f"host {name} not found")
    return found[0]


def peers_of(entries: Mapping[str, Entry]) -> dict[str, Peer]:
    """The hosts of a listing, by id."""
    rows = keys.rows_of({key: entry for key, entry in entries.items() if key.startswith(keys.HOSTS)})
    return {peer.id: peer for peer in keys.of_kind(rows.put, Peer)}
