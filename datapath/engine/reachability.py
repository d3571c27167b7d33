# SPDX-License-Identifier: Apache-2.0
"""Whether packets to the other hosts of the cluster arrive: `doctor` asks each of those that have a part in networks of
this host, through its tunnel and without. No process is asked, and nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from datapath.config.settings import Settings
from datapath.drivers.overlay.rows import on_link, own_peer
from datapath.drivers.overlay.spec import ENCRYPTION_OVERHEAD, OVERLAY, PORT, encrypted, transport
from datapath.errors import DatapathError
from datapath.kernel import echoes, observe
from datapath.kernel.echoes import Outcome, Way
from datapath.model.checks import (
    DETACHED,
    DOWN,
    ENCRYPTION,
    GATEWAY,
    MISSING,
    OFFLOAD,
    PEER,
    PEER_MTU,
    PROGRAMS,
    TUNNEL,
    UNDERLAY,
    UNREADABLE,
    WRONG,
)
from datapath.model.drivers import spec_of
from datapath.model.findings import Finding
from datapath.model.host import HostNetwork
from datapath.model.networks import AUTO, DIRECT, Network, Subnet
from datapath.model.parsing import Address
from datapath.model.peers import Block, Peer
from datapath.model.rows import Phase
from datapath.model.state import State
from datapath.plan import ipam
from datapath.store.sqlite import SQLiteStore

# Of these nothing comes back either, and they are this host's own.
_CAUSES = {PROGRAMS, UNREADABLE, GATEWAY, TUNNEL, ENCRYPTION, UNDERLAY, DETACHED, DOWN, MISSING, WRONG}


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked, and how."""

    peer: Peer
    way: Way


def examine(settings: Settings, found: list[Finding]) -> list[Finding]:
    """What is wrong on the way to other hosts, if that cannot be told from what was `found` on this one."""
    if any(finding.check in _CAUSES for finding in found):
        return []
    try:
        with SQLiteStore(settings.state_dir, create=False, reading=True) as store:
            state, port = store.load(), int(store.note(PORT) or 0)
        if len(state.peers) < 2:
            return []
        asked = list(ways(state, observe.host(), port))
        outcomes = echoes.ask([one.way for one in asked])
    except (DatapathError, FileNotFoundError):
        return []  # it has been told already, or nobody can ask
    return [*_lost(asked, outcomes), *_unsound(asked, outcomes)]


# ---- who is asked ------------------------------------------------------------------------------


def ways(state: State, observed: HostNetwork, port: int) -> Iterator[Asked]:
    """One to each host that shares a network with this one, and another if it shares an encrypted one: an address of
    its blocks is asked for that no endpoint has, as its packet program answers then. Pure."""
    own = own_peer(state)
    if own is None or not port:
        return
    devices = {name: index for index, name in observed.names.items()}
    networks = [
        network
        for network in state.networks.values()
        if spec_of(network) is OVERLAY and network.phase == Phase.READY and network.device in devices
    ]
    for peer in state.peers.values():
        if peer.id == own.id or peer.address.version != own.address.version:
            continue
        for secret in (False, True):
            shared = [n for n in networks if encrypted(n) == secret and _has_block(state, n, peer)]
            place = next(_places(peer, shared, state), None)
            # To WireGuard this host is nobody as long as it has no addresses.
            if place is None or (secret and not any(_has_block(state, n, own) for n in shared)):
                continue
            network, subnet, target = place
            assert subnet.gateway is not None
            yield Asked(
                peer,
                Way(
                    near=own.address,
                    far=peer.address,
                    port=peer.wireguard_port if secret else port,
                    vni=network.vni,
                    macs=(peer.mac, own.mac),
                    source=subnet.gateway,
                    target=target,
                    device=devices[network.device],
                    most=min(own.mtu, peer.mtu),
                    bare=any(transport(n) in (AUTO, DIRECT) for n in shared) and on_link(peer, observed),
                    encryption=ENCRYPTION_OVERHEAD[own.address.version] if secret else 0,
                ),
            )


def _has_block(state: State, network: Network, peer: Peer) -> bool:
    return any(block.peer == peer.id for block in state.blocks_of_network(network.id))


def _places(peer: Peer, networks: list[Network], state: State) -> Iterator[tuple[Network, Subnet, Address]]:
    """Addresses of the host's blocks; first of the tunnel's version of IP, which needs no more of its kernel."""
    found = [
        (network, subnet, block)
        for network in networks
        for block in state.blocks_of_network(network.id)
        for subnet in network.subnets
        if block.peer == peer.id
        and subnet.gateway is not None
        and block.prefix.version == subnet.prefix.version
        if int(block.prefix.network_address) in range(*_bounds(subnet))
    ]
    found.sort(key=lambda one: one[2].prefix.version != peer.address.version)
    for network, subnet, block in found:
        target = _free(network, subnet, block, state)
        if target is not None:
            yield network, subnet, target


def _bounds(subnet: Subnet) -> tuple[int, int]:
    return int(subnet.prefix.network_address), int(subnet.prefix.broadcast_address) + 1


def _free(network: Network, subnet: Subnet, block: Block, state: State) -> Address | None:
    """The highest address of the block that no endpoint has; None: all are used."""
    taken: set[Address] = set(ipam.unavailable(subnet))
    for remote in state.remotes_of_network(network.id):
        taken |= {address for address in (remote.ipv4, remote.ipv6) if address is not None}
    for endpoint in state.endpoints_of_network(network.id):
        taken |= {one.ip for one in (endpoint.ipv4, endpoint.ipv6) if one is not None}
    make: type[IPv4Address] | type[IPv6Address] = IPv4Address if block.prefix.version == 4 else IPv6Address
    first, last = int(block.prefix.network_address), int(block.prefix.broadcast_address)
    numbers = range(last, max(first, last - len(taken) - 1) - 1, -1)
    return next((address for number in numbers if (address := make(number)) not in taken), None)


# ---- what came back ------------------------------------------------------------------------------


def _lost(asked: list[Asked], outcomes: list[Outcome]) -> Iterator[Finding]:
    for one, outcome in zip(asked, outcomes, strict=True):
        subject, port = f"host {one.peer.name} ({one.peer.address})", one.way.port
        if not outcome.tunnel and not outcome.host:
            yield Finding(
                PEER, subject, f"nothing comes back from it, by its tunnel (UDP port {port}) or without"
            )
        elif not outcome.tunnel:
            yield Finding(
                PEER, subject, f"it is there, and nothing comes back by its tunnel (UDP port {port})"
            )
        elif outcome.size < outcome.tried:
            yield Finding(PEER_MTU, subject, _sizes("by its tunnel", outcome.size, outcome.tried))
        elif outcome.host and outcome.bare < outcome.bare_tried:
            yield Finding(PEER_MTU, subject, _sizes("without a tunnel", outcome.bare, outcome.bare_tried))


def _sizes(way: str, size: int, tried: int) -> str:
    return f"packets of {size} bytes come back from it {way}, those of {tried} are lost"


def _unsound(asked: list[Asked], outcomes: list[Outcome]) -> Iterator[Finding]:
    """Checksums are the device's, whoever is asked."""
    wrong = [one for one, outcome in zip(asked, outcomes, strict=True) if outcome.sound is False]
    if wrong:
        names = ", ".join(one.peer.name for one in wrong[:3]) + (" …" if len(wrong) > 3 else "")
        device = f"the device of {wrong[0].way.near}"
        detail = f"a checksum in a tunnel that was left to {device} came back wrong from {names}"
        yield Finding(OFFLOAD, "the way to other hosts", detail)
