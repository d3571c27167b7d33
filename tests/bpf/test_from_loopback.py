# SPDX-License-Identifier: Apache-2.0
"""What the host sends to itself past the socket hooks: published ports, and their answers."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Any, NamedTuple

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    B2,
    HOST,
    HOST6,
    LO,
    NAT_FIRST,
    NAT_LAST,
    NET1,
    OTHER,
    OTHER6,
    OUTSIDE,
    REDIRECT,
    UNSPEC,
    Member,
    Programs,
    Reason,
    Row,
    host_says,
    outside_sends,
)

SPORT = 20100  # within the range for masquerading, so that it is kept
SYN = p.tcp(SPORT, 8081, p.SYN)


class Way(NamedTuple):
    """How the host reaches a published port, and whom the server sees."""

    asked: p.Address
    source: p.Address
    seen: p.Address

    @property
    def hop(self) -> dict[str, Any]:
        return {"ttl": 63} if p.ethertype(self.sends(SYN)) == p.ETH_IPV4 else {"hops": 63}

    def sends(self, carried: p.Transport, **header: Any) -> bytes:
        return host_says(self.asked, carried, src=self.source, **header)


WAYS: Mapping[str, Way] = {
    "its own address": Way(HOST, HOST, HOST),
    "another of its addresses": Way(OTHER, HOST, HOST),
    "a network's gateway": Way(NET1.gateway, NET1.gateway, NET1.gateway),
    "loopback": Way("127.0.0.1", "127.0.0.1", NET1.gateway),
    "any of loopback": Way("127.8.0.1", "127.0.0.1", NET1.gateway),
    "loopback, from its own address": Way("127.0.0.1", HOST, HOST),
    "its own IPv6 address": Way(HOST6, HOST6, HOST6),
    "another of its IPv6 addresses": Way(OTHER6, HOST6, HOST6),
    "IPv6 loopback": Way("::1", "::1", NET1.gateway6),
}


def untouched(sentence: str, packet: bytes) -> Row:
    return Row(sentence, LO, packet, UNSPEC, Reason.NOT_OURS)


UNTOUCHED = [
    untouched("a server of the host's", host_says(HOST, p.tcp(40000, 22, p.SYN))),
    untouched("its answer", host_says(HOST, p.tcp(22, 40000, p.SYN | p.ACK))),
    untouched("a published port's number as the source", host_says(HOST, p.tcp(8081, 40000, p.SYN | p.ACK))),
    untouched("an echo", host_says("127.0.0.1", p.echo(8, 7))),
    untouched("an IPv6 echo", host_says("::1", p.echo6(128, 7))),
    untouched("an unknown protocol", host_says(HOST, p.Transport(47, bytes(8)))),
    untouched("a port that is published at another address", host_says(OTHER, p.tcp(SPORT, 8082, p.SYN))),
    untouched("a port that is published for loopback, elsewhere", host_says(HOST, p.tcp(SPORT, 8083, p.SYN))),
    untouched("a port that is published for TCP, by UDP", host_says(HOST, p.udp(SPORT, 8082))),
    untouched("to a group", host_says("224.0.0.251", p.udp(SPORT, 8081), src=HOST)),
    untouched("to an IPv6 group", host_says("ff02::1", p.udp(SPORT, 8081), src=HOST6)),
    untouched("to a link-local address", host_says("fe80::1", p.udp(SPORT, 8081))),
    untouched("from nobody", host_says(HOST, p.udp(SPORT, 8081), src="0.0.0.0")),
    untouched("an error about nothing", host_says(HOST, p.icmp(3, 3, 0, p.ipv4(HOST, HOST, p.udp(9, 9))))),
    untouched("an error without a quotation", host_says(HOST, p.icmp(3, 3))),
    untouched("a lie about its length", host_says(HOST, SYN, total=999)),
    untouched("ARP", p.ethernet(p.NOBODY, p.NOBODY, p.ETH_ARP, bytes(28))),
    untouched("an unknown ethertype", p.ethernet(p.NOBODY, p.NOBODY, 0x88CC, bytes(46))),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.sentence) for row in UNTOUCHED])
def test_not_ours(programs: Programs, row: Row) -> None:
    programs.check(row)
    assert not programs.table("pending")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_s19_a_conversation(programs: Programs, way: str, proto: str) -> None:
    """The server sees its client, but for loopback the gateway; its answers go back to where the client is."""
    w = WAYS[way]
    ask, heard, reply, back = (
        (SYN, p.tcp(SPORT, 80, p.SYN), p.tcp(80, SPORT, p.SYN | p.ACK), p.tcp(8081, SPORT, p.SYN | p.ACK))
        if proto == "tcp"
        else (p.udp(SPORT, 8081), p.udp(SPORT, 53), p.udp(53, SPORT), p.udp(8081, SPORT))
    )
    for _ in range(2):
        programs.expect(LO, w.sends(ask), REDIRECT, Reason.DELIVERED, A2.gets(w.seen, heard, **w.hop))
        programs.expect(
            A2, A2.sends(w.seen, reply), REDIRECT, Reason.TO_HOST, leaves_as(A2, w.asked, w.source, back)
        )
    if proto == "tcp":
        done = w.sends(p.tcp(SPORT, 8081, p.ACK, b"x"))
        out = A2.gets(w.seen, p.tcp(SPORT, 80, p.ACK, b"x"), **w.hop)
        programs.expect(LO, done, REDIRECT, Reason.DELIVERED, out)
    assert len(programs.table("conns")) == 2 and not programs.table("pending")


def leaves_as(member: Member, src: p.Address, dst: p.Address, carried: p.Transport) -> bytes:
    """As it arrives where it is meant for: no hop further."""
    hop: dict[str, Any] = {"hops": 64} if ":" in str(src) else {"ttl": 64}
    return member.leaves(src, dst, carried, **hop)


def test_published_at_one_address_of_a_network_without_icc(programs: Programs) -> None:
    out = B2.gets(HOST, p.tcp(SPORT, 80, p.SYN), ttl=63)
    programs.expect(LO, host_says(HOST, p.tcp(SPORT, 8082, p.SYN)), REDIRECT, Reason.DELIVERED, out)


def test_published_at_loopback_alone(programs: Programs) -> None:
    for way in (WAYS["loopback"], WAYS["IPv6 loopback"]):
        out = A2.gets(way.seen, p.tcp(SPORT, 80, p.SYN), **way.hop)
        programs.expect(LO, way.sends(p.tcp(SPORT, 8083, p.SYN)), REDIRECT, Reason.DELIVERED, out)


def test_a_source_port_that_the_host_could_need_is_changed(programs: Programs) -> None:
    """It is not in the range for masquerading, so a socket of the host's might have it, or be given it."""
    got = programs.run(LO, host_says(HOST, p.udp(40000, 8081)))
    chosen = int.from_bytes(got.packet[34:36], "big")
    assert got.reasons == {"DELIVERED": 1} and NAT_FIRST <= chosen <= NAT_LAST
    back = leaves_as(A2, HOST, HOST, p.udp(8081, 40000))
    programs.expect(A2, A2.sends(HOST, p.udp(53, chosen)), REDIRECT, Reason.TO_HOST, back)


def test_a_port_with_a_socket_of_the_hosts_behind_it_is_not_taken(programs: Programs) -> None:
    """A process that speaks with the container itself, by the socket hooks, has its answers on that port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(HOST), SPORT))
        got = programs.run(LO, host_says(HOST, p.udp(SPORT, 8081)))
        assert got.reasons == {"DELIVERED": 1} and got.packet[34:36] != SPORT.to_bytes(2, "big")
        programs.expect(A2, A2.sends(HOST, p.udp(53, SPORT)), REDIRECT, Reason.TO_HOST)


def test_a_talking_socket_of_the_hosts_keeps_its_conversation(programs: Programs) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(HOST), 8081))
        sock.connect((str(HOST), SPORT))
        programs.expect(LO, host_says(HOST, p.udp(SPORT, 8081)), UNSPEC, Reason.NOT_OURS)
    assert programs.run(LO, host_says(HOST, p.udp(SPORT, 8081))).reasons == {"DELIVERED": 1}


def test_s19_a_source_that_may_not_connect_is_left_to_the_host(programs: Programs) -> None:
    """Nobody listens there: it is refused at once, as by the socket hooks."""
    programs.publish("0.0.0.0", 8081, p.UDP, filtered=7)
    acl_key, acl = abi.layout("acl_key").type, abi.layout("acl").type
    rule = acl_key(prefixlen=32 + 96 + 8, acl=7, addr=IPv4Address("127.0.0.0"))
    programs.maps["acls"][rule] = acl(0)
    try:
        programs.expect(LO, host_says("127.0.0.1", p.udp(SPORT, 8081)), UNSPEC, Reason.NOT_OURS)
        assert programs.run(LO, host_says(HOST, p.udp(SPORT, 8081))).reasons == {"DELIVERED": 1}
    finally:
        programs.publish("0.0.0.0", 8081, p.UDP)
        del programs.maps["acls"][rule]


def test_what_is_larger_than_the_containers_mtu_is_delivered_all_the_same(programs: Programs) -> None:
    """There is no way between the two that could be too narrow."""
    data = bytes(1800)
    out = A2.gets(HOST, p.udp(SPORT, 53, data), ttl=63)
    programs.expect(LO, host_says(HOST, p.udp(SPORT, 8081, data)), REDIRECT, Reason.DELIVERED, out)


def test_it_counts_for_the_server(programs: Programs) -> None:
    programs.maps["quotas"][abi.quota_key(A2.number)] = abi.quota()
    programs.run(LO, host_says(HOST, p.udp(SPORT, 8081)))
    programs.run(A2, A2.sends(HOST, p.udp(53, SPORT)))
    assert {key.endpoint: usage.conns for key, usage in programs.maps["quotas"].items()} == {A2.number: 1}


def test_nobody_outside_can_take_part(programs: Programs) -> None:
    """A packet from outside with the host's own addresses and ports, and an error that quotes the answer."""
    programs.run(LO, host_says(HOST, p.udp(SPORT, 8081)))
    forged = outside_sends(HOST, p.udp(SPORT, 8081), src=HOST)
    programs.expect(None, forged, UNSPEC, Reason.NOT_OURS)
    error = p.icmp(3, 3, 0, p.ipv4(HOST, HOST, p.udp(8081, SPORT)))
    for src in (HOST, OUTSIDE):
        programs.expect(None, outside_sends(HOST, error, src=src), UNSPEC, Reason.NOT_OURS)


def test_another_container_cannot_answer(programs: Programs) -> None:
    programs.run(LO, host_says(HOST, p.udp(SPORT, 8081)))
    programs.expect(A1, A1.sends(HOST, p.udp(53, SPORT)), REDIRECT, Reason.TO_HOST)


def test_a_connection_of_somebody_outside_is_not_the_hosts(programs: Programs) -> None:
    programs.run(None, outside_sends(HOST, p.udp(SPORT, 8081)))
    programs.expect(LO, host_says(HOST, p.udp(SPORT, 8081), src=OUTSIDE), UNSPEC, Reason.NOT_OURS)


ERRORS: Mapping[str, tuple[Way, int, int]] = {
    "port unreachable": (WAYS["its own address"], 3, 3),
    "fragmentation needed": (WAYS["loopback"], 3, 4),
    "IPv6 port unreachable": (WAYS["its own IPv6 address"], 1, 4),
    "IPv6 packet too big": (WAYS["IPv6 loopback"], 2, 0),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_comes_back_translated_outside_and_inside(programs: Programs, name: str) -> None:
    way, kind, code = ERRORS[name]
    before = programs.run(LO, way.sends(p.udp(SPORT, 8081))).packet
    make = p.icmp6 if way.hop.get("hops") else p.icmp
    quote = before[14:]
    seen = A2.sends(way.seen, make(kind, code, 1280, quote))
    # What the host has sent, one hop on, but for the sum, which nobody looks at (RFC 5508, 4.2).
    sent = way.sends(p.udp(SPORT, 8081), **way.hop)[14:]
    at = 40 if way.hop.get("hops") else 20
    sent = sent[: at + 6] + quote[at + 6 : at + 8] + sent[at + 8 :]
    out = leaves_as(A2, way.asked, way.source, make(kind, code, 1280, sent))
    programs.expect(A2, seen, REDIRECT, Reason.TO_HOST, out)


def test_an_error_of_the_hosts_goes_to_the_container(programs: Programs) -> None:
    """Its socket has gone: the answer is refused."""
    programs.run(LO, host_says(HOST, p.udp(SPORT, 8081)))
    answer = programs.run(A2, A2.sends(HOST, p.udp(53, SPORT))).packet
    got = programs.run(LO, host_says(HOST, p.icmp(3, 3, 0, answer[14:])))
    assert (got.verdict, got.reasons) == (REDIRECT, {"DELIVERED": 1})
    quote = p.ipv4(A2.ip, HOST, p.udp(53, SPORT))
    quote = quote[:26] + answer[40:42] + quote[28:]
    assert not p.difference(got.packet, A2.gets(HOST, p.icmp(3, 3, 0, quote), ttl=63))


FRAGMENTED = p.udp(SPORT, 8081, bytes(range(56)))


def test_fragments_both_ways(programs: Programs) -> None:
    wanted = p.cut(A2.gets(HOST, p.udp(SPORT, 53, bytes(range(56))), ttl=63), 16, 40)
    for piece, out in zip(p.cut(host_says(HOST, FRAGMENTED), 16, 40), wanted, strict=True):
        programs.expect(LO, piece, REDIRECT, Reason.DELIVERED, out)
    wanted = p.cut(leaves_as(A2, HOST, HOST, p.udp(8081, SPORT, bytes(range(56)))), 16, 40)
    for piece, out in zip(
        p.cut(A2.sends(HOST, p.udp(53, SPORT, bytes(range(56)))), 16, 40), wanted, strict=True
    ):
        programs.expect(A2, piece, REDIRECT, Reason.TO_HOST, out)


def test_fragments_of_the_hosts_own_are_untouched_and_none_is_kept(programs: Programs) -> None:
    first, *later = p.cut(host_says(HOST, p.udp(SPORT, 9, bytes(56))), 16, 40)
    assert programs.run(LO, later[0]).reasons == {"NOT_OURS": 1, "HELD": 1}
    programs.expect(LO, first, UNSPEC, Reason.NOT_OURS)
    for piece in later:
        programs.expect(LO, piece, UNSPEC, Reason.NOT_OURS)
    assert not dict(programs.maps["frag_queue"].read_all())


def test_a_fragment_that_comes_too_early_is_kept_and_delivered(programs: Programs) -> None:
    programs.topology.tap("lo")
    first, later = p.cut(host_says(HOST, FRAGMENTED), 32)
    assert programs.run(LO, later).reasons == {"NOT_OURS": 1, "HELD": 1}
    programs.topology.received("lo")
    assert programs.run(LO, first).reasons == {"DELIVERED": 1}
    assert later in programs.topology.received("lo")
    _, out = p.cut(A2.gets(HOST, p.udp(SPORT, 53, bytes(range(56))), ttl=63), 32)
    programs.expect(LO, later, REDIRECT, Reason.DELIVERED, out)


def test_a_published_port_is_no_source_port(programs: Programs) -> None:
    """20005 is in the range, but who sends there is somebody's client."""
    got = programs.run(LO, host_says(HOST, p.udp(20005, 8081)))
    assert got.reasons == {"DELIVERED": 1} and got.packet[34:36] != (20005).to_bytes(2, "big")
