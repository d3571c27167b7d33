# SPDX-License-Identifier: Apache-2.0
"""The rows of maps that say where the members of overlay networks are that other hosts have, as tuples of `structs`,
from the rows of the model. Pure.

A packet for such a member finds its host by the member's address (`remote_addrs`), else by the block that has it
(`remote_blocks`); what arrives in a tunnel has to come from the host that its source is found at. Rows of a host's own
blocks and endpoints are never made: those are in `endpoints`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from datapath.dataplane.layout import OverlayFlag, PeerFlag, Transport
from datapath.dataplane.structs import (
    OverlayKey,
    OverlayValue,
    PeerKey,
    PeerValue,
    RemoteKey,
    RemoteValue,
    TunnelValue,
    VniKey,
    VniValue,
    VtepKey,
    VtepValue,
)
from datapath.model.networks import Network, Subnet
from datapath.model.parsing import Address, Prefix
from datapath.model.peers import Block, Peer, Remote


class PeerEntries(NamedTuple):
    """The rows of one other host in `peers` and `vteps`."""

    peer: tuple[PeerKey, PeerValue]
    vtep: tuple[VtepKey, VtepValue]


def overlay_entry(
    network: Network,
    blocks: Iterable[Block],
    transport: Transport,
    *,
    checksum: bool = False,
    routed: bool = False,
) -> tuple[OverlayKey, OverlayValue]:
    """The network's row in `overlays`. `blocks`: all that the network has, of whatever host; `checksum`: outer UDP
    datagrams have one; `routed`: routers know the way to its members. To be written after the network's row in
    `networks`, or again when the longest prefix of its blocks changes, together with all of `block_entries`."""
    known = tuple(blocks)
    wanted: dict[OverlayFlag, bool] = {"OVERLAY_CHECKSUM": checksum, "OVERLAY_ROUTED": routed}
    flags = frozenset(name for name, has in wanted.items() if has)
    subnet4, mask4 = _subnet(network.subnet4)
    subnet6, mask6 = _subnet(network.subnet6)
    return OverlayKey(network.number), OverlayValue(
        vni=network.vni,
        transport=transport,
        flags=flags,
        subnet4=subnet4,
        mask4=mask4,
        block_mask4=_mask(known, 4),
        subnet6=subnet6,
        mask6=mask6,
        block_mask6=_mask(known, 6),
    )


def vni_entry(network: Network) -> tuple[VniKey, VniValue]:
    """The network's row in `vnis`: from now on its packets are taken from tunnels."""
    return VniKey(network.vni), VniValue(network.number)


def peer_entries(peer: Peer, *, direct: bool = False, wireguard: bool = False) -> PeerEntries:
    """The rows of another host. `direct`: it is on one link with this one; `wireguard`: it is a peer of this host's
    WireGuard device."""
    wanted: dict[PeerFlag, bool] = {"PEER_DIRECT": direct, "PEER_WIREGUARD": wireguard}
    flags = frozenset(name for name, has in wanted.items() if has)
    return PeerEntries(
        peer=(PeerKey(peer.number), PeerValue(peer.address, flags, peer.mtu, peer.mac)),
        vtep=(VtepKey(peer.address), VtepValue(peer.number)),
    )


def tunnel_entry(
    own: Peer, ifindex: int, port: int, wireguard: int = 0, *, direct: bool = False
) -> tuple[int, TunnelValue]:
    """The row of `tunnel`: this host's own end. `ifindex`: of the device `vxlan external`, 0: there is none;
    `wireguard`: of the WireGuard device; `port`: of UDP, the cluster's; `direct`: one of the networks is of
    TRANSPORT_DIRECT, whose packets are looked for among all that arrives."""
    return 0, TunnelValue(
        addr4=own.address if isinstance(own.address, IPv4Address) else None,
        addr6=own.address if isinstance(own.address, IPv6Address) else None,
        ifindex=ifindex,
        wireguard=wireguard,
        peer=own.number,
        flags=frozenset({"TUNNEL_DIRECT"}) if direct else frozenset(),
        port=port,
        mac=own.mac,
    )


def aliases(number: int) -> tuple[IPv4Address, IPv6Address]:
    """What the host with this number is called in encrypted tunnels, where it asks in the gateway's name (see
    bpf/lib/overlay.h)."""
    return IPv4Address(number), IPv6Address(0x0100 << 112 | number)


def block_entries(
    network: Network, blocks: Iterable[Block], numbers: Mapping[str, int]
) -> dict[RemoteKey, RemoteValue]:
    """`remote_blocks` of the network. `blocks`: all that it has; `numbers`: of the other hosts, by id: blocks of
    others than these have no rows. A block that is larger than the smallest one of its family has several."""
    known = tuple(blocks)
    longest = {version: _longest(known, version) for version in (4, 6)}
    return {
        RemoteKey(network.number, _no_zero(part.network_address)): RemoteValue(numbers[block.peer])
        for block in known
        if block.peer in numbers
        for part in block.prefix.subnets(new_prefix=longest[block.prefix.version])
    }


def remote_entries(
    network: Network, remotes: Iterable[Remote], blocks: Iterable[Block], numbers: Mapping[str, int]
) -> dict[RemoteKey, RemoteValue]:
    """`remote_addrs` of the network: addresses of these endpoints that are in no block of their own host's."""
    return {
        RemoteKey(network.number, address): RemoteValue(numbers[peer])
        for peer, address in exceptions(remotes, blocks)
        if peer in numbers
    }


def exceptions(remotes: Iterable[Remote], blocks: Iterable[Block]) -> Iterator[tuple[str, Address]]:
    """Addresses of these endpoints that are in no block of their own host's, each behind that host's id."""
    known = tuple(blocks)
    for remote in remotes:
        for address in (remote.ipv4, remote.ipv6):
            if address is not None and not _has(known, remote.peer, address):
                yield remote.peer, address


def _has(blocks: Iterable[Block], peer: str, address: Address) -> bool:
    return any(
        block.peer == peer and block.prefix.version == address.version and address in block.prefix
        for block in blocks
    )


def _subnet(subnet: Subnet | None) -> tuple[Address | None, IPv6Address | None]:
    if subnet is None:
        return None, None
    return _no_zero(subnet.prefix.network_address), _ones(_bits(subnet.prefix))


def _mask(blocks: Iterable[Block], version: int) -> IPv6Address | None:
    length = _longest(blocks, version)
    return _ones(length + (96 if version == 4 else 0)) if length else None


def _longest(blocks: Iterable[Block], version: int) -> int:
    """The longest prefix of the family's blocks, bits; 0: it has none."""
    lengths = (block.prefix.prefixlen for block in blocks if block.prefix.version == version)
    return max(lengths, default=0)


def _bits(prefix: Prefix) -> int:
    """The prefix's length as IPv6."""
    return prefix.prefixlen + (96 if prefix.version == 4 else 0)


def _ones(bits: int) -> IPv6Address | None:
    return IPv6Address((1 << 128) - (1 << (128 - bits))) if bits else None


def _no_zero(address: Address) -> Address | None:
    """As it is read back: the zero address of IPv6 is none."""
    return address if address.version == 4 or int(address) else None
