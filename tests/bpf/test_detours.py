# SPDX-License-Identifier: Apache-2.0
"""What goes by way of the host's stack, whose packet filter translates it, and what comes back by it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from datapath.dataplane.convert import to_abi
from datapath.dataplane.structs import HostRoutedKey, SubnetValue
from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    B1,
    HOST,
    HOST6,
    NET1,
    NET2,
    OUTSIDE,
    REDIRECT,
    SHOT,
    UPLINK,
    Member,
    Net,
    Outcome,
    Programs,
    Reason,
)

VIP, VIP6 = "10.96.0.10", "fd96::10"
PROTOCOLS = pytest.mark.parametrize("proto", [p.TCP, p.UDP], ids=["TCP", "UDP"])


@pytest.fixture
def routed(programs: Programs) -> Iterator[Programs]:
    """The network leaves two prefixes to the host."""
    before = programs.maps["networks"][1]
    keys = [
        to_abi(HostRoutedKey(32 + bits, 1, ip_address(at)))
        for bits, at in ((108, "10.96.0.0"), (108, "fd96::"))
    ]
    for key in keys:
        programs.maps["host_routed"][key] = to_abi(SubnetValue(1))
    flag = int(abi.NetworkFlag.NETWORK_HOST_ROUTED)
    programs.maps["networks"][1] = before._replace(flags=before.flags | flag)
    yield programs
    programs.maps["networks"][1] = before
    programs.maps["host_routed"].delete_many(keys)


def forwarded(
    programs: Programs, member: Member, src: p.Address, carried: p.Transport, *, net: Net = NET1
) -> Outcome:
    """The host's stack sends on to a member what has arrived on the uplink."""
    if ":" in str(src):
        frame = p.ethernet(member.mac, net.mac, p.ETH_IPV6, p.ipv6(src, member.ip6, carried))
    else:
        frame = p.ethernet(member.mac, net.mac, p.ETH_IPV4, p.ipv4(src, member.ip, carried))
    got = programs.run(net, frame, ingress=programs.topology.index[UPLINK])
    assert got.packet == frame
    return got


def tcp(sport: int, dport: int, flags: int = p.SYN) -> p.Transport:
    return p.tcp(sport, dport, flags)


@pytest.mark.parametrize(("host", "far"), [(HOST, OUTSIDE), (HOST6, "2001:db8::99")], ids=["IPv4", "IPv6"])
@PROTOCOLS
def test_only_answers_to_what_a_container_has_sent_to_the_host_come_back_by_its_stack(
    programs: Programs, host: str, far: str, proto: int
) -> None:
    def of(sport: int, dport: int, answer: bool = False) -> p.Transport:
        if proto == p.UDP:
            return p.udp(sport, dport)
        return tcp(sport, dport, p.SYN | p.ACK if answer else p.SYN)

    direct = {"DROP_DIRECT": 1}
    assert forwarded(programs, A1, host, of(30080, 4000, True)).reasons == direct
    assert programs.run(A1, A1.sends(host, of(4000, 30080))).reasons == {"TO_HOST": 1}
    assert forwarded(programs, A1, host, of(30080, 4000, True)).reasons == {"DELIVERED": 1}
    for member, src, sport, dport in (
        (A1, host, 30080, 4001),
        (A1, host, 30081, 4000),
        (A1, far, 30080, 4000),
        (A2, host, 30080, 4000),
    ):
        assert forwarded(programs, member, src, of(sport, dport, True)).reasons == direct


def test_errors_and_fragments_of_such_an_answer_come_too(programs: Programs) -> None:
    asked = p.udp(4000, 30080)
    error = p.icmp(3, 1, payload=p.ipv4(A1.ip, HOST, asked))
    later = p.Transport(p.UDP, bytes(64))
    tail = p.ethernet(A1.mac, NET1.mac, p.ETH_IPV4, p.ipv4(HOST, A1.ip, later, fragment=185))
    stranger = p.ethernet(A1.mac, NET1.mac, p.ETH_IPV4, p.ipv4(OUTSIDE, A1.ip, later, fragment=185))
    elsewhere = programs.topology.index[UPLINK]
    assert forwarded(programs, A1, OUTSIDE, error).reasons == {"DROP_DIRECT": 1}
    assert programs.run(A1, A1.sends(HOST, asked)).reasons == {"TO_HOST": 1}
    assert forwarded(programs, A1, OUTSIDE, error).reasons == {"DELIVERED": 1}
    assert programs.run(NET1, tail, ingress=elsewhere).reasons == {"DROP_DIRECT": 1}
    key = abi.address_key(ip_address(HOST))
    programs.maps["addresses"][key] = abi.address()
    assert programs.run(NET1, tail, ingress=elsewhere).reasons == {"DELIVERED": 1}
    programs.maps["addresses"].pop(key)
    assert programs.run(NET1, stranger, ingress=elsewhere).reasons == {"DROP_DIRECT": 1}


def test_the_host_tells_members_of_no_way_but_the_gateway(programs: Programs) -> None:
    body = p.icmp(5, 1, payload=p.ipv4(A1.ip, VIP, p.udp(1, 2)))
    frame = p.ethernet(A1.mac, NET1.mac, p.ETH_IPV4, p.ipv4(NET1.gateway, A1.ip, body))
    programs.expect(NET1, frame, SHOT, Reason.ABSORBED)
    six = p.icmp6(137, payload=bytes(40))
    frame = p.ethernet(A1.mac, NET1.mac, p.ETH_IPV6, p.ipv6(NET1.linklocal, A1.ip6, six, hops=255))
    programs.expect(NET1, frame, SHOT, Reason.ABSORBED)


@pytest.mark.parametrize("vip", [VIP, VIP6], ids=["IPv4", "IPv6"])
def test_a_prefix_of_a_network_is_left_to_the_host_and_no_other(routed: Programs, vip: str) -> None:
    for carried in (tcp(4000, 80), p.udp(4000, 80), tcp(4000, 80, p.ACK)):
        frame = A1.sends(vip, carried)
        routed.expect(A1, frame, REDIRECT, Reason.TO_HOST, frame)
    assert forwarded(routed, A1, vip, p.udp(80, 4000)).reasons == {"DELIVERED": 1}
    assert list(routed.maps["conns"]) == list(routed.maps["pending"]) == []
    assert "TO_HOST" not in routed.run(A1, A1.sends(OUTSIDE, tcp(4000, 80))).reasons
    assert "TO_HOST" not in routed.run(B1, B1.sends(VIP, tcp(4000, 80))).reasons  # another network's member


def test_what_the_host_forwards_to_such_a_network_is_answered_by_its_stack(routed: Programs) -> None:
    """To a neighbour, whose packet has come that way, too: until that begins anew without the host."""
    assert forwarded(routed, A1, OUTSIDE, tcp(5000, 80)).reasons == {"DELIVERED": 1}
    frame = A1.sends(OUTSIDE, tcp(80, 5000, p.SYN | p.ACK))
    routed.expect(A1, frame, REDIRECT, Reason.TO_HOST, frame)
    for carried, answer in (
        (tcp(5000, 80), tcp(80, 5000, p.SYN | p.ACK)),
        (p.udp(5000, 80), p.udp(80, 5000)),
    ):
        assert routed.run(A1, A1.sends(A2.ip, answer, to=A2.mac)).reasons == {"DELIVERED": 1}
        assert forwarded(routed, A1, A2.ip, carried).reasons == {"DELIVERED": 1}
        got = routed.run(A1, A1.sends(A2.ip, answer, to=A2.mac))
        assert got.reasons == {"TO_HOST": 1}
        assert got.packet == p.ethernet(NET1.mac, A1.mac, p.ETH_IPV4, A1.sends(A2.ip, answer, to=A2.mac)[14:])
        assert routed.run(A2, A2.sends(A1.ip, carried, to=A1.mac)).reasons == {"DELIVERED": 1}
        assert routed.run(A1, A1.sends(A2.ip, answer, to=A2.mac)).reasons == {"DELIVERED": 1}


def test_an_error_about_what_the_host_has_forwarded_goes_back_by_it(routed: Programs) -> None:
    asked = p.ipv4(OUTSIDE, A1.ip, p.udp(5000, 80))
    error = A1.sends(OUTSIDE, p.icmp(3, 3, payload=asked))
    assert "TO_HOST" not in routed.run(A1, error).reasons
    assert forwarded(routed, A1, OUTSIDE, p.udp(5000, 80)).reasons == {"DELIVERED": 1}
    routed.expect(A1, error, REDIRECT, Reason.TO_HOST, error)


def test_another_network_is_closed_to_what_the_host_forwards(routed: Programs) -> None:
    assert forwarded(routed, B1, OUTSIDE, p.udp(5000, 80), net=NET2).reasons == {"DROP_DIRECT": 1}
