# SPDX-License-Identifier: Apache-2.0
"""What a container sends: to its neighbours, to the host, to the outside."""

from __future__ import annotations

from tests.model import nat
from tests.model.addresses import (
    BROADCAST,
    MAPPED,
    RESOLVER,
    ZERO4,
    ZERO6,
    class_e,
    loopback,
    on_link,
    unusable,
)
from tests.model.connections import CLOSED, Connection, Half
from tests.model.expected import (
    REDIRECT,
    Expected,
    advertisement,
    arp_reply,
    dropped,
    either,
    fitting,
    one_hop,
    passed,
    translated,
)
from tests.model.link import OnLink
from tests.model.packet import (
    ACK,
    ARP,
    ICMPV6,
    IGMP,
    IPV4,
    IPV6,
    LATER,
    RST,
    SYN,
    TCP,
    UDP,
    Key,
    Packet,
    backwards,
)
from tests.model.policies import HOST as OWN
from tests.model.questions import Questions
from tests.model.routes import Flow, Route
from tests.model.situations import Situation, Withheld
from tests.model.topology import Member, Network
from tests.model.watching import HOST


class FromContainer(Questions, OnLink):
    def from_container(self, sender: Member, frame: bytes) -> Expected | None:
        p, net = Packet(frame, self.gso), sender.network
        self.room, self.bare, self.outside = net.mtu, False, False
        wrong = self._refusals(p, sender)
        if wrong:
            return dropped(frame, *wrong)
        if p.kind == ARP:
            return self._arp_to_link(p, sender) if net.lan else self._arp(p, sender)
        if p.kind == IPV6 and p.icmp == 135 and not p.fragment:  # RFC 6980: in fragments it is none
            return self._solicitation_to_link(p, sender) if net.lan else self._solicitation(p, sender)
        if p.kind == IPV6 and p.icmp == 136:
            return self._advertisement(p, sender)
        if p.dst_mac[0] & 1 and net.questions:
            return dropped(frame, "DROP_MULTICAST_OFF")
        if p.dst_mac[0] & 1:
            group = self._group(p, sender)
            return self._group_to_link(p, sender, group) if net.lan else group
        if self.guard.generation and self._for_resolver(p, sender):
            raise Withheld  # tests/bpf/test_policies.py asks
        if self._for_resolver(p, sender):
            return self._question(p, sender)
        if net.questions:
            self._meet(Situation.NO_QUESTION)
            return dropped(frame, "DROP_ISOLATED")
        service = net.services.get(p.dst)
        if service and p.fragment:
            found = service
            return self._as_fragment(p, sender.number, lambda: self._to_virtual(p, sender, found))
        if service:
            return self._to_virtual(p, sender, service)
        target = net.members.get(p.dst)
        remote = target is None and self._leads_to_peer(p, net)
        called = p.dst == net.gateway(len(p.dst))
        if remote and ((net.icc and not sender.serves and not called) or not p.fragment):
            return self._to_peer(p, net, sender, net.icc or self._linked(p))
        if net.lan and target is None and not self._is_hosts(net, p.dst):
            return self._to_link(p, sender)
        router = self._router(net, p.dst_mac)
        if remote:
            return self._as_fragment(
                *(p, sender.number), lambda: self._to_peer(p, net, sender, net.icc or self._linked(p))
            )
        if target is None and router:
            return self._by_router(p, sender, router)
        if p.fragment and target is None and p.dst_mac != net.mac:
            return self._leaves(p, sender)  # nobody's, whatever it is of
        # Between members a fragment is a packet like any other; translation and policy need to know its ports.
        if p.fragment and (target is None or not net.icc or sender.serves or self.guard.generation):
            return self._as_fragment(p, sender.number, lambda: self._unicast(p, sender, target))
        return self._unicast(p, sender, target)

    @staticmethod
    def _router(net: Network, mac: bytes) -> Member | None:
        return next((one for one in net.members.values() if one.mac == mac and one.forwarding), None)

    def _by_router(self, p: Packet, sender: Member, router: Member) -> Expected:
        """To whatever lies behind a member that forwards: it is a neighbour like any."""
        net = sender.network
        if unusable(p.dst) or p.dst == net.broadcast or p.dst_mac == p.src_mac:
            raise Withheld
        self._meet(Situation.BY_ROUTER)
        if not net.icc:
            return dropped(p.frame, "DROP_ICC")
        if p.fragment and self.guard.generation:
            raise Withheld
        refused = self._admitted(p, sender, router.number)
        if refused:
            return refused
        self.watch.meets(p, router.number)
        return passed("DELIVERED", p.frame)

    def _unicast(self, p: Packet, sender: Member, target: Member | None) -> Expected | None:
        if target is None and self._answers_caller(p, sender):
            self._meet(Situation.SERVICE_ANSWERS_BY)
            return self._to_peer(p, sender.network, sender, True)
        if sender.serves and sender.owns(p.src) and (target or p.dst_mac == sender.network.mac):
            answer = self._service_answer(p, sender)
            if answer:
                return answer
        if target is None:
            return self._leaves(p, sender)
        if not sender.network.icc and not self._linked(p):
            return dropped(p.frame, "DROP_ICC")
        refused = self._admitted(p, sender, target.number)
        if refused:
            return refused
        if target.serves and not p.fragment and p.opens:
            self._yields(p)
        self.watch.meets(p, target.number)
        return passed("DELIVERED", target.mac + p.frame[6:])

    def _yields(self, p: Packet) -> None:
        """A member begins to ask a backend itself: what it has asked it from that port by a service is forgotten, if
        that is over."""
        half = self.connections.find(backwards(p.key))
        if half is None or half.original or not half.connection.service:
            return
        if half.connection.resumed:
            raise Withheld
        if half.connection.state == CLOSED:
            self.connections.forget(half.connection)

    # ---- what it may not say at all ----------------------------------------------------------------------

    def _refusals(self, p: Packet, sender: Member) -> set[str]:
        wrong, net = set[str](), sender.network
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
            if p.src == ZERO4 and self._has_none_yet(p):
                self._meet(Situation.NO_ADDRESS)
            elif (
                p.src != sender.addr4
                and not self._at_resolver(p, net)
                and not self._speaks_for(p.src, sender)
            ):
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
            elif p.src not in (sender.addr6, sender.linklocal) and not self._speaks_for(p.src, sender):
                wrong.add("DROP_SPOOFED_ADDR")
        return wrong

    @staticmethod
    def _has_none_yet(p: Packet) -> bool:
        """DHCP (RFC 2131, 4.1), and reports of who listens to a group (RFC 3376, 4.2.13)."""
        if not p.dst_mac[0] & 1:
            return False
        if p.fragment and p.proto in (IGMP, UDP):
            raise Withheld  # neither ever is, and neither says anything in pieces
        discovers = p.proto == UDP and p.ports == (68, 67) and p.dst == BROADCAST[:4]
        return discovers or (p.proto == IGMP and p.dst[0] >> 4 == 14)

    @staticmethod
    def _at_resolver(p: Packet, net: Network) -> bool:
        """As a socket that is bound to 127.0.0.1 asks its resolver."""
        return loopback(p.src) and p.dst == RESOLVER and p.dst_mac == net.mac

    @staticmethod
    def _speaks_for(src: bytes, sender: Member) -> bool:
        """It is no neighbour's address, nor any that only neighbours have."""
        net = sender.network
        if not sender.forwarding or src in net.members or src in net.services or unusable(src):
            return False
        return src not in (net.gateway4, net.gateway6, net.linklocal, net.broadcast)

    # ---- ARP, neighbour discovery, groups ----------------------------------------------------------------

    def _neighbour(self, net: Network, address: bytes) -> bytes | None:
        """Whose MAC is told for an address of the network."""
        member = net.members.get(address)
        if member:
            return member.mac
        if address in net.services or (address and address in (net.gateway4, net.gateway6, net.linklocal)):
            return net.mac
        return self._remote_mac(net, address, lambda peer: net.mac)

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
        if asked[:12] == MAPPED:  # nobody's in IPv6 (RFC 4291, 2.5.5.2)
            return dropped(f, "ABSORBED", "DROP_UNKNOWN_ARP")
        mac = self._neighbour(sender.network, asked)
        return advertisement(p, asked, mac) if mac else dropped(f, "DROP_UNKNOWN_ARP")

    def _advertisement(self, p: Packet, sender: Member) -> Expected:
        if p.ttl != 255 or p.end - p.l4 < 24:
            return dropped(p.frame, "DROP_TRUNCATED")
        said = p.frame[p.l4 + 8 : p.l4 + 24]
        if said[:12] == MAPPED:
            return dropped(p.frame, "ABSORBED", "DROP_SPOOFED_ARP")
        return dropped(p.frame, "ABSORBED" if sender.owns(said) else "DROP_SPOOFED_ARP")

    def _group(self, p: Packet, sender: Member) -> Expected:
        net, dst = sender.network, p.dst
        if p.kind == IPV4:
            if dst[0] >> 4 != 14 and dst != BROADCAST[:4] and dst != net.broadcast:
                return dropped(p.frame, "DROP_WRONG_MAC")
        elif dst[0] != 0xFF:
            return dropped(p.frame, "DROP_WRONG_MAC")
        elif dst[1] & 15 <= 1:
            return dropped(p.frame, "DROP_MULTICAST_OFF")
        to = (0, p.dst), p.ports[1] if p.ports else 0
        if self.guard.generation:
            refusal = self.guard.judges(p.proto, (sender.number, p.src), *to)
            refused = self._refused(p, None, refusal)
            if refused:
                return refused
        others = {id(m): m for m in net.members.values() if m is not sender} if net.icc else {}
        others = {key: m for key, m in others.items() if self.guard.wants_copies(m.number)}
        return Expected(REDIRECT, ("FLOODED",), (p.frame,), to=fitting(p, net, others))

    # ---- to one place ------------------------------------------------------------------------------------

    def _leaves(self, p: Packet, sender: Member) -> Expected | None:
        net, frame, dst = sender.network, p.frame, p.dst
        wrong: set[str] = set()
        if p.dst_mac != net.mac:
            wrong.add("DROP_WRONG_MAC")
        at_gateway = not net.lan and dst == net.gateway(len(dst))
        at_gateway = at_gateway or (p.kind == IPV6 and dst == net.linklocal)
        if class_e(dst):
            self._meet(Situation.CLASS_E)
        if not at_gateway and (unusable(dst) or dst == net.broadcast):
            wrong.add("DROP_BAD_ADDR")
        # RFC 4291, 2.5.6: it does not leave the link, which ends at the host.
        if on_link(p.src) and not at_gateway:
            wrong.add("DROP_BAD_ADDR")
        if net.internal and not at_gateway:
            wrong.add("DROP_INTERNAL")
        if not sender.owns(p.src) and not loopback(p.src):
            # The host would answer elsewhere, unless it routes that there.
            self._meet(Situation.SPEAKS_FOR)
            if p.size > net.mtu:  # nor is there a way back for one as long, and none comes
                raise Withheld
            back = self._route(Flow(p.dst, p.src))
            # Whether the kernel's own look back minds ports depends on its rules; where that matters nothing is said.
            sport, dport = p.ports or (0, 0)
            key = (p.proto, p.dst, dport, p.src, sport)
            if any(self._route(flow) is not back for flow in (Flow.of(key), Flow.of(key, p.tos))):
                raise Withheld
            if wrong or back.network is not net or not back.via or net.members.get(back.via) is not sender:
                wrong.add("DROP_SPOOFED_ADDR")
        if wrong:
            return dropped(frame, *wrong)
        if net.internal or on_link(p.src):
            refused = self._admitted(p, sender, OWN)
            if refused:
                return refused
            self.watch.meets(p, HOST)
            return passed("TO_HOST", frame)
        if p.ports:
            half = self.connections.find(p.key)
            if half and half.is_by(sender) and self._is_left(p, half):
                return self._anew(p, half.connection, lambda: self._leaves(p, sender))
            if half and half.is_by(sender):
                return self._forward(p, sender, half)
            if half:  # of who had the address before
                return self._instead_of(half.connection, p, sender)
        elif p.error:
            told = self._error(p, sender)
            if told:
                return told
        return self._begins(p, sender, at_gateway)

    def _instead_of(self, old: Connection, p: Packet, sender: Member) -> Expected | None:
        self.connections.forget(old)
        self.width = 0
        self.nat.displaced = old.original, old.answer
        expected: Expected | None = None
        try:
            expected = self._leaves(p, sender)
        finally:
            self.nat.displaced = ()
            if expected is None:  # undefined, so nobody sees it, so nothing has happened
                self.connections.restore(old)
        return expected

    def _begins(self, p: Packet, sender: Member, at_gateway: bool) -> Expected | None:
        """It belongs to nothing that is known."""
        net, frame = sender.network, p.frame
        ports = p.ports or (0, 0)
        route = self._route(Flow.of((p.proto, p.src, ports[0], p.dst, ports[1]), p.tos))
        if at_gateway or route.kind == "local":
            published = self._published(p)
            return self._open_published(p, sender, published) if published else self._to_mapped(p, sender)
        kept = self._kept(p, sender, route, net.masquerade)
        if kept and self.guard.generation:
            raise Withheld  # which of the two is asked first nobody minds
        if kept:
            return kept
        if route.kind in ("none", "stop"):
            refused = self._admitted(p, sender, OWN) if p.ttl > 1 else None
            return refused or self._has_no_way(p, net.masquerade)
        if route.kind == "net" and route.network is net and route.via:
            return self._behind(p, sender, net.members.get(route.via))
        if route.kind == "net":
            reason = "DROP_NO_ENDPOINT" if route.network is net else "DROP_ISOLATED"
            assert route.network
            if p.ttl > 1 and p.size <= route.network.mtu:
                return dropped(frame, reason)
            if p.size > route.network.mtu and not p.keep:
                raise Withheld
            return either(reason, "DROP_TTL", "DROP_TOO_BIG")
        return self._to_outside(p, sender, route)

    def _to_mapped(self, p: Packet, sender: Member) -> Expected | None:
        """To a port of the host's that nobody publishes: the host's, unless a container's is mapped to it and it can
        begin something."""
        ours = passed("TO_HOST", p.frame)
        hairpin = p.ports is not None and p.proto in (TCP, UDP) and self._hairpin_leads(p, sender)
        if hairpin:
            return self._to_external(p, sender)
        refused = self._admitted(p, sender, OWN)
        if refused:
            return refused
        self.watch.meets(p, HOST)
        if p.ports is None or p.proto not in (TCP, UDP):
            return ours
        self.detours.add((sender.number, p.key))
        return ours

    def _hairpin_leads(self, p: Packet, sender: Member) -> bool:
        if p.fragment == LATER or p.ttl <= 1:
            return False
        proto, _, _, host, dport = p.key
        flags = p.frame[p.l4 + 13] if proto == TCP else 0
        if flags & RST or flags & (SYN | ACK) == SYN | ACK or not sender.network.masquerade:
            return False
        return (host, dport, proto) in self.nat.by_external and (dport, proto) not in self.topology.sockets

    def _to_external(self, p: Packet, sender: Member) -> Expected | None:
        """To a port of the host's to which a container's is mapped."""
        proto, _, sport, host, dport = p.key
        self._meet(Situation.HAIRPIN)
        denied = self._may_go_out(p, sender)
        if denied:
            return denied

        def answer(port: int) -> Key:
            return (proto, host, dport, host, port)

        opening = nat.Opening(p, sport, answer, lambda port: b"", "", sender, None, passes=False)
        found = self.nat.reach(opening, sender, host)
        if found is None:
            raise Withheld
        port, begin = found
        peer = self.connections.find((proto, host, port, host, dport))
        receiver = sender if port == dport else peer.receiver if peer else None
        if receiver:  # before anything is remembered
            self._too_big(p, sender, receiver.network.mtu, True)
        return self._hairpin(p, sender, Half(begin(), True))

    def _behind(self, p: Packet, sender: Member, router: Member | None) -> Expected:
        net = sender.network
        if router is None or not router.forwarding:
            return either("DROP_NO_ENDPOINT", "DROP_TTL", "DROP_TOO_BIG")
        if router is sender or not net.icc or p.fragment or p.error:
            raise Withheld
        self._meet(Situation.BEHIND)
        if p.ttl <= 1:
            return self._told(p, sender, "DROP_TTL")
        refused = self._too_big(p, sender, net.mtu) or self._admitted(p, sender, router.number)
        self.watch.meets(p, router.number)
        return refused or passed("DELIVERED", router.mac + net.mac + one_hop(p)[12:])

    def _to_outside(self, p: Packet, sender: Member, route: Route) -> Expected | None:
        net, frame = sender.network, p.frame
        assert route.uplink
        if p.ttl <= 1:
            return self._told(p, sender, "DROP_TTL")
        if p.ports is None and not p.keep and p.size > route.uplink.mtu:  # nothing of it would leave
            return dropped(frame, "DROP_NO_CONN", "DROP_PROTOCOL", "DROP_FRAGMENT")
        refused = self._too_big(p, sender, route.uplink.mtu)
        if refused:
            return refused
        if p.error:
            return dropped(frame, "DROP_NO_CONN")
        if p.fragment == LATER:  # its first one has opened the connection, or it is not to be
            return dropped(frame, "DROP_FRAGMENT", "DROP_PROTOCOL", "DROP_NO_CONN")
        if p.ports is None:
            return dropped(frame, "DROP_PROTOCOL", "DROP_FRAGMENT")
        if p.icmp in (0, 129):  # an answer to nothing
            return dropped(frame, "DROP_NO_CONN", "DROP_PROTOCOL", "DROP_FRAGMENT")
        if p.proto == TCP:  # neither a refusal nor an answer begins anything
            flags = frame[p.l4 + 13]
            if flags & RST or flags & (SYN | ACK) == SYN | ACK:
                return dropped(frame, "DROP_NO_CONN")
        if not net.masquerade:
            return self._may_go_out(p, sender) or self._as_it_is(p, sender)
        source = route.masquerade_source()
        if source != route.uplink.address(len(source)):
            self._meet(Situation.ROUTE_SOURCE)
        if not source:
            return dropped(frame, "DROP_NO_ROUTE")
        denied = self._may_go_out(p, sender)
        if denied:
            return denied
        proto, _, sport, dst, dport = p.key

        def answer(port: int) -> Key:
            return (proto, dst, dport, source, port)

        def out(port: int) -> bytes:
            return translated(p, (proto, source, port, dst, dport))

        opening = nat.Opening(p, sport, answer, out, "TO_OUTSIDE", sender, None, route.uplink)
        return self.nat.masquerade(opening, sender, source)

    def _may_go_out(self, p: Packet, sender: Member) -> Expected | None:
        """None: it may begin that."""
        if not self.guard.generation:
            return None
        proto, src, _, dst, dport = p.key
        return self._refused(p, sender, self.guard.judges(proto, (sender.number, src), (0, dst), dport))

    def _as_it_is(self, p: Packet, sender: Member) -> Expected:
        """Without masquerading."""
        answer = backwards(p.key)
        if answer in self.connections:
            return dropped(p.frame, "DROP_NAT_PORTS", "DROP_CONN_TABLE")
        connection = self.connections.remember(p.key, answer, sender, None)
        self.watch.follows(connection)
        connection.spoken(p, True)
        return passed("TO_OUTSIDE", translated(p, p.key))
