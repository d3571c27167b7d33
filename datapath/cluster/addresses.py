# SPDX-License-Identifier: Apache-2.0
"""Addresses of global networks: what hosts know of each other's, how one is claimed, changed and released.

The key of an address is the lock on it: it is created by one host, and only that host writes it or deletes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from datapath.cluster import keys
from datapath.cluster.allotment import Choice, Known, choose
from datapath.cluster.commit import SECONDS, Tries, commit, forgotten
from datapath.errors import ExistsError, InUseError, NotFoundError, StateError
from datapath.model.networks import Network
from datapath.model.parsing import Address, Prefix
from datapath.model.peers import Block, Drain, Lapse, Peer, Remote
from datapath.model.services import Service
from datapath.store.cluster import (
    Absent,
    Cluster,
    Condition,
    Delete,
    Entry,
    Holds,
    Outcome,
    Present,
    Put,
    UncertainError,
    Unchanged,
    Write,
)

Make = Callable[[IPv4Address | None, IPv6Address | None], Remote]


class Part(NamedTuple):
    """What a host has to know of the networks that it takes part in, as of one moment: `revision`. `remotes` and
    `blocks`: its own too. `ingress`: ids of all networks whose services publish ports. `attended`: keys about
    which hosts live, and which are drained. `broken`: keys that cannot be read, each with why."""

    revision: int
    networks: tuple[Network, ...] = ()
    peers: tuple[Peer, ...] = ()
    blocks: tuple[Block, ...] = ()
    remotes: tuple[Remote, ...] = ()
    services: tuple[Service, ...] = ()
    ingress: frozenset[str] = frozenset()
    attended: frozenset[str] = frozenset()
    broken: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Peer | Lapse | Drain | Block | Remote | Service, ...]:
        """Those that a host keeps copies of."""
        known = {peer.id for peer in self.peers}
        attendance = (one for one in keys.attendance(self.attended) if one.id in known)
        return (*self.peers, *attendance, *self.blocks, *self.remotes, *self.services)


class Claimed(NamedTuple):
    """`remote`: the endpoint as the other hosts see it. `blocks`: what was claimed with it. `tries`: transactions."""

    remote: Remote
    blocks: tuple[Block, ...]
    revision: int
    tries: int = 1


class UnsettledError(UncertainError):
    """The store has gone away during a claim, which may come true yet. `keys`: of addresses, whose deletion is owed
    unless they are used."""

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


def part(store: Cluster, network_ids: Iterable[str]) -> Part:
    """All that a host which takes part in these networks has to know, by one request; networks that are gone are left
    out."""
    wanted = set(network_ids)
    with store.within(SECONDS):
        looked = store.list(*keys.watched(wanted))
    rows = keys.rows_of(looked.entries)
    ingress = frozenset(keys.ingress_network(key, entry.value) for key, entry in looked.entries.items())
    return Part(
        looked.revision,
        tuple(network for network in keys.of_kind(rows.put, Network) if network.id in wanted),
        tuple(keys.of_kind(rows.put, Peer)),
        tuple(keys.of_kind(rows.put, Block)),
        tuple(keys.of_kind(rows.put, Remote)),
        tuple(keys.of_kind(rows.put, Service)),
        ingress - {""},
        frozenset(filter(keys.is_attendance, looked.entries)),
        rows.broken,
    )


# ---- claiming ----------------------------------------------------------------------------------


def claim(
    store: Cluster,
    me: str,
    network: Network,
    known: Known,
    make: Make,
    wanted: Sequence[Address] = (),
    prefer: Collection[Address] = (),
    names: Mapping[str, str] | None = None,
) -> Claimed:
    """Chooses an address of each IP version that the network has, and claims them for an endpoint of the host `me`, by
    one transaction if `known` is up to date; with blocks, if it needs some. `make`: the endpoint, once its addresses
    are known; `wanted`: addresses that the user asks for; `prefer`: that it had before; `names`: of hosts, by id.
    ConfigError: a wanted address cannot be had, or none is left; ExistsError: another endpoint has a wanted address;
    InUseError: the host is drained; NotFoundError: the network is gone; ForgottenError; UnsettledError; StateError."""
    tries = Tries(f"claiming an address of network {network.name}")
    asked: dict[int, Address] = {address.version: address for address in wanted}
    versions = [subnet.prefix.version for subnet in network.subnets]
    remote: Remote | None = None
    with store.within(SECONDS):
        while True:
            chosen = [choose(network, me, known, v, asked.get(v), prefer, names) for v in versions]
            remote = _made(make, chosen)
            blocks = [_block(network, choice.block, me) for choice in chosen if choice.block is not None]
            outcome = _claim(store, me, remote, blocks)
            if outcome.succeeded:
                return Claimed(remote, tuple(blocks), outcome.revision, tries.count + 1)
            known = _learn(network, me, known, remote, blocks, outcome, asked)
            tries.again()
            if tries.count > 1:
                known = fresh(store, network)


def _claim(store: Cluster, me: str, remote: Remote, blocks: Sequence[Block]) -> Outcome:
    mine = keys.endpoint_keys(remote)
    conditions: list[Condition] = [
        Present(keys.HOSTS + me),
        Absent(keys.DRAINING + me),
        Present(keys.NETWORKS + remote.network_id),
        *(Absent(key) for key in mine),
    ]
    writes: list[Write] = [Put(key, keys.remote_value(remote)) for key in mine]
    for block in blocks:
        key = keys.block_key(block.network_id, block.prefix)
        conditions.append(Absent(key))
        writes.append(Put(key, keys.block_value(me)))
    try:
        return commit(store, conditions, writes)
    except UncertainError as error:
        raise UnsettledError(error.message, mine) from error


def _made(make: Make, chosen: Iterable[Choice]) -> Remote:
    addresses = [choice.address for choice in chosen]
    ipv4 = next((a for a in addresses if isinstance(a, IPv4Address)), None)
    ipv6 = next((a for a in addresses if isinstance(a, IPv6Address)), None)
    return make(ipv4, ipv6)


def _block(network: Network, prefix: Prefix, me: str) -> Block:
    return Block(f"{network.id}/{prefix}", network.id, prefix, me)


def _learn(
    network: Network,
    me: str,
    known: Known,
    remote: Remote,
    blocks: Iterable[Block],
    outcome: Outcome,
    asked: Mapping[int, Address],
) -> Known:
    """What is known after a refusal, if it was about addresses."""
    _refuse(network, me, outcome.found)
    for address in keys.addresses_of(remote):
        entry = outcome.found.get(keys.endpoint_key(network.id, address))
        if entry is None:
            continue
        if address in asked.values():
            raise ExistsError(f"Address already in use: {address} is that of {holder_of(entry)}")
        known = known.using(address, entry.value)
    for block in blocks:
        key = keys.block_key(network.id, block.prefix)
        if key in outcome.found:
            known = known.owning(block.prefix, keys.owner_of(key, outcome.found[key].value))
    return known


def _refuse(network: Network, me: str, found: Mapping[str, Entry]) -> None:
    """What else than an address was in the way."""
    if keys.HOSTS + me not in found:
        raise forgotten()
    if keys.DRAINING + me in found:
        raise InUseError(
            f"this host is drained: it begins nothing on network {network.name} (datapathctl cluster drain-host)"
        )
    if keys.NETWORKS + network.id not in found:
        raise NotFoundError(f"network {network.name} not found: it was removed on another host")


def holder_of(entry: Entry) -> str:
    """Who has an address, as a message names him, by its key's value."""
    try:
        row = keys.row_of(keys.ENDPOINTS, entry.value)
    except StateError:
        return "something that cannot be read"
    return (row.name or row.id[:12]) if isinstance(row, Remote) else "a service"


def fresh(store: Cluster, network: Network) -> Known:
    """What the store has of the network."""
    entries = store.list(keys.block_prefix(network.id), keys.endpoint_prefix(network.id)).entries
    rows = keys.rows_of(entries).put
    known = Known.of(keys.of_kind(rows, Block), keys.of_kind(rows, Remote))
    found = (keys.gone_of(key) for key in entries)
    taken = {one.address: "" for one in found if one is not None and one.address is not None}
    return Known(known.blocks, taken | dict(known.used))


def claim_block(store: Cluster, me: str, network: Network, prefix: Prefix) -> bool:
    """Claims a block alone. False: another host has it. Errors as those of `claim` about host and network."""
    key = keys.block_key(network.id, prefix)
    here: list[Condition] = [Present(keys.HOSTS + me), Absent(keys.DRAINING + me)]
    here += [Present(keys.NETWORKS + network.id), Absent(key)]
    with store.within(SECONDS):
        outcome = commit(store, here, [Put(key, keys.block_value(me))])
    if not outcome.succeeded:
        _refuse(network, me, outcome.found)
    return outcome.succeeded


# ---- changing and releasing --------------------------------------------------------------------


def update(store: Cluster, old: Remote, new: Remote) -> None:
    """Writes an endpoint of this host anew: its name, aliases or labels have changed. `old`: as the store has it, to
    what is known; another value of the same host is replaced too. ExistsError: its address belongs to another host."""
    value = keys.remote_value(new)
    with store.within(SECONDS):
        _change(store, old, {key: Put(key, value) for key in keys.endpoint_keys(new)})


def release(store: Cluster, remote: Remote) -> None:
    """Deletes the keys of an endpoint of this host. What is gone already, or of another host, is left alone."""
    with store.within(SECONDS):
        try:
            _change(store, remote, {key: Delete(key) for key in keys.endpoint_keys(remote)})
        except ExistsError:
            return


def _change(store: Cluster, old: Remote, writes: Mapping[str, Put | Delete]) -> None:
    value = keys.remote_value(old)
    conditions: list[Condition] = [Holds(key, value) for key in writes]
    tries = Tries("changing an endpoint")
    left = dict(writes)
    while left:
        outcome = commit(store, conditions, list(left.values()))
        if outcome.succeeded:
            return
        conditions = []
        for key, write in list(left.items()):
            entry = outcome.found.get(key)
            if entry is None and isinstance(write, Delete):
                del left[key]
            elif entry is None:
                conditions.append(Absent(key))
            elif keys.owner_of(key, entry.value) == old.peer and _same(key, entry, old):
                conditions.append(Unchanged(key, entry.modified))
            else:
                raise ExistsError(f"{key.rpartition('/')[2]} has been given to an endpoint of another host")
        tries.again()


def _same(key: str, entry: Entry, old: Remote) -> bool:
    row = keys.row_of(key, entry.value)
    return isinstance(row, Remote) and row.id == old.id


def release_blocks(store: Cluster, me: str, network_id: str, prefixes: Iterable[Prefix]) -> None:
    """Gives up blocks of this host in which it has no endpoint. Those of another host are left alone."""
    value = keys.block_value(me)
    with store.within(SECONDS):
        for prefix in prefixes:
            key = keys.block_key(network_id, prefix)
            commit(store, [Holds(key, value)], [Delete(key)])
