# SPDX-License-Identifier: Apache-2.0
"""What becomes of a question for a name: who has a resolver asks at 127.0.0.11, or at port 53 of the gateway's address.

Of names that the members of its network have it is told the records, and of their addresses what these are called, also
of those on another host. All else is asked of the one server upstream, or, on an internal network, does not exist. Only
plain questions over UDP are spoken of here: one question, no EDNS, and a header that wants nothing unusual.
"""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import dns.exception
import dns.message
import dns.name
import dns.rdatatype

from tests.model.addresses import RESOLVER, loopback
from tests.model.expected import ANY, REDIRECT, Expected
from tests.model.packet import TCP, UDP, Packet
from tests.model.situations import Situation, Withheld
from tests.model.sums import checksum
from tests.model.topology import Member, Network
from tests.model.tunnels import Tunnels

UPSTREAM = IPv4Address("203.0.113.53").packed
DNS = 53
A, PTR, AAAA, NOERROR, NXDOMAIN, REFUSED = 1, 12, 28, 0, 3, 5
FEW_PORTS = 1000  # with fewer for all, none may be left for a question


class Questions(Tunnels):
    def _for_resolver(self, p: Packet, sender: Member) -> bool:
        """Whatever is sent to 127.0.0.11; questions to the gateway where no port is published."""
        net = sender.network
        if not sender.resolves or p.dst_mac != net.mac or not (sender.owns(p.src) or loopback(p.src)):
            return False
        if p.dst == RESOLVER:
            return True
        if p.ports is None or p.ports[1] != DNS or p.fragment or p.proto not in (TCP, UDP):
            return False
        return (
            not net.lan
            and p.dst == net.gateway(len(p.dst))
            and not self.topology.published(p.dst, DNS, p.proto)
        )

    def _question(self, p: Packet, sender: Member) -> Expected:
        asked, self.watch.handed_on = self._plain(p), True
        net, name = sender.network, asked.question[0].name.to_text(omit_final_dot=True).lower()
        known = self._known(net, name)
        if known is None and not net.internal:
            return self._forwards(p, sender)
        situation, records = known or (Situation.ASKS_NOBODY, {})
        self._meet(situation)
        data = records.get(int(asked.question[0].rdtype), b"")
        code = NXDOMAIN if known is None else NOERROR
        return Expected(REDIRECT, ("ANSWERED",), check=lambda out: answers(p, net, out, code, data))

    def _known(self, net: Network, name: str) -> tuple[Situation, dict[int, bytes]] | None:
        """What there is of a name, or of somebody's address, by type; None: it is nobody's."""
        member = next((one for one in self.topology.members if one.network is net and one.name == name), None)
        if member is not None:
            return Situation.ASKS_OURS, {A: member.addr4, AAAA: member.addr6}
        for far in net.elsewhere:
            if name == far.name:
                found = {A if len(address) == 4 else AAAA: address for address in far.addresses}
                return Situation.ASKS_ELSEWHERE, found
        called = {address: owner.called for address, owner in net.members.items()}
        called |= {address: far.called for far in net.elsewhere for address in far.addresses}
        for address, text in called.items():
            if name == ip_address(address).reverse_pointer:
                return Situation.ASKS_OWNER, {PTR: dns.name.from_text(text).to_wire() or b""}
        return None

    @staticmethod
    def _plain(p: Packet) -> dns.message.Message:
        """The question; Withheld: it is none of which anything is said."""
        if p.proto != UDP or p.ports is None or p.ports[1] != DNS or p.fragment or p.gso or p.ttl < 2:
            raise Withheld
        if (
            p.l4 != (34 if len(p.src) == 4 else 54)
            or int.from_bytes(p.frame[p.l4 + 4 : p.l4 + 6]) != p.end - p.l4
        ):
            raise Withheld
        message = p.frame[p.l4 + 8 : p.end]
        counts_and_flags = message[2:12]
        if counts_and_flags != b"\1\0\0\1\0\0\0\0\0\0" or not 17 < len(message) <= 512:
            raise Withheld
        try:
            asked = dns.message.from_wire(message)
        except dns.exception.DNSException:
            raise Withheld from None
        if b"\0" in message[12:-5]:  # in a label, where no name of anybody's has one
            raise Withheld
        if len(asked.question) != 1 or asked.question[0].rdclass != 1 or b"\xc0" in message[12:-4]:
            raise Withheld
        return asked

    def _forwards(self, p: Packet, sender: Member) -> Expected:
        """With an address of the host's, by whatever way the host has; its own port is nobody's business."""
        if any(way.kind != "out" for way in self.topology.routing.ways(UPSTREAM)):
            raise Withheld
        self._meet(Situation.ASKS_UPSTREAM)
        few = self.topology.nat_last - self.topology.nat_first < FEW_PORTS
        reasons = ("TO_OUTSIDE", "ANSWERED") if few else ("TO_OUTSIDE",)

        def check(out: bytes) -> str:
            if few and not answers(p, sender.network, out, REFUSED, b""):
                return ""
            return self._sent_on(p, out)

        return Expected(ANY if few else REDIRECT, reasons, check=check)

    def _sent_on(self, p: Packet, out: bytes) -> str:
        q = next(
            (one for one in (Packet(out), Packet(p.frame[:12] + b"\x08\0" + out)) if not one.fault), None
        )
        if q is None or q.proto != UDP or q.ports is None or (wrong_sum(q) and not wrong_sum(p)):
            return f"what is sent on is no packet: {out.hex()}"
        if (
            q.dst != UPSTREAM
            or q.ports[1] != DNS
            or q.src not in (one.addr4 for one in self.topology.uplinks)
        ):
            return f"it is sent on from {q.src.hex()} to {q.dst.hex()}"
        return "" if q.frame[q.l4 + 8 : q.end] == p.frame[p.l4 + 8 : p.end] else "another question is sent on"


def wrong_sum(q: Packet) -> bool:
    """Of UDP; in IPv6 there has to be one. The sum of what was sent with a wrong one stays as wrong as it was."""
    body = q.frame[q.l4 : q.end]
    if body[6:8] == b"\0\0":
        return len(q.src) == 16
    return checksum(q.src + q.dst + (len(body) << 32 | q.proto).to_bytes(8) + body) != 0


def answers(p: Packet, net: Network, out: bytes, code: int, data: bytes) -> str:
    """What is wrong with the answer to the question; `data`: the one record's, b"": there is none."""
    q = Packet(out)
    if q.fault or q.proto != UDP or q.ports is None or p.ports is None or (wrong_sum(q) and not wrong_sum(p)):
        return f"no answer: {out.hex()}"
    if (q.dst_mac, q.src_mac, q.dst, q.src) != (p.src_mac, net.mac, p.src, p.dst) or q.ports != p.ports[::-1]:
        return f"an answer for somebody else: {out.hex()}"
    asked, said = p.frame[p.l4 + 8 : p.end], q.frame[q.l4 + 8 : q.end]
    try:
        answer = dns.message.from_wire(said, one_rr_per_rrset=True)
    except dns.exception.DNSException as error:
        return f"{error}: {said.hex()}"
    if said[:2] != asked[:2] or said[12 : len(asked)] != asked[12:] or not said[2] & 0x80:
        return f"an answer to another question: {said.hex()}"
    records = [rrset[0].to_wire() for rrset in answer.answer]
    if (answer.rcode(), records) != (code, [data] if data else []):
        return f"rcode {answer.rcode()}, records {records}"
    return ""
