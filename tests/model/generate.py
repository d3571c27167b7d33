# SPDX-License-Identifier: Apache-2.0
"""Random hosts, topologies and packets: all from one `random.Random`, so that a seed says everything."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import NamedTuple

from datapath.model.endpoints import linklocal_of
from tests.model.fixtures import Lan, Plan, uplink_mac
from tests.model.packet import ICMP, ICMPV6, TCP, UDP, Key, backwards, checksum
from tests.model.reference import Connection, Reference
from tests.model.topology import LOCAL_SENDER, LOOPBACK, Member, Network, Published, Route, Topology, Uplink

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
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
    63,
    URG | ACK,
)
OUT4 = [
    IPv4Address(a).packed
    for a in ("203.0.113.5", "203.0.113.77", "198.51.100.200", "8.8.8.8", "93.184.216.34")
]
OUT6 = [
    IPv6Address(a).packed for a in ("2001:db8:9::5", "2001:db8:9::77", "2606:4700::1111", "2a00:1450::8a")
]
ODD4 = [
    IPv4Address(a).packed
    for a in (
        "127.0.0.1",
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
LOCAL = [IPv4Address("127.0.0.1").packed, IPv6Address("::1").packed]  # the host, as only it calls itself
PORTS = (22, 53, 80, 443, 8080, 1, 65535, 0, 33434)


class Sent(NamedTuple):
    hook: str
    sender: Member | Network | Uplink
    frame: bytes
    forwarded: bool = False
    gso: int = 0


# ---- hosts and topologies ------------------------------------------------------------------------------


def plan(rng: random.Random) -> Plan:
    lans = []
    sizes = (16, 16, 24, 20, 28)
    for number in range(1, rng.randint(4, 6)):
        length = rng.choice(sizes)
        base = (
            IPv4Address(f"172.{16 + number}.0.0") if rng.random() < 0.6 else IPv4Address(f"10.{number}.64.0")
        )
        subnet4 = IPv4Interface(f"{base + 1}/{length}")
        subnet6 = IPv6Interface(f"fd00:{number}:{rng.randrange(65536):x}::1/64")
        mtu = rng.choice((1500, 1500, 1500, 1400, 1280))
        lans.append(Lan(number, subnet4, subnet6, mtu, rng.randint(2, 4)))
    uplinks = [
        (IPv4Interface("192.0.2.1/24"), IPv6Interface("2001:db8:1::1/64"), rng.choice((1500, 1500, 1400)))
    ]
    outs = [("0.0.0.0/0", 0), ("::/0", 0)]
    if rng.random() < 0.2:
        outs.remove(("::/0", 0))
    if rng.random() < 0.5:
        uplinks.append((IPv4Interface("198.51.100.129/25"), IPv6Interface("2001:db8:2::1/64"), 1500))
        outs += [("203.0.113.64/26", 1), ("2001:db8:9::40/122", 1)]
    first = rng.choice((1024, 20000, 50000))
    return Plan(
        lans=lans,
        uplinks=uplinks,
        extra=[IPv4Address("198.51.100.1"), IPv6Address("2001:db8:ee::1")],
        outs=outs,
        stops=[
            ("198.18.0.0/24", "blackhole"),
            ("198.18.1.0/24", "unreachable"),
            ("198.18.2.0/24", "prohibit"),
            ("100::/64", "blackhole"),
        ],
        ports=(first, first + rng.choice((31, 255, 2000, 14000))),
        sockets=[(first + at, proto) for at in (7, 9, 20) for proto in (TCP, UDP) if rng.random() < 0.5],
    )


def routes(host: Plan, networks: dict[int, Network], uplinks: list[Uplink]) -> list[Route]:
    found = []

    def add(prefix: str, kind: str, uplink: Uplink | None = None, network: Network | None = None) -> None:
        net = IPv6Interface(prefix).network if ":" in prefix else IPv4Interface(prefix).network
        size = len(net.network_address.packed)
        found.append(Route(int(net.network_address), net.prefixlen, size, kind, uplink, network))

    for prefix, number in host.outs:
        add(prefix, "out", uplinks[number])
    for i, (v4, v6, _) in enumerate(host.uplinks):
        add(str(v4.network), "out", uplinks[i])
        add(str(v6.network), "out", uplinks[i])
    for prefix, _ in host.stops:
        add(prefix, "stop")
    for lan in host.lans:
        add(str(lan.subnet4.network), "net", network=networks[lan.number])
        add(str(lan.subnet6.network), "net", network=networks[lan.number])
    return found


def topology(rng: random.Random, host: Plan) -> Topology:
    networks, members = {}, []
    uplinks = [
        Uplink(f"up{i}", bytes.fromhex(uplink_mac(i).replace(":", "")), v4.ip.packed, v6.ip.packed, mtu)
        for i, (v4, v6, mtu) in enumerate(host.uplinks)
    ]
    number = rng.randint(1, 50)
    for lan in host.lans:
        ipv6, ipv4 = rng.random() < 0.75, True
        if ipv6 and rng.random() < 0.12:
            ipv4 = False
        prefix = lan.subnet4.network
        net = Network(
            number=lan.number,
            mac=bytes.fromhex(lan.mac.replace(":", "")),
            icc=rng.random() < 0.65,
            internal=rng.random() < 0.15,
            masquerade=rng.random() < 0.8,
            ipv4=ipv4,
            ipv6=ipv6,
            mtu=lan.mtu,
            broadcast=prefix.broadcast_address.packed if ipv4 else bytes(4),
            gateway4=lan.subnet4.ip.packed if ipv4 else b"",
            gateway6=lan.subnet6.ip.packed if ipv6 else b"",
            linklocal=linklocal_of(lan.mac).packed if ipv6 else b"",
        )
        networks[lan.number] = net
        for slot in range(lan.members):
            if rng.random() < 0.1:
                continue
            number += 1
            mac = bytes([2, 0x42]) + (lan.subnet4.ip + 1 + slot).packed
            if rng.random() < 0.2:
                mac = b"\x02" + rng.randbytes(5)
            member = Member(net, number, mac, f"m{lan.number}-{slot}")
            if ipv4:
                member.addr4 = (lan.subnet4.ip + 1 + slot).packed
            if ipv6:
                member.addr6 = (lan.subnet6.ip + 1 + slot).packed
                member.linklocal = linklocal_of(mac.hex(":")).packed
            for address in (member.addr4, member.addr6, member.linklocal):
                if address:
                    net.members[address] = member
            members.append(member)
    hosts = {a.packed for a in host.extra}
    for lan in host.lans:
        # A router also has its subnet's anycast address (RFC 4291, 2.6.1).
        hosts |= {lan.subnet4.ip.packed, lan.subnet6.ip.packed, lan.subnet6.network.network_address.packed}
    for v4, v6, _ in host.uplinks:
        hosts |= {v4.ip.packed, v6.ip.packed}
    broadcasts = {v4.network.broadcast_address.packed for v4, _, _ in host.uplinks}
    broadcasts |= {lan.subnet4.network.broadcast_address.packed for lan in host.lans}
    return Topology(
        networks=list(networks.values()),
        members=members,
        uplinks=uplinks,
        host=hosts,
        routes=routes(host, networks, uplinks),
        ports=_ports(rng, host, members, sorted(hosts)),
        links=_links(rng, members),
        nat_first=host.ports[0],
        nat_last=host.ports[1],
        sockets=frozenset(host.sockets),
        broadcasts=broadcasts,
    )


def _ports(
    rng: random.Random, host: Plan, members: list[Member], hosts: list[bytes]
) -> dict[tuple[bytes, int, int], Published]:
    ports: dict[tuple[bytes, int, int], Published] = {}
    candidates = [m for m in members if not m.network.internal]
    for _ in range(rng.randint(0, 12) if candidates else 0):
        member = rng.choice(candidates)
        target = rng.choice([a for a in (member.addr4, member.addr6) if a])
        family = [a for a in [*hosts, *LOCAL] if len(a) == len(target)]
        where = bytes(len(target)) if rng.random() < 0.6 else rng.choice(family)
        port = rng.choice((8081, 8082, 8083, host.ports[0] + 5, 80, 443, 53))
        proto = rng.choice((TCP, UDP))
        published = Published(member, target, rng.choice((80, 53, 8081, port)))
        if rng.random() < 0.4:
            published.filtered, published.refuse = True, rng.random() < 0.6
            rules = [_rule(rng, len(target), members, hosts) for _ in range(rng.randint(0, 5))]
            published.rules = tuple({rule[:2]: rule for rule in rules}.values())
        ports[where, port, proto] = published
    return ports


def _rule(
    rng: random.Random, size: int, members: list[Member], hosts: list[bytes]
) -> tuple[bytes, int, bool]:
    pool = (OUT4 if size == 4 else OUT6) + [a for a in (*LOCAL, *hosts) if len(a) == size]
    pool += [a for m in members for a in (m.addr4 if size == 4 else m.addr6,) if a]
    length = rng.choice((0, 8, 16, 24, 32) if size == 4 else (0, 16, 48, 64, 128))
    value = int.from_bytes(rng.choice(pool), "big")
    shift = size * 8 - length
    return ((value >> shift << shift).to_bytes(size, "big"), length, rng.random() < 0.5)


def _links(rng: random.Random, members: list[Member]) -> set[tuple[bytes, bytes, int, int]]:
    links = set()
    for client in members:
        for server in members:
            if client is server or client.network is not server.network or client.network.icc:
                continue
            if rng.random() < 0.4:
                port, proto = rng.choice((80, 53)), rng.choice((TCP, UDP))
                for a, b in ((client.addr4, server.addr4), (client.addr6, server.addr6)):
                    if a and b:
                        links.add((a, b, port, proto))
    # Of two rules for one key the second would hide the first: the reference knows no such thing.
    return links


# ---- writing packets -------------------------------------------------------------------------------------


def summed(src: bytes, dst: bytes, proto: int, body: bytes, at: int) -> bytes:
    pseudo = src + dst + (len(body) << 32 | proto).to_bytes(8, "big")
    check = checksum(pseudo + body)
    if proto == UDP and not check:
        check = 0xFFFF
    return body[:at] + check.to_bytes(2, "big") + body[at + 2 :]


def carried(key: Key, flags: int, data: bytes, sequence: int = 1) -> bytes:
    """The transport part of a packet of a connection's half."""
    proto, src, sport, dst, dport = key
    if proto == TCP:
        body = (
            (sport << 16 | dport).to_bytes(4, "big")
            + b"\1\2\3\4\5\6\7\x08\x50"
            + bytes((flags,))
            + b"\xff\xff\0\0\0\0"
            + data
        )
        return summed(src, dst, proto, body, 16)
    if proto == UDP:
        body = (sport << 48 | dport << 32 | (8 + len(data)) << 16).to_bytes(8, "big") + data
        return summed(src, dst, proto, body, 6)
    six = proto == ICMPV6
    # Identifier 0 on one side says which of the two asks.
    kind = (128 if six else 8) if sport or not dport else (129 if six else 0)
    body = bytes((kind, 0, 0, 0)) + (sport or dport).to_bytes(2, "big") + sequence.to_bytes(2, "big") + data
    return icmp(src, dst, body)


def icmp(src: bytes, dst: bytes, body: bytes) -> bytes:
    """With its sum, of the family of its addresses."""
    if len(src) == 16:
        return summed(src, dst, ICMPV6, body, 2)
    return body[:2] + checksum(body[:2] + b"\0\0" + body[4:]).to_bytes(2, "big") + body[4:]


def ip4(
    src: bytes,
    dst: bytes,
    proto: int,
    body: bytes,
    *,
    ttl: int = 64,
    word: int = 0x4000,
    ident: int = 0x1234,
    tos: int = 0,
    options: bytes = b"",
) -> bytes:
    size = 20 + len(options)
    head = (
        bytes((0x40 | size >> 2, tos))
        + ((size + len(body)) << 32 | ident << 16 | word).to_bytes(6, "big")
        + bytes((ttl, proto, 0, 0))
        + src
        + dst
        + options
    )
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def ip6(
    src: bytes,
    dst: bytes,
    proto: int,
    body: bytes,
    *,
    ttl: int = 64,
    label: int = 0,
    chain: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    kinds = [kind for kind, _ in chain] + [proto]
    more = b"".join(bytes((kinds[i + 1],)) + rest for i, (_, rest) in enumerate(chain))
    return (
        (6 << 28 | label).to_bytes(4, "big")
        + (len(more) + len(body)).to_bytes(2, "big")
        + bytes((kinds[0], ttl))
        + src
        + dst
        + more
        + body
    )


def frame_of(dst_mac: bytes, src_mac: bytes, packet: bytes) -> bytes:
    return dst_mac + src_mac + (b"\x08\0" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet


# ---- what to send -----------------------------------------------------------------------------------------


class Generator:
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
            40000,
            33000,
            first - 1,
            last + 1,
            80,
        ]
        self.targets = [53, 80, 443, 8081, 8082, 8083, first + 5, 33434]
        self.plain: list[tuple[float, Callable[[], Sent | None]]] = []
        total = 0.0
        for weight, make in (
            (34, self.of_connection),
            (11, self.to_outside),
            (9, self.to_published),
            (9, self.published_from_outside),
            (6, self.published_from_loopback),
            (9, self.to_member),
            (5, self.to_host),
            (3, self.arp),
            (3, self.solicits),
            (0.5, self.to_group),
            (4, self.by_host),
            (8, self.error),
            (5, self.anything),
            (10, self.mutated),
            (2.5, self.fragmented),
        ):
            total += weight
            self.plain.append((total, make))
        self.total = total
        self.members = [m for m in topology.members if m.addr4 or m.addr6]

    def pick(self, pool: list[bytes]) -> bytes:
        return pool[int(self.random() * len(pool))]

    def next(self) -> Sent:
        while True:
            if self.waiting and self.random() < 0.5:
                return self.waiting.pop(0)
            at = self.random() * self.total
            sent = next(make for limit, make in self.plain if at < limit)()
            if sent is not None and len(sent.frame) >= 15:
                self.recent.append(sent)
                return sent

    # ---- parts ----

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
        body = carried(key, flags, self.payload(), int(rare() * 8))
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
            options = b"" if rare() < 0.7 else b"\1" * (4 * int(rare() * 11))
            return ip4(
                src,
                dst,
                proto,
                body,
                ttl=ttl,
                word=word,
                ident=int(rare() * 65536),
                tos=int(rare() * 256),
                options=options,
            )
        if rare() < 0.85:
            return ip6(src, dst, proto, body, ttl=ttl)
        count = 0 if rare() < 0.5 else int(rare() * 6)
        chain = tuple(self.extensions[int(rare() * len(self.extensions))] for _ in range(count))
        return ip6(src, dst, proto, body, ttl=ttl, label=int(rare() * (1 << 28)), chain=chain)

    def from_member(self, member: Member, packet: bytes, to: bytes | None = None) -> Sent:
        if to is None:
            to = member.network.mac
            if self.random() < 0.02:
                to = self.rng.randbytes(6)
        return Sent("from_container", member, frame_of(to, member.mac, packet))

    def by(self, party: Member | None, packet: bytes) -> Sent:
        """By one side of a connection; now and then what the host says comes from outside."""
        if party is LOCAL_SENDER and self.random() < 0.97:
            return self.from_host_itself(packet)
        return (
            self.from_member(party, packet)
            if party and party is not LOCAL_SENDER
            else self.from_outside(packet)
        )

    def from_host_itself(self, packet: bytes) -> Sent:
        return Sent("from_loopback", LOOPBACK, frame_of(LOOPBACK.mac, LOOPBACK.mac, packet))

    def from_outside(self, packet: bytes) -> Sent:
        uplinks = self.topology.uplinks
        uplink = uplinks[int(self.random() * len(uplinks))]
        mac = uplink.mac if self.random() < 0.98 else b"\xff" * 6
        return Sent("from_uplink", uplink, frame_of(mac, b"\x02\0\0\0\0\xbb", packet))

    def outside(self, size: int) -> bytes:
        return self.pick(OUT4 if size == 4 else OUT6)

    def host_address(self, size: int) -> bytes:
        if self.random() < 0.6:
            uplink = self.topology.uplinks[int(self.random() * len(self.topology.uplinks))]
            return uplink.addr4 if size == 4 else uplink.addr6
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

    # ---- kinds ----

    def connection(self) -> Connection | None:
        known = self.reference.connections
        if not known:
            return None
        span = min(len(known), 60) if self.random() < 0.8 else len(known)
        return known[len(known) - 1 - int(self.random() * span)]

    def of_connection(self) -> Sent | None:
        connection = self.connection()
        if connection is None:
            return None
        original = self.random() < 0.45
        key = connection.original if original else connection.answer
        sender = connection.opener if original else connection.server
        packet = self.packet(key)
        sent = self.by(sender, packet)
        if key[0] == TCP and len(packet) > 500 and self.random() < 0.3:
            return sent._replace(gso=(500, 1200, 1360, 1420, 1448, 1460)[int(self.random() * 6)])
        return sent

    def to_outside(self) -> Sent:
        member = self.member()
        size = self.family(member)
        proto = self.proto(size)
        src = member.addr4 if size == 4 else member.addr6
        sport, dport = self.port(self.sources), self.port(self.targets)
        if proto in (ICMP, ICMPV6):
            dport = 0
            if self.random() < 0.05:
                sport, dport = 0, sport
        flags = SYN if self.random() < 0.7 else None
        return self.from_member(member, self.packet((proto, src, sport, self.outside(size), dport), flags))

    def published(self) -> tuple[bytes, int, int, Published] | None:
        ports = self.topology.ports
        if not ports:
            return None
        keys = list(ports)
        host, port, proto = keys[int(self.random() * len(keys))]
        published = ports[host, port, proto]
        if self.random() < 0.05:
            proto = TCP + UDP - proto
        if not any(host) or self.random() < 0.1:
            host = self.host_address(len(host))
        return host, port, proto, published

    def to_published(self) -> Sent | None:
        found = self.published()
        if found is None:
            return None
        host, port, proto, published = found
        member = published.member if self.random() < 0.15 else self.member()
        src = member.addr4 if len(host) == 4 else member.addr6
        if not src:
            return None
        if self.random() < 0.03 and len(host) == 16:
            src = member.linklocal
        flags = SYN if self.random() < 0.7 else None
        return self.from_member(member, self.packet((proto, src, self.port(self.sources), host, port), flags))

    def published_from_outside(self) -> Sent | None:
        found = self.published()
        if found is None:
            return None
        host, port, proto, _ = found
        src = self.outside(len(host)) if self.random() < 0.9 else self.somewhere(len(host))
        flags = SYN if self.random() < 0.7 else None
        return self.from_outside(self.packet((proto, src, self.port(self.sources), host, port), flags))

    def published_from_loopback(self) -> Sent | None:
        found = self.published()
        if found is None:
            return None
        host, port, proto, _ = found
        at, size = self.random(), len(host)
        if at < 0.25:
            host = LOCAL[0] if size == 4 else LOCAL[1]
        src = host if at < 0.8 else self.host_address(size) if at < 0.95 else self.somewhere(size)
        if at < 0.05:
            port = self.port(self.targets)
        flags = SYN if self.random() < 0.7 else None
        return self.from_host_itself(self.packet((proto, src, self.port(self.sources), host, port), flags))

    def to_member(self) -> Sent | None:
        member, size = self.member(), 4
        others = [m for m in self.members if m.network is member.network]
        other = others[int(self.random() * len(others))]
        size = self.family(member)
        src, dst = (member.addr4, other.addr4) if size == 4 else (member.addr6, other.addr6)
        if size == 16 and self.random() < 0.3:
            src, dst = member.linklocal, other.linklocal
        sport, dport = self.port(self.targets), self.port(self.targets)
        if self.topology.links and self.random() < 0.5:
            client, server, port, proto = self.rng.choice(sorted(self.topology.links))
            key: Key = (proto, client, sport, server, port)
            if self.random() < 0.5:
                key = backwards(key)
            for one in self.members:
                if key[1] in (one.addr4, one.addr6):
                    return self.from_member(one, self.packet(key), one.network.mac)
        proto = self.proto(size)
        to = other.mac if self.random() < 0.9 else None
        return self.from_member(member, self.packet((proto, src, sport, dst, dport)), to)

    def to_host(self) -> Sent:
        member = self.member()
        size = self.family(member)
        src = member.addr4 if size == 4 else member.addr6
        net = member.network
        dst = net.gateway(size) if self.random() < 0.6 else self.host_address(size)
        if size == 16 and self.random() < 0.2:
            src, dst = member.linklocal, net.linklocal
        key = (self.proto(size), src, self.port(self.targets), dst, self.port(self.targets))
        return self.from_member(member, self.packet(key))

    def arp(self) -> Sent:
        member = self.member()
        rare = self.random
        net = member.network
        target = (
            self.somewhere(4)
            if rare() < 0.5
            else self.pick([*(m.addr4 or bytes(4) for m in net.members.values()), net.gateway4 or bytes(4)])
        )
        source = (
            (member.addr4 or bytes(4)) if rare() < 0.85 else self.somewhere(4) if rare() < 0.5 else bytes(4)
        )
        inside = member.mac if rare() < 0.95 else self.rng.randbytes(6)
        operation = 1 if rare() < 0.85 else int(rare() * 5)
        to = b"\xff" * 6 if rare() < 0.8 else self.rng.choice(self.members).mac
        body = b"\0\1\x08\0\6\4" + operation.to_bytes(2, "big") + inside + source + bytes(6) + target
        if rare() < 0.3:
            body += bytes(18)
        if rare() < 0.3:
            gateway = net.gateway4 or bytes(4)
            body = body[:8] + net.mac + gateway + body[18:]
            return Sent("from_host", net, to + net.mac + b"\x08\x06" + body, rare() < 0.2)
        return Sent("from_container", member, to + member.mac + b"\x08\x06" + body)

    def solicits(self) -> Sent | None:
        member = self.member()
        if not member.addr6:
            return None
        rare, net = self.random, member.network
        pool = [a for a in net.members if len(a) == 16] + [net.gateway6, net.linklocal]
        target = self.pick(pool) if rare() < 0.7 else self.somewhere(16)
        by_host = rare() < 0.25
        src = member.linklocal if rare() < 0.3 else member.addr6
        mac = member.mac
        if by_host:
            src, mac = (net.gateway6, net.mac)
        elif rare() < 0.15:
            src = bytes(16)
        elif rare() < 0.05:
            src = self.somewhere(16)
        group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
        dst, to = (group, b"\x33\x33\xff" + target[13:]) if rare() < 0.8 else (target, net.mac)
        kind = (135, 135, 135, 135, 135, 135, 136, 136, 133, 134, 137, 143)[int(rare() * 12)]
        option = b"" if rare() < 0.3 else b"\1\1" + mac
        if rare() < 0.1:
            option += b"\x0e\1" + self.rng.randbytes(6)
        body = icmp(src, dst, bytes((kind, 0, 0, 0)) + bytes(4) + target + option)
        ttl = 255 if rare() < 0.95 else 64
        packet = self.wrapped(src, dst, ICMPV6, body, ttl)
        if by_host:
            return Sent("from_host", net, frame_of(to, mac, packet))
        return Sent("from_container", member, frame_of(to, mac, packet))

    def to_group(self) -> Sent | None:
        member, rare = self.member(), self.random
        size = self.family(member)
        if size == 4:
            src = member.addr4
            dst = self.rng.choice((member.network.broadcast, b"\xff" * 4, b"\xe0\0\0\xfb"))
            mac = b"\xff" * 6 if dst[0] != 0xE0 else b"\1\0\x5e\0\0\xfb"
        else:
            src = member.addr6
            dst = self.rng.choice([a for a in ODD6 if a[0] == 0xFF])
            mac = b"\x33\x33" + dst[12:]
        if rare() < 0.1:
            dst = self.somewhere(size)
        packet = self.packet((UDP, src, 5353, dst, 5353))
        if rare() < 0.3:
            net = member.network
            return Sent("from_host", net, frame_of(mac, net.mac, packet), rare() < 0.1)
        return Sent("from_container", member, frame_of(mac, member.mac, packet))

    def by_host(self) -> Sent | None:
        member, rare = self.member(), self.random
        size, net = self.family(member), member.network
        dst = member.addr4 if size == 4 else member.addr6 if rare() < 0.8 else member.linklocal
        if rare() < 0.1:
            dst = self.somewhere(size)
        src = net.gateway(size) if rare() < 0.8 else self.somewhere(size)
        mac = member.mac if rare() < 0.9 else self.rng.randbytes(6)
        packet = self.packet((self.proto(size), src, self.port(self.targets), dst, self.port(self.targets)))
        return Sent("from_host", net, frame_of(mac, net.mac, packet), rare() < 0.05)

    def error(self) -> Sent | None:
        connection, rare = self.connection(), self.random
        if connection is None:
            return None
        original = rare() < 0.5
        key = connection.original if original else connection.answer
        sender = connection.opener if original else connection.server
        quoted = backwards(key)  # what reached the sender of the error
        if rare() < 0.05:
            quoted = (quoted[0], quoted[1], quoted[2] ^ 1, quoted[3], quoted[4])
        packet = self.packet(quoted)
        src = key[1] if sender or rare() < 0.4 else self.outside(len(key[1]))
        dst = key[3] if rare() < 0.95 else self.host_address(len(key[3]))
        if len(src) == 4:
            size = 28 if rare() < 0.5 else 548
            kind, code = ((3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (11, 1), (12, 0), (4, 0), (5, 1))[
                int(rare() * 9)
            ]
        else:
            size = 48 if rare() < 0.3 else 1232
            kind, code = ((1, 0), (1, 4), (2, 0), (3, 0), (4, 1), (5, 0))[int(rare() * 6)]
        if rare() < 0.05:
            size = int(rare() * 60)
        word = b"\0\0\5\x14" if rare() < 0.5 else self.rng.randbytes(4)
        body = icmp(src, dst, bytes((kind, code, 0, 0)) + word + packet[:size])
        packet = self.wrapped(src, dst, ICMP if len(src) == 4 else ICMPV6, body)
        return self.by(sender, packet)

    def anything(self) -> Sent:
        member, rare = self.member(), self.random
        size = self.family(member)
        at = rare()
        src = (member.addr4 if size == 4 else member.addr6) if at < 0.6 else self.somewhere(size)
        if size == 16 and at < 0.08:
            src = member.linklocal
        dst = self.somewhere(size)
        if rare() < 0.6:
            packet = self.packet(
                (self.proto(size), src, self.port(self.sources), dst, self.port(self.targets))
            )
        else:
            packet = self.wrapped(
                src,
                dst,
                (132, 47, 2, 253, 50, 59, 41, 1, 58)[int(rare() * 9)],
                self.rng.randbytes(int(rare() * 40)),
            )
        if rare() < 0.3:
            return self.from_outside(packet)
        if rare() < 0.1:
            return self.from_host_itself(packet)
        if rare() < 0.1:
            return Sent("from_host", member.network, frame_of(member.mac, member.network.mac, packet))
        return self.from_member(member, packet)

    def mutated(self) -> Sent | None:
        if not self.recent:
            return None
        rare = self.random
        sent = self.recent[int(rare() * len(self.recent))]
        frame = bytearray(sent.frame)
        at = rare()
        if at < 0.45:
            for _ in range(1 + int(rare() * 3)):
                place = int(rare() * min(len(frame), 80))
                frame[place] ^= 1 << int(rare() * 8)
        elif at < 0.6:
            place = int(rare() * min(len(frame), 80))
            frame[place] = (0, 1, 0x7F, 0x80, 0xFF)[int(rare() * 5)]
        elif at < 0.75:
            frame = frame[: int(rare() * len(frame))]
        elif at < 0.82:
            frame += self.rng.randbytes(int(rare() * 40))
        elif at < 0.9:
            cut = int(rare() * len(frame))
            frame = frame[:cut]
            if frame[12:14] == b"\x08\0" and cut >= 34:
                frame[16:18] = (cut - 14).to_bytes(2, "big")
            elif frame[12:14] == b"\x86\xdd" and cut >= 54:
                frame[18:20] = (cut - 54).to_bytes(2, "big")
        else:
            sender = self.member() if sent.hook == "from_container" else sent.sender
            return Sent(sent.hook, sender, sent.frame, sent.forwarded)
        return Sent(sent.hook, sent.sender, bytes(frame), sent.forwarded)

    def fragmented(self) -> Sent | None:
        """One datagram in pieces: in order or not, now and then one lost, doubled, or overlapping."""
        rare = self.random
        at = rare()
        if at < 0.35:
            whole = self.of_connection()
            if whole:
                whole = whole._replace(gso=0)
        elif at < 0.5:
            whole = self.to_outside()
        elif at < 0.6:
            whole = self.published_from_outside()
        elif at < 0.65:
            whole = self.published_from_loopback()
        elif at < 0.75:
            whole = self.to_published()
        elif at < 0.85:
            whole = self.to_member()
        elif at < 0.92:
            whole = self.to_host()
        else:
            whole = self.anything()
        if whole is None:
            return None
        ident = int(rare() * (1 << 32))
        packet = whole.frame[14:]
        cut = cut4(packet, ident, self.rng) if packet[0] >> 4 == 4 else cut6(packet, ident, self.rng)
        if len(cut) < 2:
            return whole
        at = rare()
        if at < 0.3:
            self.rng.shuffle(cut)
        elif at < 0.4:
            cut.pop(int(rare() * len(cut)))
        elif at < 0.5:
            cut.append(cut[int(rare() * len(cut))])
        elif at < 0.55:
            cut = [cut[-1], *cut[:-1]]
        head = whole.frame[:14]
        pieces = [whole._replace(frame=head + piece) for piece in cut]
        self.waiting += pieces[1:]
        return pieces[0]


def pieces_of(body: bytes, rng: random.Random, least: int) -> list[tuple[int, bytes, bool]]:
    """(offset, bytes, more to come): at most six, cut at eighths; sometimes one of them lies."""
    if len(body) < least + 16:
        body += rng.randbytes(rng.choice((16, 40, 200, 800)))
    count = rng.choice((2, 2, 2, 3, 3, 4, 6))
    lowest = -(-least // 8)
    cuts = sorted({rng.randint(lowest, max(lowest, (len(body) - 1) // 8)) * 8 for _ in range(count - 1)})
    marks = [0, *(c for c in cuts if 0 < c < len(body)), len(body)]
    result = [(a, body[a:b], b < len(body)) for a, b in itertools.pairwise(marks)]
    at = rng.random()
    if at < 0.12 and len(result) > 1:
        number = rng.randrange(1, len(result))
        offset, data, more = result[number]
        change = rng.choice((-8, 8, -16, 65000 - offset))
        result[number] = (max(0, offset + change) & 0xFFF8, data, more)
    elif at < 0.16:
        number = rng.randrange(len(result))
        offset, data, more = result[number]
        result[number] = (offset, data, not more)
    elif at < 0.2:
        number = rng.randrange(len(result))
        offset, data, more = result[number]
        result[number] = (offset, data[: rng.randint(0, len(data))], more)
    return result


def cut4(packet: bytes, ident: int, rng: random.Random) -> list[bytes]:
    size = (packet[0] & 15) * 4
    least = 20 if packet[9] == TCP else 8
    result = []
    for offset, data, more in pieces_of(packet[size:], rng, least if rng.random() < 0.9 else 1):
        head = (
            packet[:2]
            + (size + len(data)).to_bytes(2, "big")
            + (ident & 0xFFFF).to_bytes(2, "big")
            + (offset // 8 | (0x2000 if more else 0)).to_bytes(2, "big")
            + packet[8:10]
            + b"\0\0"
            + packet[12:size]
        )
        result.append(head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + data)
    return result


def cut6(packet: bytes, ident: int, rng: random.Random) -> list[bytes]:
    """Behind the fixed header, so that extension headers are in the first fragment only."""
    kind, body = packet[6], packet[40:]
    at, next_ = 0, kind
    while next_ in (0, 43, 60) and at + 8 <= len(body):
        next_, at = body[at], at + (body[at + 1] + 1) * 8
    least = at + (20 if next_ == TCP else 8)
    result = []
    for offset, data, more in pieces_of(body, rng, least if rng.random() < 0.9 else 1):
        fragment = bytes((kind, 0)) + (offset | more).to_bytes(2, "big") + ident.to_bytes(4, "big")
        length = (8 + len(data)).to_bytes(2, "big")
        result.append(packet[:4] + length + b"\x2c" + packet[7:40] + fragment + data)
    return result
