# SPDX-License-Identifier: Apache-2.0
"""What the host sends to a network through its gateway device."""

from __future__ import annotations

from tests.model.addresses import MAPPED
from tests.model.errors import quotation
from tests.model.expected import SHOT, Expected, advertisement, arp_reply, dropped, either, fitting, passed
from tests.model.packet import ARP, IPV4, IPV6, LATER, Packet, backwards
from tests.model.policies import HOST
from tests.model.routes import Flow
from tests.model.situations import Situation, Withheld
from tests.model.topology import Member, Network
from tests.model.tunnels import Tunnels

KEPT = 4096  # rows that the table of what goes by way of the host's stack keeps in any case


class FromHost(Tunnels):
    def from_host(self, net: Network, frame: bytes, forwarded: bool = False) -> Expected | None:
        p, self.outside = Packet(frame, self.gso), False
        if p.fault:
            return dropped(frame, "DROP_" + p.fault, "DROP_BAD_ADDR")
        if p.kind == ARP:
            return self._asks(p, net)
        wrong: set[str] = set()
        if forwarded and not self._is_answer(p, net):
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
            mac = self._mac_of(net, asked)
            return advertisement(p, asked, mac) if mac else dropped(frame, "DROP_UNKNOWN_ARP")
        if p.icmp == (
            5 if p.kind == IPV4 else 137
        ):  # a redirect: there is no shorter way than by the gateway
            return dropped(frame, "ABSORBED")
        if p.dst_mac[0] & 1:
            everybody = {id(m): m for m in net.members.values() if self.guard.wants_copies(m.number)}
            return Expected(SHOT, ("FLOODED",), (frame,), to=fitting(p, net, everybody))
        service = net.services.get(p.dst)
        if service:
            if p.fragment:
                raise Withheld  # which none is as long as the kernel makes none
            return self._to_virtual(p, service.host, service)
        member = net.members.get(p.dst)
        if member is None and self._leads_to_peer(p, net):
            return self._to_peer(p, net, None, True)
        overlay = self.topology.overlay
        if member and overlay and overlay.network is net:
            self._asked_here(p)
        if member is None:  # or what lies behind one that forwards
            routers = (one for one in net.members.values() if one.forwarding and one.mac == p.dst_mac)
            member = next(routers, None)
        if member is None:
            return dropped(frame, "DROP_NO_ENDPOINT")
        refused = self._comes_in(p, net, member, forwarded)
        if refused:
            return refused
        if not forwarded or (p.src not in net.members and p.src not in net.services):
            self.watch.meets(p, member.number)  # else it was counted as the member sent it
        return passed("DELIVERED", member.mac + frame[6:])

    def _comes_in(self, p: Packet, net: Network, member: Member, forwarded: bool) -> Expected | None:
        """Refused by a policy; the host's own sockets hear of that. None: it is not."""
        if not self.guard.generation:
            return None
        if p.fragment:
            raise Withheld  # the kernel has put together what it knows of
        sender = net.members.get(p.src) if forwarded else None
        refusal = self.guard.admits(p, net, sender.number if sender else HOST, member.number)
        expected = self._refused(p, None, refusal)
        if refusal is None or forwarded:
            return expected
        return either(refusal.reason)  # whose source may be no address of the host's

    def _is_answer(self, p: Packet, net: Network) -> bool:
        """What the host forwards is for a member that has sent to one of the host's ports, whose packet filter has led
        that elsewhere: an answer to that, or an error about it."""
        member = net.members.get(p.dst)
        if member is None or p.dst_mac[0] & 1:
            return False
        if p.fragment == LATER:  # nothing without its first one
            if p.src not in self.topology.host and self._route(Flow(p.dst, p.src)).kind == "local":
                raise Withheld
            return p.src in self.topology.host
        sent = quotation(p) if p.error else backwards(p.key) if p.ports else None
        if sent is None or (member.number, sent) not in self.detours:
            return False
        if len(self.detours) > KEPT:
            raise Withheld
        self._meet(Situation.DETOUR)
        return True

    def _asks(self, p: Packet, net: Network) -> Expected | None:
        frame = p.frame
        if frame[14:20] != b"\0\1\x08\0\6\4" or frame[22:28] != p.src_mac:
            return None  # no stack sends it
        if frame[20:22] != b"\0\1":
            return dropped(frame, "ABSORBED")
        mac = self._mac_of(net, frame[38:42])
        return arp_reply(p, mac) if mac else dropped(frame, "DROP_UNKNOWN_ARP")

    def _mac_of(self, net: Network, address: bytes) -> bytes | None:
        """Of the member, here or on another host."""
        if address in net.services:
            return net.mac
        member = net.members.get(address)
        return member.mac if member else self._remote_mac(net, address, lambda peer: peer.mac)
