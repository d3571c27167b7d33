# SPDX-License-Identifier: Apache-2.0
"""Members on the link of one of the host's uplinks, with its MAC address there: as the kernel's ipvlan has it in mode
l2 (S24). What is for another member, the host or a resolver is what it is on any network. In its modes l3 and l3s the
host's routes say where on the link a packet goes, and nobody there is asked, or hears of members but by packets for
one."""

from __future__ import annotations

from tests.model.addresses import MAPPED, RESOLVER, ZERO6, on_link, unusable
from tests.model.errors import check_error
from tests.model.expected import (
    NEXT,
    REDIRECT,
    SHOT,
    Expected,
    advertisement,
    arp_reply,
    dropped,
    either,
    fitting,
    passed,
)
from tests.model.forwarding import SMALL_ENOUGH, Forwarding, error_head
from tests.model.packet import ARP, ICMP, ICMPV6, IPV4, IPV6, LATER, Packet
from tests.model.routes import Flow
from tests.model.situations import Situation, Withheld
from tests.model.sums import adjusted
from tests.model.topology import Member, Network, Uplink


def relayed(p: Packet, mac: bytes) -> bytes:
    """As it leaves: by that MAC address."""
    return p.frame[:6] + mac + p.frame[12:]


def solicits(p: Packet, mac: bytes, at: int) -> bytes | None:
    """The same of a solicitation whose first option is there, in which it says its MAC address, if it does. None:
    it says something else."""
    f = bytearray(relayed(p, mac))
    if p.end - at < 8:
        return bytes(f)
    if f[at : at + 2] != b"\1\1":
        return bytes(f) if p.src == ZERO6 else None
    was, now = f[at + 2 : at + 8], mac
    delta = sum(
        int.from_bytes(now[i : i + 2], "big") - int.from_bytes(was[i : i + 2], "big") for i in (0, 2, 4)
    )
    f[at + 2 : at + 8] = mac
    f[p.l4 + 2 : p.l4 + 4] = adjusted(f[p.l4 + 2] << 8 | f[p.l4 + 3], delta).to_bytes(2, "big")
    return bytes(f)


class OnLink(Forwarding):
    def _is_hosts(self, net: Network, address: bytes) -> bool:
        """An address of the host's own, which it answers for by the gateway device."""
        if on_link(address):
            return address == net.linklocal
        return address in self.topology.host or self.topology.routing.is_anyip(address)

    def _mac_told(self, net: Network, address: bytes) -> bytes | None:
        """Whose MAC address a member is told; None: the link is asked."""
        if net.questions:
            return net.mac if address in (RESOLVER, net.linklocal) else None
        member = net.members.get(address)
        if member:
            return member.mac
        return net.mac if net.routed or address == RESOLVER or self._is_hosts(net, address) else None

    def _arp_to_link(self, p: Packet, sender: Member) -> Expected:
        net, f, asked = sender.network, p.frame, p.frame[38:42]
        if f[20:22] != b"\0\1" or (net.routed and asked == sender.addr4):
            return dropped(f, "ABSORBED")
        mac = None if asked == sender.addr4 else self._mac_told(net, asked)
        if mac:
            return arp_reply(p, mac)
        if net.parent is None:
            return dropped(f, "ABSORBED" if asked == sender.addr4 else "DROP_UNKNOWN_ARP")
        out = relayed(p, net.parent.mac)
        return passed("TO_OUTSIDE", out[:22] + net.parent.mac + out[28:])

    def _solicitation_to_link(self, p: Packet, sender: Member) -> Expected:
        net, f = sender.network, p.frame
        asked = f[p.l4 + 8 : p.l4 + 24]
        if p.ttl != 255 or p.end - p.l4 < 24 or asked[:12] == MAPPED:
            return dropped(f, "DROP_TRUNCATED")
        own = sender.owns(asked)
        if own and net.routed:
            return dropped(f, "ABSORBED")
        mac = None if own else self._mac_told(net, asked)
        if mac:
            return advertisement(p, asked, mac)
        if net.parent is None:
            return dropped(f, "ABSORBED" if own else "DROP_UNKNOWN_ARP")
        out = solicits(p, net.parent.mac, p.l4 + 24)
        return passed("TO_OUTSIDE", out) if out else dropped(f, "DROP_SPOOFED_ARP")

    def _group_to_link(self, p: Packet, sender: Member, expected: Expected) -> Expected:
        """`expected`: what becomes of it on any network."""
        net = sender.network
        if net.routed:
            return dropped(p.frame, "DROP_MULTICAST_OFF")
        if expected.to is None:
            return expected
        out: bytes | None = p.frame
        routers = p.kind == IPV6 and p.proto == ICMPV6 and p.icmp == 133
        if routers and p.fragment:
            raise Withheld  # no stack cuts it
        if routers:
            out = solicits(p, p.src_mac if net.parent is None else net.parent.mac, p.l4 + 8)
        elif net.parent:
            out = relayed(p, net.parent.mac)
        if out is None:
            return dropped(p.frame, "DROP_SPOOFED_ARP")
        verdict = REDIRECT if net.parent else SHOT
        return Expected(verdict, ("FLOODED",), (out if net.parent else p.frame,), to=expected.to)

    def _to_link(self, p: Packet, sender: Member) -> Expected:
        net = sender.network
        self._meet(Situation.TO_LINK)
        if unusable(p.dst) and not on_link(p.dst):
            return dropped(p.frame, "DROP_BAD_ADDR")
        if net.parent is None:
            return dropped(p.frame, "DROP_INTERNAL")
        if net.routed:
            return self._by_routes(p, net.parent)
        if p.dst_mac == net.mac:
            return passed("TO_HOST", p.frame)
        return passed("TO_OUTSIDE", relayed(p, net.parent.mac))

    def _by_routes(self, p: Packet, parent: Uplink) -> Expected:
        """As far as they lead over the parent; what they do not know the host says itself. No hop is taken: the
        kernel's takes none either."""
        if on_link(p.dst) or on_link(p.src):
            raise Withheld  # of which link no route says
        sport, dport = p.ports or (0, 0)
        route = self._route(Flow.of((p.proto, p.src, sport, p.dst, dport), p.tos))
        if (
            route.kind == "encap" and p.size > SMALL_ENOUGH
        ):  # how much of it there is room for the kernel knows
            return either("TO_HOST", "DROP_TOO_BIG")
        width = route.uplink.mtu if route.uplink else route.network.mtu if route.network else 0
        if width and p.size > width:
            return self._too_wide(p, width)
        if not width:
            return passed("TO_HOST", p.frame)
        self._meet(Situation.ROUTED_TO_LINK if route.uplink is parent else Situation.ROUTED_ELSEWHERE)
        return passed("TO_OUTSIDE", p.frame) if route.uplink is parent else dropped(p.frame, "DROP_ISOLATED")

    def _too_wide(self, p: Packet, width: int) -> Expected:
        if p.error or p.fragment == LATER:
            return dropped(p.frame, "DROP_TOO_BIG")
        if p.end - p.l4 < 8 or p.proto == (ICMPV6 if p.kind == IPV4 else ICMP):
            return either("DROP_TOO_BIG")
        head, word = error_head(p, "DROP_TOO_BIG"), width.to_bytes(4, "big")
        return Expected(
            REDIRECT, ("DROP_TOO_BIG",), check=lambda got: check_error(p, got, [p.dst], head, word)
        )

    def _from_link(self, p: Packet, uplink: Uplink, net: Network) -> Expected | None:
        """What comes from the link for members, or from all of it to all; None: it is the host's alone."""
        f, grouped = p.frame, bool(p.dst_mac[0] & 1)
        if not grouped and p.dst_mac != uplink.mac:
            return None
        if net.routed:
            return self._from_routed_link(p, net) if not grouped and p.kind != ARP else None
        everybody = {id(m): m for m in net.members.values()}
        flooded = Expected(NEXT, ("NOT_OURS",), (f,), to=fitting(p, net, everybody))
        if p.kind == ARP:
            if f[14:20] != b"\0\1\x08\0\6\4" or f[22:28] != p.src_mac:
                return None
            member = net.members.get(f[38:42])
            if member is None:
                return flooded if grouped else None
            if f[28:32] == f[38:42]:
                return None
            self._meet(Situation.FROM_LINK)
            if f[20:22] == b"\0\1":
                return arp_reply(p, uplink.mac)
            return passed("DELIVERED", member.mac + f[6:32] + member.mac + f[38:])
        if p.src[:12] == MAPPED or p.dst[:12] == MAPPED:
            return None
        if p.kind == IPV6 and p.icmp == 135 and not p.fragment:
            asked = f[p.l4 + 8 : p.l4 + 24]
            if p.ttl != 255 or p.end - p.l4 < 24 or asked not in net.members:
                return None
            self._meet(Situation.FROM_LINK)
            return advertisement(p, asked, uplink.mac)
        if grouped and p.gso:
            raise Withheld  # who gets it sees segments
        if grouped:
            return flooded
        member = net.members.get(p.dst)
        if member is None:
            return None
        self._meet(Situation.FROM_LINK)
        return passed("DELIVERED", member.mac + f[6:])

    def _from_routed_link(self, p: Packet, net: Network) -> Expected | None:
        """Who has sent it thinks of the host as the next hop."""
        member = None if MAPPED in (p.src[:12], p.dst[:12]) else net.members.get(p.dst)
        if member is None:
            return None
        self._meet(Situation.FROM_LINK)
        return passed("DELIVERED", member.mac + net.mac + p.frame[12:])
