# SPDX-License-Identifier: Apache-2.0
"""What a container may send, and what becomes of it: every row is one whole packet."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from datapath.errors import KernelError
from datapath.kernel import abi, features, libbpf
from tests.bpf import packets as p
from tests.bpf.conftest import MakePrograms
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    ANYWHERE,
    ANYWHERE6,
    B1,
    B2,
    BLACKHOLE,
    C1,
    C2,
    D1,
    HOST,
    HOST6,
    NAT_FIRST,
    NAT_LAST,
    NET1,
    NET2,
    NET3,
    NET4,
    NEXT_HOP,
    OTHER,
    OTHER6,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UNREACHABLE,
    UNREACHABLE6,
    Member,
    Programs,
    Reason,
    Row,
    Topology,
    dropped,
    redirected,
)

STRANGER = "02:42:de:ad:be:ef"
ALL_NODES_MAC, ALL_NODES = "33:33:00:00:00:01", "ff02::1"
SPORT = 20100  # within the range for masquerading, so that it is kept
QUERY = p.udp(SPORT, 53)

# ---- whose is it -------------------------------------------------------------------------------------


def v4(src_mac: str, src: p.Address, dst: p.Address, carried: p.Transport, *, to: str = A2.mac) -> bytes:
    return p.ethernet(to, src_mac, p.ETH_IPV4, p.ipv4(src, dst, carried))


def v6(
    src_mac: str, src: p.Address, dst: p.Address, carried: p.Transport, *, to: str = A2.mac, hops: int = 64
) -> bytes:
    return p.ethernet(to, src_mac, p.ETH_IPV6, p.ipv6(src, dst, carried, hops=hops))


PING = p.echo(p.ECHO, 77)
PING6 = p.icmp6(128, word=77 << 16 | 1, payload=b"abcdefgh")

SPOOFING = [
    dropped(
        "another member's MAC",
        A1,
        v4(A2.mac, A1.ip, A3.ip, PING, to=A3.mac),
        Reason.DROP_SPOOFED_MAC,
    ),
    dropped("a made-up MAC", A1, v4(STRANGER, A1.ip, A2.ip, PING), Reason.DROP_SPOOFED_MAC),
    dropped("the gateway's MAC", A1, v4(NET1.mac, A1.ip, A2.ip, PING), Reason.DROP_SPOOFED_MAC),
    dropped("the zero MAC", A1, v4(p.NOBODY, A1.ip, A2.ip, PING), Reason.DROP_SPOOFED_MAC),
    dropped("a group MAC as source", A1, v4(p.BROADCAST, A1.ip, A2.ip, PING), Reason.DROP_SPOOFED_MAC),
    dropped(
        "its own MAC with the group bit",
        A1,
        v4("03" + A1.mac[2:], A1.ip, A2.ip, PING),
        Reason.DROP_SPOOFED_MAC,
    ),
    dropped("another member's IPv4", A1, v4(A1.mac, A3.ip, A2.ip, PING), Reason.DROP_SPOOFED_ADDR),
    dropped("the gateway's IPv4", A1, v4(A1.mac, NET1.gateway, A2.ip, PING), Reason.DROP_SPOOFED_ADDR),
    dropped("an outside IPv4", A1, v4(A1.mac, OUTSIDE, A2.ip, PING), Reason.DROP_SPOOFED_ADDR),
    dropped("the host's IPv4", A1, v4(A1.mac, HOST, OUTSIDE, PING, to=NET1.mac), Reason.DROP_SPOOFED_ADDR),
    dropped("loopback as source", A1, v4(A1.mac, "127.0.0.1", A2.ip, PING), Reason.DROP_SPOOFED_ADDR),
    dropped(
        "0.0.0.0 as source, to one member",
        A1,
        v4(A1.mac, "0.0.0.0", "255.255.255.255", p.udp(68, 67), to=A2.mac),
        Reason.DROP_SPOOFED_ADDR,
    ),
    dropped("broadcast as source", A1, v4(A1.mac, NET1.broadcast, A2.ip, PING), Reason.DROP_SPOOFED_ADDR),
    dropped(
        "a foreign IPv4 in a broadcast",
        A1,
        v4(A1.mac, A2.ip, NET1.broadcast, PING, to=p.BROADCAST),
        Reason.DROP_SPOOFED_ADDR,
    ),
    dropped("another member's IPv6", A1, v6(A1.mac, A3.ip6, A2.ip6, PING6), Reason.DROP_SPOOFED_ADDR),
    dropped("the gateway's IPv6", A1, v6(A1.mac, NET1.gateway6, A2.ip6, PING6), Reason.DROP_SPOOFED_ADDR),
    dropped(
        "a link-local address that is not its own",
        A1,
        v6(A1.mac, A3.linklocal, A2.linklocal, PING6),
        Reason.DROP_SPOOFED_ADDR,
    ),
    dropped(
        "its own IPv4, mapped, as IPv6 source",
        A1,
        v6(A1.mac, f"::ffff:{A1.ip}", A2.ip6, PING6),
        Reason.DROP_BAD_ADDR,
    ),
    dropped(
        "a member's IPv4, mapped, as IPv6 destination",
        A1,
        v6(A1.mac, A1.ip6, f"::ffff:{A2.ip}", PING6),
        Reason.DROP_BAD_ADDR,
    ),
    dropped("IPv6 multicast as source", A1, v6(A1.mac, ALL_NODES, A2.ip6, PING6), Reason.DROP_SPOOFED_ADDR),
    dropped("a ping from :: to a member", A1, v6(A1.mac, "::", A2.ip6, PING6), Reason.DROP_SPOOFED_ADDR),
    dropped(
        "UDP from :: to all nodes",
        A1,
        v6(A1.mac, "::", ALL_NODES, p.udp(1, 2), to=ALL_NODES_MAC),
        Reason.DROP_SPOOFED_ADDR,
    ),
    dropped("IPv6 where there is none", C1, C1.sends(NET3.gateway6, PING6), Reason.DROP_NO_IPV6),
    dropped(
        "IPv6 multicast where there is no IPv6",
        C1,
        C1.sends(ALL_NODES, PING6, to=ALL_NODES_MAC),
        Reason.DROP_NO_IPV6,
    ),
    dropped(
        "neighbour solicitation where there is no IPv6",
        C1,
        C1.sends(
            p.solicited_node(C2.ip6)[1],
            p.solicitation(C2.ip6, C1.mac),
            to=p.solicited_node(C2.ip6)[0],
            hops=255,
        ),
        Reason.DROP_NO_IPV6,
    ),
]


# ---- ARP -----------------------------------------------------------------------------------------------


def asks(
    target: p.Address,
    *,
    sender: p.Address = A1.ip,
    inside: str = A1.mac,
    outside: str = A1.mac,
    **lies: object,
) -> bytes:
    body = p.arp(p.REQUEST, inside, sender, p.NOBODY, target, **lies)  # type: ignore[arg-type]
    return p.ethernet(p.BROADCAST, outside, p.ETH_ARP, body)


def answer(mac: str, target: p.Address, to: p.Address = A1.ip) -> bytes:
    return p.ethernet(A1.mac, mac, p.ETH_ARP, p.arp(p.REPLY, mac, target, A1.mac, to))


def says(
    operation: int, sender: p.Address, target: p.Address, *, mac: str = A1.mac, to: str = p.BROADCAST
) -> bytes:
    return p.ethernet(to, A1.mac, p.ETH_ARP, p.arp(operation, mac, sender, to, target))


ARP = [
    redirected("who has a member", A1, asks(A2.ip), Reason.ANSWERED, answer(A2.mac, A2.ip)),
    redirected(
        "who has a member, padded to 60 bytes",
        A1,
        asks(A2.ip) + bytes(18),
        Reason.ANSWERED,
        answer(A2.mac, A2.ip) + bytes(18),
    ),
    redirected(
        "who has the gateway", A1, asks(NET1.gateway), Reason.ANSWERED, answer(NET1.mac, NET1.gateway)
    ),
    redirected(
        "who has a member, asked of the one who was it",
        A1,
        p.ethernet(A2.mac, A1.mac, p.ETH_ARP, p.arp(p.REQUEST, A1.mac, A1.ip, A2.mac, A2.ip)),
        Reason.ANSWERED,
        answer(A2.mac, A2.ip),
    ),
    redirected(
        "a probe from 0.0.0.0 for a taken address",
        A1,
        asks(A2.ip, sender="0.0.0.0"),
        Reason.ANSWERED,
        answer(A2.mac, A2.ip, to="0.0.0.0"),
    ),
    dropped("a probe from 0.0.0.0 for its own address", A1, asks(A1.ip, sender="0.0.0.0"), Reason.ABSORBED),
    dropped("who has its own address", A1, asks(A1.ip), Reason.ABSORBED),
    dropped("who has an address that nobody has", A1, asks("172.17.9.9"), Reason.DROP_UNKNOWN_ARP),
    dropped("who has 0.0.0.0", A1, asks("0.0.0.0"), Reason.DROP_UNKNOWN_ARP),
    dropped("who has a member of another network", A1, asks(B1.ip), Reason.DROP_UNKNOWN_ARP),
    dropped("who has another network's gateway", A1, asks(NET2.gateway), Reason.DROP_UNKNOWN_ARP),
    dropped("who has the host's outside address", A1, asks(HOST), Reason.DROP_UNKNOWN_ARP),
    dropped("gratuitous ARP, a request", A1, says(p.REQUEST, A1.ip, A1.ip), Reason.ABSORBED),
    dropped("gratuitous ARP, a reply", A1, says(p.REPLY, A1.ip, A1.ip), Reason.ABSORBED),
    dropped("an honest reply that nobody needs", A1, says(p.REPLY, A1.ip, A2.ip, to=A2.mac), Reason.ABSORBED),
    dropped("an operation that does not exist", A1, says(257, A1.ip, A2.ip), Reason.ABSORBED),
    dropped("RARP's operation", A1, says(3, A1.ip, A2.ip), Reason.ABSORBED),
    dropped(
        "gratuitous ARP for a member's address", A1, says(p.REQUEST, A2.ip, A2.ip), Reason.DROP_SPOOFED_ARP
    ),
    dropped(
        "a reply that takes the gateway's address",
        A1,
        says(p.REPLY, NET1.gateway, A2.ip, to=A2.mac),
        Reason.DROP_SPOOFED_ARP,
    ),
    dropped("a request in a member's name", A1, asks(NET1.gateway, sender=A3.ip), Reason.DROP_SPOOFED_ARP),
    dropped("a lie inside: another's MAC", A1, asks(A2.ip, inside=A3.mac), Reason.DROP_SPOOFED_ARP),
    dropped("a lie outside: another's MAC", A1, asks(A2.ip, outside=A3.mac), Reason.DROP_SPOOFED_ARP),
    dropped(
        "the same lie inside and outside",
        A1,
        asks(A2.ip, inside=A3.mac, outside=A3.mac),
        Reason.DROP_SPOOFED_MAC,
    ),
    dropped("another hardware type", A1, asks(A2.ip, hardware=6), Reason.DROP_SPOOFED_ARP),
    dropped("another protocol", A1, asks(A2.ip, protocol=p.ETH_IPV6), Reason.DROP_SPOOFED_ARP),
    dropped("another hardware length", A1, asks(A2.ip, sizes=(8, 4)), Reason.DROP_SPOOFED_ARP),
    dropped("another protocol length", A1, asks(A2.ip, sizes=(6, 16)), Reason.DROP_SPOOFED_ARP),
    redirected(
        "without icc a member's address is known all the same",
        B1,
        p.ethernet(p.BROADCAST, B1.mac, p.ETH_ARP, p.arp(p.REQUEST, B1.mac, B1.ip, p.NOBODY, B2.ip)),
        Reason.ANSWERED,
        p.ethernet(B1.mac, B2.mac, p.ETH_ARP, p.arp(p.REPLY, B2.mac, B2.ip, B1.mac, B1.ip)),
    ),
]


# ---- neighbour discovery -------------------------------------------------------------------------------


def solicits(
    target: p.Address,
    *,
    src: p.Address = A1.ip6,
    hops: int = 255,
    dst: p.Address | None = None,
    to: str | None = None,
    option: str | None = A1.mac,
) -> bytes:
    group_mac, group = p.solicited_node(target)
    body = p.ipv6(src, dst or group, p.solicitation(target, option), hops=hops)
    return p.ethernet(to or group_mac, A1.mac, p.ETH_IPV6, body)


def advertises(target: p.Address, mac: str, dst: p.Address = A1.ip6) -> bytes:
    body = p.ipv6(target, dst, p.advertisement(target, mac, solicited=True), hops=255)
    return p.ethernet(A1.mac, mac, p.ETH_IPV6, body)


def collides(target: p.Address, mac: str) -> bytes:
    """To all nodes, as the one who asks has no address yet (RFC 4861, 7.2.4)."""
    body = p.ipv6(target, ALL_NODES, p.advertisement(target, mac, solicited=False), hops=255)
    return p.ethernet(ALL_NODES_MAC, mac, p.ETH_IPV6, body)


def discovers(
    kind: int, payload: bytes, *, word: int = 0, extensions: tuple[tuple[int, bytes], ...] = (), **where: str
) -> bytes:
    body = p.ipv6(
        where.get("src", str(A1.linklocal)),
        where.get("dst", ALL_NODES),
        p.icmp6(kind, word=word, payload=payload),
        hops=255,
        extensions=extensions,
    )
    return p.ethernet(where.get("to", ALL_NODES_MAC), A1.mac, p.ETH_IPV6, body)


ROUTER = struct.pack("!II", 0, 0) + b"\1\1" + p.mac_bytes(A1.mac)
CLAIM = {
    target: p.packed(target) + b"\2\1" + p.mac_bytes(A1.mac)
    for target in (A1.ip6, A1.linklocal, A2.ip6, NET1.gateway6)
}
DEST = p.extension(p.DESTINATION_OPTIONS, b"\0\1\4" + bytes(4))

NEIGHBOURS = [
    redirected("who has a member", A1, solicits(A2.ip6), Reason.ANSWERED, advertises(A2.ip6, A2.mac)),
    redirected(
        "who has a member's link-local address",
        A1,
        solicits(A2.linklocal),
        Reason.ANSWERED,
        advertises(A2.linklocal, A2.mac),
    ),
    redirected(
        "who has the gateway",
        A1,
        solicits(NET1.gateway6),
        Reason.ANSWERED,
        advertises(NET1.gateway6, NET1.mac),
    ),
    redirected(
        "who has the gateway's link-local address, from link-local",
        A1,
        solicits(NET1.linklocal, src=A1.linklocal),
        Reason.ANSWERED,
        advertises(NET1.linklocal, NET1.mac, A1.linklocal),
    ),
    redirected(
        "is a member still there, asked of itself",
        A1,
        solicits(A2.ip6, dst=A2.ip6, to=A2.mac),
        Reason.ANSWERED,
        advertises(A2.ip6, A2.mac),
    ),
    redirected(
        "without the option that is not needed",
        A1,
        solicits(A2.ip6, option=None),
        Reason.ANSWERED,
        advertises(A2.ip6, A2.mac),
    ),
    redirected(
        "duplicate detection of a taken address is answered to all nodes",
        A1,
        solicits(A2.ip6, src="::", option=None),
        Reason.ANSWERED,
        collides(A2.ip6, A2.mac),
    ),
    redirected(
        "duplicate detection of the gateway's address",
        A1,
        solicits(NET1.gateway6, src="::", option=None),
        Reason.ANSWERED,
        collides(NET1.gateway6, NET1.mac),
    ),
    dropped(
        "duplicate detection of its own address",
        A1,
        solicits(A1.ip6, src="::", option=None),
        Reason.ABSORBED,
    ),
    dropped(
        "duplicate detection of its own link-local address",
        A1,
        solicits(A1.linklocal, src="::", option=None),
        Reason.ABSORBED,
    ),
    dropped("who has an address that nobody has", A1, solicits("fd00:1::99"), Reason.DROP_UNKNOWN_ARP),
    dropped("who has ::", A1, solicits("::"), Reason.DROP_UNKNOWN_ARP),
    dropped("who has a member of another network", A1, solicits(B1.ip6), Reason.DROP_UNKNOWN_ARP),
    dropped("who has a mapped IPv4 address", A1, solicits(f"::ffff:{A2.ip}"), Reason.DROP_UNKNOWN_ARP),
    dropped("from beyond the link: hop limit 254", A1, solicits(A2.ip6, hops=254), Reason.DROP_TRUNCATED),
    dropped("solicitation in another's name", A1, solicits(A2.ip6, src=A3.ip6), Reason.DROP_SPOOFED_ADDR),
    dropped(
        "solicitation without a target",
        A1,
        discovers(p.SOLICITATION, b"", dst=str(A2.ip6), to=A2.mac),
        Reason.DROP_TRUNCATED,
    ),
    dropped("router advertisement", A1, discovers(p.ROUTER_ADVERTISEMENT, ROUTER), Reason.DROP_ROUTER),
    dropped(
        "router advertisement to one member",
        A1,
        discovers(p.ROUTER_ADVERTISEMENT, ROUTER, dst=str(A2.linklocal), to=A2.mac),
        Reason.DROP_ROUTER,
    ),
    dropped(
        "router advertisement from ::",
        A1,
        discovers(p.ROUTER_ADVERTISEMENT, ROUTER, src="::"),
        Reason.DROP_ROUTER,
    ),
    *(
        dropped(
            f"router advertisement behind {n} extension headers",
            A1,
            discovers(p.ROUTER_ADVERTISEMENT, ROUTER, extensions=(DEST,) * n),
            Reason.DROP_ROUTER if n < 5 else Reason.DROP_TRUNCATED,
        )
        for n in (1, 2, 3, 4, 5, 6, 9)
    ),
    dropped(
        "router advertisement in a first fragment",
        A1,
        discovers(p.ROUTER_ADVERTISEMENT, ROUTER, extensions=(p.fragment_header(0, True),)),
        Reason.DROP_ROUTER,
    ),
    dropped(
        "a first fragment that ends before the transport header (RFC 7112)",
        A1,
        p.ethernet(
            ALL_NODES_MAC,
            A1.mac,
            p.ETH_IPV6,
            p.ipv6(
                A1.linklocal,
                ALL_NODES,
                p.Transport(p.ICMPV6, b""),
                hops=255,
                extensions=(p.fragment_header(0, True), DEST),
            ),
        ),
        Reason.DROP_TRUNCATED,
    ),
    dropped(
        "redirect",
        A1,
        discovers(
            p.REDIRECT, p.packed(OUTSIDE_6 := "2001:db8::5") + p.packed(OUTSIDE_6), dst=str(A2.ip6), to=A2.mac
        ),
        Reason.DROP_ROUTER,
    ),
    dropped(
        "an advertisement of its own address",
        A1,
        discovers(p.ADVERTISEMENT, CLAIM[A1.ip6], src=str(A1.ip6), word=1 << 29),
        Reason.ABSORBED,
    ),
    dropped(
        "an advertisement of its own link-local address",
        A1,
        discovers(p.ADVERTISEMENT, CLAIM[A1.linklocal], word=1 << 29),
        Reason.ABSORBED,
    ),
    dropped(
        "an advertisement that takes a member's address",
        A1,
        discovers(p.ADVERTISEMENT, CLAIM[A2.ip6], word=1 << 29),
        Reason.DROP_SPOOFED_ARP,
    ),
    dropped(
        "an advertisement that takes the gateway's address, to one member",
        A1,
        discovers(
            p.ADVERTISEMENT, CLAIM[NET1.gateway6], src=str(A1.ip6), dst=str(A2.ip6), to=A2.mac, word=3 << 29
        ),
        Reason.DROP_SPOOFED_ARP,
    ),
    dropped(
        "the same to the host",
        A1,
        discovers(
            p.ADVERTISEMENT, CLAIM[A2.ip6], src=str(A1.ip6), dst=str(NET1.gateway6), to=NET1.mac, word=3 << 29
        ),
        Reason.DROP_SPOOFED_ARP,
    ),
    dropped(
        "the same behind an extension header",
        A1,
        discovers(p.ADVERTISEMENT, CLAIM[A2.ip6], word=1 << 29, extensions=(DEST,)),
        Reason.DROP_SPOOFED_ARP,
    ),
    redirected(
        "a listener report from ::",
        A1,
        discovers(143, bytes(8), src="::", dst="ff02::16", to="33:33:00:00:00:16"),
        Reason.FLOODED,
    ),
]


# ---- frames that are neither ---------------------------------------------------------------------------

INNER = p.ipv4(A1.ip, A2.ip, PING)
UNKNOWN_TYPES = {
    "LLDP": 0x88CC,
    "802.1X": 0x888E,
    "IPX": 0x8137,
    "RARP": 0x8035,
    "AppleTalk": 0x809B,
    "PPPoE discovery": 0x8863,
    "PPPoE session": 0x8864,
    "MPLS": 0x8847,
    "MPLS multicast": 0x8848,
    "MACsec": 0x88E5,
    "loop": 0x9000,
    "transparent bridging": 0x6558,
    "PTP": 0x88F7,
    "FCoE": 0x8906,
    "batman": 0x4305,
    "experimental": 0x88B5,
    "VLAN of old, 0x9100": 0x9100,
    "VLAN of old, 0x9200": 0x9200,
    "the first type": 0x0600,
    "the last type": 0xFFFF,
    "between length and type": 0x05FF,
    "a length, 802.3": 0x002E,
    "length 0": 0x0000,
    "a length of 1500": 0x05DC,
}

FOREIGN = [
    *(
        dropped(f"{name} to {who}", A1, p.ethernet(to, A1.mac, kind, INNER), Reason.DROP_ETHERTYPE)
        for name, kind in UNKNOWN_TYPES.items()
        for who, to in (("a member", A2.mac), ("everybody", p.BROADCAST))
    ),
    dropped(
        "spanning tree, LLC",
        A1,
        p.ethernet("01:80:c2:00:00:00", A1.mac, 38, b"\x42\x42\x03" + bytes(35)),
        Reason.DROP_ETHERTYPE,
    ),
    dropped(
        "SNAP with IPv4 in it",
        A1,
        p.ethernet(A2.mac, A1.mac, 8 + len(INNER), b"\xaa\xaa\x03\0\0\0\x08\0" + INNER),
        Reason.DROP_ETHERTYPE,
    ),
    *(
        dropped(
            f"{name}, {what} to {who}",
            A1,
            p.ethernet(to, A1.mac, tag, struct.pack("!HH", vid, kind) + body),
            Reason.DROP_VLAN,
        )
        for name, tag in (("802.1Q", p.ETH_VLAN), ("802.1AD", p.ETH_QINQ))
        for what, vid, kind, body in (
            ("VLAN 5 with IPv4", 5, p.ETH_IPV4, INNER),
            ("priority only", 0xE000, p.ETH_IPV4, INNER),
            ("with ARP", 1, p.ETH_ARP, p.arp(p.REQUEST, A1.mac, A1.ip, p.NOBODY, A2.ip)),
            ("doubled", 7, p.ETH_VLAN, struct.pack("!HH", 5, p.ETH_IPV4) + INNER),
        )
        for who, to in (("a member", A2.mac), ("everybody", p.BROADCAST))
    ),
]


# ---- headers that lie ----------------------------------------------------------------------------------


def lie(sentence: str, carried: p.Transport = PING, **lies: int) -> Row:
    return dropped(sentence, A1, A1.sends(A2.ip, carried, to=A2.mac, **lies), Reason.DROP_TRUNCATED)


LIES = [
    *(lie(f"IPv4 with a header of {ihl} words", ihl=ihl) for ihl in range(5)),
    *(lie(f"IPv4, {ihl} words of header beyond its end", ihl=ihl) for ihl in (12, 13, 14, 15)),
    *(lie(f"IPv4 of version {version}", version=version) for version in (0, 1, 3, 5, 6, 7, 15)),
    lie("IPv4 longer than its frame, by one", total=20 + len(PING.data) + 1),
    lie("IPv4 longer than its frame, by 64 KiB", total=65535),
    lie("IPv4 shorter than its header", total=19),
    lie("IPv4 of 1 byte", total=1),
    lie("TCP that begins beyond the packet", p.tcp(1, 2, p.SYN), ihl=10),
    *(
        dropped(
            f"IPv6 of version {version}",
            A1,
            A1.sends(A2.ip6, PING6, to=A2.mac, version=version),
            Reason.DROP_TRUNCATED,
        )
        for version in (0, 4, 5, 7)
    ),
    dropped(
        "IPv6 longer than its frame", A1, A1.sends(A2.ip6, PING6, to=A2.mac, length=17), Reason.DROP_TRUNCATED
    ),
    dropped(
        "IPv4 under IPv6's type",
        A1,
        p.ethernet(A2.mac, A1.mac, p.ETH_IPV6, INNER + bytes(40)),
        Reason.DROP_TRUNCATED,
    ),
    dropped(
        "IPv6 under IPv4's type",
        A1,
        p.ethernet(A2.mac, A1.mac, p.ETH_IPV4, p.ipv6(A1.ip6, A2.ip6, PING6)),
        Reason.DROP_TRUNCATED,
    ),
    dropped(
        "an extension header beyond the packet",
        A1,
        A1.sends(A2.ip6, PING6, to=A2.mac, extensions=((p.DESTINATION_OPTIONS, b"\xff" + bytes(6)),)),
        Reason.DROP_TRUNCATED,
    ),
    redirected(
        "IPv4 shorter than its frame: padding is no lie",
        A1,
        A1.sends(A2.ip, PING, to=A2.mac) + bytes(20),
        Reason.DELIVERED,
    ),
    redirected(
        "IPv4 with options", A1, A1.sends(A2.ip, PING, to=A2.mac, options=b"\1" * 40), Reason.DELIVERED
    ),
    dropped(
        "IPv4 whose length ends within TCP",
        A1,
        A1.sends(A2.ip, p.tcp(1, 2, p.SYN), to=A2.mac, total=30),
        Reason.DROP_TRUNCATED,
    ),
]


# ---- among members -------------------------------------------------------------------------------------


def later(proto: int, data: bytes = b"the rest of it..") -> p.Transport:
    return p.Transport(proto, data)


MEMBERS = [
    redirected("ping", A1, A1.sends(A2.ip, PING, to=A2.mac), Reason.DELIVERED),
    redirected("ping, IPv6", A1, A1.sends(A2.ip6, PING6, to=A2.mac), Reason.DELIVERED),
    redirected(
        "ping between link-local addresses",
        A1,
        v6(A1.mac, A1.linklocal, A2.linklocal, PING6),
        Reason.DELIVERED,
    ),
    redirected("TCP", A1, A1.sends(A2.ip, p.tcp(1, 2, p.SYN), to=A2.mac), Reason.DELIVERED),
    redirected(
        "TCP, urgent", A1, A1.sends(A2.ip, p.tcp(1, 2, p.ACK | p.URG, b"!"), to=A2.mac), Reason.DELIVERED
    ),
    redirected(
        "TCP, options",
        A1,
        A1.sends(A2.ip, p.tcp(1, 2, p.SYN, options=b"\1" * 40), to=A2.mac),
        Reason.DELIVERED,
    ),
    redirected("UDP", A1, A1.sends(A2.ip, p.udp(1, 2), to=A2.mac), Reason.DELIVERED),
    redirected(
        "UDP without checksum", A1, A1.sends(A2.ip, p.udp(1, 2, summed=False), to=A2.mac), Reason.DELIVERED
    ),
    redirected("SCTP", A1, A1.sends(A2.ip, p.Transport(132, bytes(12)), to=A2.mac), Reason.DELIVERED),
    redirected(
        "a protocol that nobody knows",
        A1,
        A1.sends(A2.ip, p.Transport(253, b""), to=A2.mac),
        Reason.DELIVERED,
    ),
    redirected("TTL 1, as no hop is made", A1, A1.sends(A2.ip, PING, to=A2.mac, ttl=1), Reason.DELIVERED),
    redirected(
        "by way of the gateway: the MAC is put right",
        A1,
        A1.sends(A2.ip, PING, to=NET1.mac),
        Reason.DELIVERED,
        A1.sends(A2.ip, PING, to=A2.mac),
    ),
    redirected(
        "with a stale MAC: it is put right",
        A1,
        A1.sends(A2.ip, PING, to=STRANGER),
        Reason.DELIVERED,
        A1.sends(A2.ip, PING, to=A2.mac),
    ),
    redirected(
        "IPv6 with a stale MAC",
        A1,
        A1.sends(A2.ip6, PING6, to=STRANGER),
        Reason.DELIVERED,
        A1.sends(A2.ip6, PING6, to=A2.mac),
    ),
    redirected("to itself", A1, A1.sends(A1.ip, PING, to=A1.mac), Reason.DELIVERED),
    redirected(
        "a first fragment",
        A1,
        A1.sends(A2.ip, p.udp(1, 2, bytes(32)), to=A2.mac, fragment=p.MORE_FRAGMENTS),
        Reason.DELIVERED,
    ),
    redirected(
        "a later fragment", A1, A1.sends(A2.ip, later(p.UDP), to=A2.mac, fragment=5), Reason.DELIVERED
    ),
    redirected(
        "a later fragment of one byte",
        A1,
        A1.sends(A2.ip, later(p.TCP, b"x"), to=A2.mac, fragment=9),
        Reason.DELIVERED,
    ),
    dropped(
        "a first fragment that ends within the TCP header",
        A1,
        A1.sends(
            A2.ip, p.Transport(p.TCP, p.tcp(1, 2, p.SYN).data[:8]), to=A2.mac, fragment=p.MORE_FRAGMENTS
        ),
        Reason.DROP_TRUNCATED,
    ),
    redirected(
        "a later IPv6 fragment",
        A1,
        A1.sends(A2.ip6, later(p.UDP), to=A2.mac, extensions=(p.fragment_header(64, False),)),
        Reason.DELIVERED,
    ),
    redirected("on an internal network", C1, C1.sends(C2.ip, PING, to=C2.mac), Reason.DELIVERED),
    dropped("to an address that no member has", A1, A1.sends("172.17.9.9", PING), Reason.DROP_NO_ENDPOINT),
    dropped(
        "to an address that no member has, to a foreign MAC",
        A1,
        A1.sends("172.17.9.9", PING, to=STRANGER),
        Reason.DROP_WRONG_MAC,
    ),
]

MULTICAST, MULTICAST_MAC = "224.0.0.251", "01:00:5e:00:00:fb"
GROUPS = [
    redirected(
        "to 255.255.255.255", A1, A1.sends("255.255.255.255", p.udp(1, 2), to=p.BROADCAST), Reason.FLOODED
    ),
    redirected(
        "to the subnet's broadcast", A1, A1.sends(NET1.broadcast, p.udp(1, 2), to=p.BROADCAST), Reason.FLOODED
    ),
    redirected(
        "to a multicast group", A1, A1.sends(MULTICAST, p.udp(1, 2), to=MULTICAST_MAC), Reason.FLOODED
    ),
    redirected("to an IPv6 group", A1, A1.sends(ALL_NODES, PING6, to=ALL_NODES_MAC), Reason.FLOODED),
    dropped(
        "to an IPv6 group of its own device only",
        A1,
        A1.sends("ff01::1", PING6, to=ALL_NODES_MAC),
        Reason.DROP_MULTICAST_OFF,
    ),
    dropped(
        "to an IPv6 group without scope",
        A1,
        A1.sends("ff00::1", PING6, to=ALL_NODES_MAC),
        Reason.DROP_MULTICAST_OFF,
    ),
    redirected(
        "to an IPv6 group of the site",
        A1,
        A1.sends("ff05::1:3", p.udp(1, 547), to="33:33:00:01:00:03"),
        Reason.FLOODED,
    ),
    redirected(
        "without icc to the host alone",
        B1,
        B1.sends(NET2.broadcast, p.udp(1, 2), to=p.BROADCAST),
        Reason.FLOODED,
    ),
    dropped(
        "a member's address in a broadcast frame",
        A1,
        A1.sends(A2.ip, PING, to=p.BROADCAST),
        Reason.DROP_WRONG_MAC,
    ),
    dropped("the same without icc", B1, B1.sends(B2.ip, PING, to=p.BROADCAST), Reason.DROP_WRONG_MAC),
    dropped(
        "the same to a multicast MAC", B1, B1.sends(B2.ip, PING, to=MULTICAST_MAC), Reason.DROP_WRONG_MAC
    ),
    dropped(
        "a member's IPv6 in a group frame",
        B1,
        B1.sends(B2.ip6, PING6, to=ALL_NODES_MAC),
        Reason.DROP_WRONG_MAC,
    ),
    dropped(
        "the gateway in a broadcast frame",
        A1,
        A1.sends(NET1.gateway, PING, to=p.BROADCAST),
        Reason.DROP_WRONG_MAC,
    ),
    dropped(
        "the outside in a broadcast frame", A1, A1.sends(OUTSIDE, PING, to=p.BROADCAST), Reason.DROP_WRONG_MAC
    ),
    dropped(
        "another network's broadcast in a broadcast frame",
        A1,
        A1.sends(NET2.broadcast, PING, to=p.BROADCAST),
        Reason.DROP_WRONG_MAC,
    ),
    dropped(
        "a multicast group in a frame for the gateway",
        A1,
        A1.sends(MULTICAST, p.udp(1, 2)),
        Reason.DROP_BAD_ADDR,
    ),
    dropped(
        "255.255.255.255 in a frame for the gateway",
        A1,
        A1.sends("255.255.255.255", p.udp(1, 2)),
        Reason.DROP_BAD_ADDR,
    ),
    dropped(
        "the subnet's broadcast in a frame for the gateway, though a port is published",
        A1,
        A1.sends(NET1.broadcast, p.udp(1, 8081)),
        Reason.DROP_BAD_ADDR,
    ),
]

WITHOUT_ICC = [
    dropped("ping", B1, B1.sends(B2.ip, PING, to=B2.mac), Reason.DROP_ICC),
    dropped("ping, IPv6", B1, B1.sends(B2.ip6, PING6, to=B2.mac), Reason.DROP_ICC),
    dropped(
        "ping between link-local addresses",
        B1,
        v6(B1.mac, B1.linklocal, B2.linklocal, PING6, to=B2.mac),
        Reason.DROP_ICC,
    ),
    dropped("by way of the gateway's MAC", B1, B1.sends(B2.ip, PING), Reason.DROP_ICC),
    dropped("an unknown protocol", B1, B1.sends(B2.ip, p.Transport(253, b""), to=B2.mac), Reason.DROP_ICC),
    dropped("an unknown ethertype", B1, p.ethernet(B2.mac, B1.mac, 0x88B5, INNER), Reason.DROP_ETHERTYPE),
    dropped(
        "a port that is not linked", B1, B1.sends(B2.ip, p.tcp(9, 81, p.SYN), to=B2.mac), Reason.DROP_ICC
    ),
    dropped("the linked port, other protocol", B1, B1.sends(B2.ip, p.udp(9, 80), to=B2.mac), Reason.DROP_ICC),
    redirected("the linked port", B1, B1.sends(B2.ip, p.tcp(9, 80, p.SYN), to=B2.mac), Reason.DELIVERED),
    redirected("the linked port, UDP", B1, B1.sends(B2.ip, p.udp(9, 53), to=B2.mac), Reason.DELIVERED),
    redirected(
        "the linked port, IPv6", B1, B1.sends(B2.ip6, p.tcp(9, 80, p.SYN), to=B2.mac), Reason.DELIVERED
    ),
    redirected("its answer", B2, B2.sends(B1.ip, p.tcp(80, 9, p.SYN | p.ACK), to=B1.mac), Reason.DELIVERED),
    redirected(
        "more of the answer", B2, B2.sends(B1.ip, p.tcp(80, 9, p.ACK, b"x"), to=B1.mac), Reason.DELIVERED
    ),
    redirected(
        "a reset as the answer", B2, B2.sends(B1.ip, p.tcp(80, 9, p.RST), to=B1.mac), Reason.DELIVERED
    ),
    redirected("the answer, UDP", B2, B2.sends(B1.ip, p.udp(53, 9), to=B1.mac), Reason.DELIVERED),
    dropped("a bare SYN back", B2, B2.sends(B1.ip, p.tcp(80, 9, p.SYN), to=B1.mac), Reason.DROP_ICC),
    dropped(
        "a bare SYN back with other flags beside it",
        B2,
        B2.sends(B1.ip, p.tcp(80, 9, p.SYN | p.FIN | p.URG), to=B1.mac),
        Reason.DROP_ICC,
    ),
    dropped(
        "the server from another port", B2, B2.sends(B1.ip, p.tcp(81, 9, p.ACK), to=B1.mac), Reason.DROP_ICC
    ),
    dropped(
        "the server to the client's port 80",
        B2,
        B2.sends(B1.ip, p.tcp(9, 80, p.SYN), to=B1.mac),
        Reason.DROP_ICC,
    ),
    dropped(
        "a later fragment of what is linked: its ports are not known yet",
        B1,
        B1.sends(B2.ip, later(p.TCP), to=B2.mac, fragment=5),
        Reason.HELD,
    ),
    dropped(
        "a first fragment too short for ports",
        B1,
        B1.sends(B2.ip, p.Transport(p.TCP, bytes(8)), to=B2.mac, fragment=p.MORE_FRAGMENTS),
        Reason.DROP_TRUNCATED,
    ),
    dropped(
        "an IPv6 packet with the server's IPv4, mapped",
        B1,
        B1.sends(f"::ffff:{B2.ip}", p.tcp(9, 80, p.SYN), to=B2.mac),
        Reason.DROP_BAD_ADDR,
    ),
    redirected("the gateway", B1, B1.sends(NET2.gateway, PING), Reason.TO_HOST),
]


# ---- away from the network ------------------------------------------------------------------------------

HOST_BOUND = [
    redirected("the gateway", A1, A1.sends(NET1.gateway, PING), Reason.TO_HOST),
    redirected("the gateway, TTL 1", A1, A1.sends(NET1.gateway, PING, ttl=1), Reason.TO_HOST),
    redirected("a port of the gateway", A1, A1.sends(NET1.gateway, p.tcp(9, 22, p.SYN)), Reason.TO_HOST),
    redirected(
        "an unknown protocol to the gateway",
        A1,
        A1.sends(NET1.gateway, p.Transport(253, b"")),
        Reason.TO_HOST,
    ),
    redirected("the gateway, IPv6", A1, A1.sends(NET1.gateway6, PING6), Reason.TO_HOST),
    redirected(
        "the gateway, link-local",
        A1,
        v6(A1.mac, A1.linklocal, NET1.linklocal, PING6, to=NET1.mac),
        Reason.TO_HOST,
    ),
    redirected("the host's outside address", A1, A1.sends(HOST, PING), Reason.TO_HOST),
    redirected("a port of it", A1, A1.sends(HOST, p.tcp(9, 22, p.SYN)), Reason.TO_HOST),
    redirected("an address on the host's loopback device", A1, A1.sends(OTHER, PING), Reason.TO_HOST),
    dropped(
        "a later fragment to the host: perhaps to a published port",
        A1,
        A1.sends(HOST, later(p.UDP), fragment=5),
        Reason.HELD,
    ),
    redirected("another network's gateway", A1, A1.sends(NET2.gateway, PING), Reason.TO_HOST),
    redirected(
        "a port that is published at another address only",
        A1,
        A1.sends(OTHER, p.tcp(9, 8082, p.SYN)),
        Reason.TO_HOST,
    ),
    redirected(
        "a port that is published for UDP and TCP, by ping",
        A1,
        A1.sends(HOST, p.echo(p.ECHO, 8081)),
        Reason.TO_HOST,
    ),
    redirected(
        "a blackhole: the host's stack says so, and has no hop left to do anything else",
        A1,
        A1.sends(BLACKHOLE, p.udp(SPORT, 9)),
        Reason.TO_HOST,
        A1.sends(BLACKHOLE, p.udp(SPORT, 9), ttl=1),
    ),
    redirected(
        "an unreachable route: the host's stack says so",
        A1,
        A1.sends(UNREACHABLE, p.udp(SPORT, 9)),
        Reason.TO_HOST,
        A1.sends(UNREACHABLE, p.udp(SPORT, 9), ttl=1),
    ),
    redirected(
        "an unreachable route, without masquerading",
        D1,
        D1.sends(UNREACHABLE, p.udp(SPORT, 9)),
        Reason.TO_HOST,
    ),
    dropped("a member of another network", A1, A1.sends(B1.ip, PING), Reason.DROP_ISOLATED),
    dropped(
        "a member of another network, TCP", A1, A1.sends(B2.ip, p.tcp(9, 80, p.SYN)), Reason.DROP_ISOLATED
    ),
    dropped(
        "a member of another network, later fragment: its first one decides",
        A1,
        A1.sends(B1.ip, later(p.TCP), fragment=5),
        Reason.HELD,
    ),
    dropped(
        "a member of another network, to its MAC", A1, A1.sends(B1.ip, PING, to=B1.mac), Reason.DROP_WRONG_MAC
    ),
    dropped("another network, nobody there", A1, A1.sends("172.18.9.9", PING), Reason.DROP_ISOLATED),
    dropped("an internal network from outside it", A1, A1.sends(C1.ip, PING), Reason.DROP_ISOLATED),
    dropped("another network, IPv6", A1, A1.sends(B1.ip6, PING6), Reason.DROP_ISOLATED),
    dropped("another network, IPv6, nobody there", A1, A1.sends("fd00:2::99", PING6), Reason.DROP_ISOLATED),
    redirected("another network's gateway, IPv6", A1, A1.sends(NET2.gateway6, PING6), Reason.TO_HOST),
    redirected("the host's outside address, IPv6", A1, A1.sends(HOST6, PING6), Reason.TO_HOST),
    redirected("an address on the host's loopback device, IPv6", A1, A1.sends(OTHER6, PING6), Reason.TO_HOST),
    redirected(
        "an unreachable route, IPv6: the host's stack says so",
        A1,
        A1.sends(UNREACHABLE6, p.udp(SPORT, 9)),
        Reason.TO_HOST,
        A1.sends(UNREACHABLE6, p.udp(SPORT, 9), hops=1),
    ),
    dropped("loopback, IPv6", A1, A1.sends("::1", p.tcp(9, 8083, p.SYN)), Reason.DROP_BAD_ADDR),
    dropped("::", A1, A1.sends("::", PING6), Reason.DROP_BAD_ADDR),
    dropped("a link-local address that nobody has", A1, A1.sends("fe80::99", PING6), Reason.DROP_BAD_ADDR),
    dropped("outside, to a foreign MAC", A1, A1.sends(OUTSIDE, PING, to=STRANGER), Reason.DROP_WRONG_MAC),
    dropped(
        "the gateway, to a foreign MAC", A1, A1.sends(NET1.gateway, PING, to=STRANGER), Reason.DROP_WRONG_MAC
    ),
    dropped(
        "the gateway, IPv6, to a foreign MAC",
        A1,
        A1.sends(NET1.gateway6, PING6, to=STRANGER),
        Reason.DROP_WRONG_MAC,
    ),
    dropped(
        "outside, to another network's gateway MAC",
        A1,
        A1.sends(OUTSIDE, PING, to=NET2.mac),
        Reason.DROP_WRONG_MAC,
    ),
    dropped("loopback", A1, A1.sends("127.0.0.1", PING), Reason.DROP_BAD_ADDR),
    dropped(
        "loopback, a published port", A1, A1.sends("127.0.0.1", p.tcp(9, 8083, p.SYN)), Reason.DROP_BAD_ADDR
    ),
    dropped("0.0.0.0", A1, A1.sends("0.0.0.0", PING), Reason.DROP_BAD_ADDR),
    dropped("a group's address", A1, A1.sends("239.1.2.3", PING), Reason.DROP_BAD_ADDR),
    dropped("the limited broadcast", A1, A1.sends("255.255.255.255", PING), Reason.DROP_BAD_ADDR),
    *(
        redirected(
            f"{dst}, which is an address for the kernel",
            A1,
            A1.sends(dst, QUERY),
            Reason.TO_OUTSIDE,
            A1.leaves(HOST, dst, QUERY),
        )
        for dst in ("240.0.0.1", "255.255.255.254", "0.0.0.1", "169.254.1.1")
    ),
    *(
        redirected(
            f"{dst}, which is an address for the kernel",
            A1,
            A1.sends(dst, QUERY),
            Reason.TO_OUTSIDE,
            A1.leaves(HOST6, dst, QUERY),
        )
        for dst in ("::5", "::192.0.2.9", "2002:c000:204::1", "fec0::1", "fd12::1", "64:ff9b::1")
    ),
    redirected(
        "a published port at an address of a prefix that is the host's",
        A1,
        A1.sends(ANYWHERE[5], p.tcp(SPORT, 8081, p.SYN)),
        Reason.DELIVERED,
        A2.gets(NET1.gateway, p.tcp(SPORT, 80, p.SYN), ttl=63),
    ),
    redirected("the host, by an address of such a prefix", A1, A1.sends(ANYWHERE6[7], QUERY), Reason.TO_HOST),
    redirected(
        "a published port at the gateway's link-local address",
        A1,
        A1.sends(NET1.linklocal, p.tcp(SPORT, 8081, p.SYN)),
        Reason.DELIVERED,
        A2.gets(NET1.gateway6, p.tcp(SPORT, 80, p.SYN), hops=63),
    ),
    redirected(
        "the host, at the gateway's link-local address", A1, A1.sends(NET1.linklocal, QUERY), Reason.TO_HOST
    ),
    redirected("internal: its gateway", C1, C1.sends(NET3.gateway, PING), Reason.TO_HOST),
    dropped("internal: outside", C1, C1.sends(OUTSIDE, PING), Reason.DROP_INTERNAL),
    dropped("internal: outside, TCP", C1, C1.sends(OUTSIDE, p.tcp(9, 80, p.SYN)), Reason.DROP_INTERNAL),
    dropped("internal: the host's outside address", C1, C1.sends(HOST, PING), Reason.DROP_INTERNAL),
    dropped(
        "internal: a published port of the host",
        C1,
        C1.sends(HOST, p.tcp(9, 8081, p.SYN)),
        Reason.DROP_INTERNAL,
    ),
    redirected(
        "internal: a published port at its gateway is the host's",
        C1,
        C1.sends(NET3.gateway, p.tcp(9, 8081, p.SYN)),
        Reason.TO_HOST,
    ),
    dropped("internal: another network", C1, C1.sends(A1.ip, PING), Reason.DROP_INTERNAL),
    dropped("internal: another network's gateway", C1, C1.sends(NET1.gateway, PING), Reason.DROP_INTERNAL),
    dropped(
        "outside, a protocol without ports",
        A1,
        A1.sends(OUTSIDE, p.Transport(47, bytes(8))),
        Reason.DROP_PROTOCOL,
    ),
    dropped("outside, SCTP", A1, A1.sends(OUTSIDE, p.Transport(132, bytes(12))), Reason.DROP_PROTOCOL),
    dropped(
        "outside, timestamp request",
        A1,
        A1.sends(OUTSIDE, p.icmp(13, payload=bytes(12))),
        Reason.DROP_PROTOCOL,
    ),
    dropped(
        "outside, a later fragment: the first one has the ports",
        A1,
        A1.sends(OUTSIDE, later(p.UDP), fragment=5),
        Reason.HELD,
    ),
    dropped(
        "outside, an answer to nothing", A1, A1.sends(OUTSIDE, p.echo(p.ECHO_REPLY, 7)), Reason.DROP_NO_CONN
    ),
    dropped(
        "outside, an answer to nothing, IPv6",
        A1,
        A1.sends(OUTSIDE6, p.echo6(p.ECHO6_REPLY, 7)),
        Reason.DROP_NO_CONN,
    ),
    dropped(
        "outside, IPv6, a protocol without ports",
        A1,
        A1.sends(OUTSIDE6, p.Transport(47, bytes(8))),
        Reason.DROP_PROTOCOL,
    ),
    dropped(
        "outside, the other family's ping", A1, A1.sends(OUTSIDE6, p.echo(p.ECHO, 7)), Reason.DROP_PROTOCOL
    ),
    dropped(
        "outside, an error about nothing",
        A1,
        A1.sends(OUTSIDE, p.icmp(3, 3, 0, p.ipv4(OUTSIDE, A1.ip, p.udp(9, 9)))),
        Reason.DROP_NO_CONN,
    ),
]

# ---- to the outside, the first packet --------------------------------------------------------------------

# Without a checksum of its own a payload decides whether the translated sum is 0.
ZERO_SUM = p.udp(
    SPORT,
    9,
    struct.pack(
        "!H",
        p.checksum(
            p.packed(HOST)
            + p.packed(OUTSIDE)
            + struct.pack("!II", 10, p.UDP)
            + struct.pack("!HHHH", SPORT, 9, 10, 0)
        ),
    ),
)


def masqueraded(sentence: str, carried: p.Transport, out: p.Transport | None = None) -> Row:
    return redirected(
        sentence,
        A1,
        A1.sends(OUTSIDE, carried),
        Reason.TO_OUTSIDE,
        p.ethernet(NET1.mac, A1.mac, p.ETH_IPV4, p.ipv4(HOST, OUTSIDE, out or carried, ttl=63)),
    )


OUTSIDE_BOUND = [
    masqueraded("TCP", p.tcp(SPORT, 80, p.SYN, options=b"\2\4\5\xb4")),
    masqueraded("TCP in the middle, picked up", p.tcp(SPORT, 80, p.ACK | p.PSH, b"GET /")),
    masqueraded("UDP", p.udp(SPORT, 53)),
    masqueraded("UDP of odd length", p.udp(SPORT, 53, b"odd")),
    masqueraded("UDP, empty", p.udp(SPORT, 53, b"")),
    masqueraded("UDP without checksum stays without", p.udp(SPORT, 53, summed=False)),
    masqueraded("UDP whose checksum becomes zero says 0xffff", ZERO_SUM),
    masqueraded("ping", p.echo(p.ECHO, SPORT)),
    masqueraded("ping of 1472 bytes", p.echo(p.ECHO, SPORT, bytes(range(256)) * 5 + bytes(192))),
    masqueraded("the first port of the range", p.udp(NAT_FIRST, 53)),
    masqueraded("the last port of the range", p.udp(NAT_LAST, 53)),
    redirected(
        "IPv4 with options",
        A1,
        A1.sends(OUTSIDE, p.udp(SPORT, 53), options=b"\1" * 8),
        Reason.TO_OUTSIDE,
        p.ethernet(
            NET1.mac, A1.mac, p.ETH_IPV4, p.ipv4(HOST, OUTSIDE, p.udp(SPORT, 53), ttl=63, options=b"\1" * 8)
        ),
    ),
    redirected(
        "to the next hop itself",
        A1,
        A1.sends(NEXT_HOP, p.udp(SPORT, 53)),
        Reason.TO_OUTSIDE,
        p.ethernet(NET1.mac, A1.mac, p.ETH_IPV4, p.ipv4(HOST, NEXT_HOP, p.udp(SPORT, 53), ttl=63)),
    ),
    redirected(
        "padding stays",
        A1,
        A1.sends(OUTSIDE, p.udp(SPORT, 53, b"")) + b"padding!",
        Reason.TO_OUTSIDE,
        p.ethernet(NET1.mac, A1.mac, p.ETH_IPV4, p.ipv4(HOST, OUTSIDE, p.udp(SPORT, 53, b""), ttl=63))
        + b"padding!",
    ),
    redirected(
        "without icc",
        B1,
        B1.sends(OUTSIDE, p.udp(SPORT, 53)),
        Reason.TO_OUTSIDE,
        p.ethernet(NET2.mac, B1.mac, p.ETH_IPV4, p.ipv4(HOST, OUTSIDE, p.udp(SPORT, 53), ttl=63)),
    ),
    redirected(
        "without masquerading: its own address and port",
        D1,
        D1.sends(OUTSIDE, p.udp(7, 53)),
        Reason.TO_OUTSIDE,
        p.ethernet(NET4.mac, D1.mac, p.ETH_IPV4, p.ipv4(D1.ip, OUTSIDE, p.udp(7, 53), ttl=63)),
    ),
]

# ---- published ports, seen from other containers ------------------------------------------------------------

PUBLISHED = [
    redirected(
        "from another network: the client's own address",
        B1,
        B1.sends(HOST, p.tcp(9, 8081, p.SYN)),
        Reason.DELIVERED,
        A2.gets(B1.ip, p.tcp(9, 80, p.SYN), ttl=63),
    ),
    redirected(
        "from another network, at that network's gateway",
        B1,
        B1.sends(NET2.gateway, p.udp(9, 8081)),
        Reason.DELIVERED,
        A2.gets(B1.ip, p.udp(9, 53), ttl=63),
    ),
    redirected(
        "from another network, at the server's gateway",
        B1,
        B1.sends(NET1.gateway, p.udp(9, 8081, summed=False)),
        Reason.DELIVERED,
        A2.gets(B1.ip, p.udp(9, 53, summed=False), ttl=63),
    ),
    redirected(
        "at an address of the host's loopback device",
        B1,
        B1.sends(OTHER, p.udp(9, 8081)),
        Reason.DELIVERED,
        A2.gets(B1.ip, p.udp(9, 53), ttl=63),
    ),
    redirected(
        "from the same network: the source becomes the gateway",
        A1,
        A1.sends(HOST, p.tcp(SPORT, 8081, p.SYN)),
        Reason.DELIVERED,
        A2.gets(NET1.gateway, p.tcp(SPORT, 80, p.SYN), ttl=63),
    ),
    redirected(
        "from the server itself: the source becomes the gateway",
        A2,
        A2.sends(HOST, p.tcp(SPORT, 8081, p.SYN)),
        Reason.DELIVERED,
        A2.gets(NET1.gateway, p.tcp(SPORT, 80, p.SYN), ttl=63),
    ),
    redirected(
        "without icc, published all the same",
        B1,
        B1.sends(HOST, p.tcp(SPORT, 8082, p.SYN)),
        Reason.DELIVERED,
        B2.gets(NET2.gateway, p.tcp(SPORT, 80, p.SYN), ttl=63),
    ),
    redirected(
        "the last hop: delivered, as a local address is no hop",
        B1,
        B1.sends(HOST, p.udp(9, 8081), ttl=1),
        Reason.DELIVERED,
        A2.gets(B1.ip, p.udp(9, 53), ttl=1),
    ),
]

TABLES = {
    "spoofing": SPOOFING,
    "ARP": ARP,
    "neighbours": NEIGHBOURS,
    "foreign": FOREIGN,
    "lies": LIES,
    "members": MEMBERS,
    "groups": GROUPS,
    "without icc": WITHOUT_ICC,
    "host": HOST_BOUND,
    "outside": OUTSIDE_BOUND,
    "published": PUBLISHED,
}


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{name}: {row.sentence}") for name, rows in TABLES.items() for row in rows]
)
def test_packet(programs: Programs, row: Row) -> None:
    programs.check(row)


# ---- cut short at every length ----------------------------------------------------------------------------

CUT = {
    "ARP": asks(A2.ip),
    "IPv4 and TCP": A1.sends(A2.ip, p.tcp(1, 2, p.SYN), to=A2.mac),
    "IPv4 and UDP": A1.sends(A2.ip, p.udp(1, 2, b""), to=A2.mac),
    "IPv4 and ICMP": A1.sends(A2.ip, p.echo(p.ECHO, 1, b""), to=A2.mac),
    "IPv4 with options": A1.sends(A2.ip, p.udp(1, 2, b""), to=A2.mac, options=b"\1" * 40),
    "IPv6 and TCP": A1.sends(A2.ip6, p.tcp(1, 2, p.SYN), to=A2.mac),
    "IPv6 and UDP": A1.sends(A2.ip6, p.udp(1, 2, b""), to=A2.mac),
    "IPv6 and ICMP": A1.sends(A2.ip6, p.icmp6(128), to=A2.mac),
    "IPv6, four extension headers": A1.sends(A2.ip6, p.udp(1, 2, b""), to=A2.mac, extensions=(DEST,) * 4),
    "neighbour solicitation": solicits(A2.ip6, option=None),
}
# What a test run will not even look at: an Ethernet header alone ("empty packet"), and a frame that claims
# IPv4 or IPv6 and is shorter than that header. `test_short_frames_on_the_wire` sends them for real.
REFUSED = {p.ETH_ARP: 15, p.ETH_IPV4: 34, p.ETH_IPV6: 54}


def honest(frame: bytes, length: int) -> bytes:
    """The first bytes of a frame, with an IP header (if there is one left) that states this length."""
    cut = bytearray(frame[:length])
    kind = int.from_bytes(frame[12:14], "big")
    if kind == p.ETH_IPV4 and length >= 34:
        cut[16:18] = (length - 14).to_bytes(2, "big")
    elif kind == p.ETH_IPV6 and length >= 54:
        cut[18:20] = (length - 54).to_bytes(2, "big")
    return bytes(cut)


@pytest.mark.parametrize("shortened", [False, True], ids=["length as it was", "length put right"])
@pytest.mark.parametrize("name", CUT)
def test_cut_short(programs: Programs, name: str, shortened: bool) -> None:
    frame = CUT[name]
    for length in range(14, len(frame)):
        cut = honest(frame, length) if shortened else frame[:length]
        try:
            got = programs.run(A1, cut)
        except KernelError as error:
            assert "Invalid argument" in str(error)
            assert length < REFUSED[int.from_bytes(frame[12:14], "big")], length
            continue
        assert (length, got.verdict, got.reasons) == (length, SHOT, {"DROP_TRUNCATED": 1})
        assert got.packet == cut
    assert programs.run(A1, frame).verdict == REDIRECT


# ---- what a table cannot say -------------------------------------------------------------------------------


def test_unknown_device(programs: Programs) -> None:
    frame = A1.sends(A2.ip, PING, to=A2.mac)
    device = programs.maps["devices"].pop(abi.device_key(programs.ifindex(A1)))
    try:
        programs.expect(A1, frame, SHOT, Reason.DROP_DEVICE)
    finally:
        programs.maps["devices"][abi.device_key(programs.ifindex(A1))] = device


def test_network_that_is_gone(programs: Programs) -> None:
    network = programs.maps["networks"][1]
    programs.maps["networks"][1] = network._replace(flags=network.flags & ~abi.NetworkFlag.NETWORK_ACTIVE)
    try:
        programs.expect(A1, A1.sends(A2.ip, PING, to=A2.mac), SHOT, Reason.DROP_DEVICE)
    finally:
        programs.maps["networks"][1] = network


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("broadcast", A1.sends(NET1.broadcast, p.udp(1, 2), to=p.BROADCAST)),
        ("multicast", A1.sends(MULTICAST, p.udp(1, 2), to=MULTICAST_MAC)),
        ("IPv6 multicast", A1.sends(ALL_NODES, PING6, to=ALL_NODES_MAC)),
    ],
)
def test_flood_reaches_every_member_but_the_sender(programs: Programs, name: str, frame: bytes) -> None:
    everybody = (A1, A2, A3, B1, B2, C1)
    for member in everybody:
        programs.topology.received(member.name)
    programs.expect(A1, frame, REDIRECT, Reason.FLOODED)
    got = {member.name: programs.topology.received(member.name) for member in everybody}
    assert got == {"a1": [], "a2": [frame], "a3": [frame], "b1": [], "b2": [], "c1": []}


def test_flood_without_icc_reaches_no_member(programs: Programs) -> None:
    programs.topology.received("b2")
    programs.expect(B1, B1.sends(NET2.broadcast, p.udp(1, 2), to=p.BROADCAST), REDIRECT, Reason.FLOODED)
    assert programs.topology.received("b2") == []


def test_gso_packet_is_larger_than_the_egress(programs: Programs) -> None:
    """What leaves is segments: the size of the whole does not count."""
    carried = p.tcp(SPORT, 80, p.ACK, bytes(2800))
    frame, out = A1.sends(OUTSIDE, carried), A1.leaves(HOST, OUTSIDE, carried)
    programs.expect(A1, frame, REDIRECT, Reason.TO_OUTSIDE, out, gso=1400)
    told = p.own_error(frame, NET1.gateway, mtu=1500)
    programs.expect(A1, frame, REDIRECT, Reason.DROP_TOO_BIG, told, gso=1480)


def test_every_drop_may_be_reported(make_programs: MakePrograms) -> None:
    programs = make_programs(sample=1)
    before = time.monotonic_ns()
    frame = A1.sends(A2.ip, PING, to=A2.mac, version=5) + bytes(60)
    programs.expect(A1, frame, SHOT, Reason.DROP_TRUNCATED)
    short = p.ethernet(p.BROADCAST, A1.mac, 0x88CC, b"LLDP")
    programs.expect(A1, short, SHOT, Reason.DROP_ETHERTYPE)
    programs.expect(A1, asks(A1.ip), SHOT, Reason.ABSORBED)  # no drop
    events: list[abi.event] = []
    libbpf.consume_events(programs.events_fd, events.append)
    seen = [(e.reason, e.ifindex, e.length, e.head[: e.captured]) for e in events]
    ifindex = programs.ifindex(A1)
    assert seen == [
        (Reason.DROP_TRUNCATED, ifindex, len(frame), frame[:64]),
        (Reason.DROP_ETHERTYPE, ifindex, len(short), short),
    ]
    assert all(before <= e.when <= time.monotonic_ns() for e in events)


def test_one_drop_in_so_many_is_reported(make_programs: MakePrograms) -> None:
    programs = make_programs(sample=10)
    for _ in range(100):
        programs.run(A1, p.ethernet(p.BROADCAST, A1.mac, 0x88CC, b"LLDP"))
    events: list[abi.event] = []
    libbpf.consume_events(programs.events_fd, events.append)
    assert 10 <= len(events) <= 12  # counted on each CPU


# ---- on the wire: the real hook, where a test run cannot go ---------------------------------------------------


@pytest.fixture(params=["tcx", "clsact"])
def wired(programs: Programs, request: pytest.FixtureRequest) -> Iterator[Programs]:
    """a1's device has the program; what its container sends runs through it."""
    if request.param == "tcx" and not features.has_tcx():
        pytest.skip("this kernel has no tcx")
    with programs.wired(A1, tcx=request.param == "tcx"):
        for member in (A1, A2, A3):
            programs.topology.received(member.name)
        programs.counted()
        yield programs


def send(topology: Topology, member: Member, frame: bytes) -> None:
    topology.tap(member.name).send(frame)


def test_delivery_on_the_wire(wired: Programs) -> None:
    """By way of the gateway's MAC; it arrives as a frame for the receiver (PACKET_HOST, 0), and nowhere else."""
    send(wired.topology, A1, A1.sends(A2.ip, PING))
    assert wired.counted() == {"DELIVERED": 1}
    assert wired.topology.received_as("a2") == [(A1.sends(A2.ip, PING, to=A2.mac), 0)]
    assert wired.topology.received("a3") == []


def test_answer_on_the_wire(wired: Programs) -> None:
    send(wired.topology, A1, asks(A2.ip))
    assert wired.counted() == {"ANSWERED": 1}
    assert wired.topology.received("a1") == [answer(A2.mac, A2.ip)]
    assert wired.topology.received("a2") == []


@pytest.mark.parametrize("tags", [1, 2])
@pytest.mark.parametrize("tag", [p.ETH_VLAN, p.ETH_QINQ])
def test_tagged_frames_on_the_wire(wired: Programs, tag: int, tags: int) -> None:
    """The kernel has taken the (outer) tag out of the packet by then."""
    body, kind = INNER, p.ETH_IPV4
    for _ in range(tags):
        body, kind = struct.pack("!HH", 5, kind) + body, tag
    send(wired.topology, A1, p.ethernet(A2.mac, A1.mac, kind, body))
    assert wired.counted() == {"DROP_VLAN": 1}
    assert wired.topology.received("a2") == []


def test_short_frames_on_the_wire(wired: Programs) -> None:
    for name, frame in CUT.items():
        for length in range(14, REFUSED[int.from_bytes(frame[12:14], "big")]):
            send(wired.topology, A1, frame[:length])
            counted = wired.counted()
            # A bare Ethernet header the device's own driver may already refuse.
            assert counted in ({"DROP_TRUNCATED": 1}, {} if length == 14 else None), (name, length)
    assert wired.topology.received("a2") == wired.topology.received("a3") == []


def test_rows_on_the_wire(wired: Programs) -> None:
    """Every refused frame of the tables once more, sent for real: not a byte arrives anywhere."""
    for row in (*SPOOFING, *ARP, *NEIGHBOURS, *FOREIGN, *LIES):
        if row.sender is A1 and row.verdict == SHOT:
            send(wired.topology, A1, row.packet)
            assert wired.counted() == {row.reason.name: 1}, row.sentence
    assert [wired.topology.received(name) for name in ("a1", "a2", "a3")] == [[], [], []]


def test_published_port_is_no_source_port(programs: Programs) -> None:
    got = programs.run(A1, A1.sends(OUTSIDE, p.udp(20005, 53)))
    assert got.reasons == {"TO_OUTSIDE": 1}
    assert int.from_bytes(got.packet[34:36], "big") != 20005
    tcp = programs.run(A1, A1.sends(OUTSIDE, p.tcp(20005, 53, p.SYN)))  # published for UDP only
    assert int.from_bytes(tcp.packet[34:36], "big") == 20005


def test_two_containers_with_one_source_port(programs: Programs) -> None:
    """The first keeps it, the second gets another, to any destination."""
    programs.run(A1, A1.sends(OUTSIDE, p.udp(SPORT, 53)))
    second = programs.run(A2, A2.sends(OUTSIDE, p.udp(SPORT, 53)))
    assert second.reasons == {"TO_OUTSIDE": 1}
    assert int.from_bytes(second.packet[34:36], "big") != SPORT
    third = programs.run(A2, A2.sends(NEXT_HOP, p.udp(SPORT, 53)))
    assert third.packet[34:36] == second.packet[34:36]


@pytest.mark.parametrize(
    ("family", "host", "everywhere", "outside"),
    [(socket.AF_INET, HOST, "0.0.0.0", OUTSIDE), (socket.AF_INET6, HOST6, "::", OUTSIDE6)],
    ids=["IPv4", "IPv6"],
)
def test_a_port_of_the_hosts_own_sockets_is_not_taken(
    programs: Programs, family: int, host: p.Address, everywhere: str, outside: p.Address
) -> None:
    at = 34 if family == socket.AF_INET else 54
    with socket.socket(family, socket.SOCK_DGRAM) as sock, socket.socket(family) as listener:
        sock.bind((str(host), SPORT))
        listener.bind((everywhere, SPORT))
        listener.listen()
        for carried in (p.udp(SPORT, 53), p.tcp(SPORT, 53, p.SYN)):
            got = programs.run(A1, A1.sends(outside, carried))
            assert got.reasons == {"TO_OUTSIDE": 1}
            assert int.from_bytes(got.packet[at : at + 2], "big") != SPORT


def test_an_address_is_used_again_by_another_endpoint(programs: Programs) -> None:
    """A connection of the earlier holder is not continued: the new one gets its own."""
    frame = A1.sends(OUTSIDE, p.udp(SPORT, 53))
    programs.run(A1, frame)
    key = abi.device_key(programs.ifindex(A1))
    device = programs.maps["devices"][key]
    programs.maps["devices"][key] = device._replace(endpoint=99)
    try:
        assert programs.run(A1, frame).reasons == {"TO_OUTSIDE": 1}
        assert {c.from_endpoint for c in programs.table("pending").values()} == {0, 99}
        assert IPv4Address(programs.run(A1, frame).packet[26:30]) == HOST
    finally:
        programs.maps["devices"][key] = device
