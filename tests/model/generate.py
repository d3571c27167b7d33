# SPDX-License-Identifier: Apache-2.0
"""What is sent: one kind of packet a method, drawn by weight."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

from tests.model.addresses import RESOLVER
from tests.model.draws import LARGEST, NEIGHBOUR, ODD6, TIMESTAMPS, Draws, Sent
from tests.model.fragments import KEPT
from tests.model.hosts import LOCAL
from tests.model.packet import ACK, ICMP, ICMPV6, SYN, TCP, UDP, Key, Packet, backwards
from tests.model.reference import Reference
from tests.model.services import mark_of
from tests.model.topology import Member, Published, Topology
from tests.model.tunnels import Overlay
from tests.model.writing import carried, cut4, cut6, frame_of, icmp, ip4, ip6

MANY_PORTS = 40


class Generator(Draws):
    def __init__(self, rng: random.Random, topology: Topology, reference: Reference) -> None:
        super().__init__(rng, topology, reference)
        self.plain: list[tuple[float, Callable[[], Sent | None]]] = []
        self.total = 0.0
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
            (1, self.by_the_stack),
            (8, self.error),
            (5, self.anything),
            (10, self.mutated),
            (2.5, self.fragmented),
            (0.02, self.many_datagrams),
            (0.1 if topology.nat_last - topology.nat_first < MANY_PORTS else 0, self.many_ports),
            (0.3, self.now_by_a_rule),
            (0.3, self.wide_fragments),
            (3, self.forwarded),
            (0.5, self.without_an_address),
            (4, self.near_the_width),
            (3, self.from_the_same_socket),
            (1, self.from_a_published_port),
            (2, self.to_external),
            (2, self.asks),
            (5, self.to_peer),
            (7, self.from_peer),
            (3, self.from_the_link),
            (3, self.announced),
            (6 if topology.services else 0, self.to_service),
            (6 if topology.services and topology.overlay else 0, self.by_another_host),
            (2 if topology.services and topology.overlay else 0, self.returned),
        ):
            self.total += weight
            self.plain.append((self.total, make))

    def next(self) -> Sent:
        sent = self._next()
        # What takes the header off before a test run makes one packet of all segments.
        return sent._replace(gso=0) if sent.hook == "from_tunnel" else sent

    def _next(self) -> Sent:
        while True:
            if self.waiting and self.random() < 0.5:
                return self.waiting.pop(0)
            at = self.random() * self.total
            sent = next(make for limit, make in self.plain if at < limit)()
            if sent is not None and len(sent.frame) >= 15:
                self.recent.append(sent)
                return sent

    def of_connection(self) -> Sent | None:
        connection = self.connection()
        if connection is None:
            return None
        original = self.random() < 0.45
        key = connection.original if original else connection.answer
        sender = connection.opener if original else connection.server
        packet = self.packet(key)
        sent = self.by(sender, packet)
        # Nothing cuts what it cannot see into segments.
        if key[0] == TCP and len(packet) > 500 and self.random() < 0.3 and Packet(sent.frame).transport:
            return sent._replace(gso=(500, 1200, 1360, 1420, 1448, 1460)[int(self.random() * 6)])
        return sent

    def many_datagrams(self) -> Sent | None:
        """One sender begins more of them than are followed, and then goes on with an early one."""
        whole = self.to_outside()
        packet, ident = whole.frame[14:], int(self.random() * 60000)
        cut = cut4 if packet[0] >> 4 == 4 else cut6
        datagrams = [cut(packet, ident + number, self.rng) for number in range(58 + int(self.random() * 14))]
        late = [pieces[-1] for pieces in datagrams[: 1 + int(self.random() * 9)]]
        frames = [pieces[0] for pieces in datagrams] + late
        sent = [whole._replace(frame=whole.frame[:14] + frame) for frame in frames]
        self.waiting += sent[1:]
        return sent[0]

    def many_ports(self) -> Sent | None:
        """One member has all ports of the range, its own; another one wants the same, to one destination or several."""
        members = [m for m in self.members if m.network.masquerade and not m.network.internal and m.addr4]
        if len(members) < 2:
            return None
        one, other = self.rng.sample(members, 2)
        proto, dst, several = UDP if self.random() < 0.5 else TCP, self.outside(4), self.random() < 0.6
        first, last, sent = self.topology.nat_first, self.topology.nat_last, list[Sent]()
        for sport in range(first, last + 1):
            sent.append(self.from_member(one, self.packet((proto, one.addr4, sport, dst, 53), SYN)))
        for number in range(12):
            key = (proto, other.addr4, first + number, dst, 53 + (number % 3 if several else 0))
            sent.append(self.from_member(other, self.packet(key, SYN)))
        self.waiting += sent[1:]
        return sent[0]

    def now_by_a_rule(self) -> Sent | None:
        """To another network, outside by a rule on the type of service, and then not."""
        rules = [one for one in self.topology.routing.rules if one.tos]
        if not rules:
            return None
        size, member, other = self.rng.choice(rules).size, self.member(), self.member()
        src, dst = (member.addr4, other.addr4) if size == 4 else (member.addr6, other.addr6)
        if not src or not dst or member.network is other.network:
            return None
        key: Key = (UDP, src, self.port(self.sources), dst, self.port(self.targets))
        body = carried(key, 0, self.payload())
        for tos in (0x10, 0):
            packet = (
                ip4(src, dst, UDP, body, tos=tos) if size == 4 else ip6(src, dst, UDP, body, label=tos << 20)
            )
            self.waiting.append(self.from_member(member, packet, member.network.mac))
        return self.waiting.pop(0)

    def wide_fragments(self) -> Sent | None:
        """Of IPv4, as long as the sender's device takes: another may take less."""
        found = self.some_half()
        if found is None or len(found[0][1]) != 4 or found[0][0] not in (TCP, UDP):
            return None
        key, sender = found
        body = carried(key, ACK, self.rng.randbytes(LARGEST - 200))
        width = (self.rng.choice(self.widths) - 20) // 8 * 8
        pieces = []
        ident = int(self.random() * 65536)
        for begin in range(0, len(body), width):
            word = begin // 8 | (0x2000 if begin + width < len(body) else 0)
            piece = ip4(key[1], key[3], key[0], body[begin : begin + width], word=word, ident=ident)
            pieces.append(self.by(sender, piece))
        self.waiting += pieces[1:]
        return pieces[0]

    def to_service(self) -> Sent | None:
        """By its address: from a member, a backend or not, or from the host."""
        services, rare = self.topology.services, self.random
        service = services[int(rare() * len(services))]
        members = [m for m in self.members if m.network is service.network]
        member = members[int(rare() * len(members))] if rare() < 0.7 else service.backends[0]
        size = self.family(member)
        dst = service.addr4 if size == 4 else service.addr6
        src = member.addr4 if size == 4 else member.addr6
        proto, sport, dport = self.proto(size), self.port(self.sources), self.port(self.targets)
        if not dst:
            return None
        if proto in (ICMP, ICMPV6):
            dport = 0
        flags = SYN if rare() < 0.7 else None
        if rare() < 0.2:
            source = service.network.gateway(size) if rare() < 0.9 else self.somewhere(size)
            packet = self.packet((proto, source, sport, dst, dport), flags)
            return self.by(service.host, packet)
        return self.from_member(member, self.packet((proto, src, sport, dst, dport), flags))

    def by_another_host(self) -> Sent | None:
        """A client outside asks a backend here by another host, and the backend answers; now and then one that this
        host knows."""
        overlay, rare = self.topology.overlay, self.random
        if not overlay or not overlay.network.services:
            return None
        net = overlay.network
        service = next(iter(net.services.values()))
        servers = [one for one in service.backends if not one.peer]
        member = servers[int(rare() * len(servers))]
        size = self.family(member)
        callers = [key for key in self.reference.callers if key[1] in (member.addr4, member.addr6)]
        if callers and rare() < 0.5:
            return self.to_caller(member, callers[int(rare() * len(callers))])
        server = member.addr4 if size == 4 else member.addr6
        key: Key = (
            self.proto(size),
            self.outside(size),
            self.port(self.sources),
            server,
            self.port(self.targets),
        )
        known = [one for one in self.reference.connections.all[-40:] if one.service is service]
        if known and rare() < 0.4:
            key = backwards(self.rng.choice(known).answer)
        elif callers and rare() < 0.5:
            key = backwards(self.rng.choice(callers))
        peer = overlay.peers[int(rare() * 2)]
        # What it is that has been asked there, by which the same client comes now and then by the other one.
        marks = [0, 1, 2, *(mark_of(*one.original[3:]) for one in known[-1:])]
        mark = self.rng.choice(marks)
        source = b"\x06M" + mark.to_bytes(4, sys.byteorder) if mark else b""
        packet = self.packet(key, SYN if rare() < 0.6 else None)
        return self.tunnelled(overlay, peer, packet, (0, 0, 0, 3)[int(rare() * 4)], source)

    def returned(self) -> Sent | None:
        """The backend's host sends back what has been asked there."""
        overlay = self.topology.overlay
        found = [one for one in self.reference.connections.all[-40:] if one.server and one.server.peer]
        if not overlay or not found:
            return None
        answer = self.rng.choice(found).answer
        peer = overlay.host_of(answer[1])
        return self.tunnelled(overlay, peer, self.packet(answer, SYN, 0)) if peer else None

    def to_caller(self, member: Member, answer: Key) -> Sent:
        """What another host has asked is answered, or refused."""
        if self.random() < 0.7:
            return self.from_member(member, self.packet(answer))
        return self.from_member(member, self.error_about(backwards(answer), answer[1], answer[3]))

    def forwarded(self) -> Sent | None:
        """From and to what lies behind a member that forwards, or one that does not."""
        member, rare = self.member(), self.random
        near = [m for m in self.members if m.network.number == self.topology.behind]
        if near and rare() < 0.6:
            member = near[int(rare() * len(near))]
        net, size = member.network, self.family(member)
        others = [m for m in self.members if m.network is net]
        other = others[int(rare() * len(others))]
        four = size == 4
        pools = ("10.99.0.5", "10.98.0.5") if four else ("fd99::5", "fd98::5")
        behind = ip_address(pools[0 if rare() < 0.7 else 1]).packed
        own, theirs = (member.addr4, other.addr4) if four else (member.addr6, other.addr6)
        if not own or not theirs:
            return None
        at, proto = rare(), self.proto(size)
        sport, dport = self.port(self.sources), self.port(self.targets)
        if at < 0.2:  # to it, by the router's MAC or the host's
            packet = self.packet((proto, own, sport, behind, dport))
            return self.from_member(member, packet, other.mac if rare() < 0.5 else None)
        src = behind if rare() < 0.8 else self.somewhere(size)
        if at < 0.4:
            return self.from_member(member, self.packet((proto, src, sport, theirs, dport)), other.mac)
        if at < 0.5:
            packet = self.packet((proto, net.gateway(size), sport, behind, dport))
            return Sent("from_host", net, frame_of(other.mac, net.mac, packet))
        found = self.published()
        dst = self.outside(size) if at < 0.75 else self.somewhere(size)
        if found and len(found[0]) == size and rare() < 0.3:
            dst, dport, proto = found[:3]
        return self.from_member(member, self.packet((proto, src, sport, dst, dport), SYN))

    def without_an_address(self) -> Sent:
        member, rare = self.member(), self.random
        if rare() < 0.7:
            key = (UDP, bytes(4), 68, b"\xff" * 4 if rare() < 0.8 else self.somewhere(4), 67)
            packet, to = self.packet(key), b"\xff" * 6
        else:
            group = b"\xe0\0\0\x16"
            packet, to = self.wrapped(bytes(4), group, 2, b"\x22" + bytes(7), 1), b"\1\0\x5e\0\0\x16"
        return self.from_member(member, packet, to if rare() < 0.8 else None)

    def near_the_width(self) -> Sent | None:
        """As long as a way takes, or a little more or less; whole, or still to be cut into segments of that length."""
        found = self.some_half()
        if found is None:
            return None
        key, sender = found
        rare, rng = self.random, self.rng
        proto, six = key[0], len(key[1]) == 16
        options = rng.choice((b"", b"", TIMESTAMPS, TIMESTAMPS * 3)) if proto == TCP else b""
        head = (40 if six else 20) + (20 + len(options) if proto == TCP else 8)
        mtu = rng.choice(self.widths)
        size = mtu + rng.choice((-24, -12, -8, -1, 0, 0, 1, 8, 12, 24)) - head
        gso = size if proto in (TCP, UDP) and rare() < 0.6 else 0
        if not gso and rare() < 0.3:
            size += mtu
        data = rng.randbytes(max(8, min(size + 100 * bool(gso), LARGEST - head)))
        body = carried(key, ACK, data, 1, options)
        if six:
            packet = ip6(key[1], key[3], proto, body)
        else:
            loose = rare() < 0.5
            ip_options = self.options() if rare() < 0.2 else b""
            ident, word = int(rare() * 65536), 0 if loose else 0x4000
            packet = ip4(key[1], key[3], proto, body, word=word, ident=ident, options=ip_options)
        return self.by(sender, packet)._replace(gso=gso)

    def some_half(self) -> tuple[Key, Member | None] | None:
        """A connection's, or what would open one."""
        at = self.random()
        if at < 0.5:
            connection = self.connection()
            if connection is None:
                return None
            if self.random() < 0.5:
                return connection.original, connection.opener
            return connection.answer, connection.server
        if at < 0.8:
            member = self.member()
            size = self.family(member)
            src = member.addr4 if size == 4 else member.addr6
            proto = TCP if self.random() < 0.5 else UDP
            key = (proto, src, self.port(self.sources), self.outside(size), self.port(self.targets))
            return key, member
        found = self.published()
        if found is None:
            return None
        host, port, proto, _ = found
        return (proto, self.outside(len(host)), self.port(self.sources), host, port), None

    def from_the_same_socket(self) -> Sent | None:
        """To another destination."""
        connection = self.connection()
        if connection is None or connection.opener is None or connection.opener.number < 0:
            return None
        proto, src, sport, dst, dport = connection.original
        if self.random() < 0.9:
            dst = self.outside(len(dst))
        if self.random() < 0.5 and proto in (TCP, UDP):
            dport = self.port(self.targets)
        return self.from_member(connection.opener, self.packet((proto, src, sport, dst, dport), SYN))

    def from_a_published_port(self) -> Sent | None:
        """The container itself begins, from where it serves."""
        found = self.published()
        if found is None:
            return None
        published, size = found[3], len(found[3].addr)
        src = published.addr
        if published.member.forwarding and self.random() < 0.3:  # or who is behind it, from the same number
            src = ip_address("10.99.0.5" if size == 4 else "fd99::5").packed
        key = (found[2], src, published.port, self.outside(size), 33434)
        return self.from_member(published.member, self.packet(key, SYN))

    def to_external(self) -> Sent | None:
        """From a port that has an external one to another's, or its own: of the latest, so that two of them meet."""
        known = [one for one in self.reference.nat.by_external.values() if one.internal[3] in (TCP, UDP)]
        known = known[-6:]
        if not known:
            return None
        mine, theirs = (known[int(self.random() * len(known))] for _ in range(2))
        number, src, sport, proto, _ = mine.internal
        member = next((one for one in self.members if one.number == number), None)
        host, dport, same = theirs.external
        if member is None or same != proto or len(host) != len(src):
            return None
        flags = SYN if self.random() < 0.5 else None
        return self.from_member(member, self.packet((proto, src, sport, host, dport), flags))

    def asks(self) -> Sent | None:
        """A question for a name, or something like it, to where the resolver may be."""
        member, rare = self.member(), self.random
        size = self.family(member)
        src = member.addr4 if size == 4 else member.addr6
        dst = member.network.gateway(size) if size == 16 or rare() < 0.5 else RESOLVER
        if dst == RESOLVER and rare() < 0.2:
            src = LOCAL[0]
        if not src or not dst:
            return None
        others = [m.name for m in self.topology.members]
        others += [far.name for far in member.network.elsewhere]
        name = others[int(rare() * len(others))] if rare() < 0.7 else "www.example.org"
        if rare() < 0.2:
            far = [address for one in member.network.elsewhere for address in one.addresses]
            addresses = [*member.network.members, *far] or [dst]
            name = ip_address(addresses[int(rare() * len(addresses))]).reverse_pointer
        labels = b"".join(bytes((len(one),)) + one.encode() for one in name.split("."))
        labels = labels.upper() if rare() < 0.2 else labels
        kind = (1, 28, 15, 12)[int(rare() * 4)] if "arpa" not in name else (12, 12, 1)[int(rare() * 3)]
        message = self.rng.randbytes(2) + b"\1\0\0\1" + bytes(6) + labels + bytes((0, 0, kind, 0, 1))
        body = carried((UDP, src, self.port(self.sources), dst, 53), 0, message)
        return self.from_member(member, ip4(src, dst, UDP, body) if size == 4 else ip6(src, dst, UDP, body))

    def to_peer(self) -> Sent | None:
        """To another host's member, to nobody in its network, or back to a host that has asked."""
        overlay, rare = self.topology.overlay, self.random
        members = [m for m in self.members if overlay and m.network is overlay.network]
        if not overlay or not members:
            return None
        member = members[int(rare() * len(members))]
        size = self.family(member)
        src, sport = member.addr4 if size == 4 else member.addr6, self.port(self.sources)
        callers = [key for key in self.reference.callers if key[1] == src]
        if callers and rare() < 0.5:
            return self.to_caller(member, callers[int(rare() * len(callers))])
        dst = self.remote(overlay, size)
        key = (self.proto(size), src, sport, dst, self.port(self.targets))
        at = rare()
        if at < 0.1:
            net = overlay.network
            key = (key[0], net.gateway(size), *key[2:])
            return Sent("from_host", net, frame_of(member.mac, net.mac, self.packet(key)))
        if at < 0.3 and key[0] != ICMP and key[0] != ICMPV6:
            length = 1500 - int(rare() * 180)
            body = carried(key, ACK, self.rng.randbytes(max(8, length - (60 if size == 16 else 40))))
            loose = 0 if rare() < 0.5 else 0x4000
            packet = ip6(src, dst, key[0], body) if size == 16 else ip4(src, dst, key[0], body, word=loose)
            return self.from_member(member, packet)
        return self.from_member(member, self.packet(key))

    def remote(self, overlay: Overlay, size: int) -> bytes:
        """An address of the network that is no member's here, of a host's or of none."""
        subnets = [prefix for prefix, _ in overlay.subnets if len(prefix) == size]
        if not subnets:
            return self.somewhere(size)
        return subnets[0][:-1] + bytes((subnets[0][-1] + 6 + int(self.random() * 12),))

    def beside(self, address: bytes) -> bytes:
        """One that no member has, as likely as not."""
        return address[:-1] + bytes((address[-1] ^ 1 + int(self.random() * 120),))

    def from_peer(self) -> Sent | None:
        """In a tunnel: from another host's member, from the host itself, or not to be believed."""
        overlay, rare = self.topology.overlay, self.random
        members = [m for m in self.members if overlay and m.network is overlay.network]
        if not overlay or not members:
            return None
        member = members[int(rare() * len(members))]
        size, at = self.family(member), rare()
        dst = member.addr4 if size == 4 else member.addr6
        src = self.remote(overlay, size) if at < 0.6 else overlay.network.gateway(size)
        peer = overlay.peers[int(rare() * 2)]
        known = overlay.host_of(src)
        if known and rare() < 0.9:
            peer = known
        if at > 0.85:
            src = self.somewhere(size)
        if rare() < 0.1:
            dst = self.somewhere(size)
        if self.topology.links and rare() < 0.2:
            _, server, port, proto = self.rng.choice(sorted(self.topology.links))
            key: Key = (proto, src, 1000, server, port) if len(server) == len(src) else (UDP, src, 7, dst, 7)
        else:
            key = (self.proto(size), src, self.port(self.sources), dst, self.port(self.targets))
        if src == overlay.network.gateway(size) and rare() < 0.2:
            key = (UDP, src, 1000, dst if rare() < 0.2 else self.beside(dst), 7)
        packet = self.packet(key)
        if overlay.encrypted and rare() < 0.8:
            if rare() < 0.1:  # as somebody is called whom nobody knows
                number = int(rare() * 8)
                packet = self.packet((key[0], overlay.called(number, size), *key[2:]))
            return self.tunnelled(overlay, peer, packet)
        if overlay.direct and rare() < 0.6:
            return self.tunnelled(overlay, peer, packet) if rare() < 0.9 else self.from_outside(packet)
        frame = frame_of(overlay.mac if rare() < 0.95 else b"\xff" * 6, peer.mac, packet)
        if rare() < 0.05:
            frame = (
                frame[:12] + self.rng.choice((b"\x08\6", b"\x81\0", b"\x88\xcc", b"\x86\xdd")) + frame[14:]
            )
        if rare() < 0.1:
            frame = frame[: int(rare() * len(frame))]
        vni = overlay.vni if rare() < 0.95 else int(rare() * (1 << 24))
        head = bytes((8 if rare() < 0.97 else 0, 0, 0, 0)) + (vni << 8).to_bytes(4, "big")
        end = peer.addr if rare() < 0.9 else self.pick(list(overlay.strangers))
        tos = (0, 0, 0, 1, 2, 3, 3)[int(rare() * 7)]
        sent = self.in_datagram(overlay, end, head + frame, tos, 0x4000 if rare() < 0.97 else 0x2000)
        return sent._replace(gso=500) if key[0] == TCP and len(packet) > 600 and rare() < 0.5 else sent

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
        if self.random() < 0.1:
            host = self.everywhere(len(host))
        packet = self.packet((proto, src, self.port(self.sources), host, port), flags)
        return self.from_outside(packet)

    def announced(self) -> Sent | None:
        """From outside to a member's own address."""
        overlay, rare = self.topology.overlay, self.random
        members = [m for m in self.members if overlay and m.network is overlay.network]
        if not overlay or not overlay.announced or not members:
            return None
        member = members[int(rare() * len(members))]
        size = self.family(member)
        src = self.outside(size) if rare() < 0.9 else self.somewhere(size)
        dst = member.addr4 if size == 4 else member.addr6
        key = (self.proto(size), src, self.port(self.sources), dst, self.port(self.targets))
        if key[0] in (ICMP, ICMPV6):
            key = (*key[:4], 0) if rare() < 0.9 else (*key[:2], 0, *key[3:])
        return self.from_outside(self.packet(key, SYN if rare() < 0.7 else None))

    def everywhere(self, size: int) -> bytes:
        """An address of the host's that no device has, or one that every device has."""
        if size == 4:
            return IPv4Address("10.79.0.0").packed[:3] + self.rng.randbytes(1)
        linklocals = [one for uplink in self.topology.uplinks for one in uplink.linklocals]
        linklocals += [one.linklocal for one in self.topology.networks[:1] if one.linklocal]
        if self.random() < 0.7 and linklocals:
            return self.pick(linklocals)
        return IPv6Address("fd79::").packed[:14] + self.rng.randbytes(2)

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

    def from_the_link(self) -> Sent | None:
        """From where members of a network are besides, to them or for them."""
        rare, uplink = self.random, self.topology.uplinks[0]
        if uplink.network is None or not uplink.network.members:
            return None
        target = self.pick(list(uplink.network.members))
        size, at = len(target), rare()
        if rare() < 0.1:
            target = self.somewhere(size)
        src = self.outside(size) if rare() < 0.9 else target if rare() < 0.5 else bytes(size)
        mac = uplink.mac if rare() < 0.6 else b"\xff" * 6 if rare() < 0.8 else self.rng.randbytes(6)
        if at < 0.4:
            key = (self.proto(size), src, self.port(self.targets), target, self.port(self.targets))
            return Sent("from_uplink", uplink, frame_of(mac, NEIGHBOUR, self.packet(key)))
        if size == 4:
            operation = (1, 1, 1, 2, 2, int(rare() * 5))[int(rare() * 6)]
            body = b"\0\1\x08\0\6\4" + operation.to_bytes(2, "big") + NEIGHBOUR + src + bytes(6) + target
            return Sent("from_uplink", uplink, mac + NEIGHBOUR + b"\x08\x06" + body + bytes(int(rare() * 19)))
        group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
        dst, to = (group, b"\x33\x33\xff" + target[13:]) if rare() < 0.8 else (target, mac)
        option = b"\1\1" + NEIGHBOUR if any(src) else b""
        kind = (135, 135, 135, 136, 134)[int(rare() * 5)]
        body = icmp(src, dst, bytes((kind, 0, 0, 0)) + bytes(4) + target + option)
        packet = self.wrapped(src, dst, ICMPV6, body, 255 if rare() < 0.95 else 64)
        return Sent("from_uplink", uplink, frame_of(to, NEIGHBOUR, packet))

    def by_the_stack(self) -> Sent | None:
        """The host forwards an answer, or an error, to what a member has sent to one of its own ports."""
        detours = self.reference.detours
        sent = [(by, f) for _, by, f, *_ in self.recent if isinstance(by, Member) and len(f) > 54]
        begun = [(by, Packet(frame)) for by, frame in sent]
        begun = [(by, p) for by, p in begun if p.ports and (by.number, p.key) in detours]
        if not begun:
            return None
        by, p = begun[int(self.random() * len(begun))]
        net = by.network
        _, dst, dport, src, sport = p.key
        if self.random() < 0.8:
            packet = self.packet((p.proto, src, sport, dst, dport))
        else:
            kinds = (b"\3\1", b"\1\3") if len(dst) == 4 else (b"\1\0", b"\3\0")
            packet = self.wrapped(
                *(src, dst, ICMP if len(dst) == 4 else ICMPV6),
                kinds[self.random() < 0.5] + bytes(6) + p.frame[14 : p.end],
                64,
            )
        return Sent("from_host", net, frame_of(p.src_mac, net.mac, packet), True)

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
        src = key[1] if sender or rare() < 0.4 else self.outside(len(key[1]))
        dst = key[3] if rare() < 0.95 else self.host_address(len(key[3]))
        return self.by(sender, self.error_about(quoted, src, dst))

    def error_about(self, quoted: Key, src: bytes, dst: bytes) -> bytes:
        packet, rare = self.packet(quoted), self.random
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
        elif rare() < 0.05:  # longer than errors are to be
            size = self.rng.choice(self.widths)
            packet += self.rng.randbytes(size)
        word = b"\0\0\5\x14" if rare() < 0.5 else self.rng.randbytes(4)
        body = icmp(src, dst, bytes((kind, code, 0, 0)) + word + packet[:size])
        return self.wrapped(src, dst, ICMP if len(src) == 4 else ICMPV6, body)

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
        if sent.hook == "from_tunnel":  # what has no header has no wrong one
            frame[:14] = sent.frame[:14]
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
        elif at < 0.88:
            whole = self.to_host()
        elif at < 0.91:
            whole = self.to_service() if self.topology.services else self.to_host()
        elif at < 0.93:
            whole = self.to_peer() or self.by_another_host()
        elif at < 0.96:
            whole = self.near_the_width()
            whole = whole._replace(gso=0) if whole and len(whole.frame) <= KEPT else None
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
