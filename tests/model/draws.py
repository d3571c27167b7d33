# SPDX-License-Identifier: Apache-2.0
"""The parts that random packets are made of: who sends, addresses, ports, headers with now and then something unusual
about them."""

from __future__ import annotations

import random
from collections import deque
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from tests.model.connections import Connection
from tests.model.expected import readdressed
from tests.model.hosts import OUT4, OUT6
from tests.model.packet import ACK, FIN, ICMP, ICMPV6, PSH, RST, SYN, TCP, UDP, URG, Key, Packet
from tests.model.reference import Reference
from tests.model.services import is_gateway
from tests.model.topology import LOCAL_SENDER, LOOPBACK, Member, Network, Topology, Uplink
from tests.model.tunnels import Overlay, Peer
from tests.model.writing import carried, frame_of, ip4, ip6, summed

FLAGS = (
    SYN,
    SYN | ACK,
    ACK,
    ACK,
    ACK | PSH,
    ACK | PSH,
    FIN | ACK,
    RST,
    RST | ACK,
    0,
    SYN | FIN,
    SYN | RST,
    63,
    URG | ACK,
)
ODD4 = [
    IPv4Address(a).packed
    for a in (
        "127.0.0.1",
        "127.0.0.11",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.251",
        "240.0.0.1",
        "169.254.1.1",
        "198.18.0.9",
        "198.18.1.9",
        "198.18.2.9",
        "100.64.0.1",
        "239.1.2.3",
        "0.1.2.3",
        "127.255.255.255",
    )
]
ODD6 = [
    IPv6Address(a).packed
    for a in (
        "::",
        "::1",
        "::2",
        "ff02::1",
        "ff01::1",
        "ff05::2",
        "fe80::1",
        "fe80::dead",
        "fec0::1",
        "64:ff9b::1",
        "::ffff:172.17.0.2",
        "100::9",
        "ff02::1:ff00:2",
        "2002::1",
        "fd00:dead::1",
    )
]

NEIGHBOUR = b"\x02\0\0\0\0\xbb"  # who is at an uplink's other end
LARGEST = 3000  # bytes of a packet: a test run takes no more than a page, with its headroom
TIMESTAMPS = b"\1\1\x08\x0a" + bytes(range(8))
# Of IPv4: a label and a router alert, which every fragment has, and a recorded route, which only the first one has.
IP_OPTIONS = (b"\x82\x0b" + bytes(9), b"\x07\x07\4" + bytes(4), b"\x94\4\0\0")


class Sent(NamedTuple):
    hook: str
    sender: Member | Network | Uplink
    frame: bytes
    forwarded: bool = False
    gso: int = 0


class Draws:
    def __init__(self, rng: random.Random, topology: Topology, reference: Reference) -> None:
        self.rng, self.topology, self.reference = rng, topology, reference
        self.random = rng.random
        self.recent: deque[Sent] = deque(maxlen=64)
        self.waiting: list[Sent] = []  # fragments to come
        self.data = [
            rng.randbytes(n) for n in (0, 1, 2, 3, 8, 8, 16, 17, 33, 64, 64, 64, 100, 200, 512, 1200, 1232)
        ]
        self.data += [rng.randbytes(n) for n in (1260, 1380, 1400, 1452, 1460, 1472, 1473, 1480, 1600)]
        self.small = self.data[:13]
        self.extensions = [
            (60, b"\0\1\4" + bytes(4)),
            (0, b"\0\5\2\0\0\1\0"),
            (43, b"\0\4\0" + bytes(4)),
            (60, b"\1" + bytes(14)),
            (51, b"\1" + bytes(10)),
        ]
        first, last = topology.nat_first, topology.nat_last
        self.sources = [
            first,
            last,
            first + 3,
            first + 5,
            first + 7,
            7,
            50000,
            33000,
            first - 1,
            last + 1,
            80,
            700,
        ]
        self.targets = [53, 80, 443, 8081, 8082, 8083, first + 5, 33434]
        self.widths = sorted({one.mtu for one in topology.networks} | {one.mtu for one in topology.uplinks})
        self.members = [m for m in topology.members if m.addr4 or m.addr6]

    def pick(self, pool: list[bytes]) -> bytes:
        return pool[int(self.random() * len(pool))]

    def member(self) -> Member:
        return self.members[int(self.random() * len(self.members))]

    def family(self, member: Member) -> int:
        if member.addr4 and (not member.addr6 or self.random() < 0.55):
            return 4
        return 16

    def proto(self, size: int) -> int:
        at = self.random()
        if at < 0.45:
            return TCP
        if at < 0.85:
            return UDP
        return ICMP if size == 4 else ICMPV6

    def port(self, pool: list[int]) -> int:
        if self.random() < 0.15:
            return int(self.random() * 65536)
        return pool[int(self.random() * len(pool))]

    def payload(self) -> bytes:
        pool = self.small if self.random() < 0.9 else self.data
        return pool[int(self.random() * len(pool))]

    def packet(self, key: Key, flags: int | None = None, ttl: int | None = None) -> bytes:
        """An IP packet of a half, with now and then something unusual about it."""
        rare = self.random
        if flags is None:
            flags = FLAGS[int(rare() * len(FLAGS))]
        proto, src, _, dst, _ = key
        options = TIMESTAMPS if proto == TCP and rare() < 0.1 else b""
        body = carried(key, flags, self.payload(), int(rare() * 8), options)
        if flags & RST and proto == TCP and rare() < 0.5:
            # Where the other side expects data: `carried` acknowledges always the same.
            body = summed(src, dst, proto, body[:4] + body[8:12] + body[8:], 16)
        at = rare()
        if at < 0.06 and proto == UDP:
            body = body[:6] + b"\0\0" + body[8:]
        elif at < 0.09 and len(body) > 17:
            place = 16 if proto == TCP else 6 if proto == UDP else 2
            body = body[:place] + self.rng.randbytes(2) + body[place + 2 :]
        elif at < 0.1 and len(body) > 17:
            place = 16 if proto == TCP else 6 if proto == UDP else 2
            body = body[:place] + (b"\xff\xff" if rare() < 0.5 else b"\0\0") + body[place + 2 :]
        return self.wrapped(src, dst, proto, body, ttl)

    def wrapped(self, src: bytes, dst: bytes, proto: int, body: bytes, ttl: int | None = None) -> bytes:
        rare = self.random
        if ttl is None:
            ttl = 64 if rare() < 0.9 else (0, 1, 2, 3, 128, 255)[int(rare() * 6)]
        if len(src) == 4:
            if rare() < 0.85:
                return ip4(src, dst, proto, body, ttl=ttl)
            word = (0x4000, 0, 0x8000, 0xC000)[int(rare() * 4)]
            options = b"" if rare() < 0.7 else self.options()
            return ip4(
                src,
                dst,
                proto,
                body,
                ttl=ttl,
                word=word,
                ident=int(rare() * 65536),
                tos=self.service(),
                options=options,
            )
        if rare() < 0.85:
            return ip6(src, dst, proto, body, ttl=ttl)
        count = 0 if rare() < 0.5 else int(rare() * 6)
        chain = tuple(self.extensions[int(rare() * len(self.extensions))] for _ in range(count))
        return ip6(
            src, dst, proto, body, ttl=ttl, label=self.service() << 20 | int(rare() * (1 << 20)), chain=chain
        )

    def service(self) -> int:
        """Type of service, traffic class: one that a rule may be about, or any."""
        return 0x10 if self.random() < 0.4 else int(self.random() * 256)

    def options(self) -> bytes:
        """Of IPv4, whole words."""
        if self.random() < 0.5:
            return b"\1" * (4 * int(self.random() * 11))
        some = b"".join(one for one in IP_OPTIONS if self.random() < 0.5)
        return some + bytes(-len(some) % 4)

    def from_member(self, member: Member, packet: bytes, to: bytes | None = None) -> Sent:
        if to is None:
            to = member.network.mac
            if member.network.lan and self.random() < 0.5:
                to = NEIGHBOUR
            if self.random() < 0.02:
                to = self.rng.randbytes(6)
        return Sent("from_container", member, frame_of(to, member.mac, packet))

    def by(self, party: Member | None, packet: bytes) -> Sent:
        """By one side of a connection; now and then what the host says comes from outside."""
        if party and party.peer:
            assert self.topology.overlay
            return self.tunnelled(self.topology.overlay, party.peer, packet)
        if is_gateway(party):
            assert party
            mac = party.network.mac
            return Sent("from_host", party.network, frame_of(mac, mac, packet))
        if party is LOCAL_SENDER and self.random() < 0.97:
            return self.from_host_itself(packet)
        return (
            self.from_member(party, packet)
            if party and party is not LOCAL_SENDER
            else self.from_outside(packet)
        )

    def tunnelled(
        self, overlay: Overlay, peer: Peer, packet: bytes, tos: int = 0, source: bytes = b""
    ) -> Sent:
        """By another host."""
        if overlay.encrypted:
            gateway, own = overlay.network.gateway, overlay.number
            p = Packet(frame_of(bytes(6), bytes(6), packet))
            src = overlay.called(peer.number, len(p.src)) if p.src == gateway(len(p.src)) else p.src
            dst = overlay.called(own, len(p.dst)) if p.dst == gateway(len(p.dst)) else p.dst
            if not p.fault:
                return Sent("from_tunnel", overlay.encrypted, readdressed(p, src, dst))
        if overlay.direct and self.random() < 0.6:
            uplink = self.topology.uplinks[0]
            return Sent("from_uplink", uplink, frame_of(uplink.mac, NEIGHBOUR, packet))
        kind = b"\x08\0" if packet[0] >> 4 == 4 else b"\x86\xdd"
        macs = overlay.mac + (source or peer.mac)
        data = b"\x08\0\0\0" + (overlay.vni << 8).to_bytes(4, "big") + macs + kind + packet
        return self.in_datagram(overlay, peer.addr, data, tos)

    def in_datagram(
        self, overlay: Overlay, end: bytes, data: bytes, tos: int = 0, word: int = 0x4000
    ) -> Sent:
        """To this host's end of tunnels."""
        own = overlay.ends[len(end)]
        body = (33000 << 48 | overlay.port << 32 | (8 + len(data)) << 16).to_bytes(8, "big") + data
        if len(end) == 4:
            outer = ip4(end, own, UDP, body, word=word, tos=tos)
        else:
            outer = ip6(end, own, UDP, body, label=tos << 20)
        uplink = self.topology.uplinks[0]
        return Sent("from_uplink", uplink, frame_of(uplink.mac, NEIGHBOUR, outer))

    def from_host_itself(self, packet: bytes) -> Sent:
        return Sent("from_loopback", LOOPBACK, frame_of(LOOPBACK.mac, LOOPBACK.mac, packet))

    def from_outside(self, packet: bytes) -> Sent:
        uplinks = self.topology.uplinks
        uplink = uplinks[int(self.random() * len(uplinks))]
        if not uplink.ethernet:
            return Sent("from_tunnel", uplink, frame_of(bytes(6), bytes(6), packet))
        mac = uplink.mac if self.random() < 0.98 else b"\xff" * 6
        return Sent("from_uplink", uplink, frame_of(mac, NEIGHBOUR, packet))

    def outside(self, size: int) -> bytes:
        return self.pick(OUT4 if size == 4 else OUT6)

    def host_address(self, size: int) -> bytes:
        if self.random() < 0.6:
            uplink = self.topology.uplinks[int(self.random() * len(self.topology.uplinks))]
            return uplink.address(size) or self.topology.uplinks[0].address(size)
        return self.pick([a for a in sorted(self.topology.host) if len(a) == size])

    def somewhere(self, size: int) -> bytes:
        at = self.random()
        if at < 0.3:
            return self.pick(ODD4 if size == 4 else ODD6)
        if at < 0.5:
            return self.host_address(size)
        if at < 0.8:
            other = self.member()
            address = other.addr4 if size == 4 else other.addr6 if at < 0.75 else other.linklocal
            if at < 0.52 and address:
                address = address[:-1] + bytes((address[-1] ^ 0x60,))
            if address:
                return address
        if at < 0.9:
            net = self.topology.networks[int(self.random() * len(self.topology.networks))]
            address = net.gateway(size)
            if size == 4 and self.random() < 0.3:
                address = net.broadcast if net.ipv4 else b""
            elif size == 16 and self.random() < 0.3:
                address = net.linklocal
            if address:
                return address
        if at < 0.95:
            return self.rng.randbytes(size)
        return self.outside(size)

    def connection(self) -> Connection | None:
        known = self.reference.connections.all
        if not known:
            return None
        span = min(len(known), 60) if self.random() < 0.8 else len(known)
        return known[len(known) - 1 - int(self.random() * span)]
