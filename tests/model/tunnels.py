# SPDX-License-Identifier: Apache-2.0
"""Members of an overlay network that other hosts have: what goes to them in VXLAN (RFC 7348), and comes from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.model.addresses import MAPPED, on_link, unusable
from tests.model.connections import CLOSED, ESTABLISHED, NEW, Connection
from tests.model.errors import check_error, quotation
from tests.model.expected import REDIRECT, SHOT, Expected, dropped, either, passed, readdressed, translated
from tests.model.forwarding import Forwarding, error_head
from tests.model.nat import Opening
from tests.model.packet import ARP, FIN, IPV4, IPV6, LATER, RST, SYN, TCP, UDP, Key, Packet, backwards
from tests.model.routes import Flow
from tests.model.services import is_gateway, mark_of
from tests.model.situations import WITHHELD, Situation, Withheld
from tests.model.sums import adjusted, checksum, num
from tests.model.topology import FAR, LOCAL_SENDER, Member, Network, Topology, Uplink

CONGESTED = 3
ECHO = 7
SMALL = 500
HOPS = 64  # of a packet that has come back, when it goes there once more
LINK = 8 + 8 + 14  # bytes of the headers between the outer IP header and the inner one


@dataclass(eq=False)
class Peer:
    """Another host. `blocks`: the first bytes of addresses that it gives to its members, and how many bits count;
    `keyed`: it is known in encrypted tunnels; `on_link`: what is for it needs no tunnel, if its network wants none."""

    number: int
    addr: bytes
    mac: bytes
    mtu: int
    blocks: tuple[tuple[bytes, int], ...]
    keyed: bool = True
    on_link: bool = True


@dataclass(eq=False)
class Overlay:
    """A network with members on other hosts. `ends`: this host's addresses for tunnels; `moved`: addresses that are at
    another host than their block; `device`: the name of a device that stands for the tunnels'; `encrypted`: the device
    of encrypted tunnels, if they are; `direct`: packets go as they are, where they can; `announced`:
    routers know the way to its addresses, also to hosts that are not on the link, and from anybody."""

    network: Network
    vni: int
    port: int
    mac: bytes
    ends: dict[int, bytes]  # by an address's bytes
    subnets: tuple[tuple[bytes, int], ...]
    peers: list[Peer]
    strangers: tuple[bytes, ...]
    device: str
    encrypted: Uplink | None = None
    direct: bool = False
    announced: bool = False
    number: int = 1  # of this host in the cluster
    moved: dict[bytes, Peer] = field(default_factory=dict)

    def covers(self, address: bytes) -> bool:
        return any(_within(address, *subnet) for subnet in self.subnets)

    def host_of(self, address: bytes) -> Peer | None:
        """Who has a member with the address, as far as it is known."""
        found = (one for one in self.peers if any(_within(address, *block) for block in one.blocks))
        return self.moved.get(address) or next(found, None)

    def may_send(self, peer: Peer, address: bytes) -> bool:
        """It has a member with the address, or the block that it is of."""
        in_block = any(_within(address, *block) for block in peer.blocks)
        return in_block or self.moved.get(address) is peer

    def called(self, number: int, size: int) -> bytes:
        """What the host is in encrypted tunnels, where the gateway's address could be any host's: 0.0.0.N, 100::N."""
        return number.to_bytes(size) if size == 4 else b"\1" + number.to_bytes(size - 1)

    def called_so(self, address: bytes) -> int:
        """The number of the host that is called so; 0: it is an address like any."""
        number = num(address[-4:])
        return (
            number
            if self.called(number, len(address)) == address and number < 1 << 8 * len(address) - 8
            else 0
        )

    def by_number(self, number: int) -> Peer | None:
        return next((one for one in self.peers if one.number == number), None)

    def by_end(self, address: bytes) -> Peer | None:
        return next((one for one in self.peers if one.addr == address), None)


@dataclass(eq=False)
class Caller:
    """A host that has asked with a port. `mark`: of what its client has asked there, 0: it does not say; of the host
    itself which one it is."""

    peer: Peer
    mark: int
    over: int = 0  # of TCP: which sides have sent FIN, 4: one has sent RST

    def is_another(self, mark: int) -> bool:
        """It is not the one with this mark, and goes on."""
        return 0 != self.mark != mark != 0 and not (self.over & 4 or self.over & 3 == 3)

    def hears(self, p: Packet, answers: bool) -> None:
        """One packet more."""
        if p.proto != TCP or p.fragment == LATER or not p.ports:
            return
        flags = p.frame[p.l4 + 13]
        if flags & RST:
            self.over |= 4
        elif not answers and flags & SYN:
            self.over = 0
        elif flags & FIN:
            self.over |= 2 if answers else 1


def _within(address: bytes, prefix: bytes, length: int) -> bool:
    shift = 8 * len(prefix) - length
    return len(address) == len(prefix) and num(address) >> shift == num(prefix) >> shift


def ecn(p: Packet) -> int:
    return p.tos & CONGESTED


def marked(packet: bytes) -> bytes:
    """An IP packet that says that it has met congestion."""
    if packet[0] >> 4 == 6:
        return packet[:1] + bytes((packet[1] | CONGESTED << 4,)) + packet[2:]
    tos = packet[1] | CONGESTED
    check = adjusted(int.from_bytes(packet[10:12], "big"), tos - packet[1])
    return packet[:1] + bytes((tos,)) + packet[2:10] + check.to_bytes(2, "big") + packet[12:]


def marks(frame: bytes) -> int:
    """That of what its client has asked at the other host; 0: it says nothing of it."""
    return int.from_bytes(frame[8:12], sys.byteorder) if frame[6:8] == b"\x06M" else 0


def outer(overlay: Overlay, peer: Peer, p: Packet, sport: int, source: bytes) -> bytes:
    """The frame as it leaves for a peer, but for the outer MACs."""
    packet = p.frame[14:]
    own = overlay.ends[len(peer.addr)]
    frame = peer.mac + source + p.frame[12:14] + packet
    body = b"\x08\0\0\0" + (overlay.vni << 8).to_bytes(4, "big") + frame
    udp = (sport << 48 | overlay.port << 32 | (8 + len(body)) << 16).to_bytes(8, "big") + body
    if len(own) == 16:
        head = (6 << 28 | ecn(p) << 20).to_bytes(4, "big") + len(udp).to_bytes(2, "big") + b"\x11\x40"
        return bytes(12) + b"\x86\xdd" + head + own + peer.addr + udp
    head = bytes((0x45, ecn(p))) + (20 + len(udp)).to_bytes(2, "big") + b"\0\0\x40\0\x40\x11\0\0"
    head += own + peer.addr
    return bytes(12) + b"\x08\0" + head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + udp


class Tunnels(Forwarding):
    def __init__(self, topology: Topology, withheld: frozenset[Situation] = frozenset(WITHHELD)) -> None:
        super().__init__(topology, withheld)
        self.callers: dict[Key, Caller] = {}  # who has asked in the gateway's name, by the answer
        # Of answers that would be another host's client's: what has got another port here; None: of a host itself.
        self.moved: dict[Key, Key | None] = {}

    def _leads_to_peer(self, p: Packet, net: Network) -> bool:
        """No member here has the destination: another host may."""
        overlay = self.topology.overlay
        if overlay is None or overlay.network is not net:
            return False
        if p.dst and p.dst == net.gateway(len(p.dst)):
            return self._caller(p) is not None
        return overlay.covers(p.dst)

    def _caller(self, p: Packet) -> Caller | None:
        """The other host that is answered with the packet, or told with it what has become of its own."""
        quoted = quotation(p) if p.error else None
        key = p.key if p.ports else backwards(quoted) if quoted else None
        return self.callers.get(key) if key and key[3] == p.dst else None

    def _remote_mac(self, net: Network, address: bytes, mac: Callable[[Peer], bytes]) -> bytes | None:
        """The MAC that is told for another host's member."""
        overlay = self.topology.overlay
        peer = overlay.host_of(address) if overlay and overlay.network is net else None
        return mac(peer) if peer else None

    def _to_peer(self, p: Packet, net: Network, sender: Member | None, allowed: bool) -> Expected:
        """`sender` None: the host. `allowed`: members may talk so."""
        overlay = self.topology.overlay
        assert overlay
        called = p.dst == net.gateway(len(p.dst)) or not overlay.covers(p.dst)
        caller = self._caller(p) if called else None
        peer = (caller.peer if caller else None) if called else overlay.host_of(p.dst)
        wrong = set[str]()
        if peer is None:
            wrong.add("DROP_NO_REMOTE")
        if sender and not called and not allowed:
            wrong.add("DROP_ICC")
        if sender and not sender.owns(p.src):
            wrong.add("DROP_SPOOFED_ADDR")
        if unusable(p.src) or on_link(p.src) or (p.kind == IPV4 and p.dst == net.broadcast):
            wrong.add("DROP_BAD_ADDR")
        if wrong or peer is None:
            return dropped(p.frame, *wrong)
        self._meet(Situation.PEER_TOLD if called and p.error else Situation.PEER_OUT)
        if caller:
            caller.hears(p, True)

        def told(mtu: int) -> Expected:
            if sender is None:
                raise Withheld  # its own stack hears it on the gateway device
            self._meet(Situation.PEER_WIDTH)
            refused = self._too_big(p, sender, mtu)
            assert refused
            return refused

        return self._into_tunnel(p, peer, sender is None, told)

    def _into_tunnel(
        self, p: Packet, peer: Peer, by_device: bool, told: Callable[[int], Expected], mark: int = 0
    ) -> Expected:
        """`told`: what becomes of one that is larger than these bytes. `mark`: the other host is to hear it."""
        overlay = self.topology.overlay
        assert overlay
        if overlay.encrypted:
            return self._enciphered(p, peer, overlay, overlay.encrypted, told)
        as_it_is = overlay.direct and not by_device and self._says_who_sends(p, overlay)
        if as_it_is and not self._is_neighbour(p, peer) and self._by_routers(p, peer, overlay):
            return passed("TO_PEER", p.frame)
        own = overlay.ends[len(peer.addr)]
        route = self._route(Flow(own, peer.addr, UDP, 1, overlay.port))
        if route.kind != "out" or route.uplink is None:
            raise Withheld
        overhead = LINK + (20 if len(own) == 4 else 40)
        source = b"\x06M" + mark.to_bytes(4, sys.byteorder) if mark else overlay.mac
        mtu = min(peer.mtu, route.uplink.mtu)
        if as_it_is and self._is_neighbour(p, peer):
            if p.size > mtu and p.keep:
                return told(mtu)
            # By a router nobody knows whether it gets there.
            if p.size <= mtu and (route.connected or not route.uplink.ethernet):
                self._meet(Situation.PEER_DIRECT)
                return passed("TO_PEER", p.frame)
        if p.size + overhead > mtu and (p.kind == IPV6 or p.keep):
            return told(mtu - overhead)
        # What a test run calls segments is of no protocol that a program may put into a tunnel.
        if p.size + overhead > mtu or p.gso or by_device:
            return passed("TO_PEER", peer.mac + source + p.frame[12:])

        def check(got: bytes) -> str:
            at = 14 + (20 if len(own) == 4 else 40)
            sport = num(got[at : at + 2])
            if not 32768 <= sport < 49152:
                return f"source port {sport}"
            wanted = outer(overlay, peer, p, sport, source)
            return "" if got == wanted else f"wanted {wanted.hex()}"

        return Expected(REDIRECT, ("TO_PEER",), check=check)

    @staticmethod
    def _says_who_sends(p: Packet, overlay: Overlay) -> bool:
        """In the gateway's name it could come from any host."""
        gateway = overlay.network.gateway(len(p.src))
        return overlay.covers(p.src) and overlay.covers(p.dst) and gateway not in (p.src, p.dst)

    @staticmethod
    def _is_neighbour(p: Packet, peer: Peer) -> bool:
        """Over IPv4 none is found for IPv6."""
        return peer.on_link and len(peer.addr) >= len(p.src)

    def _by_routers(self, p: Packet, peer: Peer, overlay: Overlay) -> bool:
        """The host has learned a way to the member itself, which takes the packet whole."""
        if not overlay.announced or p.size > peer.mtu:
            return False
        uplink = self._route(Flow(p.src, p.dst, UDP, overlay.port, overlay.port)).uplink
        if uplink is None or p.size > uplink.mtu:
            return False
        self._meet(Situation.PEER_ROUTED)
        return True

    def _enciphered(
        self, p: Packet, peer: Peer, overlay: Overlay, device: Uplink, told: Callable[[int], Expected]
    ) -> Expected:
        """By the device, which knows by the addresses alone who gets it; or not at all."""
        size, net = len(p.src), overlay.network
        answers = p.dst == net.gateway(size)
        # What a router says of an answer to somebody outside, in whose place the gateway has asked, is the gateway's.
        asks = p.src == net.gateway(size) or (p.error and not overlay.covers(p.src))
        covered = (asks or overlay.covers(p.src)) and (answers or overlay.covers(p.dst))
        if not peer.keyed or (asks and answers) or not covered:
            return dropped(p.frame, "DROP_NO_TUNNEL")
        if p.size > device.mtu and p.keep:
            return told(device.mtu)
        self._meet(Situation.PEER_ENCRYPTED)
        src = overlay.called(overlay.number, size) if asks else p.src
        dst = overlay.called(peer.number, size) if answers else p.dst
        return passed("TO_PEER", readdressed(p, src, dst))

    def _by_tunnel(self, p: Packet, became: Packet, sender: Member | None, begins: bool = False) -> Expected:
        """What a service was asked for goes to a backend on another host, or an error about its answer. `sender`: as of
        a connection, which `begins`. It is told of a tunnel that is too small in the words of what it has sent."""
        overlay = self.topology.overlay
        assert overlay
        peer, net = overlay.host_of(became.dst), overlay.network
        became = Packet(p.frame[:12] + became.frame[12:], p.gso)  # nobody looks at MAC addresses from here on
        if sender is None and self.bare and not overlay.encrypted:
            raise Withheld  # behind a header that was taken off the test run still looks for one
        local = sender is LOCAL_SENDER or is_gateway(sender)
        if unusable(became.src) or on_link(became.src) or peer is None:
            raise Withheld
        wrong = set[str]()
        may = net.icc or became.src == net.gateway(len(became.src)) or self._linked(became)
        if not local and overlay.covers(became.src) and not may:
            wrong.add("DROP_ICC")
        if sender and not local and not sender.owns(p.src):
            wrong.add("DROP_SPOOFED_ADDR")
        if wrong:
            return _lost(wrong)

        def told(mtu: int) -> Expected:
            if local:
                raise Withheld
            self._meet(Situation.PEER_WIDTH)
            if p.error or p.fragment == LATER or p.end - p.l4 < 8 or on_link(p.src):
                return either("DROP_TOO_BIG")
            at = p.l4 + (16 if p.proto == TCP else 6)
            if p.frame[at : at + 2] in (bytes(2), b"\xff\xff"):
                raise Withheld  # translated there and back either is the other
            sources = [net.gateway(len(p.dst)) if overlay.covers(p.dst) else p.dst]
            head, word = error_head(p, "DROP_TOO_BIG"), mtu.to_bytes(4, "big")
            return Expected(
                REDIRECT, ("DROP_TOO_BIG",), check=lambda got: check_error(p, got, sources, head, word)
            )

        mark = mark_of(p.dst, p.ports[1]) if begins and p.ports else 0
        return self._into_tunnel(became, peer, local, told, mark)

    def _told_by_tunnel(self, p: Packet, sender: Member, reason: str, mtu: int) -> Expected:
        """By the gateway: the host that it is on takes it for this one's own."""
        overlay = self.topology.overlay
        assert overlay
        peer = overlay.host_of(p.src)
        if peer is None:
            raise Withheld
        head, word, macs = error_head(p, reason), mtu.to_bytes(4, "big"), peer.mac + overlay.mac
        source = overlay.network.gateway(len(p.src))
        if overlay.encrypted:
            macs, source = p.src_mac + p.dst_mac, overlay.called(overlay.number, len(p.src))

        def check(got: bytes) -> str:
            if got[:12] != macs:
                return "MACs"
            return check_error(p, p.src_mac + p.dst_mac + got[12:], [source], head, word)

        return Expected(REDIRECT, (reason,), check=check, beside=("TO_PEER",))

    def _answers_caller(self, p: Packet, sender: Member) -> bool:
        """Another host has asked for itself, or the backend for somebody outside."""
        overlay, net = self.topology.overlay, sender.network
        return (
            overlay is not None
            and overlay.network is net
            and (sender.serves or p.dst == net.gateway(len(p.dst)))
            and p.dst_mac == net.mac
            and self._caller(p) is not None
        )

    # ---- from peers, as they are, or encrypted ----

    def _comes_as_it_is(self, p: Packet) -> bool:
        overlay = self.topology.overlay
        if overlay is None or not overlay.direct or self.bare or not overlay.covers(p.dst):
            return False
        return not overlay.announced or overlay.covers(p.src)

    def _from_neighbour(self, p: Packet, uplink: Uplink) -> Expected | None:
        """Believed is a host of the link to whom the way leads over the device that it comes by."""
        overlay = self.topology.overlay
        assert overlay
        peer = overlay.host_of(p.src)
        if peer is None or not (peer.on_link or overlay.announced):
            return _lost({"DROP_DIRECT"})
        if len(p.frame) > uplink.mtu + 18 and not p.gso:
            raise Withheld  # no device takes what is larger than its MTU, and a tag's room
        own = overlay.ends[len(peer.addr)]
        if self._route(Flow(own, peer.addr, UDP, overlay.port, overlay.port)).uplink is not uplink:
            return _lost({"DROP_TUNNEL_SOURCE"})
        self._meet(Situation.PEER_COMES_DIRECT)
        return self._taken(p, 0, overlay, peer, overlay.network)

    def _deciphered(self, p: Packet, overlay: Overlay) -> Expected | None:
        """Out of the device comes what hosts send whose keys it knows, from addresses that they have; all else is
        nobody's."""
        net, size = overlay.network, len(p.src)
        if p.fault or MAPPED in (p.src[:12], p.dst[:12]):
            return _lost({"DROP_DIRECT"})
        answers = overlay.called_so(p.dst) == overlay.number
        if not overlay.covers(p.src if answers else p.dst):
            return _lost({"DROP_DIRECT"})
        asks = overlay.called_so(p.src)
        peer = overlay.by_number(asks) if asks else overlay.host_of(p.src)
        if peer is None or not peer.keyed:
            return _lost({"DROP_DIRECT"})
        gateway = net.gateway(size)
        if asks:
            p = Packet(readdressed(p, gateway, p.dst))
        elif answers:
            p = Packet(readdressed(p, p.src, gateway))
        elif p.src == gateway:
            return _lost({"DROP_TUNNEL_SOURCE"})
        self._meet(Situation.PEER_DECIPHERED)
        return self._taken(p, 0, overlay, peer, net, deciphered=True)

    # ---- from peers ------------------------------------------------------------------------------------

    def _is_tunnelled(self, p: Packet, uplink: Uplink) -> bool:
        overlay = self.topology.overlay
        return (
            overlay is not None
            and uplink.ethernet
            and not p.fragment
            and p.proto == UDP
            and p.ports is not None
            and p.ports[1] == overlay.port
            and p.dst == overlay.ends.get(len(p.dst))
        )

    def _from_peer(self, p: Packet, ours: Expected) -> Expected | None:
        overlay = self.topology.overlay
        assert overlay
        at = p.l4 + 8
        head = p.frame[at : at + 8]
        if p.end < at + 8 or not head[0] & 8 or num(head[4:7]) != overlay.vni:
            return ours
        peer, net = overlay.by_end(p.src), overlay.network
        wrong = set[str]()
        if peer is None:
            wrong.add("DROP_TUNNEL_SENDER")
        inner = p.frame[at + 8 :]
        kind = num(inner[12:14]) if len(inner) >= 14 else 0
        if len(inner) < 14 or p.end < at + 22 + {IPV4: 20, IPV6: 40}.get(kind, 0):
            wrong.add("DROP_TRUNCATED")
        if len(inner) >= 14:
            if inner[0] & 1 or kind == ARP:
                wrong.add("DROP_TUNNEL_FRAME")
            elif kind in (0x8100, 0x88A8):
                wrong.add("DROP_VLAN")
            elif kind not in (IPV4, IPV6):
                wrong.add("DROP_ETHERTYPE")
        if p.gso and wrong:
            return either("NOT_OURS", *wrong)  # the device may have it first, behind which the same is asked
        if wrong or peer is None:
            self._meet(Situation.PEER_REFUSED)
            return _lost(wrong)
        if p.gso:
            return ours  # the tunnels' device cuts them up
        # The outer packet's padding, if it has any, is behind the inner one now.
        return self._taken(Packet(p.frame[:12] + inner[12:]), ecn(p), overlay, peer, net, marks(inner))

    def _taken(
        self,
        p: Packet,
        congestion: int,
        overlay: Overlay,
        peer: Peer,
        net: Network,
        mark: int = 0,
        deciphered: bool = False,
    ) -> Expected | None:
        if p.fault:
            return _lost({"DROP_" + p.fault, "DROP_BAD_ADDR"})
        wrong = set[str]()
        if p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
            wrong.add("DROP_BAD_ADDR")
        if any(unusable(one) or on_link(one) for one in (p.src, p.dst)) or (
            133 <= p.icmp <= 137 and p.kind == IPV6
        ):
            wrong.add("DROP_TUNNEL_FRAME")
        gateways = [one for one in (net.gateway4, net.gateway6) if one]
        calls, answers = p.src in gateways, p.dst in gateways
        asks_service = bool(net.services) and not calls and not overlay.covers(p.src)
        if (not calls and not asks_service and not overlay.may_send(peer, p.src)) or (calls and answers):
            wrong.add("DROP_TUNNEL_SOURCE")
        if overlay.encrypted and not self.bare:  # it has come in clear
            wrong.add("DROP_TUNNEL_SOURCE")
        if congestion == CONGESTED and not ecn(p):
            wrong.add("DROP_CONGESTED")
        backward = p.proto in (TCP, UDP) and p.ports and not p.ttl and (answers or not overlay.covers(p.dst))
        if not wrong and net.services and not calls and not asks_service and backward:
            if congestion == CONGESTED:
                raise Withheld
            return self._returns(p, overlay)
        if not wrong and net.services and not calls and not asks_service:
            if p.fragment or (p.error and p.ttl <= 1):
                raise Withheld
            marked_one = p if congestion != CONGESTED else Packet(p.frame[:14] + marked(p.frame[14:]))
            answer = self._service_answer(marked_one, self._far_member(p.src, peer, net))
            if answer:
                self._meet(Situation.SERVICE_FAR_ANSWER)
                return answer
        if net.services and p.fragment:
            raise Withheld
        member = net.members.get(p.dst)
        asks = member is None and calls and p.proto == UDP and p.ports is not None and p.ports[1] == ECHO
        if member is None and not answers and not asks:
            wrong.add("DROP_NO_ENDPOINT")
        if asks_service and not answers and member and not member.serves:
            wrong.add("DROP_TUNNEL_SOURCE")
        if not net.icc and not calls and not asks_service and not answers:
            if p.fragment:
                raise Withheld  # it has to come behind its first one
            if not self._linked(p):
                wrong.add("DROP_ICC")
        if wrong:
            self._meet(Situation.PEER_REFUSED)
            return _lost(wrong)
        packet = marked(p.frame[14:]) if congestion == CONGESTED else p.frame[14:]
        if answers:
            return passed("TO_HOST", net.mac + net.mac + p.frame[12:14] + packet)
        if asks:
            return self._returned(Packet(p.frame[:14] + packet), peer, net)
        assert member
        self._meet(Situation.PEER_IN)
        if (calls or asks_service) and p.ports:
            self._meet(Situation.SERVICE_ASKED_BY if asks_service else Situation.PEER_CALLS)
            movable = bool((mark or deciphered) and net.services)
            if self._called(p, peer, mark if asks_service else peer.number, movable):
                self._meet(Situation.PORT_TAKEN)
                if congestion == CONGESTED:
                    raise Withheld
                return self._back(p, peer, p.ttl)
        return passed("DELIVERED", member.mac + net.mac + p.frame[12:14] + packet)

    def _returned(self, p: Packet, peer: Peer, net: Network) -> Expected:
        """Whoever asks so wants to know whether packets arrive: it is sent what it has sent."""
        self._meet(Situation.PEER_ASKS)
        return self._back(p, peer, 0)

    def _back(self, p: Packet, peer: Peer, hops: int) -> Expected:
        """To the host that has sent it, so many hops further."""

        def told(mtu: int) -> Expected:
            raise Withheld

        return self._into_tunnel(Packet(translated(p, backwards(p.key), hops)), peer, True, told)

    def _called(self, p: Packet, peer: Peer, mark: int, may_move: bool) -> bool:
        """Who has asked last is answered: what a client has asked of a service by this host is over. True: another has
        the port, and who asks now is to take another one, which it can when it begins."""
        answer = backwards(p.key)
        known = self.callers.get(answer)
        if known and known.peer is peer:
            known.mark = mark or known.mark
            known.hears(p, False)
            return False
        half = self.connections.find(answer)
        if half and (half.original or not half.connection.service):
            half = None
        begins = p.opens if p.proto == TCP else p.proto == UDP
        if may_move and begins and p.ttl:
            if known:
                if known.is_another(mark):
                    return True
            elif half:
                if half.connection.resumed:
                    raise Withheld
                _, _, _, asked, port = half.connection.original
                if half.connection.state != CLOSED and mark_of(asked, port) != mark:
                    return True
        self.callers[answer] = Caller(peer, mark)
        if half:
            self.connections.forget(half.connection)
        return False

    def _returns(self, p: Packet, overlay: Overlay) -> Expected:
        """The backend's host has sent it back, as the port is another's there: its connection gets another one, unless
        it has been answered; and what is of none can have no other."""
        if p.fragment or p.size > SMALL:
            raise Withheld  # it has come by a tunnel that is as wide
        self._meet(Situation.PORT_RETURNED)
        half = self.connections.find(p.key)
        if half is None and p.key not in self.moved:
            return self._insists(p, overlay)
        if half:
            if half.original or not half.connection.service or not (half.sender and half.sender.peer):
                return _lost({"DROP_NO_CONN"})
            opener = half.connection.opener
            gone = opener and opener is not LOCAL_SENDER and not opener.owns(half.connection.original[1])
            if half.connection.resumed or half.connection.again or half.stale or gone:
                raise Withheld
            begun = half.connection.state == NEW if p.proto == TCP else not half.connection.confirmed
            if not begun:
                return self._insists(p, overlay)
            return self._with_another_port(p, half.connection, overlay)
        original = self.moved[p.key]
        now = self.connections.find(original) if original else None
        if original is None:
            return _lost({"DROP_NO_CONN"})
        if now is None or not now.original or not (now.receiver and now.receiver.peer):
            return _lost({"DROP_CONN_TABLE"})
        if now.connection.resumed or now.connection.again:
            raise Withheld
        return self._goes_there(p, now.connection, overlay)

    def _insists(self, p: Packet, overlay: Overlay) -> Expected:
        peer = overlay.host_of(p.src)
        if peer is None:
            raise Withheld
        return self._back(p, peer, 0)

    def _with_another_port(self, p: Packet, old: Connection, overlay: Overlay) -> Expected:
        proto, server, target, source, _ = old.answer
        hidden = source != old.original[1]
        self.moved[p.key] = None if hidden else old.original
        self.connections.forget(old)
        sport, service = old.original[2], old.service
        asked = Packet(translated(p, old.original, -HOPS))
        assert service

        def answer(port: int) -> Key:
            return (proto, server, target, source, port)

        def out(port: int) -> bytes:
            raise NotImplementedError

        # It has been heard already.
        opening = Opening(
            *(asked, sport, answer, out, "TO_PEER", old.opener, old.server), passes=False, service=service
        )
        opening.held = lambda key: self._is_held(key, mark_of(*old.original[3:]))
        local = old.opener is LOCAL_SENDER or is_gateway(old.opener)

        def check(got: bytes) -> str:
            bare = local or overlay.encrypted
            at = 14 if bare else 14 + (20 if got[12:14] == b"\x08\0" else 40) + LINK
            port = num(got[(at + (p.l4 - 14)) : (at + (p.l4 - 14)) + 2])
            wrong = self.nat.fits(opening, port, not hidden and not local)
            if wrong:
                return wrong
            begun = self.nat.remember(opening, port)
            begun.counts.sums[0] = old.counts.sums[0]  # this packet is among them
            if old.server:
                service.ledger.of(old.server).opened -= 1  # it is the same one
            sent = self._goes_there(p, begun, overlay)
            if sent.check:
                return sent.check(got)
            return "" if got in sent.outs else f"wanted {sent.outs[0].hex()}"

        return Expected(REDIRECT, ("TO_PEER",), check=check)

    def _goes_there(self, p: Packet, connection: Connection, overlay: Overlay) -> Expected:
        """The packet that has come back, with the connection's port."""
        asked = Packet(translated(p, connection.original, -HOPS))
        became = Packet(translated(p, backwards(connection.answer), -HOPS))
        answered = connection.confirmed if p.proto != TCP else connection.state >= ESTABLISHED
        return self._by_tunnel(asked, became, connection.opener, not answered)

    @staticmethod
    def _far_member(address: bytes, peer: Peer, net: Network) -> Member:
        """Whoever has the address there."""
        return Member(net, FAR, peer.mac, "", address, address, peer=peer)

    def _linked(self, p: Packet) -> bool:
        """Without icc: a link's client may speak to the server's port, which may answer, but not begin."""
        if p.ports is None or p.proto not in (TCP, UDP):
            return False
        links, (sport, dport) = self.topology.links, p.ports
        if (p.src, p.dst, dport, p.proto) in links:
            return True
        return (p.dst, p.src, sport, p.proto) in links and not p.syn

    def _asked_here(self, p: Packet) -> None:
        """The host asks a member of its own: the answer is not another host's any more."""
        flags = p.frame[p.l4 + 13] if p.proto == TCP and p.ports else 0
        answer = flags & 4 or flags & 0x12 == 0x12
        if p.ports and not answer:
            self.callers.pop(backwards(p.key), None)


def _lost(reasons: set[str]) -> Expected:
    """Dropped, with its headers or without."""
    return Expected(SHOT, reasons, check=lambda got: "")
