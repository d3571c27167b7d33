# SPDX-License-Identifier: Apache-2.0
"""Which hosts the device of encrypted tunnels is to know, and what has to be told to it for that. Pure.

WireGuard believes a packet from the host whose key has opened it, if its source is among the addresses that the device
has for that key (allowed-ips); by the same addresses it finds the host that a packet goes to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from datapath.dataplane.overlay_entries import aliases, exceptions
from datapath.drivers.overlay.spec import ENCRYPTION_OVERHEAD, encrypted
from datapath.model.networks import Network
from datapath.model.parsing import Prefix
from datapath.model.peers import Peer
from datapath.model.state import State
from datapath.model.wireguard import Setting, WireGuardPeer


def peers(state: State, networks: Iterable[Network]) -> dict[str, WireGuardPeer]:
    """The other hosts that have told a key and have addresses of encrypted networks among these, by their keys; and
    where a service publishes a port, all that have told one, as each asks there in its own name."""
    found: dict[str, set[Prefix]] = {}
    for network in networks:
        if encrypted(network):
            blocks = state.blocks_of_network(network.id)
            for block in blocks:
                found.setdefault(block.peer, set()).add(block.prefix)
            for peer, address in exceptions(state.remotes_of_network(network.id), blocks):
                found.setdefault(peer, set()).add(ip_network(address))
            if any(service.published for service in state.services_of_network(network.id)):
                for ident in state.peers:
                    found.setdefault(ident, set())
    known = ((state.peers.get(ident), prefixes) for ident, prefixes in found.items())
    return {
        peer.wireguard_key: WireGuardPeer(
            frozenset(prefixes) | {ip_network(one) for one in aliases(peer.number)},
            (peer.address, peer.wireguard_port),
        )
        for peer, prefixes in known
        if peer is not None and peer.id != state.installation_id and peer.wireguard_key
    }


def changes(
    there: Mapping[str, WireGuardPeer], wanted: Mapping[str, WireGuardPeer], spare: str
) -> list[Setting]:
    """What makes the device's peers what they are to be, in an order in which no packet of others is lost. `spare`: a
    key that nobody has: WireGuard takes an address from a peer only by giving it to another."""
    found = []
    for key, peer in wanted.items():
        before = there.get(key, WireGuardPeer())
        new = _sorted(peer.prefixes - before.prefixes)
        endpoint = peer.endpoint if peer.endpoint != before.endpoint else None
        if new or endpoint:
            found.append(Setting(key, new, endpoint))
    every = frozenset[Prefix]().union(*(peer.prefixes for peer in wanted.values()))
    left = [peer.prefixes - every for key, peer in there.items() if key in wanted]
    if lost := frozenset[Prefix]().union(*left):
        found += [Setting(spare, _sorted(lost)), Setting(spare, removed=True)]
    return found + [Setting(key, removed=True) for key in there if key not in wanted]


def _sorted(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    return tuple(sorted(prefixes, key=lambda one: (one.version, one.network_address, one.prefixlen)))


def mtu(own: Peer) -> int:
    """Bytes of an IP packet inside of this host's tunnels."""
    return own.mtu - ENCRYPTION_OVERHEAD[own.address.version]
