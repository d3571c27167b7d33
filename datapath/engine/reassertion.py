# SPDX-License-Identifier: Apache-2.0
"""What is this host's, said to the cluster's store once more: that may have been restored from an older snapshot, or
told to forget a host that lives."""

from __future__ import annotations

from datapath.engine import joining, telling
from datapath.engine.transaction import Transaction
from datapath.model.rows import Phase
from datapath.plan.backends import is_there
from datapath.store.cluster import Cluster


def reassert(tx: Transaction, store: Cluster) -> list[str]:
    """Makes the store agree with what this host has, unless it is another host's by now. What was done, in lines.
    Errors as those of `joining.joined`."""
    from datapath.cluster.reassert import reassert as verb
    from datapath.cluster.services import restore

    own = joining.me(tx)
    if own is None:
        return []
    networks = [network for network in tx.state.networks.values() if network.spans]
    ids = {network.id for network in networks}
    members = [
        endpoint
        for endpoint in tx.state.endpoints.values()
        if endpoint.network_id in ids and endpoint.phase != Phase.REMOVING
    ]
    found = verb(
        store,
        own,
        joining.instance(),
        joining.cluster_id(tx),
        networks,
        [block for block in tx.state.blocks.values() if block.peer == own.id],
        [telling.remote_of(endpoint, tx.state) for endpoint in members],
    )
    tx.commit(*([found.joined.peer] if found.joined.peer != own else []))
    services = [one for one in tx.state.services.values() if one.network_id in ids and is_there(one)]
    again = restore(store, services)
    done = [
        f"the store had forgotten {len(found.written)} keys of this host: written again"
        if found.written
        else "",
        f"{len(found.deleted)} keys of this host in the store were of nothing that there is"
        if found.deleted
        else "",
        f"the store had forgotten {len(again)} services: written again" if again else "",
        *(f"{conflict.key.split('/', 2)[-1]} is another host's by now" for conflict in found.conflicts),
    ]
    return [line for line in done if line]
