# SPDX-License-Identifier: Apache-2.0
"""Who talks to whom, as the packet programs count it: what users called the endpoints, and when totals go."""

from __future__ import annotations

import errno

from datapath.dataplane.layout import COUNTED_MAPS, MAPS
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
    if has_flows(network):
        for name in COUNTED_MAPS:
            forget_rows(dataplane, name, network.number)
        _forget_parties(dataplane)


def forget_rows(dataplane: Dataplane, name: str, number: int) -> None:
    """Deletes the rows of one map of COUNTED_MAPS that are of the network with this number."""
    if not dataplane.has(name):
        return
    rows, key = getattr(dataplane, name), abi.layout(MAPS[name][0] or "")
    gone = [
        one
        for keys, _, _ in rows.batches()
        for one, found in zip(cut(keys, key.size), key.column(keys, "network"), strict=True)
        if found == number
    ]
    rows.delete_raw(gone)


def _forget_parties(dataplane: Dataplane) -> None:
    """Names of those who are in no line any more."""
    if not dataplane.has("parties"):
        return
    named = {party.endpoint for party in dataplane.parties}
    ids, row = abi.layout("edge_id"), abi.layout("flow")
    for keys, _, _ in dataplane.edges.batches() if named else ():
        named.difference_update(ids.column(keys, "from"), ids.column(keys, "to"))
    for _, values, _ in dataplane.flows.batches() if named else ():
        named.difference_update(row.column(values, "a", "from"), row.column(values, "a", "to"))
    dataplane.parties.delete_many([abi.party_key(number) for number in named])
