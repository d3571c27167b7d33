# SPDX-License-Identifier: Apache-2.0
"""Services: which backend a connection to a virtual address, or to its published port, begins with (S26)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.model import nat
from tests.model.addresses import loopback, on_link
from tests.model.connections import CLOSING, NEW, Connection, Connections, Half
from tests.model.counts import Ledger
from tests.model.errors import check_error
from tests.model.expected import ANY, NEXT, REDIRECT, Expected, dropped, either, passed
from tests.model.nat import Opening
from tests.model.packet import ACK, FIN, FIRST, ICMP, ICMPV6, IPV4, LATER, RST, SYN, TCP, Key, Packet
from tests.model.situations import Situation, Withheld
from tests.model.sums import adjusted, num
from tests.model.topology import LOCAL_SENDER, Member, Network, Published
from tests.model.writing import frame_of, ip4, ip6, summed

if TYPE_CHECKING:
    from tests.model.topology import Topology
    from tests.model.tunnels import Caller
    from tests.model.watching import Watch

MASK = 0xFFFFFFFF
SMALL = 500  # bytes: what fits everywhere


@dataclass(eq=False)
class Service:
    """`slots`: who is in the table, and how often; `down`: backends that get nothing; `draining`: that keep what they
    have, and get nothing new; `host`: the host itself, as it asks by the gateway. `affinity`: a client stays with the
    backend that it had last, `kept`, for longer than a run."""

    network: Network
    number: int
    seed: int
    addr4: bytes
    addr6: bytes
    backends: list[Member]
    slots: list[Member]
    host: Member
    down: list[Member] = field(default_factory=list)
    draining: list[Member] = field(default_factory=list)
    affinity: bool = False
    kept: dict[bytes, Member] = field(default_factory=dict)
    algorithm: str = "maglev"
    chosen: Member | None = None  # by the programs, of the packet at hand, where no rule says whom
    refuses: bool = False  # and what they have done is nothing
    ledger: Ledger = field(default_factory=Ledger)

    def living(self, size: int) -> list[Member]:
        """Who may be chosen."""
        return [one for one in self.backends if one in self.slots and self._is_up(one, size)]

    def choose(self, key: Key, port: int) -> Member | None:
        """By the client's address and port: the slot that the hash leads to, or the next one of a backend that is
        up. With affinity whatever its port."""
        kept = self.kept.get(key[1])
        return kept if kept and self._is_up(kept, len(key[1])) else self.hashed(key, port)

    def hashed(self, key: Key, port: int) -> Member | None:
        """As if the client came for the first time."""
        if self.algorithm != "maglev" and self.living(len(key[1])):
            if self.chosen is None:
                raise Undecided(self)
            return self.chosen
        proto, src, sport, _, _ = key
        more = () if self.affinity else (sport << 16 | port, proto)
        first = _hash(self.seed, (*_words(src), *more)) * len(self.slots) >> 32
        for step in range(len(self.slots)):
            one = self.slots[(first + step) % len(self.slots)]
            if self._is_up(one, len(src)):
                return one
        return None

    def _is_up(self, one: Member, size: int) -> bool:
        return one not in self.down and one not in self.draining and bool(address_of(one, size))


class Undecided(Exception):
    """Which backend is chosen no rule says: one of those that live. The packet has to be sent to know it."""

    def __init__(self, service: Service) -> None:
        self.service = service


def address_of(member: Member, size: int) -> bytes:
    return member.addr4 if size == 4 else member.addr6


def mark_of(address: bytes, port: int) -> int:
    """Of what a client has asked: what comes by two hosts and has one mark is one connection."""
    return _hash(0, (*_words(address), port)) or 1


def _words(address: bytes) -> tuple[int, ...]:
    words = [num(address[at : at + 4]) for at in range(0, len(address), 4)]
    return tuple(words if len(words) == 4 else [0, 0, 0xFFFF, *words])


def _hash(seed: int, words: tuple[int, ...]) -> int:
    """MurmurHash3."""
    value = seed
    for word in words:
        word = word * 0xCC9E2D51 & MASK
        value ^= ((word << 15 | word >> 17) & MASK) * 0x1B873593 & MASK
        value = (value << 13 | value >> 19) & MASK
        value = value * 5 + 0xE6546B64 & MASK
    value = (value ^ value >> 16) * 0x85EBCA6B & MASK
    value = (value ^ value >> 13) * 0xC2B2AE35 & MASK
    return value ^ value >> 16


def is_gateway(member: Member | None) -> bool:
    """The host itself, by a network's gateway."""
    return member is not None and member.number == -1 and member is not LOCAL_SENDER


class Services:
    topology: Topology
    connections: Connections
    nat: nat.Ports
    bare: bool
    watch: Watch
    _meet: Callable[[Situation], None]
    _too_big: Callable[..., Expected | None]
    _delivered: Callable[[Packet, Member, Key], bytes]
    _error: Callable[[Packet, Member | None], Expected | None]
    _by_tunnel: Callable[..., Expected]
    callers: dict[Key, Caller]
    moved: dict[Key, Key | None]
    asked: tuple[Service, Member | None] | None = None  # by the packet at hand, and who is to get it
    _forward: Callable[[Packet, Member | None, Half], Expected | None]

    def _is_left(self, p: Packet, half: Half | None) -> bool:
        """It begins anew what is over, or what nobody has answered."""
        if half is None or not half.original or not half.connection.service:
            return False
        if p.proto != TCP and half.connection.server in half.connection.service.down:
            if p.fragment:
                raise Withheld
            self._meet(Situation.SERVICE_LEFT)
            return True
        if not p.opens:
            return False
        if half.connection.resumed:
            raise Withheld
        return half.connection.state == NEW or half.connection.state >= CLOSING

    def _anew(self, p: Packet, old: Connection, act: Callable[[], Expected | None]) -> Expected | None:
        """What becomes of the packet without that connection."""
        self._meet(Situation.SERVICE_ANEW)
        self.connections.forget(old)
        expected: Expected | None = None
        try:
            expected = act()
        finally:
            # Of a fragment nobody says what becomes of it where a port may be refused.
            if expected is None or (p.fragment and expected.verdict == ANY):
                expected = None
                self.connections.restore(old)
        return expected

    def _to_virtual(self, p: Packet, sender: Member, service: Service) -> Expected | None:
        if p.error:
            return self._error(p, sender) or dropped(p.frame, "DROP_NO_CONN")
        published = Published(service.backends[0], p.dst, p.ports[1] if p.ports else 0)
        half = self.connections.find(p.key) if p.ports else None
        if half and half.is_by(sender) and not self._is_left(p, half):
            return self._forward(p, sender, half)
        self._must_be_seen(p, service)
        if half and half.is_by(sender) and self._leads_there_again(p, service, published, half.connection):
            self._meet(Situation.SERVICE_AGAIN)
            found = half
            return self._chosen(
                *(p, service, published),
                lambda: (
                    self._refused_member(p, sender, service, published) or self._over_again(p, sender, found)
                ),
            )
        if half:
            return self._anew(p, half.connection, lambda: self._begin(p, sender, service, published))
        return self._begin(p, sender, service, published)

    def _over_again(self, p: Packet, client: Member | None, half: Half) -> Expected | None:
        """It begins its connection again, which is one more that its backend has had."""
        service, server = half.connection.service, half.connection.server
        assert service and server
        if service.refuses:
            raise Withheld  # it is never refused
        expected = self._forward(p, client, half)
        if expected:
            service.ledger.of(server).opened += 1
        return expected

    @staticmethod
    def _leads_there_again(p: Packet, service: Service, published: Published, old: Connection) -> bool:
        """The backend that the opening is given has the connection already: it starts over."""
        server = service.choose(p.key, published.port) if p.proto == TCP else None
        if server is None or server is not old.server or server.number != old.numbers[1]:
            return False
        return old.answer[:3] == (p.proto, address_of(server, len(p.src)), published.port)

    def _starts_over(self, p: Packet, published: Published, old: Connection) -> bool:
        """The same of an opening to its published port."""
        service = published.service
        assert service
        self._must_be_seen(p, service)
        again = published.admits(p.src) and self._leads_there_again(p, service, published, old)
        if again:
            self._meet(Situation.SERVICE_AGAIN)
        return again

    def _refused_member(
        self, p: Packet, client: Member | None, service: Service, published: Published
    ) -> Expected | None:
        """Where members may not talk to each other, one asks a service as it may ask the backend."""
        server, net = service.choose(p.key, published.port), service.network
        if server is None or p.dst != published.addr or is_gateway(client) or net.icc:
            return None
        proto, src, sport, _, _ = p.key
        asked, flags = address_of(server, len(src)), p.frame[p.l4 + 13] if proto == TCP else 0
        back = flags & (SYN | ACK) != SYN and (asked, src, sport, proto) in self.topology.links
        if (src, asked, published.port, proto) in self.topology.links or back:
            return None
        return dropped(p.frame, "DROP_ICC")

    def _service_answer(self, p: Packet, sender: Member) -> Expected | None:
        """None: it is sent as by anybody."""
        if p.error:
            return self._error(p, sender)
        half = self.connections.find(p.key) if p.ports else None
        if half and half.is_by(sender) and half.connection.service and not half.original:
            self._meet(Situation.SERVICE_ANSWER)
            return self._forward(p, sender, half)
        return None

    def _begin(
        self, p: Packet, client: Member | None, service: Service, published: Published
    ) -> Expected | None:
        self._must_be_seen(p, service)
        virtual = p.dst == published.addr
        if p.proto in (ICMP, ICMPV6) and p.ports and virtual:
            asks = not p.ports[1] if p.fragment == LATER else p.icmp in (8, 128)
            return self._echo(p) if asks else dropped(p.frame, "DROP_PROTOCOL")
        if p.ports is None or p.proto in (ICMP, ICMPV6):
            return dropped(p.frame, "DROP_PROTOCOL")
        if p.fragment == LATER:
            return dropped(p.frame, "DROP_FRAGMENT")
        flags = p.frame[p.l4 + 13] if p.proto == TCP else 0
        if virtual and (flags & RST or flags & (SYN | ACK) == SYN | ACK):
            return dropped(p.frame, "DROP_NO_CONN")
        if not published.admits(p.src):
            return dropped(p.frame, "DROP_DENIED")
        server = service.choose(p.key, published.port)
        if server is None:
            return self._no_backend(p, client, service, flags)
        found = server
        return self._chosen(
            *(p, service, published),
            lambda: (
                self._refused_member(p, client, service, published)
                or self._open(p, client, service, found, published)
            ),
        )

    def _must_be_seen(self, p: Packet, service: Service) -> None:
        """What leaves has to show whole who was chosen, where no rule says it."""
        if service.algorithm != "maglev" and (p.fragment or p.size > SMALL or self.bare):
            raise Withheld

    def _chosen(
        self, p: Packet, service: Service, published: Published, act: Callable[[], Expected | None]
    ) -> Expected | None:
        """A backend was chosen for the packet, of which this becomes: with affinity it is remembered."""
        server = service.choose(p.key, published.port)
        self.asked = service, server
        expected = act()
        if service.affinity and p.fragment and expected and expected.verdict == ANY:
            raise Withheld  # nobody says what becomes of it, so it has not been here
        if service.affinity and server and expected:
            if service.algorithm == "maglev" and server is not service.hashed(p.key, published.port):
                self._meet(Situation.SERVICE_KEPT)
            service.kept[p.src] = server
        return expected

    def _open(
        self, p: Packet, client: Member | None, service: Service, server: Member, published: Published
    ) -> Expected | None:
        """The server sees the client's own address, unless it is the client, or would not answer by here."""
        net, (proto, src, sport, _, _) = service.network, p.key
        asked, local = address_of(server, len(src)), client is LOCAL_SENDER or is_gateway(client)
        inside = client is not None and client is not LOCAL_SENDER and client.network is net
        hidden = client is server or (local and loopback(src)) or (net.beside and not inside)
        # What is published is for members, too, whom the other host would not let in.
        hidden |= bool(server.peer) and inside and not net.icc and p.dst != published.addr
        # Out of an encrypted tunnel comes what members and hosts send, and nothing else.
        hidden |= bool(server.peer) and not inside and self.topology.encrypts(net)
        if service.refuses and not (hidden or local):
            raise Withheld
        source = net.gateway(len(src)) if hidden else src
        self._meet(Situation.SERVICE)
        if client is server:
            self._meet(Situation.SERVICE_ITSELF)
        refused = None if local else self._too_big(p, client, net.mtu, True)

        def out(port: int) -> bytes:
            return self._delivered(p, server, (proto, source, port, asked, published.port))

        def answer(port: int) -> Key:
            return (proto, asked, published.port, source, port)

        # As a backend was when its row was written: its endpoint may have been replaced since.
        opening = Opening(
            *(p, sport, answer, out, "DELIVERED", client, server), passes=not refused, service=service
        )
        opening.begins = lambda key: self.callers.pop(key, None)
        opening.held = lambda key: self._is_held(key, mark_of(p.dst, p.ports[1] if p.ports else 0))
        if server.peer:
            return self._open_far(opening, client, hidden or local, refused)
        expected = self.nat.client(opening, not hidden and not local)
        if refused and (expected is None or expected.check):
            return None
        return refused or expected

    def _is_held(self, answer: Key, mark: int) -> bool:
        """Another host's client has the port towards the backend, or one here that is known to be so there."""
        caller = self.callers.get(answer)
        held = answer in self.moved or (caller is not None and caller.is_another(mark))
        if held:
            self._meet(Situation.PORT_HELD)
        return held

    def _open_far(
        self, opening: Opening, client: Member | None, any_port: bool, refused: Expected | None
    ) -> Expected | None:
        """To a backend on another host: in a tunnel, by the device what the host itself says."""
        self._meet(Situation.SERVICE_FAR)
        p, wanted = opening.p, opening.wanted
        local, service = client is LOCAL_SENDER or is_gateway(client), opening.service
        assert service
        if any_port and not local and (refused or not self.topology.encrypts(service.network)):
            raise Withheld  # by which port nobody can see
        if not refused and p.size > service.network.mtu:
            raise Withheld  # it is cut
        if not any_port and (not wanted or opening.answer(wanted) in self.connections):
            raise Withheld
        if not any_port and opening.held(opening.answer(wanted)):
            raise Withheld
        if refused:
            return refused if self.nat.client(opening, not any_port) else None
        if not any_port:
            sent = self._by_tunnel(p, Packet(opening.out(wanted), p.gso), client, _opens(p))
            self.nat.client(opening, True)
            return sent
        delivered = opening.out

        def out(port: int) -> bytes:
            return self._by_tunnel(p, Packet(delivered(port), p.gso), client, _opens(p)).outs[0]

        if self._by_tunnel(p, Packet(delivered(wanted), p.gso), client).reasons != ("TO_PEER",):
            raise Withheld  # by which port nobody can see
        opening.out, opening.reason = out, "TO_PEER"
        return self.nat.client(opening, False)

    def _no_backend(self, p: Packet, client: Member | None, service: Service, flags: int) -> Expected:
        """Its sender is told that nobody listens: by the host's stack where that is as good."""
        self._meet(Situation.SERVICE_DOWN)
        self.asked = service, None
        if client is LOCAL_SENDER or (client is None and self.bare):
            if p.fragment:
                raise Withheld
            frame = p.frame[14:] if self.bare and client is None else p.frame
            return Expected(NEXT, ("DROP_NO_BACKEND",), (frame,), beside=("NOT_OURS",))
        if p.fragment == FIRST and client is None:
            raise Withheld
        if p.proto == TCP and (flags & RST or p.fragment):
            return dropped(p.frame, "DROP_NO_BACKEND")
        if p.proto == TCP:
            return passed("DROP_NO_BACKEND", _reset(p, flags))
        if on_link(p.src):
            return either("DROP_NO_BACKEND")
        head = b"\3\3" if p.kind == IPV4 else b"\1\4"
        return Expected(
            REDIRECT, ("DROP_NO_BACKEND",), check=lambda got: check_error(p, got, [p.dst], head, bytes(4))
        )

    def _echo(self, p: Packet) -> Expected:
        self._meet(Situation.SERVICE_ECHO)
        f = bytearray(p.frame)
        f[:12] = p.src_mac + p.dst_mac
        if p.kind == IPV4:
            f[24:26] = adjusted(num(f[24:26]), (64 - f[22]) << 8).to_bytes(2, "big")
            f[22], f[26:34] = 64, p.dst + p.src
        else:
            f[21], f[22:54] = 64, p.dst + p.src
        if p.fragment != LATER:
            kind = 0 if p.kind == IPV4 else 129
            at = p.l4 + 2
            f[at : at + 2] = adjusted(num(f[at : at + 2]), (kind - f[p.l4]) << 8).to_bytes(2, "big")
            f[p.l4] = kind
        return passed("ANSWERED", bytes(f))


def _opens(p: Packet) -> bool:
    """A reset does not: what it would be of is over."""
    return not (p.proto == TCP and p.frame[p.l4 + 13] & RST)


def _reset(p: Packet, flags: int) -> bytes:
    """RFC 9293, 3.10.7.1."""
    header = p.frame[p.l4 : p.l4 + 20]
    if flags & ACK:
        numbers, kind = header[8:12] + bytes(4), RST
    else:
        length = p.end - p.l4 - (header[12] >> 4) * 4 + bool(flags & SYN) + bool(flags & FIN)
        numbers, kind = bytes(4) + ((num(header[4:8]) + length) & MASK).to_bytes(4, "big"), RST | ACK
    body = header[2:4] + header[:2] + numbers + bytes((0x50, kind)) + bytes(6)
    body = summed(p.dst, p.src, TCP, body, 16)
    if p.kind == IPV4:
        packet = ip4(p.dst, p.src, TCP, body, ttl=64, word=0, ident=0)
    else:
        packet = ip6(p.dst, p.src, TCP, body, ttl=64)
    return frame_of(p.src_mac, p.dst_mac, packet)
