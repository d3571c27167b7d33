# SPDX-License-Identifier: Apache-2.0
"""What a host says anew when the store may have forgotten it: restored from an older snapshot, emptied, or told to
forget a host that lives.

What runs is right: a host's own endpoints, the networks that they are on, and its blocks are written again by the host
itself, and keys of its own that nothing stands behind any more are deleted. What another host has been given meanwhile
is not touched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from datapath.cluster import keys, owed
from datapath.cluster.commit import SECONDS, Tries, commit
from datapath.cluster.members import Joined, join
from datapath.cluster.owed import Conflict
from datapath.model.networks import Network
from datapath.model.parsing import Prefix
from datapath.model.peers import Block, Peer, Remote
from datapath.store.cluster import Absent, Cluster, Condition, Entry, Present, Put, Unchanged


@dataclass(frozen=True, slots=True)
class Reasserted:
    """`written` and `deleted`: keys; `conflicts`: what belongs to others now."""

    joined: Joined
    written: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


def reassert(
    store: Cluster,
    peer: Peer,
    instance: str,
    cluster_id: str,
    networks: Sequence[Network],
    blocks: Collection[Block],
    remotes: Collection[Remote],
) -> Reasserted:
    """Makes the store agree with what this host has. `peer`, `instance`, `cluster_id`: as `members.join` is told, the
    last the cluster's that it had joined; `networks`: of scope global; `blocks`, `remotes`: this host's own. Networks
    without an endpoint of this host are not created again: they may have been removed. Errors of `join`."""
    joined = join(store, peer, instance, cluster_id, expected=cluster_id)
    me = joined.peer.id
    conflicts: list[Conflict] = []
    written: list[str] = []
    with store.within(SECONDS):
        used = {remote.network_id for remote in remotes}
        for network in networks:
            if network.id in used:
                made, refused = _network(store, network)
                written += [keys.NETWORKS + network.id] if made else []
                conflicts += refused
    with store.within(SECONDS):
        entries = store.list(keys.BLOCKS, *map(keys.endpoint_prefix, sorted(used))).entries
        elsewhere = {_network_of(key) for key in entries if _is_mine(key, entries, me)} - used
        if elsewhere:
            entries = {**entries, **store.list(*map(keys.endpoint_prefix, sorted(elsewhere))).entries}
    wanted = _wanted(me, blocks, remotes)
    stale = [key for key in entries if key not in wanted and _is_mine(key, entries, me)]
    changed = {key: value for key, value in wanted.items() if _value(entries, key) != value}
    sent = owed.send(store, me, {**changed, **dict.fromkeys(stale, "")})
    done = set(sent.done)
    return Reasserted(
        joined,
        (*written, *(key for key in changed if key in done)),
        tuple(key for key in stale if key in done),
        (*conflicts, *sent.conflicts),
    )


def _wanted(me: str, blocks: Collection[Block], remotes: Collection[Remote]) -> dict[str, str]:
    found = {keys.block_key(block.network_id, block.prefix): keys.block_value(me) for block in blocks}
    for remote in remotes:
        found |= owed.claims(remote)
    return found


def _is_mine(key: str, entries: Mapping[str, Entry], me: str) -> bool:
    return keys.owner_of(key, entries[key].value) == me


def _value(entries: Mapping[str, Entry], key: str) -> str | None:
    return entries[key].value if key in entries else None


def _network_of(key: str) -> str:
    return key.split("/")[1]


def _network(store: Cluster, network: Network) -> tuple[bool, list[Conflict]]:
    """Creates it again as it was, unless it is there. Whether it was; and what another network has of it now."""
    tries = Tries(f"creating network {network.name} again")
    named = {
        keys.NETWORKS + network.id: keys.network_value(network),
        keys.NAMES + network.name: network.id,
        keys.VNIS + str(network.vni): network.id,
    }
    while True:
        looked = store.list(*named, keys.POOLS).entries
        if keys.NETWORKS + network.id in looked:
            return False, []
        pools = looked.get(keys.POOLS)
        taken: dict[Prefix, str] = keys.read_pools(pools.value) if pools else {}
        refused = [Conflict(key) for key in named if key in looked]
        if any(taken.get(subnet.prefix, network.id) != network.id for subnet in network.subnets):
            refused.append(Conflict(keys.POOLS))
        if refused:
            return False, refused
        mine = {subnet.prefix: network.id for subnet in network.subnets}
        conditions: list[Condition] = [Present(keys.CLUSTER), *(Absent(key) for key in named)]
        conditions.append(Unchanged(keys.POOLS, pools.modified) if pools else Absent(keys.POOLS))
        writes = [*(Put(key, value) for key, value in named.items())]
        writes.append(Put(keys.POOLS, keys.pools_value(taken | mine)))
        if commit(store, conditions, writes).succeeded:
            return True, []
        tries.again()
