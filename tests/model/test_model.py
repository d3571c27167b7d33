# SPDX-License-Identifier: Apache-2.0
"""The programs against the reference model: a bounded run with random packets, and every disagreement that was
ever found, by name. MODEL_SECONDS and MODEL_SEED change the run; `make fuzz` has no end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import Any

import pytest

from datapath.kernel import netns
from datapath.model.endpoints import linklocal_of
from tests.model import fuzz, hosts, plans
from tests.model.comparison import Comparison, Tally
from tests.model.devices import Host, Lan, Leg, Out, Plan
from tests.model.draws import Sent
from tests.model.fixtures import Programs, pinned_to_one_cpu
from tests.model.packet import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP, UDP, Key
from tests.model.routes import route
from tests.model.services import Service
from tests.model.situations import WITHHELD, Situation
from tests.model.topology import FAR, Member, Network, Published, Topology, Uplink
from tests.model.tunnels import Overlay, Peer
from tests.model.writing import carried, frame_of, icmp, ip4, ip6

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SECONDS = float(os.environ.get("MODEL_SECONDS", "0"))  # at least
LEAST, MANY = 200_000, 1_500_000
SEED = int(os.environ.get("MODEL_SEED", "202"))


def test_random_packets_until_every_situation_is_met() -> None:
    """Deterministic but for the ports that the programs choose. What is hard to come by comes by: without it no number
    of packets says anything. Draws are such that it does within a fifth of the packets that are sent in any case."""
    wanted = set(Situation) - set(WITHHELD)
    tally = fuzz.run(
        SEED,
        packets=MANY if not SECONDS else 0,
        stop_at=1,
        until=lambda tally: wanted <= set(tally.met) and tally.packets >= LEAST and tally.seconds >= SECONDS,
    )
    assert not tally.found, str(tally.found[0])
    assert not wanted - set(tally.met)


# ---- what was found ------------------------------------------------------------------------------------------

PLAN = Plan(
    lans=[
        Lan(1, IPv4Interface("172.17.0.1/16"), IPv6Interface("fd00:1::1/64"), 1500, 3),
        Lan(2, IPv4Interface("172.18.0.1/16"), IPv6Interface("fd00:2::1/64"), 1400, 2),
    ],
    legs=[
        Leg(IPv4Interface("192.0.2.1/24"), IPv6Interface("2001:db8:1::1/64"), 1500),
        Leg(IPv4Interface("198.51.100.129/25"), IPv6Interface("2001:db8:2::1/64"), 1280, ethernet=False),
    ],
    extra=[],
    outs=[Out("0.0.0.0/0", 0), Out("::/0", 0), Out("203.0.113.64/26", 1)],
    ports=(20000, 20999),
)


def raw(address: str) -> bytes:
    return ip_address(address).packed


HOST, HOST6 = raw("192.0.2.1"), raw("2001:db8:1::1")
OUTSIDE, OUTSIDE6 = raw("203.0.113.5"), raw("2001:db8:9::5")


def members_of(lan: Lan, *, icc: bool, first: int) -> tuple[Network, list[Member]]:
    mac = bytes.fromhex(lan.mac.replace(":", ""))
    net = Network(
        number=lan.number,
        mac=mac,
        icc=icc,
        ipv6=True,
        mtu=lan.mtu,
        broadcast=lan.subnet4.network.broadcast_address.packed,
        gateway4=lan.subnet4.ip.packed,
        gateway6=lan.subnet6.ip.packed,
        linklocal=linklocal_of(lan.mac).packed,
    )
    members = []
    for slot in range(lan.members):
        mac = b"\x02\x42" + (lan.subnet4.ip + 1 + slot).packed
        member = Member(net, first + slot, mac, f"m{lan.number}-{slot}")
        member.addr4 = (lan.subnet4.ip + 1 + slot).packed
        member.addr6 = (lan.subnet6.ip + 1 + slot).packed
        member.linklocal = linklocal_of(mac.hex(":")).packed
        net.members |= {member.addr4: member, member.addr6: member, member.linklocal: member}
        members.append(member)
    return net, members


def fixed() -> Topology:
    """Network 1 with icc, 2 without, and with a smaller MTU; b1 may reach ports 80 and 53 of b2."""
    one, a = members_of(PLAN.lans[0], icc=True, first=1)
    two, b = members_of(PLAN.lans[1], icc=False, first=11)
    networks = {1: one, 2: two}
    uplinks = [hosts.uplink(number, leg) for number, leg in enumerate(PLAN.legs)]
    ports = {}
    for proto in (TCP, UDP):
        ports[bytes(4), 8081, proto] = Published(a[1], a[1].addr4, 80)
        ports[bytes(16), 8081, proto] = Published(a[1], a[1].addr6, 80)
        ports[bytes(4), 8082, proto] = Published(b[1], b[1].addr4, 80)
        ports[bytes(16), 8082, proto] = Published(b[1], b[1].addr6, 80)
    links = {(b[0].addr6, b[1].addr6, 53, UDP), (b[0].addr4, b[1].addr4, 53, UDP)}
    return Topology(
        networks=[one, two],
        members=[*a, *b],
        uplinks=uplinks,
        routing=plans.routing(PLAN, networks, uplinks),
        ports=ports,
        links=links,
        nat_first=PLAN.ports[0],
        nat_last=PLAN.ports[1],
    )


def in_front_of(member: Member) -> Published:
    """The port 80 of a service whose only backend is the member."""
    net, lan = member.network, next(one for one in PLAN.lans if one.number == member.network.number)
    service = Service(
        network=net,
        number=9000 + net.number,
        seed=1,
        addr4=lan.subnet4.network[-5].packed,
        addr6=lan.subnet6.network[-5].packed,
        backends=[member],
        slots=[member],
        host=Member(net, -1, net.mac, "gateway"),
    )
    net.services |= {service.addr4: service, service.addr6: service}
    member.serves = True
    return Published(member, service.addr6, 80, service=service)


PEER = Peer(2, raw("192.0.2.7"), b"\2\0\0\0\1\2", 1500, ((raw("172.17.8.0"), 30), (raw("fd00:1::8:0"), 126)))


def spread(topology: Topology, **kind: Any) -> Overlay:
    """Network 1 has members on another host too."""
    topology.overlay = Overlay(
        network=topology.networks[0],
        vni=4097,
        port=4789,
        mac=b"\2\0\0\0\1\1",
        ends={4: HOST, 16: HOST6},
        subnets=((raw("172.17.0.0"), 16), (raw("fd00:1::"), 64)),
        peers=[PEER],
        strangers=(),
        device="dp1",
        **kind,
    )
    return topology.overlay


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    with pinned_to_one_cpu():
        host = Host(PLAN)
        try:
            with netns.enter(host.space):
                made = Programs(host)
                yield made
                made.close()
        finally:
            host.close()


class Both:
    """The reference and the programs on the fixed topology."""

    def __init__(self, programs: Programs, topology: Topology | None = None) -> None:
        self.topology = topology or fixed()
        self.comparison = Comparison(programs.host, programs, self.topology)
        self.a1, self.a2, self.a3, self.b1, self.b2 = self.topology.members
        self.uplink, self.tunnel = self.topology.uplinks

    def agree(self, sent: Sent, reason: str) -> None:
        tally = Tally()
        problem = self.comparison.compare(sent, tally)
        assert problem is None, "\n".join(problem)
        assert tally.reasons[f"{sent.hook} {reason}"], dict(tally.reasons)

    def member(
        self, member: Member, packet: bytes, reason: str, to: bytes | None = None, gso: int = 0
    ) -> None:
        frame = frame_of(to or member.network.mac, member.mac, packet)
        self.agree(Sent("from_container", member, frame, gso=gso), reason)

    def bare(self, packet: bytes, reason: str) -> None:
        """From the uplink without Ethernet headers."""
        self.agree(Sent("from_tunnel", self.tunnel, frame_of(bytes(6), bytes(6), packet)), reason)

    def outside(self, packet: bytes, reason: str) -> None:
        self.agree(
            Sent("from_uplink", self.uplink, frame_of(self.uplink.mac, b"\2\0\0\0\0\xbb", packet)), reason
        )


@pytest.fixture
def both(programs: Programs) -> Both:
    return Both(programs)


def packet(key: Key, data: bytes = b"abcdefgh", *, flags: int = SYN, **header: int) -> bytes:
    body = carried(key, flags, data)
    if len(key[1]) == 4:
        return ip4(key[1], key[3], key[0], body, **header)  # type: ignore[arg-type]
    return ip6(key[1], key[3], key[0], body, **header)  # type: ignore[arg-type]


def test_an_echo_reply_that_answers_nothing_opens_nothing(both: Both) -> None:
    a1 = both.a1
    both.member(a1, packet((ICMP, a1.addr4, 0, OUTSIDE, 77)), "DROP_NO_CONN")
    both.member(a1, packet((ICMPV6, a1.addr6, 0, OUTSIDE6, 77)), "DROP_NO_CONN")


def test_length_0_is_a_lie(both: Both) -> None:
    a1, a2 = both.a1, both.a2
    four = packet((UDP, a1.addr4, 9, a2.addr4, 9))
    both.member(a1, four[:2] + b"\0\0" + four[4:], "DROP_TRUNCATED")
    six = packet((UDP, a1.addr6, 9, a2.addr6, 9))
    both.member(a1, six[:4] + b"\0\0" + six[6:], "DROP_TRUNCATED")


def test_too_big_is_told_by_the_gateway(both: Both) -> None:
    """A packet to a published port of a network with a smaller MTU."""
    a1 = both.a1
    both.member(a1, packet((UDP, a1.addr4, 20100, both.topology.networks[0].gateway4, 8082)), "DELIVERED")
    big = packet((UDP, a1.addr4, 20100, both.topology.networks[0].gateway4, 8082), bytes(1400))
    both.member(a1, big, "DROP_TOO_BIG")


def test_a_quotation_holds_the_ports_in_spite_of_options(both: Both) -> None:
    a1 = both.a1
    body = carried((UDP, a1.addr4, 20100, OUTSIDE, 33434), 0, b"abcdefgh")
    for words in (1, 2, 5, 10):
        both.member(a1, ip4(a1.addr4, OUTSIDE, UDP, body, ttl=1, options=b"\1" * 4 * words), "DROP_TTL")
    body = carried((UDP, a1.addr6, 20100, OUTSIDE6, 33434), 0, b"abcdefgh")
    chain = ((60, b"\0\1\4" + bytes(4)),) * 2
    both.member(a1, ip6(a1.addr6, OUTSIDE6, UDP, body, ttl=1, chain=chain), "DROP_TTL")


def test_a_forged_source_larger_than_its_network_takes(both: Both) -> None:
    """From outside, in the name of an address of a network whose MTU is smaller than the packet."""
    forged = packet((UDP, raw("172.18.0.99"), 9, HOST, 8081), bytes(1440))
    both.outside(forged, "NOT_OURS")
    both.outside(packet((UDP, raw("fd00:2::99"), 9, HOST6, 8081), bytes(1440)), "NOT_OURS")


def test_a_quotation_ends_with_its_packet(both: Both) -> None:
    """What would complete it is padding."""
    a1 = both.a1
    both.member(a1, packet((UDP, a1.addr4, 20100, OUTSIDE, 53)), "TO_OUTSIDE")
    quoted = packet((UDP, OUTSIDE, 53, a1.addr4, 20100))
    body = icmp(a1.addr4, OUTSIDE, b"\3\3" + bytes(6) + quoted[:28])
    whole = ip4(a1.addr4, OUTSIDE, ICMP, body)
    both.member(a1, whole, "TO_OUTSIDE")
    both.member(a1, ip4(a1.addr4, OUTSIDE, ICMP, body[:-1]) + body[-1:], "DROP_NO_CONN")


def pieces(packet_: bytes, *cuts: tuple[int, int, bool]) -> list[bytes]:
    """Of an IPv4 packet without options: from, to, more to come."""
    result = []
    for begin, end, more in cuts:
        body = packet_[20 + begin : 20 + end]
        word = begin // 8 | (0x2000 if more else 0)
        result.append(ip4(packet_[12:16], packet_[16:20], packet_[9], body, word=word, ident=7))
    return result


def test_a_fragment_that_comes_twice_loses_nothing(both: Both) -> None:
    a1 = both.a1
    whole = packet((UDP, a1.addr4, 20100, OUTSIDE, 53), bytes(56))
    first, second, last = pieces(whole, (0, 16, True), (16, 40, True), (40, 64, False))
    both.member(a1, first, "TO_OUTSIDE")
    both.member(a1, second, "TO_OUTSIDE")
    both.member(a1, second, "DROP_OVERLAP")
    both.member(a1, last, "TO_OUTSIDE")


def test_fragments_that_overlap_lose_the_datagram(both: Both) -> None:
    a1 = both.a1
    whole = packet((UDP, a1.addr4, 20100, OUTSIDE, 53), bytes(56))
    first, second, last = pieces(whole, (0, 16, True), (8, 40, True), (40, 64, False))
    both.member(a1, first, "TO_OUTSIDE")
    both.member(a1, second, "DROP_OVERLAP")
    both.member(a1, last, "DROP_OVERLAP")


def behind_options(key: Key, offset: int, more: bool, body: bytes, ident: int = 5) -> bytes:
    """A fragment whose header names destination options, which its first one begins with."""
    data = bytes((60, 0)) + (offset | more).to_bytes(2, "big") + ident.to_bytes(4, "big") + body
    return ip6(key[1], key[3], 44, data)


def test_later_fragments_may_name_another_protocol(both: Both) -> None:
    """IPv6: each names what the first one begins with (RFC 8200, 4.5), here not the transport."""
    b1, b2 = both.b1, both.b2
    options = bytes((UDP, 0, 1, 4, 0, 0, 0, 0))
    for sender, key, reason in (
        (b1, (UDP, b1.addr6, 9, b2.addr6, 53), "DELIVERED"),
        (b1, (UDP, b1.addr6, 20100, OUTSIDE6, 53), "TO_OUTSIDE"),
        (b1, (UDP, b1.addr6, 20100, HOST6, 8081), "DELIVERED"),
    ):
        body = options + carried(key, 0, bytes(48))
        both.member(sender, behind_options(key, 0, True, body[:24]), reason)
        both.member(sender, behind_options(key, 24, False, body[24:]), reason)
    key = (UDP, OUTSIDE6, 9, HOST6, 8081)
    body = options + carried(key, 0, bytes(48))
    both.outside(behind_options(key, 0, True, body[:24]), "DELIVERED")
    both.outside(behind_options(key, 24, False, body[24:]), "DELIVERED")


def test_fragments_of_an_echo_with_identifier_0(both: Both) -> None:
    a1 = both.a1
    net4 = both.topology.networks[0]
    net4.masquerade = False
    both.comparison.programs.fill(both.topology)
    body = icmp(a1.addr4, OUTSIDE, b"\x08\0\0\0\0\0\0\1" + bytes(40))
    first, last = pieces(ip4(a1.addr4, OUTSIDE, ICMP, body), (0, 16, True), (16, 48, False))
    both.member(a1, first, "TO_OUTSIDE")
    both.member(a1, last, "TO_OUTSIDE")


def test_the_hosts_solicitation_for_a_mapped_address(both: Both) -> None:
    net = both.topology.networks[0]
    target = IPv6Address("::ffff:172.17.0.2").packed
    group = raw("ff02::1:ff11:2")
    body = icmp(net.gateway6, group, bytes((135, 0, 0, 0)) + bytes(4) + target)
    frame = frame_of(b"\x33\x33\xff\x11\0\2", net.mac, ip6(net.gateway6, group, ICMPV6, body, ttl=255))
    both.agree(Sent("from_host", net, frame), "DROP_UNKNOWN_ARP")


def test_a_published_conversation(both: Both) -> None:
    """The smallest one, so that a failure of all others has an easy beginning."""
    a2 = both.a2
    both.outside(packet((TCP, OUTSIDE, 9, HOST, 8081)), "DELIVERED")
    both.member(a2, packet((TCP, a2.addr4, 80, OUTSIDE, 9), flags=SYN | ACK), "TO_OUTSIDE")
    both.outside(packet((TCP, OUTSIDE, 9, HOST, 8081), flags=ACK), "DELIVERED")


def table_of(both: Both) -> tuple[int, int]:
    """Entries in `pending` and `conns`."""
    return len(both.comparison.programs.keys("pending")), len(both.comparison.programs.keys("conns"))


def test_nobody_confirms_alone(both: Both) -> None:
    """From one side only a reset that was none, and more, leaves the connection among those that a flood evicts."""
    key = (TCP, OUTSIDE, 9, HOST, 8081)
    for flags in (SYN, RST, ACK, ACK, 0, ACK | FIN, ACK):
        both.outside(packet(key, flags=flags), "DELIVERED")
        assert table_of(both) == (2, 0), flags
    a1 = both.a1
    for flags in (ACK, RST, 0, 0, ACK):
        both.member(a1, packet((TCP, a1.addr4, 20100, OUTSIDE, 80), flags=flags), "TO_OUTSIDE")
        assert table_of(both) == (4, 0), flags


def test_every_answer_confirms(both: Both) -> None:
    """However fast they come: the kernel refuses memory for a timer each."""
    a1 = both.a1
    for port in range(20000, 20400):
        both.member(a1, packet((UDP, a1.addr4, port, OUTSIDE, 53)), "TO_OUTSIDE")
        both.outside(packet((UDP, OUTSIDE, 53, HOST, port)), "DELIVERED")
    assert table_of(both) == (0, 800)
    assert both.comparison.books() == ""


def test_an_echo_reply_with_identifier_0(both: Both) -> None:
    a1 = both.a1
    body = icmp(a1.addr4, OUTSIDE, bytes(6) + b"\0\1" + bytes(8))
    both.member(a1, ip4(a1.addr4, OUTSIDE, ICMP, body), "DROP_NO_CONN")


def test_a_neighbours_target_ends_with_its_packet(both: Both) -> None:
    """What would complete it is padding."""
    a1, a2 = both.a1, both.a2
    body = icmp(a1.addr6, a2.addr6, bytes((135, 0, 0, 0)) + bytes(4) + a2.addr6)
    whole = ip6(a1.addr6, a2.addr6, ICMPV6, body, ttl=255)
    both.member(a1, whole, "ANSWERED", a2.mac)
    both.member(a1, whole[:4] + b"\0\x08" + whole[6:], "DROP_TRUNCATED", a2.mac)


def test_an_extension_header_beyond_its_packet(both: Both) -> None:
    """Though no transport is behind it that would have to be read."""
    a1, a2 = both.a1, both.a2
    body = bytes((51, 1)) + bytes(6)
    both.member(a1, ip6(a1.addr6, a2.addr6, 60, body), "DROP_TRUNCATED", a2.mac)


def test_the_number_of_a_datagram_of_the_hosts_is_used_again(both: Both) -> None:
    """Same addresses, same protocol, same identification: the first was for a port of the host's."""
    hosts = packet((UDP, OUTSIDE, 9, HOST, 22), bytes(56))
    ours = packet((UDP, OUTSIDE, 9, HOST, 8081), bytes(56))
    cuts = ((0, 24, True), (24, 64, False))
    for piece in pieces(hosts, *cuts):
        both.outside(piece, "NOT_OURS")
    for piece in pieces(ours, *cuts):
        both.outside(piece, "DELIVERED")


def test_a_later_fragment_opens_nothing(both: Both) -> None:
    """Where its first one was refused."""
    a1 = both.a1
    whole = packet((UDP, a1.addr4, 20100, OUTSIDE, 53), bytes(56))
    first, last = pieces(whole, (0, 24, True), (24, 64, False))
    first = first[:8] + b"\1" + first[9:10] + b"\0\0" + first[12:]
    both.member(a1, first, "DROP_TTL")
    both.member(a1, last, "DROP_FRAGMENT")
    assert table_of(both) == (0, 0)


def test_fragments_wait_for_their_first_one(both: Both) -> None:
    """They come again behind it; the comparison looks whether they do."""
    a1 = both.a1
    whole = packet((UDP, a1.addr4, 20100, OUTSIDE, 53), bytes(56))
    first, second, last = pieces(whole, (0, 16, True), (16, 40, True), (40, 64, False))
    both.member(a1, last, "HELD")
    both.member(a1, second, "HELD")
    both.member(a1, first, "TO_OUTSIDE")


def test_link_local_addresses_stay_on_their_link(both: Both) -> None:
    a1 = both.a1
    both.member(a1, packet((UDP, a1.addr6, 20100, raw("fe80::dead"), 53)), "DROP_BAD_ADDR")
    both.outside(packet((UDP, raw("fe80::dead"), 9, HOST6, 8081)), "NOT_OURS")


def test_an_opening_that_is_too_big_says_nothing(both: Both) -> None:
    """Its FIN is not taken for one that the server has seen."""
    key = (TCP, OUTSIDE, 9, HOST, 8082)
    both.outside(packet(key, bytes(1400), flags=FIN | ACK), "DROP_TOO_BIG")
    both.member(both.b2, packet((TCP, both.b2.addr4, 80, OUTSIDE, 9), flags=FIN | ACK), "TO_OUTSIDE")
    both.outside(packet(key, flags=ACK), "DELIVERED")
    assert table_of(both) == (0, 2)
    assert both.comparison.books() == ""


def test_an_error_about_the_other_familys_echo(both: Both) -> None:
    """Type 128 is an echo in ICMPv6 alone."""
    a1 = both.a1
    asked = (ICMP, a1.addr4, 20100, OUTSIDE, 0)
    both.member(a1, packet(asked), "TO_OUTSIDE")
    half = both.comparison.reference.connections.find(asked)
    assert half
    for kind, reason in ((8, "DELIVERED"), (128, "NOT_OURS")):
        external = half.out[2].to_bytes(2, "big")
        inner = icmp(HOST, OUTSIDE, bytes((kind, 0, 0, 0)) + external + b"\0\1")
        body = icmp(OUTSIDE, HOST, b"\x0b\0" + bytes(6) + ip4(HOST, OUTSIDE, ICMP, inner))
        both.outside(ip4(OUTSIDE, HOST, ICMP, body), reason)


def test_a_port_that_is_used_again_has_new_numbers(both: Both) -> None:
    """A reset of the second connection is not judged by what the first one had acknowledged."""
    a1 = both.a1
    ask, reply = (TCP, a1.addr4, 20100, OUTSIDE, 80), (TCP, OUTSIDE, 80, HOST, 20100)
    both.member(a1, packet(ask, flags=ACK), "TO_OUTSIDE")
    both.member(a1, packet(ask, flags=SYN), "TO_OUTSIDE")
    both.outside(packet(reply, flags=SYN | ACK), "DELIVERED")
    both.outside(packet(reply, flags=RST), "DELIVERED")
    both.member(a1, packet(ask, flags=ACK), "TO_OUTSIDE")
    assert both.comparison.books() == ""


def test_a_link_local_source_to_the_neighbour_of_a_host_address(both: Both) -> None:
    """2001:db8:1:: is beside the host's 2001:db8:1::1, but not the host's: no port is published there."""
    a1 = both.a1
    beside = raw("2001:db8:1::")
    both.member(a1, packet((TCP, a1.linklocal, 7, beside, 8081)), "DROP_BAD_ADDR")


def test_a_link_local_source_reaches_the_host_but_no_published_port(both: Both) -> None:
    """A port that is denied to the network's own prefix would be open to the same container's other address."""
    a1 = both.a1
    both.member(a1, packet((TCP, a1.linklocal, 7, a1.network.gateway6, 8081)), "TO_HOST")


def test_a_link_local_address_is_one_on_its_link_only(both: Both) -> None:
    """What the other uplink, or a network's device, has is another's here (RFC 4007)."""
    a1, (up0, up1) = both.a1, both.comparison.topology.uplinks
    own, gateways = up0.linklocals[0], a1.network.linklocal
    both.outside(packet((TCP, OUTSIDE6, 7, own, 8081)), "DELIVERED")
    both.member(both.a2, packet((TCP, both.a2.addr6, 80, OUTSIDE6, 7), flags=SYN | ACK), "TO_OUTSIDE")
    both.outside(packet((TCP, OUTSIDE6, 7, gateways, 8081)), "NOT_OURS")
    both.bare(packet((TCP, OUTSIDE6, 7, own, 8081), flags=ACK), "NOT_OURS")
    assert own not in up1.linklocals


def test_an_opening_on_another_link_leaves_a_services_connection_as_it_is(programs: Programs) -> None:
    """It is for the address that the host has on that link too, where no answer leads: so it is left to the host."""
    topology = fixed()
    b2 = topology.members[4]
    topology.ports[bytes(16), 8083, TCP] = published = in_front_of(b2)
    both = Both(programs, topology)
    opening = (TCP, OUTSIDE6, 7, hosts.EVERYWHERE, 8083)
    both.outside(packet(opening), "DELIVERED")
    both.bare(packet(opening), "NOT_OURS")
    answer = (TCP, b2.addr6, published.port, OUTSIDE6, 7)
    both.member(b2, packet(answer, flags=SYN | ACK), "TO_OUTSIDE")


def test_a_reset_that_would_open_a_connection_is_a_reset(programs: Programs) -> None:
    """RFC 9293, 3.10.7, looks at RST first: to a service's address it begins nothing anew, whether what it is of is
    over or not, and whoever asks; one of which nothing is known opens nothing."""
    topology = fixed()
    a1, a2 = topology.members[:2]
    service = in_front_of(a2).service
    assert service
    both = Both(programs, topology)
    for client in (a1, a2):
        ask = (TCP, client.addr4, 20700, service.addr4, 80)
        both.member(client, packet(ask, flags=SYN | RST), "DROP_NO_CONN")
        for flags in (SYN, SYN | RST, SYN | RST, SYN, SYN, SYN | RST):
            both.member(client, packet(ask, flags=flags), "DELIVERED")
    assert table_of(both) == (4, 0)
    assert both.comparison.books() == ""


def test_who_talks_to_its_own_external_port_is_counted_both_ways(both: Both) -> None:
    """Its connection is at once that of who is called, and comes to another table by the same packet."""
    a1 = both.a1
    for proto, port in ((UDP, 20100), (TCP, 20200)):
        both.member(a1, packet((proto, a1.addr4, port, OUTSIDE, 53)), "TO_OUTSIDE")
        for flags in (SYN, SYN | ACK, ACK, ACK):
            both.member(a1, packet((proto, a1.addr4, port, HOST, port), flags=flags), "DELIVERED")
    assert both.comparison.books() == ""


def test_what_is_cut_on_its_way_out_is_counted_as_a_whole(both: Both) -> None:
    a1 = both.a1
    for size in (1472, 8, 1473):
        both.member(a1, packet((UDP, a1.addr4, 20100, BEYOND, 53), bytes(size), word=0), "TO_OUTSIDE")
    assert both.comparison.reference.met[Situation.CUT] == 2
    assert both.comparison.books() == ""


def test_an_error_to_a_backend_in_an_encrypted_tunnel_has_a_right_header(programs: Programs) -> None:
    """It is translated twice: for the service, and as the host is called there."""
    topology = fixed()
    net = topology.networks[0]
    spread(topology, encrypted=Uplink("wg0", bytes(6), b"", b"", PLAN.encrypted, False))
    far = Member(net, FAR, PEER.mac, "far", raw("172.17.8.1"), raw("fd00:1::8:1"), peer=PEER)
    service = in_front_of(topology.members[0]).service
    assert service
    service.backends = service.slots = [far]
    both = Both(programs, topology)
    ask = (UDP, net.gateway4, 20600, service.addr4, 80)
    both.agree(Sent("from_host", net, frame_of(net.mac, net.mac, packet(ask))), "TO_PEER")
    quoted = packet((UDP, service.addr4, 80, net.gateway4, 20600))
    body = icmp(net.gateway4, service.addr4, b"\3\3" + bytes(6) + quoted[:28])
    error = frame_of(net.mac, net.mac, ip4(net.gateway4, service.addr4, ICMP, body))
    both.agree(Sent("from_host", net, error), "TO_PEER")


def test_a_routers_error_about_an_answer_enters_an_encrypted_tunnel_in_the_gateways_name(
    programs: Programs,
) -> None:
    """As the client was asked for; the client's own error as well, and that of a member of this network too."""
    topology = fixed()
    net = topology.networks[0]
    spread(topology, encrypted=Uplink("wg0", bytes(6), b"", b"", PLAN.encrypted, False))
    far = Member(net, FAR, PEER.mac, "far", raw("172.17.8.1"), raw("fd00:1::8:1"), peer=PEER)
    published = in_front_of(topology.members[0])
    service = published.service
    assert service
    service.backends = service.slots = [far]
    topology.ports[bytes(16), 8083, UDP] = published
    topology.ports[bytes(4), 8083, UDP] = Published(published.member, service.addr4, 80, service=service)
    both = Both(programs, topology)
    for client, asked, router, kind in (
        (OUTSIDE, HOST, raw("203.0.113.9"), b"\3\4"),
        (OUTSIDE6, HOST6, raw("2001:db8:9::9"), b"\2\0"),
    ):
        both.outside(packet((UDP, client, 20600, asked, 8083)), "TO_PEER")
        quoted = packet((UDP, asked, 8083, client, 20600))
        for teller in (router, client):
            body = icmp(teller, asked, kind + b"\0\0\0\0\5\x14" + quoted[:48])
            six = len(asked) == 16
            told = ip6(teller, asked, ICMPV6, body) if six else ip4(teller, asked, ICMP, body)
            both.outside(told, "TO_PEER")


def test_an_echo_reply_opens_nothing_at_an_announced_address(programs: Programs) -> None:
    topology = fixed()
    spread(topology, direct=True, announced=True)
    both = Both(programs, topology)
    both.outside(packet((ICMP, OUTSIDE, 0, both.a1.addr4, 77)), "NOT_OURS")
    both.outside(packet((ICMP, OUTSIDE, 77, both.a1.addr4, 0)), "DELIVERED")
    assert table_of(both) == (2, 0)


def test_an_answer_of_an_announced_address_is_translated_if_its_client_is_hidden(programs: Programs) -> None:
    """Though its own address stays: so an IPsec policy keeps it from leaving, and it is not the host's."""
    topology = fixed()
    spread(topology, direct=True, announced=True)
    topology.networks[0].beside = True
    topology.protected = [route(prefix, "out") for prefix in plans.PROTECTED]
    both = Both(programs, topology)
    a1, client = both.a1, raw("198.19.7.7")
    both.outside(packet((UDP, client, 20700, a1.addr4, 80)), "DELIVERED")
    both.member(a1, packet((UDP, a1.addr4, 80, a1.network.gateway4, 20700)), "DROP_XFRM")


TIMESTAMPS = b"\1\1\x08\x0a" + bytes(8)
BEYOND = raw("203.0.113.77")  # by the uplink without Ethernet headers


def test_a_segment_has_the_headers_of_the_whole(both: Both) -> None:
    """TCP options and those of IP count: 1448 bytes of data with timestamps fill a packet of 1500, 1449 do not."""
    a1 = both.a1
    for data, reason in ((1448, "TO_OUTSIDE"), (1449, "DROP_TOO_BIG")):
        body = carried((TCP, a1.addr4, 20100, OUTSIDE, 80), ACK, bytes(2 * data), options=TIMESTAMPS)
        both.member(a1, ip4(a1.addr4, OUTSIDE, TCP, body), reason, gso=data)
        with_option = ip4(a1.addr4, OUTSIDE, TCP, body, options=b"\1" * 4)
        both.member(a1, with_option, "TO_OUTSIDE" if data < 1448 else "DROP_TOO_BIG", gso=data)
        body = carried((TCP, a1.addr6, 20100, OUTSIDE6, 80), ACK, bytes(2 * data), options=TIMESTAMPS)
        both.member(a1, ip6(a1.addr6, OUTSIDE6, TCP, body), "DROP_TOO_BIG", gso=data)
    body = carried((UDP, a1.addr4, 20100, OUTSIDE, 53), 0, bytes(2944))
    both.member(a1, ip4(a1.addr4, OUTSIDE, UDP, body), "TO_OUTSIDE", gso=1472)
    both.member(a1, ip4(a1.addr4, OUTSIDE, UDP, body), "DROP_TOO_BIG", gso=1473)


def test_what_may_be_cut_is_cut_on_its_way_out(both: Both) -> None:
    """The comparison looks at the pieces, and sends them too: a packet of 1500 by a way of 1280."""
    a1 = both.a1
    whole = packet((UDP, a1.addr4, 20100, BEYOND, 53), bytes(1472), word=0, ident=77)
    both.member(a1, whole, "TO_OUTSIDE")
    assert both.comparison.reference.met[Situation.CUT] == 1
    both.member(a1, packet((UDP, a1.addr4, 20100, BEYOND, 53), bytes(1472)), "DROP_TOO_BIG")


def test_one_port_of_a_containers_has_one_outside(both: Both) -> None:
    """Whatever its range; and where another's has it, another, which stays (RFC 4787, REQ-1, 2 and 3a)."""
    a1, a3 = both.a1, both.a3
    for proto in (TCP, UDP):
        for sport in (40000, 700, 20000):
            for sender in (a1, a3):
                for to in (OUTSIDE, raw("8.8.8.8"), raw("93.184.216.34")):
                    both.member(sender, packet((proto, sender.addr4, sport, to, 53)), "TO_OUTSIDE")
    assert both.comparison.reference.met[Situation.SAME_SOCKET] == 24


def test_a_port_that_is_published_is_its_ports_outside_too(both: Both) -> None:
    """a2 publishes its 80 at 8081: so it is known by it."""
    a2 = both.a2
    both.member(a2, packet((UDP, a2.addr4, 80, OUTSIDE, 9)), "TO_OUTSIDE")
    both.outside(packet((UDP, OUTSIDE, 9, HOST, 8081)), "DELIVERED")
    assert table_of(both) == (0, 2)


def test_a_published_conversation_without_ethernet_headers(both: Both) -> None:
    a2, host = both.a2, raw("198.51.100.129")
    both.bare(packet((TCP, BEYOND, 9, host, 8081)), "DELIVERED")
    both.member(a2, packet((TCP, a2.addr4, 80, BEYOND, 9), flags=SYN | ACK), "TO_OUTSIDE")
    both.bare(packet((TCP, BEYOND, 9, host, 8081), flags=ACK), "DELIVERED")
    both.bare(packet((TCP, BEYOND, 9, host, 22)), "NOT_OURS")


def test_a_number_is_used_again_for_a_datagram_of_the_same_shape(both: Both) -> None:
    """Its first fragment begins it anew, and the old one's end is not taken for its own."""
    a1 = both.a1
    whole = packet((UDP, a1.addr4, 20100, OUTSIDE, 53), bytes(56))
    first, second, last = pieces(whole, (0, 16, True), (16, 40, True), (40, 64, False))
    for piece in (first, second, first, second, last):
        both.member(a1, piece, "TO_OUTSIDE")
