# SPDX-License-Identifier: Apache-2.0
"""What routing daemons are told of: a route for each block of addresses that this host has in a network whose way
routers are to know. The routes lead where the network's own does, to its gateway device, so that the host reaches its
members as before; they are known by their protocol, and go with the device."""

from __future__ import annotations

from collections.abc import Iterable

from datapath.drivers.overlay.rows import on_link
from datapath.drivers.overlay.spec import transport
from datapath.kernel import ways
from datapath.model.host import HostNetwork
from datapath.model.networks import AUTO, DIRECT, Network, is_announced
from datapath.model.parsing import Prefix
from datapath.model.peers import Peer
from datapath.model.state import State

PROTOCOL = 200  # RTPROT_*: none of linux/rtnetlink.h, and none that a routing daemon takes for its own


def blocks(state: State, network: Network) -> frozenset[Prefix]:
    """Of this host, as far as routers are to know the way to them."""
    if not is_announced(network):
        return frozenset()
    mine = (one for one in state.blocks_of_network(network.id) if one.peer == state.installation_id)
    return frozenset(block.prefix for block in mine)


def follow(state: State, networks: Iterable[Network]) -> None:
    """Makes the routes of these networks, which are built, those of the blocks."""
    for network in networks:
        if is_announced(network):
            wanted, there = blocks(state, network), ways.prefixes_of(network.device, PROTOCOL)
            if wanted != there:
                ways.set_prefixes(network.device, PROTOCOL, wanted - there, there - wanted)


def seen(network: Network, observed: HostNetwork) -> frozenset[Prefix]:
    """The routes that are there."""
    return frozenset(
        route.prefix
        for route in observed.routes
        if route.protocol == PROTOCOL and observed.names.get(route.device) == network.device
    )


def transports(state: State, network: Network, observed: HostNetwork) -> dict[str, str]:
    """How packets go to the other hosts of a network that needs no tunnel to some of them, by id: "direct" to those on
    one link with this one, "routed" to those whose blocks routers have told the way to, else "vxlan"."""
    if transport(network) not in (DIRECT, AUTO):
        return {}
    mine = state.blocks_of_network(network.id)

    def way(peer: Peer) -> str:
        if on_link(peer, observed):
            return DIRECT
        theirs = [block.prefix for block in mine if block.peer == peer.id]
        known = is_announced(network) and all(
            any(one.version == prefix.version and prefix.subnet_of(one) for one in observed.learned)  # type: ignore[arg-type]
            for prefix in theirs
        )
        return "routed" if known else "vxlan"

    others = {block.peer for block in mine} - {state.installation_id}
    return {ident: way(state.peers[ident]) for ident in others if ident in state.peers}
