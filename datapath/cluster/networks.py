# SPDX-License-Identifier: Apache-2.0
"""Networks of scope global: which there are, and how one comes and goes for all hosts at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network

from datapath.cluster import keys
from datapath.cluster.commit import SECONDS, Tries, commit
from datapath.errors import ConfigError, ExistsError, InUseError, NotFoundError, StateError
from datapath.model.networks import Network, Subnet
from datapath.model.parsing import Prefix
from datapath.model.peers import Remote
from datapath.model.pools import Pool, ula_pool
from datapath.model.rows import short
from datapath.model.services import Service
from datapath.plan import ipam
from datapath.store.cluster import (
    Absent,
    Cluster,
    Condition,
    Delete,
    DeleteAll,
    Empty,
    Entry,
    Holds,
    Outcome,
    Present,
    Put,
    Unchanged,
    Write,
)

# VNIs that are chosen here. Docker's own overlays take theirs from 256 and from 4096 on, and other software small ones.
VNIS = range(0x100000, 0x200000)
_HIGHEST = 0xFFFFFF  # 24 bits (RFC 7348)


def default_pools(cluster_id: str) -> tuple[Pool, ...]:
    """Where global networks without --subnet come from: Docker's own range of them, and the cluster's unique local IPv6
    networks (RFC 4193)."""
    return (Pool(ip_network("10.0.0.0/8"), 24), ula_pool(cluster_id))


def create(
    store: Cluster,
    network: Network,
    missing: Sequence[int] = (),
    pools: Sequence[Pool] = (),
    avoid: Iterable[Prefix] = (),
    vni: int = 0,
) -> Network:
    """Creates the network for all hosts; with the VNI, and with a pool for each IP version of `missing` that it has no
    subnet of. `avoid`: prefixes that this host has other routes to; `vni`: the user's choice; 0: any. ExistsError: the
    name, the id or the VNI is taken; ConfigError: its subnet overlaps one of another network, or there is no pool left;
    NotFoundError: there is no such cluster yet."""
    if vni and not 0 < vni <= _HIGHEST:
        raise ConfigError(f"invalid VNI {vni}: expected 1 to {_HIGHEST}")
    tries = Tries(f"creating network {network.name}")
    elsewhere = list(avoid)
    chosen = vni or VNIS[int(network.id[:12], 16) % len(VNIS)]
    with store.within(SECONDS):
        while True:
            looked = store.list(keys.POOLS).entries.get(keys.POOLS)
            taken = keys.read_pools(looked.value) if looked else {}
            _refuse_overlap(store, network, taken)
            made = _with_pools(network, missing, pools, [*taken, *elsewhere])
            made = replace(made, vni=chosen)
            outcome = _create(store, made, taken, looked)
            if outcome.succeeded:
                return made
            chosen = _learn(store, made, outcome, vni)
            tries.again()


def _create(store: Cluster, made: Network, taken: Mapping[Prefix, str], looked: Entry | None) -> Outcome:
    pools = dict(taken) | {subnet.prefix: made.id for subnet in made.subnets}
    named = (
        (keys.NAMES + made.name, made.id),
        (keys.NETWORKS + made.id, keys.network_value(made)),
        (keys.VNIS + str(made.vni), made.id),
    )
    conditions: list[Condition] = [Present(keys.CLUSTER), *(Absent(key) for key, _ in named)]
    conditions.append(Unchanged(keys.POOLS, looked.modified) if looked else Absent(keys.POOLS))
    writes = [*(Put(key, value) for key, value in named), Put(keys.POOLS, keys.pools_value(pools))]
    return commit(store, conditions, writes)


def _learn(store: Cluster, made: Network, outcome: Outcome, vni: int) -> int:
    """The VNI to try next, if the network may be tried again."""
    found = outcome.found
    if keys.CLUSTER not in found:
        raise NotFoundError(f"cluster store {store} has no cluster: this host has to join first")
    if keys.NAMES + made.name in found:
        raise ExistsError(f"network with name {made.name} already exists")
    if keys.NETWORKS + made.id in found:
        raise ExistsError(f"network with id {made.id} already exists")
    holder = found.get(keys.VNIS + str(made.vni))
    if holder is None:
        return made.vni
    if vni:
        raise ExistsError(
            f"VNI {vni} is already used by network {_name(store, holder.value)}: choose another"
        )
    return VNIS[(made.vni + 1 - VNIS.start) % len(VNIS)]


def _with_pools(
    network: Network, missing: Sequence[int], pools: Sequence[Pool], taken: Sequence[Prefix]
) -> Network:
    there = {subnet.prefix.version for subnet in network.subnets}
    found = list(network.subnets)
    for version in missing:
        if version not in there:
            prefix = ipam.choose_pool(pools, [*taken, *(subnet.prefix for subnet in found)], version)
            found.append(ipam.with_gateway(Subnet(prefix)))
    return replace(network, subnets=tuple(sorted(found, key=lambda subnet: subnet.prefix.version)))


def _refuse_overlap(store: Cluster, network: Network, taken: Mapping[Prefix, str]) -> None:
    for subnet in network.subnets:
        other = ipam.overlapping(subnet.prefix, taken)
        if other is not None:
            raise ConfigError(
                "invalid pool request: Pool overlaps with other one on this address space: "
                f"{subnet.prefix} overlaps {other} of network {_name(store, taken[other])}"
            )


def _name(store: Cluster, network_id: str) -> str:
    """For a message: the network's name, or its id if it has gone meanwhile."""
    rows = keys.rows_of(store.list(keys.NETWORKS + network_id).entries).put
    return next((row.name for row in keys.of_kind(rows, Network)), short(network_id))


def remove(store: Cluster, network_id: str) -> None:
    """Removes the network for all hosts, with all blocks. One that is gone is fine. InUseError: it has endpoints,
    which it names with their hosts."""
    tries = Tries(f"removing network {short(network_id)}")
    with store.within(SECONDS):
        while True:
            entries = store.list(keys.NETWORKS + network_id, keys.POOLS).entries
            entry = entries.get(keys.NETWORKS + network_id)
            if entry is None:
                return
            row = keys.row_of(keys.NETWORKS + network_id, entry.value)
            assert isinstance(row, Network)
            outcome = _remove(store, row, entry, entries.get(keys.POOLS))
            if outcome.succeeded:
                return
            services = keys.rows_of(store.list(keys.service_prefix(network_id)).entries).put
            if services:
                shown = ", ".join(
                    f'name:"{one.name}" id:"{short(one.id)}"' for one in keys.of_kind(services, Service)
                )
                raise InUseError(f"error while removing network: network {row.name} has services ({shown})")
            prefix = keys.endpoint_prefix(network_id)
            used = {key: value for key, value in outcome.found.items() if key.startswith(prefix)}
            if used:
                _refuse_active(store, row, used)
            tries.again()


def _remove(store: Cluster, network: Network, entry: Entry, pools: Entry | None) -> Outcome:
    conditions: list[Condition] = [
        Unchanged(keys.NETWORKS + network.id, entry.modified),
        Empty(keys.endpoint_prefix(network.id)),
        Empty(keys.service_prefix(network.id)),
    ]
    writes: list[Write] = [
        Delete(keys.NAMES + network.name),
        Delete(keys.NETWORKS + network.id),
        DeleteAll(keys.block_prefix(network.id)),
    ]
    if network.vni:
        writes.append(Delete(keys.VNIS + str(network.vni)))
    if pools is not None:
        left = {p: owner for p, owner in keys.read_pools(pools.value).items() if owner != network.id}
        conditions.append(Holds(keys.POOLS, pools.value))
        writes.append(Put(keys.POOLS, keys.pools_value(left)))
    return commit(store, conditions, writes)


def _refuse_active(store: Cluster, network: Network, used: Mapping[str, Entry]) -> None:
    from datapath.cluster.members import peers_of

    remotes = list(keys.of_kind(keys.rows_of(used).put, Remote))
    peers = peers_of(store.list(keys.HOSTS).entries)
    raise InUseError(
        f"error while removing network: network {network.name} has active endpoints "
        f"({keys.shown(remotes, peers) or len(used)})"
    )


def networks(store: Cluster) -> tuple[Network, ...]:
    """All of them, in the order of their names."""
    with store.within(SECONDS):
        rows = keys.rows_of(store.list(keys.NETWORKS).entries).put
    return tuple(sorted(keys.of_kind(rows, Network), key=lambda network: network.name))


def find(store: Cluster, name: str) -> Network:
    """By name, id, or the beginning of an id. NotFoundError; ConfigError: several ids begin so."""
    with store.within(SECONDS):
        entries = store.list(keys.NAMES + name, keys.NETWORKS + name).entries
        named = entries.get(keys.NAMES + name)
        if named is not None and keys.NETWORKS + name not in entries:
            entries = store.list(keys.NETWORKS + named.value).entries
    rows = keys.rows_of(entries)
    found = list(keys.of_kind(rows.put, Network))
    if rows.broken and not found:
        raise StateError(rows.broken[0])
    if not name or not found:
        raise NotFoundError(f"network {name} not found")
    if len(found) > 1:
        raise ConfigError(f"network {name} is ambiguous ({len(found)} matches found based on ID prefix)")
    return found[0]
