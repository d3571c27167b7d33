# SPDX-License-Identifier: Apache-2.0
"""The rows of maps that overlay networks need beside those of bridge networks, by map: as the rows of the model want
them, and what changes there when these change. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datapath.dataplane import overlay_entries as entries
from datapath.dataplane.layout import Transport
from datapath.drivers.overlay.spec import transport
from datapath.model.host import HostNetwork
from datapath.model.networks import AUTO, DIRECT, VXLAN, WIREGUARD, Network, is_announced
from datapath.model.peers import Block, Peer, Remote
from datapath.model.state import State

Tables = dict[str, dict[Any, Any]]

# In the order in which they are written: who leads to others stands behind these.
MAPS = ("peers", "vteps", "remote_blocks", "remote_addrs", "overlays", "vnis")
_TRANSPORTS: Mapping[str, Transport] = {
    VXLAN: "TRANSPORT_VXLAN",
    AUTO: "TRANSPORT_DIRECT",  # to those hosts that are on one link with this one
    DIRECT: "TRANSPORT_DIRECT",
    WIREGUARD: "TRANSPORT_WIREGUARD",
}


def own_peer(state: State) -> Peer | None:
    """This host, as the cluster knows it; None: it is of none."""
    return state.peers.get(state.installation_id)


def numbers(state: State) -> dict[str, int]:
    """Of the other hosts of the cluster, by id."""
    return {peer.id: peer.number for peer in state.peers.values() if peer.id != state.installation_id}


def on_link(peer: Peer, observed: HostNetwork) -> bool:
    """The host is on one link with this one: nothing routes between them."""
    return any(
        peer.address in one.interface.network
        for one in observed.addresses
        if one.interface.version == peer.address.version
    )


def own_end(state: State, networks: Iterable[Network], ifindex: int, port: int, wireguard: int = 0) -> Tables:
    """The row of `tunnel`; none: this host is of no cluster. `ifindex`: of the device for tunnels; `wireguard`: of that
    of encrypted ones."""
    own = own_peer(state)
    if own is None:
        return {"tunnel": {}}
    direct = any(_TRANSPORTS[transport(network)] == "TRANSPORT_DIRECT" for network in networks)
    number, value = entries.tunnel_entry(own, ifindex, port, wireguard, direct=direct)
    return {"tunnel": {(number,): value}}


def wanted(state: State, networks: Iterable[Network], observed: HostNetwork) -> Tables:
    """All rows, of all other hosts and these networks."""
    found: Tables = {name: {} for name in MAPS}
    for peer in state.peers.values():
        _add_peer(found, peer, state, observed)
    for network in networks:
        _add_network(found, network, state)
        _add_remotes(found, network, state.remotes_of_network(network.id), state)
    return found


def _add_peer(found: Tables, peer: Peer, state: State, observed: HostNetwork) -> None:
    if peer.id == state.installation_id:
        return
    rows = entries.peer_entries(peer, direct=on_link(peer, observed), wireguard=bool(peer.wireguard_key))
    found["peers"][rows.peer[0]] = rows.peer[1]
    found["vteps"][rows.vtep[0]] = rows.vtep[1]


def _add_network(found: Tables, network: Network, state: State) -> None:
    """What is said of the network, and of its blocks."""
    blocks = state.blocks_of_network(network.id)
    way = _TRANSPORTS[transport(network)]
    key, value = entries.overlay_entry(network, blocks, way, routed=is_announced(network))
    found["overlays"][key] = value
    vni, number = entries.vni_entry(network)
    found["vnis"][vni] = number
    found["remote_blocks"] |= entries.block_entries(network, blocks, numbers(state))


def _add_remotes(found: Tables, network: Network, remotes: Iterable[Remote], state: State) -> None:
    blocks = state.blocks_of_network(network.id)
    found["remote_addrs"] |= entries.remote_entries(network, remotes, blocks, numbers(state))


# ---- changes ---------------------------------------------------------------------------------


def concerned(
    state: State,
    networks: Iterable[Network],
    observed: HostNetwork,
    rows: Iterable[Peer | Block | Remote],
) -> Tables:
    """The rows of maps that are about these rows of the model as `state` has them: before or after a change of them."""
    found: Tables = {name: {} for name in MAPS}
    known, rows = {network.id: network for network in networks}, tuple(rows)
    changed = {row.network_id for row in rows if isinstance(row, Block)}
    for row in rows:
        if isinstance(row, Peer) and row.id in state.peers:
            _add_peer(found, state.peers[row.id], state, observed)
        # A row of another host's whose number has changed would be of a host that was forgotten meanwhile.
        elif isinstance(row, Remote) and row.id in state.remotes and row.network_id in known.keys() - changed:
            _add_remotes(found, known[row.network_id], (state.remotes[row.id],), state)
    for network_id in changed & known.keys():  # which address is an exception depends on the blocks
        network = known[network_id]
        _add_network(found, network, state)
        _add_remotes(found, network, state.remotes_of_network(network_id), state)
    return found


def without(tables: Tables, others: Tables) -> Tables:
    """Those of the rows whose keys the others do not have."""
    return {name: {k: v for k, v in rows.items() if k not in others[name]} for name, rows in tables.items()}
