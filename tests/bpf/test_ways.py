# SPDX-License-Identifier: Apache-2.0
"""A connection's way leads elsewhere than it did: into a network of containers, or to where no program can send."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from datapath.kernel import abi
from tests.bpf import packets as p
from tests.bpf.fixtures import (
    A1,
    A2,
    A3,
    D1,
    HOST,
    HOST6,
    NET1,
    NET2,
    NET4,
    NEXT_HOP,
    NEXT_HOP6,
    OTHER,
    OTHER6,
    OUTSIDE,
    OUTSIDE6,
    REDIRECT,
    SHOT,
    UPLINK,
    Member,
    Net,
    Programs,
    Reason,
    outside_sends,
)
from tests.bpf.ipsec import Policies, policy

SPORT = 20100
FAMILIES = pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
PROTOS = pytest.mark.parametrize("proto", [p.TCP, p.UDP], ids=["TCP", "UDP"])


@contextlib.contextmanager
def way(to: p.Address, words: str) -> Iterator[None]:
    """A route to one address alone."""
    family, whole = ("-4", f"{to}/32") if ip_address(to).version == 4 else ("-6", f"{to}/128")
    subprocess.run(["ip", family, "route", "add", whole, *words.split()], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", family, "route", "del", whole], check=True)


def carried(proto: int, sport: int, dport: int, flags: int = p.SYN) -> p.Transport:
    return p.udp(sport, dport) if proto == p.UDP else p.tcp(sport, dport, flags)


def asked(programs: Programs, six: bool, proto: int) -> bytes:
    """A published port is asked from outside; what its container answers."""
    frame = outside_sends(HOST6 if six else HOST, carried(proto, 9, 8081))
    assert programs.run(None, frame).reasons == {"DELIVERED": 1}
    inner = 53 if proto == p.UDP else 80
    return A2.sends(OUTSIDE6 if six else OUTSIDE, carried(proto, inner, 9, p.SYN | p.ACK))


def unanswered(programs: Programs) -> bool:
    """All that is known are openings."""
    new = {row.state for row in programs.table("pending").values()} == {abi.ConnState.CONN_NEW}
    return new and not programs.table("conns")


@FAMILIES
@PROTOS
@pytest.mark.parametrize("net", [NET1, NET2], ids=["its own network", "another network"])
def test_an_answer_that_would_go_to_a_container_goes_nowhere(
    programs: Programs, six: bool, proto: int, net: Net
) -> None:
    """Nor does it confirm anything. When the client is outside again it hears it."""
    reply = asked(programs, six, proto)
    with way(OUTSIDE6 if six else OUTSIDE, f"dev {net.device}"):
        programs.expect(A2, reply, SHOT, Reason.DROP_ISOLATED)
        assert unanswered(programs)
    assert programs.run(A2, reply).reasons == {"TO_OUTSIDE": 1}
    assert not unanswered(programs)


@PROTOS
@pytest.mark.parametrize("member", [A1, D1], ids=["masqueraded", "as it is"])
@pytest.mark.parametrize("net", [NET1, NET4], ids=["network 1", "network 4"])
def test_what_would_go_to_a_container_is_looked_at_as_if_it_began(
    programs: Programs, member: Member, proto: int, net: Net
) -> None:
    """Nobody is a next hop in its own network, and others are none of its."""
    frame = member.sends(OUTSIDE, carried(proto, SPORT, 53))
    assert programs.run(member, frame).reasons == {"TO_OUTSIDE": 1}
    reason = Reason.DROP_NO_ENDPOINT if member.net is net else Reason.DROP_ISOLATED
    with way(OUTSIDE, f"dev {net.device}"):
        programs.expect(member, frame, SHOT, reason)
    assert programs.run(member, frame).reasons == {"TO_OUTSIDE": 1}


@FAMILIES
def test_an_error_about_it_goes_nowhere_either(programs: Programs, six: bool) -> None:
    asked(programs, six, p.UDP)
    client, own = (OUTSIDE6, A2.ip6) if six else (OUTSIDE, A2.ip)
    packet, kind, code = (p.ipv6, p.icmp6, (1, 4)) if six else (p.ipv4, p.icmp, (3, 3))
    told = A2.sends(client, kind(*code, payload=packet(client, own, p.udp(9, 53))))
    with way(client, "dev dp2"):
        programs.expect(A2, told, SHOT, Reason.DROP_ISOLATED)
    assert programs.run(A2, told).reasons == {"TO_OUTSIDE": 1}


@PROTOS
def test_an_answer_that_is_not_encapsulated_confirms_nothing(programs: Programs, proto: int) -> None:
    """The programs cannot do what the route says, so nobody hears the answer."""
    reply = asked(programs, False, proto)
    with way(OUTSIDE, f"encap ip id 5 dst {NEXT_HOP} dev up0"):
        programs.expect(A2, reply, SHOT, Reason.DROP_ENCAP)
        assert unanswered(programs)
    assert programs.run(A2, reply).reasons == {"TO_OUTSIDE": 1}


def test_what_the_stack_encapsulates_is_a_connection(programs: Programs) -> None:
    """A network without masquerading hands it to the host, and the answer comes back like any."""
    with way(OUTSIDE, f"encap ip id 5 dst {NEXT_HOP} dev up0"):
        assert programs.run(D1, D1.sends(OUTSIDE, p.udp(SPORT, 53))).reasons == {"TO_HOST": 1}
        assert programs.run(None, outside_sends(D1.ip, p.udp(53, SPORT))).reasons == {"DELIVERED": 1}
        assert len(programs.table("conns")) == 2


def told_by_d1() -> bytes:
    """d1 has no room for an answer of the server's."""
    return D1.sends(OUTSIDE, p.icmp(3, 3, payload=p.ipv4(OUTSIDE, D1.ip, p.udp(53, SPORT))))


def test_an_error_about_it_goes_by_the_stack_as_well(programs: Programs, policies: Policies) -> None:
    """As it is: where the route encapsulates, and where an IPsec policy is about it."""
    assert programs.run(D1, D1.sends(OUTSIDE, p.udp(SPORT, 53))).reasons == {"TO_OUTSIDE": 1}
    with way(OUTSIDE, f"encap ip id 5 dst {NEXT_HOP} dev up0"):
        programs.expect(D1, told_by_d1(), REDIRECT, Reason.TO_HOST)
    policies(policy("out", f"{D1.ip}/32", f"{OUTSIDE}/32"))
    programs.expect(D1, told_by_d1(), REDIRECT, Reason.TO_HOST)


def test_a_translated_error_that_a_policy_is_about_goes_nowhere(
    programs: Programs, policies: Policies
) -> None:
    asked(programs, False, p.UDP)
    policies(policy("out", "0.0.0.0/0", f"{OUTSIDE}/32"))
    told = A2.sends(OUTSIDE, p.icmp(3, 3, payload=p.ipv4(OUTSIDE, A2.ip, p.udp(9, 53))))
    programs.expect(A2, told, SHOT, Reason.DROP_XFRM)


def test_the_router_that_it_leads_to_gets_it(programs: Programs) -> None:
    """What a container has begun, if its own network's member is the next hop now and forwards."""
    from tests.bpf.test_forwarding import change

    frame = D1.sends(OUTSIDE, p.udp(SPORT, 53)), A1.sends(OUTSIDE, p.udp(SPORT, 53))
    for member, one in zip((D1, A1), frame, strict=True):
        assert programs.run(member, one).reasons == {"TO_OUTSIDE": 1}
    change(programs, A3, True)
    try:
        with way(OUTSIDE, f"via {A3.ip} dev dp0"):
            assert programs.run(A1, frame[1]).reasons == {"DELIVERED": 1}
            programs.expect(D1, frame[0], SHOT, Reason.DROP_ISOLATED)
    finally:
        change(programs, A3, False)


@pytest.mark.parametrize("to", ["198.51.100.0", "2001:db8:1::"])
def test_the_neighbour_of_a_lone_address_of_the_hosts_is_not_the_hosts(programs: Programs, to: str) -> None:
    """The host has 198.51.100.1 and 2001:db8:1::1 alone there, and no way to any other: what would be translated must
    not leave as it is."""
    six = ":" in to
    route = ["ip", "-6" if six else "-4", "route"]
    default = ["default", "via", str(NEXT_HOP6 if six else NEXT_HOP)]
    own = OTHER6 if six else OTHER
    known = abi.address_key(own)
    programs.maps["addresses"][known] = abi.address(1)
    subprocess.run([*route, "del", *default], check=True)
    try:
        got = programs.run(A1, A1.sends(to, p.udp(SPORT, 53)))
        hop: dict[str, Any] = {"hops": 1} if six else {"ttl": 1}
        assert (got.reasons, got.packet) == ({"TO_HOST": 1}, A1.sends(to, p.udp(SPORT, 53), **hop))
        frame = A1.sends(own, p.udp(SPORT, 53))
        programs.expect(A1, frame, REDIRECT, Reason.TO_HOST, frame)
    finally:
        subprocess.run([*route, "add", *default], check=True)
        programs.maps["addresses"].pop(known)
    assert programs.run(A1, A1.sends(to, p.udp(SPORT, 53))).reasons == {"TO_OUTSIDE": 1}


@pytest.mark.parametrize("member", [A1, D1], ids=["masqueraded", "as it is"])
def test_what_cannot_leave_at_all_is_told_no_width(programs: Programs, member: Member) -> None:
    """It may be fragmented, so its size is not why (RFC 792: code 4 is for what must not be)."""
    frame = member.sends(OUTSIDE, p.Transport(49, bytes(1400)), fragment=0)
    subprocess.run(["ip", "link", "set", UPLINK, "mtu", "1280"], check=True)
    try:
        programs.expect(member, frame, SHOT, Reason.DROP_PROTOCOL)
        whole = member.sends(OUTSIDE, p.Transport(49, bytes(1400)))
        assert programs.run(member, whole).reasons == {"DROP_TOO_BIG": 1}
    finally:
        subprocess.run(["ip", "link", "set", UPLINK, "mtu", "1500"], check=True)
