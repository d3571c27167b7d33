# SPDX-License-Identifier: Apache-2.0
"""What becomes of a packet, said in plain Python: from SCENARIOS, DESIGN, the contract (abi.h) and the RFCs.

`Model` takes the packets of one topology in the order in which they arrive at the hooks, keeps the connections
that they make, and says of each what must happen: an `Expected`. Written to be read beside the scenarios, it
shares nothing with the programs: no table, no order of checks. Where several refusals apply to one packet, any of
their reasons will do.

Decided here, as no document says it:
- Checksums of what passes are not verified, only kept as right or as wrong as they were (RFC 1624): the receiver
  looks. The same goes for the lengths that UDP and TCP state of themselves.
- An address without a route is the host's to refuse (decision 6), as are blackholes.
- Between members a fragment is a packet like any other; translation and policy need to know its ports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
WHOLE, FIRST, LATER = 0, 1, 2
EXTENSIONS, EXTENDED = 4, 40  # IPv6 extension headers that are read, and their bytes; with more it is refused
PIECES, SLOTS = 64, 8  # fragments of one datagram that are kept in mind, and frames kept of it
BROADCAST = b"\xff" * 6
ZERO4, ZERO6 = bytes(4), bytes(16)
MAPPED = bytes(10) + b"\xff\xff"
ALL_NODES, ALL_NODES_MAC = b"\xff\x02" + bytes(13) + b"\1", b"33\0\0\0\1"

SHOT, REDIRECT, NEXT, ANY = 2, 7, -1, -9  # verdicts of a tc program; ANY: as the reason wants it
PASSED = frozenset(
    ("NOT_OURS", "DELIVERED", "TO_HOST", "TO_OUTSIDE", "ANSWERED", "FLOODED", "ABSORBED", "HELD")
)

# protocol, source, its port, destination, its port: as a hook sees the packet arrive
Key = tuple[int, bytes, int, bytes, int]


# ---- the world -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Network:
    number: int
    mac: bytes
    icc: bool = True
    internal: bool = False
    masquerade: bool = True
    ipv4: bool = True
    ipv6: bool = False
    mtu: int = 1500
    broadcast: bytes = ZERO4
    gateway4: bytes = b""
    gateway6: bytes = b""
    linklocal: bytes = b""
    members: dict[bytes, Member] = field(default_factory=dict)  # by each of their addresses

    def gateway(self, size: int) -> bytes:
        return self.gateway4 if size == 4 else self.gateway6


@dataclass(eq=False)
class Member:
    network: Network
    number: int
    mac: bytes
    name: str
    addr4: bytes = b""
    addr6: bytes = b""
    linklocal: bytes = b""

    def owns(self, address: bytes) -> bool:
        return len(address) > 0 and address in (self.addr4, self.addr6, self.linklocal)


@dataclass(eq=False)
class Uplink:
    name: str
    mac: bytes
    addr4: bytes
    addr6: bytes
    mtu: int = 1500


@dataclass(eq=False)
class Published:
    member: Member
    addr: bytes
    port: int
    rules: tuple[tuple[bytes, int, bool], ...] = ()  # prefix, its length, may connect
    filtered: bool = False
    refuse: bool = False

    def admits(self, address: bytes) -> bool:
        """The longest prefix that matches decides; without any, `refuse`."""
        if not self.filtered:
            return True
        best, verdict = -1, not self.refuse
        for prefix, length, allow in self.rules:
            if len(prefix) != len(address) or length <= best:
                continue
            shift = 8 * len(prefix) - length
            if int.from_bytes(prefix, "big") >> shift == int.from_bytes(address, "big") >> shift:
                best, verdict = length, allow
        return verdict


@dataclass(eq=False)
class Route:
    prefix: int
    length: int
    size: int  # of an address of the family, bytes
    kind: str  # out, net, stop
    uplink: Uplink | None = None
    network: Network | None = None


LOCAL = Route(0, 0, 0, "local")
NOWHERE = Route(0, 0, 0, "none")


@dataclass
class Topology:
    networks: list[Network]
    members: list[Member]
    uplinks: list[Uplink]
    host: set[bytes]  # addresses of the host
    routes: list[Route]
    ports: dict[tuple[bytes, int, int], Published]  # host address (zero: all of the family), port, protocol
    links: set[tuple[bytes, bytes, int, int]]  # client, server, port, protocol
    nat_first: int
    nat_last: int
    broadcasts: set[bytes] = field(default_factory=set)  # of the uplinks' subnets

    def __post_init__(self) -> None:
        self.reserved = {(port, proto) for _, port, proto in self.ports}
        self.routes.sort(key=lambda route: -route.length)
        self._cache: dict[bytes, Route] = {}

    def route(self, address: bytes) -> Route:
        found = self._cache.get(address)
        if found is None:
            found = self._cache[address] = self._route(address)
        return found

    def _route(self, address: bytes) -> Route:
        if address in self.host or address in self.broadcasts:
            return LOCAL
        value, bits = int.from_bytes(address, "big"), 8 * len(address)
        for route in self.routes:
            if route.size == len(address) and value >> (bits - route.length) == route.prefix >> (
                bits - route.length
            ):
                return route
        return NOWHERE


# ---- sums (RFC 1071, RFC 1624) --------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    value = int.from_bytes(data, "big") % 65535
    return 65535 - value if value else 0


def adjusted(check: int, delta: int) -> int:
    """The sum after words changed by `delta` in all (new less old)."""
    value = (65535 - check + delta) % 65535
    return 65535 - value if value else 0


def num(data: bytes | bytearray) -> int:
    return int.from_bytes(data, "big")


# ---- reading --------------------------------------------------------------------------------------------


class Packet:
    """One frame, read once. `fault`: why nobody can make sense of it."""

    __slots__ = (
        "dst",
        "dst_mac",
        "end",
        "error",
        "extended",
        "fault",
        "fragment",
        "frame",
        "icmp",
        "ident",
        "keep",
        "kind",
        "l4",
        "more",
        "offset",
        "piece",
        "ports",
        "proto",
        "src",
        "src_mac",
        "syn",
        "ttl",
        "whole_key",
    )

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.dst_mac, self.src_mac = frame[:6], frame[6:12]
        self.kind = kind = frame[12] << 8 | frame[13]
        self.fault = ""
        self.fragment = WHOLE
        self.ports: tuple[int, int] | None = None
        self.error = self.keep = self.more = self.extended = self.syn = False
        self.icmp = -1
        self.src = self.dst = b""
        self.proto = -1
        self.ttl = 0
        self.offset = self.ident = 0
        if kind == IPV4:
            self._ipv4()
        elif kind == IPV6:
            self._ipv6()
        elif kind == ARP:
            if len(frame) < 42:
                self.fault = "TRUNCATED"
        elif kind in (0x8100, 0x88A8):
            self.fault = "VLAN"
        else:
            self.fault = "ETHERTYPE"

    def _ipv4(self) -> None:
        f = self.frame
        self.src, self.dst = f[26:30], f[30:34]
        header, total = (f[14] & 15) * 4, f[16] << 8 | f[17]
        if f[14] >> 4 != 4 or header < 20 or total < header or 14 + total > len(f):
            self.fault = "TRUNCATED"
            return
        self.proto, self.ttl = f[23], f[22]
        self.l4, self.end = 14 + header, 14 + total
        self.piece = self.l4
        word = f[20] << 8 | f[21]
        self.keep = bool(word & 0x4000)
        self.more, self.offset = bool(word & 0x2000), (word & 0x1FFF) * 8
        if self.more or self.offset:
            self.fragment = LATER if self.offset else FIRST
            self.ident = f[18] << 8 | f[19]
            if self.offset + total - header > 65535:
                self.fault = "TRUNCATED"
        self._transport(ICMP)

    def _ipv6(self) -> None:
        f = self.frame
        self.src, self.dst = f[22:38], f[38:54]
        self.end = 54 + (f[18] << 8 | f[19])
        if f[14] >> 4 != 6 or self.end > len(f):
            self.fault = "TRUNCATED"
            return
        self.ttl, self.keep = f[21], True
        at, kind, count = 54, f[20], 0
        while kind in (0, 43, 44, 60):
            count += 1
            self.extended = True
            if count > EXTENSIONS or at + 8 > len(f):
                self.fault = "TRUNCATED"
                return
            if kind == 44:
                word = f[at + 2] << 8 | f[at + 3]
                self.more, self.offset = bool(word & 1), word & 0xFFF8
                self.ident = num(f[at + 4 : at + 8])
                if self.more or self.offset:
                    self.fragment = LATER if self.offset else FIRST
                    self.piece = at + 8
                kind, at = f[at], at + 8
            else:
                kind, at = f[at], at + (f[at + 1] + 1) * 8
            if at > self.end or (self.fragment != LATER and at > 54 + EXTENDED):
                self.fault = "TRUNCATED"
                return
            if self.fragment == LATER:
                break
        self.proto, self.l4 = kind, at
        if self.fragment and self.offset + self.end - self.piece > 65535:
            self.fault = "TRUNCATED"
        self._transport(ICMPV6)

    def _transport(self, icmp: int) -> None:
        if self.fragment == LATER:
            return
        f, at, proto = self.frame, self.l4, self.proto
        if proto == TCP:
            if at + 20 > self.end:
                self.fault = "TRUNCATED"
                return
            self.syn = f[at + 13] & 0x12 == 0x02
        elif proto in (UDP, icmp):
            if at + 8 > self.end:
                self.fault = "TRUNCATED"
                return
        else:
            return
        if proto != icmp:
            self.ports = (f[at] << 8 | f[at + 1], f[at + 2] << 8 | f[at + 3])
            return
        self.icmp = f[at]
        if self.icmp in ((8,) if icmp == ICMP else (128,)):
            self.ports = (f[at + 4] << 8 | f[at + 5], 0)
        elif self.icmp in ((0,) if icmp == ICMP else (129,)):
            self.ports = (0, f[at + 4] << 8 | f[at + 5])
        else:
            self.error = self.fragment == WHOLE and self.icmp in ((3, 11, 12) if icmp == ICMP else range(128))

    @property
    def key(self) -> Key:
        assert self.ports
        return (self.proto, self.src, self.ports[0], self.dst, self.ports[1])


def backwards(key: Key) -> Key:
    return (key[0], key[3], key[4], key[1], key[2])


def on_link(address: bytes) -> bool:
    """IPv6 link-local: such a packet is not routed (RFC 4291, 2.5.6)."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def unusable(address: bytes) -> bool:
    """Addresses that no packet beyond its link may come from, or go to as to one host."""
    if len(address) == 4:
        return address[0] in (0, 127) or address[0] >= 224
    if address[0] == 0xFF or (address[:15] == bytes(15) and address[15] <= 1):
        return True
    return address[:12] == MAPPED or on_link(address)


# ---- what must happen -------------------------------------------------------------------------------------

Check = Callable[[bytes], str]


class Expected:
    """The verdict, the reasons of which one is counted, and the frame that leaves: `outs`, one of them, or what
    `check` finds nothing wrong with. `to`: who receives a copy of what is flooded. `beside`: is counted too.
    `again`: frames that now arrive once more at the same hook."""

    __slots__ = ("again", "beside", "check", "outs", "reasons", "to", "verdict")

    def __init__(
        self,
        verdict: int,
        reasons: Iterable[str],
        outs: tuple[bytes, ...] = (),
        check: Check | None = None,
        to: tuple[Member, ...] | None = None,
        beside: tuple[str, ...] = (),
    ) -> None:
        self.verdict, self.reasons, self.outs, self.check, self.to = verdict, tuple(reasons), outs, check, to
        self.beside = beside
        self.again: tuple[bytes, ...] = ()


class Connection:
    """Two halves: each arrives as its key and leaves as the other's, backwards."""

    __slots__ = ("answer", "closed", "opener", "original", "server")

    def __init__(self, original: Key, answer: Key, opener: Member | None, server: Member | None) -> None:
        self.original, self.answer, self.opener, self.server = original, answer, opener, server
        self.closed = False


class Datagram:
    """What the fragments of one datagram have said so far."""

    __slots__ = (
        "foreign",
        "held",
        "icmp",
        "known",
        "pieces",
        "ports",
        "proto",
        "refused",
        "syn",
        "total",
        "undefined",
    )

    def __init__(self) -> None:
        self.ports: tuple[int, int] | None = None
        self.pieces: list[tuple[int, int]] = []
        self.held: list[bytes] = []
        self.known = self.refused = self.foreign = self.undefined = False
        self.proto, self.icmp, self.total = -1, -1, -1

    def record(self, p: Packet) -> str:
        """Takes note of the fragment; why it may not pass, if so (RFC 5722)."""
        begin, end = p.offset, p.offset + p.end - p.piece
        if self.refused:
            return "DROP_OVERLAP"
        if any(begin < to and end > fro for fro, to in self.pieces):
            # The same piece once more is the network's doing: it is not needed, and harmless.
            self.refused = (begin, end) not in self.pieces
            return "DROP_OVERLAP"
        if len(self.pieces) == PIECES:
            return "DROP_FRAGMENT"
        self.pieces.append((begin, end))
        if not p.more:
            self.total = end
        return ""

    @property
    def complete(self) -> bool:
        return sum(to - fro for fro, to in self.pieces) == self.total


def fitting(p: Packet, net: Network, members: dict[int, Member]) -> tuple[Member, ...]:
    """Who gets a copy: no device takes more than its MTU, and a tag's room."""
    return tuple(members.values()) if len(p.frame) - 14 <= net.mtu + 4 else ()


def either(*reasons: str) -> Expected:
    """Refused for one of these; some of them are told to the sender, which is not looked at."""
    return Expected(ANY, reasons, check=lambda got: "")


def dropped(frame: bytes, *reasons: str) -> Expected:
    return Expected(SHOT, reasons, (frame,))


def passed(reason: str, out: bytes) -> Expected:
    return Expected(REDIRECT, (reason,), (out,))


class Model:
    def __init__(self, topology: Topology) -> None:
        self.world = topology
        self.table: dict[Key, tuple[Connection, bool]] = {}  # bool: it is the half that opened
        self.connections: list[Connection] = []
        self.datagrams: dict[tuple[int, bytes, bytes, int, int], Datagram] = {}

    # ---- from a container ------------------------------------------------------------------------------

    def from_container(self, sender: Member, frame: bytes) -> Expected | None:
        p, net = Packet(frame), sender.network
        wrong = self._refusals(p, sender)
        if wrong:
            return dropped(frame, *wrong)
        if p.kind == ARP:
            return self._arp(p, sender)
        if p.kind == IPV6 and p.icmp == 135:
            return self._solicitation(p, sender)
        if p.kind == IPV6 and p.icmp == 136:
            return self._advertisement(p, sender)
        if p.dst_mac[0] & 1:
            return self._group(p, sender)
        target = net.members.get(p.dst)
        again: tuple[bytes, ...] = ()
        if p.fragment and (target is None or not net.icc):
            datagram = self._datagram(p, sender.number)
            if datagram.undefined:
                return None
            early = self._collect(p, datagram)
            if early:
                return early
            if p.fragment == FIRST:
                again = tuple(datagram.held)
                datagram.held.clear()
        if target is not None:
            if not net.icc and not self._linked(p):
                expected: Expected | None = dropped(frame, "DROP_ICC")
            else:
                expected = passed("DELIVERED", target.mac + frame[6:])
        else:
            expected = self._leaves(p, sender)
        if p.fragment and expected is None:
            self._datagram(p, sender.number).undefined = True
        if expected and again:
            expected.again = again
        return expected

    def _refusals(self, p: Packet, sender: Member) -> set[str]:
        wrong: set[str] = set()
        if p.src_mac != sender.mac or p.src_mac[0] & 1:
            wrong.add("DROP_SPOOFED_MAC")
        if p.fault:
            wrong.add("DROP_" + p.fault)
        if p.kind == ARP:
            if not p.fault:
                f = p.frame
                if f[14:20] != b"\0\1\x08\0\6\4" or f[22:28] != p.src_mac:
                    wrong.add("DROP_SPOOFED_ARP")
                if f[28:32] != ZERO4 and f[28:32] != sender.addr4:
                    wrong.add("DROP_SPOOFED_ARP")
        elif p.kind == IPV4:
            if p.src != sender.addr4:
                wrong.add("DROP_SPOOFED_ADDR")
        elif p.kind == IPV6:
            if not sender.network.ipv6:
                wrong.add("DROP_NO_IPV6")
            if p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
                wrong.add("DROP_BAD_ADDR")
            if p.icmp in (134, 137):
                wrong.add("DROP_ROUTER")
            if p.src == ZERO6:
                if p.proto != ICMPV6 or not p.dst_mac[0] & 1:
                    wrong.add("DROP_SPOOFED_ADDR")
            elif p.src != sender.addr6 and p.src != sender.linklocal:
                wrong.add("DROP_SPOOFED_ADDR")
        return wrong

    def _neighbour(self, net: Network, address: bytes) -> bytes | None:
        """Whose MAC is told for an address of the network."""
        member = net.members.get(address)
        if member:
            return member.mac
        if address and address in (net.gateway4, net.gateway6, net.linklocal):
            return net.mac
        return None

    def _arp(self, p: Packet, sender: Member) -> Expected:
        f, asked = p.frame, p.frame[38:42]
        if f[20:22] != b"\0\1" or asked == sender.addr4:
            return dropped(f, "ABSORBED")
        mac = self._neighbour(sender.network, asked)
        return arp_reply(p, mac) if mac else dropped(f, "DROP_UNKNOWN_ARP")

    def _solicitation(self, p: Packet, sender: Member) -> Expected:
        f = p.frame
        if p.ttl != 255 or p.end - p.l4 < 24:
            return dropped(f, "DROP_TRUNCATED")
        asked = f[p.l4 + 8 : p.l4 + 24]
        if sender.owns(asked):
            return dropped(f, "ABSORBED")
        mac = self._neighbour(sender.network, asked)
        return advertisement(p, asked, mac) if mac else dropped(f, "DROP_UNKNOWN_ARP")

    def _advertisement(self, p: Packet, sender: Member) -> Expected:
        if p.ttl != 255 or p.end - p.l4 < 24:
            return dropped(p.frame, "DROP_TRUNCATED")
        honest = sender.owns(p.frame[p.l4 + 8 : p.l4 + 24])
        return dropped(p.frame, "ABSORBED" if honest else "DROP_SPOOFED_ARP")

    def _group(self, p: Packet, sender: Member) -> Expected:
        net, dst = sender.network, p.dst
        if p.kind == IPV4:
            if dst[0] >> 4 != 14 and dst != BROADCAST[:4] and dst != net.broadcast:
                return dropped(p.frame, "DROP_WRONG_MAC")
        elif dst[0] != 0xFF:
            return dropped(p.frame, "DROP_WRONG_MAC")
        elif dst[1] & 15 <= 1:
            return dropped(p.frame, "DROP_MULTICAST_OFF")
        others = {id(m): m for m in net.members.values() if m is not sender} if net.icc else {}
        return Expected(REDIRECT, ("FLOODED",), (p.frame,), to=fitting(p, net, others))

    def _linked(self, p: Packet) -> bool:
        """Without icc: a link's client may speak to the server's port, which may answer, but not begin."""
        if p.ports is None or p.proto not in (TCP, UDP):
            return False
        links, (sport, dport) = self.world.links, p.ports
        if (p.src, p.dst, dport, p.proto) in links:
            return True
        return (p.dst, p.src, sport, p.proto) in links and not p.syn

    def _leaves(self, p: Packet, sender: Member) -> Expected | None:
        net, frame, dst = sender.network, p.frame, p.dst
        wrong: set[str] = set()
        if p.dst_mac != net.mac:
            wrong.add("DROP_WRONG_MAC")
        if p.kind == IPV6 and dst == net.linklocal:
            return dropped(frame, *wrong) if wrong else passed("TO_HOST", frame)
        at_gateway = dst == net.gateway(len(dst))
        if unusable(dst) or dst == net.broadcast:
            wrong.add("DROP_BAD_ADDR")
        if net.internal and not at_gateway:
            wrong.add("DROP_INTERNAL")
        if wrong:
            return dropped(frame, *wrong)
        if net.internal:
            return passed("TO_HOST", frame)
        if on_link(p.src) and not (at_gateway or self.world.route(dst).kind == "local"):
            # Refused here, or left to the host's stack, which does not route it either.
            return either(
                "TO_HOST", "DROP_BAD_ADDR", "DROP_NO_ROUTE", "DROP_TTL", "DROP_TOO_BIG", "DROP_ISOLATED"
            )
        if p.ports:
            found = self.table.get(p.key)
            if found and self._half_from(found) is sender:
                return self._forward(p, sender, found)
        elif p.error:
            told = self._error(p, sender)
            if told:
                return told
        route = self.world.route(dst)
        if at_gateway or route.kind == "local":
            return self._to_local(p, sender)
        if route.kind in ("none", "stop"):
            return either("TO_HOST", "DROP_TTL") if p.ttl <= 1 else passed("TO_HOST", frame)
        if route.kind == "net":
            reason = "DROP_NO_ENDPOINT" if route.network is net else "DROP_ISOLATED"
            assert route.network
            if p.ttl > 1 and p.end - 14 <= route.network.mtu:
                return dropped(frame, reason)
            return either(reason, "DROP_TTL", "DROP_TOO_BIG")
        assert route.uplink
        return self._to_outside(p, sender, route.uplink)

    def _to_local(self, p: Packet, sender: Member) -> Expected | None:
        published = self._published(p)
        if published is None:
            return passed("TO_HOST", p.frame)
        return self._open_published(p, sender, published)

    def _published(self, p: Packet) -> Published | None:
        if p.ports is None or p.proto not in (TCP, UDP):
            return None
        ports, port = self.world.ports, p.ports[1]
        anywhere = ZERO4 if len(p.dst) == 4 else ZERO6
        return ports.get((p.dst, port, p.proto)) or ports.get((anywhere, port, p.proto))

    def _to_outside(self, p: Packet, sender: Member, uplink: Uplink) -> Expected | None:
        net, frame = sender.network, p.frame
        if p.ttl <= 1:
            return self._told(p, sender, "DROP_TTL")
        if p.end - 14 > uplink.mtu:
            return self._told(p, sender, "DROP_TOO_BIG", uplink.mtu)
        if p.error:
            return dropped(frame, "DROP_NO_CONN")
        if p.ports is None:
            return dropped(frame, "DROP_PROTOCOL", "DROP_FRAGMENT")
        key = p.key
        _, src, sport, dst, dport = key
        if p.icmp in (0, 129):  # an answer to nothing
            return dropped(frame, "DROP_NO_CONN", "DROP_PROTOCOL")
        if not net.masquerade:
            answer = backwards(key)
            if answer in self.table:
                return dropped(frame, "DROP_NAT_PORTS", "DROP_CONN_TABLE")
            self._remember(key, answer, sender, None)
            return passed("TO_OUTSIDE", translated(p, src, dst, sport, dport))
        source = uplink.addr4 if len(src) == 4 else uplink.addr6
        if not source:
            return dropped(frame, "DROP_NO_ROUTE")
        return self._choose(
            p,
            sport,
            lambda port: (p.proto, dst, dport, source, port),
            lambda port: translated(p, source, dst, port, dport),
            "TO_OUTSIDE",
            sender,
            None,
        )

    # ---- opening ---------------------------------------------------------------------------------------

    def _remember(self, original: Key, answer: Key, opener: Member | None, server: Member | None) -> None:
        connection = Connection(original, answer, opener, server)
        for key in (original, answer):
            old = self.table.get(key)
            if old:
                self._forget(old[0])
        self.table[original] = connection, True
        self.table[answer] = connection, False
        self.connections.append(connection)

    def _forget(self, connection: Connection) -> None:
        for key in (connection.original, connection.answer):
            if key in self.table and self.table[key][0] is connection:
                del self.table[key]

    def _allowed(self, port: int, proto: int) -> bool:
        world = self.world
        return world.nat_first <= port <= world.nat_last and (port, proto) not in world.reserved

    def _choose(
        self,
        p: Packet,
        wanted: int,
        answer: Callable[[int], Key],
        out: Callable[[int], bytes],
        reason: str,
        opener: Member | None,
        server: Member | None,
        *,
        own: bool = False,
    ) -> Expected | None:
        """The source port stays where it may; else the program chooses, and here it is checked. `own`: the address
        stays the sender's, so that its ports are no business of the host's."""
        table, world = self.table, self.world
        if wanted and (own or self._allowed(wanted, p.proto)) and answer(wanted) not in table:
            self._remember(p.key, answer(wanted), opener, server)
            return passed(reason, out(wanted))
        if p.fragment == LATER:
            return None  # nothing in it says which port was chosen

        def check(got: bytes) -> str:
            at = p.l4 + (4 if p.icmp >= 0 else 0)
            port = num(got[at : at + 2])
            if not (world.nat_first <= port <= world.nat_last if own else self._allowed(port, p.proto)):
                return f"port {port} must not be chosen"
            used = table.get(answer(port))
            if used and not used[0].closed:
                return f"port {port} is another connection's"
            self._remember(p.key, answer(port), opener, server)
            return "" if same(got, out(port)) else f"wanted {out(port).hex()}"

        free = (
            sum(
                self._allowed(port, p.proto) and answer(port) not in table
                for port in range(world.nat_first, world.nat_last + 1)
            )
            if world.nat_last - world.nat_first < 256
            else 256
        )
        # The search is bounded: where few ports are left it may find none.
        full = free * 4 < world.nat_last - world.nat_first and free < 256
        if full:
            return Expected(ANY, (reason, "DROP_NAT_PORTS"), check=check)
        return Expected(REDIRECT, (reason,), check=check)

    def _open_published(self, p: Packet, client: Member | None, published: Published) -> Expected | None:
        if not published.admits(p.src):
            return dropped(p.frame, "DROP_DENIED")
        server, net = published.member, published.member.network
        key = p.key
        proto, src, sport, _, _ = key
        own = client is None or client.network is not net
        source = src if own else net.gateway(len(src))
        expected = self._choose(
            p,
            sport,
            lambda port: (proto, published.addr, published.port, source, port),
            lambda port: self._delivered(p, server, source, published.addr, port, published.port),
            "DELIVERED",
            client,
            server,
            own=own,
        )
        if p.keep and p.end - 14 > net.mtu:
            if expected is None or expected.check:
                return None  # it is opened, but with which port nobody can see
            return self._told(p, client, "DROP_TOO_BIG", net.mtu)
        return expected

    def _delivered(self, p: Packet, member: Member, src: bytes, dst: bytes, sport: int, dport: int) -> bytes:
        """A packet to one of the host's addresses has arrived there: its last hop is enough."""
        hop = 1 if p.ttl > 1 else 0
        return member.mac + member.network.mac + translated(p, src, dst, sport, dport, hop)[12:]

    # ---- what is known ---------------------------------------------------------------------------------

    @staticmethod
    def _half_from(found: tuple[Connection, bool]) -> Member | None:
        """Who sends that half; None: the outside."""
        connection, original = found
        return connection.opener if original else connection.server

    @staticmethod
    def _half_to(found: tuple[Connection, bool]) -> Member | None:
        connection, original = found
        return connection.server if original else connection.opener

    def _forward(self, p: Packet, sender: Member | None, found: tuple[Connection, bool]) -> Expected | None:
        connection, original = found
        out = backwards(connection.answer if original else connection.original)
        receiver = self._half_to(found)
        if receiver is None:
            route = self.world.route(out[3])
            if sender is None:
                return None
            if route.uplink is None:
                return either("TO_HOST", "DROP_TTL") if p.ttl <= 1 else passed("TO_HOST", p.frame)
            if p.ttl <= 1:
                return self._told(p, sender, "DROP_TTL")
            if p.end - 14 > route.uplink.mtu:
                return self._told(p, sender, "DROP_TOO_BIG", route.uplink.mtu)
        elif p.keep and p.end - 14 > receiver.network.mtu:
            return self._told(p, sender, "DROP_TOO_BIG", receiver.network.mtu)
        self._tracked(p, connection, original)
        if receiver:
            return passed("DELIVERED", self._delivered(p, receiver, out[1], out[3], out[2], out[4]))
        return passed("TO_OUTSIDE", translated(p, out[1], out[3], out[2], out[4]))

    def _tracked(self, p: Packet, connection: Connection, original: bool) -> None:
        if p.proto != TCP or p.fragment == LATER:
            return
        flags = p.frame[p.l4 + 13]
        if flags & 4:
            connection.closed = True
        elif p.syn and original:
            connection.closed = False

    def _told(self, p: Packet, sender: Member | None, reason: str, mtu: int = 0) -> Expected:
        """Refused, and the sender learns why (RFC 1812 4.3.2, RFC 4443 2.4): but not about errors, and of a
        datagram only by its first fragment. From the gateway, or to the outside from the address it sent to."""
        if p.error or p.fragment == LATER:
            return dropped(p.frame, reason)
        v4 = len(p.src) == 4
        other_icmp = p.proto == (ICMPV6 if v4 else ICMP)
        if p.end - p.l4 < 8 or on_link(p.src) or other_icmp:
            return either(reason)  # too little to be quoted, or nothing that anybody would ask about
        sources = [sender.network.gateway(len(p.src)) if sender else p.dst]
        # Time exceeded in transit; fragmentation needed, packet too big.
        kinds = {"DROP_TTL": (b"\x0b\0", b"\3\0"), "DROP_TOO_BIG": (b"\3\4", b"\2\0")}
        head = kinds[reason][0 if v4 else 1]
        word = mtu.to_bytes(4, "big")
        return Expected(REDIRECT, (reason,), check=lambda got: check_error(p, got, sources, head, word))

    # ---- ICMP errors -----------------------------------------------------------------------------------

    def _error(self, p: Packet, sender: Member | None) -> Expected | None:
        """An error about a packet of a connection: the quotation, backwards, is what its receiver sends."""
        quoted = quotation(p)
        if quoted is None:
            return None
        key = backwards(quoted)
        found = self.table.get(key)
        if found is None or self._half_from(found) is not sender or p.dst != key[3]:
            return None
        connection, original = found
        other = connection.answer if original else connection.original
        receiver = self._half_to(found)
        if receiver is None and self.world.route(other[1]).uplink is None:
            return None
        if p.ttl <= 1 and receiver is None:
            return dropped(p.frame, "DROP_TTL")
        src = other[3] if p.src == key[1] else p.src
        outs = error_outs(p, src, other[1], other, 1 if p.ttl > 1 else 0)
        if receiver:
            head = receiver.mac + receiver.network.mac
            return Expected(REDIRECT, ("DELIVERED",), tuple(head + out[12:] for out in outs))
        return Expected(REDIRECT, ("TO_OUTSIDE",), outs)

    # ---- fragments -------------------------------------------------------------------------------------

    def _datagram(self, p: Packet, sender: int) -> Datagram:
        # Of IPv6 only addresses and number count (RFC 8200, 4.5).
        key = (sender, p.src, p.dst, p.ident, p.proto if p.kind == IPV4 else -1)
        found = self.datagrams.get(key)
        if found is None:
            found = self.datagrams[key] = Datagram()
        return found

    def _collect(self, p: Packet, datagram: Datagram) -> Expected | None:
        """A later fragment gets the ports of its first one, or waits for it."""
        if p.fragment == LATER and not datagram.known:
            return self._hold(p, datagram)
        refused = datagram.record(p)
        if refused:
            return dropped(p.frame, refused)
        if p.fragment == FIRST:
            datagram.known = True
            datagram.ports, datagram.proto, datagram.icmp = p.ports, p.proto, p.icmp
        else:
            p.ports, p.icmp = datagram.ports, datagram.icmp
        if datagram.complete:
            self.datagrams = {k: d for k, d in self.datagrams.items() if d is not datagram}
        if p.fragment == LATER and p.kind == IPV6:
            p.proto = datagram.proto
        return None

    def _hold(self, p: Packet, datagram: Datagram) -> Expected:
        if len(datagram.held) >= SLOTS or len(p.frame) > 2048:
            return dropped(p.frame, "DROP_FRAGMENT")
        datagram.held.append(p.frame)
        return dropped(p.frame, "HELD")

    # ---- from the outside ------------------------------------------------------------------------------

    def from_uplink(self, uplink: Uplink, frame: bytes) -> Expected | None:
        p = Packet(frame)
        ours = Expected(NEXT, ("NOT_OURS",), (frame,))
        if p.dst in self.world.broadcasts:
            return None  # bpf_fib_lookup cannot tell it from the host's own
        if p.dst_mac != uplink.mac or p.fault or p.kind == ARP:
            return ours
        if p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
            return ours
        if p.error:
            return self._error(p, None) or ours
        if not p.fragment:
            return self._of_containers(p) if self._concerns_containers(p) else ours
        datagram = self._datagram(p, 0)
        if datagram.undefined:
            return None
        if p.fragment == LATER:
            if not datagram.known:
                # The host gets it, and a copy is kept until it is known whose it is.
                if self._hold(p, datagram).reasons == ("HELD",):
                    ours.beside = ("HELD",)
                return ours
            if datagram.foreign:
                return ours
            early = self._collect(p, datagram)
            if early:
                return early
            return self._of_containers(p) if self._concerns_containers(p) else ours
        if not self._concerns_containers(p):
            datagram.known = datagram.foreign = True
            datagram.held.clear()
            return ours
        found = self.table.get(p.key)
        if found is None:
            published = self._published(p)
            assert published
            if not published.admits(p.src):
                return dropped(frame, "DROP_DENIED")
        early = self._collect(p, datagram)
        if early:
            if found is None:
                datagram.undefined = True
                return None
            return early
        again = tuple(datagram.held)
        datagram.held.clear()
        expected = self._of_containers(p)
        if expected is None:
            datagram.undefined = True
            return None
        expected.again = again
        return expected

    def _concerns_containers(self, p: Packet) -> bool:
        """It belongs to a connection that a container began, or goes to a published port."""
        if p.ports is None:
            return False
        found = self.table.get(p.key)
        if found:
            return self._half_from(found) is None
        published = self._published(p)
        if published is None or unusable(p.dst) or unusable(p.src) or p.dst in self.world.broadcasts:
            return False
        if self.world.route(p.dst).kind != "local":
            return False
        # Nor is there an answer to where no way leads.
        return self.world.route(p.src).kind not in ("local", "net", "none")

    def _of_containers(self, p: Packet) -> Expected | None:
        found = self.table.get(p.key)
        if found:
            return self._forward(p, None, found)
        published = self._published(p)
        assert published
        return self._open_published(p, None, published)

    # ---- from the host ---------------------------------------------------------------------------------

    def from_host(self, net: Network, frame: bytes, forwarded: bool = False) -> Expected | None:
        p = Packet(frame)
        if p.fault:
            return dropped(frame, "DROP_" + p.fault)
        if p.kind == ARP:
            if frame[14:20] != b"\0\1\x08\0\6\4" or frame[22:28] != p.src_mac:
                return None  # no stack sends it
            if frame[20:22] != b"\0\1":
                return dropped(frame, "ABSORBED")
            member = net.members.get(frame[38:42])
            return arp_reply(p, member.mac) if member else dropped(frame, "DROP_UNKNOWN_ARP")
        wrong: set[str] = set()
        if forwarded:
            wrong.add("DROP_DIRECT")
        if p.kind == IPV6:
            if not net.ipv6:
                wrong.add("DROP_NO_IPV6")
            if p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
                wrong.add("DROP_BAD_ADDR")
        if wrong:
            return dropped(frame, *wrong)
        if p.kind == IPV6 and p.icmp == 135:
            if p.ttl != 255 or p.end - p.l4 < 24:
                return dropped(frame, "DROP_TRUNCATED")
            asked = frame[p.l4 + 8 : p.l4 + 24]
            member = net.members.get(asked)
            return advertisement(p, asked, member.mac) if member else dropped(frame, "DROP_UNKNOWN_ARP")
        if p.dst_mac[0] & 1:
            everybody = {id(m): m for m in net.members.values()}
            return Expected(SHOT, ("FLOODED",), (frame,), to=fitting(p, net, everybody))
        member = net.members.get(p.dst)
        if member is None:
            return dropped(frame, "DROP_NO_ENDPOINT")
        return passed("DELIVERED", member.mac + frame[6:])


# ---- writing ------------------------------------------------------------------------------------------------


def arp_reply(p: Packet, mac: bytes) -> Expected:
    f = p.frame
    out = f[6:12] + mac + f[12:20] + b"\0\2" + mac + f[38:42] + f[22:32] + f[42:]
    return passed("ANSWERED", out)


def advertisement(p: Packet, target: bytes, mac: bytes) -> Expected:
    """RFC 4861, 7.2.4: to who asked, or to all nodes when he has no address yet."""
    alone = p.src == ZERO6
    dst = ALL_NODES if alone else p.src
    body = b"\x88\0\0\0" + (b"\x20\0\0\0" if alone else b"\x60\0\0\0") + target + b"\2\1" + mac
    check = checksum(target + dst + b"\0\0\0\x20\0\0\0\x3a" + body)
    body = body[:2] + check.to_bytes(2, "big") + body[4:]
    head = (ALL_NODES_MAC if alone else p.src_mac) + mac + b"\x86\xdd"
    wanted = head + b"\x60\0\0\0\0\x20\x3a\xff" + target + dst + body

    def check_out(got: bytes) -> str:
        # The flow label and the traffic class may be the question's.
        plain = got[:14] + b"\x60\0\0\0" + got[18:]
        return "" if plain == wanted and got[14] >> 4 == 6 else f"wanted {wanted.hex()}"

    return Expected(REDIRECT, ("ANSWERED",), check=check_out)


def translated(p: Packet, src: bytes, dst: bytes, sport: int, dport: int, hop: int = 1) -> bytes:
    """The packet with other addresses and ports, one hop further, every sum as right as it was."""
    f = bytearray(p.frame)
    delta = num(src) + num(dst) - num(p.src) - num(p.dst)
    if p.kind == IPV4:
        f[22] -= hop
        check = adjusted(f[24] << 8 | f[25], delta - (hop << 8))
        f[24:34] = check.to_bytes(2, "big") + src + dst
    else:
        f[21] -= hop
        f[22:54] = src + dst
    if p.fragment == LATER:
        return bytes(f)
    at = p.l4
    assert p.ports
    ports = sport + dport - p.ports[0] - p.ports[1]
    if p.icmp >= 0:
        # One of the two is the identifier, the other one 0.
        f[at + 4 : at + 6] = (sport or dport if p.icmp in (8, 128) else dport).to_bytes(2, "big")
        place, delta = at + 2, ports + (delta if p.kind == IPV6 else 0)
    else:
        f[at : at + 4] = (sport << 16 | dport).to_bytes(4, "big")
        place, delta = at + (16 if p.proto == TCP else 6), ports + delta
    old = f[place] << 8 | f[place + 1]
    if delta and (p.proto != UDP or old):
        new = adjusted(old, delta)
        f[place : place + 2] = (new or 0xFFFF if p.proto == UDP else new).to_bytes(2, "big")
    return bytes(f)


def same(got: bytes, wanted: bytes) -> bool:
    """Equal, but for sums of 0 and 0xffff, which say the same (but for UDP's 0, which says nothing)."""
    if got == wanted:
        return True
    if len(got) != len(wanted):
        return False
    places = [i for i in range(len(got)) if got[i] != wanted[i]]
    p = Packet(wanted)
    sums = {24} if p.kind == IPV4 else set()
    if p.proto in (ICMP, ICMPV6):
        sums.add(p.l4 + 2)
    elif p.proto == TCP:
        sums.add(p.l4 + 16)
    for place in sums:
        if {got[place : place + 2], wanted[place : place + 2]} == {b"\0\0", b"\xff\xff"}:
            places = [i for i in places if i not in (place, place + 1)]
    return not places


def quotation(p: Packet) -> Key | None:
    """The connection's key of the packet that an ICMP error quotes; None: it cannot be told."""
    f, at, end = p.frame, p.l4 + 8, p.end
    if p.kind == IPV4:
        if at + 20 > end or f[at] >> 4 != 4 or (f[at] & 15) < 5:
            return None
        if num(f[at + 6 : at + 8]) & 0x1FFF:
            return None
        src, dst, proto, l4 = f[at + 12 : at + 16], f[at + 16 : at + 20], f[at + 9], at + (f[at] & 15) * 4
    else:
        if at + 40 > end or f[at] >> 4 != 6:
            return None
        src, dst, proto, l4 = f[at + 8 : at + 24], f[at + 24 : at + 40], f[at + 6], at + 40
    if l4 + 8 > end:
        return None
    if proto in (TCP, UDP):
        return (proto, src, num(f[l4 : l4 + 2]), dst, num(f[l4 + 2 : l4 + 4]))
    if proto == (ICMP if p.kind == IPV4 else ICMPV6):
        ident = num(f[l4 + 4 : l4 + 6])
        if f[l4] in (8, 128):
            return (proto, src, ident, dst, 0)
        if f[l4] in (0, 129):
            return (proto, src, 0, dst, ident)
    return None


def error_outs(p: Packet, src: bytes, dst: bytes, inside: Key, hop: int) -> tuple[bytes, ...]:
    """The error with other addresses outside, and `inside` quoted. The quotation's own header sum is kept right
    (RFC 5508, 4.2); its transport sum may be left as it was, or follow: nobody looks at it."""
    f, at = bytearray(p.frame), p.l4 + 8
    size = len(p.src)
    pseudo = num(src) + num(dst) - num(p.src) - num(p.dst)
    if p.kind == IPV4:
        f[22] -= hop
        f[24:34] = adjusted(num(f[24:26]), pseudo - (hop << 8)).to_bytes(2, "big") + src + dst
        inner, l4, place = at + 12, at + (f[at] & 15) * 4, at + 10
        proto = f[at + 9]
    else:
        f[21] -= hop
        f[22:54] = src + dst
        inner, l4, place, proto = at + 8, at + 40, -1, f[at + 6]
    before = bytes(f)
    new = inside[1] + inside[3]
    delta = (
        num(new[:size])
        + num(new[size:])
        - num(f[inner : inner + size])
        - num(f[inner + size : inner + 2 * size])
    )
    f[inner : inner + 2 * size] = new
    if place > 0:
        f[place : place + 2] = adjusted(num(before[place : place + 2]), delta).to_bytes(2, "big")
    if proto in (TCP, UDP):
        old = num(f[l4 : l4 + 4])
        f[l4 : l4 + 4] = (inside[2] << 16 | inside[4]).to_bytes(4, "big")
        check_at = l4 + (16 if proto == TCP else 6)
        inner_delta = ident_delta = delta + num(f[l4 : l4 + 4]) - old
    else:
        old = num(f[l4 + 4 : l4 + 6])
        f[l4 + 4 : l4 + 6] = (inside[2] or inside[4]).to_bytes(2, "big")
        check_at = l4 + 2
        ident_delta = num(f[l4 + 4 : l4 + 6]) - old
        inner_delta = ident_delta + (delta if p.kind == IPV6 else 0)
    left = finished(p, bytes(f), before, pseudo)
    if check_at + 2 > p.end:
        return (left,)
    was = num(f[check_at : check_at + 2])
    if proto == UDP and not was:
        return (left,)
    outs = [left]
    for inner in {inner_delta, ident_delta}:
        f[check_at : check_at + 2] = adjusted(was, inner).to_bytes(2, "big")
        outs.append(finished(p, bytes(f), before, pseudo))
    return tuple(outs)


def finished(p: Packet, after: bytes, before: bytes, pseudo: int) -> bytes:
    """The error's own sum follows what changed behind it."""
    at, place = p.l4, p.l4 + 2
    tail = (p.end - at) % 2 * b"\0"
    changed = num(after[at : p.end] + tail) - num(before[at : p.end] + tail)
    check = adjusted(num(before[place : place + 2]), changed + (pseudo if p.kind == IPV6 else 0))
    return after[:place] + check.to_bytes(2, "big") + after[place + 2 :]


def check_error(p: Packet, got: bytes, sources: list[bytes], head: bytes, word: bytes) -> str:
    """An error of the datapath's own: the form that the RFCs ask for, not byte by byte."""
    if got[:12] != p.src_mac + p.dst_mac or got[12:14] != p.frame[12:14]:
        return "goes back by other MACs"
    if p.kind == IPV4:
        header, most, least = got[14:34], 576, p.l4 - 14 + 8
        if header[0] != 0x45 or num(header[2:4]) != len(got) - 14 or checksum(header) not in (0, 0xFFFF):
            return "IPv4 header"
        src, dst, ttl, proto, pseudo = header[12:16], header[16:20], header[8], header[9], b""
        body = got[34:]
        if proto != ICMP:
            return "protocol"
    else:
        header, most, least = got[14:54], 1280, min(48, len(p.frame) - 14)
        if header[0] >> 4 != 6 or num(header[4:6]) != len(got) - 54 or header[6] != ICMPV6:
            return "IPv6 header"
        src, dst, ttl = header[8:24], header[24:40], header[7]
        body = got[54:]
        pseudo = src + dst + len(body).to_bytes(4, "big") + b"\0\0\0\x3a"
    if src not in sources or dst != p.src:
        return "addresses"
    if ttl < 2:
        return "hops"
    if body[:2] != head or body[4:8] != word:
        return f"type, code or word {body[:8].hex()}, wanted {head.hex()} {word.hex()}"
    if checksum(pseudo + body) not in (0, 0xFFFF):
        return "sum"
    quote = body[8:]
    if len(got) - 14 > most or len(quote) < least or quote != p.frame[14 : 14 + len(quote)]:
        return "quotation"
    return ""
