# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom, as the packet programs count it: what users called the endpoints, and when totals go."""

from __future__ import annotations

import errno

from datapath.dataplane.programs import Dataplane
from datapath.errors import KernelError
from datapath.kernel import abi
from datapath.kernel.bpf_maps import cut
from datapath.model.endpoints import Endpoint
from datapath.model.networks import Network, has_flows


def remember(dataplane: Dataplane, network: Network, endpoint: Endpoint, name: str) -> None:
    """Writes down what an endpoint that is taken away was called: lines about it keep that name. Of a full table those
    that are gone for longer are forgotten."""
    if not has_flows(network) or not dataplane.has("parties"):
        return
    most = abi.layout("party").width("name")
    key, row = abi.party_key(endpoint.number), abi.party(name.encode()[:most])
    try:
        dataplane.parties[key] = row
    except KernelError as error:
        if error.errno != errno.E2BIG:
            raise
        older = sorted(dataplane.parties)
        dataplane.parties.delete_many(older[: len(older) // 2])
        dataplane.parties[key] = row


def forget(dataplane: Dataplane, network: Network) -> None:
    """Of a network that is taken away: another one may get its number. The programs do not know it any more, so that
    none of its rows becomes a total now."""
    if not has_flows(network) or not dataplane.has("edges"):
        return
    for rows, key in ((dataplane.flows, abi.layout("flow_id")), (dataplane.edges, abi.layout("edge_id"))):
        number = key.select("network")
        gone = [
            one
            for keys, _, _ in rows.batches()
            for one, (found,) in zip(cut(keys, key.size), number.iter_unpack(keys), strict=True)
            if found == network.number
        ]
        rows.delete_raw(gone)
