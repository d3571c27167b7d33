# SPDX-License-Identifier: Apache-2.0
"""Network 1 of the fixtures as an overlay: two other hosts have members of it, each a block, and one of them an address
of the other's block. Frames as they are in tunnels."""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    HOST,
    HOST6,
    NET1,
    NEXT_HOP_MAC,
    OBJECTS,
    UPLINK_MAC,
    Net,
    Programs,
)

TUNNEL_OBJECTS = (*OBJECTS, "to_peer", "from_peer", "from_vxlan")
VNI, PORT = 4097, 4789
OWN_MAC = "02:00:00:00:01:01"
ME, PEER, OTHER_PEER = 1, 2, 3
PEERS = {PEER: IPv4Address("192.0.2.7"), OTHER_PEER: IPv4Address("192.0.2.8")}
PEERS6 = {PEER: IPv6Address("2001:db8::7"), OTHER_PEER: IPv6Address("2001:db8::8")}
STRANGER, STRANGER6 = IPv4Address("192.0.2.66"), IPv6Address("2001:db8::66")
# Members on those hosts, and one that moved: it has an address of the other host's block.
REMOTE, REMOTE6 = IPv4Address("172.17.8.2"), IPv6Address("fd00:1::8:2")
MOVED = IPv4Address("172.17.9.9")
NOBODY = IPv4Address("172.17.77.7")
_BLOCKS = {
    PEER: (IPv4Address("172.17.8.0"), IPv6Address("fd00:1::8:0")),
    OTHER_PEER: (IPv4Address("172.17.9.0"), IPv6Address("fd00:1::9:0")),
}


def peer_mac(number: int) -> str:
    return f"02:00:00:00:01:{number:02x}"


def mask(bits: int) -> IPv6Address:
    return IPv6Network(f"::/{bits}").netmask


def fill(
    programs: Programs,
    net: Net = NET1,
    *,
    outer: int = 4,
    device: int = 0,
    mtu: int = 1500,
    direct: bool = False,
    routed: bool = False,
    wireguard: int = 0,
) -> None:
    """Writes the rows. `outer`: the version of IP of the tunnels; `device`: the index of the tunnels' device;
    `direct`: the peers are on this host's link, and packets between them need no tunnel; `routed`: nor do those that
    routers take there, though the peers are not; `wireguard`: the index of the encrypted tunnels' device, if the
    network is encrypted."""
    maps = programs.maps
    known = abi.PeerFlag.PEER_WIREGUARD if wireguard else abi.PeerFlag.PEER_DIRECT if direct else 0
    flags, transport = int(known), abi.Transport.TRANSPORT_VXLAN
    if wireguard:
        transport = abi.Transport.TRANSPORT_WIREGUARD
    elif direct or routed:
        transport = abi.Transport.TRANSPORT_DIRECT
    for number in (PEER, OTHER_PEER):
        address = (PEERS if outer == 4 else PEERS6)[number]
        maps["peers"][abi.peer_key(number)] = abi.peer(address, flags, mtu, peer_mac(number))
        for each in (PEERS[number], PEERS6[number]):
            maps["vteps"][abi.vtep_key(each)] = abi.vtep(number)
        for first in _BLOCKS[number]:
            maps["remote_blocks"][abi.remote_key(net.number, first)] = abi.remote(number)
    maps["remote_addrs"][abi.remote_key(net.number, MOVED)] = abi.remote(PEER)
    maps["overlays"][abi.overlay_key(net.number)] = abi.overlay(
        vni=VNI,
        transport=transport,
        flags=int(abi.OverlayFlag.OVERLAY_ROUTED) if routed else 0,
        subnet4=IPv4Address("172.17.0.0"),
        mask4=mask(96 + 16),
        block_mask4=mask(96 + 24),
        subnet6=IPv6Address("fd00:1::"),
        mask6=mask(64),
        block_mask6=mask(112),
    )
    for first, bits in ((IPv4Address("172.17.0.0"), 96 + 16), (IPv6Address("fd00:1::"), 64)):
        maps["subnets"][abi.subnet_key(bits, first)] = abi.subnet(net.number)
    maps["vnis"][abi.vni_key(VNI)] = abi.vni(net.number)
    maps["tunnel"][0] = abi.tunnel(HOST, HOST6, device, wireguard, ME, int(direct or routed), PORT, OWN_MAC)
    value = maps["networks"][net.number]
    maps["networks"][net.number] = value._replace(flags=value.flags | abi.NetworkFlag.NETWORK_OVERLAY)


def vxlan(
    frame: bytes, *, vni: int = VNI, flags: int = 8, sport: int = 33333, port: int = PORT
) -> p.Transport:
    """A datagram with that frame; without a checksum, as over IPv4 and IPv6 alike."""
    return p.udp(sport, port, struct.pack("!II", flags << 24, vni << 8) + frame, summed=False)


def marks(mark: int) -> str:
    """The source MAC of a frame in a tunnel that says by which of its host's addresses and ports it has come."""
    return "06:4d:" + mark.to_bytes(4, sys.byteorder).hex(":")


def inner(
    src: p.Address,
    dst: p.Address,
    carried: p.Transport,
    *,
    to: str = OWN_MAC,
    by: str = "",
    ecn: int = 0,
    **header: Any,
) -> bytes:
    """A frame as a peer puts it into a tunnel."""
    if ip_address(dst).version == 4:
        kind, body = p.ETH_IPV4, p.ipv4(src, dst, carried, **header)
    else:
        kind, body = p.ETH_IPV6, p.ipv6(src, dst, carried, **header)
    return p.ethernet(to, by or peer_mac(PEER), kind, marked(body, ecn))


def marked(packet: bytes, ecn: int) -> bytes:
    """A packet with these two bits of congestion notification."""
    if packet[0] >> 4 == 6:
        return packet[:1] + bytes([packet[1] & 0xCF | ecn << 4]) + packet[2:]
    size = (packet[0] & 15) * 4
    header = packet[:1] + bytes([packet[1] & 0xFC | ecn]) + packet[2:10] + bytes(2) + packet[12:size]
    return header[:10] + p.checksum(header).to_bytes(2, "big") + header[12:] + packet[size:]


def arrives(carried: p.Transport, *, src: p.Address = PEERS[PEER], ecn: int = 0, **header: Any) -> bytes:
    """A frame on the uplink to this host's end of tunnels, of the source's family."""
    if ip_address(src).version == 4:
        return p.ethernet(
            UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV4, marked(p.ipv4(src, HOST, carried, **header), ecn)
        )
    return p.ethernet(
        UPLINK_MAC, NEXT_HOP_MAC, p.ETH_IPV6, marked(p.ipv6(src, HOST6, carried, **header), ecn)
    )


def leaves(
    packet: bytes, sport: int, *, outer: int = 4, peer: int = PEER, ecn: int = 0, by: str = OWN_MAC
) -> bytes:
    """What the packet (from its IP header on) is as it leaves for a peer: the outer MACs come later."""
    kind = p.ETH_IPV4 if packet[0] >> 4 == 4 else p.ETH_IPV6
    carried = vxlan(p.ethernet(peer_mac(peer), by, kind, packet), sport=sport)
    if outer == 4:
        body = marked(p.ipv4(HOST, PEERS[peer], carried, ident=0), ecn)
        return p.ethernet(p.NOBODY, p.NOBODY, p.ETH_IPV4, body)
    body = marked(p.ipv6(HOST6, PEERS6[peer], carried), ecn)
    return p.ethernet(p.NOBODY, p.NOBODY, p.ETH_IPV6, body)


def source_port(frame: bytes) -> int:
    """Of the outer datagram of a frame in a tunnel."""
    at = 14 + (20 if p.ethertype(frame) == p.ETH_IPV4 else 40)
    return int.from_bytes(frame[at : at + 2], "big")
