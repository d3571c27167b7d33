# SPDX-License-Identifier: Apache-2.0
"""What becomes of a packet, said in plain Python: from SCENARIOS, DESIGN, the contract (abi.h) and the RFCs.

`Reference` takes the packets of one topology in the order in which they arrive at the hooks, keeps the connections
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

from collections.abc import Callable

from tests.model.expected import (
    Expected,
    advertisement,
    arp_reply,
    check_error,
    dropped,
    either,
    error_outs,
    fitting,
    passed,
    quotation,
    same,
    translated,
)
from tests.model.packet import (
    ANY,
    ARP,
    BROADCAST,
    DISTANCE,
    FIRST,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    LATER,
    MAPPED,
    NEXT,
    PIECES,
    REDIRECT,
    SHOT,
    SLOTS,
    TCP,
    UDP,
    WAITING,
    ZERO4,
    ZERO6,
    Key,
    Packet,
    backwards,
    loopback,
    num,
    on_link,
    unusable,
)
from tests.model.topology import LOCAL_SENDER, Member, Network, Published, Topology, Uplink

NEW, REPLIED, ESTABLISHED, CLOSING, CLOSED = range(5)
# Bytes: a reset as near as this behind what its receiver has acknowledged is within any window, one as far is within
# none; between the two it is a matter of the window's scale, which is not followed.
NEAR, FAR = 1 << 16, 1 << 24


SYN, RST, ACK = 2, 4, 16  # flags of TCP


class Connection:
    """Two halves: each arrives as its key and leaves as the other's, backwards. `confirmed`: both sides have spoken,
    and since then no flood may push it out."""

    __slots__ = (
        "acks",
        "answer",
        "answered",
        "confirmed",
        "fins",
        "heard",
        "numbers",
        "opener",
        "original",
        "resumed",
        "server",
        "state",
    )

    def __init__(self, original: Key, answer: Key, opener: Member | None, server: Member | None) -> None:
        self.original, self.answer, self.opener, self.server = original, answer, opener, server
        self.numbers = (opener.number if opener else 0, server.number if server else 0)
        self.state, self.fins, self.confirmed = NEW, 0, False
        self.answered = self.resumed = False
        self.heard = False  # the other side has spoken, now or before the port was used again
        self.acks = [0, 0]  # the last one that the opener, and the other side, has sent

    def spoken(self, p: Packet, original: bool) -> None:
        """One packet of either half (RFC 9293, 3.3.2, as seen from the middle)."""
        if p.proto != TCP:
            self.confirmed = self.confirmed or not original
            return
        if p.fragment == LATER:
            return
        header = p.frame[p.l4 : p.l4 + 20]
        flags, me = header[13], 0 if original else 1
        fin, syn, reset, ack = flags & 1, flags & 2, flags & 4, flags & 16
        if ack:
            self.acks[me] = num(header[8:12])
        if reset:
            expected = self.acks[1 - me]
            ahead = (num(header[4:8]) - expected) % (1 << 32)
            if not expected or ahead < NEAR:
                self.state = CLOSED
            elif ahead < FAR:
                self.resumed = True
            return
        if original and syn and not ack:
            if self.state >= CLOSING:  # the port is used again (RFC 6191), with numbers of its own
                self.state, self.fins, self.answered, self.acks = NEW, 0, False, [0, 0]
            return
        self.answered = self.answered or not original
        self.heard = self.heard or not original
        if self.state == CLOSED and self.fins != 3:
            # What was taken for a reset was none: it goes on as it was, and when it is confirmed is not said.
            self.state = ESTABLISHED if self.confirmed else REPLIED if self.answered else NEW
            self.resumed = True
        if fin:
            self.fins |= 1 if original else 2
            if self.fins == 3:
                self.state = CLOSED
            elif self.state >= ESTABLISHED:
                self.state = CLOSING
        if not original and self.state == NEW:
            self.state = REPLIED
        elif original and self.state == REPLIED and ack:
            self.state = ESTABLISHED
            self.confirmed = True


def reach(p: Packet) -> tuple[int, int]:
    """From which byte of its datagram to which the fragment goes."""
    return p.offset, p.offset + p.end - p.piece


class Datagram:
    """What the fragments of one datagram have said so far."""

    __slots__ = (
        "foreign",
        "held",
        "icmp",
        "known",
        "number",
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
        self.held: list[tuple[int, int, bytes]] = []
        self.number = 0
        self.refused = ""
        self.known = self.foreign = self.undefined = False
        self.proto, self.icmp, self.total = -1, -1, -1

    def record(self, p: Packet) -> str:
        """Takes note of the fragment; why it may not pass, if so (RFC 5722)."""
        begin, end = reach(p)
        if self.refused:
            return self.refused
        if (begin, end) in self.pieces:
            return "DROP_OVERLAP"  # the network has doubled it: it is not needed, and harmless
        if any(begin < to and end > fro for fro, to in self.pieces):
            self.refused = "DROP_OVERLAP"
        if len(self.pieces) == PIECES:
            return "DROP_FRAGMENT"
        # Where it ends is said once, and nothing lies behind.
        ends = self.total if self.total >= 0 else end if not p.more else -1
        if ends >= 0 and (
            end > ends or (not p.more and end != ends) or any(to > ends for _, to in self.pieces)
        ):
            self.refused = "DROP_OVERLAP"
        self.total = ends
        if self.refused:
            return self.refused
        self.pieces.append((begin, end))
        return ""

    @property
    def complete(self) -> bool:
        return sum(to - fro for fro, to in self.pieces) == self.total


DatagramKey = tuple[int, bytes, bytes, int, int]  # sender, source, destination, number, protocol


class Reference:
    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.table: dict[Key, tuple[Connection, bool]] = {}  # bool: it is the half that opened
        self.connections: list[Connection] = []
        self.gso = 0  # segment size of the packet at hand
        self.datagrams: dict[DatagramKey, Datagram] = {}
        self.begun: dict[int | tuple[int, bytes], list[DatagramKey]] = {}  # by source, in order

    # ---- from a container ------------------------------------------------------------------------------

    def from_container(self, sender: Member, frame: bytes) -> Expected | None:
        p, net = Packet(frame, self.gso), sender.network
        wrong = self._refusals(p, sender)
        if wrong:
            return dropped(frame, *wrong)
        if p.kind == ARP:
            return self._arp(p, sender)
        if p.kind == IPV6 and p.icmp == 135 and not p.fragment:  # RFC 6980: in fragments it is none
            return self._solicitation(p, sender)
        if p.kind == IPV6 and p.icmp == 136:
            return self._advertisement(p, sender)
        if p.dst_mac[0] & 1:
            return self._group(p, sender)
        target = net.members.get(p.dst)
        again: tuple[bytes, ...] = ()
        if p.fragment and (target is None or not net.icc):
            if p.fragment == FIRST:
                datagram, again = self._first(p, sender.number)
            else:
                datagram = self._later(p, sender.number)
            if datagram.undefined:
                return None
            early = self._collect(p, datagram) if p.fragment == LATER else None
            if early:
                return early
        if target is not None:
            if not net.icc and not self._linked(p):
                expected: Expected | None = dropped(frame, "DROP_ICC")
            else:
                expected = passed("DELIVERED", target.mac + frame[6:])
        else:
            expected = self._leaves(p, sender)
        if p.fragment and expected is None:
            # A complete one is forgotten, as it is by the programs.
            self.datagrams.get(self._key(p, sender.number), Datagram()).undefined = True
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
        links, (sport, dport) = self.topology.links, p.ports
        if (p.src, p.dst, dport, p.proto) in links:
            return True
        return (p.dst, p.src, sport, p.proto) in links and not p.syn

    def _leaves(self, p: Packet, sender: Member) -> Expected | None:
        net, frame, dst = sender.network, p.frame, p.dst
        wrong: set[str] = set()
        if p.dst_mac != net.mac:
            wrong.add("DROP_WRONG_MAC")
        at_gateway = dst == net.gateway(len(dst)) or (p.kind == IPV6 and dst == net.linklocal)
        if not at_gateway and (unusable(dst) or dst == net.broadcast):
            wrong.add("DROP_BAD_ADDR")
        if (
            on_link(p.src) and not at_gateway
        ):  # RFC 4291, 2.5.6: it does not leave the link, which ends at the host
            wrong.add("DROP_BAD_ADDR")
        if net.internal and not at_gateway:
            wrong.add("DROP_INTERNAL")
        if wrong:
            return dropped(frame, *wrong)
        if net.internal or on_link(p.src):
            return passed("TO_HOST", frame)
        if p.ports:
            found = self.table.get(p.key)
            if found and self._is_by(found, sender):
                return self._forward(p, sender, found)
            if found:
                self._forget(found[0])
                expected = self._leaves(p, sender)
                if expected is None:  # undefined, so nobody sees it, so nothing has happened
                    self.table[found[0].original] = found[0], True
                    self.table[found[0].answer] = found[0], False
                return expected
        elif p.error:
            told = self._error(p, sender)
            if told:
                return told
        route = self.topology.route(dst)
        if at_gateway or route.kind == "local":
            return self._to_local(p, sender)
        if route.kind in ("none", "stop"):
            return either("TO_HOST", "DROP_TTL") if p.ttl <= 1 else passed("TO_HOST", frame)
        if route.kind == "net":
            reason = "DROP_NO_ENDPOINT" if route.network is net else "DROP_ISOLATED"
            assert route.network
            if p.ttl > 1 and p.size <= route.network.mtu:
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
        ports, port = self.topology.ports, p.ports[1]
        anywhere = ZERO4 if len(p.dst) == 4 else ZERO6
        return ports.get((p.dst, port, p.proto)) or ports.get((anywhere, port, p.proto))

    def _to_outside(self, p: Packet, sender: Member, uplink: Uplink) -> Expected | None:
        net, frame = sender.network, p.frame
        if p.ttl <= 1:
            return self._told(p, sender, "DROP_TTL")
        if p.size > uplink.mtu:
            return self._told(p, sender, "DROP_TOO_BIG", uplink.mtu)
        if p.error:
            return dropped(frame, "DROP_NO_CONN")
        if p.fragment == LATER:  # its first one has opened the connection, or it is not to be
            return dropped(frame, "DROP_FRAGMENT", "DROP_PROTOCOL", "DROP_NO_CONN")
        if p.ports is None:
            return dropped(frame, "DROP_PROTOCOL", "DROP_FRAGMENT")
        key = p.key
        _, src, sport, dst, dport = key
        if p.icmp in (0, 129):  # an answer to nothing
            return dropped(frame, "DROP_NO_CONN", "DROP_PROTOCOL", "DROP_FRAGMENT")
        if p.proto == TCP:  # neither a refusal nor an answer begins anything
            flags = frame[p.l4 + 13]
            if flags & RST or flags & (SYN | ACK) == SYN | ACK:
                return dropped(frame, "DROP_NO_CONN")
        if not net.masquerade:
            answer = backwards(key)
            if answer in self.table:
                return dropped(frame, "DROP_NAT_PORTS", "DROP_CONN_TABLE")
            self._remember(key, answer, sender, None).spoken(p, True)
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

    def _remember(
        self, original: Key, answer: Key, opener: Member | None, server: Member | None
    ) -> Connection:
        connection = Connection(original, answer, opener, server)
        for key in (original, answer):
            old = self.table.get(key)
            if old:
                self._forget(old[0])
        self.table[original] = connection, True
        self.table[answer] = connection, False
        self.connections.append(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        for key in (connection.original, connection.answer):
            if key in self.table and self.table[key][0] is connection:
                del self.table[key]

    def _allowed(self, port: int, proto: int) -> bool:
        topology = self.topology
        if not topology.nat_first <= port <= topology.nat_last:
            return False
        return (port, proto) not in topology.reserved and (port, proto) not in topology.sockets

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
        passes: bool = True,
    ) -> Expected | None:
        """The source port stays where it may; else the program chooses, and here it is checked. `own`: the address
        stays the sender's, so that its ports are no business of the host's. `passes`: the packet is let through, and
        the connection hears it."""
        table, topology = self.table, self.topology
        if wanted and (own or self._allowed(wanted, p.proto)) and answer(wanted) not in table:
            connection = self._remember(p.key, answer(wanted), opener, server)
            if passes:
                connection.spoken(p, True)
            return passed(reason, out(wanted))
        if p.fragment == LATER:
            return None  # nothing in it says which port was chosen

        def check(got: bytes) -> str:
            at = p.l4 + (4 if p.icmp >= 0 else 0)
            port = num(got[at : at + 2])
            if not (topology.nat_first <= port <= topology.nat_last if own else self._allowed(port, p.proto)):
                return f"port {port} must not be chosen"
            used = table.get(answer(port))
            if used and used[0].state != CLOSED:
                return f"port {port} is another connection's"
            self._remember(p.key, answer(port), opener, server).spoken(p, True)
            return "" if same(got, out(port)) else f"wanted {out(port).hex()}"

        free = (
            sum(
                self._allowed(port, p.proto) and answer(port) not in table
                for port in range(topology.nat_first, topology.nat_last + 1)
            )
            if topology.nat_last - topology.nat_first < 256
            else 256
        )
        # The search is bounded: where few ports are left it may find none.
        full = free * 4 < topology.nat_last - topology.nat_first and free < 256
        if full:
            return Expected(ANY, (reason, "DROP_NAT_PORTS"), check=check)
        return Expected(REDIRECT, (reason,), check=check)

    def _open_published(self, p: Packet, client: Member | None, published: Published) -> Expected | None:
        if not published.admits(p.src):
            return dropped(p.frame, "DROP_DENIED")
        server, net = published.member, published.member.network
        key = p.key
        proto, src, sport, _, _ = key
        local = client is LOCAL_SENDER
        own = client is None or (not local and client.network is not net)
        source = src if own or (local and not loopback(src)) else net.gateway(len(src))
        # What the host says to itself has no way to go that could be too narrow.
        fits = local or not p.keep or p.size <= net.mtu
        expected = self._choose(
            p,
            sport,
            lambda port: (proto, published.addr, published.port, source, port),
            lambda port: self._delivered(p, server, source, published.addr, port, published.port),
            "DELIVERED",
            client,
            server,
            own=own,
            passes=fits,
        )
        if not fits:
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
        """Who sends that half; None: the outside; LOCAL_SENDER: the host itself."""
        connection, original = found
        return connection.opener if original else connection.server

    @staticmethod
    def _is_by(found: tuple[Connection, bool], sender: Member | None) -> bool:
        """The sender is the endpoint that the half is of, not only one that has its address now."""
        connection, original = found
        if sender is None:
            return (connection.opener if original else connection.server) is None
        return connection.numbers[0 if original else 1] == sender.number

    @staticmethod
    def _is_stale(found: tuple[Connection, bool]) -> bool:
        """Who would receive it is gone, though another has the address."""
        connection, original = found
        receiver = connection.server if original else connection.opener
        return receiver is not None and receiver.number != connection.numbers[1 if original else 0]

    @staticmethod
    def _half_to(found: tuple[Connection, bool]) -> Member | None:
        connection, original = found
        return connection.server if original else connection.opener

    def _forward(self, p: Packet, sender: Member | None, found: tuple[Connection, bool]) -> Expected | None:
        connection, original = found
        out = backwards(connection.answer if original else connection.original)
        receiver = self._half_to(found)
        if self._is_stale(found):
            return dropped(p.frame, "DROP_STALE")
        if receiver is LOCAL_SENDER:
            connection.spoken(p, original)
            return passed("TO_HOST", translated(p, out[1], out[3], out[2], out[4], 0))
        if receiver is None:
            route = self.topology.route(out[3])
            if sender is None:
                return None
            if route.uplink is None:
                return either("TO_HOST", "DROP_TTL") if p.ttl <= 1 else passed("TO_HOST", p.frame)
            if p.ttl <= 1:
                return self._told(p, sender, "DROP_TTL")
            if p.size > route.uplink.mtu:
                return self._told(p, sender, "DROP_TOO_BIG", route.uplink.mtu)
        elif sender is not LOCAL_SENDER and p.keep and p.size > receiver.network.mtu:
            return self._told(p, sender, "DROP_TOO_BIG", receiver.network.mtu)
        connection.spoken(p, original)
        if receiver:
            return passed("DELIVERED", self._delivered(p, receiver, out[1], out[3], out[2], out[4]))
        return passed("TO_OUTSIDE", translated(p, out[1], out[3], out[2], out[4]))

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
        if found is None or not self._is_by(found, sender) or p.dst != key[3]:
            return None
        connection, original = found
        other = connection.answer if original else connection.original
        receiver = self._half_to(found)
        if self._is_stale(found):
            return dropped(p.frame, "DROP_STALE")
        if receiver is LOCAL_SENDER:
            src = other[3] if p.src == key[1] else p.src
            return Expected(REDIRECT, ("TO_HOST",), error_outs(p, src, other[1], other, 0))
        if receiver is None and self.topology.route(other[1]).uplink is None:
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

    @staticmethod
    def _key(p: Packet, sender: int) -> DatagramKey:
        # Of IPv6 only addresses and number count (RFC 8200, 4.5).
        return sender, p.src, p.dst, p.ident, p.proto if p.kind == IPV4 else -1

    def _begin(self, p: Packet, sender: int) -> Datagram:
        """A source has 64 datagrams on the way, and 8 whose first fragment has not come (net.ipv4.ipfrag_max_dist)."""
        source = sender if sender not in (0, LOCAL_SENDER.number) else (sender, p.src)
        order = self.begun.setdefault(source, [])
        for distance in (DISTANCE, WAITING):
            number = len(order) - distance
            old = self.datagrams.get(order[number]) if number >= 0 else None
            if old and old.number == number and (distance == DISTANCE or not old.known):
                del self.datagrams[order[number]]
        datagram = Datagram()
        datagram.number = len(order)
        order.append(self._key(p, sender))
        return datagram

    def _later(self, p: Packet, sender: int) -> Datagram:
        key = self._key(p, sender)
        if key not in self.datagrams and len(p.frame) <= 2048:
            self.datagrams[key] = self._begin(p, sender)
        return self.datagrams.get(key) or Datagram()

    def _first(self, p: Packet, sender: int) -> tuple[Datagram, tuple[bytes, ...]]:
        """It begins its datagram, whatever was known before; and the frames that have waited for it."""
        key = self._key(p, sender)
        datagram = self._begin(p, sender)
        old = self.datagrams.get(key)
        held = old.held if old else []
        datagram.undefined = bool(old and old.undefined and old.held)
        datagram.known = True
        datagram.ports, datagram.proto, datagram.icmp = p.ports, p.proto, p.icmp
        datagram.pieces.append(reach(p))
        self.datagrams[key] = datagram
        # What the first one covers was sent for an earlier datagram.
        return datagram, tuple(frame for begin, _, frame in held if begin >= reach(p)[1])

    def _collect(self, p: Packet, datagram: Datagram) -> Expected | None:
        """A later fragment gets the ports of its first one, or waits for it."""
        if not datagram.known:
            return self._hold(p, datagram)
        refused = datagram.record(p)
        if refused:
            return dropped(p.frame, refused)
        p.ports, p.icmp = datagram.ports, datagram.icmp
        if datagram.complete:
            self.datagrams = {k: d for k, d in self.datagrams.items() if d is not datagram}
        if p.kind == IPV6:
            p.proto = datagram.proto
        return None

    def _hold(self, p: Packet, datagram: Datagram) -> Expected:
        one = (*reach(p), p.frame)
        for index, other in enumerate(datagram.held):
            if other[:2] == one[:2]:
                datagram.held[index] = one
                return dropped(p.frame, "HELD")
        if len(datagram.held) >= SLOTS or len(p.frame) > 2048:
            return dropped(p.frame, "DROP_FRAGMENT")
        datagram.held.append(one)
        return dropped(p.frame, "HELD")

    # ---- from the outside ------------------------------------------------------------------------------

    def from_uplink(self, uplink: Uplink, frame: bytes) -> Expected | None:
        p = Packet(frame, self.gso)
        ours = Expected(NEXT, ("NOT_OURS",), (frame,))
        if p.dst in self.topology.broadcasts:
            return None  # bpf_fib_lookup cannot tell it from the host's own
        if p.dst_mac != uplink.mac or p.fault or p.kind == ARP:
            return ours
        if p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
            return ours
        return self._arrives(p, None, ours)

    def from_loopback(self, frame: bytes) -> Expected | None:
        """The host speaks with itself (S19: a published port is reached from the host itself)."""
        p = Packet(frame, self.gso)
        ours = Expected(NEXT, ("NOT_OURS",), (frame,))
        if p.fault or p.kind == ARP or p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
            return ours
        return self._arrives(p, LOCAL_SENDER, ours)

    def _arrives(self, p: Packet, sender: Member | None, ours: Expected) -> Expected | None:
        """Where the host's own packets come by: what is not for a container is `ours`, untouched."""
        frame = p.frame
        if p.error:
            return self._error(p, sender) or ours
        if not p.fragment:
            return self._of_containers(p, sender) if self._concerns_containers(p, sender) else ours
        number = sender.number if sender else 0
        if p.fragment == LATER:
            datagram = self._later(p, number)
            if datagram.undefined:
                return None
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
            return self._of_containers(p, sender) if self._concerns_containers(p, sender) else ours
        datagram, again = self._first(p, number)
        if not self._concerns_containers(p, sender):
            datagram.foreign = True
            return ours
        found = self.table.get(p.key)
        if found is None:
            published = self._published(p)
            assert published
            if not published.admits(p.src):
                datagram.refused = "DROP_FRAGMENT"
                return dropped(frame, "DROP_DENIED")
        if datagram.undefined:
            return None
        expected = self._of_containers(p, sender)
        # Where ports are scarce it may be refused, and then so are the others.
        if expected is None or expected.verdict == ANY:
            datagram.undefined = True
            return None
        expected.again = again
        return expected

    def _concerns_containers(self, p: Packet, sender: Member | None) -> bool:
        """It belongs to a connection that a container began, or goes to a published port."""
        if p.ports is None:
            return False
        found = self.table.get(p.key)
        if found:
            return self._half_from(found) is sender
        published = self._published(p) if p.fragment != LATER else None
        if sender is LOCAL_SENDER:
            # Whom the rules do not admit finds what the host itself has there: nothing.
            return (
                published is not None
                and all(loopback(one) or not unusable(one) for one in (p.src, p.dst))
                and published.admits(p.src)
            )
        if published is None or unusable(p.src) or p.dst in self.topology.broadcasts:
            return False
        if on_link(p.dst):  # those of its devices are the host's too
            if p.dst not in {net.linklocal for net in self.topology.networks}:
                return False
        elif unusable(p.dst) or self.topology.route(p.dst).kind != "local":
            return False
        # Nor is there an answer to where no way leads.
        return self.topology.route(p.src).kind not in ("local", "net", "none")

    def _of_containers(self, p: Packet, sender: Member | None) -> Expected | None:
        found = self.table.get(p.key)
        if found:
            return self._forward(p, sender, found)
        published = self._published(p)
        assert published
        return self._open_published(p, sender, published)

    # ---- from the host ---------------------------------------------------------------------------------

    def from_host(self, net: Network, frame: bytes, forwarded: bool = False) -> Expected | None:
        p = Packet(frame)
        if p.fault:
            return dropped(frame, "DROP_" + p.fault, "DROP_BAD_ADDR")
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
        if p.kind == IPV6 and p.icmp == 135 and not p.fragment:  # RFC 6980: in fragments it is none
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
