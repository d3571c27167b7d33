# SPDX-License-Identifier: Apache-2.0
"""Members of an overlay network that other hosts have: what goes to them in VXLAN (RFC 7348), and comes from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.model.addresses import MAPPED, on_link, unusable
from tests.model.expected import REDIRECT, SHOT, Expected, dropped, passed
from tests.model.forwarding import Forwarding
from tests.model.packet import ARP, IPV4, IPV6, TCP, UDP, Key, Packet, backwards
from tests.model.routes import Flow
from tests.model.situations import WITHHELD, Situation, Withheld
from tests.model.sums import adjusted, checksum, num
from tests.model.topology import Member, Network, Topology, Uplink

CONGESTED = 3
ECHO = 7
LINK = 8 + 8 + 14  # bytes of the headers between the outer IP header and the inner one


@dataclass(eq=False)
class Peer:
    """Another host. `blocks`: the first bytes of addresses that it gives to its members, and how many bits count."""

    number: int
    addr: bytes
    mac: bytes
    mtu: int
    blocks: tuple[tuple[bytes, int], ...]


@dataclass(eq=False)
class Overlay:
    """A network with members on other hosts. `ends`: this host's addresses for tunnels; `moved`: addresses that are at
    another host than their block; `device`: the name of a device that stands for the tunnels'."""

    network: Network
    vni: int
    port: int
    mac: bytes
    ends: dict[int, bytes]  # by an address's bytes
    subnets: tuple[tuple[bytes, int], ...]
    peers: list[Peer]
    strangers: tuple[bytes, ...]
    device: str
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

    def by_end(self, address: bytes) -> Peer | None:
        return next((one for one in self.peers if one.addr == address), None)


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


def outer(overlay: Overlay, peer: Peer, p: Packet, sport: int) -> bytes:
    """The frame as it leaves for a peer, but for the outer MACs."""
    packet = p.frame[14:]
    own = overlay.ends[len(peer.addr)]
    frame = peer.mac + overlay.mac + p.frame[12:14] + packet
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
        self.callers: dict[Key, Peer] = {}  # who has asked in the gateway's name, by the answer

    def _leads_to_peer(self, p: Packet, net: Network) -> bool:
        """No member here has the destination: another host may."""
        overlay = self.topology.overlay
        if overlay is None or overlay.network is not net:
            return False
        if p.dst and p.dst == net.gateway(len(p.dst)):
            return p.ports is not None and p.key in self.callers
        return overlay.covers(p.dst)

    def _remote_mac(self, net: Network, address: bytes, mac: Callable[[Peer], bytes]) -> bytes | None:
        """The MAC that is told for another host's member."""
        overlay = self.topology.overlay
        peer = overlay.host_of(address) if overlay and overlay.network is net else None
        return mac(peer) if peer else None

    def _to_peer(self, p: Packet, net: Network, sender: Member | None, allowed: bool) -> Expected:
        """`sender` None: the host. `allowed`: members may talk so."""
        overlay = self.topology.overlay
        assert overlay
        called = p.dst == net.gateway(len(p.dst))
        peer = self.callers[p.key] if called else overlay.host_of(p.dst)
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
        self._meet(Situation.PEER_OUT)
        own = overlay.ends[len(peer.addr)]
        route = self._route(Flow(own, peer.addr, UDP, 1, overlay.port))
        if route.kind != "out" or route.uplink is None:
            raise Withheld
        overhead = LINK + (20 if len(own) == 4 else 40)
        mtu = min(peer.mtu, route.uplink.mtu)
        if p.size + overhead > mtu and (p.kind == IPV6 or p.keep):
            if sender is None:
                raise Withheld  # its own stack hears it on the gateway device
            self._meet(Situation.PEER_WIDTH)
            refused = self._too_big(p, sender, mtu - overhead)
            assert refused
            return refused
        # What a test run calls segments is of no protocol that a program may put into a tunnel.
        if p.size + overhead > mtu or p.gso or sender is None:
            return passed("TO_PEER", peer.mac + overlay.mac + p.frame[12:])

        def check(got: bytes) -> str:
            at = 14 + (20 if len(own) == 4 else 40)
            sport = num(got[at : at + 2])
            if not 32768 <= sport < 49152:
                return f"source port {sport}"
            wanted = outer(overlay, peer, p, sport)
            return "" if got == wanted else f"wanted {wanted.hex()}"

        return Expected(REDIRECT, ("TO_PEER",), check=check)

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
        if wrong or peer is None:
            self._meet(Situation.PEER_REFUSED)
            return _lost(wrong)
        if p.gso:
            return ours  # the tunnels' device cuts them up
        # The outer packet's padding, if it has any, is behind the inner one now.
        return self._taken(Packet(inner), ecn(p), overlay, peer, net)

    def _taken(
        self, p: Packet, congestion: int, overlay: Overlay, peer: Peer, net: Network
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
        if (not calls and not overlay.may_send(peer, p.src)) or (calls and answers):
            wrong.add("DROP_TUNNEL_SOURCE")
        if congestion == CONGESTED and not ecn(p):
            wrong.add("DROP_CONGESTED")
        member = net.members.get(p.dst)
        asks = member is None and calls and p.proto == UDP and p.ports is not None and p.ports[1] == ECHO
        if member is None and not answers and not asks:
            wrong.add("DROP_NO_ENDPOINT")
        if not net.icc and not calls and not answers:
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
        if calls and p.ports:
            self._meet(Situation.PEER_CALLS)
            self.callers[backwards(p.key)] = peer
        return passed("DELIVERED", member.mac + net.mac + p.frame[12:14] + packet)

    def _returned(self, p: Packet, peer: Peer, net: Network) -> Expected:
        """Whoever asks so wants to know whether packets arrive: it is sent what it has sent."""
        self._meet(Situation.PEER_ASKS)
        self.callers[backwards(p.key)] = peer
        size, at = len(p.src), 22 if p.kind == IPV6 else 26
        swapped = p.frame[:at] + p.dst + p.src + p.frame[at + 2 * size : p.l4]
        sent = swapped + p.frame[p.l4 + 2 : p.l4 + 4] + p.frame[p.l4 : p.l4 + 2] + p.frame[p.l4 + 4 :]
        return self._to_peer(Packet(sent), net, None, True)

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
