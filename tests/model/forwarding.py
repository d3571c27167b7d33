# SPDX-License-Identifier: Apache-2.0
"""What a packet meets wherever it comes from: connections that are known, published ports, the way's width."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

from datapath.model.policies import Policy
from tests.model import nat
from tests.model.addresses import loopback, on_link
from tests.model.connections import Connection, Connections, Half
from tests.model.errors import check_error, error_outs, quotation
from tests.model.expected import NEXT, REDIRECT, Expected, dropped, either, last_hop, passed, translated
from tests.model.fragments import Datagram, Datagrams, options_of
from tests.model.packet import FIRST, ICMP, ICMPV6, IPV4, LATER, TCP, UDP, Key, Packet, backwards
from tests.model.policies import HOST, OUTSIDE, Guard, Refusal
from tests.model.routes import ANYIP, Flow, Route
from tests.model.services import Services, is_gateway
from tests.model.situations import WITHHELD, Situation, Withheld
from tests.model.sums import checksum
from tests.model.topology import LOCAL_SENDER, Member, Published, Topology, Uplink
from tests.model.watching import Watch

__all__ = ["Forwarding"]

SMALL = 500  # bytes: what nothing cuts in pieces
SMALL_ENOUGH = 1000  # and what is no larger with another header before it
PROHIBITED = b"\3\x0d", b"\1\1"  # by a policy (RFC 1812 5.2.7.1, RFC 4443 3.1)


def error_head(p: Packet, reason: str) -> bytes:
    """Type and code: time exceeded in transit; fragmentation needed, packet too big; or administratively prohibited."""
    kinds = {"DROP_TTL": (b"\x0b\0", b"\3\0"), "DROP_TOO_BIG": (b"\3\4", b"\2\0")}
    return kinds.get(reason, PROHIBITED)[0 if p.kind == IPV4 else 1]


class Forwarding(Services):
    def __init__(self, topology: Topology, withheld: frozenset[Situation] = frozenset(WITHHELD)) -> None:
        self.topology, self.withheld = topology, withheld
        self.connections = Connections()
        self.guard = Guard()
        self.datagrams = Datagrams()
        self.detours: set[tuple[int, Key]] = set()  # what members have sent to the host's own ports
        self.watch = Watch()
        self.nat = nat.Ports(topology, self.connections, self.watch, self._meet)
        self.gso = 0  # segment size of the packet at hand
        self.room = 0  # what the device takes that it has arrived at
        self.arrived: Uplink | None = None  # from outside
        self.outside = False  # the packet at hand is from there
        self.bare = False  # the packet at hand has come without an Ethernet header
        self.width = 0  # what its way takes that it is cut for, if it is
        self.met: Counter[Situation] = Counter()

    def bury(self, number: int) -> None:
        """The removal of the endpoint that had the number is complete: nothing is left of its connections."""
        if self.connections.bury(number):
            self._meet(Situation.BURIED)
        self.nat.bury(number)

    def _meet(self, situation: Situation) -> None:
        """Before anything of the packet is remembered."""
        self.met[situation] += 1
        if situation in self.withheld:
            raise Withheld(situation)

    # ---- policies ----------------------------------------------------------------------------------------

    def put(self, policies: list[Policy]) -> None:
        """These are in force from now on."""
        self.guard.put(policies, self.topology)
        self.connections.generation = self.guard.generation

    def _refused(self, p: Packet, sender: Member | None, refusal: Refusal | None) -> Expected | None:
        """By a policy: a container hears of it. None: it is not."""
        if refusal is None:
            return None
        self._meet(Situation.POLICY_OUT if refusal.reason == "DROP_OUT" else Situation.POLICY_IN)
        self.width = 0
        if not refusal.told or sender is None or sender is LOCAL_SENDER:
            return dropped(p.frame, refusal.reason)
        return self._told(p, sender, refusal.reason)

    def _stands(self, p: Packet, sender: Member | None, half: Half) -> Expected | None:
        before = half.connection.judged[0 if half.original else 1]
        expected = self._refused(p, None if p.error else sender, self.guard.stands(p, half))
        if expected and before != self.guard.generation:
            self._meet(Situation.POLICY_AGAIN)
        return expected

    def _admitted(self, p: Packet, sender: Member, to: int) -> Expected | None:
        """What a member sends that nobody translates. None: it may pass."""
        return self._refused(p, sender, self.guard.admits(p, sender.network, sender.number, to))

    # ---- the way's width -------------------------------------------------------------------------------

    def _too_big(self, p: Packet, sender: Member | None, mtu: int, into: bool = False) -> Expected | None:
        """None: it fits, or is cut in pieces that do, where that is allowed (RFC 1812 5.2.6). Else the sender is told
        to send less; of an error not even that (RFC 4443 2.4). Of a packet that is itself to be cut into segments it is
        told in any case: its stack can make them smaller."""
        over = p.size - mtu
        if p.gso:
            if p.proto == UDP:
                self._meet(Situation.SEGMENT_UDP)
            elif (over > 0) != (over - p.transport + 20 > 0):
                self._meet(Situation.SEGMENT_OPTIONS)
        if over <= 0:
            return None
        if p.error:
            if into:
                self._meet(Situation.ERROR_WIDTH)
            return dropped(p.frame, "DROP_TOO_BIG")
        in_tunnel = sender is not None and sender.peer is not None
        if into and not p.keep:
            self._meet(Situation.CUT_INTO)
        if p.gso and not p.keep:
            self._meet(Situation.SEGMENT_LOOSE)
        if p.keep or p.gso or in_tunnel:
            return self._told(p, sender, "DROP_TOO_BIG", mtu)
        self._cut(p, mtu)
        return None

    def _cut(self, p: Packet, mtu: int) -> None:
        if p.l4 > 34:
            self._meet(Situation.CUT_OPTIONS)
        self._meet(Situation.CUT_AGAIN if p.fragment else Situation.CUT)
        header = p.frame[14 : p.l4]
        # No router forwards a header whose sum is wrong (RFC 1812 5.2.2), or whose options lie, and no device takes
        # what is larger than its MTU, and a tag's room: neither can be met outside of a test run.
        if checksum(header) not in (0, 0xFFFF) or options_of(header) is None or p.end - 14 > self.room + 4:
            raise Withheld
        # Where a test run has taken the header off, the kernel still looks for that of IP behind it, and cuts there.
        if self.bare:
            raise Withheld
        self.width = mtu

    def _told(self, p: Packet, sender: Member | None, reason: str, mtu: int = 0) -> Expected:
        """Refused, and the sender learns why (RFC 1812 4.3.2, RFC 4443 2.4): but not about errors, and of a
        datagram only by its first fragment. From the gateway, or to the outside from the address it sent to."""
        if p.error or p.fragment == LATER:
            return dropped(p.frame, reason)
        v4 = len(p.src) == 4
        other_icmp = p.proto == (ICMPV6 if v4 else ICMP)
        odd = p.end - p.l4 < 8 or on_link(p.src) or other_icmp
        if sender and sender.peer:
            if odd:
                raise Withheld
            return self._told_by_tunnel(p, sender, reason, mtu)
        if odd:
            return either(reason)  # too little to be quoted, or nothing that anybody would ask about
        if sender and sender.network.lan:
            return dropped(p.frame, reason)  # the gateway is another machine, which would say so
        sources = [sender.network.gateway(len(p.src)) if sender else p.dst]
        head, word = error_head(p, reason), mtu.to_bytes(4, "big")
        return Expected(REDIRECT, (reason,), check=lambda got: check_error(p, got, sources, head, word))

    def _told_by_tunnel(self, p: Packet, sender: Member, reason: str, mtu: int) -> Expected:
        raise NotImplementedError

    # ---- what is known ---------------------------------------------------------------------------------

    def _delivered(self, p: Packet, member: Member, out: Key) -> bytes:
        """A packet to one of the host's addresses has arrived there: its last hop is enough."""
        hop = 1 if p.ttl > 1 else 0
        return member.mac + member.network.mac + translated(p, out, hop)[12:]

    @staticmethod
    def _to_gateway(p: Packet, host: Member, out: bytes) -> bytes:
        mac = host.network.mac
        return out if p.dst_mac == mac else mac + out[6:]

    def _way(self, p: Packet, sender: Member | None, half: Half) -> Route:
        """By which the half's packet leaves: as it arrived, whatever it is translated to. But what a published
        port answers leaves as if the host did, from the address that was asked."""
        answers = not half.original and sender is not None
        return self._route(Flow.of(half.out if answers else p.key, p.tos), answers)

    def _route(self, flow: Flow, answers: bool = False) -> Route:
        """The host's, with what led to it noted."""
        way = self.topology.routing.way(flow)
        rule = way.rule
        if rule:
            if rule.source:
                self._meet(Situation.ANSWER_RULE if answers else Situation.RULE_SOURCE)
            if rule.sport or rule.dport:
                self._meet(Situation.RULE_PORTS)
            if rule.tos:
                self._meet(Situation.RULE_TOS)
        if way.route is ANYIP:
            self._meet(Situation.ANYIP)
        if way.route.uplink and not way.route.uplink.ethernet:
            self._meet(Situation.TUNNEL_OUT)
        return way.route

    def _forward(self, p: Packet, sender: Member | None, half: Half) -> Expected | None:
        connection, out, receiver = half.connection, half.out, half.receiver
        refused = self._stands(p, sender, half)
        if refused:
            return refused
        if half.stale:
            return dropped(p.frame, "DROP_STALE")
        if receiver is LOCAL_SENDER:
            connection.spoken(p, half.original)
            return passed("TO_HOST", translated(p, out, 0))
        if receiver is None:
            if sender is None:
                return None
            route = self._way(p, sender, half)
            if sender.peer and route.kind in ("none", "stop") and p.ttl > 1:
                return dropped(p.frame, "DROP_NO_ROUTE")  # nobody here is its sender's stack
            if sender.peer and (route.uplink is None or self.topology.protects(out[3])):
                raise Withheld  # whoever is told of it, another host is
            if route.kind == "net":
                return self._way_inside(p, sender, half, route)
            if route.kind == "local" and half.original:
                return self._told(p, sender, "DROP_TTL") if p.ttl <= 1 else self._hairpin(p, sender, half)
            kept = self._kept(p, sender, route, out != p.key, out[3])
            if kept:
                return kept
            if route.uplink is None:
                return self._has_no_way(p, out != p.key)
            if p.ttl <= 1:
                return self._told(p, sender, "DROP_TTL")
            refused = self._too_big(p, sender, route.uplink.mtu)
            if refused:
                return refused
            if self._beyond_link(out[1], route.uplink):
                return dropped(p.frame, "DROP_BAD_ADDR")
            if half.original and connection.masquerades and connection.uplink is not route.uplink:
                # As nf_nat_oif_changed() of the kernel has it.
                self._meet(Situation.OTHER_WAY)
                return self._instead_of(connection, p, sender)
        elif sender is not LOCAL_SENDER and not is_gateway(sender):
            refused = self._too_big(p, sender, receiver.network.mtu, True)
            if refused:
                return refused
        if receiver and receiver.peer:
            self._meet(Situation.SERVICE_FAR_ON)
            if p.size > receiver.network.mtu:
                raise Withheld
            begins = half.original and connection.begins(p)
            if begins is None:
                raise Withheld
            sent = self._by_tunnel(p, Packet(self._delivered(p, receiver, out), p.gso), sender, begins)
            connection.spoken(p, half.original)
            return sent
        connection.spoken(p, half.original)
        if receiver and is_gateway(receiver):
            return passed("TO_HOST", self._to_gateway(p, receiver, translated(p, out, int(p.ttl > 1))))
        if receiver:
            return passed("DELIVERED", self._delivered(p, receiver, out))
        return passed("TO_OUTSIDE", translated(p, out))

    def _way_inside(self, p: Packet, sender: Member, half: Half, route: Route) -> Expected | None:
        """The way leads into a network of containers: what a container sends there itself is as if it began; an answer
        to the outside is for nobody there."""
        self._meet(Situation.WAY_INSIDE)
        assert route.network
        if p.ttl <= 1:
            return self._told(p, sender, "DROP_TTL")
        refused = self._too_big(p, sender, route.network.mtu)
        if refused:
            return refused
        if not half.original:
            return dropped(p.frame, "DROP_ISOLATED")
        if half.connection.masquerades:
            return self._instead_of(half.connection, p, sender)
        return self._begins(p, sender, False)

    def _hairpin(self, p: Packet, sender: Member, half: Half) -> Expected | None:
        """To another container's external port (RFC 4787, REQ-9): it meets that one as it would from outside, by its
        own external port, and comes in as from there: if that one has sent to it. Else it is the host's, which sends
        it nowhere else."""
        peer = self.connections.find(half.out)
        receiver = peer.receiver if peer else None
        if peer is None or peer.original or peer.sender or receiver is None or receiver is LOCAL_SENDER:
            return passed("TO_HOST", last_hop(p))
        self._meet(Situation.HAIRPIN_AWAITED)
        refused = self._stands(p, None, peer)
        if refused:
            return refused
        if peer.stale:
            return dropped(p.frame, "DROP_STALE")
        refused = self._too_big(p, sender, receiver.network.mtu, True)
        if refused:
            return refused
        half.connection.spoken(p, half.original)
        peer.connection.spoken(p, False)
        return passed("DELIVERED", self._delivered(p, receiver, peer.out))

    @staticmethod
    def _beyond_link(source: bytes, uplink: Uplink) -> bool:
        """RFC 4291, 2.5.6: what comes from a link-local address stays on its link."""
        return on_link(source) and source not in uplink.linklocals

    def _kept(
        self, p: Packet, sender: Member, route: Route, translates: bool, to: bytes = b""
    ) -> Expected | None:
        """`to`: its destination as it leaves, if that is another. What the host's stack would do to it cannot be done
        to a translated packet; nor may it leave without."""
        encapsulated = route.kind == "encap"
        if not encapsulated and not (route.uplink and self.topology.protects(to or p.dst)):
            return None
        self._meet(Situation.ENCAPSULATED if encapsulated else Situation.PROTECTED)
        if not translates:
            raise Withheld  # it is left to the stack
        reasons = [
            "DROP_ENCAP" if encapsulated else "DROP_XFRM",
            "DROP_NO_CONN",
            "DROP_PROTOCOL",
            "DROP_FRAGMENT",
        ]
        if p.ttl <= 1:
            return either(*reasons, "DROP_TTL", "DROP_TOO_BIG")
        if route.uplink and (p.ports or p.keep):
            return self._too_big(p, sender, route.uplink.mtu) or dropped(p.frame, *reasons)
        if route.uplink:  # nothing of it would leave, so it is not cut
            return dropped(p.frame, *reasons)
        if p.size > SMALL_ENOUGH:  # how much of it there is room for the kernel knows
            if not p.keep:
                raise Withheld
            return either(*reasons, "DROP_TOO_BIG")
        return dropped(p.frame, *reasons)

    def _has_no_way(self, p: Packet, translates: bool) -> Expected:
        """The host's stack says so. What would be translated must not leave as it is, whatever the host does."""
        if p.ttl <= 1:
            return either("TO_HOST", "DROP_TTL")
        if translates:
            self._meet(Situation.NO_WAY)
        return passed("TO_HOST", last_hop(p) if translates else p.frame)

    def _instead_of(self, old: Connection, p: Packet, sender: Member) -> Expected | None:
        raise NotImplementedError  # only what containers send is masqueraded

    def _begins(self, p: Packet, sender: Member, at_gateway: bool) -> Expected | None:
        raise NotImplementedError  # and routed

    def _error(self, p: Packet, sender: Member | None) -> Expected | None:
        """An error about a packet of a connection: the quotation, backwards, is what its receiver sends."""
        quoted = quotation(p)
        if quoted is None:
            return None
        key = backwards(quoted)
        half = self.connections.find(key)
        if half is None or not half.is_by(sender) or p.dst != key[3]:
            return None
        other, receiver = half.opposite, half.receiver
        refused = self._stands(p, None, half)
        if refused:
            refused.outs = (
                p.frame[14 * (self.bare and self.outside) :],
            )  # no header is made for what is refused already
            return refused
        if half.stale:
            return dropped(p.frame, "DROP_STALE")
        src = other[3] if p.src == key[1] else p.src
        if receiver is LOCAL_SENDER:
            return Expected(REDIRECT, ("TO_HOST",), error_outs(p, src, other[1], other, 0))
        if receiver and is_gateway(receiver):
            outs = error_outs(p, src, other[1], other, 0)
            return Expected(REDIRECT, ("TO_HOST",), tuple(self._to_gateway(p, receiver, one) for one in outs))
        if receiver and receiver.peer:
            outs = error_outs(p, src, other[1], other, 0)
            return self._any_of([self._by_tunnel(p, Packet(out), sender) for out in outs])
        width = receiver.network.mtu if receiver else 0
        if receiver is None:
            answers = not half.original and sender is not None
            flow = Flow(src if answers else p.src, other[1], p.proto, tos=p.tos & 0xFC)
            route = self._route(flow, answers)
            if route.kind == "net":
                self._meet(Situation.WAY_INSIDE)
                if sender and route.network is sender.network and p.size > route.network.mtu:
                    raise Withheld  # its own device does not take it: it cannot be met outside of a test run
            uplink = route.uplink
            if sender and sender.peer and route.kind in ("none", "stop") and p.ttl > 1:
                return dropped(p.frame, "DROP_NO_ROUTE")
            if sender and sender.peer and (uplink is None or p.ttl <= 1):
                raise Withheld
            if route.kind == "encap":
                return self._error_kept(p, src, "DROP_ENCAP", "DROP_NO_CONN")
            if uplink is None and p.dst != other[1]:  # the client is known by the gateway's name only
                return dropped(p.frame, "DROP_TTL" if p.ttl <= 1 else "DROP_NO_CONN")
            if uplink is None:
                return None
            if p.ttl <= 1:
                return dropped(p.frame, "DROP_TTL")
            width = uplink.mtu
        local = sender is LOCAL_SENDER  # whose errors are as long as they are
        refused = (
            None if local or is_gateway(sender) else self._too_big(p, sender, width, receiver is not None)
        )
        if refused:
            return refused
        if receiver is None and uplink and self._beyond_link(src, uplink):
            return dropped(p.frame, "DROP_BAD_ADDR")
        if receiver is None and self.topology.protects(other[1]):
            return self._error_kept(p, src, "DROP_XFRM")
        outs = error_outs(p, src, other[1], other, 1 if p.ttl > 1 else 0)
        if receiver:
            head = receiver.mac + receiver.network.mac
            return Expected(REDIRECT, ("DELIVERED",), tuple(head + out[12:] for out in outs))
        return Expected(REDIRECT, ("TO_OUTSIDE",), outs)

    @staticmethod
    def _any_of(found: list[Expected]) -> Expected:
        """One of these comes."""
        first = found[0]
        if not first.check:
            return Expected(first.verdict, first.reasons, tuple(out for one in found for out in one.outs))

        def check(got: bytes) -> str:
            wrong = [one.check(got) for one in found if one.check]
            return "" if "" in wrong else wrong[0]

        return Expected(first.verdict, first.reasons, check=check)

    def _error_kept(self, p: Packet, src: bytes, *reasons: str) -> Expected:
        """As what it is about: by the host's stack, if it is not translated."""
        if p.ttl <= 1 or p.size > SMALL_ENOUGH:
            return either("TO_HOST", *reasons, "DROP_TTL", "DROP_TOO_BIG")
        return passed("TO_HOST", p.frame) if src == p.src else dropped(p.frame, *reasons)

    # ---- published ports -------------------------------------------------------------------------------

    def _published(self, p: Packet) -> Published | None:
        if p.ports is None or p.proto not in (TCP, UDP):
            return None
        return self.topology.published(p.dst, p.ports[1], p.proto)

    def _open_published(self, p: Packet, client: Member | None, published: Published) -> Expected | None:
        if published.service:
            return self._begin(p, client, published.service, published)
        if not published.admits(p.src):
            return dropped(p.frame, "DROP_DENIED")
        server, net = published.member, published.member.network
        proto, src, sport, _, _ = p.key
        local = client is LOCAL_SENDER
        own = not net.beside and (client is None or (not local and client.network is not net))
        kept = own or (local and not loopback(src) and not net.beside)
        source = src if kept else net.gateway(len(src))
        if net.beside and client is None:
            self._meet(Situation.BESIDE)
        denied = self._may_open(p, client, source, published)
        if denied:
            return denied
        # What the host says to itself has no way to go that could be too narrow.
        refused = None if local else self._too_big(p, client, net.mtu, True)

        def out(port: int) -> bytes:
            return self._delivered(p, server, (proto, source, port, published.addr, published.port))

        def answer(port: int) -> Key:
            return (proto, published.addr, published.port, source, port)

        opening = nat.Opening(p, sport, answer, out, "DELIVERED", client, server, passes=not refused)
        expected = self.nat.client(opening, own)
        if refused and (expected is None or expected.check):
            return None  # it is opened, but with which port nobody can see
        return refused or expected

    def _may_open(
        self, p: Packet, client: Member | None, source: bytes, published: Published
    ) -> Expected | None:
        """None: it may. The host's own stack tells its sockets, as nobody has the port there either."""
        if not self.guard.generation:
            return None
        local = client is LOCAL_SENDER
        number = HOST if local else client.number if client else OUTSIDE
        src = source if local and loopback(p.src) else p.src
        to = published.member.number, published.addr
        refusal = self.guard.judges(p.proto, (number, src), to, published.port)
        if refusal and p.fragment and (local or client is None):
            raise Withheld
        expected = self._refused(p, client, refusal)
        if refusal and local and refusal.told:
            return Expected(NEXT, ("NOT_OURS",), (p.frame,), beside=(refusal.reason,))
        return expected

    # ---- fragments -------------------------------------------------------------------------------------

    def _as_fragment(self, p: Packet, sender: int, act: Callable[[], Expected | None]) -> Expected | None:
        """What becomes of a fragment, if `act` says what would become of the packet that it is of."""
        undo = self.datagrams.save() if p.size > SMALL else None
        again: tuple[bytes, ...] = ()
        if p.fragment == FIRST:
            datagram, again = self._first(p, sender)
            early = None
        else:
            datagram = self.datagrams.of_later(p, sender)
            early = None if datagram.undefined else self._later(p, datagram)
        if early or datagram.undefined:
            return early
        expected: Expected | None = None
        with contextlib.suppress(Withheld):
            expected = act()
        if undo and expected is None:
            undo()  # it has not been here, as nobody says what becomes of it
        elif expected is None:
            datagram.undefined = True
            self.datagrams.keep(datagram)
        else:
            expected.again = again
        return expected

    def _first(self, p: Packet, sender: int) -> tuple[Datagram, tuple[bytes, ...]]:
        old, far, waiting = self.datagrams.find(p, sender), self.datagrams.far, self.datagrams.long
        found = self.datagrams.of_first(p, sender)
        if old and old.known and not old.foreign:
            self._meet(Situation.NUMBER_AGAIN)
        if self.datagrams.far != far:
            self._meet(Situation.NUMBER_FAR)
        if self.datagrams.long != waiting:
            self._meet(Situation.WAITED_LONG)
        return found

    def _later(self, p: Packet, datagram: Datagram) -> Expected | None:
        """It gets the ports of its first one, or waits for it."""
        if not datagram.known:
            return dropped(p.frame, "HELD" if datagram.hold(p) else "DROP_FRAGMENT")
        if datagram.refused == "DROP_FRAGMENT":
            self._meet(Situation.FIRST_REFUSED)
        elif datagram.disputes_the_end(p):
            self._meet(Situation.END_DISPUTED)
        refused = datagram.record(p)
        if refused:
            return dropped(p.frame, refused)
        datagram.lend(p)
        if datagram.complete:
            self.datagrams.forget(datagram)
        return None
